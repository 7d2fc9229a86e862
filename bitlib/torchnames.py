"""The names that timm and transformers have for the arrays of a BiT, and the shapes that PyTorch gives them.

Kernels are height × width × in × out in the published files, out × in × height × width in PyTorch.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from functools import cache

ROOTS = {"timm": "stem.conv.weight", "transformers": "bit.embedder.convolution.weight"}
"""The first kernel, by which the two are told apart."""

_PREFIX = {"timm": "stages.{}.blocks.{}.", "transformers": "bit.encoder.stages.{}.layers.{}."}
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
_NORM = {"timm": "norm", "transformers": "bit.norm"}
_HEAD = {"timm": "head.fc", "transformers": "classifier.1"}


@cache
def _names(library: str) -> dict[str, str]:
    """Published names and a library's, of a network larger than any: 99 units in each of four blocks."""
    names = {
        "resnet/root_block/standardized_conv2d/kernel": ROOTS[library],
        "resnet/group_norm/gamma": f"{_NORM[library]}.weight",
        "resnet/group_norm/beta": f"{_NORM[library]}.bias",
        "resnet/head/conv2d/kernel": f"{_HEAD[library]}.weight",
        "resnet/head/conv2d/bias": f"{_HEAD[library]}.bias",
    }
    for block in range(4):
        for unit in range(99):
            for ours, theirs in _UNIT.items():
                prefix = _PREFIX[library].format(block, unit)
                names[f"resnet/block{block + 1}/unit{unit + 1:02d}/{ours}"] = prefix + theirs
    return names


def convention(names: Collection[str]) -> str | None:
    """Whose names these are, `"timm"` or `"transformers"`; None if of neither."""
    return next((library for library, root in ROOTS.items() if root in names), None)


def theirs(name: str, library: str) -> str:
    """A library's name for an array of the published layout."""
    return _names(library)[name]


def ours(names: Iterable[str], library: str) -> dict[str, str]:
    """Names of a library -> those of the published layout; one that no BiT has stays as it is."""
    published = {their: our for our, their in _names(library).items()}
    return {name: published.get(name, name) for name in names}


def shape_of(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape in the published layout of an array with one of its names, from that in PyTorch.

    A linear layer, as the head of transformers, is a convolution of 1×1.
    """
    if name.endswith("/kernel") and len(shape) in (2, 4):
        out, into, *size = shape
        return (*(size or (1, 1)), into, out)
    return tuple(shape)
