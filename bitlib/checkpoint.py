"""From a name or a path to checked arrays, to a model, and back to a file.

A published BiT is a `.npz`: a zip of one `.npy` an array. Everything that can be wrong with one is
found here, before a model is touched, and told with the name of the array. Arrays are read one at a
time, so loading needs little more memory than the model itself.
"""

from __future__ import annotations

import os
import re
import shutil
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np

from bitlib import zoo
from bitlib._files import bundled, cache_folder, replacing

HEAD = ("resnet/head/conv2d/kernel", "resnet/head/conv2d/bias")
ROOT = "resnet/root_block/standardized_conv2d/kernel"

_UNIT = re.compile(r"resnet/block(\d)/unit(\d\d)/")
_NUMBERED = re.compile(r"\b(standardized_conv2d|group_norm|conv2d)_\d+(?=/)")


class CheckpointError(ValueError):
    """A checkpoint cannot be used; its message names the file, the array, what was found and expected."""


class Architecture(NamedTuple):
    """What the arrays of a checkpoint say of its network; the arguments of `bitlib.model.BiT`."""

    units: tuple[int, int, int, int]
    width: float
    num_classes: int | None


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

    The width is the one that most of the telling arrays agree on, so that a single wrong array is
    found out by `check` instead of turning all the others wrong.

    Raises:
        CheckpointError: no array tells the width.
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
    num_classes = None
    for name in HEAD:
        num_classes = num_classes or (shapes[name][-1] if shapes.get(name) else None)
    return Architecture(tuple(units), int(width) if width == int(width) else width, num_classes)


def check(shapes: Mapping[str, tuple[int, ...]], expected: Mapping[str, tuple[int, ...]]) -> None:
    """Compare names and shapes with those expected.

    Raises:
        CheckpointError: arrays are missing, unexpected or of another shape; all are counted, five named.
    """
    problems = [
        f"{name}: missing, expected shape {expected[name]}" for name in expected if name not in shapes
    ]
    problems += [
        f"{name}: unexpected, a BiT of this size has no such array" for name in shapes if name not in expected
    ]
    problems += [
        f"{name}: expected shape {expected[name]}, found {shapes[name]}"
        for name in expected
        if name in shapes and tuple(shapes[name]) != expected[name]
    ]
    if problems:
        more = f"; and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise CheckpointError("; ".join(problems[:5]) + more)


class Archive(Mapping):
    """The arrays of an open `.npz` by name, each read from disk and checked when asked for.

    Names, shapes and dtypes of all of them have been checked on opening.
    """

    def __init__(self, file: zipfile.ZipFile):
        self._file = file
        self._members: dict[str, zipfile.ZipInfo] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        for member in file.infolist():
            if not member.filename.endswith(".npy"):
                raise CheckpointError(f"{member.filename}: unexpected, not an array (.npy)")
            name = _NUMBERED.sub(r"\1", member.filename.removesuffix(".npy"))
            if name in self._members:
                raise CheckpointError(
                    f"{name}: duplicate, found as {self._members[name].filename} and {member.filename}"
                )
            with _told_of(name):
                self.shapes[name] = self._read_header(name, member)
            self._members[name] = member
        if not self._members:
            raise CheckpointError("the archive is empty, expected the arrays of a BiT")
        self.architecture = infer(self.shapes)
        check(self.shapes, layout(self.architecture))

    def _read_header(self, name: str, member: zipfile.ZipInfo) -> tuple[int, ...]:
        with self._file.open(member) as stream:
            version = np.lib.format.read_magic(stream)
            read = {
                (1, 0): np.lib.format.read_array_header_1_0,
                (2, 0): np.lib.format.read_array_header_2_0,
            }.get(version)
            if read is None:
                raise CheckpointError(f"{name}: .npy version {version}, expected (1, 0) or (2, 0)")
            shape, _, dtype = read(stream)
            header = stream.tell()
        if dtype.hasobject:
            raise CheckpointError(
                f"{name}: a pickled array (dtype object), expected float32; never unpickled here"
            )
        if dtype.newbyteorder("=") != np.float32:
            raise CheckpointError(f"{name}: expected dtype float32, found {dtype}")
        stored, declared = member.file_size - header, dtype.itemsize * int(np.prod(shape, dtype=object))
        if stored != declared:
            raise CheckpointError(f"{name}: {shape} float32 takes {declared} bytes, found {stored}")
        return shape

    def __iter__(self) -> Iterator[str]:
        return iter(layout(self.architecture))

    def __len__(self) -> int:
        return len(self.shapes)

    def __contains__(self, name) -> bool:
        return name in self.shapes  # Mapping's own would read the array to find out

    def __getitem__(self, name: str) -> np.ndarray:
        """One array: float32, in the machine's byte order, all values finite."""
        with _told_of(name), self._file.open(self._members[name]) as stream:
            array = np.lib.format.read_array(stream, allow_pickle=False)
            stream.read(1)  # past the end, so that the checksum of the last bytes is compared too
        array = np.ascontiguousarray(array, dtype=np.float32)
        _require_finite(name, array)
        return array


