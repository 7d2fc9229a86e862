"""A `.npz` and its arrays: opened, checked and read one at a time; written back.

A published BiT is a zip with one `.npy` for each array. Everything that can be wrong with such a file is
found here, before a model is touched, and reported with the name of the array.
"""

from __future__ import annotations

import json
import os
import re
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from bitlib.layout import CheckpointError, check, infer, layout
from bitlib.writing import replacing

_NUMBERED = re.compile(r"\b(standardized_conv2d|group_norm|conv2d)_\d+(?=/)")


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
            with _errors_of(name):
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

    def __contains__(self, name: object) -> bool:
        return name in self.shapes  # Mapping's own would read the array to find out

    def __getitem__(self, name: str) -> np.ndarray:
        """One array: float32, in the machine's byte order, all values finite."""
        with _errors_of(name), self._file.open(self._members[name]) as stream:
            array = np.lib.format.read_array(stream, allow_pickle=False)
            stream.read(1)  # past the end, so that the checksum of the last bytes is compared too
        array = np.ascontiguousarray(array, dtype=np.float32)
        require_finite(name, array)
        return array


@contextmanager
def _errors_of(name: str) -> Iterator[None]:
    """Turn whatever a damaged zip member raises into one error that names its array."""
    try:
        yield
    except CheckpointError:
        raise
    except (zipfile.BadZipFile, zlib.error, EOFError, ValueError, NotImplementedError, RuntimeError) as error:
        raise CheckpointError(f"{name}: corrupt or truncated ({error})") from error


def require_finite(name: str, array: np.ndarray) -> None:
    """Raise `CheckpointError` if any value is NaN or infinite."""
    if not np.isfinite(array).all():
        count = int((~np.isfinite(array)).sum())
        raise CheckpointError(f"{name}: {count} of {array.size} values are NaN or infinite, expected none")


def existing(path: str | os.PathLike) -> Path:
    """The path as a `Path`. Raises `FileNotFoundError` if there is nothing."""
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file, expected a BiT checkpoint (.npz)")
    return path


@contextmanager
def opened(path: str | os.PathLike) -> Iterator[Archive]:
    """Open a `.npz` as a mapping that reads one array at a time. Raises as `read`, in the body too."""
    path = existing(path)
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
            archive = zipfile.ZipFile(path)
        except (zipfile.BadZipFile, OverflowError, ValueError) as error:
            raise CheckpointError(f"truncated or corrupt zip ({error}); download it again") from error
        with archive:
            yield Archive(archive)
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


NOTE = "bitlib"
"""The key of the JSON in a zip's comment, `{"bitlib": {...}}`, under which `write` puts its note."""


def read_note(path: str | os.PathLike) -> dict:
    """The note that `write` left in a `.npz`; empty if there is none, or the file cannot be opened.

    Raises:
        CheckpointError: there is one, and it is damaged.
    """
    try:
        with zipfile.ZipFile(path) as file:
            comment = file.comment
    except (OSError, zipfile.BadZipFile, OverflowError, ValueError):
        return {}  # `opened` says what is wrong with it
    if not comment.startswith(b'{"%s":' % NOTE.encode()):
        return {}
    try:
        note = json.loads(comment)[NOTE]
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: the note in the zip's comment is damaged ({error})") from error
    if not isinstance(note, dict):
        raise CheckpointError(f"{path}: the note in the zip's comment is damaged (not a dictionary)")
    return note


def write(path: str | os.PathLike, arrays: Mapping, note: Mapping | None = None) -> Path:
    """Write arrays as an uncompressed `.npz`, the same bytes each time.

    Args:
        path: where to; replaced only once the new file is complete.
        arrays: by name; whatever NumPy can convert, one after the other.
        note: what `read_note` will give back: JSON that fits into the comment of a zip, 65535 bytes. One
            that does not fit loses its `class_names`.
    """
    path = Path(path)
    comment = json.dumps({NOTE: note}).encode() if note else b""
    if note and len(comment) > zipfile.ZIP_MAX_COMMENT:
        comment = json.dumps({NOTE: {k: v for k, v in note.items() if k != "class_names"}}).encode()
    with replacing(path) as temporary:
        with temporary.open("wb") as file:
            np.savez(file, **arrays)
        if comment:
            with zipfile.ZipFile(temporary, "a") as archive:
                archive.comment = comment
    return path
