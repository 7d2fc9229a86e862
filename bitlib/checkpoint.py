"""From a source (a name, a hub handle or a path) to a model, and from a model back to a file.

A source is looked up once, by `find`. What it finds stays with the model as `model.source`: the card, the
file, and the file's hash. `model.card` describes the model as it is now, with its own head.
"""

from __future__ import annotations

import os
import shutil
import unicodedata
import zlib
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bitlib import zoo
from bitlib.files import archive, fetching
from bitlib.files.archive import Archive, Arrays
from bitlib.files.fetching import fetch_file
from bitlib.files.layout import HEAD, ROOT, SUFFIXES, Architecture, CheckpointError, check, infer, layout
from bitlib.files.writing import bundled, expanded, replacing, verify
from bitlib.zoo import Source

if TYPE_CHECKING:
    import keras

    from bitlib.model import BiT


def find(source: str | os.PathLike | Source) -> Source:
    """Look up a source, which `bitlib.zoo.path_of` tells to be a file or a name.

    Args:
        source: a name of `bitlib.zoo.names()`, a hub handle, a published file's name or address, or a path as
            `read` takes it; what is not on this machine is downloaded. A `Source` is returned as it is.

    Raises:
        FileNotFoundError: it reads like a path (by its suffix, or as a `Path`) and no such file is there.
        ValueError: no published BiT has that name, or no file can have it; as `bitlib.zoo.path_of`.
        ConnectionError, OSError: as `bitlib.files.fetching.fetch_file`.
    """
    if isinstance(source, Source):
        return source
    path = zoo.path_of(source)
    if path is None:
        card = zoo.card(source)
        return Source(card, *_fetched(card))
    card = zoo.card_of(path)
    if not path.is_file():
        expected = f"expected one ending in {', '.join(SUFFIXES)}"
        hint = f"; the published one is loaded by its name, {card.name!r}" * (card.name in zoo.names())
        raise FileNotFoundError(f"source: {path.absolute()}: no such file, {expected}{hint}")
    return Source(replace(card, **_noted(path)), path)


def resolve(source: str | os.PathLike) -> Path:
    """The file of a source. Raises: as `find`."""
    return find(source).path


def fetch(name: str) -> Path:
    """The file of a published model: bundled, or as `files.fetching.fetch_file` has it; raises as `find`."""
    return _fetched(zoo.card(name))[0]


def _fetched(card: zoo.Card) -> tuple[Path, str | None]:
    """The weights of a card, and their SHA-256 in hexadecimal where it was compared."""
    return fetching.verified_file(card.file) if card.url else (bundled(card.file), None)


def prefetch(names: Iterable[str], folder: str | os.PathLike) -> list[Path]:
    """Copy models and their class lists into a folder that then serves others as `BITLIB_MIRROR`.

    Args:
        names: names of `bitlib.zoo.names()`, or hub handles.
        folder: created if need be; files keep their published sub-folders.

    Returns the path of each model's copy; raises as `fetch`.
    """

    def copied(source: Path, file: str) -> Path:
        copy = Path(folder).expanduser() / file
        copy.parent.mkdir(parents=True, exist_ok=True)
        with replacing(copy) as temporary:
            shutil.copyfile(source, temporary)
        verify(copy)
        return copy

    listed: Any = names if isinstance(names, Iterable) and not isinstance(names, str) else [names]
    cards = [zoo.card(name) for name in listed]
    for file in sorted({zoo.CLASS_LISTS[card.labels] for card in cards if card.labels and card.url}):
        copied(fetch_file(file), file)
    return [copied(_fetched(card)[0], card.file) for card in cards]


def assign(model: BiT, arrays: Mapping[str, np.ndarray]) -> None:
    """As `fill`, of every weight of a model."""
    fill(model.arrays, arrays)


def fill(variables: Mapping[str, keras.Variable], arrays: Mapping[str, np.ndarray]) -> None:
    """Set variables from arrays of the same names, or none at all.

    Raises:
        CheckpointError: arrays are missing, unexpected, of another shape or not finite.
    """
    if not isinstance(arrays, Mapping):
        raise TypeError(f"arrays: expected arrays by name, received {type(arrays).__name__}")
    expected = {name: tuple(variable.shape) for name, variable in variables.items()}
    check({name: np.shape(array) for name, array in arrays.items()}, expected)
    for name, array in arrays.items():
        archive.require_finite(name, array)
    for name, variable in variables.items():
        variable.assign(arrays[name])


