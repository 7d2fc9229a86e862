"""The two operations that decide the speed of a BiT: standardising a kernel, and GroupNorm with its ReLU.

`standardize` and `group_norm_relu` say what is computed; `StandardizedConv2D` and `GroupNorm` are their
layers. `Operations` says how: as they stand, with gradients that are written out, compiled by XLA, or of
constant kernels. Results differ in the last digits only. Each layer has its own, `PLAIN` unless
`computed_by` or `constant_kernels` is given others.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import keras
from keras import KerasTensor as Tensor  # stands for a tensor of any backend
from keras import ops

from bitlib.files.layout import GROUPS

BACKEND = keras.backend.backend()

if BACKEND == "tensorflow":
    import tensorflow as tf
elif BACKEND == "jax":
    import jax


def require_tensorflow(what: str) -> None:
    """Raise ImportError unless Keras computes by TensorFlow, as `what` needs it."""
    if BACKEND != "tensorflow":
        raise ImportError(
            f"{what}: only TensorFlow can do this, and Keras runs on {BACKEND}; "
            "KERAS_BACKEND=tensorflow, set before Python starts, chooses it"
        )


def shape_of(x: Tensor) -> Any:
    """The shape of a tensor, also where it is not known before: in TensorFlow's graphs one operation."""
    return tf.shape(x) if BACKEND == "tensorflow" else ops.shape(x)


def column_means(matrix: Tensor) -> Tensor:
    """Mean of each column, `[..., rows, columns]` -> `[..., 1, columns]`.

    A product with a row of ones: on CPUs two to three times as fast as TensorFlow's reduction.
    """
    rows = matrix.shape[-2] or shape_of(matrix)[-2]
    sums = ops.matmul(ops.ones((1, rows), matrix.dtype), matrix)
    return sums / (rows if isinstance(rows, int) else ops.cast(rows, matrix.dtype))


def standardize(kernel: Tensor) -> Tensor:
    """Give every filter of a kernel zero mean and unit variance (arXiv 1903.10520, equation 6).

    Args:
        kernel: float tensor `[height, width, channels_in, channels_out]`; mean and (biased)
            variance are taken over all axes but the last.

    Returns:
        A tensor of the same shape and dtype. The 1e-10 stands inside the root, as in the official
        code: filters of variance 1e-8 come out with a variance of 0.99, not 1.
    """
    filters = ops.reshape(kernel, (-1, kernel.shape[-1]))
    centred = filters - column_means(filters)
    # What is left of the mean: its last digit counts where it is large against the spread.
    mean = column_means(centred)
    variance = column_means(ops.square(centred)) - ops.square(mean)
    return ops.reshape((centred - mean) * ops.rsqrt(variance + 1e-10), kernel.shape)


def group_norm_relu(
    x: Tensor,
    gamma: Tensor,
    beta: Tensor,
    means: Callable = column_means,
) -> Tensor:
    """GroupNorm of 32 groups, epsilon 1e-5 (arXiv 1803.08494, equation 7), and the ReLU after it.

    Args:
        x: float32 `[N, pixels, C]`.
        gamma, beta: scale and shift of each channel, `[C]`.
        means: what averages over pixels.

    Returns:
        float32 `[N, pixels, C]`: `relu(gamma * (x - mean) / sqrt(variance + 1e-5) + beta)`.
    """
    mean, scale = moments(x, means)
    return rectified(x, gamma, beta, mean, scale)


def moments(x: Tensor, means: Callable = column_means) -> tuple[Tensor, Tensor]:
    """Mean and `1 / sqrt(variance + 1e-5)` of each channel's group, each `[N, 1, C]`.

    The variance is that of centred values: a difference of raw moments loses every digit where
    the mean is large against the spread.
    """
    mean = mean_of_group(means(x))
    variance = mean_of_group(means(ops.square(x - mean)))
    return mean, ops.rsqrt(variance + 1e-5)


