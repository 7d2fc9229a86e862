"""How files and folders are written: completely, or not at all."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` that takes its place if the body succeeds, and vanishes if not.

    The body writes a file or a folder there. What stood at `path` before is replaced whole.

    Raises:
        FileNotFoundError: the folder that `path` would be in does not exist.
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path.parent}: no such folder, expected one to write {path.name} into")
    scratch = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.partial-"))
    try:
        temporary = scratch / path.name
        yield temporary
        if path.is_dir():
            path.rename(scratch / "previous")
        temporary.replace(path)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
