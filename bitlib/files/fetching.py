"""From the name of a published file to the file: cached, on a mirror, or downloaded.

A broken download resumes where it broke, in a later process too; each one ends; and what came is verified
before it takes its place. Until then it is `.<name>.partial`, and `.<name>.partial.json` notes what it is of.
"""

from __future__ import annotations

import base64
import errno
import hashlib
import json
import math
import os
import re
import shutil
import tempfile
import threading
import time
import uuid
import zipfile
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, wait
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import urljoin

import requests
from filelock import FileLock
from requests.exceptions import ConnectTimeout, InvalidURL, ProxyError, SSLError
from urllib3.exceptions import NewConnectionError

from bitlib.console import bar
from bitlib.files.layout import BASE_URL, BUNDLED
from bitlib.files.writing import expanded, verify, write_note

ATTEMPTS = 5  # tries in a row that bring no byte that had not come before, then a download is given up
FIRST_ATTEMPTS = 2  # the same where no server has been reached yet
MOST_ATTEMPTS = 100  # tries in all, even if each brought something
TIMEOUT = 20.0  # seconds that a server may be silent, where BITLIB_TIMEOUT does not say otherwise
SLOWEST = 1000  # bytes a second that a try has to bring, on average over three times the timeout
PAUSE = 1.0  # seconds before the second try; each further one waits twice as long, or as the server asks
LARGEST = 8 << 30  # bytes of a .npz; the largest published has 4.4 GB
LARGEST_TEXT = 10 << 20  # bytes of any other file
DAYS = 7  # after which what a killed download left is swept

LINES = {"ilsvrc2012": 1000, "imagenet21k": 21843}  # of the published class lists, by their files' first word
BYTES = {"ilsvrc2012_wordnet_lemmas.txt": 21675}  # of the published class lists, where they are known

# A path that stays in its folder, and names nothing hidden, on any system.
_INSIDE = re.compile(r"([A-Za-z0-9_][A-Za-z0-9_.+-]*/)*[A-Za-z0-9_][A-Za-z0-9_.+-]*")
_MARKS = ("etag", "md5", "crc32c")  # which tell a file from others of its length
_CHUNK = 1 << 20
_UNREACHED = (ConnectTimeout, InvalidURL, ProxyError, SSLError, NewConnectionError)
_WEB_PAGE = "a web page came instead of the file, as from public Wi-Fi: log in with a browser, and try again"
_NAME, _NUMBER = r"[^\s/?#@:.\[\]]{1,63}(\.[^\s/?#@:.\[\]]{1,63})*", r"\[[0-9A-Fa-f:.]+\]"
_ADDRESS = re.compile(rf"(?i:https?)://([^\s/?#]*@)?({_NAME}|{_NUMBER})(:[0-9]{{1,5}})?(/[^\s?#]*)?")


def cache_folder() -> Path:
    """`BITLIB_CACHE` if it is set, else the user's cache folder. Raises: ValueError if it is nobody's."""
    folder = os.environ.get("BITLIB_CACHE", "").strip()
    if "://" in folder:
        raise ValueError(f"BITLIB_CACHE: expected a folder, received {folder!r}")
    if folder:
        return expanded(folder, "BITLIB_CACHE")
    import platformdirs

    return platformdirs.user_cache_path("bitlib", appauthor=False)


def offline() -> bool:
    """True if `BITLIB_OFFLINE` forbids the network. Raises: ValueError if it is neither 0, 1 nor empty."""
    value = os.environ.get("BITLIB_OFFLINE", "").strip()
    if value not in ("", "0", "1"):
        raise ValueError(f"BITLIB_OFFLINE: expected 1 (no network), 0 or nothing, received {value!r}")
    return value == "1"


def timeout() -> float:
    """`BITLIB_TIMEOUT`, or `TIMEOUT`. Raises: ValueError if it is not a number of seconds up to an hour."""
    value = os.environ.get("BITLIB_TIMEOUT", "").strip()
    try:
        seconds = float(value or TIMEOUT)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds <= 3600:
        raise ValueError(f"BITLIB_TIMEOUT: expected seconds, above 0 and up to 3600, received {value!r}")
    return seconds


