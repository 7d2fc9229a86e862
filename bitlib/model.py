"""The network: a pre-activation ResNet with group normalisation and weight standardisation.

BiT (arXiv 1912.11370, section 2.1) is the ResNet-v2 of arXiv 1603.05027 in which every batch
normalisation is a GroupNorm (arXiv 1803.08494) and every convolution but the head has its kernel
standardised (arXiv 1903.10520). Layers are named so that the `path` of every variable *is* the name
of its array in a published `.npz`; porting needs no table of renames.

This module knows Keras and nothing of files.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Sequence
from contextlib import contextmanager

import keras
import numpy as np
import tensorflow as tf
from keras import ops

UNITS = {14: (1, 1, 1, 1), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
"""Bottleneck units in each of the four blocks, by the depth a BiT is named after."""

NUM_GROUPS = 32
"""Groups of every GroupNorm, whatever the width."""


_while_tracing = {"written gradients": False, "compiled norms": False, "inside XLA": False}


@contextmanager
def _switched(name: str, on: bool = True):
    before, _while_tracing[name] = _while_tracing[name], on
    try:
        yield
    finally:
        _while_tracing[name] = before


def written_gradients():
    """A context in which what is traced has the gradients that are written out below, for speed.

    They are what autodiff gives, to the last digit or two. Outside, and so in all that is exported,
    autodiff is left to itself: graphs stay plain, and are written and loaded in half the time.
    """
    return _switched("written gradients")


def compiled_norms(on: bool = True):
    """A context in which what is traced has every GroupNorm compiled by XLA, which fuses its passes.

    On CPUs a GroupNorm takes half the time then. Each new shape of images costs a second or two of
    compilation when it is first seen, so this pays where shapes are few. XLA adds up one by one: over
    240×240 pixels whose mean is ten times their spread, a result is right to 3e-5, otherwise to 2e-6.
    """
    return _switched("compiled norms", on)


@functools.cache
def _compiled(function):
    @tf.function(jit_compile=True)
    def compiled(*arguments):
        with _switched("inside XLA"):
            return function(*arguments)

    return compiled


def _with_gradient(function):
    """A function that returns its result and its gradient -> one that returns its result."""
    custom = tf.custom_gradient(function)

    @functools.wraps(function)
    def call(*arguments):
        return custom(*arguments) if _while_tracing["written gradients"] else function(*arguments)[0]

    return call


def column_means(matrix):
    """Mean of each column, `[..., rows, columns]` -> `[..., 1, columns]`.

    A product with a row of ones: on CPUs two to three times as fast as TensorFlow's reduction, which reads
    along the wrong axis. XLA's does not.
    """
    if _while_tracing["inside XLA"]:
        return ops.mean(matrix, -2, keepdims=True)
    rows = matrix.shape[-2] or tf.shape(matrix)[-2]
    sums = tf.matmul(tf.ones((1, rows), matrix.dtype), matrix)
    return sums / (rows if isinstance(rows, int) else tf.cast(rows, matrix.dtype))


def standardize(kernel):
    """Give every filter of a kernel zero mean and unit variance (arXiv 1903.10520, equation 6).

    Args:
        kernel: float tensor `[height, width, channels_in, channels_out]`; mean and (biased)
            variance are taken over all axes but the last.

    Returns:
        A tensor of the same shape and dtype. The 1e-10 stands inside the root, as in the official
        code: filters of variance 1e-8 come out with a variance of 0.99, not 1.
    """
    filters = ops.reshape(kernel, (-1, kernel.shape[-1]))
    return ops.reshape(_standardize(filters), kernel.shape)


@_with_gradient
def _standardize(filters):
    centred = filters - column_means(filters)
    # What is left of the mean: its last digit counts where it is large against the spread.
    mean = column_means(centred)
    scale = ops.rsqrt(column_means(ops.square(centred)) - ops.square(mean) + 1e-10)
    standardized = (centred - mean) * scale

    def gradient(upstream):
        # What autodiff gives, in half as many passes over memory: 1e-10 aside, filters keep length and mean.
        along = standardized * column_means(upstream * standardized)
        return (upstream - column_means(upstream) - along) * scale

    return standardized, gradient


@keras.saving.register_keras_serializable(package="bitlib")
class StandardizedConv2D(keras.layers.Conv2D):
    """A convolution without bias whose kernel is standardised each time it is used.

    All sides are padded by half the kernel. With a stride, TensorFlow's "same" would pad bottom and
    right only and so shift the image; there the padding is a step of its own.
    """

    constant_kernel = None  # set by BiT.constant_kernels

    def __init__(self, filters: int, kernel_size, strides=1, **kwargs):
        kwargs |= {"use_bias": False, "padding": "same" if strides in (1, (1, 1)) else "valid"}
        super().__init__(filters, kernel_size, strides, **kwargs)

    def add_weight(self, *args, **kwargs):
        # The standardisation needs float32 under every dtype policy: float16 loses variances of 1e-8.
        return super().add_weight(*args, **kwargs, autocast=False)

    def convolution_op(self, inputs, kernel):
        kernel = standardize(kernel) if self.constant_kernel is None else self.constant_kernel
        height, width = (size // 2 for size in self.kernel_size)
        if self.padding == "valid" and (height or width):
            inputs = ops.pad(inputs, ((0, 0), (height, height), (width, width), (0, 0)))
        return super().convolution_op(inputs, ops.cast(kernel, inputs.dtype))


@keras.saving.register_keras_serializable(package="bitlib")
class GroupNorm(keras.layers.Layer):
    """GroupNorm with 32 groups and epsilon 1e-5, followed by the ReLU that always follows it here.

    Moments are taken per channel, combined into groups, and applied as one multiply-add. That is about
    twice as fast on CPUs as normalising a five-dimensional `[N, H, W, groups, C / groups]` view. The
    variance is that of centred values: a difference of raw moments loses every digit where the mean is
    large against the spread.
    """

    def build(self, input_shape):
        channels = input_shape[-1]
        self.gamma = self.add_weight(shape=(channels,), initializer="ones", name="gamma", autocast=False)
        self.beta = self.add_weight(shape=(channels,), initializer="zeros", name="beta", autocast=False)

    def call(self, x):
        """Normalise and rectify `[N, H, W, C]`; statistics are float32 under every dtype policy."""
        gamma, beta = tf.convert_to_tensor(self.gamma), tf.convert_to_tensor(self.beta)
        shape = tf.shape(x)
        pixels = ops.reshape(ops.cast(x, "float32"), (shape[0], -1, x.shape[-1]))
        return ops.reshape(ops.cast(group_norm_relu(pixels, gamma, beta), x.dtype), shape)


def mean_of_group(per_channel):
    """`[N, 1, C]` -> `[N, 1, C]`, each channel with the mean of its whole group."""
    channels = per_channel.shape[-1]
    means = ops.mean(ops.reshape(per_channel, (-1, NUM_GROUPS, channels // NUM_GROUPS)), 2, keepdims=True)
    return ops.reshape(tf.tile(means, (1, 1, channels // NUM_GROUPS)), (-1, 1, channels))


def mean_over_group(pixels):
    """`[N, pixels, C]` -> `[N, 1, C]`, each channel with the mean of its group over all pixels."""
    return mean_of_group(column_means(pixels))


def normalize_and_rectify(x, gamma, beta):
    """`relu(gamma * (x - mean) / sqrt(variance + 1e-5) + beta)`, and the mean and `1 / sqrt(…)` by group."""
    mean = mean_over_group(x)
    scale_of_group = ops.rsqrt(mean_over_group(ops.square(x - mean)) + 1e-5)
    scale = gamma * scale_of_group
    return ops.relu(x * scale + (beta - mean * scale)), mean, scale_of_group


def gradient_of_normalize_and_rectify(upstream, x, gamma, result, mean, scale_of_group):
    """What autodiff gives of `x`, `gamma` and `beta`, in half as many passes over memory."""
    count = tf.cast(tf.shape(x)[1], x.dtype)
    upstream = tf.raw_ops.ReluGrad(gradients=upstream, features=result)
    total = column_means(upstream)
    along = (column_means(upstream * x) - mean * total) * scale_of_group
    constant = mean_of_group(total * gamma) * scale_of_group
    slope = mean_of_group(along * gamma) * ops.square(scale_of_group)
    of_x = upstream * (gamma * scale_of_group) - (x * slope + (constant - mean * slope))
    return of_x, ops.sum(along, (0, 1)) * count, ops.sum(total, (0, 1)) * count


@_with_gradient
def group_norm_relu(x, gamma, beta):
    """GroupNorm (epsilon 1e-5) and ReLU of float32 `[N, pixels, C]`, with scale and shift `[C]`."""
    forward, backward = normalize_and_rectify, gradient_of_normalize_and_rectify
    if _while_tracing["compiled norms"]:
        forward, backward = _compiled(forward), _compiled(backward)
    result, *moments = forward(x, gamma, beta)
    return result, lambda upstream: backward(upstream, x, gamma, result, *moments)


@keras.saving.register_keras_serializable(package="bitlib")
class Unit(keras.layers.Layer):
    """A pre-activation bottleneck: 1×1 down, 3×3, 1×1 up to four times `filters`, plus the shortcut.

    The stride sits on the 3×3. The first unit of a block projects its shortcut, and projects it
    from the *pre-activated* input.
    """

    def __init__(
        self,
        filters: int,
        strides: int = 1,
        project: bool = False,
        kernel_initializer: str = "glorot_uniform",
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.filters, self.strides, self.project = filters, strides, project
        own = {"dtype": self.dtype_policy, "kernel_initializer": kernel_initializer}

        def convolution(filters, size, strides=1):
            return StandardizedConv2D(filters, size, strides, name="standardized_conv2d", **own)

        def norm():
            return GroupNorm(dtype=self.dtype_policy, name="group_norm")

        self.norm_a, self.conv_a = norm(), convolution(filters, 1)
        self.norm_b, self.conv_b = norm(), convolution(filters, 3, strides)
        self.norm_c, self.conv_c = norm(), convolution(4 * filters, 1)
        self.projection = convolution(4 * filters, 1, strides) if project else None

    def build(self, input_shape):
        narrow = (*input_shape[:-1], self.filters)
        with keras.name_scope("a"):
            self.norm_a.build(input_shape)
            self.conv_a.build(input_shape)
            if self.project:
                with keras.name_scope("proj"):
                    self.projection.build(input_shape)
        with keras.name_scope("b"):
            self.norm_b.build(narrow)
            self.conv_b.build(narrow)
        with keras.name_scope("c"):
            self.norm_c.build(narrow)
            self.conv_c.build(narrow)

    def call(self, x):
        residual = self.norm_a(x)
        shortcut = self.projection(residual) if self.project else x
        residual = self.conv_a(residual)
        residual = self.conv_b(self.norm_b(residual))
        residual = self.conv_c(self.norm_c(residual))
        return shortcut + residual

    def get_config(self):
        config = {"filters": self.filters, "strides": self.strides, "project": self.project}
        return super().get_config() | config


def check_range(images) -> None:
    """Catch what a model that wants [-1, 1] would take in silence.

    Args:
        images: an array or eager tensor. Symbolic ones have no values yet and pass.

    Raises:
        ValueError: not floating point, or values beyond ±16: surely [0, 255].

    Warns:
        UserWarning: all values lie in [0, 1]: likely [0, 1], though a very bright image looks the same.
    """
    if not isinstance(images, np.ndarray) and not hasattr(images, "numpy"):
        return
    values = np.asarray(images)
    if values.dtype.kind in "iub":
        raise ValueError(
            f"images: expected floats in [-1, 1], received {values.dtype}; divide by 127.5, subtract 1"
        )
    if values.size == 0:
        return
    low, high = float(values.min()), float(values.max())
    if max(-low, high) > 16:
        raise ValueError(
            f"images: expected floats in [-1, 1], received values from {low:.4g} to {high:.4g}; "
            "if they are in [0, 255], divide by 127.5 and subtract 1"
        )
    if 0 <= low < high <= 1:
        warnings.warn(
            f"images: all values lie in [0, 1] ({low:.4g} to {high:.4g}), the model expects [-1, 1]; "
            "if they were scaled to [0, 1], multiply by 2 and subtract 1",
            stacklevel=2,
        )


@keras.saving.register_keras_serializable(package="bitlib")
class BiT(keras.Model):
    """A BiT-ResNet: root, four blocks of units, GroupNorm and ReLU, global average pool, head.

    Args:
        units: bottleneck units in each of the four blocks, `UNITS[50]` for example.
        width: factor on the 64 filters of the first block; `width * 64` must be a multiple of 32.
        num_classes: outputs of the head, a 1×1 convolution that starts at zero (section 3.3);
            None for pooled features without a head.
        kernel_initializer: of the convolutions; `zeros` saves time and memory where a checkpoint follows.

    Call:
        `model(images, training=False)`: `[N, H, W, 3]` float in [-1, 1], H and W at least 32 ->
        logits `[N, num_classes]`, or features `[N, 2048 * width]` where there is no head.

    Raises:
        ValueError: `units` are not four positive numbers, `width` does not give 32 groups,
            `num_classes` is not positive; when called, as `check_range`.
    """

    def __init__(
        self,
        units: Sequence[int] = UNITS[50],
        width: float = 1,
        num_classes: int | None = 1000,
        name: str = "resnet",
        kernel_initializer: str = "glorot_uniform",
        **kwargs,
    ):
        super().__init__(name=name, **kwargs)
        if len(units) != 4 or not all(isinstance(n, int) and n > 0 for n in units):
            raise ValueError(f"units: expected four positive integers, received {units!r}")
        filters = int(64 * width)
        if filters != 64 * width or filters <= 0 or filters % NUM_GROUPS:
            raise ValueError(f"width: 64 * width must be a multiple of {NUM_GROUPS}, received {width!r}")
        if num_classes is not None and num_classes < 1:
            raise ValueError(f"num_classes: expected None or a positive integer, received {num_classes!r}")
        self.units, self.width, self.num_classes = tuple(units), width, num_classes
        self.origin, self.tuned = None, False  # the file it was loaded from, whether it was trained since

        own = {"dtype": self.dtype_policy, "kernel_initializer": kernel_initializer}
        self.root = StandardizedConv2D(filters, 7, 2, name="standardized_conv2d", **own)
        for block, count in enumerate(self.units, start=1):
            for unit in range(1, count + 1):
                layer = Unit(
                    filters * 2 ** (block - 1),
                    strides=2 if block > 1 and unit == 1 else 1,
                    project=unit == 1,
                    name=f"unit{unit:02d}",
                    **own,
                )
                # An attribute each, not a list: tf.train.Checkpoint does not look into Keras' lists.
                setattr(self, f"block{block}_unit{unit:02d}", layer)
        self.norm = GroupNorm(name="group_norm", dtype=self.dtype_policy)
        self.head = None
        if num_classes is not None:
            # Logits are float32 under every dtype policy, so that a softmax over 21843 classes is exact.
            self.head = keras.layers.Conv2D(
                num_classes, 1, kernel_initializer="zeros", dtype="float32", name="conv2d"
            )
        self.build((None, None, None, 3))

    @property
    def blocks(self) -> list[list[Unit]]:
        """The units of each of the four blocks."""
        return [
            [getattr(self, f"block{block}_unit{unit:02d}") for unit in range(1, count + 1)]
            for block, count in enumerate(self.units, start=1)
        ]

    @property
    def num_features(self) -> int:
        """Channels of the pooled features: 2048 times the width."""
        return int(2048 * self.width)

    def build(self, input_shape):
        if self.built:
            return
        with keras.name_scope("root_block"):
            self.root.build((None, None, None, 3))
        channels = self.root.filters
        for index, block in enumerate(self.blocks, start=1):
            with keras.name_scope(f"block{index}"):
                for unit in block:
                    unit.build((None, None, None, channels))
                    channels = 4 * unit.filters
        self.norm.build((None, None, None, channels))
        if self.head is not None:
            with keras.name_scope("head"):
                self.head.build((None, None, None, channels))
        self.built = True

    def stages(self, images) -> dict:
        """Every intermediate result, by name.

        Returns:
            A dictionary of tensors: `root` `[N, H/4, W/4, 64w]`, `block1` … `block4`
            `[N, H/4, W/4, 256w]` … `[N, H/32, W/32, 2048w]`, `features` `[N, 2048w]`, and `logits`
            `[N, num_classes]` where the model has a head.
        """
        check_range(images)
        return self._forward(images)

    def __call__(self, images, *args, **kwargs):
        check_range(images)  # here, because Keras wraps errors raised in `call` in a page of its own
        return super().__call__(images, *args, **kwargs)

    def apply_root(self, images):
        """The 7×7 convolution and the 3×3 pool: `[N, H, W, 3]` -> `[N, H/4, W/4, 64w]`."""
        x = self.root(images)
        # The pool pads with zeros, not with minus infinity: where all inputs are negative the border is 0.
        return ops.max_pool(ops.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0))), 3, 2)

    def pool(self, x):
        """GroupNorm, ReLU and the average over height and width: -> float32 `[N, 1, 1, 2048w]`."""
        return ops.mean(ops.cast(self.norm(x), "float32"), axis=(1, 2), keepdims=True)

    def _forward(self, images) -> dict:
        x = self.apply_root(images)
        stages = {"root": x}
        for index, block in enumerate(self.blocks, start=1):
            for unit in block:
                x = unit(x)
            stages[f"block{index}"] = x
        pooled = self.pool(x)
        stages["features"] = ops.squeeze(pooled, axis=(1, 2))
        if self.head is not None:
            stages["logits"] = ops.squeeze(self.head(pooled), axis=(1, 2))
        return stages

    def call(self, images, training=False):
        stages = self._forward(images)
        return stages.get("logits", stages["features"])

    @contextmanager
    def constant_kernels(self):
        """While open, standardised kernels are constants: what is traced standardises no kernel again."""
        convolutions = [layer for layer in self._flatten_layers() if isinstance(layer, StandardizedConv2D)]
        try:
            for layer in convolutions:
                layer.constant_kernel = ops.convert_to_numpy(standardize(layer.kernel))
            yield
        finally:
            for layer in convolutions:
                layer.constant_kernel = None

    def get_config(self):
        config = {"units": self.units, "width": self.width, "num_classes": self.num_classes}
        return super().get_config() | config
