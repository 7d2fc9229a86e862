"""Where files lie: those that ship with the package, and the cache of those it downloads."""

from __future__ import annotations

import os
from pathlib import Path


def bundled(file: str) -> Path:
    """A file of `data/`: beside the modules in an installed copy, beside the package in a checkout.

    Raises:
        FileNotFoundError: the package was installed without it.
    """
    here = Path(__file__).parent
    for folder in (here / "data", here.parent / "data"):
        if (folder / file).is_file():
            return folder / file
    raise FileNotFoundError(f"{file}: not among the files that ship with bitlib; reinstall the package")


def cache_folder() -> Path:
    """`BITLIB_CACHE` if it is set, else the user's cache folder."""
    folder = os.environ.get("BITLIB_CACHE")
    if folder:
        return Path(folder).expanduser()
    import pooch

    return Path(pooch.os_cache("bitlib"))
