"""The catalogue: a card for every published BiT, and for the small one that ships with this package."""

from __future__ import annotations

import difflib
import functools
import itertools
import math
import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from bitlib.files.layout import (
    BASE_URL,
    BUNDLED,
    SUFFIXES,
    Architecture,
    CheckpointError,
    layout,
    units_and_width,
)
from bitlib.files.layout import UNITS as UNITS
from bitlib.files.writing import bundled, expanded, sha256

CLASS_LISTS = {
    "glyph1k": "glyph1k_names.txt",
    "ilsvrc2012": "ilsvrc2012_wordnet_lemmas.txt",
    "imagenet21k": "imagenet21k_wordnet_lemmas.txt",
}
"""The file of each class list. The first is bundled, the others are published beside the weights."""

FOREIGN = {
    ".pb .onnx .tflite": "an export, from which no weights are read; load what it was exported from",
    ".h5 .hdf5": "a file of Keras; a loaded model of as many classes reads it, by `load_weights`",
    ".pth .pt .bin .ckpt .index .pkl .msgpack": "of another library; `safetensors.torch.save_file` writes "
    "PyTorch's weights as a .safetensors",
}
"""Suffixes of files that are not read, and what to do instead."""

_SUFFIXES = ", ".join(SUFFIXES)
_HOSTS = re.compile(
    r"(?i)(https?://storage\.(googleapis|cloud\.google)\.com/|gs://)bit_models/|"
    r"^(https?:)?/*((www\.)?(tfhub\.dev|kaggle\.com/models|huggingface\.co)|hub\.tensorflow\.google\.cn)/"
)

ARCHITECTURES = {
    "R50x1": "80.4–80.7", "R50x3": "84.0", "R101x1": "82.3",
    "R101x3": "84.4", "R152x2": "84.5–85.2", "R152x4": "84.9–85.4",
}  # fmt: skip
"""Published networks, and the ImageNet top-1 in percent of BiT-M fine-tuned on it, as published."""

VTAB_ARCHITECTURES = ("R50x1", "R101x1", "R50x3", "R101x3", "R152x4")
VTAB_TASKS = (
    "caltech101", "diabetic_retinopathy", "dtd", "oxford_flowers102", "oxford_iiit_pet", "resisc45", "sun397",
    "cifar100", "eurosat", "patch_camelyon", "smallnorb-elevation", "svhn", "dsprites-orientation",
    "smallnorb-azimuth", "clevr-distance", "clevr-count", "dmlab", "kitti-distance", "dsprites-xpos",
)  # fmt: skip

COLLECTIONS = {"google/collections/bit": "google/bit/", "sayakpaul/collections/bit-resnet": "sayakpaul/"}
"""Collections of TensorFlow Hub, and how the handles of their members begin."""

BIT_CITATION = (
    "A. Kolesnikov, L. Beyer, X. Zhai, J. Puigcerver, J. Yung, S. Gelly, N. Houlsby. "
    "Big Transfer (BiT): General Visual Representation Learning. ECCV 2020. arXiv 1912.11370"
)
DISTILLED_CITATION = (
    "L. Beyer, X. Zhai, A. Royer, L. Markeeva, R. Anil, A. Kolesnikov. "
    "Knowledge distillation: A good teacher is patient and consistent. CVPR 2022. arXiv 2106.05237"
)