def mean_of_group(per_channel: Tensor) -> Tensor:
    """`[N, 1, C]` -> `[N, 1, C]`: every channel gets the mean over its whole group."""
    channels = per_channel.shape[-1]
    means = ops.mean(ops.reshape(per_channel, (-1, GROUPS, channels // GROUPS)), 2, keepdims=True)
    return ops.reshape(ops.tile(means, (1, 1, channels // GROUPS)), (-1, 1, channels))


def rectified(x: Tensor, gamma: Tensor, beta: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
    """Normalise, scale, shift, rectify: one multiply-add, on CPUs twice as fast as in steps."""
    slope = gamma * scale
    return ops.relu(x * slope + (beta - mean * slope))


@dataclass(frozen=True)
class Operations:
    """How a network computes its two operations; each takes and returns what its namesake does."""

    standardize: Callable
    group_norm_relu: Callable


PLAIN = Operations(standardize, group_norm_relu)
"""As they stand above, with autodiff's gradients. What is exported is this: its graphs are small."""

if BACKEND == "jax":  # which, outside a compiled function, compiles every step of them by itself
    PLAIN = Operations(jax.jit(standardize), jax.jit(group_norm_relu))


def _reduced(matrix):
    """As `column_means`, by one reduction: XLA fuses it with what stands around it, LiteRT quantises it."""
    return ops.mean(matrix, -2, keepdims=True)


REDUCED = Operations(standardize, functools.partial(group_norm_relu, means=_reduced))
"""As `PLAIN`, with a reduction for each mean."""


@functools.cache
def fast(written_gradients: bool = True, compiled: bool = False) -> Operations:
    """The same results sooner, for TensorFlow's graphs that stay in this process; elsewhere `PLAIN`.

    Args:
        written_gradients: GroupNorm's gradient written out below, in half as many passes over memory as
            autodiff's; a standardisation that has a gradient of its own.
        compiled: XLA compiles every GroupNorm. On CPUs that halves its time; each new shape of images costs
            a second or two when it is first seen. XLA adds up one by one: over 240×240 pixels whose mean is
            ten times their spread, a result is right to 3e-5, otherwise to 2e-6.
    """
    if BACKEND != "tensorflow":
        return PLAIN
    normalize, gradient = _normalized, _gradient_of_normalized
    if compiled:
        normalize, gradient = (_compiled(functools.partial(f, means=_reduced)) for f in (normalize, gradient))

    def group_norm_relu(x, gamma, beta):
        result, mean, scale = normalize(x, gamma, beta)
        return result, lambda upstream: gradient(upstream, x, gamma, result, mean, scale)

    if written_gradients:
        # Batch normalisation on GPUs is cuDNN's, which TensorFlow does not ask for so small an epsilon.
        on_gpus = tf.config.list_physical_devices("GPU")
        return Operations(standardize if on_gpus else _standardize, tf.custom_gradient(group_norm_relu))
    return Operations(standardize, lambda *arguments: group_norm_relu(*arguments)[0])


@keras.saving.register_keras_serializable(package="bitlib")
class StandardizedConv2D(keras.layers.Conv2D):
    """A convolution without bias whose kernel is standardised each time it is used.

    All sides are padded by half the kernel. With a stride, Keras' "same" would pad bottom and
    right only and so shift the image; there the padding is a step of its own.
    """

    arithmetic = PLAIN

    def __init__(self, filters: int, kernel_size: int | tuple, strides: int | tuple = 1, **kwargs: Any):
        kwargs |= {"use_bias": False, "padding": "same" if strides in (1, (1, 1)) else "valid"}
        own = {"name": "standardized_conv2d"} | kwargs | {"data_format": "channels_last"}
        super().__init__(filters, kernel_size, strides, **own)

    def add_weight(self, *args: Any, **kwargs: Any) -> keras.Variable:
        # The standardisation needs float32 under every dtype policy: float16 loses variances of 1e-8.
        return super().add_weight(*args, **kwargs, autocast=False)

    def convolution_op(self, inputs: Tensor, kernel: Tensor) -> Tensor:
        kernel = self.arithmetic.standardize(ops.cast(kernel, "float32"))
        height, width = (size // 2 for size in self.kernel_size)
        if self.padding == "valid" and (height or width):
            inputs = ops.pad(inputs, ((0, 0), (height, height), (width, width), (0, 0)))
        return super().convolution_op(inputs, ops.cast(kernel, inputs.dtype))

    def compute_output_shape(self, input_shape: tuple) -> tuple:
        return strided(input_shape, self.strides[0], self.filters)


@keras.saving.register_keras_serializable(package="bitlib")
class GroupNorm(keras.layers.Layer):
    """GroupNorm with 32 groups and epsilon 1e-5, followed by the ReLU that always follows it here."""

    arithmetic = PLAIN

    def build(self, input_shape: tuple) -> None:
        channels = input_shape[-1]
        self.gamma = self.add_weight(shape=(channels,), initializer="ones", name="gamma", autocast=False)
        self.beta = self.add_weight(shape=(channels,), initializer="zeros", name="beta", autocast=False)

    def call(self, x: Tensor) -> Tensor:
        """Normalise and rectify `[N, H, W, C]`; statistics are float32 under every dtype policy."""
        gamma, beta = ops.cast(self.gamma, "float32"), ops.cast(self.beta, "float32")
        shape = shape_of(x)
        pixels = ops.reshape(ops.cast(x, "float32"), (shape[0], -1, x.shape[-1]))
        return ops.reshape(ops.cast(self.arithmetic.group_norm_relu(pixels, gamma, beta), x.dtype), shape)

    def compute_output_shape(self, input_shape: tuple) -> tuple:
        return tuple(input_shape)


def strided(shape: tuple, stride: int, channels: int) -> tuple:
    """The shape `[N, H, W, C]` after a stride; sides are rounded up, or are not known."""
    return (shape[0], *(side and -(-side // stride) for side in shape[1:3]), channels)


def policy_of(dtype: Any) -> str:
    """The name of a model's dtype policy. Float16 and float64 are refused: no published weight has them."""
    try:
        policy = keras.dtype_policies.get(dtype or keras.config.dtype_policy())
        if policy.variable_dtype in ("float32", "bfloat16"):
            return policy.name
    except ValueError:
        pass  # of a policy that Keras does not know, as of one that we do not
    if dtype is None:  # Keras' settings, left from other work
        return "float32"
    raise ValueError(
        f"dtype: expected 'float32', 'bfloat16', 'mixed_bfloat16' or 'mixed_float16', received {dtype!r}"
    )


@contextmanager
def computed_by(model: keras.Model, operations: Operations) -> Iterator[None]:
    """A context in which whatever calls or traces a `bitlib.model.BiT` computes by these operations."""
    layers = [layer for layer in model._flatten_layers() if hasattr(layer, "arithmetic")]
    before = [layer.arithmetic for layer in layers]
    try:
        for layer in layers:
            layer.arithmetic = operations
        yield
    finally:
        for layer, previous in zip(layers, before, strict=True):
            layer.arithmetic = previous


@contextmanager
def constant_kernels(
    model: keras.Model, operations: Operations = PLAIN, hold: Callable = ops.convert_to_numpy
) -> Iterator[None]:
    """As `computed_by`, with kernels that are standardised once, now, and constant in what is traced.

    `hold` makes of each standardised kernel what is traced: an array, or a variable that somebody keeps.
    """

    def constant(kernel):
        return lambda _: ops.convert_to_tensor(kernel)

    with computed_by(model, operations):
        for layer in model._flatten_layers():
            if hasattr(layer, "arithmetic") and hasattr(layer, "kernel"):
                kernel = hold(standardize(layer.kernel))
                layer.arithmetic = replace(operations, standardize=constant(kernel))
        yield


def _compiled(function):
    return tf.function(function, jit_compile=True)


def _standardize(kernel):
    """As `standardize`, of float32: a batch normalisation over the weights of each filter.

    TensorFlow computes it, and its gradient, in a third of the passes over memory. It is right to 2e-6 where
    a filter's mean is no larger than its spread, as in trained kernels, and loses digits with the ratio:
    right to 1e-4 where the mean is a hundred times the spread.
    """
    channels = kernel.shape[-1]
    ones, zeros = tf.ones(channels), tf.zeros(channels)
    filters = ops.reshape(kernel, (1, -1, 1, channels))
    normalized = tf.raw_ops.FusedBatchNormV3(
        x=filters, scale=ones, offset=zeros, mean=[], variance=[], epsilon=1e-10
    )
    return ops.reshape(normalized.y, kernel.shape)


def _normalized(x, gamma, beta, means=column_means):
    """As `group_norm_relu`, and what its gradient needs again."""
    mean, scale = moments(x, means)
    return rectified(x, gamma, beta, mean, scale), mean, scale


def _gradient_of_normalized(upstream, x, gamma, result, mean, scale, means=column_means):
    """The gradients of `x`, `gamma` and `beta`, from that of the result."""
    count = tf.cast(tf.shape(x)[1], x.dtype)
    upstream = tf.raw_ops.ReluGrad(gradients=upstream, features=result)
    total = means(upstream)
    along = (means(upstream * x) - mean * total) * scale
    constant = mean_of_group(total * gamma) * scale
    slope = mean_of_group(along * gamma) * ops.square(scale)
    of_x = upstream * (gamma * scale) - (x * slope + (constant - mean * slope))
    return of_x, ops.sum(along, (0, 1)) * count, ops.sum(total, (0, 1)) * count
