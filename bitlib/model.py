"""The network: a pre-activation ResNet with group normalisation and weight standardisation.

BiT (arXiv 1912.11370, section 2.1) is the ResNet-v2 of arXiv 1603.05027 in which every batch
normalisation is a GroupNorm (arXiv 1803.08494) and every convolution but the head has its kernel
standardised (arXiv 1903.10520). It is a functional Keras model, on any backend. The `path` of every variable
is the name of its array in a published `.npz`, but for one replacement (`BiT.arrays`); porting needs no table
of renames.

This module knows Keras and nothing of files. How the two operations are computed fast is in `bitlib.ops`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import keras
from keras import KerasTensor as Tensor  # stands for a tensor of any backend
from keras import ops

from bitlib.inputs import check_images
from bitlib.layout import UNITS
from bitlib.ops import NUM_GROUPS, PLAIN, shape_of
from bitlib.ops import group_norm_relu as group_norm_relu
from bitlib.ops import standardize as standardize
from bitlib.zoo import Card, Source


@keras.saving.register_keras_serializable(package="bitlib")
class StandardizedConv2D(keras.layers.Conv2D):
    """A convolution without bias whose kernel is standardised each time it is used.

    All sides are padded by half the kernel. With a stride, Keras' "same" would pad bottom and
    right only and so shift the image; there the padding is a step of its own.
    """

    arithmetic = PLAIN

    def __init__(self, filters: int, kernel_size: int | tuple, strides: int | tuple = 1, **kwargs: Any):
        kwargs |= {"use_bias": False, "padding": "same" if strides in (1, (1, 1)) else "valid"}
        super().__init__(filters, kernel_size, strides, **kwargs | {"data_format": "channels_last"})

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
        return _strided(input_shape, self.strides[0], self.filters)


@keras.saving.register_keras_serializable(package="bitlib")
class Root(keras.layers.Layer):
    """The 7×7 convolution and the 3×3 pool, each of stride 2.

    Its config holds what is known of the model, `about`, so that this survives whatever Keras does: copies,
    clones, `.keras` files.
    """

    def __init__(
        self,
        filters: int,
        kernel_initializer: str = "glorot_uniform",
        about: Mapping | None = None,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        own = {"dtype": self.dtype_policy.name, "kernel_initializer": kernel_initializer}
        about = about or {}
        self.filters = filters
        self.card = Card.of(about["card"]) if about.get("card") else None
        self.source = Source.of(about["source"]) if about.get("source") else None
        self.tuned = about.get("tuned", False)
        self.convolution = StandardizedConv2D(filters, 7, 2, name="standardized_conv2d", **own)

    def build(self, input_shape: tuple) -> None:
        self.convolution.build(input_shape)

    def call(self, images: Tensor) -> Tensor:
        # The pool pads with zeros, not with minus infinity: where all inputs are negative the border is 0.
        x = ops.pad(self.convolution(images), ((0, 0), (1, 1), (1, 1), (0, 0)))
        # A pool loses NaN. This is 0, or NaN if a pixel is NaN or infinite, and brings it back.
        mean = ops.mean(images, axis=(1, 2, 3), keepdims=True)
        return ops.max_pool(x, 3, 2, data_format="channels_last") + ops.stop_gradient(mean - mean)

    def compute_output_shape(self, input_shape: tuple) -> tuple:
        return _strided(input_shape, 4, self.filters)

    def about(self) -> dict:
        """What is known of the model, as JSON."""
        card, source = self.card and asdict(self.card), self.source and self.source.config()
        return {"card": card, "source": source, "tuned": self.tuned}

    def get_config(self) -> dict:
        return super().get_config() | {"filters": self.filters, "about": self.about()}


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
        own = {"dtype": self.dtype_policy.name, "kernel_initializer": kernel_initializer}

        def convolution(filters, size, strides=1):
            return StandardizedConv2D(filters, size, strides, name="standardized_conv2d", **own)

        def norm():
            return GroupNorm(dtype=self.dtype_policy.name, name="group_norm")

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

    def compute_output_shape(self, input_shape: tuple) -> tuple:
        return _strided(input_shape, self.strides, 4 * self.filters)

    def get_config(self) -> dict:
        config = {"filters": self.filters, "strides": self.strides, "project": self.project}
        return super().get_config() | config


@keras.saving.register_keras_serializable(package="bitlib")
class Head(keras.layers.Layer):
    """The classifier, a 1×1 convolution of pooled features that starts at zero (section 3.3).

    Logits are float32 under every dtype policy, so that a softmax over 21843 classes is exact.
    """

    def __init__(self, num_classes: int, **kwargs: Any):
        super().__init__(**kwargs | {"dtype": "float32"})
        self.num_classes = num_classes
        own = {"kernel_initializer": "zeros", "data_format": "channels_last", "dtype": "float32"}
        self.convolution = keras.layers.Conv2D(num_classes, 1, name="conv2d", **own)

    def build(self, input_shape: tuple) -> None:
        self.convolution.build((None, 1, 1, input_shape[-1]))

    def call(self, features: Tensor) -> Tensor:
        return ops.squeeze(self.convolution(features[:, None, None]), axis=(1, 2))

    def compute_output_shape(self, input_shape: tuple) -> tuple:
        return (input_shape[0], self.num_classes)

    def get_config(self) -> dict:
        return super().get_config() | {"num_classes": self.num_classes}


def network(
    units: Sequence[int] = UNITS[50],
    width: float = 1,
    num_classes: int | None = 1000,
    *,
    kernel_initializer: str = "glorot_uniform",
    dtype: Any = None,
    about: Mapping | None = None,
) -> tuple[Tensor, Tensor]:
    """The graph of a `BiT`, from images to logits or features: its input and its output."""
    if len(units) != 4 or not all(isinstance(n, int) and n > 0 for n in units):
        raise ValueError(f"units: expected four positive integers, received {units!r}")
    filters = int(64 * width)
    if filters != 64 * width or filters <= 0 or filters % NUM_GROUPS:
        raise ValueError(f"width: 64 * width must be a multiple of {NUM_GROUPS}, received {width!r}")
    if num_classes is not None and num_classes < 1:
        raise ValueError(f"num_classes: expected None or a positive integer, received {num_classes!r}")
    policy = _policy(dtype)
    own = {"dtype": policy, "kernel_initializer": kernel_initializer}

    images = keras.Input((None, None, 3), dtype="float32", name="images")
    x = Root(filters, about=about, name="root_block", **own)(images)
    for block, count in enumerate(units, start=1):
        for unit in range(1, count + 1):
            x = Unit(
                filters * 2 ** (block - 1),
                strides=2 if block > 1 and unit == 1 else 1,
                project=unit == 1,
                name=f"block{block}_unit{unit:02d}",
                **own,
            )(x)
    x = GroupNorm(name="group_norm", dtype=policy)(x)
    x = keras.layers.GlobalAveragePooling2D("channels_last", name="features", dtype="float32")(x)
    return images, x if num_classes is None else Head(num_classes, name="head")(x)


@keras.saving.register_keras_serializable(package="bitlib")
class BiT(keras.Model):
    """A BiT-ResNet: root, four blocks of units, GroupNorm and ReLU, global average pool, head.

    Args:
        units: bottleneck units in each of the four blocks, `UNITS[50]` for example, which is the default.
        width: factor on the 64 filters of the first block; `width * 64` must be a multiple of 32. Default 1.
        num_classes: outputs of the head; None for pooled features without a head. Default 1000.
        name: of the model. Default `resnet`.
        kernel_initializer: of the convolutions; `zeros` saves time and memory where a checkpoint follows.
        dtype: `float32`, `bfloat16`, `mixed_bfloat16` or `mixed_float16`; None for Keras' own default.

    Attributes:
        card: the model as it is now: preprocessing, names of classes; None where nothing is known.
        source: where its weights are from; None if they are random.
        tuned: whether it was trained since it was loaded.

    Call:
        `model(images, training=False)`: `[N, H, W, 3]` float in [-1, 1], H and W at least 32 ->
        logits `[N, num_classes]`, or features `[N, 2048 * width]` where there is no head.

    Raises:
        ValueError: `units` are not four positive numbers, `width` does not give 32 groups,
            `num_classes` is not positive, `dtype` is another; when called, as `bitlib.inputs.check_images`.
    """

    def __init__(self, *args: Any, name: str = "resnet", trainable: bool = True, **kwargs: Any):
        # Keras calls it so when it clones a model: with the input and the output of a graph.
        graph = args if args and isinstance(args[0], keras.KerasTensor) else network(*args, **kwargs)
        super().__init__(*graph, name=name, trainable=trainable)
        self.dtype_policy = self.root.dtype_policy

    card = property(lambda self: self.root.card, lambda self, new: setattr(self.root, "card", new))
    source = property(lambda self: self.root.source, lambda self, new: setattr(self.root, "source", new))
    tuned = property(lambda self: self.root.tuned, lambda self, new: setattr(self.root, "tuned", new))

    @property
    def units(self) -> tuple[int, ...]:
        """Units in each of the four blocks."""
        return tuple(map(len, self.blocks))

    @property
    def width(self) -> float:
        """Factor on the 64 filters of the first block."""
        return self.root.filters / 64

    @property
    def num_classes(self) -> int | None:
        """Outputs of the head; None where there is none."""
        return None if self.head is None else self.head.num_classes

    @property
    def num_features(self) -> int:
        """Channels of the pooled features: 2048 times the width."""
        return 32 * self.root.filters

    @property
    def arrays(self) -> dict[str, keras.Variable]:
        """Every variable by its published name (`resnet/block1/unit01/a/group_norm/gamma`)."""
        scope = re.compile(r"^.*?(?=(root_block|block\d_unit\d\d|group_norm|head)/)")  # that it was made in
        return {
            f"resnet/{scope.sub('', v.path, count=1).replace('_unit', '/unit')}": v for v in self.variables
        }

    @property
    def root(self) -> Root:
        """The layer `root_block`."""
        return self.get_layer("root_block")

    @property
    def blocks(self) -> list[list[Unit]]:
        """The units of each of the four blocks."""
        return [[layer for layer in self.layers if layer.name.startswith(f"block{b}_")] for b in (1, 2, 3, 4)]

    @property
    def head(self) -> Head | None:
        """The layer `head`; None of a model of pooled features."""
        return next((layer for layer in self.layers if layer.name == "head"), None)

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        check_images(args[0] if args else kwargs.get("inputs"))  # here, before Keras' own words
        return super().__call__(*args, **kwargs)

    def predict(self, x: Any, *args: Any, **kwargs: Any) -> Any:
        """As Keras' own. Arrays are checked before, of a Dataset or PyDataset the first batch."""
        if hasattr(x, "element_spec"):
            first = next(iter(x.take(1)), None)
        else:
            first = x[0] if isinstance(x, keras.utils.PyDataset) else x
        if not any(
            hasattr(x, name) for name in ("gi_frame", "dataset")
        ):  # generators and PyTorch's pass unseen
            check_images(first[0] if isinstance(first, tuple) else first)
        return super().predict(x, *args, **kwargs)

    def pool(self, x: Tensor) -> Tensor:
        """GroupNorm, ReLU and the average over height and width: -> float32 `[N, 2048w]`."""
        return self.get_layer("features")(self.get_layer("group_norm")(x))

    def feature_maps(self, images: Tensor) -> dict[str, Tensor]:
        """The `root` and `block1` … `block4` of `stages`, on which detectors and segmenters are built."""
        x = self.root(images)
        maps = {"root": x}
        for index, block in enumerate(self.blocks, start=1):
            for unit in block:
                x = unit(x)
            maps[f"block{index}"] = x
        return maps

    def stages(self, images: Tensor) -> dict[str, Tensor]:
        """Every intermediate result, by name.

        Returns:
            A dictionary of tensors: `root` `[N, H/4, W/4, 64w]`, `block1` … `block4`
            `[N, H/4, W/4, 256w]` … `[N, H/32, W/32, 2048w]`, `features` `[N, 2048w]`, and `logits`
            `[N, num_classes]` where the model has a head.
        """
        check_images(images)
        stages = self.feature_maps(images)
        stages["features"] = self.pool(stages["block4"])
        if self.head is not None:
            stages["logits"] = self.head(stages["features"])
        return stages

    def get_config(self) -> dict:
        """The arguments of another like this one, and what is known of it."""
        return {
            "units": self.units,
            "width": self.width,
            "num_classes": self.num_classes,
            "name": self.name,
            "trainable": self.trainable,
            "dtype": self.dtype_policy.name,
            "about": self.root.about(),
        }


def _strided(shape: tuple, stride: int, channels: int) -> tuple:
    """The shape `[N, H, W, C]` after a stride; sides are rounded up, or are not known."""
    return (shape[0], *(side and -(-side // stride) for side in shape[1:3]), channels)


def _policy(dtype: Any) -> str:
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
