"""The names that timm and transformers have for the arrays of a BiT, and the shapes that PyTorch gives them.

Kernels are height × width × in × out in the published files, out × in × height × width in PyTorch.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable

ROOTS = {"timm": "stem.conv.weight", "transformers": "bit.embedder.convolution.weight"}
"""The first kernel, by which the two are told apart."""

_UNIT = {
    "a/group_norm/gamma": "norm1.weight",
    "a/group_norm/beta": "norm1.bias",
    "a/standardized_conv2d/kernel": "conv1.weight",
    "a/proj/standardized_conv2d/kernel": "downsample.conv.weight",
    "b/group_norm/gamma": "norm2.weight",
    "b/group_norm/beta": "norm2.bias",
    "b/standardized_conv2d/kernel": "conv2.weight",
    "c/group_norm/gamma": "norm3.weight",
    "c/group_norm/beta": "norm3.bias",
    "c/standardized_conv2d/kernel": "conv3.weight",
}
_REST = {
    "timm": {
        "root_block/standardized_conv2d/kernel": ROOTS["timm"],
        "group_norm/gamma": "norm.weight",
        "group_norm/beta": "norm.bias",
        "head/conv2d/kernel": "head.fc.weight",
        "head/conv2d/bias": "head.fc.bias",
    },
    "transformers": {
        "root_block/standardized_conv2d/kernel": ROOTS["transformers"],
        "group_norm/gamma": "bit.norm.weight",
        "group_norm/beta": "bit.norm.bias",
        "head/conv2d/kernel": "classifier.1.weight",
        "head/conv2d/bias": "classifier.1.bias",
    },
}
_PREFIX = {"timm": "stages.{}.blocks.{}.", "transformers": "bit.encoder.stages.{}.layers.{}."}


def convention(names: Collection[str]) -> str | None:
    """Whose names these are, `"timm"` or `"transformers"`; None if of neither."""
    return next((library for library, root in ROOTS.items() if root in names), None)


def theirs(name: str, library: str) -> str:
    """What a library calls an array of the published layout."""
    short = name.removeprefix("resnet/")
    if match := re.fullmatch(r"block(\d)/unit(\d+)/(.+)", short):
        return _PREFIX[library].format(int(match[1]) - 1, int(match[2]) - 1) + _UNIT[match[3]]
    return _REST[library][short]


def ours(names: Iterable[str], library: str) -> dict[str, str]:
    """Names of a library -> those of the published layout; one that no BiT has stays as it is."""
    units = {part: own for own, part in _UNIT.items()}
    rest = {part: own for own, part in _REST[library].items()}
    pattern = re.compile(re.escape(_PREFIX[library]).replace(r"\{\}", r"(\d{1,3})") + r"(.+)")

    def own(name: str) -> str:
        match = pattern.fullmatch(name)
        if match and match[3] in units:
            return f"resnet/block{int(match[1]) + 1}/unit{int(match[2]) + 1:02d}/{units[match[3]]}"
        return f"resnet/{rest[name]}" if name in rest else name

    return {name: own(name) for name in names}


def shape_of(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape in the published layout of an array with one of its names, from that in PyTorch.

    A linear layer, as the head of transformers, is a convolution of 1×1.
    """
    if name.endswith("/kernel") and len(shape) in (2, 4):
        out, into, *size = shape
        return (*(size or (1, 1)), into, out)
    return tuple(shape)
