"""Whether what came over the network is the file: by the server's hash, or else by what is in it."""

from __future__ import annotations

import base64
import hashlib
import zipfile
from pathlib import Path
from typing import Any

from bitlib import classlists
from bitlib.responses import Identity, shown, web_page

LARGEST = 8 << 30
"""Bytes; the largest file published has 4.4 GB."""

LARGEST_TEXT = 10 << 20
"""Bytes that any other file than a `.npz` may have."""

_CHUNK = 1 << 20


def largest(file: str) -> int:
    """How many bytes a published file of that name may have."""
    return LARGEST if file.endswith(".npz") else LARGEST_TEXT


def checked(path: Path, file: str, url: str, identity: Identity) -> str:
    """Compare what came with what the server says it has, and with what a file of that name is.

    Args:
        path: what came.
        file: its published name.
        url: where it came from, for messages.
        identity: what the server says.

    Returns:
        its SHA-256, in hexadecimal.

    Raises:
        ConnectionError: it is not the file.
    """
    digests: dict[str, Any] = {"sha256": hashlib.sha256(), "md5": hashlib.md5(usedforsecurity=False)}
    if identity.crc32c and not identity.md5:
        import google_crc32c

        digests["crc32c"] = google_crc32c.Checksum()
    with path.open("rb") as content:
        start = content.read(512)
        content.seek(0)
        while chunk := content.read(_CHUNK):
            for digest in digests.values():
                digest.update(chunk)
    again = "It was deleted; try again, and if it stays so, from another network"
    if _is_web_page(start):
        raise web_page(url)
    for name in ("md5", "crc32c"):
        expected = getattr(identity, name)
        if expected and name in digests:
            found = base64.b64encode(digests[name].digest()).decode()
            if found != expected:
                raise ConnectionError(
                    f"{url}: damaged on the way ({name.upper()} {found}, the server has "
                    f"{shown(expected)}). {again}"
                )
    if file.endswith(".npz"):
        # Where the server sent no hash, the archive's own checksums must do.
        trouble = _trouble_in_archive(path, thorough=not (identity.md5 or identity.crc32c))
    else:
        trouble = _trouble_in_list(path.read_bytes(), file)
    if trouble:
        raise ConnectionError(f"{url}: {trouble}. {again}")
    return digests["sha256"].hexdigest()


def _is_web_page(start: bytes) -> bool:
    """Whether a file begins as HTML does, behind whatever byte-order mark and blanks."""
    for mark in classlists.MARKS:
        start = start.removeprefix(mark)
    return start.lstrip(b"\0 \t\r\n\f").startswith(b"<")


def _trouble_in_archive(path: Path, thorough: bool) -> str | None:
    try:
        with zipfile.ZipFile(path) as archive:
            if sum(member.file_size for member in archive.infolist()) > LARGEST:
                return f"not a published .npz (more than {LARGEST:,} bytes are packed in it)"
            damaged = archive.testzip() if thorough else None
    except Exception as error:  # zipfile and what it unpacks with raise a dozen kinds
        return f"not a whole .npz ({shown(error) or type(error).__name__})"
    return f"damaged on the way, in {shown(damaged)}" if damaged else None


def _trouble_in_list(content: bytes, file: str) -> str | None:
    length = classlists.BYTES.get(file, len(content))
    if len(content) != length:
        return f"not the published list ({len(content):,} bytes, it has {length:,})"
    try:
        classlists.parse(content, file)
    except ValueError as error:
        return f"not the published list ({error})"
    return None
