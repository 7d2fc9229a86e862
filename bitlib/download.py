"""From a published address to a file that is whole, or to an error that says what to do.

What a bucket of 4 GB files needs besides a plain download: a broken one goes on where it broke, in a later
process too, and ends in any case; what comes is compared with what the server says it has.
"""

from __future__ import annotations

import errno
import functools
import hashlib
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from concurrent.futures import TimeoutError as NotYet
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import urljoin

from bitlib import contents, partial
from bitlib.digests import sha256 as sha256
from bitlib.digests import verify as verify
from bitlib.digests import write_note
from bitlib.progress import bar
from bitlib.responses import Broken, Identity, Unreachable, cause, public, require_file, shown
from bitlib.settings import offline as offline
from bitlib.settings import timeout
from bitlib.zoo import BUNDLED

ATTEMPTS = 5
"""Tries in a row that bring no byte that had not come before, after which a download is given up."""

FIRST_ATTEMPTS = 2
"""Tries after which it is given up where no server has been reached yet."""

MOST_ATTEMPTS = 100
"""Tries in all, after which it is given up even if each brought something."""

SLOWEST = 1000
"""Bytes a second that a try has to bring, on average over three times the timeout, or it counts as broken."""

PAUSE = 1.0
"""Seconds before the second try; each further one waits twice as long."""

_REDIRECTIONS = 10
_CHUNK = 1 << 20


def download(url: str, path: Path) -> Path:
    """Get a file once, whoever else wants it at the same time.

    Args:
        url: http or https.
        path: where to; its folders are made. A `.sha256` is written beside it. Until it is whole it grows as
            `.<name>.partial`, which stays when the download is killed or given up, for the next to go on.

    Returns:
        `path`.

    Raises:
        ConnectionError: it cannot be had, or what came is not it. The message says what to do. It is
            raised after at most `MOST_ATTEMPTS` tries, none slower than `SLOWEST`.
        OSError: it cannot be written there: read-only, disk full. Nothing is left behind.
        ValueError: `BITLIB_TIMEOUT` makes no sense.
    """
    from filelock import FileLock

    silence = timeout()
    # Locks lie apart: a cache holds nothing else that can be seen but what is whole.
    locks = Path(tempfile.gettempdir(), f"bitlib-locks-{getattr(os, 'getuid', lambda: 0)()}")
    locks.mkdir(exist_ok=True)
    name = hashlib.sha256(str(path.absolute()).encode()).hexdigest()[:32]
    try:
        with FileLock(locks / f"{name}.lock"):
            if path.is_file():
                return path
            path.parent.mkdir(parents=True, exist_ok=True)
            partial.sweep(path.parent)
            with partial.claimed(path) as part:
                _Downloader(url, path, part, silence).run()
    except OSError as error:
        if isinstance(error, ConnectionError):
            raise
        raise _about_the_disk(error, path) from error
    return path