def mirror() -> Path | str | None:
    """`BITLIB_MIRROR`: a folder, or a web address without a slash at its end; None if it is not set.

    Raises: ValueError if it is another kind of address, or no complete one.
    """
    value = os.environ.get("BITLIB_MIRROR", "").strip()
    if not re.match(r"[A-Za-z][A-Za-z0-9+.-]+:", value):  # two letters and more: C: is a folder
        return expanded(value, "BITLIB_MIRROR") if value else None
    if not _ADDRESS.fullmatch(value):
        raise ValueError(
            f"BITLIB_MIRROR: expected a folder or an address like https://a.org, received {value!r}"
        )
    return value.rstrip("/")


def fetch_file(file: str) -> Path:
    """Any file below the published address (`ilsvrc2012_wordnet_lemmas.txt`).

    It comes from the cache, `BITLIB_CACHE`, or is downloaded into it and compared with the server's length
    and hash; its SHA-256 is noted beside it and compared at every later use. `BITLIB_MIRROR`, a folder or a
    base URL laid out like the published one, is asked instead. `BITLIB_OFFLINE=1` forbids the network.

    Raises:
        ValueError: no published file can have that name, or one of the variables makes no sense.
        ConnectionError: it cannot be had, or is not what it should be; the next call resumes what came.
        OSError: it cannot be written: the cache is read-only, the disk is full.
    """
    return verified_file(file)[0]


def on_disk(file: str) -> Path | None:
    """The path of a published file in the cache or in a mirror's folder; None if it is in neither."""
    source = mirror()
    folders = [cache_folder(), *([source] if isinstance(source, Path) else [])]
    return next((folder / file for folder in folders if (folder / file).is_file()), None)


def parse_class_list(content: bytes, file: str) -> tuple[str, ...]:
    """The lines of a published class list, one a class. Raises: ValueError, without the file's name."""
    lines = content.decode("utf-8").replace("\r\n", "\n").removesuffix("\n").split("\n")
    expected = LINES.get(file.partition("_")[0], len(lines))
    if len(lines) != expected:
        raise ValueError(f"{len(lines):,} lines, expected {expected:,}, one for each class")
    for number, line in enumerate(lines, 1):
        # Two classes of ImageNet-21k are empty.
        if not line.isprintable() or line.startswith("<") or not (line.strip() or expected == 21843):
            raise ValueError(f"line {number:,} is {line[:40]!r}, expected the name of a class")
    return tuple(lines)


def verified_file(file: str) -> tuple[Path, str | None]:
    """As `fetch_file`, and its SHA-256 in hexadecimal, unless another process has just downloaded it."""
    if not isinstance(file, str) or not _INSIDE.fullmatch(file):
        raise ValueError(f"file: expected a path below the published address, received {file!r}")
    cached, source = cache_folder() / file, mirror()
    if path := on_disk(file):
        return path, verify(path)
    if isinstance(source, Path):
        known = f"({source}{'' if source.is_dir() else ', which is no folder'})"
        raise ConnectionError(f"{file}: not in BITLIB_MIRROR {known}; put it there, or unset the variable")
    mirrored = "name a folder in BITLIB_MIRROR (bitlib.checkpoint.prefetch fills one)"
    by_hand = f"put the file at {cached} from elsewhere, or {mirrored}"
    if offline():
        raise ConnectionError(f"{file}: BITLIB_OFFLINE forbids to download it; unset it, or {by_hand}")
    return cached, _download(f"{source or BASE_URL.rstrip('/')}/{file}", cached, timeout(), by_hand)


class _Failed(Exception):
    """A try that failed. `anew`: what came is worthless; `final`: no other try will help."""

    def __init__(self, reason: str, pause: int = 0, anew=False, final=False, reached=True):
        super().__init__(reason)
        self.pause, self.anew, self.final, self.reached = pause, anew, final, reached


