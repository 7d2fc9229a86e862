"""From a published address to a file that is whole, or to an error that says what to do.

pooch gives the file its temporary name and its place; what a bucket of 4 GB files needs besides is here:
a broken download goes on where it broke, lengths and hashes are compared with what the server says, a
hotel's log-in page is not taken for weights, and the SHA-256 of what came is noted.
"""

from __future__ import annotations

import base64
import errno
import hashlib
import logging
import os
import shutil
import tempfile
import time
import zipfile
from pathlib import Path
from typing import Any

from bitlib.digests import sha256 as sha256
from bitlib.digests import verify as verify
from bitlib.digests import write_note

ATTEMPTS = 5
"""Tries in a row that get nothing, before a download is given up; one that gets something starts anew."""

PAUSE = 1.0
"""Seconds before the second try; each further one waits twice as long."""

TIMEOUT = 20.0
"""Seconds that a server may be silent; `BITLIB_TIMEOUT` overrides it."""

_CHUNK = 1 << 20
_RETRIED = (408, 429, 500, 502, 503, 504)


class _Broken(Exception):
    """A try that may succeed when it is made again."""

    def __init__(self, reason: str, pause: float = 0):
        super().__init__(reason)
        self.pause = pause


def offline() -> bool:
    """Whether `BITLIB_OFFLINE` forbids the network."""
    return os.environ.get("BITLIB_OFFLINE", "") not in ("", "0")


def download(url: str, path: Path) -> Path:
    """Get a file once, whoever else wants it at the same time.

    Args:
        url: http or https.
        path: where to; its folders are made. A `.sha256` is written beside it.

    Returns:
        `path`.

    Raises:
        ConnectionError: it cannot be had, or what came is not it. The message says what to do. Nothing is
            left behind.
        OSError: it cannot be written there: read-only, disk full. Nothing is left behind.
    """
    import pooch
    from filelock import FileLock

    pooch.get_logger().setLevel(logging.WARNING)  # at INFO it would propose to note the hash, which we do
    # Locks lie apart: a cache holds nothing but what is whole.
    locks = Path(tempfile.gettempdir(), f"bitlib-locks-{getattr(os, 'getuid', lambda: 0)()}")
    locks.mkdir(exist_ok=True)
    lock = locks / f"{hashlib.sha256(str(path.absolute()).encode()).hexdigest()[:32]}.lock"
    try:
        with FileLock(lock):
            if path.is_file():
                return path
            path.parent.mkdir(parents=True, exist_ok=True)
            downloader = _Downloader(path)
            pooch.retrieve(url, known_hash=None, fname=path.name, path=path.parent, downloader=downloader)
            write_note(path, downloader.sha256)
    except OSError as error:
        if isinstance(error, ConnectionError):
            raise
        raise _about_the_disk(error, path) from error
    return path


class _Downloader:
    """A downloader for pooch: called with an address and a temporary file, it fills the file."""

    def __init__(self, path: Path):
        self.path = path
        self.sha256 = ""

    def __call__(self, url: str, output: str, _pooch=None) -> None:
        import requests
        from tqdm import tqdm
        from urllib3.exceptions import HTTPError

        timeout = float(os.environ.get("BITLIB_TIMEOUT") or TIMEOUT)
        failures, metadata = 0, _Metadata()
        with (
            requests.Session() as session,
            open(output, "wb") as file,
            tqdm(desc=self.path.name, unit="B", unit_scale=True, leave=False) as progress,
        ):
            while True:
                before = file.tell()
                try:
                    self._try(session, url, file, metadata, timeout, progress)
                    break
                except (_Broken, requests.RequestException, HTTPError) as error:
                    failures = 1 if file.tell() > before else failures + 1
                    if failures >= ATTEMPTS:
                        raise ConnectionError(_given_up(url, error, self.path)) from error
                    time.sleep(max(PAUSE * 2 ** (failures - 1), getattr(error, "pause", 0)))
        self.sha256 = _checked(Path(output), url, metadata)

    def _try(self, session, url, file, metadata, timeout, progress) -> None:
        """Get the whole, or what is missing of it."""
        position = file.tell()
        # As it is stored: lengths and hashes are those of the file, not of a compressed form of it.
        headers = {"Accept-Encoding": "identity"}
        if position:
            headers |= {"Range": f"bytes={position}-"} | (
                {"If-Range": metadata.etag} if metadata.etag else {}
            )
        with session.get(url, headers=headers, stream=True, timeout=timeout) as response:
            _refuse(response, url, self.path)
            if response.status_code == 206 and not metadata.continues(response, position):
                raise _restart(file, progress, "the server went on elsewhere")
            if response.status_code != 206:
                _rewind(file, progress)
                metadata.read(response)
            if metadata.length:
                _require_space(self.path, metadata.length)
                progress.total = metadata.length
            # As it arrives: a read of a fixed size would lose what came before the connection broke.
            while chunk := response.raw.read1(_CHUNK):
                file.write(chunk)
                progress.update(len(chunk))
        if metadata.length is not None and file.tell() < metadata.length:
            raise _Broken(f"the connection broke after {file.tell():,} of {metadata.length:,} bytes")
        if metadata.length is not None and file.tell() > metadata.length:
            raise _restart(file, progress, f"more than the {metadata.length:,} bytes announced")