MOST_CLASSES = 1_000_000  # of a new head; the largest published has 21843


class KerasFile(Arrays):
    """The arrays of a model in a `.keras` file, by their published names; and `card`, the model's."""

    def __init__(self, path: Path):
        import keras

        from bitlib.model import BiT

        try:
            model = keras.saving.load_model(path, compile=False)
        except Exception as error:  # Keras raises whatever it meets in a file
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise CheckpointError(f"{path}: not a .keras file that can be read ({reason[:200]})") from error
        if not isinstance(model, BiT):
            expected = "expected a bitlib.model.BiT; keras.saving.load_model loads any other"
            raise CheckpointError(f"{path}: holds a Keras model of class {type(model).__name__}, {expected}")
        self._model = model
        self.architecture = Architecture(model.units, model.width, model.num_classes)
        self.shapes = {name: tuple(variable.shape) for name, variable in model.arrays.items()}
        self.card = model.card
        _check_noted(path, _noteworthy(self.card))

    def __getitem__(self, name: str) -> np.ndarray:
        from keras import ops

        array = ops.convert_to_numpy(self._model.arrays[name])
        archive.require_finite(name, array)
        return array


@contextmanager
def opened(path: str | os.PathLike) -> Iterator[Arrays]:
    """Open a file as a mapping that gives one array at a time. Raises as `read`, in the body too."""
    file = archive.existing(path)
    if file.suffix == SUFFIXES[2] and file.is_file():
        yield KerasFile(file)
    else:
        with archive.opened(file) as arrays:
            yield arrays


