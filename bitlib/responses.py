"""What a server says: whether its response is the file, or the rest of it, and which file that is."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

RETRIED = (408, 429, 500, 502, 503, 504)
"""Statuses that may be another at the next try."""

LONGEST_PAUSE = 60
"""Seconds that a server may ask to wait before the next try."""

_REASONS = {
    401: "access is refused",
    403: "access is refused",
    404: "not there",
    410: "not there any more",
}

if TYPE_CHECKING:
    from requests import Response


class Broken(Exception):
    """A try that may succeed when it is made again, after a pause of some seconds."""

    def __init__(self, reason: str, pause: float = 0):
        super().__init__(reason)
        self.pause = pause


class Unreachable(Broken):
    """No connection was made, so a try soon after will hardly succeed either."""


def cause(error: BaseException) -> str:
    """Why a connection failed, in one line: what the error at the beginning of its chain says."""
    while earlier := error.__cause__ or error.__context__:
        error = earlier
    return shown(getattr(error, "strerror", None) or error) or type(error).__name__


@dataclass
class Identity:
    """Which file a server has: its length in bytes, and what tells it from others of that length."""

    length: int | None = None
    etag: str | None = None
    md5: str | None = None
    crc32c: str | None = None

    @classmethod
    def of(cls, headers: Mapping[str, str]) -> Identity:
        """From the headers of a complete response.

        Raises:
            Broken: its lengths contradict one another, or are none.
        """
        length, stored = (
            _length(headers.get(name)) for name in ("Content-Length", "x-goog-stored-content-length")
        )
        if stored is not None and length is not None and stored != length:
            raise Broken(f"the server announces {length:,} bytes of a file of {stored:,}")
        return cls(length if stored is None else stored, *_marks(headers))

    @classmethod
    def noted(cls, fields: dict) -> Identity | None:
        """From what `fields` gave; None if that is not how it was."""
        length, *marks = (fields.get(name) for name in ("length", "etag", "md5", "crc32c"))
        whole = length is None or (type(length) is int and length > 0)
        if not whole or not all(mark is None or isinstance(mark, str) for mark in marks):
            return None
        return cls(length, *marks)

    def fields(self) -> dict:
        """As plain data."""
        return asdict(self)

    def recognisable(self) -> bool:
        """Whether anything but the length can be compared."""
        return any((self.etag, self.md5, self.crc32c))

    def continued_by(self, headers: Mapping[str, str], position: int, surely: bool) -> bool:
        """Whether a partial response goes on at that position of this file.

        `surely`: it has to say so by an ETag or a hash; else it need only not contradict.
        """
        part, _, total = headers.get("Content-Range", "").removeprefix("bytes ").rpartition("/")
        mine, its = (self.etag, self.md5, self.crc32c), _marks(headers)
        compared = [ours == theirs for ours, theirs in zip(mine, its, strict=True) if ours and theirs]
        return (
            number(part.partition("-")[0]) == position
            and (self.length is None or number(total) in (None, self.length))
            and all(compared)
            and (bool(compared) or not surely)
        )


def number(text: str | None) -> int | None:
    """A header's value as a number; None if it is not one that a file's length or position can be."""
    text = (text or "").strip()
    return int(text) if text.isascii() and text.isdigit() and len(text) < 16 else None


def shown(text: object) -> str:
    """What came from elsewhere, for a message: short, without control characters."""
    text = str(text)
    return repr(text if len(text) < 300 else text[:300] + "…")[1:-1]


def public(url: str) -> str:
    """An address without the name and password that may stand in it, for a message."""
    return re.sub(r"//[^/@]*@", "//", url)


def _length(text: str | None) -> int | None:
    if text is not None and number(text) is None:
        raise Broken(f"the server announces a length of {shown(text)}")
    return number(text)


def _marks(headers) -> tuple[str | None, str | None, str | None]:
    """The ETag, if it is a strong one, and the MD5 and CRC32C, in base64."""
    etag = headers.get("ETag", "")
    parts = [part.strip().partition("=") for part in headers.get("x-goog-hash", "").split(",")]
    hashes = {name: value for name, _, value in parts if value}
    return etag if etag.startswith('"') else None, hashes.get("md5"), hashes.get("crc32c")


def require_file(response: Response, url: str, remedy: str, asked_for_part: bool) -> None:
    """Raise an error if a response is not the file, or the part of it that was asked for.

    Raises:
        Broken: another try may help.
        ConnectionError: none will. The message ends with the remedy.
    """
    status, headers = response.status_code, response.headers
    if status in RETRIED:
        pause = min(number(headers.get("Retry-After")) or 0, LONGEST_PAUSE)
        raise Broken(f"the server answers {status} {shown(response.reason)}", pause)
    page = headers.get("Content-Type", "").lower().startswith(("text/html", "application/xhtml"))
    if status == 511 or (status < 300 and page):
        raise web_page(url)
    if status not in (200, 206):
        reason = _REASONS.get(status, "an unexpected response")
        raise ConnectionError(
            f"{url}: {reason} ({status} {shown(response.reason)}); see that the address, BITLIB_MIRROR if it "
            f"is set, is right and open to you. Or {remedy}"
        )
    if status == 206 and not asked_for_part:
        raise Broken("the server sends a part (206) where the whole file was asked for")
    encoding = headers.get("Content-Encoding", "").strip().lower()
    if encoding not in ("", "identity"):
        raise ConnectionError(
            f"{url}: came encoded as {shown(encoding)}, where the file as it is was asked for; another "
            f"network may let it through. Or {remedy}"
        )


def web_page(url: str) -> ConnectionError:
    """The error for a log-in page in the place of a file."""
    return ConnectionError(
        f"{url}: a web page came instead of the file, as public Wi-Fi sends before one has logged in; open "
        "any page in a browser, log in, and try again"
    )
