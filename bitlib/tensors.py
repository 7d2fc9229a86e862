"""A `.safetensors` with the names of timm or transformers, and its arrays in the published layout.

The format has no code in it: a header of names, dtypes, shapes and places, then the numbers. The package
`safetensors` checks that these fit the file; names, shapes and values are checked here, as those of a `.npz`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from bitlib import torchnames
from bitlib.layout import SUFFIXES, Architecture, CheckpointError, check, infer, layout
from bitlib.writing import replacing

SUFFIX = SUFFIXES[1]
_HEADER = 4 << 20
"""Bytes that the header may take: that of the largest BiT takes 100 kB."""

_FLOATS = ("F16", "F32", "F64")


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


class Tensors(Arrays):
    """The arrays of an open file by their published names, each read from disk and checked when asked for."""

    def __init__(self, file: Any):
        self._file = file
        self.note = (file.metadata() or {}).get("bitlib", "").encode()
        library = torchnames.convention(file.keys())
        if library is None:
            raise CheckpointError(
                f"no array {' or '.join(torchnames.ROOTS.values())}: no BiT of timm or transformers"
            )
        self._theirs, self.shapes = {}, {}
        for name, published in torchnames.ours(file.keys(), library).items():
            found = file.get_slice(name)
            if found.get_dtype() not in _FLOATS:
                raise CheckpointError(
                    f"{name}: expected one of {', '.join(_FLOATS)}, found {found.get_dtype()}"
                )
            self._theirs[published] = name
            self.shapes[published] = torchnames.shape_of(published, tuple(found.get_shape()))
        self.check()

    def __getitem__(self, name: str) -> np.ndarray:
        """One array: float32, in the published shape, all values finite."""
        array = np.asarray(self._file.get_tensor(self._theirs[name]), np.float32)
        require_finite(self._theirs[name], array)
        if array.ndim == 2:  # the head of transformers is a linear layer
            array = array[..., None, None]
        return np.ascontiguousarray(array.transpose(2, 3, 1, 0)) if array.ndim == 4 else array


@contextmanager
def opened(path: Path) -> Iterator[Tensors]:
    """Open a file as a mapping that reads one array at a time.

    Raises:
        ImportError: the package `safetensors` is not installed.
        CheckpointError: the file is damaged, or not the arrays of a BiT. The caller names the file.
    """
    library = _library()
    with path.open("rb") as stream:
        size = int.from_bytes(stream.read(8), "little")
    if size > min(_HEADER, path.stat().st_size):
        raise CheckpointError(f"a header of {size} bytes, expected at most {_HEADER} within the file")
    try:
        with library.safe_open(path, framework="numpy") as file:
            yield Tensors(file)
    except CheckpointError:
        raise
    except (library.SafetensorError, OSError, ValueError, TypeError) as error:
        raise CheckpointError(f"corrupt or truncated ({error})") from error


def write(path: Path, arrays: Mapping, note: str) -> Path:
    """Write arrays of the published layout under timm's names; replaced only once the file is complete."""
    _library()
    from safetensors.numpy import save_file

    renamed = {}
    for name, values in arrays.items():
        array = np.asarray(values, np.float32)
        array = array.transpose(3, 2, 0, 1) if array.ndim == 4 else array
        renamed[torchnames.theirs(name, "timm")] = np.ascontiguousarray(array)
    with replacing(path) as temporary:
        save_file(renamed, temporary, {"format": "pt"} | ({"bitlib": note} if note else {}))
        with temporary.open("r+b") as file:  # put in order the metadata, which has another one each time
            size = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(size))
            header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
            text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
            file.seek(8)
            file.write(text.ljust(size))
    return path


def _library():
    try:
        import safetensors
    except ImportError:
        reason = "safetensors: the package is not installed; pip install 'bitlib[torch]' brings it"
        raise ImportError(reason) from None
    return safetensors