def _download(url: str, path: Path, silence: float, by_hand: str) -> str | None:
    """Get a file once, whoever else wants it at the same time. Returns: its SHA-256, if we downloaded it."""
    owner = getattr(os, "getuid", lambda: 0)()
    lock = f"bitlib-{_sha256(f'{owner} {path.absolute()}')[:32]}.lock"
    try:
        with FileLock(Path(tempfile.gettempdir(), lock)):  # which has locks, as not every network disk does
            if path.is_file():
                return None
            path.parent.mkdir(parents=True, exist_ok=True)
            _sweep(path.parent)
            with _claimed(path) as part:
                try:
                    return _fetched(url, path, part, silence, by_hand)
                except BaseException as error:
                    if isinstance(error, OSError) or not (_note(part, url) and part.stat().st_size):
                        part.unlink(missing_ok=True)
                        _note_of(part).unlink(missing_ok=True)
                    raise
    except _Failed as failure:
        raise ConnectionError(str(failure)) from failure
    except OSError as error:
        trouble = "the disk is full" if error.errno == errno.ENOSPC else "cannot be written"
        told = f"{trouble} ({error.strerror or error}); make room, or name another folder in BITLIB_CACHE"
        raise OSError(error.errno, f"{path}: {told}") from error


def _fetched(url: str, path: Path, part: Path, silence: float, by_hand: str) -> str:
    """Try until the part is the file, and move it into its place. Raises: _Failed for good, OSError."""
    attempts = failures = furthest = 0
    with bar(None, "byte", desc=path.name, unit_scale=True, leave=False) as progress:
        while True:
            attempts += 1
            now = SimpleNamespace(received=0, reached=0, resumed=False)
            try:
                with part.open("r+b") as file:
                    _watched(partial(_receive, url, part, file, now, progress, silence), now, 3 * silence)
                    file.flush()
                    os.fsync(file.fileno())
                digest = _verified(part, path.name, now)
                break
            except _Failed as failure:
                if failure.anew:
                    _note_of(part).unlink(missing_ok=True)
                failures = 1 if now.reached > furthest else failures + 1
                furthest = max(furthest, now.reached)
                most = ATTEMPTS if failure.reached or furthest else FIRST_ATTEMPTS
                if failure.final:
                    raise _Failed(f"{_shown(url)}: {failure}. Or {by_hand}") from failure
                if failures >= most or attempts >= MOST_ATTEMPTS:
                    right = ", and BITLIB_MIRROR is right," if mirror() else ""
                    size = part.stat().st_size if _note(part, url) else 0
                    later = f" (it resumes after {size:,} bytes)" if size else ""
                    last = "The last time" if failure.reached else "No server was reached"
                    raise _Failed(
                        f"{_shown(url)}: cannot be downloaded; see whether this machine has a network{right} "
                        f"and try again later{later}. Or {by_hand}, or take the bundled model, "
                        f"{BUNDLED!r}. Tried {attempts} times. {last}: {failure}"
                    ) from failure
                time.sleep(max(PAUSE * 2 ** (failures - 1), failure.pause))
    write_note(path, digest)
    part.replace(path)
    _note_of(part).unlink()
    return digest


def _watched(work: Callable[[], None], now: SimpleNamespace, seconds: float) -> None:
    """Do the work in a thread, and leave it alone when it is too slow: servers can make the libraries below
    wait, or read, without an end. Its file is then closed, so it can do no harm."""
    done: Future = Future()

    def run() -> None:
        try:
            work()
            done.set_result(None)
        except BaseException as error:
            done.set_exception(error)

    before = 0
    threading.Thread(target=run, name="bitlib-download", daemon=True).start()
    while not wait([done], seconds).done:
        if now.received - before < SLOWEST * seconds:
            with suppress(AttributeError, ValueError, RuntimeError, OSError):  # no response, or it has ended
                now.response.raw.shutdown()
            raise _Failed(f"less than {SLOWEST:,} bytes a second for {seconds:.0f} seconds")
        before = now.received
    done.result()


