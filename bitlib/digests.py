"""The SHA-256 of a file, noted beside it when it is downloaded and compared at every later use."""

from __future__ import annotations

import contextlib
import hashlib
import re
from pathlib import Path

from bitlib.writing import replacing


def sha256(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def note_of(path: Path) -> Path:
    """Where the SHA-256 of a file is noted: `<file>.sha256`, in the form that `sha256sum --check` reads."""
    return path.with_name(path.name + ".sha256")


def write_note(path: Path, digest: str) -> None:
    """Note the SHA-256 of a file beside it."""
    with replacing(note_of(path)) as temporary:
        temporary.write_text(f"{digest}  {path.name}\n", "utf-8")


def noted(path: Path) -> str | None:
    """The SHA-256 that is noted beside a file; None where there is no note.

    Raises:
        ConnectionError: there is a note, of something else.
    """
    note = note_of(path)
    if not note.is_file():
        return None
    with note.open("rb") as file:
        start = re.match(rb"\s*([0-9A-Fa-f]{64})(?![0-9A-Fa-f])", file.read(200))
    if not start:
        raise ConnectionError(
            f"{note}: expected the SHA-256 of {path.name}, 64 hexadecimal digits, found something else; "
            "delete it to trust the file as it is, or delete both to download it again"
        )
    return start[1].decode().lower()


def verify(path: Path) -> str:
    """Compare a file with the SHA-256 noted beside it, and note it where there is no note yet.

    Returns:
        the SHA-256, in hexadecimal.

    Raises:
        ConnectionError: the file is not what was downloaded, or the note is damaged.
    """
    found, expected = sha256(path), noted(path)
    if expected is None:
        with contextlib.suppress(OSError):  # a read-only mirror or cache: there is nowhere to note it
            write_note(path, found)
    elif found != expected:
        raise ConnectionError(
            f"{path}: changed since it was downloaded (SHA-256 {found[:12]}…, not {expected[:12]}…); "
            f"delete it and {note_of(path).name} to download it again"
        )
    return found
