"""The network: a pre-activation ResNet with group normalisation and weight standardisation.

BiT (arXiv 1912.11370, section 2.1) is the ResNet-v2 of arXiv 1603.05027 in which every batch
normalisation is a GroupNorm (arXiv 1803.08494) and every convolution but the head has its kernel
standardised (arXiv 1903.10520). Layers are named so that the `path` of every variable *is* the name
of its array in a published `.npz`; porting needs no table of renames.

This module knows Keras and nothing of files. How the two operations are computed fast is in `bitlib.ops`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import keras
import tensorflow as tf
from keras import ops
from tensorflow import Tensor

from bitlib.inputs import check_range
from bitlib.layout import UNITS
from bitlib.ops import NUM_GROUPS, PLAIN
from bitlib.ops import group_norm_relu as group_norm_relu
from bitlib.ops import standardize as standardize

if TYPE_CHECKING:
    from bitlib.zoo import Card


@keras.saving.register_keras_serializable(package="bitlib")
class StandardizedConv2D(keras.layers.Conv2D):
    """A convolution without bias whose kernel is standardised each time it is used.

    All sides are padded by half the kernel. With a stride, TensorFlow's "same" would pad bottom and
    right only and so shift the image; there the padding is a step of its own.
    """

    operations = PLAIN

    def __init__(self, filters: int, kernel_size: int | tuple, strides: int | tuple = 1, **kwargs: Any):
        kwargs |= {"use_bias": False, "padding": "same" if strides in (1, (1, 1)) else "valid"}
        super().__init__(filters, kernel_size, strides, **kwargs)

    def add_weight(self, *args: Any, **kwargs: Any) -> keras.Variable:
        # The standardisation needs float32 under every dtype policy: float16 loses variances of 1e-8.
        return super().add_weight(*args, **kwargs, autocast=False)

    def convolution_op(self, inputs: Tensor, kernel: Tensor) -> Tensor:
        kernel = self.operations.standardize(tf.convert_to_tensor(kernel))
        height, width = (size // 2 for size in self.kernel_size)
        if self.padding == "valid" and (height or width):
            inputs = ops.pad(inputs, ((0, 0), (height, height), (width, width), (0, 0)))
        return super().convolution_op(inputs, ops.cast(kernel, inputs.dtype))


@keras.saving.register_keras_serializable(package="bitlib")
class GroupNorm(keras.layers.Layer):
    """GroupNorm with 32 groups and epsilon 1e-5, followed by the ReLU that always follows it here."""

    operations = PLAIN

    def build(self, input_shape: tuple) -> None:
        channels = input_shape[-1]
        self.gamma = self.add_weight(shape=(channels,), initializer="ones", name="gamma", autocast=False)
        self.beta = self.add_weight(shape=(channels,), initializer="zeros", name="beta", autocast=False)

    def call(self, x: Tensor) -> Tensor:
        """Normalise and rectify `[N, H, W, C]`; statistics are float32 under every dtype policy."""
        gamma, beta = tf.convert_to_tensor(self.gamma), tf.convert_to_tensor(self.beta)
        shape = tf.shape(x)
        pixels = ops.reshape(ops.cast(x, "float32"), (shape[0], -1, x.shape[-1]))
        return ops.reshape(ops.cast(self.operations.group_norm_relu(pixels, gamma, beta), x.dtype), shape)


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
        **kwargs: Any,
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

    def build(self, input_shape: tuple) -> None:
        narrow = (*input_shape[:-1], self.filters)
        with keras.name_scope("a"):
            self.norm_a.build(input_shape)
            self.conv_a.build(input_shape)
            if self.projection:
                with keras.name_scope("proj"):
                    self.projection.build(input_shape)
        with keras.name_scope("b"):
            self.norm_b.build(narrow)
            self.conv_b.build(narrow)
        with keras.name_scope("c"):
            self.norm_c.build(narrow)
            self.conv_c.build(narrow)

    def call(self, x: Tensor) -> Tensor:
        residual = self.norm_a(x)
        shortcut = self.projection(residual) if self.projection else x
        residual = self.conv_a(residual)
        residual = self.conv_b(self.norm_b(residual))
        residual = self.conv_c(self.norm_c(residual))
        return shortcut + residual

    def get_config(self) -> dict:
        config = {"filters": self.filters, "strides": self.strides, "project": self.project}
        return super().get_config() | config


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
        **kwargs: Any,
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
        # Set by bitlib.checkpoint and bitlib.finetune: where the weights are from, what the model is now, and
        # whether it was trained since it was loaded.
        self.source: Any = None
        self.card: Card | None = None
        self.tuned = False

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

    def build(self, input_shape: tuple) -> None:
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

    def stages(self, images: Tensor) -> dict[str, Tensor]:
        """Every intermediate result, by name.

        Returns:
            A dictionary of tensors: `root` `[N, H/4, W/4, 64w]`, `block1` … `block4`
            `[N, H/4, W/4, 256w]` … `[N, H/32, W/32, 2048w]`, `features` `[N, 2048w]`, and `logits`
            `[N, num_classes]` where the model has a head.
        """
        check_range(images)
        return self._forward(images)

    def __call__(self, images: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        check_range(images)  # here, because Keras wraps errors raised in `call` in a page of its own
        return super().__call__(images, *args, **kwargs)

    def apply_root(self, images: Tensor) -> Tensor:
        """The 7×7 convolution and the 3×3 pool: `[N, H, W, 3]` -> `[N, H/4, W/4, 64w]`."""
        x = self.root(images)
        # The pool pads with zeros, not with minus infinity: where all inputs are negative the border is 0.
        return ops.max_pool(ops.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0))), 3, 2)

    def pool(self, x: Tensor) -> Tensor:
        """GroupNorm, ReLU and the average over height and width: -> float32 `[N, 1, 1, 2048w]`."""
        return ops.mean(ops.cast(self.norm(x), "float32"), axis=(1, 2), keepdims=True)

    def feature_maps(self, images: Tensor) -> dict[str, Tensor]:
        """The `root` and `block1` … `block4` of `stages`, on which detectors and segmenters are built."""
        x = self.apply_root(images)
        maps = {"root": x}
        for index, block in enumerate(self.blocks, start=1):
            for unit in block:
                x = unit(x)
            maps[f"block{index}"] = x
        return maps

    def _forward(self, images: Tensor) -> dict[str, Tensor]:
        stages = self.feature_maps(images)
        pooled = self.pool(stages["block4"])
        stages["features"] = ops.squeeze(pooled, axis=(1, 2))
        if self.head is not None:
            stages["logits"] = ops.squeeze(self.head(pooled), axis=(1, 2))
        return stages

    def call(self, images: Tensor, training: bool = False) -> Tensor:
        stages = self._forward(images)
        return stages.get("logits", stages["features"])

    def get_config(self) -> dict:
        config = {"units": self.units, "width": self.width, "num_classes": self.num_classes}
        return super().get_config() | config
