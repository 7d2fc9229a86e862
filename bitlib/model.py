"""The network: a pre-activation ResNet with group normalisation and weight standardisation.

BiT (arXiv 1912.11370, section 2.1) is the ResNet-v2 of arXiv 1603.05027 in which every batch
normalisation is a GroupNorm (arXiv 1803.08494) and every convolution but the head has its kernel
standardised (arXiv 1903.10520). It is a functional Keras model, on any backend. The `path` of every variable
is the name of its array in a published `.npz`, but for one replacement (`BiT.arrays`); porting needs no table
of renames. This module knows Keras and nothing of files. `bitlib.ops` has the layers of the two operations.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import keras
from keras import KerasTensor as Tensor  # stands for a tensor of any backend
from keras import ops

from bitlib.files.layout import UNITS, check_architecture
from bitlib.inputs import check_images, checked
from bitlib.ops import GroupNorm, StandardizedConv2D, policy_of, strided
from bitlib.ops import standardize as standardize
from bitlib.zoo import About

_SCOPE = re.compile(r"^.*?(?=(root_block|block\d_unit\d\d|group_norm|head)/)")  # that a model was made in


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
        self.filters, self.about, policy = filters, About.of(about or {}), self.dtype_policy.name
        self.convolution = StandardizedConv2D(
            filters, 7, 2, dtype=policy, kernel_initializer=kernel_initializer
        )

    def build(self, input_shape: tuple) -> None:
        self.convolution.build(input_shape)

    def call(self, images: Tensor) -> Tensor:
        # The pool pads with zeros, not with minus infinity: where all inputs are negative the border is 0.
        x = ops.pad(self.convolution(images), ((0, 0), (1, 1), (1, 1), (0, 0)))
        # A pool loses NaN. This is 0, or NaN if a pixel is NaN or infinite, and brings it back.
        mean = ops.mean(images, axis=(1, 2, 3), keepdims=True)
        return ops.max_pool(x, 3, 2, data_format="channels_last") + ops.stop_gradient(mean - mean)

    def compute_output_shape(self, input_shape: tuple) -> tuple:
        return strided(input_shape, 4, self.filters)

    def get_config(self) -> dict:
        return super().get_config() | {"filters": self.filters, "about": self.about.config()}


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
        policy = self.dtype_policy.name
        norm = partial(GroupNorm, dtype=policy, name="group_norm")
        convolution = partial(StandardizedConv2D, dtype=policy, kernel_initializer=kernel_initializer)
        self.norm_a, self.conv_a = norm(), convolution(filters, 1)
        self.norm_b, self.conv_b = norm(), convolution(filters, 3, strides)
        self.norm_c, self.conv_c = norm(), convolution(4 * filters, 1)
        self.projection = convolution(4 * filters, 1, strides) if project else None

    def build(self, input_shape: tuple) -> None:
        narrow = (*input_shape[:-1], self.filters)
        for scope, shape in (("a", input_shape), ("b", narrow), ("c", narrow)):
            with keras.name_scope(scope):
                getattr(self, f"norm_{scope}").build(shape)
                getattr(self, f"conv_{scope}").build(shape)
                if self.projection and scope == "a":
                    with keras.name_scope("proj"):
                        self.projection.build(shape)

    def call(self, x: Tensor) -> Tensor:
        residual = self.norm_a(x)
        shortcut = self.projection(residual) if self.projection else x
        residual = self.conv_a(residual)
        residual = self.conv_b(self.norm_b(residual))
        residual = self.conv_c(self.norm_c(residual))
        return shortcut + residual

    def compute_output_shape(self, input_shape: tuple) -> tuple:
        return strided(input_shape, self.strides, 4 * self.filters)

    def get_config(self) -> dict:
        own = {name: getattr(self, name) for name in ("filters", "strides", "project")}
        return super().get_config() | own


@keras.saving.register_keras_serializable(package="bitlib")
class Head(keras.layers.Layer):
    """The classifier, a 1×1 convolution of pooled features that starts at zero (section 3.3).

    Logits are float32 under every dtype policy, so that a softmax over 21843 classes is exact.
    """

    def __init__(self, num_classes: int, **kwargs: Any):
        super().__init__(**kwargs | {"dtype": "float32"})
        self.num_classes = num_classes
        own = {"data_format": "channels_last", "dtype": "float32", "name": "conv2d"}
        self.convolution = keras.layers.Conv2D(num_classes, 1, kernel_initializer="zeros", **own)

    def build(self, input_shape: tuple) -> None:
        self.convolution.build((None, 1, 1, input_shape[-1]))

    def call(self, features: Tensor) -> Tensor:
        return ops.squeeze(self.convolution(features[:, None, None]), axis=(1, 2))

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
    check_architecture(units, width, num_classes)
    filters, policy = int(64 * width), policy_of(dtype)
    own = {"dtype": policy, "kernel_initializer": kernel_initializer}

    images = keras.Input((None, None, 3), dtype="float32", name="images")
    x = Root(filters, about=about, name="root_block", **own)(images)
    for block, count in enumerate(units, start=1):
        for unit in range(1, count + 1):
            stride, name = 2 if block > 1 and unit == 1 else 1, f"block{block}_unit{unit:02d}"
            x = Unit(filters * 2 ** (block - 1), stride, project=unit == 1, name=name, **own)(x)
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
        kernel_initializer: of the convolutions; `zeros` saves time and memory where a checkpoint follows.
        dtype: `float32`, `bfloat16`, `mixed_bfloat16` or `mixed_float16`; None for Keras' own default.

    Attributes:
        card: the model as it is now: preprocessing, names of classes; None where nothing is known.
        source: where its weights are from; None if they are random.
        tuned: whether it was trained since it was loaded.
        units, width, num_classes: the arguments.
        num_features: channels of the pooled features.

    Call:
        `model(images, training=False)`: `[N, H, W, 3]` float in [-1, 1], H and W at least 32 ->
        logits `[N, num_classes]`, or features `[N, 2048 * width]` where there is no head.

    Raises:
        ValueError: as `bitlib.files.layout.check_architecture` and `bitlib.ops.policy_of`; when called, as
            `bitlib.inputs.check_images`.
    """

    def __init__(self, *args: Any, name: str = "resnet", trainable: bool = True, **kwargs: Any):
        # Keras calls it so when it clones a model: with the input and the output of a graph.
        graph = args if args and isinstance(args[0], keras.KerasTensor) else network(*args, **kwargs)
        super().__init__(*graph, name=name, trainable=trainable)
        self.dtype_policy = self.root.dtype_policy

    card, source, tuned = map(About.field, ("card", "source", "tuned"))

    units = property(lambda self: tuple(map(len, self.blocks)))
    width = property(lambda self: self.root.filters / 64)
    num_features = property(lambda self: 32 * self.root.filters)

    @property
    def num_classes(self) -> int | None:
        """Outputs of the head; None where there is none."""
        return None if self.head is None else self.head.num_classes

    @property
    def arrays(self) -> dict[str, keras.Variable]:
        """Every variable by its published name (`resnet/block1/unit01/a/group_norm/gamma`)."""
        paths = {_SCOPE.sub("", v.path, count=1).replace("_unit", "/unit"): v for v in self.variables}
        return {f"resnet/{path}": variable for path, variable in paths.items()}

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

    fit, evaluate, predict, predict_on_batch = map(
        checked, (keras.Model.fit, keras.Model.evaluate, keras.Model.predict, keras.Model.predict_on_batch)
    )

    def quantize(self, *args: Any, **kwargs: Any) -> None:
        """Changes nothing, and warns of it once: Keras warns of every layer."""
        warnings.warn(
            "quantize: Keras has no quantised form of convolutions; nothing is changed", stacklevel=2
        )

    def pool(self, x: Tensor) -> Tensor:
        """GroupNorm, ReLU and the average over height and width: -> float32 `[N, 2048w]`."""
        return self.get_layer("features")(self.get_layer("group_norm")(x))

    def feature_maps(self, images: Tensor) -> dict[str, Tensor]:
        """What detectors are built on: `root` and `block1` … `block4`, at strides 4, 4, 8, 16 and 32."""
        x = self.root(images)
        maps = {"root": x}
        for index, block in enumerate(self.blocks, start=1):
            for unit in block:
                x = unit(x)
            maps[f"block{index}"] = x
        return maps

    def stages(self, images: Tensor) -> dict[str, Tensor]:
        """As `feature_maps`, and `features` `[N, 2048w]` and, of a head, `logits` `[N, num_classes]`."""
        check_images(images)
        stages = self.feature_maps(images)
        stages["features"] = self.pool(stages["block4"])
        if self.head is not None:
            stages["logits"] = self.head(stages["features"])
        return stages

    def get_config(self) -> dict:
        """The arguments of another like this one, and what is known of it."""
        own = {name: getattr(self, name) for name in ("units", "width", "num_classes", "name", "trainable")}
        return own | {"dtype": self.dtype_policy.name, "about": self.root.about.config()}