class _Downloader:
    """One download: `part` grows to what the server has, is checked, and becomes `path`."""

    def __init__(self, url: str, path: Path, part: Path, silence: float):
        self.url, self.path, self.part, self.silence = url, path, part, silence
        self.shown_url, self.url_hash = public(url), hashlib.sha256(url.encode()).hexdigest()
        self.identity = Identity()  # of the file that the part is of
        self.leftover = False  # whether an earlier download began the part
        self.received = self.reached = 0  # bytes in all; the furthest of the present try
        self.hang_up: Callable[[], None] = lambda: None  # ends what a response still reads

    def run(self) -> None:
        try:
            self._take_up()
            digest = self._fetch()
            with self.part.open("r+b") as file:
                os.fsync(file.fileno())
            write_note(self.path, digest)
            partial.note_of(self.part).unlink(missing_ok=True)
            self.part.replace(self.path)
        except BaseException as error:
            of_the_disk = isinstance(error, OSError) and not isinstance(error, ConnectionError)
            if of_the_disk or not self._can_be_continued():
                partial.discard(self.part)
            raise

    def _take_up(self) -> None:
        """Go on with what an earlier download left, if it says of which file, and that file is wanted."""
        size, note = self.part.stat().st_size, partial.read_note(self.part)
        self.identity = Identity.noted(note) or Identity()
        length = self.identity.length
        if self._can_be_continued() and note.get("url") == self.url_hash and size <= (length or size):
            self.leftover = True
            if size == length:  # the last byte again, so that the server says whether it still is that file
                os.truncate(self.part, size - 1)
        else:
            self._start_anew()

    def _can_be_continued(self) -> bool:
        return bool(self.identity.recognisable() and self.part.stat().st_size)

    def _start_anew(self) -> None:
        os.truncate(self.part, 0)
        partial.note_of(self.part).unlink(missing_ok=True)
        self.identity, self.leftover = Identity(), False

    def _fetch(self) -> str:
        """Try until the part is the file. Returns: its SHA-256. Raises: ConnectionError, OSError."""
        attempts = failures = furthest = 0
        with bar(None, "byte", desc=self.path.name, unit_scale=True, leave=False) as progress:
            while True:
                attempts += 1
                self.reached = 0
                try:
                    with self.part.open("r+b") as file:
                        self._watched(functools.partial(self._try, file, progress))
                    return self._checked()
                except Broken as error:
                    failures = 1 if self.reached > furthest else failures + 1
                    furthest = max(furthest, self.reached)
                    outset = isinstance(error, Unreachable) and not self.received
                    if failures >= (FIRST_ATTEMPTS if outset else ATTEMPTS) or attempts >= MOST_ATTEMPTS:
                        raise ConnectionError(self._given_up(error, attempts)) from error
                    time.sleep(max(PAUSE * 2 ** (failures - 1), error.pause))

    def _watched(self, work: Callable[[], None]) -> None:
        """Do the work in a thread, and leave it alone when it is too slow: some of what a server can do makes
        the libraries below wait, or read, without an end. Left alone it does no harm: its file is closed,
        and nothing more arrives.
        """
        future: Future[None] = Future()

        def run() -> None:
            try:
                work()
                future.set_result(None)
            except BaseException as error:
                future.set_exception(error)

        threading.Thread(target=run, name="bitlib-download", daemon=True).start()
        seconds = 3 * self.silence
        while True:
            before = self.received
            try:
                return future.result(seconds)
            except NotYet:
                if future.done():
                    return future.result()
                if self.received - before < SLOWEST * seconds:
                    self.hang_up()
                    raise Broken(f"less than {SLOWEST:,} bytes a second for {seconds:.0f} seconds") from None

    def _try(self, file, progress) -> None:
        """Get the whole, or what is missing of it."""
        position = file.seek(0, os.SEEK_END)
        # As it is stored: lengths and hashes are those of the file, not of a compressed form of it.
        headers = {"Accept-Encoding": "identity"}
        if position:
            headers |= {"Range": f"bytes={position}-"}
            headers |= {"If-Range": self.identity.etag} if self.identity.etag else {}
        with _response(self.url, headers, self.silence) as response:
            self.hang_up = functools.partial(_shut_down, response.raw)
            if response.status_code == 416:
                raise self._restart(file, "the server cannot go on where the download broke")
            require_file(response, self.shown_url, self._by_hand(), asked_for_part=position > 0)
            if response.status_code == 200:
                position = file.seek(0)
                file.truncate()  # raises an error if this try has been left alone
                self.leftover, self.identity = False, Identity.of(response.headers)
                partial.write_note(self.part, {"url": self.url_hash} | self.identity.fields())
            elif not self.identity.continued_by(response.headers, position, surely=self.leftover):
                raise self._restart(file, "the server went on elsewhere")
            self._receive(response, file, position, progress)

    def _receive(self, response, file, position: int, progress) -> None:
        length, largest = self.identity.length, contents.largest(self.path.name)
        if (length or 0) > largest:
            raise ConnectionError(self._too_large(f"{length:,}", largest))
        _require_space(self.path, (length or position) - position)
        progress.total, progress.n = length, position
        while True:
            with _network():  # as it arrives: a read of a fixed size would lose what came before a break
                chunk = response.raw.read1(_CHUNK)
            if not chunk:
                break
            file.write(chunk)
            position += len(chunk)
            self.received += len(chunk)
            self.reached = position
            progress.update(len(chunk))
            if position > (length or largest):
                raise self._restart(file, f"more than the {length or largest:,} bytes expected")
        if length is not None and position < length:
            raise Broken(f"the connection broke after {position:,} of {length:,} bytes")

    def _restart(self, file, reason: str) -> Broken:
        file.seek(0)
        file.truncate()
        self.leftover = False
        return Broken(reason)

    def _checked(self) -> str:
        try:
            return contents.checked(self.part, self.path.name, self.shown_url, self.identity)
        except ConnectionError as error:
            began_earlier = self.leftover
            self._start_anew()
            if began_earlier:
                raise Broken(str(error)) from error
            raise

    def _by_hand(self) -> str:
        return (
            f"put the file at {self.path} from elsewhere, or name a folder that holds it in BITLIB_MIRROR "
            "(bitlib.checkpoint.prefetch fills one)"
        )

    def _too_large(self, length: str, largest: int) -> str:
        return (
            f"{self.shown_url}: the server announces {length} bytes, the largest published file has less "
            f"than {largest:,}. Or {self._by_hand()}"
        )

    def _given_up(self, error: Exception, attempts: int) -> str:
        size = self.part.stat().st_size
        later = f" (it goes on after {size:,} bytes)" if self._can_be_continued() else ""
        mirror = ", and BITLIB_MIRROR is right," if os.environ.get("BITLIB_MIRROR") else ""
        tried = f" ({error}), tried {attempts} times (at most {MOST_ATTEMPTS}, and {ATTEMPTS} in a row that "
        tried, end = tried + "bring nothing new)", ""
        if isinstance(error, Unreachable):
            tried, end = "", f", or take the bundled model, {BUNDLED!r}. No server was reached: {error}"
        return (
            f"{self.shown_url}: cannot be downloaded{tried}; see whether this machine has a network{mirror} "
            f"and try again later{later}. Or {self._by_hand()}{end}"
        )