@contextmanager
def _told_of(name: str) -> Iterator[None]:
    """Turn whatever a damaged zip member raises into one error that names its array."""
    try:
        yield
    except CheckpointError:
        raise
    except (zipfile.BadZipFile, zlib.error, EOFError, ValueError, NotImplementedError, RuntimeError) as error:
        raise CheckpointError(f"{name}: corrupt or truncated ({error})") from error


def _require_finite(name: str, array: np.ndarray) -> None:
    if not np.isfinite(array).all():
        count = int((~np.isfinite(array)).sum())
        raise CheckpointError(f"{name}: {count} of {array.size} values are NaN or infinite, expected none")


def _existing(path: str | os.PathLike) -> Path:
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file, expected a BiT checkpoint (.npz)")
    return path


@contextmanager
def opened(path: str | os.PathLike) -> Iterator[Archive]:
    """Open a `.npz` as a mapping that reads one array at a time. Raises as `read`, in the body too."""
    path = _existing(path)
    if path.is_dir():
        raise CheckpointError(f"{path}: a folder, expected a BiT checkpoint (.npz)")
    try:
        if path.stat().st_size == 0:
            raise CheckpointError("an empty file, expected the arrays of a BiT; download it again")
        with path.open("rb") as file:
            start = file.read(4)
        if start[:2] != b"PK":
            kind = "a single array (.npy)" if start == b"\x93NUM" else f"it starts with {start!r}"
            raise CheckpointError(f"not a .npz (zip) file: {kind}")
        try:
            file = zipfile.ZipFile(path)
        except (zipfile.BadZipFile, OverflowError, ValueError) as error:
            raise CheckpointError(f"truncated or corrupt zip ({error}); download it again") from error
        with file:
            yield Archive(file)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error


def read(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Read a checkpoint, checking everything about it.

    Args:
        path: a `.npz` in the published layout. Numbered names (`standardized_conv2d_17/kernel`) are
            normalised. Arrays are never unpickled.

    Returns:
        The arrays by name, float32, in the order of the network.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: not a zip, truncated, corrupt or empty; or an array is missing, unexpected,
            duplicate, pickled, of another shape or dtype, or holds NaN or infinity.
    """
    with opened(path) as archive:
        return dict(archive)


def shapes(path: str | os.PathLike) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a checkpoint's arrays, in the order of the network, without reading the data.

    Raises: as `read`, but for what only the data can tell.
    """
    with opened(path) as archive:
        return layout(archive.architecture)


def array_name(variable) -> str:
    """The name in a `.npz` of a variable of a `bitlib.model.BiT`: its path, under `resnet`."""
    return "resnet/" + variable.path.partition("/")[2]


def assign(model, arrays: Mapping[str, np.ndarray]) -> None:
    """Set every weight of a model from arrays of the same names, or none at all.

    Raises:
        CheckpointError: arrays are missing, unexpected, of another shape or not finite; the model is
            then as it was.
    """
    expected = {array_name(variable): tuple(variable.shape) for variable in model.variables}
    check({name: np.shape(array) for name, array in arrays.items()}, expected)
    for name, array in arrays.items():
        _require_finite(name, array)
    for variable in model.variables:
        variable.assign(arrays[array_name(variable)])


def load(source: str | os.PathLike, head: str | int | None = "keep", dtype=None):
    """Load a checkpoint into a new Keras model.

    Args:
        source: a name of `bitlib.zoo.names()`, an old hub handle, or a path to a `.npz`.
        head: `"keep"` for the checkpoint's own classifier (of the handle of a feature extractor: for
            none), None for pooled features, or a number of classes for a new head that starts at
            zero (BiT-HyperRule, section 3.3).
        dtype: a Keras dtype policy such as `"mixed_bfloat16"`; Keras' own default if None.

    Returns:
        A `bitlib.model.BiT`: `[N, H, W, 3]` float in [-1, 1] -> `[N, classes]` logits or
        `[N, features]`.

    Raises:
        ValueError: the name is unknown, or `head` is none of the above.
        FileNotFoundError: the path does not exist.
        CheckpointError: as `read`; or `head="keep"` and the checkpoint has no head.
    """
    if (
        head != "keep"
        and head is not None
        and (isinstance(head, (bool, str)) or int(head) != head or head < 1)
    ):
        raise ValueError(f"head: expected 'keep', None or a number of classes, received {head!r}")
    path = resolve(source)
    from bitlib.model import BiT

    with opened(path) as archive:
        if head == "keep" and zoo.card_of(source).output == "features":
            head = None
        units, width, num_classes = archive.architecture
        if head == "keep" and num_classes is None:
            raise CheckpointError(f"{HEAD[0]}: missing; to load pooled features pass head=None")
        num_classes = num_classes if head == "keep" else head
        model = BiT(units, width, num_classes, kernel_initializer="zeros", dtype=dtype)
        for variable in model.variables:
            name = array_name(variable)
            if name not in HEAD or head == "keep":
                variable.assign(archive[name])
    model.origin = str(source), str(path)
    return model


def save(model, path: str | os.PathLike) -> Path:
    """Write a model's weights as a `.npz` in the published layout.

    What `load` reads back is the same bit for bit, and so is the file each time it is written. JAX
    and PyTorch code that reads the published files reads this one.

    Args:
        model: a `bitlib.model.BiT`.
        path: where to; replaced only once the new file is complete.
    """
    path = Path(path)
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **{array_name(variable): variable for variable in model.variables})
    return path


