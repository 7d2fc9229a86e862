"""The comparison of page 06, and the files of rows that scripts complete."""

from typing import NamedTuple

import keras
import numpy as np
import pytest
import tensorflow as tf

import bitlib
from bitlib import zoo
from bitlib.pages import patience, vtab
from scripts import rows


@pytest.fixture(scope="module")
def given():
    return patience.data(bitlib.checkpoint.find(zoo.BUNDLED), "digits", shots=3, seed=1)


class TestData:
    def test_labelled_pictures_are_among_the_others_and_test_pictures_are_not(self, given):
        def rows_of(images):
            return {image.tobytes() for image in images}

        learnt = rows_of(given.images)
        assert rows_of(given.labelled[0]) <= learnt
        assert not rows_of(given.test[0]) & learnt
        assert given.images.shape[1:] == (48, 48, 3)
        assert np.bincount(given.labelled[1]).tolist() == [3] * 10
        assert len(given.test[1]) == 1797 // 5

    def test_another_seed_draws_others(self, given):
        other = patience.data(bitlib.checkpoint.find(zoo.BUNDLED), "digits", shots=3, seed=2)
        assert not np.array_equal(given.test[1], other.test[1])

    def test_too_many_shots(self):
        with pytest.raises(ValueError, match="shots"):
            patience.data(bitlib.checkpoint.find(zoo.BUNDLED), "digits", shots=500)


class TestView:
    pictures = np.random.default_rng(0).normal(size=(9, 48, 48, 3)).astype("float32")

    def test_at_random_each_by_itself(self):
        seen = patience.View(32, random=True)(self.pictures).numpy()
        corners = []
        for picture, view in zip(self.pictures, seen, strict=True):
            windows = np.lib.stride_tricks.sliding_window_view(picture, (32, 32, 3))[:, :, 0]
            corners += np.argwhere((windows == view).all(axis=(2, 3, 4))).tolist()
        assert len(corners) == 9
        assert len({tuple(corner) for corner in corners}) > 5

    def test_every_corner_is_possible(self):
        where = np.stack(np.meshgrid(range(34), range(34), [0], indexing="ij"), -1)[:, :, 0]
        many = tf.repeat(tf.constant(where, tf.float32)[None], 300, axis=0)
        corners = patience.View(32, random=True)(many).numpy()[:, 0, 0, :2]
        assert {tuple(corner) for corner in corners} == {(i, j) for i in range(3) for j in range(3)}

    def test_the_centre(self):
        seen = patience.View(32, random=False)(self.pictures).numpy()
        np.testing.assert_array_equal(seen, self.pictures[:, 8:40, 8:40])


def test_a_student_is_less_than_a_tenth_of_the_bundled_teacher():
    student = patience.student(10)
    assert 10 * student.count_params() < bitlib.load(zoo.BUNDLED, head=10).count_params()
    assert student(np.zeros((2, 33, 40, 3), "float32")).shape == (2, 10)
    again = patience.student(10)
    assert all(np.array_equal(*pair) for pair in zip(student.get_weights(), again.get_weights(), strict=True))


@pytest.mark.slow
def test_every_method_trains_a_student_and_leaves_the_teacher(given):
    source = bitlib.checkpoint.find(zoo.BUNDLED)
    teacher = patience.teacher(source, given, steps=3)
    before = [np.array(weight) for weight in teacher.get_weights()]
    for method in patience.METHODS.values():
        assert 0 <= method(given, teacher, 3) <= 1
    assert all(np.array_equal(*pair) for pair in zip(before, teacher.get_weights(), strict=True))
    keras.utils.clear_session()


def test_stored_rows_are_complete():
    found = patience.by_method(patience.stored())
    assert found.keys() == patience.METHODS.keys()
    for method in found:
        assert tuple(found[method]) == patience.LENGTHS
        assert all(len(values) == 3 for values in found[method].values())


class Row(NamedTuple):
    task: str
    size: int
    accuracy: float
    date: str


class TestRows:
    def test_a_stopped_run_goes_on(self, tmp_path):
        path = tmp_path / "rows.csv"
        asked = []

        def compute(task, size):
            if len(asked) == 2:
                raise KeyboardInterrupt
            asked.append((task, size))
            return size / 7

        wanted = [("b", 2), ("a", 10), ("a", 9)]
        with pytest.raises(KeyboardInterrupt):
            rows.complete(path, Row, wanted, compute)
        asked.clear()
        rows.complete(path, Row, wanted, compute)
        assert asked == [("a", 9)]
        found = vtab.read_rows(path, Row)
        assert [row[:3] for row in found] == [("a", 9, 1.2857), ("a", 10, 1.4286), ("b", 2, 0.2857)]
        assert len({row.date for row in found}) == 1