@dataclass(frozen=True)
class Card:
    """Everything about one checkpoint that is not in the file itself.

    Attributes:
        name: the published file's name without folder and `.npz`.
        file: its path below `BASE_URL`, or in `data/` for the bundled model.
        architecture: depth and width, `R50x1` for a ResNet-50 of width 1.
        num_classes: outputs of its head; None where only the file tells.
        labels: the class list its outputs index: `glyph1k`, `ilsvrc2012`, `imagenet21k`, or None.
        activation: what turns its logits into probabilities: `softmax` or `sigmoid`.
        resolution: height and width in pixels at test time.
        short_side: what images are resized to before they are centre-cropped to `resolution`; None: they are
            resized straight to that, whatever their shape.
        antialias: whether shrinking averages over the pixels it drops. The published pipelines do not.
        top1: published ImageNet top-1 in percent, as printed; None where none was.
        trained_on: the data the weights have seen.
        input_range: what the weights expect, [-1, 1] for all; of a hub handle, what that module took.
        output: `logits`, or `features` for a hub handle of a feature extractor.
        handle: the hub handle that this card was asked for by, if it was.
        licence: of the weights, as an SPDX identifier.
        class_names: the names of its outputs, where a file of one's own carries them.
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
    input_range: tuple[int, int] = (-1, 1)
    output: str = "logits"
    handle: str | None = None
    licence: str = "Apache-2.0"
    class_names: tuple[str, ...] | None = None

    @classmethod
    def of(cls, fields: Mapping) -> Card:
        """A card of its fields as JSON has them, lists instead of tuples."""
        tuples = {name: tuple(value) for name, value in fields.items() if isinstance(value, list)}
        return cls(**{**fields, **tuples})

    @property
    def url(self) -> str | None:
        """The published address; None for the bundled model."""
        return None if self.name == BUNDLED else BASE_URL + self.file

    @property
    def citation(self) -> str:
        """The paper to cite."""
        return DISTILLED_CITATION if self.file.startswith("distill/") else BIT_CITATION

    @property
    def parameters(self) -> int | None:
        """Weights, the head's among them; None where only the file tells."""
        if self.num_classes is None:
            return None
        shapes = layout(Architecture(*units_and_width(self.architecture), self.num_classes))
        return sum(map(math.prod, shapes.values()))

    @property
    def size(self) -> int | None:
        """Bytes of the bundled file, else of the arrays in float32; None where only the file tells."""
        if self.name == BUNDLED:
            return bundled(self.file).stat().st_size
        return 4 * self.parameters if self.parameters else None

    @property
    def handles(self) -> dict[str, str]:
        """The hub handles of this checkpoint: by output, `logits` and `features`, one of each at most."""
        return {output: handle for handle, (name, output, _) in _hub().items() if name == self.name}

    def _repr_markdown_(self) -> str:
        return Table([self])._repr_markdown_()


class Table(list):
    """Cards, shown as a table: as Markdown on a page, as lines in a terminal."""

    def _lines(self) -> list[tuple[str, ...]]:
        def line(card: Card) -> tuple[str, ...]:
            million = f"{card.parameters / 1e6:,.1f} M" if card.parameters else "as in the file"
            size = f"{card.size / 1e6:,.0f} MB" if card.size else "as in the file"
            pixels = f"{card.short_side} → {card.resolution}" if card.short_side else str(card.resolution)
            classes = "per task" if card.num_classes is None else f"{card.num_classes:,}"
            return card.name, card.trained_on, classes, pixels, card.top1 or "", million, size

        header = ("name", "trained on", "classes", "pixels", "top-1 %", "parameters", "file")
        return [header, *map(line, self)]

    def _repr_markdown_(self) -> str:
        header, *lines = ["| " + " | ".join(line) + " |" for line in self._lines()]
        return "\n".join([header, "| --- " * 7 + "|", *lines])

    def __str__(self) -> str:
        widths = [max(map(len, column)) for column in zip(*self._lines(), strict=True)]
        return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in self._lines())

    __repr__ = __str__


@dataclass(frozen=True)
class Source:
    """Where the weights of a model come from.

    Attributes:
        card: of the model; of a handle, with what that module took and gave.
        path: the file.
        verified: its SHA-256, where it was compared when the file was found.
        fingerprint: of the weights as they were loaded (`bitlib.checkpoint.fingerprint`).
    """

    card: Card
    path: Path
    verified: str | None = None
    fingerprint: int | None = None

    @classmethod
    def of(cls, fields: Mapping) -> Source:
        """The inverse of `config`."""
        path = Path(fields["file"])
        return cls(Card.of(fields["card"]), path, fields["verified"], fields.get("fingerprint"))

    def config(self) -> dict:
        """Its fields as JSON, of the path the name alone: it says nothing of the machine."""
        own = {"verified": self.verified, "fingerprint": self.fingerprint}
        return {"card": asdict(self.card), "file": self.path.name, **own}

    @cached_property
    def sha256(self) -> str:
        """The SHA-256 of the file, in hexadecimal; computed once, if it is asked for."""
        return self.verified or sha256(self.path)


@dataclass
class About:
    """All that is known of a model beside its weights; a `bitlib.model.BiT` has the same attributes."""

    card: Card | None = None
    source: Source | None = None
    tuned: bool = False

    @classmethod
    def of(cls, fields: Mapping) -> About:
        """The inverse of `config`."""
        card, source = fields.get("card"), fields.get("source")
        return cls(card and Card.of(card), source and Source.of(source), fields.get("tuned", False))

    def config(self) -> dict:
        """Its fields as JSON."""
        card, source = self.card and asdict(self.card), self.source and self.source.config()
        return {"card": card, "source": source, "tuned": self.tuned}

    @staticmethod
    def field(name: str) -> Any:
        """A property of a model whose layer `root` has this record as its `about`."""

        def change(model: Any, value: Any) -> None:
            setattr(model.root.about, name, value)

        return property(lambda model: getattr(model.root.about, name), change)


