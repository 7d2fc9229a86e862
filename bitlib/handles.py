"""The names that published BiTs had on TensorFlow Hub, and have elsewhere: on Kaggle, where the hub's
addresses lead since November 2023, in timm and in transformers.

A name is taken apart by its spelling alone; `bitlib.zoo` knows the cards that they lead to.
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
    """A name or handle in lower case, without scheme, host and query; one of Kaggle as the hub had it."""
    host = (
        r"^(https?:)?/*((www\.)?(tfhub\.dev|kaggle\.com/models|huggingface\.co)|hub\.tensorflow\.google\.cn)/"
    )
    path = re.sub(host, "", str(name).strip().lower()).partition("?")[0].strip("/")
    path = re.sub(r"^(hf[-_]hub:)?timm/", "", path)
    # Kaggle: owner/model/framework/variation, a hyphen for each underscore and slash of the handle.
    path = re.sub(r"/(frameworks|variations|versions)(?=/)", "", path)
    kaggle = re.fullmatch(r"(google/bit|(?:sp)?sayakpaul/[\w-]+)/tensorflow2/([\w-]+)(/\d+)?", path)
    if not kaggle:
        return path
    owner, variation, version = kaggle.groups(default="")
    if owner == "google/bit":
        model, *kind = re.split(r"-(?=ilsvrc2012-|imagenet21k-)", variation)
        variation = "/".join([f"bit/{model}", *(part.replace("-", "_") for part in kind)])
    else:
        variation = variation.replace("-", "_")
    return f"{owner.split('/')[0].removeprefix('sp')}/{variation}{version}"


@functools.cache
def elsewhere() -> dict[str, str]:
    """Names of the same weights in timm, of today and of before 0.9, and in transformers -> checkpoints."""
    found = {
        "google/bit-50": "BiT-M-R50x1-ILSVRC2012",
        "resnetv2_50x1_bit.goog_distilled_in1k": "R50x1_224",
        "resnetv2_50x1_bit_distilled": "R50x1_224",
    }
    for architecture in ("R50x1", "R50x3", "R101x1", "R101x3", "R152x2", "R152x4"):
        timm = f"resnetv2_{architecture[1:]}_bit"
        found[f"{timm}.goog_in21k"] = found[f"{timm}m_in21k"] = f"BiT-M-{architecture}"
        found[f"{timm}.goog_in21k_ft_in1k"] = found[f"{timm}m"] = f"BiT-M-{architecture}-ILSVRC2012"
    for size, end in ((224, ""), (384, "_384")):
        teacher = f"R152x2_T_{size}"
        found[f"resnetv2_152x2_bit.goog_teacher_in21k_ft_in1k{end}"] = teacher
        found[f"resnetv2_152x2_bit_teacher{end}"] = teacher
    return found


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