def read(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Read a checkpoint, checked: the arrays by name, float32, in the order of the network.

    Args:
        path: a `.npz` in the published layout, a `.safetensors` with the names of timm or transformers, or a
            `.keras` of a `bitlib.model.BiT`. Numbered names (`standardized_conv2d_17/kernel`) are normalised.
            Arrays are never unpickled.

    Raises:
        FileNotFoundError: there is no such file.
        ImportError: it is a `.safetensors`, and that package is not installed.
        CheckpointError: not such a file, truncated, corrupt or empty; or an array is missing, unexpected,
            duplicate, pickled, of another shape or dtype, or holds NaN or infinity.
    """
    with opened(path) as arrays:
        return dict(arrays)


def shapes(path: str | os.PathLike) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a checkpoint's arrays, in the network's order; no data. Raises: as `read`."""
    with opened(path) as arrays:
        return layout(arrays.architecture)


NOTED = ("resolution", "short_side", "antialias", "activation", "labels", "class_names", "trained_on")
"""What `save` writes about a model beside its arrays: fields of its card, as JSON."""


def _noteworthy(card: zoo.Card | None) -> dict[str, Any]:
    """The fields of a card that `save` writes, where it has them."""
    return {name: value for name in NOTED if (value := getattr(card, name, None)) is not None}


def _is_text(value) -> bool:
    """Whether a value is text without control characters, which would command a terminal."""
    return isinstance(value, str) and not any(unicodedata.category(c) in ("Cc", "Cs") for c in value)


def _noted(path: Path) -> dict:
    """The fields of the card that a file written by `save` carries; none for any other file."""
    fields = archive.read_note(path)
    _check_noted(path, fields)
    return fields | ({"class_names": tuple(fields["class_names"])} if "class_names" in fields else {})


def _check_noted(path: Path, fields: Mapping) -> None:
    """Check what a file says of the model. Raises `CheckpointError` for what no card can have."""
    right = {
        "resolution": lambda side: type(side) is int and 32 <= side <= 10_000,
        "short_side": lambda side: type(side) is int and fields.get("resolution", 32) <= side <= 10_000,
        "antialias": lambda value: isinstance(value, bool),
        "activation": ("softmax", "sigmoid").__contains__,
        "labels": lambda value: isinstance(value, str) and value in zoo.CLASS_LISTS,
        "class_names": lambda names: isinstance(names, (list, tuple)) and names and all(map(_is_text, names)),
        "trained_on": _is_text,
    }
    for name, value in fields.items():
        if name not in right or not right[name](value):
            raise CheckpointError(f"{path}: the note about the model that it carries is damaged ({name})")


def load(
    source: str | os.PathLike | Source,
    head: str | int | Sequence[str] | None = "keep",
    dtype: str | keras.DTypePolicy | None = None,
) -> BiT:
    """Load a checkpoint into a new Keras model.

    Args:
        source: a name of `bitlib.zoo.names()`, a hub handle, a path, as `find` takes them.
        head: `"keep"` for the checkpoint's own classifier (of the handle of a feature extractor: for
            none); None for pooled features; or, for a new head that starts at zero (BiT-HyperRule,
            section 3.3), a number of classes or a list of their names.
        dtype: a Keras dtype policy such as `"mixed_bfloat16"`; Keras' own default if None.

    Returns:
        A `bitlib.model.BiT`: `[N, H, W, 3]` float in [-1, 1] -> `[N, classes]` logits or
        `[N, features]`. Its `source` says where the weights are from, its `card` what it is.

    Raises: as `find` and `read`; ValueError, if `head` is none of the above; CheckpointError, if it is
        `"keep"` and the checkpoint has none.
    """
    head, class_names = _checked_head(head)
    source = find(source)
    card = source.card
    if head == "keep" and card.output == "features":
        head = None
    from bitlib.model import BiT

    with opened(source.path) as arrays:
        card = getattr(arrays, "card", None) or card
        units, width, num_classes = arrays.architecture
        if head == "keep":
            if num_classes is None:
                raise CheckpointError(f"{HEAD[0]}: missing; to load pooled features pass head=None")
            if card.class_names and (named := len(card.class_names)) != num_classes:
                raise CheckpointError(f"{HEAD[1]}: {num_classes} classes, the file names {named}")
        else:
            num_classes = head if isinstance(head, int) else None
            own = {"num_classes": num_classes, "class_names": class_names, "labels": None, "top1": None}
            card = replace(card, **own, activation="softmax")  # until a training of several classes at once
        model = BiT(units, width, num_classes, kernel_initializer="zeros", dtype=dtype)
        for name, variable in model.arrays.items():
            if name not in HEAD or head == "keep":
                variable.assign(arrays[name])
    model.source, model.card = replace(source, fingerprint=fingerprint(model)), card
    return model


def check_model(model: Any) -> None:
    """Raise TypeError unless it is a `bitlib.model.BiT`."""
    from bitlib.model import BiT

    if not isinstance(model, BiT):
        raise TypeError(f"model: expected a bitlib.model.BiT, received {type(model).__name__}")


def fingerprint(model: keras.Model) -> int:
    """A number for the weights of a model, of some values of each array; any training changes it."""
    from keras import ops

    some = [ops.reshape(variable.value, (-1,))[:16] for variable in model.weights]
    return zlib.crc32(b"".join(np.asarray(ops.convert_to_numpy(v), "<f4").tobytes() for v in some))


def _checked_head(head: Any) -> tuple[str | int | None, tuple[str, ...] | None]:
    """`head` as "keep", None or a number of classes, and the names of the classes if it gave any."""
    if head is None or (isinstance(head, str) and head == "keep"):
        return head, None
    received = " ".join(repr(head).split())[:200]
    if np.isscalar(head) or getattr(head, "ndim", 1) == 0:
        number = np.asarray(head).dtype.kind in "iuf" and float(head).is_integer()
        if number and 1 <= head <= MOST_CLASSES:
            return int(head), None
    elif isinstance(head, Collection) and not isinstance(head, (Mapping, Set)):
        names = list(head) if getattr(head, "ndim", 1) == 1 else []
        twice = [name for name, count in Counter(map(str, names)).items() if count > 1]
        if names and all(map(_is_text, names)) and all(map(str.strip, map(str, names))) and not twice:
            return len(names), tuple(map(str, names))
        received = f"{twice[0]!r} more than once" if twice else received
    expected = "'keep', None, a number of classes or a list of their names (text, each once)"
    raise ValueError(f"head: expected {expected}, received {received}")


def save(model: BiT, path: str | os.PathLike) -> Path:
    """Write a model's weights as a `.npz` in the published layout, or as a `.safetensors` with timm's names.

    What `load` reads back is the same bit for bit, and so is the file each time it is written. Code that
    reads the published files reads this one: resolution and class names are where only `load` looks for them,
    in the comment of the zip or the metadata of the header.

    Args:
        model: a `bitlib.model.BiT`.
        path: where to; replaced only once the new file is complete. Its suffix says which; of another kind it
            is a ValueError.
    """
    check_model(model)
    path = expanded(path, "path")
    suffix = path.suffix.lower()
    if suffix and (suffix == SUFFIXES[2] or suffix in " ".join(zoo.FOREIGN).split()):
        raise ValueError(f"path: expected a file ending in {SUFFIXES[0]} or {SUFFIXES[1]}, received {path}")
    return archive.write(path, model.arrays, _noteworthy(model.card))
