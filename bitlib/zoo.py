"""What exists: one card for every published BiT, and for the small one that ships with this package.

A card is data only: which file, which network, which preprocessing. Published weights: Apache-2.0,
`google-research/big_transfer`. This module imports neither TensorFlow nor NumPy.
"""

from __future__ import annotations

import difflib
import functools
import os
from dataclasses import dataclass
from pathlib import Path

BASE_URL = "https://storage.googleapis.com/bit_models/"
"""Where the weights have been published since 2020."""

BUNDLED = "BiT-XS-R14x0.5"
"""The model that ships with this package."""

ARCHITECTURES = ("R50x1", "R50x3", "R101x1", "R101x3", "R152x2", "R152x4")

VTAB_ARCHITECTURES = ("R50x1", "R101x1", "R50x3", "R101x3", "R152x4")
VTAB_TASKS = (
    "caltech101",
    "diabetic_retinopathy",
    "dtd",
    "oxford_flowers102",
    "oxford_iiit_pet",
    "resisc45",
    "sun397",
    "cifar100",
    "eurosat",
    "patch_camelyon",
    "smallnorb-elevation",
    "svhn",
    "dsprites-orientation",
    "smallnorb-azimuth",
    "clevr-distance",
    "clevr-count",
    "dmlab",
    "kitti-distance",
    "dsprites-xpos",
)

TOP1 = {
    "BiT-M-R50x1-ILSVRC2012": "80.4–80.7",
    "BiT-M-R101x1-ILSVRC2012": "82.3",
    "BiT-M-R50x3-ILSVRC2012": "84.0",
    "BiT-M-R101x3-ILSVRC2012": "84.4",
    "BiT-M-R152x2-ILSVRC2012": "84.5–85.2",
    "BiT-M-R152x4-ILSVRC2012": "84.9–85.4",
    "R50x1_224": "82.8",
    "R50x1_160": "80.5",
    "R152x2_T_224": "83.0",
    "R152x2_T_384": "84.3",
}
"""ImageNet top-1 in percent, as published."""


@dataclass(frozen=True)
class Card:
    """Everything about one checkpoint that is not in the file itself.

    Attributes:
        name: what to call it: the published file's name without folder and `.npz`.
        file: its path below `BASE_URL`, or in `data/` for the bundled model.
        architecture: depth and width, `R50x1` for a ResNet-50 of width 1.
        num_classes: outputs of its head; None where only the file tells.
        labels: the class list its outputs index: `glyph1k`, `ilsvrc2012`, `imagenet21k`, or None.
        activation: what turns its logits into probabilities: `softmax` or `sigmoid`.
        resolution: height and width in pixels at test time.
        short_side: where set, images are first resized to this short side, then centre-cropped to
            `resolution`; where None, they are resized straight to it, whatever their shape.
        antialias: whether shrinking averages over the pixels it drops. The published pipelines do not.
        top1: published ImageNet top-1 in percent, as printed; None where none was.
        trained_on: the data the weights have seen.
    """

    name: str
    file: str
    architecture: str
    num_classes: int | None
    labels: str | None
    trained_on: str
    resolution: int = 480
    short_side: int | None = None
    activation: str = "softmax"
    antialias: bool = False
    top1: str | None = None

    @property
    def url(self) -> str | None:
        """The published address; None for the bundled model."""
        return None if self.name == BUNDLED else BASE_URL + self.file


def _published():
    yield Card(BUNDLED, f"{BUNDLED}.npz", "R14x0.5", 1000, "glyph1k", "Glyph-1k", 64, antialias=True)
    for family, upstream, classes, labels, activation in (
        ("S", "ImageNet-1k", 1000, "ilsvrc2012", "softmax"),
        ("M", "ImageNet-21k", 21843, "imagenet21k", "sigmoid"),
    ):
        for architecture in ARCHITECTURES:
            name = f"BiT-{family}-{architecture}"
            yield Card(name, f"{name}.npz", architecture, classes, labels, upstream, activation=activation)
    for architecture in ARCHITECTURES:
        name = f"BiT-M-{architecture}-ILSVRC2012"
        yield Card(
            name,
            f"{name}.npz",
            architecture,
            1000,
            "ilsvrc2012",
            "ImageNet-21k, then ImageNet-1k",
            top1=TOP1[name],
        )
    for name, resolution, short_side, trained_on in (
        ("R50x1_224", 224, 256, "ImageNet-1k, distilled from R152x2"),
        ("R50x1_160", 160, 184, "ImageNet-1k, distilled from R152x2"),
        ("R152x2_T_224", 224, 256, "ImageNet-21k, then ImageNet-1k (a teacher)"),
        ("R152x2_T_384", 384, None, "ImageNet-21k, then ImageNet-1k (a teacher)"),
    ):
        yield Card(
            name,
            f"distill/{name}.npz",
            name.split("_")[0],
            1000,
            "ilsvrc2012",
            trained_on,
            resolution,
            short_side,
            top1=TOP1[name],
        )
    for task in ("flowers", "pet", "food", "sun"):
        name = f"R152x2_T_{task}128"
        trained_on = f"ImageNet-21k, then {task} (a teacher)"
        yield Card(name, f"distill/{name}.npz", "R152x2", None, None, trained_on, 128, 160)
    for architecture in VTAB_ARCHITECTURES:
        for run in range(3):
            for task in VTAB_TASKS:
                name = f"BiT-M-{architecture}-run{run}-{task}"
                trained_on = f"ImageNet-21k, then {task} (VTAB-1k)"
                yield Card(name, f"vtab/{name}.npz", architecture, None, None, trained_on, 384)


@functools.cache
def _cards() -> dict[str, Card]:
    return {card.name: card for card in _published()}


def names() -> list[str]:
    """Every name that `card` and `bitlib.load` understand, the bundled model first."""
    return list(_cards())


def card(name: str) -> Card:
    """The card of a model.

    Args:
        name: as in `names()`, in any case, with or without folder and `.npz`.

    Raises:
        ValueError: no such model; the message lists the nearest names.
    """
    wanted = Path(str(name)).name.removesuffix(".npz").lower()
    by_lower_case = {known.lower(): found for known, found in _cards().items()}
    if wanted in by_lower_case:
        return by_lower_case[wanted]
    near = difflib.get_close_matches(wanted, by_lower_case, n=3, cutoff=0.5)
    hint = ", ".join(by_lower_case[n].name for n in near) or "bitlib.zoo.names() lists them all"
    raise ValueError(f"name: no published BiT is called {name!r}; nearest: {hint}")


def card_of(source: str | os.PathLike) -> Card:
    """The card of a model's name or of a checkpoint file, published or one's own.

    A file that is called like a published model gets that model's card. Any other gets a plain one:
    no class list, images resized straight to 224 pixels.

    Raises:
        ValueError: neither a file nor the name of a published BiT.
    """
    try:
        return card(source)
    except ValueError:
        path = Path(source)
        if path.suffix != ".npz" and not path.is_file():
            raise
        return Card(path.stem, path.name, "as in the file", None, None, "unknown data", 224, antialias=True)
