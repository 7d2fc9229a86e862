"""Files: where they lie, replaced whole, and their SHA-256.

At every moment a path that `replacing` writes holds the old or the new, whole: through an exception, Ctrl-C,
`kill -9`, a full disk, and a power cut after the return. The new is written into a hidden scratch folder
beside the path, `.<name>.partial-…`, and flushed to disk. A file then takes its place in one rename; a folder
and its predecessor exchange their names in one step, or, where the system cannot do that, the old folder is
moved into the scratch folder first; after a kill between the two renames the next writer puts it back. It
sweeps what killed ones left: a living one holds a lock in its scratch folder.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import itertools
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

_LOCK = "lock"
_PREVIOUS = "previous"


def bundled(file: str) -> Path:
    """A file of `data/`, which is in the installed package, and beside it in a checkout."""
    here = Path(__file__).parent.parent
    for folder in (here / "data", here.parent / "data"):
        if (folder / file).is_file():
            return folder / file
    raise FileNotFoundError(f"{file}: not among the files that ship with bitlib; reinstall the package")


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


def verify(path: Path) -> str:
    """The SHA-256 of a file in hexadecimal, compared with the one noted beside it, or noted there now.

    Raises:
        ConnectionError: the file is not what was downloaded, or the note is damaged.
    """
    digest, note = sha256(path), note_of(path)
    if not note.is_file():
        with suppress(OSError):  # a read-only mirror or cache: there is nowhere to note it
            write_note(path, digest)
        return digest
    with note.open("rb") as file:
        noted = re.match(rb"\s*([0-9A-Fa-f]{64})(?![0-9A-Fa-f])", file.read(200))
    if not noted:
        advice = "delete it to trust the file as it is, or delete both to download it again"
        raise ConnectionError(f"{note}: expected the SHA-256 of {path.name}, found something else; {advice}")
    expected = noted[1].decode().lower()
    if digest != expected:
        which = f"SHA-256 {digest[:12]}…, not {expected[:12]}…"
        advice = f"delete it and {note.name} to download it again"
        raise ConnectionError(f"{path}: changed since it was downloaded ({which}); {advice}")
    return digest


@contextmanager
def replacing(path: str | os.PathLike, unless: Callable[[Path], str | None] | None = None) -> Iterator[Path]:
    """A temporary path beside `path`, of its suffix: takes its place if the body succeeds, else vanishes.

    Where `path` is a link, what it points to is replaced.

    Args:
        path: where to; its folder exists.
        unless: given by a body that writes a folder: of the folder that stands there it returns the reason
            why that must not be replaced ("holds notes.txt, …"), or None.

    Raises:
        FileNotFoundError: the folder that `path` would be in does not exist, or the body wrote nothing.
        IsADirectoryError, FileExistsError: what stands there is a folder and should be a file, or the other
            way round; it is neither; or `unless` objects.
        OSError: the disk is full, or the like.
    """
    given, path = path, Path(os.path.realpath(path))
    if path.is_symlink():
        raise OSError(errno.ELOOP, "path: expected a file or folder, received a link to itself", str(given))
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path.parent}: no such folder, expected one to write {path.name} into")
    _sweep(path)
    _check(path, unless)
    scratch, lock = _scratch_beside(path)
    try:
        new = scratch / f"new{path.suffix}"
        yield new
        for part in [new, *new.rglob("*")]:
            _flush(part)
        if unless:
            _place_folder(new, path, unless)
        else:
            _check(path, unless)
            os.replace(new, path)
        _flush(path.parent)
    finally:
        lock.release()
        _settle(path, scratch)


def _check(path: Path, unless) -> None:
    """Raise unless what stands at `path`, if anything, may be replaced."""
    reason = None
    with suppress(FileNotFoundError):  # another writer moved it away meanwhile
        if path.is_dir():
            reason = unless(path) if unless else "is a folder, expected a file"
        elif path.exists() and (unless or not path.is_file()):
            reason = f"exists and is not a {'folder' if unless else 'file'}"
    if reason:
        kind = FileExistsError if unless or not path.is_dir() else IsADirectoryError
        raise kind(f"path: {path} {reason}; choose another path")


def _place_folder(new: Path, path: Path, unless) -> None:
    """Rename a folder to `path`. What stood there is then in the scratch folder, `new.parent`."""
    for attempt in itertools.count():
        _check(path, unless)
        occupied = path.exists()
        if occupied and _exchange(new, path):
            if not unless(new):
                return
            _exchange(new, path)  # somebody put something there at the last moment: back to the check
            continue
        previous = new.with_name(f"{_PREVIOUS}{attempt:06}")
        try:
            if occupied:
                os.rename(path, previous)
                if unless(previous):
                    os.rename(previous, path)
                    continue
            os.rename(new, path)
            return
        except OSError as error:
            # Another writer was faster: it put a folder there, or moved the one away that was there.
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOENT) or not new.exists():
                raise


def _exchange(one: Path, other: Path) -> bool:
    """Let two paths change places in one step; False where the system or the disk cannot."""
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    with suppress(OSError, TypeError, AttributeError):  # no Linux, or one with an old C library
        return not ctypes.CDLL(None).renameat2(here, os.fsencode(one), here, os.fsencode(other), exchange)
    return False


def _flush(path: Path) -> None:
    """Wait until a file, or the list of names in a folder, is on the disk."""
    if os.name == "nt" and path.is_dir():
        return  # it cannot, and need not
    descriptor = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some network disks cannot flush folders
            raise
    finally:
        os.close(descriptor)


def _scratch_beside(path: Path) -> tuple[Path, FileLock]:
    """A new hidden folder beside `path`, and the lock in it that says that its writer lives."""
    while True:
        scratch = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.partial-"))
        lock = FileLock(scratch / _LOCK)
        try:
            lock.acquire(timeout=0)
        except (Timeout, FileNotFoundError):
            continue  # another writer swept the folder before it was locked
        except (OSError, NotImplementedError):
            if not (scratch / _LOCK).exists():
                scratch.rmdir()
                raise
            # This disk has no locks: then none is swept here either.
        if (scratch / _LOCK).exists():
            return scratch, lock


def _sweep(path: Path) -> None:
    """Recover what killed writers of `path` left beside it, and remove the rest."""
    ours = re.compile(re.escape(f".{path.name}.partial-") + r"\w{8}")
    for scratch in [Path(entry) for entry in os.scandir(path.parent) if ours.fullmatch(entry.name)]:
        with suppress(OSError, NotImplementedError):  # it lives, or is somebody else's
            if (scratch / _LOCK).is_file():
                with FileLock(scratch / _LOCK).acquire(timeout=0):
                    _settle(path, scratch)
            else:
                scratch.rmdir()  # killed before it was locked: empty


def _settle(path: Path, scratch: Path) -> None:
    """Put back what was moved into a scratch folder and not replaced; then remove the scratch folder."""
    with suppress(OSError):  # another writer does the same; or the disk is gone, and the next one will
        moved = max(scratch.glob(f"{_PREVIOUS}*"), default=None)
        if moved and not path.exists():
            os.rename(moved, path)
        for entry in scratch.iterdir():
            if entry.is_dir():
                shutil.rmtree(entry)
            elif entry.name != _LOCK:
                entry.unlink()
        (scratch / _LOCK).unlink(missing_ok=True)  # last: where it is, the next writer goes on
        scratch.rmdir()