def resolve(source: str | os.PathLike) -> Path:
    """The file of a path, or of a model's name or hub handle, which is downloaded if need be.

    Raises:
        FileNotFoundError: it reads like a path (it ends in `.npz` or is a `Path`) and is not there.
        ValueError: no published BiT has that name.
        ConnectionError, OSError: as `fetch`.
    """
    if isinstance(source, os.PathLike) or str(source).endswith(".npz") or Path(source).is_file():
        return _existing(Path(source).expanduser())
    return fetch(source)


def fetch(name: str) -> Path:
    """The file of a published model: bundled, else cached, else from the mirror or the published address.

    What comes over the network is compared with the server's length and hash, and kept in the cache: the
    folder `BITLIB_CACHE`, by default the user's own. Its SHA-256 is noted beside it and compared at
    every later use. `BITLIB_MIRROR`, a folder or a base URL laid out like the published one, is asked
    instead of the published address. `BITLIB_OFFLINE=1` never touches the network.

    Raises:
        ValueError: no published BiT has that name.
        ConnectionError: it cannot be had, or is not what it should be; nothing is left in the cache.
        OSError: it cannot be written: the cache is read-only, the disk is full.
    """
    card = zoo.card(name)
    if card.url is None:
        return bundled(card.file)
    return fetch_file(card.file)


def fetch_file(file: str) -> Path:
    """As `fetch`, for any file below the published address (`ilsvrc2012_wordnet_lemmas.txt`)."""
    from bitlib import download

    cached = cache_folder() / file
    mirror = os.environ.get("BITLIB_MIRROR") or zoo.BASE_URL
    is_folder = "://" not in mirror
    mirrored = Path(mirror).expanduser() / file if is_folder else None
    for path in filter(None, (cached, mirrored)):
        if path.is_file():
            download.verify(path)
            return path
    by_hand = f"put the file at {cached}, or name a folder that holds {file} in BITLIB_MIRROR"
    if is_folder:
        raise ConnectionError(f"{file}: not in BITLIB_MIRROR ({mirror}); put it there, or unset the variable")
    if download.offline():
        raise ConnectionError(
            f"{file}: not on this machine, and BITLIB_OFFLINE forbids to download it; unset it, or {by_hand}"
        )
    return download.download(mirror.rstrip("/") + "/" + file, cached)


def prefetch(names: Iterable[str], folder: str | os.PathLike) -> list[Path]:
    """Copy models and their class lists into a folder that then serves others as `BITLIB_MIRROR`.

    Args:
        names: names of `bitlib.zoo.names()`, or hub handles.
        folder: created if need be; files keep their published sub-folders.

    Returns:
        The path of each model's copy.

    Raises: as `fetch`.
    """
    from bitlib import download, labels

    def copied(source: Path, file: str) -> Path:
        copy = Path(folder).expanduser() / file
        copy.parent.mkdir(parents=True, exist_ok=True)
        with replacing(copy) as temporary:
            shutil.copyfile(source, temporary)
        download.verify(copy)
        return copy

    cards = [zoo.card(name) for name in ([names] if isinstance(names, str) else names)]
    lists = {labels.FILES[card.labels] for card in cards if card.labels and card.url}
    for file in sorted(lists):
        copied(fetch_file(file), file)
    return [copied(fetch(card.name), card.file) for card in cards]
