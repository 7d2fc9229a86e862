"""Files of arrays, `.npz` and `.safetensors`: opened, checked and read one array at a time; written back.

A published BiT is a zip with one `.npy` for each array. A `.safetensors` has the names of timm or
transformers: a header of names, dtypes, shapes and places, then the numbers. Whatever is wrong with a file is
found here, before a model is touched, and reported with the name of the array.
"""

from __future__ import annotations

import io
import json
import math
import os
import re
import struct
import warnings
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from bitlib.files.layout import HEAD, ROOT, SUFFIXES, Architecture, CheckpointError, check, infer, layout
from bitlib.files.writing import replacing

_NUMBERED = re.compile(r"\b(standardized_conv2d|group_norm|conv2d)_\d+(?=/)")

_DIRECTORY = 1 << 20  # bytes that the directory of a zip may take: that of the largest BiT takes 60 kB
_HEADER = 10_000  # bytes of a `.npy` in which its header must end; NumPy writes 128
_DEFLATE = 1040  # larger than any ratio that deflate reaches: about 1032
_PLAUSIBLE = 20, 128 << 20  # times the file's bytes, and as many more: what all arrays take at most
_TORCH_HEADER = 4 << 20  # bytes that the header of a `.safetensors` may take: of the largest BiT, 100 kB
_TORCH_FLOATS = ("F16", "F32", "F64")

_TORCH = {
    "timm": ("stem.conv.weight", "stages.{}.blocks.{}", "norm", "head.fc"),
    "transformers": (
        "bit.embedder.convolution.weight", "bit.encoder.stages.{}.layers.{}", "bit.norm", "classifier.1",
    ),
}  # fmt: skip
"""By library, the names of the first kernel (which tells them apart), a unit, the last norm and the head."""


def require_finite(name: str, array: np.ndarray) -> None:
    """Raise `CheckpointError` if any value is NaN or infinite."""
    # Of an array that holds NaN, both are NaN; and neither needs memory.
    if not (np.isfinite(np.min(array)) and np.isfinite(np.max(array))):
        count = int((~np.isfinite(array)).sum())
        raise CheckpointError(f"{name}: {count} of {array.size} values are NaN or infinite, expected none")


class Arrays(Mapping):
    """The arrays of an open file by their published names, whose names and shapes are checked."""

    shapes: dict[str, tuple[int, ...]]
    architecture: Architecture
    note: bytes = b""

    def check(self) -> None:
        """Infer the architecture from the shapes. Raises `CheckpointError` unless they are those of a BiT."""
        self.architecture = infer(self.shapes)
        check(self.shapes, layout(self.architecture))

    def __iter__(self) -> Iterator[str]:
        return iter(layout(self.architecture))

    def __len__(self) -> int:
        return len(self.shapes)

    def __contains__(self, name: object) -> bool:
        return name in self.shapes  # Mapping's own would read the array to find out


class _Limited(io.BufferedReader):
    """A file that is not read in one large piece: zipfile asks for its whole directory only."""

    def read(self, size: int | None = -1) -> bytes:
        if size is not None and size > _DIRECTORY:
            raise zipfile.BadZipFile(f"a directory of {size} bytes, expected at most {_DIRECTORY}")
        return super().read(size)


