"""Where files lie: those that ship with the package, the cache of those it downloads, and what users name."""

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
    """`BITLIB_CACHE` if it is set, else the user's cache folder. Raises: ValueError if it is nobody's."""
    folder = os.environ.get("BITLIB_CACHE", "").strip()
    if "://" in folder:
        raise ValueError(f"BITLIB_CACHE: expected a folder, received {folder!r}")
    if folder:
        return expanded(folder, "BITLIB_CACHE")
    import pooch

    return Path(pooch.os_cache("bitlib"))


def expanded(path: str | os.PathLike, name: str) -> Path:
    """A path with its `~` replaced. Raises: ValueError, which begins with `name`, if it can be no path."""
    if not isinstance(path, (str, os.PathLike)) or not str(path):
        raise ValueError(f"{name}: expected a path, received {path!r:.80}")
    try:
        found = Path(path).expanduser()
        found.exists()
    except (OSError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ValueError(f"{name}: expected a path, received {str(path)[:80]!r} ({reason})") from None
    return found
