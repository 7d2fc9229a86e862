import subprocess
import sys
import unicodedata

import numpy as np
import pytest
import requests
import tensorflow as tf
from PIL import Image
from sklearn.datasets import load_digits

from bitlib import datasets, images
from scripts import paint
from tests.conftest import PEAK, needs_proc


def test_no_digit_of_any_script_is_a_class():
    characters = datasets.glyph_classes()
    assert len(set(characters)) == 1000
    assert not [c for c in characters if unicodedata.numeric(c, None) is not None]
    assert not [c for c in characters if any(n.isnumeric() for n in unicodedata.normalize("NFKC", c))]
    assert not [c for c in characters if "DIGIT" in unicodedata.name(c)]


def test_alikes_are_one_class():
    characters = set(datasets.glyph_classes())
    for alikes in ("AΑА", "OΟОo", "Cc", "Ii|", "Vv", "Ss", "PΡР", "HΗН", "Zz", "xXхХ"):
        assert len(characters & set(alikes)) <= (2 if alikes in ("Ii|", "xXхХ") else 1), alikes
    assert {"A", "O", "Ω", "Ж", "ქ", "€"} <= characters


def test_fonts_are_kept_apart():
    unseen = {*datasets.UNSEEN_STYLES, *datasets.UNSEEN_TYPEFACES}
    assert not unseen & set(datasets.TRAINING_FONTS)
    for font in (*datasets.TRAINING_FONTS, *unseen):
        assert datasets.render_glyph("A", font).max() == 255


def test_render_glyph_is_centred_and_fits():
    for character in "AgЖ€─":
        if character in datasets.font_characters("DejaVuSans"):
            rows, columns = np.nonzero(datasets.render_glyph(character) > 20)
            assert max(np.ptp(rows), np.ptp(columns)) in range(40, 45)
            assert abs(rows.min() + rows.max() - 63) <= 3
            assert abs(columns.min() + columns.max() - 63) <= 3


def test_render_glyph_refuses():
    with pytest.raises(ValueError, match="^font: 'Comic Sans'"):
        datasets.render_glyph("A", "Comic Sans")
    with pytest.raises(ValueError, match="^character: cmr10 has no glyph for 'Ж'"):
        datasets.render_glyph("Ж", "cmr10")
    with pytest.raises(ValueError, match="leaves no ink"):
        datasets.render_glyph(" ")


def test_glyph_masks_are_ordered_by_label():
    masks, labels = datasets.glyph_masks("ЖA", ("DejaVuSans", "cmr10"))
    assert labels.tolist() == [0, 1, 1]
    np.testing.assert_array_equal(masks[2], datasets.render_glyph("A", "cmr10"))
    pictures, _ = datasets.glyph_pictures("ЖA", ("DejaVuSans", "cmr10"))
    np.testing.assert_array_equal(pictures, 255 - masks)


@pytest.fixture
def masks():
    return tf.constant(datasets.glyph_masks("ABCDEFGHIJKLMN", ("DejaVuSans",))[0])


class TestAugment:
    def test_shape_range_and_seed(self, masks):
        first, again, other = (paint.augment_glyphs(masks, (1, n)) for n in (2, 2, 3))
        assert first.shape == (14, 64, 64, 3)
        assert first.dtype == "float32"
        assert np.min(first) >= -1
        assert np.max(first) <= 1
        np.testing.assert_array_equal(first, again)
        assert np.abs(first - other).mean() > 0.1

    @pytest.mark.parametrize("size", [40, 96])
    def test_other_sizes(self, masks, size):
        pictures = paint.augment_glyphs(masks, (1, 2), size)
        assert pictures.shape == (14, size, size, 3)
        assert np.std(pictures, axis=(1, 2, 3)).min() > 0.02  # a glyph is on each

    def test_pictures_keep_their_order(self, masks):
        """A picture correlates with its own glyph more than with the others, most of the time."""
        found = total = 0
        for seed in range(6):
            pictures = np.asarray(paint.augment_glyphs(masks, (seed, 0))).mean(-1)
            ink = np.asarray(masks, float)
            flat = [p.reshape(14, -1) - p.reshape(14, -1).mean(1, keepdims=True) for p in (pictures, ink)]
            flat = [f / np.linalg.norm(f, axis=1, keepdims=True) for f in flat]
            found += (np.abs(flat[0] @ flat[1].T).argmax(1) == np.arange(14)).sum()
            total += 14
        assert found / total > 0.25  # chance is 0.07; small glyphs off the centre hardly overlap


