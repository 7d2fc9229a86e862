"""Replacing files and folders: failed, interrupted and killed at each call of the system."""

import errno
import itertools
import multiprocessing
import os
import signal
import sys
import threading
from contextlib import nullcontext
from pathlib import Path
from unittest import mock

import pytest

from bitlib.files import writing
from bitlib.files.writing import replacing

CALLS = ("mkdir", "open", "close", "rename", "replace", "fsync", "unlink", "rmdir", "scandir")
ENDINGS = ("file", "exchanged", "two renames")
"""What is replaced: a file; a folder in one step; a folder where the system cannot."""


def two_renames():
    return mock.patch.object(writing, "_exchange", return_value=False)


def can_exchange(folder):
    one, other = folder / "one", folder / "other"
    one.mkdir()
    other.mkdir()
    return writing._exchange(one, other)


def anything(folder):
    return None


def write(path, text, ending):
    """Replace `path`: a file that holds a text, or a folder with two files that hold it."""
    if ending == "file":
        with replacing(path) as new:
            new.write_text(text)
        return
    with two_renames() if ending == "two renames" else nullcontext(), replacing(path, anything) as new:
        (new / "inner").mkdir(parents=True)
        (new / "a").write_text(text)
        (new / "inner" / "b").write_text(text)


def content(path):
    """The text in a path that is whole; None if there is nothing."""
    if not path.exists():
        return None
    if path.is_file():
        return path.read_text()
    assert sorted(p.relative_to(path).as_posix() for p in path.rglob("*")) == ["a", "inner", "inner/b"]
    texts = {(path / "a").read_text(), (path / "inner" / "b").read_text()}
    assert len(texts) == 1
    return texts.pop()


class Trouble:
    """Calls of the system, counted; the one of a number fails, is interrupted, or kills the process.

    `after` lets the call happen first; `from_then_on` makes all later ones fail as well.
    """

    def __init__(self, at, trouble, after=False, from_then_on=False):
        self.at, self.trouble, self.after, self.from_then_on = at, trouble, after, from_then_on
        self.count = 0

    def wrapped(self, name, function):
        def call(*arguments, **options):
            self.count += 1
            if self.count != self.at and not (self.from_then_on and self.count > self.at):
                return function(*arguments, **options)
            try:
                if self.after or name == "close":  # which closes even if it fails
                    function(*arguments, **options)
            finally:
                if self.trouble == "kill":
                    os.kill(os.getpid(), signal.SIGKILL)
            raise self.trouble

        return call

    def __enter__(self):
        self.patches = [mock.patch.object(os, name, self.wrapped(name, getattr(os, name))) for name in CALLS]
        self.patches.append(mock.patch.object(writing, "_exchange", self.wrapped("", writing._exchange)))
        for patch in self.patches:
            patch.start()
        return self

    def __exit__(self, *_):
        for patch in reversed(self.patches):
            patch.stop()


def run_with_trouble(path, ending, *trouble):
    """Write "new" with trouble: whether the trouble was past the last call."""
    with two_renames() if ending == "two renames" else nullcontext(), Trouble(*trouble) as counted:
        try:
            write(path, "new", "exchanged" if ending == "two renames" else ending)
        except (OSError, KeyboardInterrupt):
            return False
    return counted.count < counted.at


def run_to_its_death(path, ending, *trouble):
    os.fsync = do_not_flush
    if run_with_trouble(path, ending, *trouble):
        os._exit(33)  # it lives


@pytest.fixture(autouse=True)
def quick_flush(monkeypatch):
    """A flush takes up to a tenth of a second; one test looks at flushes."""
    monkeypatch.setattr(os, "fsync", do_not_flush)


def do_not_flush(descriptor):
    pass


@pytest.fixture
def place(tmp_path):
    """A path to write to, in a folder with neighbours that nobody may touch."""
    (tmp_path / "neighbour").write_text("mine")
    (tmp_path / ".model.partial-mine").mkdir()
    (tmp_path / ".model.partial-notes123").mkdir()
    (tmp_path / ".model.partial-notes123" / "thesis").write_text("mine")
    (tmp_path / ".model.npz.partial-abcdefgh").mkdir()
    before = {path: path.is_file() and path.read_bytes() for path in tmp_path.rglob("*")}
    yield tmp_path / "model"
    assert all((path.read_bytes() if data else path.is_dir()) for path, data in before.items())
    assert {p for p in tmp_path.rglob(".*") if ".partial-" in p.name} == {
        p for p in before if p.name[0] == "."
    }


def assert_recovers(path, ending, expected):
    """The next writer puts back what a killed one moved away, even if it then fails, and sweeps the rest."""

    def stop():
        raise ZeroDivisionError

    with (
        pytest.raises(ZeroDivisionError),
        replacing(path, None if ending == "file" else anything),
    ):
        stop()
    assert content(path) in expected
    write(path, "newer", ending)
    assert content(path) == "newer"


