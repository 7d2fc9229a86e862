import keras
import numpy as np
import pytest
import tensorflow as tf

from bitlib import checkpoint, ops
from bitlib.checkpoint import Architecture
from bitlib.inputs import check_range
from bitlib.model import (
    UNITS,
    BiT,
    GroupNorm,
    standardize,
)
from tests.conftest import SMALL

PUBLISHED_PARAMETERS = {  # with 1000 and with 21843 classes
    (50, 1): (25549352, 68256659),
    (101, 1): (44541480, 87248787),
    (50, 3): (217319080, 345399315),
    (101, 3): (387934888, 516015123),
    (152, 2): (236335208, 321728979),
    (152, 4): (936533224, 1107299923),
}


@pytest.fixture
def small(small_arrays):
    model = BiT(*SMALL)
    checkpoint.assign(model, small_arrays)
    return model


@pytest.mark.parametrize(("depth", "width"), PUBLISHED_PARAMETERS)
def test_layout_has_the_published_number_of_parameters(depth, width):
    for classes, expected in zip((1000, 21843), PUBLISHED_PARAMETERS[depth, width], strict=True):
        shapes = checkpoint.layout(Architecture(UNITS[depth], width, classes))
        assert sum(int(np.prod(shape)) for shape in shapes.values()) == expected


@pytest.mark.slow
@pytest.mark.parametrize(("depth", "width"), [(14, 0.5), (14, 4), (50, 1), (50, 2), (101, 1)])
@pytest.mark.parametrize("classes", [7, None])
def test_paths_and_shapes_are_those_of_the_arrays(depth, width, classes):
    model = BiT(UNITS[depth], width, classes)
    expected = checkpoint.layout(Architecture(UNITS[depth], width, classes))
    assert {name: tuple(v.shape) for name, v in model.arrays.items()} == expected
    assert len(model.trainable_variables) == len(expected)


def test_arrays_have_their_names_whatever_scope_a_model_is_made_in():
    with keras.name_scope("of_somebody"):
        model = BiT(*SMALL)
    assert model.arrays.keys() == BiT(*SMALL).arrays.keys() == checkpoint.layout(SMALL).keys()


def test_stages(small, images):
    shapes = {name: tuple(value.shape) for name, value in small.stages(images).items()}
    assert shapes == {
        "root": (2, 10, 14, 32),
        "block1": (2, 10, 14, 128),
        "block2": (2, 5, 7, 256),
        "block3": (2, 3, 4, 512),
        "block4": (2, 2, 2, 1024),
        "features": (2, 1024),
        "logits": (2, 11),
    }
    assert small.num_features == 1024
    np.testing.assert_array_equal(small(images), small.stages(images)["logits"])


def test_training_changes_nothing_but_gradients(small, images):
    np.testing.assert_array_equal(small(images, training=True), small(images, training=False))
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(tf.square(small(images, training=True)))
    gradients = tape.gradient(loss, small.trainable_variables)
    assert all(gradient is not None and np.abs(gradient).max() > 0 for gradient in gradients)


@pytest.mark.parametrize("size", [(32, 32), (33, 47), (96, 32), (127, 65)])
def test_any_size_from_32_pixels(small, size):
    image = np.random.default_rng(0).uniform(-1, 1, (1, *size, 3)).astype("float32")
    assert np.isfinite(small(image)).all()


@pytest.mark.parametrize(("policy", "tolerance"), [("mixed_bfloat16", 0.1), ("mixed_float16", 0.02)])
def test_mixed_precision_is_finite_and_close(small_arrays, small, images, policy, tolerance):
    model = BiT(*SMALL, dtype=policy)
    arrays = {n: a * np.float32(1e-3) if "conv2d/kernel" in n else a for n, a in small_arrays.items()}
    arrays |= {name: small_arrays[name] for name in checkpoint.HEAD}
    checkpoint.assign(model, arrays)  # kernels of variance 1e-9, which float16 cannot even square
    checkpoint.assign(small, arrays)
    assert model.stages(images)["block1"].dtype == policy.removeprefix("mixed_")
    logits, expected = model(images), small(images).numpy()
    assert logits.dtype == "float32"
    assert np.isfinite(logits).all()
    assert np.abs(logits - expected).max() < tolerance * np.abs(expected).max()
    assert all(v.dtype == "float32" for v in model.variables)