def _receive(url: str, part: Path, file, now: SimpleNamespace, progress, silence: float) -> None:
    """One try: get the file, or what is missing of it. `now` says how far it is."""
    note, position = _note(part, url), file.seek(0, os.SEEK_END)
    length = note.get("length")
    if not note or position > (length or position):
        position = 0
    elif position == length:  # the last byte again, so that the server says whether it still is that file
        position -= 1
    file.truncate(position)
    headers = {"Accept-Encoding": "identity"}  # lengths and hashes are those of the file as it is stored
    if position:
        headers |= {"Range": f"bytes={position}-"} | ({"If-Range": note["etag"]} if note["etag"] else {})
    with _response(url, headers, silence) as response:
        now.response, theirs = response, _marks(response.headers)
        if response.status_code == 200:
            position, length = 0, _number(response.headers, "x-goog-stored-content-length", "Content-Length")
            file.truncate(0)  # raises an error if this try has been left alone
            note = {"url": _sha256(url), "length": length} | theirs
            _note_of(part).write_text(json.dumps(note), "utf-8")
        else:
            same = [note[mark] == its for mark, its in theirs.items() if its and note.get(mark)]
            here = response.headers.get("Content-Range", "").startswith(f"bytes {position}-")
            if not (here and same and all(same)):
                raise _Failed("the server cannot go on where the download broke", anew=True)
            now.resumed = True
        now.note = note
        free, missing = shutil.disk_usage(part.parent).free, (length or position) - position
        if free < missing:
            raise OSError(errno.ENOSPC, f"{missing:,} bytes are needed, {free:,} are free")
        file.seek(position)
        progress.total, progress.n = length, position
        largest = LARGEST if ".npz" in part.suffixes else LARGEST_TEXT
        # As it arrives: a read of a fixed size would lose what came before a break.
        while chunk := _on_network(response.raw.read1, _CHUNK):
            file.write(chunk)
            now.received += len(chunk)
            now.reached = position = position + len(chunk)
            progress.update(len(chunk))
            if position > (length or largest) or (length or 0) > largest:
                raise _Failed(f"more than {min(length or largest, largest):,} bytes", anew=True)
    if position < (length or 0):
        raise _Failed(f"the connection broke after {position:,} of {length:,} bytes")


@contextmanager
def _response(url: str, headers: dict[str, str], silence: float) -> Iterator[requests.Response]:
    """The response with the file, or with a part of it. Raises: _Failed, if it is something else."""

    def leave(response, *_, **__):  # requests would read the body of a redirection, however long it is
        if response.is_redirect:
            response.close()
            target = urljoin(response.url, response.headers["Location"])
            if not target.startswith("https://" if response.url[:6] == "https:" else ("http://", "https://")):
                raise _Failed(f"the server leads to {_shown(target)}")

    with requests.Session() as session:
        session.max_redirects, session.hooks["response"] = 10, [leave]
        with _on_network(session.get, url, headers=headers, stream=True, timeout=silence) as found:
            status, kind = found.status_code, found.headers.get("Content-Type", "").lower()
            told = f"the server answers {status} {_shown(found.reason)}"
            if status in (408, 429, 500, 502, 503, 504):
                raise _Failed(told, min(_number(found.headers, "Retry-After") or 0, 60))
            if status == 511 or (status < 300 and kind.startswith(("text/html", "application/xhtml"))):
                raise _Failed(_WEB_PAGE, final=True)
            if status not in (200, 206, 416):
                raise _Failed(f"{told}; see that the address, BITLIB_MIRROR if set, is right", final=True)
            yield found


def _on_network(call: Callable, *arguments: Any, **options: Any) -> Any:
    """Call it. Raises: _Failed, whatever goes wrong: the network's fault, which may be over next time."""
    try:
        return call(*arguments, **options)
    except _Failed:
        raise
    except Exception as error:
        chain: list[BaseException] = [error]
        while earlier := chain[-1].__cause__ or chain[-1].__context__:
            chain.append(earlier)
        told = _shown(getattr(chain[-1], "strerror", None) or chain[-1]) or type(chain[-1]).__name__
        raise _Failed(told, reached=not any(isinstance(link, _UNREACHED) for link in chain)) from error


