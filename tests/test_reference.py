"""The oracle against other implementations of its parts, and the model against the oracle."""

from typing import ClassVar

import keras
import numpy as np
import pytest
import tensorflow as tf

from bitlib import checkpoint, reference
from bitlib.checkpoint import Architecture
from bitlib.model import UNITS, BiT
from tests.conftest import SMALL, random_arrays


@pytest.mark.parametrize(("size", "stride"), [(1, 1), (1, 2), (3, 1), (3, 2), (7, 2)])
@pytest.mark.parametrize("height", [8, 9])
def test_convolve_is_tensorflow_with_symmetric_padding(size, stride, height):
    rng = np.random.default_rng(0)
    x, kernel = rng.normal(size=(2, height, 11, 4)), rng.normal(size=(size, size, 4, 5))
    by = size // 2
    expected = tf.nn.conv2d(x, reference.standardize(kernel), stride, [[0, 0], [by, by], [by, by], [0, 0]])
    np.testing.assert_allclose(reference.convolve(x, kernel, stride), expected, atol=1e-10)


def test_standardize_gives_mean_0_and_variance_1():
    kernel = reference.standardize(np.random.default_rng(0).normal(5, 3, (3, 3, 8, 4)))
    np.testing.assert_allclose(kernel.mean((0, 1, 2)), 0, atol=1e-12)
    np.testing.assert_allclose(kernel.var((0, 1, 2)), 1, atol=1e-9)


def test_epsilon_is_inside_the_root():
    kernel = np.array([-1e-5, 1e-5]).reshape(1, 1, 2, 1)
    np.testing.assert_allclose(
        reference.standardize(kernel).ravel(), np.array([-1, 1]) / np.sqrt(2), rtol=1e-6
    )


def test_group_norm_is_that_of_keras():
    rng = np.random.default_rng(0)
    x, gamma, beta = rng.normal(3, 2, (2, 5, 7, 64)), rng.normal(size=64), rng.normal(size=64)
    layer = keras.layers.GroupNormalization(32, epsilon=1e-5, dtype="float64")
    layer.build(x.shape)
    layer.set_weights([gamma, beta])
    np.testing.assert_allclose(reference.group_norm_relu(x, gamma, beta), np.maximum(layer(x), 0), atol=1e-10)


ARCHITECTURES = [
    SMALL,
    Architecture((1, 1, 1, 1), 1, 21),
    pytest.param(Architecture((2, 1, 3, 2), 1.5, 5), marks=pytest.mark.slow),
    pytest.param(Architecture(UNITS[50], 0.5, 100), marks=pytest.mark.slow),
]


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=str)
@pytest.mark.parametrize(
    ("spread", "low", "high"),
    [(0.05, -1, 1), (1e-4, -1, 1), (1e-5, -1, 1), (3, -1, 1), (0.05, -1, -0.8)],
)
def test_model_agrees_with_reference(architecture, spread, low, high):
    arrays = random_arrays(architecture, seed=1, spread=spread)
    arrays["resnet/head/conv2d/kernel"] *= np.float32(0.05 / spread)
    model = BiT(*architecture)
    checkpoint.assign(model, arrays)
    image = np.random.default_rng(2).uniform(low, high, (2, 64, 45, 3)).astype("float32")
    expected = reference.forward(arrays, image)
    assert np.abs(model(image) - expected).max() < 1e-4 * np.abs(expected).max()
    features = reference.forward(arrays, image, head=False)
    assert np.abs(model.stages(image)["features"] - features).max() < 1e-4 * np.abs(features).max()


def test_constant_kernels_do_not_divide_by_zero(images):
    arrays = random_arrays(SMALL)
    arrays["resnet/block1/unit01/b/standardized_conv2d/kernel"][:] = 0.25
    model = BiT(*SMALL)
    checkpoint.assign(model, arrays)
    expected = reference.forward(arrays, images)
    assert np.abs(model(images) - expected).max() < 1e-4 * np.abs(expected).max()


class TestDisagreement:
    def test_of_a_right_port_is_rounding(self, small_arrays):
        model = BiT(*SMALL)
        checkpoint.assign(model, small_arrays)
        assert reference.disagreement(model, small_arrays) < 1e-5

    @pytest.mark.parametrize("name", ["resnet/head/conv2d/kernel", "resnet/block3/unit01/c/group_norm/beta"])
    def test_of_a_wrong_one_is_not(self, small_arrays, name):
        model = BiT(*SMALL)
        checkpoint.assign(model, small_arrays)
        changed = small_arrays | {name: small_arrays[name] + np.float32(0.1) * (small_arrays[name] > 0)}
        assert reference.disagreement(model, changed) > 1e-3

    def test_without_the_checkpoints_head(self, small_arrays, small_npz):
        for head in (None, 3):
            model = checkpoint.load(small_npz, head=head)
            assert reference.disagreement(model, small_arrays) < 1e-5


def test_every_step_is_of_the_namespace(small_arrays, images):
    """Whatever is computed is asked of `xp`: a namespace that counts its calls sees them all."""

    class Counting:
        calls: ClassVar[list] = []

        def __getattr__(self, name):
            self.calls.append(name)
            return getattr(np, name)

    counted = reference.forward(small_arrays, images, xp=Counting())
    np.testing.assert_array_equal(counted, reference.forward(small_arrays, images))
    assert set(Counting.calls) == {"array", "asarray", "max", "maximum", "pad", "sqrt", "stack"}