def _published():
    yield Card(BUNDLED, f"{BUNDLED}.npz", "R14x0.5", 1000, "glyph1k", "Glyph-1k", 64, antialias=True)
    for family, upstream, classes, labels, activation in (
        ("S", "ImageNet-1k", 1000, "ilsvrc2012", "softmax"),
        ("M", "ImageNet-21k", 21843, "imagenet21k", "sigmoid"),
    ):
        for architecture in ARCHITECTURES:
            name = f"BiT-{family}-{architecture}"
            yield Card(name, f"{name}.npz", architecture, classes, labels, upstream, activation=activation)
    for architecture, top1 in ARCHITECTURES.items():
        name, upstream = f"BiT-M-{architecture}-ILSVRC2012", "ImageNet-21k, then ImageNet-1k"
        yield Card(name, f"{name}.npz", architecture, 1000, "ilsvrc2012", upstream, top1=top1)
    student, teacher = "ImageNet-1k, distilled from R152x2", "ImageNet-21k, then ImageNet-1k (a teacher)"
    for name, upstream, resolution, short_side, top1 in (
        ("R50x1_224", student, 224, 256, "82.8"),
        ("R50x1_160", student, 160, 184, "80.5"),
        ("R152x2_T_224", teacher, 224, 256, "83.0"),
        ("R152x2_T_384", teacher, 384, None, "84.3"),
    ):
        network, about = name.split("_")[0], (upstream, resolution, short_side)
        yield Card(name, f"distill/{name}.npz", network, 1000, "ilsvrc2012", *about, top1=top1)
    for task in ("flowers", "pet", "food", "sun"):
        name = f"R152x2_T_{task}128"
        trained_on = f"ImageNet-21k, then {task} (a teacher)"
        yield Card(name, f"distill/{name}.npz", "R152x2", None, None, trained_on, 128, 160)
    for architecture, run, task in itertools.product(VTAB_ARCHITECTURES, range(3), VTAB_TASKS):
        name = f"BiT-M-{architecture}-run{run}-{task}"
        trained_on = f"ImageNet-21k, then {task} (VTAB-1k)"
        small = task in ("cifar100", "eurosat", "svhn", "dsprites-orientation", "dsprites-xpos")
        resolution = 128 if small else 480 if architecture == "R152x4" else 384  # the paper's
        yield Card(name, f"vtab/{name}.npz", architecture, None, None, trained_on, resolution)


@functools.cache
def _cards() -> dict[str, Card]:
    return {card.name: card for card in _published()}


@functools.cache
def _hub() -> dict[str, tuple[str, str, tuple[int, int]]]:
    """Every handle of TensorFlow Hub -> the checkpoint, what came out, and the range of what went in."""
    found: dict[str, tuple[str, str, tuple[int, int]]] = {}
    for family, network in itertools.product("SM", ("R50x1", "R50x3", "R101x1", "R101x3", "R152x4")):
        name, handle = f"BiT-{family}-{network}", f"google/bit/{family}-{network}".lower()
        tuned = name + ("-ILSVRC2012" if family == "M" else "")
        found[f"{handle}/1"] = name, "features", (0, 1)
        found[f"{handle}/ilsvrc2012_classification/1"] = tuned, "logits", (0, 1)
        if family == "M":
            found[f"{handle}/imagenet21k_classification/1"] = name, "logits", (0, 1)
    for name in ("R152x2_T_224", "R152x2_T_384", "R50x1_224", "R50x1_160"):
        size, network = name[-3:], name.partition("_")[0].removeprefix("R")
        handle = f"sayakpaul/{'bit' if '_T_' in name else 'distill_bit'}_{{}}{network}"
        found[f"{handle.format('resnet')}_{size}_classification/1"] = name, "logits", (-1, 1)
        found[f"{handle.format('r')}_{size}_feature_extraction/1"] = name, "features", (-1, 1)
    return found


@functools.cache
def _elsewhere() -> dict[str, str]:
    """Names of the same weights in timm, of today and of before 0.9, and in transformers -> checkpoints."""
    found = {
        "google/bit-50": "BiT-M-R50x1-ILSVRC2012",
        "resnetv2_50x1_bit.goog_distilled_in1k": "R50x1_224",
        "resnetv2_50x1_bit_distilled": "R50x1_224",
    }
    for architecture in ARCHITECTURES:
        timm = f"resnetv2_{architecture[1:]}_bit"
        found[f"{timm}.goog_in21k"] = found[f"{timm}m_in21k"] = f"BiT-M-{architecture}"
        found[f"{timm}.goog_in21k_ft_in1k"] = found[f"{timm}m"] = f"BiT-M-{architecture}-ILSVRC2012"
    for size, end in ((224, ""), (384, "_384")):
        for kind in (".goog_teacher_in21k_ft_in1k", "_teacher"):
            found[f"resnetv2_152x2_bit{kind}{end}"] = f"R152x2_T_{size}"
    return found