def test_digits_are_the_scans():
    pictures, labels = datasets.digits()
    scans = load_digits()
    assert pictures.shape == (1797, 64, 64)
    np.testing.assert_array_equal(labels, scans.target)
    border = pictures.copy()
    border[:, 8:56, 8:56] = 0
    assert not border.any()
    small = pictures[:, 8:56, 8:56].reshape(-1, 8, 6, 8, 6).mean((2, 4))
    assert np.corrcoef(small.ravel(), scans.images.ravel())[0, 1] > 0.97


def test_photographs():
    photographs = datasets.photographs()
    assert set(photographs) == {"china.jpg", "flower.jpg"}
    assert all(photo.shape == (427, 640, 3) and photo.dtype == np.uint8 for photo in photographs.values())


class TestFolder:
    @pytest.fixture
    def root(self, tmp_path):
        for name in ("b/2.png", "a/1.png", "a/deeper/3.png"):
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            Image.new("L", (40, 40)).save(tmp_path / name)
        return tmp_path

    def test_one_subfolder_a_class(self, root):
        files, labels, names = datasets.folder(root)
        assert [file.name for file in files] == ["1.png", "3.png", "2.png"]
        assert labels.tolist() == [0, 0, 1]
        assert names == ["a", "b"]

    def test_refusals(self, root, tmp_path):
        (root / "a" / "1.png").unlink()
        with pytest.raises(ValueError, match="has one class, deeper"):
            datasets.folder(root / "a")
        Image.new("L", (40, 40)).save(root / "loose.png")
        with pytest.raises(ValueError, match="holds loose.png beside its subfolders"):
            datasets.folder(root)
        with pytest.raises(FileNotFoundError, match="no such folder"):
            datasets.folder(tmp_path / "nowhere")

    def test_unreadable_pictures_are_reported_and_left_out(self, root):
        (root / "a" / "broken.jpg").write_bytes(b"no picture")
        whole = (root / "b" / "2.png").read_bytes()
        (root / "b" / "cut.png").write_bytes(whole[: len(whole) // 2])
        with pytest.warns(UserWarning, match="2 of 5 pictures cannot be read") as caught:
            files, labels, _ = datasets.folder(root)
        assert "broken.jpg: not a picture" in str(caught[0].message)
        assert "cut.png" in str(caught[0].message)
        assert [file.name for file in files] == ["1.png", "3.png", "2.png"]
        assert labels.tolist() == [0, 0, 1]
        assert len(datasets.folder(root, verify=False)[0]) == 5

    def test_a_folder_without_any_readable_picture(self, tmp_path):
        for name in ("a", "b"):
            (tmp_path / name).mkdir()
            (tmp_path / name / "x.png").write_bytes(b"")
        with (
            pytest.warns(UserWarning, match="2 of 2"),
            pytest.raises(ValueError, match="has no picture that can be read"),
        ):
            datasets.folder(tmp_path)


@pytest.mark.slow
@needs_proc
def test_memory_for_a_folder_is_that_of_few_pictures(tmp_path):
    for index in range(8):
        (tmp_path / str(index % 2)).mkdir(exist_ok=True)
        Image.new("RGB", (4000, 4000)).save(tmp_path / str(index % 2) / f"{index}.png")
    code = f"""{PEAK}
from bitlib import datasets, images
images.MAX_PIXELS = 20_000_000
before = peak()
files, _, _ = datasets.folder({str(tmp_path)!r})
print(len(files), peak() - before)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    count, grown = run.stdout.split()
    assert count == "8"
    assert float(grown) < 250  # MiB; one picture takes 110, six threads took 660


class TestDraw:
    labels = np.repeat([3, 7, 9], [20, 30, 50])

    @pytest.mark.parametrize("num_test", [None, 40])
    def test_stratified_and_apart(self, num_test):
        train, test = datasets.draw(self.labels, 5, num_test, seed=2)
        assert np.bincount(self.labels[train])[[3, 7, 9]].tolist() == [5, 5, 5]
        assert len(set(train)) == 15
        assert len(set(test)) == len(test) == (num_test or 85)
        assert not set(train) & set(test)

    def test_seeds(self):
        first, again, other = (datasets.draw(self.labels, 5, seed=seed)[0] for seed in (1, 1, 2))
        np.testing.assert_array_equal(first, again)
        assert set(first) != set(other)

    def test_fewer_shots_are_a_part_of_more(self):
        few, many = (datasets.draw(self.labels, shots, 30, seed=4) for shots in (2, 8))
        assert set(few[0]) < set(many[0])
        np.testing.assert_array_equal(few[1], many[1])

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"shots": 21}, r"^shots: class 3 has 20 examples left, 21 are wanted"),
            ({"shots": 0}, "^shots: expected at least 1"),
            ({"shots": 1, "num_test": 100}, "^num_test: expected 1 to 99, received 100"),
        ],
    )
    def test_refusals(self, arguments, message):
        with pytest.raises(ValueError, match=message):
            datasets.draw(self.labels, **arguments)

    def test_nothing_left_to_test_on(self):
        with pytest.raises(ValueError, match="none is left to test on"):
            datasets.draw([0, 1, 0, 1], 2)

    def test_a_class_without_a_test_is_named(self):
        labels = np.array([0] * 20 + [1] * 5)
        with pytest.warns(UserWarning, match="^labels: none to test on of 1; 1 classes in all"):
            datasets.draw(labels, 5)


class TestPipeline:
    @pytest.fixture
    def pictures(self):
        return [np.full((20 + n, 30, 3), n * 5, np.uint8) for n in range(25)]

    def test_every_picture_once_with_its_label(self, pictures):
        for seed in (None, 0, 1):
            pairs = list(datasets.pipeline(pictures, np.arange(25), seed=seed).as_numpy_iterator())
            labels = [int(label) for _, label in pairs]
            assert sorted(labels) == list(range(25))
            assert (labels == sorted(labels)) == (seed is None)
            for image, label in pairs:
                assert image.shape == (20 + label, 30, 3)
                np.testing.assert_allclose(image, label * 5 / 127.5 - 1, atol=1e-6)

    def test_same_order_each_time(self, pictures):
        dataset = datasets.pipeline(pictures, np.arange(25), seed=3)
        orders = [[int(label) for _, label in dataset] for _ in range(2)]
        assert orders[0] == orders[1]

    def test_files_resized(self, pictures, tmp_path):
        paths = []
        for index, picture in enumerate(pictures[:3]):
            paths.append(tmp_path / f"{index}.png")
            Image.fromarray(picture).save(paths[-1])
        dataset = datasets.pipeline(paths, [0, 1, 2], size=16)
        assert [image.shape for image, _ in dataset] == [(16, 16, 3)] * 3
        batch = next(iter(dataset.batch(3)))[0]
        assert batch.shape == (3, 16, 16, 3)

    def test_a_picture_that_cannot_be_read(self, tmp_path):
        (tmp_path / "bad.png").write_bytes(b"nothing")
        dataset = datasets.pipeline([tmp_path / "bad.png"], [0])
        with pytest.raises(tf.errors.InvalidArgumentError, match="bad.png: not a picture"):
            next(iter(dataset))

    def test_refusals(self, pictures):
        with pytest.raises(ValueError, match="^labels: expected one for each of 25 pictures, received 2"):
            datasets.pipeline(pictures, [0, 1])
        with pytest.raises(ValueError, match="^labels"):
            datasets.pipeline([], [])


class TestTfds:
    def test_an_offline_copy(self, trees):
        pictures, labels, names = datasets.tfds("trees", data_dir=trees)
        assert names == ["ash", "birch", "cedar"]
        assert sorted(labels) == sorted(np.arange(12) % 3)
        assert images.read(pictures[0]).shape == (30, 40, 3)
        assert len({bytes(picture) for picture in pictures}) == 12
        assert len(datasets.tfds("trees", "test", trees)[0]) == 5
        assert len(datasets.tfds("trees", "train[:4]", trees)[0]) == 4

    def test_by_any_name(self, trees):
        pictures, _, names = datasets.labelled("trees", trees)
        assert len(pictures) == 12
        assert names[0] == "ash"

    def test_a_stream_holds_the_same_pictures(self, trees):
        stream, names = datasets.stream("trees", "train", 24, trees)
        pictures, labels, _ = datasets.tfds("trees", "train", trees)
        assert names == ["ash", "birch", "cedar"]
        found = list(stream.as_numpy_iterator())
        assert [label for _, label in found] == labels.tolist()
        resized = list(datasets.pipeline(pictures, labels, 24).as_numpy_iterator())
        for (ours, _), (theirs, _) in zip(found, resized, strict=True):
            np.testing.assert_allclose(ours, theirs, atol=1e-5)

    def test_machines_share_a_stream(self, trees):
        def read(*machine):
            stream, _ = datasets.stream("trees", "train", 16, trees, *machine)
            return [image.tobytes() for image, _ in stream.as_numpy_iterator()]

        parts = [read(tf.distribute.InputContext(2, index, 2)) for index in range(2)]
        assert parts[0] + parts[1] == read()
        assert len(parts[0]) == len(parts[1]) == 6

    def test_its_own_splits(self, trees):
        train, test, names = datasets.splits("trees", trees)
        assert [len(part[0]) for part in (train, test)] == [12, 5]
        assert names == ["ash", "birch", "cedar"]
        train, test, _ = datasets.splits("trees", trees, shots=2, num_test=3, seed=1)
        assert np.bincount(train[1]).tolist() == [2, 2, 2]
        assert len(test[0]) == len(test[1]) == 3

    def test_refusals(self, trees, monkeypatch):
        with pytest.raises(ValueError, match="^name: no data set 'shrubs' in TensorFlow Datasets"):
            datasets.tfds("shrubs", data_dir=trees)
        with pytest.raises(ValueError, match="^split: trees has train, test|^split: trees has test, train"):
            datasets.tfds("trees", "validation", trees)
        monkeypatch.setenv("BITLIB_OFFLINE", "1")
        with pytest.raises(ValueError, match="^name: cifar10 is not in .*BITLIB_OFFLINE=1 forbids"):
            datasets.tfds("cifar10", data_dir=trees)
        with pytest.raises(ValueError, match="^name: coco/2017 is not of pictures with one class label"):
            datasets.tfds("coco/2017", data_dir=trees)

    def test_without_a_network_it_is_said_within_seconds(self, tmp_path, monkeypatch):
        asked = []

        def head(address, timeout):
            asked.append(address)
            raise requests.ConnectionError(address)

        monkeypatch.setattr(requests, "head", head)
        monkeypatch.delenv("BITLIB_OFFLINE", raising=False)
        with pytest.raises(ValueError, match="^name: cifar10 has to be downloaded, and there is no network"):
            datasets.tfds("cifar10", data_dir=tmp_path)
        assert len(asked) == 2
        with pytest.raises(ValueError, match="^data_dir: expected a path, received 5"):
            datasets.tfds("cifar10", data_dir=5)

    def test_not_installed(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
        with pytest.raises(ImportError, match=r"^tensorflow-datasets: .*pip install 'bitlib\[datasets\]'"):
            datasets.tfds("cifar10")


@pytest.mark.slow
def test_labelled_by_name(tmp_path):
    assert len(datasets.labelled("digits")[0]) == 1797
    pictures, labels, names = datasets.labelled("glyphs")
    assert len(names) == 1000
    assert len(set(labels)) == 1000
    assert pictures[0].shape == (64, 64)
    with pytest.raises(FileNotFoundError, match="no such folder"):
        datasets.labelled(tmp_path / "nowhere")


def test_digits_by_class():
    pictures, labels, names = datasets.digits_by_class()
    assert len(pictures) == len(labels) == 1797
    assert names[labels[3]] == "3"


class TestSplits:
    @pytest.fixture
    def halves(self, tmp_path):
        for part, count in (("train", 4), ("test", 2)):
            for name in ("ash", "birch"):
                (tmp_path / part / name).mkdir(parents=True)
                for index in range(count):
                    Image.new("L", (40, 40), index).save(tmp_path / part / name / f"{index}.png")
        return tmp_path

    def test_a_folder_with_its_own(self, halves):
        (files, labels), (test_files, test_labels), names = datasets.splits(halves)
        assert names == ["ash", "birch"]
        assert all("train" in file.parts for file in files)
        assert all("test" in file.parts for file in test_files)
        assert labels.tolist() == [0] * 4 + [1] * 4
        assert test_labels.tolist() == [0, 0, 1, 1]

    def test_a_folder_with_other_classes_to_test_on(self, halves):
        (halves / "test" / "birch").rename(halves / "test" / "cedar")
        with pytest.raises(ValueError, match="other classes to test on than to learn from: birch, cedar"):
            datasets.splits(halves)

    @pytest.mark.parametrize("seed", range(4))
    def test_a_test_split_of_its_own_is_taken_from_in_proportion(self, halves, seed):
        for index in range(2, 8):
            Image.new("L", (40, 40), 90 + index).save(halves / "test" / "ash" / f"{index}.png")
        _, (files, labels), _ = datasets.splits(halves, num_test=5, seed=seed)
        assert np.bincount(labels).tolist() == [4, 1]
        assert len(set(files)) == 5
        with pytest.warns(UserWarning, match="^name: none to test on of (ash|birch); 1 classes in all"):
            datasets.splits(halves, num_test=1, seed=seed)

    def test_drawn_where_there_are_none(self):
        train, test, _ = datasets.splits("digits", shots=5, num_test=100, seed=3)
        assert np.bincount(train[1]).tolist() == [5] * 10
        assert len(test[0]) == 100
        train, test, _ = datasets.splits("digits", seed=3)
        assert len(train[0]) + len(test[0]) == 1797
        assert len(test[0]) == 599
        everything = np.concatenate([np.stack(train[0]), np.stack(test[0])]).reshape(1797, -1)
        assert len(np.unique(everything, axis=0)) == len(
            np.unique(datasets.digits()[0].reshape(1797, -1), axis=0)
        )
