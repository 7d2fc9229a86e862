"""The hidden file that a download grows in, and the note beside it of which file that is.

What a killed download leaves is continued by the next of the same file, and swept by the next of any other
when it is old. A download holds a lock on its hidden file, so that nobody else writes or sweeps it.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

DAYS = 7
"""Days after which what a killed download left is swept."""


def hidden(path: Path) -> Path:
    """Where a download of `path` grows: `.<name>.partial`."""
    return path.with_name(f".{path.name}.partial")


def note_of(part: Path) -> Path:
    """Where it is noted which file the part is of: `.<name>.partial.json`."""
    return part.with_name(part.name + ".json")


@contextmanager
def claimed(path: Path) -> Iterator[Path]:
    """The hidden file for a download of `path`, for nobody else while the body runs.

    It may hold what an earlier download left. Another user or machine may be at it just now; the body then
    works on a file of its own, which nobody continues.
    """
    part = hidden(path)
    if part.is_symlink():  # it would be followed
        part.unlink()
    lock = part.open("ab")
    if not _locked(lock) or not _is_at(lock, part):
        lock.close()
        part = path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")
        lock = part.open("ab")
        _locked(lock)
    _close_where_needed(lock)
    with contextlib.closing(lock):
        yield part


def discard(part: Path) -> None:
    """Remove a hidden file and its note."""
    for file in (part, note_of(part)):
        with contextlib.suppress(OSError):
            file.unlink()


def write_note(part: Path, fields: dict) -> None:
    """Note which file the part is of."""
    note_of(part).write_text(json.dumps(fields), "utf-8")


def read_note(part: Path) -> dict:
    """What `write_note` wrote; empty where there is no note, or one that cannot be understood."""
    try:
        with note_of(part).open("rb") as file:
            fields = json.loads(file.read(10_000))
    except (OSError, ValueError, RecursionError):
        return {}
    return fields if isinstance(fields, dict) else {}


def sweep(folder: Path) -> None:
    """Remove what killed downloads left in a folder: what is older than `DAYS`, or whose file is there."""
    for part in folder.glob(".*.partial"):
        with contextlib.suppress(OSError):
            finished = part.with_name(part.name[1:].removesuffix(".partial")).is_file()
            old = part.stat().st_mtime < time.time() - DAYS * 86400
            if (finished or old) and part.is_file():
                with part.open("ab") as lock:
                    if _locked(lock):
                        _close_where_needed(lock)
                        discard(part)
    for note in folder.glob(".*.partial.json"):
        if not note.with_suffix("").exists():
            note.unlink(missing_ok=True)


def _close_where_needed(lock) -> None:
    if os.name == "nt":  # a file that is open can be neither renamed nor removed
        lock.close()


def _locked(file) -> bool:
    """Lock an open file, if nobody else has."""
    try:
        import fcntl
    except ImportError:  # Windows, which lets nobody remove a file that is open
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _is_at(file, path: Path) -> bool:
    """Whether an open file is still what the path leads to; it may have been renamed before it was locked."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except OSError:
        return False
