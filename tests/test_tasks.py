"""The small VTAB: tasks of the right form, the same on every machine; what is computed and stored of them."""

import csv

import numpy as np
import pytest
from PIL import Image

import bitlib
from bitlib import datasets, images, zoo
from bitlib.datasets import tasks
from bitlib.pages import vtab


@pytest.mark.slow
@pytest.mark.parametrize("name", list(tasks.TASKS))
def test_every_task_is_a_labelled_set(name):
    pictures, labels, names = datasets.labelled(name)
    assert len(pictures) == len(labels) >= 200
    assert set(labels) == set(range(len(names)))
    assert labels.dtype == np.int64
    assert all(picture.dtype == np.uint8 and min(picture.shape[:2]) >= 25 for picture in pictures)
    assert len({picture.tobytes() for picture in pictures}) > 0.99 * len(pictures)
    again = datasets.labelled(name)[0]
    assert all(map(np.array_equal, pictures[:50], again[:50]))
    group, question = tasks.about(name)
    assert group in ("Natural", "Specialised", "Structured")
    assert len(question.split()) >= 4


def test_mnist_is_mnist():
    pictures, labels, _ = tasks.mnist()
    assert pictures.shape == (5000, 28, 28)
    assert np.bincount(labels).tolist() == [500] * 10
    assert not pictures[:, 0].any()  # its scans have an empty border
    assert 0.1 < (pictures > 127).mean() < 0.2


def test_as_many_digits_as_the_label_says():
    from scipy import ndimage

    pictures, labels, names = tasks.counting()
    assert names == ["1", "2", "3", "4"]
    parts = np.array([ndimage.label(picture > 60, np.ones((3, 3)))[1] for picture in pictures[:400]])
    ink = np.array([(pictures[labels == label] > 60).mean() for label in range(4)])
    np.testing.assert_allclose(ink / ink[0], [1, 2, 3, 4], rtol=0.1)
    assert np.mean(parts[labels[:400] == 0] == 1) > 0.8
    assert np.corrcoef(parts, labels[:400])[0, 1] > 0.5


def test_turned_by_what_the_label_says():
    pictures, labels, names = tasks.angles()
    assert names[2] == "90°"
    upright = np.mean(pictures[labels == 0], axis=0)
    turned = np.mean(pictures[labels == 2], axis=0)
    back = np.asarray(Image.fromarray(turned.astype(np.uint8)).rotate(-90), float)
    assert np.corrcoef(back.ravel(), upright.ravel())[0, 1] > 0.95
    assert np.corrcoef(turned.ravel(), upright.ravel())[0, 1] < 0.9


def test_a_package_that_is_not_there(monkeypatch):
    monkeypatch.setattr(tasks.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"^scikit-image: .*pip install 'bitlib\[tasks\]'"):
        tasks.textures()


class TestProtocol:
    def test_a_task_is_drawn_as_vtab_1k_is(self):
        task = vtab.task("mnist", seed=1)
        assert np.bincount(task.train[1]).tolist() == [100] * 10
        assert len(task.test[0]) == 2000
        seen = {picture.tobytes() for picture in task.train[0]}
        assert not any(picture.tobytes() in seen for picture in task.test[0])

    def test_a_class_of_one_picture_gives_it_to_learn_from(self, tmp_path):
        for name, count in (("ash", 1), ("birch", 3)):
            (tmp_path / name).mkdir()
            for index in range(count):
                Image.new("L", (40, 40), index).save(tmp_path / name / f"{index}.png")
        task = vtab.task(str(tmp_path))
        assert task.train[1].tolist() == [0, 1]
        assert task.test[1].tolist() == [1, 1]

    def test_the_plan_spares_what_destroys_labels(self):
        assert not vtab.plan(vtab.task("counting")).random_crop
        assert not vtab.plan(vtab.task("mnist")).random_flip
        plan = vtab.plan(vtab.task("faces"), steps=7)
        assert plan.random_flip
        assert plan.random_crop
        assert plan.steps == 7

    def test_intervals(self):
        mean, half = vtab.interval([0.90, 0.92, 0.94])
        assert mean == pytest.approx(0.92)
        assert half == pytest.approx(4.303 * 0.02 / np.sqrt(3), rel=1e-3)  # t of two degrees of freedom
        assert vtab.interval([0.5]) == (0.5, float("inf"))
        assert vtab.difference([0.9, 0.8], [0.8, 0.7]) == pytest.approx((0.1, 0.0))

    def test_stored_rows(self):
        rows = vtab.stored()
        assert {row.task for row in rows} == set(tasks.TASKS)
        keys = [row[:3] for row in rows]
        assert len(set(keys)) == len(keys)
        for name in tasks.TASKS:
            for method in vtab.METHODS:
                assert sum(row[:2] == (name, method) for row in rows) >= 3, (name, method)
        assert all(0 < row.accuracy <= 1 for row in rows)

    @pytest.mark.slow
    @pytest.mark.parametrize("name", ["mnist", "counting"])
    def test_a_probe_gives_what_is_stored(self, name):
        accuracy = vtab.compute(bitlib.checkpoint.find(zoo.BUNDLED), name, "linear probe", 2)
        (row,) = [row for row in vtab.stored() if row[:3] == (name, "linear probe", 2)]
        assert accuracy == pytest.approx(row.accuracy, abs=0.005)

    @pytest.mark.slow
    def test_every_method_trains(self, monkeypatch):
        monkeypatch.setitem(bitlib.finetune.SMALL_MODEL, "steps", 2)
        source = bitlib.checkpoint.find(zoo.BUNDLED)
        for method in ("from scratch", *vtab.MISTAKES):
            assert 0 <= vtab.compute(source, "faces", method, 0) <= 1

    def test_files(self, tmp_path):
        with (tmp_path / "rows.csv").open("w", newline="") as file:
            csv.writer(file).writerows([vtab.Result._fields, ("mnist", "fine-tuned", 0, 0.5, "2026-11-22")])
        assert vtab.stored(tmp_path / "rows.csv") == [
            vtab.Result("mnist", "fine-tuned", 0, 0.5, "2026-11-22")
        ]


@pytest.mark.slow
def test_pictures_are_what_images_read():
    for name in tasks.TASKS:
        assert images.read(datasets.labelled(name)[0][0]).shape[-1] == 3