@pytest.mark.parametrize("old", [True, False], ids=["replaced", "first"])
@pytest.mark.parametrize("ending", ENDINGS)
class TestTroubleAtEachCall:
    @pytest.mark.parametrize(
        "trouble",
        [
            (OSError(errno.ENOSPC, "disk full"),),
            (OSError(errno.EIO, "disk gone"), False, True),
            (KeyboardInterrupt(),),
            (KeyboardInterrupt(), True),
        ],
        ids=["disk full", "disk gone", "Ctrl-C before", "Ctrl-C after"],
    )
    def test_failure_leaves_old_or_new(self, place, ending, old, trouble):
        expected = ("old", "new") if old else (None, "new")
        seen = set()
        for at in range(1, 1000):
            if old:
                write(place, "old", ending)
            done = run_with_trouble(place, ending, at, *trouble)
            seen.add(content(place))
            gone = "two renames" in ending and trouble[1:] == (False, True)  # nothing can put back the old
            assert content(place) in (*expected, None) if gone else content(place) in expected
            assert_recovers(place, ending, expected)
            if done:
                break
            if not old:
                remove(place)
        assert seen >= set(expected)  # there was trouble before the path changed, and after

    @pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
    def test_kill_leaves_old_or_new(self, place, ending, old, after):
        if not hasattr(signal, "SIGKILL"):
            pytest.skip("this system has no kill -9")
        processes = multiprocessing.get_context("forkserver")
        processes.set_forkserver_preload([__name__])
        expected = ("old", "new") if old else (None, "new")
        missing, seen = 0, set()
        for at in range(1, 1000):
            if old:
                write(place, "old", ending)
            process = processes.Process(target=run_to_its_death, args=(place, ending, at, "kill", after))
            process.start()
            process.join()
            assert process.exitcode in (33, -signal.SIGKILL)
            missing += old and not place.exists()
            seen.add(content(place))
            if ending != "two renames":
                assert content(place) in expected
            assert_recovers(place, ending, expected)
            if process.exitcode == 33:
                break
            if not old:
                remove(place)
        assert seen >= set(expected)
        assert missing == (ending == "two renames" and old)  # between the two, and nowhere else


def remove(path):
    if path.is_file():
        path.unlink()
    for part in sorted(path.rglob("*"), reverse=True):
        part.rmdir() if part.is_dir() else part.unlink()
    if path.exists():
        path.rmdir()


@pytest.mark.parametrize("ending", ENDINGS)
def test_ctrl_c_at_each_line_leaves_old_or_new(place, ending):
    def run(at):
        """Whether the line was reached."""
        count = 0

        def trace(frame, event, argument):
            nonlocal count
            if frame.f_code.co_filename != writing.__file__:
                return None
            if event == "line":
                count += 1
                if count == at:
                    raise KeyboardInterrupt
            return trace

        former = sys.gettrace()
        sys.settrace(trace)
        try:
            write(place, "new", ending)
        except KeyboardInterrupt:
            return True
        finally:
            sys.settrace(former)
        return count >= at

    seen = set()
    for at in range(1, 1000):
        write(place, "old", ending)
        reached = run(at)
        seen.add(content(place))
        if not reached:
            break
    assert seen == {"old", "new"}
    assert_recovers(place, ending, ("old", "new"))


@pytest.mark.parametrize("ending", ENDINGS)
def test_all_is_on_the_disk_before_the_rename_and_the_rename_before_the_return(place, ending, monkeypatch):
    write(place, "old", ending)
    events = []

    def flushed(descriptor):
        events.append(os.fstat(descriptor).st_ino)

    def watched(function):
        def renamed(*arguments):
            done = function(*arguments)
            if done is not False:
                events.append("renamed")
            return done

        return renamed

    for name in ("rename", "replace"):
        monkeypatch.setattr(os, name, watched(getattr(os, name)))
    monkeypatch.setattr(writing, "_exchange", watched(writing._exchange))
    monkeypatch.setattr(os, "fsync", flushed)
    write(place, "new", ending)
    first = events.index("renamed")
    last = len(events) - events[::-1].index("renamed") - 1
    written = {path.stat().st_ino for path in [place, *place.rglob("*")]}
    assert written <= set(events[:first])
    assert place.parent.stat().st_ino in events[last:]