def names() -> list[str]:
    """Every name of a checkpoint that `card` and `bitlib.load` understand, the bundled model first."""
    return list(_cards())


def handles(collection: str | None = None) -> list[str]:
    """Every hub handle that `card` and `bitlib.load` understand, or those of one of `COLLECTIONS`.

    Raises: ValueError, if there is no such collection.
    """
    if collection is None:
        return list(_hub())
    if not is_collection(collection):
        raise ValueError(f"collection: expected one of {', '.join(COLLECTIONS)}, received {collection!r}")
    return [handle for handle in _hub() if handle.startswith(COLLECTIONS[_unversioned(collection)])]


def is_collection(name: str) -> bool:
    """True for the name of one of `COLLECTIONS`, with version and host or without."""
    return _unversioned(name) in COLLECTIONS


@functools.cache
def _spellings() -> dict[str, str]:
    """Names in lower case, of files and of the paper (`M-R50x1`) -> names."""
    found = {name.lower(): name for name in _cards()}
    return {name.removeprefix("bit-"): known for name, known in found.items()} | found


def _nearest(bare: str) -> list[str]:
    """The names that a misspelt one may have meant."""
    near = difflib.get_close_matches(f"{_unversioned(bare)}/1", [*_hub(), *COLLECTIONS], 5, 0.6)
    if "/" in bare and near:
        return near
    wanted = bare.rpartition("/")[2].removesuffix(".npz")
    if wanted.startswith("resnetv2_"):
        return difflib.get_close_matches(wanted, _elsewhere(), 5, 0.5)
    word = wanted.rpartition("-")[2]  # of a task (`flowers`), which difflib finds too short to be near
    tasks = [name for name in _spellings() if name.startswith(wanted.removesuffix(word)) and word in name]
    near = tasks[:5] if "-run" in wanted else []
    near += difflib.get_close_matches(wanted, _spellings(), 5, 0.5)
    return list(dict.fromkeys(_spellings()[name] for name in near))


def _unknown(name: object, argument: str) -> ValueError:
    """The error for what is not the name of one published model."""
    if not isinstance(name, (str, os.PathLike)) or not str(name).strip():
        expected = "a name such as 'BiT-M-R50x1' (bitlib.zoo.names() lists all), a hub handle, or a path to"
        shown = " ".join(repr(name).split())[:80]
        return ValueError(f"{argument}: expected {expected} a file ending in {_SUFFIXES}; received {shown}")
    name = str(name)
    if is_collection(name):
        members = ", ".join(handles(name))
        return ValueError(f"{argument}: {name!r} is a collection; choose one of its members: {members}")
    near, shown = _nearest(_bare(name)[:200]), repr(name if len(name) <= 80 else f"{name[:80]}…")
    advice = f"nearest: {', '.join(near)}" if near else "bitlib.zoo.names() lists them all"
    if "://" in _bare(name):
        advice = f"of addresses, those below {BASE_URL} are known, and those of the hub; {advice}"
    elif argument == "source":
        shown += f", and no such file is in {os.getcwd()}"
    return ValueError(f"{argument}: no published BiT is called {shown}; {advice}")


def _bare(name: str | os.PathLike) -> str:
    """A name or handle in lower case, without scheme, host and query; one of Kaggle as the hub had it."""
    path = _HOSTS.sub("", str(name).strip()).lower().partition("?")[0].strip("/")
    path = re.sub(r"^(hf[-_]hub:)?timm/", "", path)
    # Kaggle: owner/model/framework/variation, a hyphen for each underscore and slash of the handle.
    path = re.sub(r"/(frameworks|variations|versions)(?=/)", "", path)
    kaggle = re.fullmatch(r"(google/bit|(?:sp)?sayakpaul/[\w-]+)/tensorflow2/([\w-]+)(/\d+)?", path)
    if not kaggle:
        return path
    owner, variation, version = kaggle.groups(default="")
    if owner == "google/bit":
        model, *kind = re.split(r"-(?=ilsvrc2012-|imagenet21k-)", variation)
        return "/".join([owner, model, *(part.replace("-", "_") for part in kind)]) + version
    return f"sayakpaul/{variation.replace('-', '_')}{version}"


