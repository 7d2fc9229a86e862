"""A model as functions that TensorFlow can save: one to train on, or one that only infers, and fast."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import Any

import keras
import tensorflow as tf
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2
from tensorflow.python.saved_model.save_context import save_context

from bitlib import ops
from bitlib.inputs import FARTHEST, SMALLEST
from bitlib.model import BiT

ops.require_tensorflow("bitlib.export")

INPUTS = tf.TensorSpec((None, None, None, 3), tf.float32, "inputs")  # of every export


@contextmanager
def without_log() -> Iterator[None]:
    """TensorFlow logs errors alone."""
    logger = tf.get_logger()
    level = logger.level
    logger.setLevel("ERROR")
    try:
        yield
    finally:
        logger.setLevel(level)


class _Reusable(tf.Module):
    """The object that `tf.saved_model.save` writes, with names that tf.Module would derive."""

    variables: Any = None
    trainable_variables: Any = None
    regularization_losses: Any = None


def function(model: BiT, input_range: tuple[float, float]) -> tuple[Callable, str]:
    """The model as one function of what callers feed, and the name of what comes out."""
    output = "features" if model.head is None else "logits"
    return lambda inputs: model(scaled(inputs, input_range)), output


def scaled(inputs: tf.Tensor, input_range: tuple[float, float]) -> tf.Tensor:
    """What callers feed, in [-1, 1]."""
    return inputs if tuple(input_range) == (-1, 1) else 2 * inputs - 1


def checked(inputs: tf.Tensor, input_range: tuple[float, float]) -> tf.Tensor:
    """Images that a network can take, or an `InvalidArgumentError`: of a shape that is not `INPUTS`', which a
    loaded signature does not compare, and of finite values beyond `FARTHEST`, in [-1, 1]."""
    # What is declared is forgotten here, else TensorFlow would leave the check out as being true.
    inputs = tf.raw_ops.PlaceholderWithDefault(input=inputs, shape=tf.TensorShape(None))
    shape = tf.shape(inputs)
    sides = tf.concat([shape, [0] * 4], 0)
    right = (tf.size(shape) == 4) & (sides[3] == 3) & (tf.reduce_min(sides[1:3]) >= SMALLEST)
    trouble = f"inputs: expected float32 [N, H, W, 3], H and W at least {SMALLEST}; received shape"
    extent = tf.stack([reduce(tf.reshape(inputs, [-1]), 0) for reduce in (tf.reduce_min, tf.reduce_max)])
    far = tf.math.is_finite(extent) & (abs(scaled(extent, input_range)) > FARTHEST)
    beyond = f"inputs: expected values in {list(input_range)}; received from and to"
    near = tf.debugging.Assert(~tf.reduce_any(far), [beyond, extent])
    with tf.control_dependencies([tf.debugging.Assert(right, [trouble, shape]), near]):
        return tf.ensure_shape(tf.identity(inputs), INPUTS.shape)


def reusable(model: BiT, input_range: tuple[float, float]) -> tuple[tf.Module, Callable]:
    """A module to load, call and train further, and its signature; both share one graph."""
    compute, output = function(model, input_range)
    signature = tf.function(
        lambda inputs: {output: compute(checked(inputs, input_range))}, input_signature=[INPUTS]
    )
    return callable_as(signature, lambda results: results[output], *_values(model.variables)), signature


def _values(variables: Sequence[keras.Variable]) -> tuple[list[tf.Variable], list[tf.Variable]]:
    """TensorFlow's variables behind those of Keras: all, and those to train."""
    return [variable.value for variable in variables], [v.value for v in variables if v.trainable]


def callable_as(
    signature: Callable, result: Callable, variables: Sequence, trainable_variables: Sequence
) -> tf.Module:
    """The reusable module of a signature of `INPUTS`, to be saved with it. A call gives `result` of what the
    signature gives; in training, too: one graph serves."""
    module = _Reusable()
    module.__call__ = tf.function(lambda inputs, training=False: result(signature(inputs)))
    # Traced as `save` would trace it; else it would trace all again, and hold both graphs.
    with save_context(tf.saved_model.SaveOptions()):
        for training in (False, True):
            module.__call__.get_concrete_function(INPUTS, training=training)
    module.variables = list(variables)
    module.trainable_variables = list(trainable_variables)
    module.regularization_losses = []
    return module


def stages(model: BiT, input_range: tuple[float, float]) -> tuple[tf.Module, Callable]:
    """As `reusable`, of the feature maps by name, without the last norm and the head."""

    def compute(inputs):
        maps = model.feature_maps(scaled(checked(inputs, input_range), input_range))
        return {name: tf.cast(value, tf.float32) for name, value in maps.items()}

    signature = tf.function(compute, input_signature=[INPUTS])
    layers: list[keras.Layer] = [model.root, *chain(*model.blocks)]
    used = [variable for layer in layers for variable in layer.variables]
    return callable_as(signature, lambda results: results, *_values(used)), signature


def frozen(model: BiT, input_range: tuple[float, float], jit_compile: bool) -> tuple[tf.Module, Callable]:
    """A module for inference, with constants for weights, and its signature."""
    compute, output = function(model, input_range)
    operations = ops.fast(written_gradients=False, compiled=True) if jit_compile else ops.PLAIN
    with ops.constant_kernels(model, operations):
        traced = tf.function(compute, input_signature=[INPUTS]).get_concrete_function()
        constant = convert_variables_to_constants_v2(traced)
    module = tf.Module()
    module.__call__ = tf.function(_in_halves(constant, input_range), input_signature=[INPUTS])
    return module, tf.function(lambda inputs: {output: module.__call__(inputs)}, input_signature=[INPUTS])


def _in_halves(compute, input_range):
    """The same function of the two halves of a batch side by side: while cores wait in one, others go on."""

    def halves(inputs):
        inputs = checked(inputs, input_range)
        count = tf.shape(inputs)[0]
        size = (count + 1) // 2

        def add(start, results):
            (result,) = compute(inputs[start : start + size])
            return start + size, tf.concat([results, result], 0)

        none = tf.zeros((0, compute.outputs[0].shape[-1]))
        any_number = (tf.TensorShape(()), tf.TensorShape((None, none.shape[-1])))
        return tf.while_loop(lambda start, _: start < count, add, (0, none), any_number, 2)[1]

    return halves