def _shut_down(raw) -> None:
    with suppress(ValueError, RuntimeError, OSError):  # it has ended by itself
        raw.shutdown()


@contextmanager
def _network() -> Iterator[None]:
    """Whatever goes wrong in the body is the network's fault, and may go right at the next try."""
    from requests import exceptions
    from urllib3.exceptions import NewConnectionError

    unconnected = exceptions.ConnectTimeout, exceptions.ProxyError, exceptions.SSLError, exceptions.InvalidURL
    try:
        yield
    except Broken:
        raise
    except Exception as error:
        reason = getattr(next(iter(error.args), None), "reason", None)
        made = not isinstance(error, unconnected) and not isinstance(reason, NewConnectionError)
        raise (Broken if made else Unreachable)(cause(error)) from error


@contextmanager
def _response(url: str, headers: dict[str, str], silence: float):
    """The response to a request, its body yet to be read. Redirections are followed to the web only."""
    import requests

    with requests.Session() as session:
        # requests would read the bodies of redirections, however long they are.
        session.get_redirect_target = lambda response: None  # type: ignore[method-assign, assignment]
        for _ in range(_REDIRECTIONS):
            with _network():
                response = session.get(url, headers=headers, stream=True, timeout=silence)
                if not response.is_redirect:
                    break
                response.close()
                target = urljoin(url, response.headers["Location"])
            if not target.startswith("https://" if url.startswith("https://") else ("http://", "https://")):
                raise Broken(f"the server leads from {public(url)} to {shown(public(target))}")
            url = target
        else:
            raise Broken(f"more than {_REDIRECTIONS} redirections")
        with response:
            yield response


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
