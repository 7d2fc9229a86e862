"""A source is looked up once, stays with its model, and what a written file notes comes back."""

import dataclasses
import json
import zipfile

import numpy as np
import pytest

import bitlib
from bitlib import checkpoint, finetune, hyperrule, labels, savedmodel, zoo
from bitlib.checkpoint import CheckpointError
from bitlib.files import writing
from tests.conftest import SMALL, random_arrays

NAMES = ["ash", "birch", "cedar"]


def note_of(path):
    with zipfile.ZipFile(path) as file:
        return json.loads(file.comment)["bitlib"]


def with_comment(path, comment):
    with zipfile.ZipFile(path, "a") as file:
        file.comment = comment
    return path


class TestFind:
    def test_a_path(self, small_npz):
        source = checkpoint.find(str(small_npz))
        assert (source.card.name, source.path) == ("small", small_npz)
        assert source.sha256 == writing.sha256(small_npz)

    def test_a_source_is_returned_as_it_is(self, small_npz):
        source = checkpoint.find(small_npz)
        assert checkpoint.find(source) is source
        loaded = bitlib.load(source).source
        assert (loaded.path, loaded.card) == (source.path, source.card)

    def test_a_handle_has_the_range_and_output_of_its_module(self, tmp_path, monkeypatch):
        file = tmp_path / "BiT-M-R50x1.npz"
        np.savez(file, **random_arrays(SMALL))
        monkeypatch.setenv("BITLIB_MIRROR", str(tmp_path))
        monkeypatch.setenv("BITLIB_CACHE", str(tmp_path / "cache"))
        source = checkpoint.find("https://tfhub.dev/google/bit/m-r50x1/1")
        assert (source.card.input_range, source.card.output) == ((0, 1), "features")
        assert bitlib.load(source).head is None
        assert source.verified == writing.sha256(file)

    def test_a_port_asks_the_catalogue_once_and_hashes_a_file_once(self, tmp_path, monkeypatch):
        np.savez(tmp_path / "R50x1_224.npz", **random_arrays(SMALL))
        (tmp_path / "distill").mkdir()
        (tmp_path / "R50x1_224.npz").rename(tmp_path / "distill" / "R50x1_224.npz")
        monkeypatch.setenv("BITLIB_MIRROR", str(tmp_path))
        monkeypatch.setenv("BITLIB_CACHE", str(tmp_path / "cache"))
        calls = []
        for module, name in ((zoo, "card"), (writing, "sha256"), (zoo, "sha256")):
            plain = getattr(module, name)
            monkeypatch.setattr(
                module, name, lambda *args, plain=plain, name=name: (calls.append(name), plain(*args))[1]
            )
        savedmodel.port("R50x1_224", tmp_path / "ported")
        assert sorted(calls) == ["card", "sha256"]


class TestNote:
    @pytest.fixture(scope="class")
    def tuned(self, small_arrays, tmp_path_factory):
        path = tmp_path_factory.mktemp("tuned") / "small.npz"
        np.savez(path, **small_arrays)
        model = bitlib.load(path, head=NAMES)
        examples = np.random.default_rng(0).uniform(-1, 1, (6, 40, 40, 3)).astype("float32"), np.arange(6) % 3
        plan = hyperrule.plan(6, 40, batch_size=4, steps=2, resize=44, crop=40)
        finetune.fit(model, examples, plan, verbose=0)
        return model

    def test_a_tuned_file_knows_its_classes_and_resolution(self, tuned, tmp_path):
        again = bitlib.load(checkpoint.save(tuned, tmp_path / "trees.npz"))
        assert again.card.class_names == tuple(NAMES)
        assert (again.card.resolution, again.card.short_side) == (40, None)
        assert labels.of_card(again.card, 3) == (tuple(NAMES), "")

    def test_its_arrays_are_still_the_published_layout(self, tuned, tmp_path):
        path = checkpoint.save(tuned, tmp_path / "trees.npz")
        with np.load(path) as arrays:
            assert set(arrays) == set(tuned.arrays)

    def test_a_published_list_is_noted_by_its_name(self, tmp_path):
        path = checkpoint.save(bitlib.load(zoo.BUNDLED), tmp_path / "copy.npz")
        assert note_of(path)["labels"] == "glyph1k"
        assert labels.of_card(checkpoint.find(path).card, 1000)[0][0] == labels.names("glyph1k")[0]

    def test_a_model_card_lists_the_classes(self, tuned, tmp_path):
        text = (bitlib.export(tuned, tmp_path / "m") / "README.md").read_text()
        assert "of the classes ash, birch, cedar" in text
        assert "resize straight to 40×40" in text

    def test_names_that_do_not_fit_the_comment_are_left_out(self, small_npz, tmp_path):
        model = bitlib.load(small_npz)
        model.card = dataclasses.replace(
            model.card, class_names=tuple(f"{'x' * 70} {i}" for i in range(1000))
        )
        assert "class_names" not in note_of(checkpoint.save(model, tmp_path / "long.npz"))

    def test_another_comment_is_nobodys_business(self, small_npz):
        assert bitlib.load(with_comment(small_npz, b"made by hand")).card.resolution == 224

    @pytest.mark.parametrize(
        "comment",
        [
            b'{"bitlib": {"resolution": 0}}',
            b'{"bitlib": {"resolution": "64"}}',
            b'{"bitlib": {"resolution": 64, "short_side": 32}}',
            b'{"bitlib": {"activation": "tanh"}}',
            b'{"bitlib": {"labels": "../secret"}}',
            b'{"bitlib": {"class_names": [1, 2]}}',
            b'{"bitlib": {"name": "another"}}',
            b'{"bitlib": [1]}',
            b'{"bitlib": ' + b"[" * 20_000,
            b'{"bitlib":',
        ],
    )
    def test_a_damaged_note_is_refused(self, small_npz, comment):
        with pytest.raises(CheckpointError, match=r"small\.npz: the note .* is damaged"):
            bitlib.load(with_comment(small_npz, comment))

    def test_as_many_names_as_classes(self, small_npz):
        with_comment(small_npz, b'{"bitlib": {"class_names": ["a", "b"]}}')
        with pytest.raises(CheckpointError, match="11 classes, the file names 2"):
            bitlib.load(small_npz)


class TestHead:
    def test_a_list_of_names(self, small_npz):
        model = bitlib.load(small_npz, head=NAMES)
        assert (model.num_classes, model.card.class_names) == (3, tuple(NAMES))
        assert not model.head.convolution.kernel.numpy().any()

    @pytest.mark.parametrize("head", [[], ["a", 1], True, "ash", 0, 2.5])
    def test_refusals(self, small_npz, head):
        with pytest.raises(ValueError, match="^head: expected 'keep', None, a number of classes or a list"):
            bitlib.load(small_npz, head=head)