def _verified(part: Path, file: str, now: SimpleNamespace) -> str:
    """The SHA-256 of what came, once it is what the server has, and such a file. Raises: _Failed."""
    npz, note = file.endswith(".npz"), now.note
    digests: dict[str, Any] = {"sha256": hashlib.sha256()}
    if note["md5"]:
        digests["md5"] = hashlib.md5(usedforsecurity=False)
    elif note["crc32c"]:  # some systems have it in slow Python only
        import google_crc32c

        digests["crc32c"] = google_crc32c.Checksum()
    with part.open("rb") as stream:
        start = stream.peek()
        while chunk := stream.read(_CHUNK):
            for digest in digests.values():
                digest.update(chunk)
    sha256 = digests.pop("sha256").hexdigest()
    try:
        if start.lstrip(b"\xef\xbb\xbf\xff\xfe\0 \t\r\n\f").startswith(b"<"):
            raise ValueError(_WEB_PAGE)
        for name, digest in digests.items():
            if base64.b64encode(digest.digest()).decode() != note[name]:
                raise ValueError(f"damaged on the way: its {name.upper()} is not the server's")
        if npz:
            with zipfile.ZipFile(part) as archive:
                if sum(member.file_size for member in archive.infolist()) > LARGEST:
                    raise ValueError(f"more than {LARGEST:,} bytes are packed in it")
                # Where the server sent no hash, the archive's own checksums must do.
                if not digests and (damaged := archive.testzip()):
                    raise ValueError(f"damaged on the way, in {damaged}")
        else:
            content = part.read_bytes()
            if len(content) != BYTES.get(file, len(content)):
                raise ValueError(f"{len(content):,} bytes, it has {BYTES[file]:,}")
            parse_class_list(content, file)
    except Exception as error:  # zipfile and what it unpacks with raise a dozen kinds
        told = f"not {'a whole .npz' if npz else 'the published list'} ({_shown(error) or repr(error)})"
        told += "; try again, or from another network"
        raise _Failed(told, anew=True, final=not now.resumed) from error
    return sha256


@contextmanager
def _claimed(path: Path) -> Iterator[Path]:
    """The hidden file for a download of `path`, which may hold what an earlier one left."""
    part = path.with_name(f".{path.name}.partial")
    with part.open("ab") as lock:
        try:
            import fcntl

            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except ImportError:  # Windows, where an open file cannot be renamed
            lock.close()
        except OSError:  # another machine or user is at it, so we work apart
            part = path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")
            part.touch()
        yield part


def _sweep(folder: Path) -> None:
    """Remove what killed downloads left in a folder, when it is old; each try makes its part young again."""
    for part in folder.glob(".*.partial"):
        with suppress(OSError):
            if part.stat().st_mtime < time.time() - DAYS * 86400:
                part.unlink()
                _note_of(part).unlink(missing_ok=True)


def _note_of(part: Path) -> Path:
    return part.with_name(part.name + ".json")


def _note(part: Path, url: str) -> dict:
    """Which file a part is of: its length, ETag and hashes; empty if a download of `url` cannot resume it."""
    try:
        note = json.loads(_note_of(part).read_bytes())
        length, *marks = (note[name] for name in ("length", *_MARKS))
        fits = note["url"] == _sha256(url) and (length is None or (type(length) is int and length > 0))
        return note if fits and any(marks) and all(isinstance(mark, str | None) for mark in marks) else {}
    except (OSError, ValueError, RecursionError, LookupError, TypeError):
        return {}


def _marks(headers: Mapping[str, str]) -> dict[str, str | None]:
    """The ETag of a file, if it is a strong one, and its hashes, in base64."""
    marks = dict(pair.strip().partition("=")[::2] for pair in headers.get("x-goog-hash", "").split(","))
    marks["etag"] = headers["ETag"] if headers.get("ETag", "").startswith('"') else ""
    return {mark: marks.get(mark) for mark in _MARKS}


def _number(headers: Mapping[str, str], *names: str) -> int | None:
    """The first of these headers that is a plain number."""
    texts = (headers.get(name, "") for name in names)
    return next((int(text) for text in texts if re.fullmatch("[0-9]{1,15}", text)), None)


def _shown(text: object) -> str:
    """Text from elsewhere for a message: short, without passwords and control characters."""
    text = re.sub(r"//[^/@]*@", "//", str(text))[:300]
    return text if text.isprintable() else repr(text)[1:-1]


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