class TestReadersAndWriters:
    def test_a_reader_never_finds_the_path_missing(self, place):
        if not can_exchange(place.parent):
            pytest.skip("this system, or this disk, cannot exchange two names")
        write(place, "0", "exchanged")
        missing, reads, stop = [], itertools.count(), threading.Event()

        def read():
            while not stop.is_set():
                next(reads)
                try:
                    assert (place / "a").read_text()
                except FileNotFoundError as error:
                    missing.append(error)

        readers = [threading.Thread(target=read) for _ in range(2)]
        for reader in readers:
            reader.start()
        for number in range(100):
            write(place, str(number), "exchanged")
        stop.set()
        for reader in readers:
            reader.join()
        assert next(reads) > 100
        assert not missing

    @pytest.mark.parametrize("ending", ENDINGS)
    def test_two_writers_both_succeed(self, place, ending):
        processes = multiprocessing.get_context("spawn")
        writers = [processes.Process(target=write_often, args=(place, name, ending)) for name in "ab"]
        for writer in writers:
            writer.start()
        for writer in writers:
            writer.join()
        assert [writer.exitcode for writer in writers] == [0, 0]
        assert content(place) in ("a29", "b29")

    @pytest.mark.parametrize("ending", ENDINGS)
    def test_a_living_writer_is_not_swept(self, place, ending):
        with replacing(place) as new:
            new.write_text("slow")
            write(place.with_name("other"), "x", ending)
            with replacing(place) as newer:
                newer.write_text("quick")
            assert content(place) == "quick"
            assert new.read_text() == "slow"
        assert content(place) == "slow"

    def test_a_disk_without_locks_is_written_and_never_swept(self, place, monkeypatch):
        def acquire(self, timeout):
            Path(self.lock_file).touch()
            raise OSError(errno.ENOLCK, "no locks available")

        monkeypatch.setattr(writing.FileLock, "acquire", acquire)
        with replacing(place) as new:
            new.write_text("first")
            write(place, "second", "file")
            assert new.read_text() == "first"
        assert content(place) == "first"


def write_often(path, name, ending):
    os.fsync = do_not_flush
    for number in range(30):
        write(path, f"{name}{number}", ending)


class TestKinds:
    def test_a_file_never_replaces_a_folder(self, place):
        write(place, "old", "exchanged")
        with pytest.raises(IsADirectoryError, match=r"^path: .*model is a folder, expected a file"):
            write(place, "new", "file")
        assert content(place) == "old"

    def test_not_one_that_came_while_it_was_written(self, place):
        with pytest.raises(IsADirectoryError), replacing(place) as new:  # noqa: PT012
            new.write_text("new")
            place.mkdir()
        assert place.is_dir()

    def test_a_folder_never_replaces_a_file(self, place):
        write(place, "old", "file")
        with pytest.raises(FileExistsError, match=r"^path: .*model exists and is not a folder"):
            write(place, "new", "exchanged")
        assert content(place) == "old"

    @pytest.mark.parametrize("ending", ENDINGS)
    def test_neither_replaces_anything_else(self, place, ending):
        if not hasattr(os, "mkfifo"):
            pytest.skip("this system has no pipes with a name")
        os.mkfifo(place)
        with pytest.raises(FileExistsError, match="exists and is not a"):
            write(place, "new", ending)
        assert place.is_fifo()

    @pytest.mark.parametrize("ending", ENDINGS[1:])
    @pytest.mark.parametrize("looks", [1, 2, 3], ids=["before", "while written", "at the last moment"])
    def test_a_folder_with_more_in_it_stays(self, place, ending, looks):
        """Whenever the other file comes, up to the moment in which the folder is moved away."""
        write(place, "old", ending)
        calls = itertools.count(1)

        def more(folder):
            if next(calls) == looks:
                (place if place.exists() and looks < 3 else folder).joinpath("thesis").write_text("mine")
            return "holds thesis" if (folder / "thesis").exists() else None

        with (
            two_renames() if ending == "two renames" else nullcontext(),
            pytest.raises(FileExistsError, match=r"^path: .*model holds thesis; choose another path"),
            replacing(place, more) as new,
        ):
            new.mkdir()
        assert (place / "thesis").read_text() == "mine"
        (place / "thesis").unlink()
        assert content(place) == "old"

    def test_an_empty_folder_is_replaced(self, place):
        place.mkdir()
        write(place, "new", "exchanged")
        assert content(place) == "new"

    def test_a_missing_folder_around_it_is_named(self, tmp_path):
        with pytest.raises(FileNotFoundError, match="nowhere: no such folder, expected one to write x into"):
            write(tmp_path / "nowhere" / "x", "new", "file")

    def test_nothing_written_is_an_error(self, place):
        with pytest.raises(FileNotFoundError), replacing(place):
            pass


class TestLinks:
    @pytest.mark.parametrize("relative", [False, True])
    @pytest.mark.parametrize("old", [True, False], ids=["replaced", "dangling"])
    @pytest.mark.parametrize("ending", ENDINGS)
    def test_what_a_link_points_to_is_replaced(self, place, ending, old, relative):
        (place.parent / "far").mkdir()
        target = place.parent / "far" / "target"
        if old:
            write(target, "old", ending)
        place.symlink_to(Path("far", "target") if relative else target)
        write(place, "new", ending)
        assert place.is_symlink()
        assert content(target) == "new"
        assert list(target.parent.iterdir()) == [target]

    def test_a_link_to_itself_is_refused(self, place):
        place.symlink_to(place)
        with pytest.raises(OSError, match="path: expected a file or folder, received a link to itself"):
            write(place, "new", "file")
        assert place.is_symlink()
