"""The names that published BiTs had on TensorFlow Hub, and what each of those modules took and gave.

A handle is taken apart by its spelling alone; `bitlib.zoo` knows the cards that they lead to.
"""

from __future__ import annotations

import functools
import re
from typing import NamedTuple

COLLECTIONS = {
    "google/collections/bit": ("google/bit/",),
    "sayakpaul/collections/bit-resnet": ("sayakpaul/",),
}
"""Collections of the hub, and how the handles of their members begin."""

_DISTILLATION = {
    "bit_resnet152x2": "R152x2_T",
    "bit_r152x2": "R152x2_T",
    "distill_bit_resnet50x1": "R50x1",
    "distill_bit_r50x1": "R50x1",
}


class Module(NamedTuple):
    """What a handle led to: which checkpoint, what came out, and the range of what went in."""

    checkpoint: str
    output: str
    input_range: tuple[int, int]


@functools.cache
def every() -> tuple[str, ...]:
    """Every handle of the hub that led to a BiT, in one spelling."""
    found = []
    for family in "sm":
        for architecture in ("r50x1", "r50x3", "r101x1", "r101x3", "r152x4"):
            model = f"google/bit/{family}-{architecture}"
            found += [f"{model}/1", f"{model}/ilsvrc2012_classification/1"]
            found += [f"{model}/imagenet21k_classification/1"] if family == "m" else []
    for size in (224, 384):
        found.append(f"sayakpaul/bit_resnet152x2_{size}_classification/1")
        found.append(f"sayakpaul/bit_r152x2_{size}_feature_extraction/1")
    for size in (224, 160):
        found.append(f"sayakpaul/distill_bit_resnet50x1_{size}_classification/1")
        found.append(f"sayakpaul/distill_bit_r50x1_{size}_feature_extraction/1")
    return tuple(found)


@functools.cache
def module(handle: str) -> Module:
    """The module of one of the handles in `every()`."""
    owner, *path, _version = handle.split("/")
    if owner == "google":
        family, architecture = path[1].split("-")
        name = f"BiT-{family.upper()}-{architecture.upper().replace('X', 'x')}"
        if family == "m" and path[2:] == ["ilsvrc2012_classification"]:
            name += "-ILSVRC2012"
        return Module(name, "logits" if path[2:] else "features", (0, 1))
    model, size, kind = re.split(r"_(\d+)_", path[0])
    output = "features" if kind == "feature_extraction" else "logits"
    return Module(f"{_DISTILLATION[model]}_{size}", output, (-1, 1))


def bare(name: str) -> str:
    """A name or handle in lower case, without scheme, host and query."""
    host = r"^(https?:)?/*((www\.)?tfhub\.dev|hub\.tensorflow\.google\.cn)/"
    return re.sub(host, "", str(name).strip().lower()).partition("?")[0].strip("/")


def unversioned(name: str) -> str:
    """As `bare`, and without the version at its end."""
    return re.sub(r"/\d+$", "", bare(name))


def find(name: str) -> tuple[str, str] | None:
    """A name as it was typed -> that handle, and the same in the spelling of `every()`; None if it is none.

    Any version is taken for the first and only one; both spellings of the distilled models are known.
    """
    typed = unversioned(name)
    known = re.sub(r"(?<=distill_bit_)r50x1(_\d+_classification)", r"resnet50x1\1", typed) + "/1"
    return (f"{typed}/1", known) if known in every() else None


def members(collection: str) -> list[str] | None:
    """The handles of a collection, whose name may have host and version; None for any other name."""
    prefix = COLLECTIONS.get(unversioned(collection))
    return None if prefix is None else [handle for handle in every() if handle.startswith(prefix)]
