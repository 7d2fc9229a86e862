"""Where files are, and how they are written: completely, or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def bundled(file: str) -> Path:
    """A file of `data/`: beside the modules in an installed copy, beside the package in a checkout."""
    here = Path(__file__).parent
    for folder in (here / "data", here.parent / "data"):
        if (folder / file).is_file():
            return folder / file
    raise FileNotFoundError(f"{file}: not among the files that ship with bitlib; reinstall the package")


def cache_folder() -> Path:
    """`BITLIB_CACHE` if set, else the user's cache folder."""
    folder = os.environ.get("BITLIB_CACHE")
    if folder:
        return Path(folder).expanduser()
    import pooch

    return Path(pooch.os_cache("bitlib"))


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
