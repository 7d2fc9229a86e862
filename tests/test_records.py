"""TFRecord files: what is written is read back, by one machine or by several, each its part."""

import json
from io import BytesIO

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from bitlib import datasets, images, records


@pytest.fixture
def folder(tmp_path):
    """Eleven pictures of two classes, in files of three kinds and sizes."""
    rng = np.random.default_rng(0)
    for index in range(11):
        path = tmp_path / "pictures" / "ab"[index % 2] / f"{index:02d}.{('png', 'jpg', 'webp')[index % 3]}"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (20 + index, 30, 3), np.uint8)).save(path)
    return tmp_path / "pictures"


@pytest.fixture
def written(folder, tmp_path):
    return records.write(*datasets.folder(folder), tmp_path / "records", files=4)


def context(machines, index):
    return tf.distribute.InputContext(machines, index, machines)


def pairs(dataset):
    """By what nobody else has: the height of the picture."""
    return {image.shape[0]: (image, label) for image, label in dataset.as_numpy_iterator()}


def test_every_example_comes_back(written, folder):
    found = records.find(written.folder)
    assert found == written
    assert found.class_names == ["a", "b"]
    assert len(found) == 11
    assert found.counts == [3, 3, 3, 2]
    read = pairs(found.part())
    assert len(read) == 11 == int(found.part().cardinality())
    pictures, labels, _ = datasets.folder(folder)
    for picture, label in zip(pictures, labels, strict=True):
        pixels = images.read(picture)
        image, found_label = read[len(pixels)]
        np.testing.assert_array_equal(image, pixels / np.float32(127.5) - 1)
        assert found_label == label


def test_pictures_of_any_kind(tmp_path):
    array = np.random.default_rng(0).integers(0, 256, (7, 9, 3), np.uint8)
    stream = BytesIO()
    Image.fromarray(array).save(stream, "JPEG")
    given = [array, stream.getvalue(), Image.fromarray(array[:5]), array[:6, :, 0]]
    found = records.write(given, [0, 1, 2, 3], list("abcd"), tmp_path / "records", files=1)
    for image, label in found.part().as_numpy_iterator():
        np.testing.assert_array_equal(image, images.read(given[label]) / np.float32(127.5) - 1)


def test_resized_as_a_pipeline_resizes(written, folder):
    expected = datasets.pipeline(*datasets.folder(folder)[:2], 24).as_numpy_iterator()
    expected = sorted(image.tobytes() for image, _ in expected)
    assert sorted(image.tobytes() for image, _ in written.part(size=24).as_numpy_iterator()) == expected


@pytest.mark.parametrize("machines", [1, 3, 4])
def test_machines_share_all_and_no_example_twice(written, machines):
    parts = [set(pairs(written.part(context(machines, index)))) for index in range(machines)]
    assert sum(map(len, parts)) == 11 == len(set.union(*parts))
    assert min(map(len, parts)) >= 2


def test_data_sets_of_tfds_are_shared_too(trees):
    parts = [
        [image.tobytes() for image, _ in
         datasets.stream("trees", "train", 16, trees, context(2, index))[0].as_numpy_iterator()]
        for index in range(2)
    ]  # fmt: skip
    whole = [i.tobytes() for i, _ in datasets.stream("trees", "train", 16, trees)[0].as_numpy_iterator()]
    assert parts[0] + parts[1] == whole
    assert len(parts[0]) == len(parts[1]) == 6


class TestRefusals:
    def test_more_machines_than_files(self, written):
        with pytest.raises(ValueError, match=r"4 files cannot be shared by 5 machines; write more$"):
            written.part(context(5, 0))

    def test_no_records(self, folder):
        with pytest.raises(FileNotFoundError, match=r"^folder: .* has no records.json, expected"):
            records.find(folder)

    @pytest.mark.parametrize(
        ("labels", "files", "message"),
        [
            ([0], 1, "^labels: expected one for each of 2"),
            ([0, 1], 3, "^files: expected 1 to 2, the number"),
            ([0, 2], 1, "^labels: expected 0 to 1, as there are 2 names"),
        ],
    )
    def test_what_does_not_fit(self, tmp_path, labels, files, message):
        with pytest.raises(ValueError, match=message):
            records.write([np.zeros((4, 4))] * 2, labels, ["a", "b"], tmp_path / "records", files)
        assert not (tmp_path / "records").exists()

    def test_a_folder_of_something_else_stays(self, folder):
        with pytest.raises(FileExistsError, match="which is not of records and would be lost"):
            records.write([np.zeros((4, 4))], [0], ["a"], folder, files=1)
        assert len(images.files(folder)) == 11

    def test_a_picture_that_cannot_be_read_leaves_what_was(self, written):
        before = json.loads((written.folder / records.INDEX).read_text())
        with pytest.raises(ValueError, match="^source: expected a path"):
            records.write([np.zeros((4, 4)), None], [0, 1], ["a", "b"], written.folder, files=1)
        assert json.loads((written.folder / records.INDEX).read_text()) == before
        assert len(pairs(written.part())) == 11

    def test_a_cut_file_is_an_error(self, written):
        file = sorted(written.folder.glob("*.tfrecord"))[1]
        file.write_bytes(file.read_bytes()[:-20])
        with pytest.raises(tf.errors.DataLossError, match="truncated record"):
            pairs(written.part())