def test_keras_file_round_trip(tmp_path, small, images):
    small.save(tmp_path / "bit.keras")
    again = keras.saving.load_model(tmp_path / "bit.keras")
    np.testing.assert_array_equal(again(images), small(images))
    assert [v.path for v in again.variables] == [v.path for v in small.variables]


def test_tensorflow_checkpoint_round_trip(tmp_path, small, images):
    path = tf.train.Checkpoint(model=small).save(tmp_path / "checkpoint")
    again = BiT(*SMALL)
    tf.train.Checkpoint(model=again).restore(path).assert_existing_objects_matched()
    np.testing.assert_array_equal(again(images), small(images))


def test_two_models_fit_into_one(small_arrays, images):
    inputs = keras.Input((None, None, 3))
    teacher, student = BiT(*SMALL, name="teacher"), BiT(*SMALL, name="student")
    checkpoint.assign(teacher, small_arrays)
    both = keras.Model(inputs, [teacher(inputs), student(inputs)])
    logits, zeros = both(images)
    np.testing.assert_allclose(logits, teacher(images), atol=1e-5)
    assert not np.any(zeros), "a new head starts at zero"


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"units": (1, 1, 1)}, "units"),
        ({"units": (1, 0, 1, 1)}, "units"),
        ({"width": 0.25}, "width"),
        ({"width": 0}, "width"),
        ({"num_classes": 0}, "num_classes"),
    ],
)
def test_nonsense_is_refused_by_name(arguments, named):
    with pytest.raises(ValueError, match=rf"^{named}: .*received"):
        BiT(**{"units": (1, 1, 1, 1), **arguments})


def test_standardize_in_float64_terms():
    kernel = np.random.default_rng(0).normal(0.3, 1e-4, (3, 3, 64, 5)).astype("float32")
    exact = kernel.astype("float64")
    exact = (exact - exact.mean((0, 1, 2))) / np.sqrt(exact.var((0, 1, 2)) + 1e-10)
    np.testing.assert_allclose(standardize(kernel), exact, atol=1e-5)


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("mean", [0, 10, 1000])
def test_group_norm_keeps_its_digits_where_the_mean_is_large(mean, compiled):
    x = np.random.default_rng(0).normal(mean, 1, (2, 9, 7, 64)).astype("float32")
    layer = GroupNorm()
    layer.build(x.shape)
    grouped = x.astype("float64").reshape(2, 9, 7, 32, 2)
    exact = (grouped - grouped.mean((1, 2, 4), keepdims=True)) / np.sqrt(
        grouped.var((1, 2, 4), keepdims=True) + 1e-5
    )
    layer.arithmetic = ops.fast(compiled=compiled)
    result = layer(x)
    np.testing.assert_allclose(result, np.maximum(exact.reshape(x.shape), 0), atol=3e-7 * max(mean, 10))