class Archive(Arrays):
    """The arrays of an open `.npz`, each read when asked for; all but their values is checked on opening."""

    def __init__(self, file: zipfile.ZipFile):
        self._file, self.note = file, file.comment
        self._members: dict[str, zipfile.ZipInfo] = {}
        self.shapes = {}
        for member in file.infolist():
            if not member.filename.endswith(".npy"):
                raise CheckpointError(f"{member.filename}: unexpected, not an array (.npy)")
            name = _NUMBERED.sub(r"\1", member.filename.removesuffix(".npy"))
            if (other := self._members.get(name)) is not None:
                raise CheckpointError(f"{name}: duplicate, found as {other.filename} and {member.filename}")
            self._members[name] = member
        if not self._members:
            raise CheckpointError("the archive is empty, expected the arrays of a BiT")
        self._check_sizes()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # headers written by Python 2, and what is no header
            for name, member in self._members.items():
                with _errors_of(name):
                    self.shapes[name] = self._read_header(name, member)
        self.check()

    def _check_sizes(self) -> None:
        """Raise `CheckpointError` unless the file can hold what its directory declares."""
        following, stream = self._file.start_dir, self._file.fp
        assert stream is not None  # it is open
        by_place = sorted(self._members.items(), key=lambda item: item[1].header_offset, reverse=True)
        for name, member in by_place:
            method = member.compress_type
            if member.flag_bits & 0x2061:  # encrypted, in one of three ways, or a patch of another file
                raise CheckpointError(f"{name}: encrypted, expected plain data")
            if method not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise CheckpointError(
                    f"{name}: compression method {method}, expected stored (0) or deflated (8)"
                )
            with _errors_of(name):
                stream.seek(member.header_offset)
                name_length, extra_length = struct.unpack("<26x2H", stream.read(30))
                end = member.header_offset + 30 + name_length + extra_length + member.compress_size
                if end > following:
                    raise ValueError(f"its data end at byte {end}, but what follows begins at {following}")
                following = member.header_offset
                size, declared = member.compress_size, member.file_size
                if declared > _DEFLATE * size or (method == zipfile.ZIP_STORED and declared != size):
                    raise ValueError(f"{size} bytes in the file cannot hold the {declared} declared")
        size = os.fstat(stream.fileno()).st_size
        declared = sum(member.file_size for member in self._members.values())
        if declared > _PLAUSIBLE[0] * size + _PLAUSIBLE[1]:
            expected = "expected weights, which hardly compress; save them uncompressed"
            raise CheckpointError(f"a file of {size} bytes declares arrays of {declared}; {expected}")

    def _read_header(self, name: str, member: zipfile.ZipInfo) -> tuple[int, ...]:
        with self._file.open(member) as stream:
            start = io.BytesIO(stream.read(_HEADER))
        version = np.lib.format.read_magic(start)
        if version not in ((1, 0), (2, 0)):
            raise CheckpointError(f"{name}: .npy version {version}, expected (1, 0) or (2, 0)")
        read = getattr(np.lib.format, f"read_array_header_{version[0]}_0")
        shape, _, dtype = read(start)
        if dtype.newbyteorder("=") != np.float32:
            never = " (a pickled array, never unpickled)" if dtype.hasobject else ""
            raise CheckpointError(f"{name}: expected dtype float32, found {dtype}{never}")
        if not all(size > 0 for size in shape):
            raise CheckpointError(f"{name}: shape {shape}, expected positive sizes")
        stored, declared = member.file_size - start.tell(), dtype.itemsize * math.prod(shape)
        if stored != declared:
            raise CheckpointError(f"{name}: {shape} float32 takes {declared} bytes, found {stored}")
        return tuple(map(int, shape))

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
    except Exception as error:  # zipfile, zlib and NumPy's parser of headers raise some twenty kinds
        plain = isinstance(error, (zipfile.BadZipFile, zlib.error, ValueError))
        reason = error if plain else repr(error)
        raise CheckpointError(f"{name}: corrupt or truncated ({reason})") from error


@cache
def torch_names(library: str) -> dict[str, str]:
    """Published names and a library's, of a network larger than any: 99 units in each of four blocks."""
    root, unit, norm, head = _TORCH[library]
    names = {ROOT: root, HEAD[0]: f"{head}.weight", HEAD[1]: f"{head}.bias"}
    names |= {"resnet/group_norm/gamma": f"{norm}.weight", "resnet/group_norm/beta": f"{norm}.bias"}
    for block, number in product(range(4), range(99)):
        ours, theirs = f"resnet/block{block + 1}/unit{number + 1:02d}", unit.format(block, number)
        names[f"{ours}/a/proj/standardized_conv2d/kernel"] = f"{theirs}.downsample.conv.weight"
        for part, layer in zip("abc", "123", strict=True):
            names[f"{ours}/{part}/group_norm/gamma"] = f"{theirs}.norm{layer}.weight"
            names[f"{ours}/{part}/group_norm/beta"] = f"{theirs}.norm{layer}.bias"
            names[f"{ours}/{part}/standardized_conv2d/kernel"] = f"{theirs}.conv{layer}.weight"
    return names


class Tensors(Arrays):
    """The arrays of an open `.safetensors` by their published names, each read and checked when asked for."""

    def __init__(self, file: Any):
        self._file = file
        self.note = (file.metadata() or {}).get("bitlib", "").encode()
        library = next((library for library, (root, *_) in _TORCH.items() if root in file.keys()), None)  # noqa: SIM118
        if library is None:
            roots = " or ".join(root for root, *_ in _TORCH.values())
            raise CheckpointError(f"no array {roots}: no BiT of timm or transformers")
        published = {theirs: ours for ours, theirs in torch_names(library).items()}
        self._theirs, self.shapes = {}, {}
        for theirs in file.keys():  # noqa: SIM118
            ours, found = published.get(theirs, theirs), file.get_slice(theirs)
            dtype, shape = found.get_dtype(), tuple(found.get_shape())
            if dtype not in _TORCH_FLOATS:
                raise CheckpointError(f"{theirs}: expected one of {', '.join(_TORCH_FLOATS)}, found {dtype}")
            if ours.endswith("/kernel") and len(shape) in (2, 4):  # 2: a linear layer
                out, into, *size = shape
                shape = (*(size or (1, 1)), into, out)
            self._theirs[ours], self.shapes[ours] = theirs, shape
        self.check()

    def __getitem__(self, name: str) -> np.ndarray:
        """One array: float32, in the published shape, all values finite."""
        array = np.asarray(self._file.get_tensor(self._theirs[name]), np.float32)
        require_finite(self._theirs[name], array)
        if array.ndim == 2:
            array = array[..., None, None]
        return np.ascontiguousarray(array.transpose(2, 3, 1, 0)) if array.ndim == 4 else array