def _unversioned(name: str) -> str:
    return re.sub(r"/\d+$", "", _bare(name))


def card(name: str | os.PathLike) -> Card:
    """The card of a model.

    Args:
        name: as in `names()`, in any case, with or without folder, `BASE_URL` and `.npz`; the paper's short
            name (`M-R50x1`); a handle of TensorFlow Hub or Kaggle, with or without host and version; or the
            name in timm (`resnetv2_50x1_bit.goog_in21k`) or transformers (`google/bit-50`). The card of a
            handle has the input range and the output of that module.

    Raises: ValueError, which lists the nearest names, or the members of a collection.
    """
    if found := _find(name):
        return found
    raise _unknown(name, "name")


def _find(name: str | os.PathLike) -> Card | None:
    if not isinstance(name, (str, os.PathLike)):
        return None
    bare = _bare(name)
    # Any version is taken for the only one; the distilled models have two spellings.
    handle = f"{_unversioned(bare)}/1"
    known = re.sub(r"(?<=distill_bit_)r50x1(_\d+_classification)", r"resnet50x1\1", handle)
    if known in _hub():
        checkpoint, output, input_range = _hub()[known]
        return replace(_cards()[checkpoint], handle=handle, output=output, input_range=input_range)
    if "://" in bare:
        return None
    if bare in _elsewhere():
        return _cards()[_elsewhere()[bare]]
    wanted = bare.rpartition("/")[2].removesuffix(".npz")
    called = _spellings().get(wanted)
    # The paper's name is the end of a handle too: behind a misspelt owner, which was meant is not clear.
    of_a_file = called and wanted == called.lower() and not bare.startswith(("google/bit/", "sayakpaul/"))
    return _cards()[called] if called and ("/" not in bare or of_a_file) else None


def path_of(source: str | os.PathLike) -> Path | None:
    """The file that a source is, which need not be there; None if it is the name of a published model.

    A file that is there comes before a name, and a `Path` is always a file.

    Raises: ValueError, if it is neither, a folder, or a file of a kind that is not read.
    """
    if not isinstance(source, (str, os.PathLike)) or not str(source).strip():
        raise _unknown(source, "source")
    text, place = str(source), os.path.expanduser(source)
    is_path = isinstance(source, os.PathLike) or os.path.isfile(place)
    called = None if is_path else _find(text)
    if called:  # behind any folder but its published one, a model's name is that of a file of one's own
        bare = _bare(text)
        published = not text.startswith("/") and bare.removesuffix(".npz") == called.file[:-4].lower()
        if "/" not in text or called.handle or bare in _elsewhere() or published:
            return None
    for suffixes, reason in FOREIGN.items():
        if Path(text).suffix.lower() in suffixes.split():
            raise CheckpointError(f"source: {text}: expected a file ending in {_SUFFIXES}; this is {reason}")
    is_path = is_path or os.path.exists(place) or text.lower().endswith(SUFFIXES)
    if "://" in text or not (called or is_path):
        raise _unknown(text, "source")
    path = expanded(source, "source")
    if (path / "saved_model.pb").is_file():
        advice = "`tf.saved_model.load` loads it, and `bitlib.load` what it was exported from"
        raise CheckpointError(f"{path}: a SavedModel, an export without weights to read; {advice}")
    if path.is_dir():
        raise CheckpointError(f"{path}: a folder, expected a BiT checkpoint ({_SUFFIXES})")
    return path


def card_of(source: str | os.PathLike) -> Card:
    """The card of a name, a handle, or a file: the published one of its name, else a plain one.

    Raises: as `path_of`.
    """
    path = path_of(source)
    return card(str(source)) if path is None else _find(path.name) or own_card(path.stem, path.name)


def own_card(name: str, file: str = "") -> Card:
    """The card of a model that was not published: no class list, images resized straight to 224 pixels."""
    return Card(name, file, "as in the file", None, None, "unknown data", 224, antialias=True)


def table(*words: str) -> Table:
    """The cards whose name, network, data or handles hold all of the words (`R50x1`, `384`, …), in any case.

    The 285 that were fine-tuned on VTAB are listed only if a word asks for them (`table("vtab", "svhn")`).
    """
    wanted, found = [word.lower() for word in words], Table()
    with_vtab = not {"vtab", *VTAB_TASKS}.isdisjoint(wanted)
    for card in _cards().values():
        texts = (card.name, card.file, card.trained_on, card.labels, card.resolution, *card.handles.values())
        text = " ".join(map(str, texts)).lower()
        if all(word in text for word in wanted) and (with_vtab or not card.file.startswith("vtab/")):
            found.append(card)
    return found