class _Metadata:
    """What a server says about a file in the headers of its first response."""

    length: int | None = None
    etag: str | None = None
    md5: str | None = None
    crc32c: str | None = None

    def read(self, response) -> None:
        """Take the headers of a complete response."""
        headers = response.headers
        self.length = _number(headers.get("Content-Length"))
        stored = _number(headers.get("x-goog-stored-content-length"))
        if stored is not None and self.length is not None and stored != self.length:
            raise _Broken(f"the server announces {self.length:,} bytes of a file of {stored:,}")
        self.length = self.length if stored is None else stored
        etag = headers.get("ETag", "")
        self.etag = etag if etag.startswith('"') else None  # a weak one is of no use for a range
        hashes = dict(
            part.strip().split("=", 1) for part in headers.get("x-goog-hash", "").split(",") if "=" in part
        )
        self.md5, self.crc32c = hashes.get("md5"), hashes.get("crc32c")

    def continues(self, response, position: int) -> bool:
        """Whether a partial response goes on at that position of the same file."""
        range_header = response.headers.get("Content-Range", "")
        start, total = range_header.removeprefix("bytes ").partition("-")[0], range_header.rpartition("/")[2]
        same = self.length is None or _number(total) in (None, self.length)
        etag = response.headers.get("ETag")
        return _number(start) == position and same and (not (etag and self.etag) or etag == self.etag)


def _number(text: str | None) -> int | None:
    return int(text) if text and text.strip().isdigit() else None


def _rewind(file, progress) -> None:
    file.seek(0)
    file.truncate()
    progress.reset()


def _restart(file, progress, reason: str) -> _Broken:
    _rewind(file, progress)
    return _Broken(reason)


def _refuse(response, url: str, path: Path) -> None:
    """Raise an error if the response is not the file."""
    status = response.status_code
    if status in _RETRIED:
        pause = min(_number(response.headers.get("Retry-After")) or 0, 60)
        raise _Broken(f"the server answers {status} {response.reason}", pause)
    if status == 416:
        raise _Broken("the server cannot go on where the download broke")
    page = response.headers.get("Content-Type", "").lower().startswith("text/html")
    if status == 511 or (status < 300 and page):
        raise _web_page(url)
    reasons = {
        401: "access is refused",
        403: "access is refused",
        404: "not there",
        410: "not there any more",
    }
    if status >= 300:
        reason = reasons.get(status, "an unexpected response")
        raise ConnectionError(
            f"{url}: {reason} ({status} {response.reason}); see that the address, BITLIB_MIRROR if it is "
            f"set, is right and open to you. Or {_by_hand(path)}"
        )


def _web_page(url: str) -> ConnectionError:
    return ConnectionError(
        f"{url}: a web page came instead of the file, as public Wi-Fi sends before one has logged in; open "
        "any page in a browser, log in, and try again"
    )


def _by_hand(path: Path) -> str:
    return (
        f"put the file at {path} from elsewhere, or name a folder that holds it in BITLIB_MIRROR "
        "(bitlib.checkpoint.prefetch fills one)"
    )


def _given_up(url: str, error: Exception, path: Path) -> str:
    return (
        f"{url}: cannot be downloaded ({error}), tried {ATTEMPTS} times; see whether this machine has a "
        f"network and try again later. Or {_by_hand(path)}"
    )


def _checked(path: Path, url: str, metadata: _Metadata) -> str:
    """The SHA-256 of what came, if it is what the server says it has, and what it is called."""
    digests: dict[str, Any] = {"sha256": hashlib.sha256(), "md5": hashlib.md5(usedforsecurity=False)}
    if metadata.crc32c and not metadata.md5:
        import google_crc32c

        digests["crc32c"] = google_crc32c.Checksum()
    with path.open("rb") as file:
        start = file.read(512)
        file.seek(0)
        while chunk := file.read(_CHUNK):
            for digest in digests.values():
                digest.update(chunk)
    again = "It was deleted; try again, and if it stays so, from another network"
    if start.lstrip()[:1] == b"<":
        raise _web_page(url)
    for name in ("md5", "crc32c"):
        expected = getattr(metadata, name)
        if expected and name in digests:
            found = base64.b64encode(digests[name].digest()).decode()
            if found != expected:
                raise ConnectionError(
                    f"{url}: damaged on the way ({name.upper()} {found}, the server has {expected}). {again}"
                )
    if url.endswith(".npz"):
        try:
            with zipfile.ZipFile(path) as archive:
                # Where the server sent no hash, the archive's own checksums must do.
                damaged = None if metadata.md5 or metadata.crc32c else archive.testzip()
        except (zipfile.BadZipFile, ValueError, OverflowError, EOFError) as error:
            raise ConnectionError(f"{url}: not a whole .npz ({error}). {again}") from error
        if damaged:
            raise ConnectionError(f"{url}: damaged on the way, in {damaged}. {again}")
    return digests["sha256"].hexdigest()


def _require_space(path: Path, length: int) -> None:
    free = shutil.disk_usage(path.parent).free
    if free < length:
        raise OSError(errno.ENOSPC, f"{length:,} bytes are needed, {free:,} are free")


def _about_the_disk(error: OSError, path: Path) -> OSError:
    elsewhere = "name another folder in BITLIB_CACHE"
    if error.errno == errno.ENOSPC:
        reason = f"the disk is full ({error.strerror}); make room, or {elsewhere}"
    elif error.errno in (errno.EACCES, errno.EROFS, errno.EPERM, errno.ENOTDIR, errno.EEXIST):
        reason = f"cannot be written ({error.strerror}); {elsewhere}"
    else:
        reason = f"{error}; {elsewhere}"
    return type(error)(error.errno, f"{path}: {reason}")