class TestWrittenGradients:
    """The gradients written out by hand are those that autodiff gives in float64."""

    def compare(self, ours, exact, *arguments):
        rng = np.random.default_rng(1)
        arguments = [tf.constant(argument, tf.float32) for argument in arguments]
        weights = rng.normal(size=arguments[0].shape)
        found = []
        for function, dtype in ((ours, tf.float32), (exact, tf.float64)):
            cast = [tf.cast(argument, dtype) for argument in arguments]
            with tf.GradientTape() as tape:
                tape.watch(cast)
                result = tf.reduce_sum(function(*cast) * tf.cast(weights, dtype))
            found.append(tape.gradient(result, cast))
        for one, other in zip(*found, strict=True):
            np.testing.assert_allclose(one, other, atol=2e-6 * np.abs(other).max())

    @pytest.mark.parametrize("mean", [0, 30])
    def test_of_standardisation(self, mean):
        def exact(kernel):
            mean, variance = tf.nn.moments(kernel, (0, 1, 2), keepdims=True)
            return (kernel - mean) / tf.sqrt(variance + 1e-10)

        self.compare(ops.fast().standardize, exact, np.random.default_rng(0).normal(mean, 1, (3, 3, 8, 16)))

    @pytest.mark.parametrize("spread", [1e-4, 1])
    def test_standardised_fast_or_as_it_stands(self, spread):
        kernel = np.random.default_rng(0).normal(0, spread, (1, 1, 64, 32)).astype("float32")
        np.testing.assert_allclose(ops.fast().standardize(kernel), standardize(kernel), atol=3e-6)

    def test_on_gpus_no_batch_normalisation(self, monkeypatch):
        monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: [kind])
        assert ops.fast.__wrapped__().standardize is standardize

    @pytest.mark.parametrize("compiled", [False, True])
    def test_of_group_norm_and_relu(self, compiled):
        def exact(x, gamma, beta):
            grouped = tf.reshape(x, (2, 30, 32, 2))
            mean, variance = tf.nn.moments(grouped, (1, 3), keepdims=True)
            return tf.nn.relu(tf.reshape((grouped - mean) / tf.sqrt(variance + 1e-5), x.shape) * gamma + beta)

        rng = np.random.default_rng(0)
        gamma, beta = rng.normal(size=64), rng.normal(size=64)
        ours = ops.fast(compiled=compiled).group_norm_relu
        self.compare(ours, exact, rng.normal(1, 2, (2, 30, 64)), gamma, beta)

    def test_of_a_whole_network(self, small, images):
        """By differences: the loss falls as the gradient says when one walks against it."""
        small.head.convolution.kernel.assign(
            np.random.default_rng(0).normal(size=small.head.convolution.kernel.shape)
        )
        loss = lambda: float(tf.reduce_sum(tf.square(small(images))))  # noqa: E731
        values = [variable.value for variable in small.trainable_variables]
        with ops.computed_by(small, ops.fast()), tf.GradientTape() as tape:
            tape.watch(values)
            target = tf.reduce_sum(tf.square(small(images)))
        gradients = tape.gradient(target, values)
        length = sum(float(tf.reduce_sum(tf.square(gradient))) for gradient in gradients)
        step = 1e-3 * float(target) / length
        for sign in (1, -2):
            for value, gradient in zip(values, gradients, strict=True):
                value.assign_sub(sign * step * gradient)
            if sign == 1:
                below = loss()
        above = loss()
        np.testing.assert_allclose(above - below, 2 * step * length, rtol=0.05)


class TestRange:
    def test_right_range_passes_in_silence(self, recwarn, small, images):
        small(images)
        small(np.random.default_rng(0).uniform(-1.4, 1.4, (1, 32, 32, 3)).astype("float32"))
        assert not recwarn.list

    @pytest.mark.parametrize("factor", [255, 127.5, -200])
    def test_0_to_255_is_an_error(self, small, images, factor):
        with pytest.raises(ValueError, match=r"^images: expected floats in \[-1, 1\], received values from"):
            small(factor * (images + 1) / 2)

    def test_integers_are_an_error(self, small, images):
        with pytest.raises(ValueError, match="received uint8"):
            small(np.uint8(127.5 * (images + 1)))
        with pytest.raises(ValueError, match="received uint8"):
            check_range(np.zeros((1, 32, 32, 3), np.uint8))

    def test_0_to_1_is_a_warning(self, small, images):
        with pytest.warns(UserWarning, match=r"all values lie in \[0, 1\]"):
            small((images + 1) / 2)

    def test_what_has_no_values_passes(self):
        check_range(np.zeros((0, 32, 32, 3), "float32"))
        check_range(keras.Input((32, 32, 3)))
