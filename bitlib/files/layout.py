"""Names and shapes of the arrays in a published checkpoint, and which network they make."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from numbers import Integral, Real
from typing import NamedTuple

UNITS = {14: (1, 1, 1, 1), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
"""Bottleneck units in each of the four blocks, by the depth a BiT is named after."""

BASE_URL = "https://storage.googleapis.com/bit_models/"  #: where the weights are published
BUNDLED = "BiT-XS-R14x0.5"  #: the model that ships with this package

SUFFIXES = (".npz", ".safetensors", ".keras")
"""Of checkpoints in the published layout, with the names of timm or transformers, and as Keras saves them."""

HEAD = ("resnet/head/conv2d/kernel", "resnet/head/conv2d/bias")
ROOT = "resnet/root_block/standardized_conv2d/kernel"

_UNIT = re.compile(r"resnet/block(\d)/unit(\d\d)/")


class CheckpointError(ValueError):
    """A checkpoint cannot be used; its message names the file, the array, what was found and expected.

    What a file says of itself may be hostile: control characters are shown escaped, long messages cut.
    """

    def __init__(self, message: str):
        shown = message if len(message) <= 2000 else message[:2000] + "…"
        super().__init__("".join(c if c.isprintable() else repr(c)[1:-1] for c in shown))


class Architecture(NamedTuple):
    """A network, as the arrays of a checkpoint show it; the arguments of `bitlib.model.BiT`."""

    units: tuple[int, ...]
    width: float
    num_classes: int | None


GROUPS = 32  #: of every GroupNorm, whatever the width


def check_architecture(units: Sequence[int], width: float, num_classes: int | None) -> None:
    """Raise ValueError unless there are four blocks of one unit or more, 32 groups, a class or no head."""
    counts = list(units) if isinstance(units, Iterable) else []
    if len(counts) != 4 or not all(isinstance(n, int) and n > 0 for n in counts):
        raise ValueError(f"units: expected four positive integers, received {units!r}")
    if not isinstance(width, Real) or width <= 0 or 64 * width % GROUPS:
        raise ValueError(f"width: 64 * width must be a multiple of {GROUPS}, received {width!r}")
    whole = isinstance(num_classes, Integral) and not isinstance(num_classes, bool)
    if num_classes is not None and not (whole and num_classes > 0):
        raise ValueError(f"num_classes: expected None or a positive integer, received {num_classes!r}")


def layout(architecture: Architecture) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the arrays of a published checkpoint, in the order of the network."""
    units, width, num_classes = architecture
    channels = int(64 * width)
    shapes: dict[str, tuple[int, ...]] = {ROOT: (7, 7, 3, channels)}

    def add(prefix, size, channels_in, channels_out):
        shapes[f"{prefix}/group_norm/gamma"] = shapes[f"{prefix}/group_norm/beta"] = (channels_in,)
        shapes[f"{prefix}/standardized_conv2d/kernel"] = (size, size, channels_in, channels_out)

    for block, count in enumerate(units):
        filters = int(64 * width) * 2**block
        for unit in range(count):
            prefix = f"resnet/block{block + 1}/unit{unit + 1:02d}"
            add(f"{prefix}/a", 1, channels, filters)
            if unit == 0:
                shapes[f"{prefix}/a/proj/standardized_conv2d/kernel"] = (1, 1, channels, 4 * filters)
            add(f"{prefix}/b", 3, filters, filters)
            add(f"{prefix}/c", 1, filters, 4 * filters)
            channels = 4 * filters
    shapes["resnet/group_norm/gamma"] = shapes["resnet/group_norm/beta"] = (channels,)
    if num_classes is not None:
        shapes[HEAD[0]], shapes[HEAD[1]] = (1, 1, channels, num_classes), (num_classes,)
    return shapes


def infer(shapes: Mapping[str, tuple[int, ...]]) -> Architecture:
    """Depth, width and head of the network that arrays of these names and shapes belong to.

    The width is what most of the telling arrays agree on, so that `check` names a single wrong one.

    Raises: CheckpointError, if no array tells the width.
    """
    units = [1, 1, 1, 1]
    for name in shapes:
        if (match := _UNIT.match(name)) and 1 <= int(match[1]) <= 4:
            block = int(match[1]) - 1
            units[block] = max(units[block], int(match[2]))
    telling = {ROOT: 64, "resnet/group_norm/gamma": 2048}
    for block in range(4):
        telling[f"resnet/block{block + 1}/unit01/b/standardized_conv2d/kernel"] = 64 * 2**block
    widths = [shapes[name][-1] / unit for name, unit in telling.items() if shapes.get(name)]
    votes = Counter(width for width in widths if width > 0 and (64 * width) % 32 == 0)
    if not votes:
        raise CheckpointError(f"{ROOT}: missing or of a shape that is not [7, 7, 3, 64 * width]")
    width = votes.most_common(1)[0][0]
    num_classes = next((shapes[name][-1] for name in HEAD if shapes.get(name)), None)
    return Architecture(tuple(units), int(width) if width == int(width) else width, num_classes)


def check(shapes: Mapping[str, tuple[int, ...]], expected: Mapping[str, tuple[int, ...]]) -> None:
    """Raise CheckpointError if arrays are missing, unexpected or of another shape; it names five of them."""
    missing = [name for name in expected if name not in shapes]
    unexpected = [name for name in shapes if name not in expected]
    wrong = [name for name in expected if name in shapes and tuple(shapes[name]) != expected[name]]
    problems = [f"{name}: missing, expected shape {expected[name]}" for name in missing]
    problems += [f"{name}: unexpected, a BiT of this size has no such array" for name in unexpected]
    problems += [f"{name}: expected shape {expected[name]}, found {shapes[name]}" for name in wrong]
    if problems:
        more = f"; and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise CheckpointError("; ".join(problems[:5]) + more)


def units_and_width(architecture: str) -> tuple[tuple[int, ...], float]:
    """The network that a name such as `R50x1` stands for: units in each block, and width."""
    depth, width = architecture[1:].split("x")
    return UNITS[int(depth)], float(width)