@contextmanager
def _safetensors(path: Path) -> Iterator[Tensors]:
    """Open a `.safetensors`. Raises `CheckpointError`, as `opened` but for the name of the file."""
    library = _library()
    with path.open("rb") as stream:
        size = int.from_bytes(stream.read(8), "little")
    if size > min(_TORCH_HEADER, path.stat().st_size):
        raise CheckpointError(f"a header of {size} bytes, expected at most {_TORCH_HEADER} within the file")
    try:
        with library.safe_open(path, framework="numpy") as file:
            yield Tensors(file)
    except CheckpointError:
        raise
    except (library.SafetensorError, OSError, ValueError, TypeError) as error:
        raise CheckpointError(f"corrupt or truncated ({error})") from error


def _library():
    try:
        import safetensors.numpy
    except ImportError:
        reason = "safetensors: the package is not installed; pip install 'bitlib[safetensors]' brings it"
        raise ImportError(reason) from None
    return safetensors


def existing(path: str | os.PathLike) -> Path:
    """The path as a `Path`. Raises `FileNotFoundError` if there is nothing."""
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file, expected a BiT checkpoint ({', '.join(SUFFIXES)})")
    return path


@contextmanager
def _zip(path: Path) -> Iterator[zipfile.ZipFile]:
    """Open a zip. Raises `CheckpointError` if it is none."""
    with _Limited(io.FileIO(path)) as stream:
        start = stream.read(4)
        if start[:2] != b"PK":
            kind = "a single array (.npy)" if start == b"\x93NUM" else f"it starts with {start!r}"
            raise CheckpointError(f"not a .npz (zip) file: {kind}")
        try:
            file = zipfile.ZipFile(stream)
        except Exception as error:  # as in _errors_of
            reason = str(error) or repr(error)
            raise CheckpointError(f"truncated or corrupt zip ({reason}); download it again") from error
        with file:
            yield file


@contextmanager
def opened(path: str | os.PathLike) -> Iterator[Arrays]:
    """Open a file as a mapping that reads one array at a time.

    Raises, in the body too:
        FileNotFoundError, CheckpointError: there is none; it is damaged, or not the arrays of a BiT.
        ImportError: it is a `.safetensors`, and that package is not installed.
    """
    path = existing(path)
    if path.is_dir():
        raise CheckpointError(f"{path}: a folder, expected a BiT checkpoint ({', '.join(SUFFIXES)})")
    try:
        if path.stat().st_size == 0:
            raise CheckpointError("an empty file, expected the arrays of a BiT; download it again")
        if path.suffix == SUFFIXES[1]:
            with _safetensors(path) as found:
                yield found
        else:
            with _zip(path) as file:
                yield Archive(file)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error


NOTE = "bitlib"
"""The key of a note, and of the JSON around it: a zip's comment, or a `.safetensors`' metadata."""


def read_note(path: str | os.PathLike) -> dict:
    """The note that `write` left in a file; empty if there is none, or the file cannot be opened.

    Raises:
        CheckpointError: there is one, and it is damaged.
    """
    try:
        with opened(path) as arrays:
            text = arrays.note
    except (OSError, CheckpointError):
        return {}  # whoever reads the arrays is told what is wrong with them
    if not text.startswith(b'{"%s":' % NOTE.encode()):
        return {}
    try:
        return {**json.loads(text)[NOTE]}
    except (ValueError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{path}: the note that it carries is damaged ({error})") from error


def write(path: str | os.PathLike, arrays: Mapping, note: Mapping | None = None) -> Path:
    """Write arrays as an uncompressed `.npz`, or as a `.safetensors` with timm's names.

    The same arrays give the same bytes each time.

    Args:
        path: where to; replaced only once the new file is complete. Its suffix says which.
        arrays: by name; whatever NumPy can convert, one after the other.
        note: JSON for `read_note`; one beyond 65535 bytes, a zip's comment, loses its `class_names`.
    """
    path = Path(path)
    comment = json.dumps({NOTE: note}) if note else ""
    if path.suffix == SUFFIXES[1]:
        return _write_safetensors(path, arrays, comment)
    if note and len(comment) > zipfile.ZIP_MAX_COMMENT:
        comment = json.dumps({NOTE: {k: v for k, v in note.items() if k != "class_names"}})
    with replacing(path) as temporary:
        with temporary.open("wb") as file:
            np.savez(file, **arrays)
        if comment:
            with zipfile.ZipFile(temporary, "a") as archive:
                archive.comment = comment.encode()
    return path


def _write_safetensors(path: Path, arrays: Mapping, note: str) -> Path:
    renamed = {}
    for name, values in arrays.items():
        array = np.asarray(values, np.float32)
        array = array.transpose(3, 2, 0, 1) if array.ndim == 4 else array
        renamed[torch_names("timm")[name]] = np.ascontiguousarray(array)
    with replacing(path) as temporary:
        _library().numpy.save_file(renamed, temporary, {"format": "pt"} | ({"bitlib": note} if note else {}))
        with temporary.open("r+b") as file:  # put in order the metadata, which has another one each time
            size = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(size))
            header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
            text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
            file.seek(8)
            file.write(text.ljust(size))
    return path
