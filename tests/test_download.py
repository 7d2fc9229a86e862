"""Downloads from a server that breaks, lies, stalls and refuses; on loopback."""

import base64
import contextlib
import errno
import hashlib
import io
import os
import socket
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import google_crc32c
import numpy as np
import pytest
import requests

import bitlib
from bitlib import checkpoint, labels, zoo
from bitlib.files import fetching, writing

FILE = "distill/R50x1_224.npz"
LIST = "ilsvrc2012_wordnet_lemmas.txt"
OTHER = b"PK, but not this file"


def an_archive(seed=0, size=300_000):
    buffer = io.BytesIO()
    np.savez(buffer, x=np.random.default_rng(seed).normal(size=size // 8))
    return buffer.getvalue()


def a_list():
    """As long as the published one: 1000 lines, 21675 bytes."""
    lines = [f"name_{index}" for index in range(1000)]
    lines[-1] += "x" * (21675 - 1 - len("\n".join(lines)))
    return ("\n".join(lines) + "\n").encode()


class Server(ThreadingHTTPServer):
    """Serves `files` by path; `tricks` are played one a request, and then no more."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files, self.tricks, self.requests, self.hashes = {}, [], [], ("md5",)
        self.connections = []

    def process_request(self, request, client_address):
        self.connections.append(request)
        super().process_request(request, client_address)

    def hang_up(self):
        """End what still goes on: threads left over would slow every test after them."""
        self.shutdown()
        for connection in self.connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def headers_of(self, content):
        md5 = base64.b64encode(hashlib.md5(content).digest()).decode()
        crc = base64.b64encode(google_crc32c.Checksum(content).digest()).decode()
        told = {"crc32c": f"crc32c={crc}", "md5": f"md5={md5}"}
        headers = {"ETag": f'"{hashlib.md5(content).hexdigest()}"', "Accept-Ranges": "bytes"}
        if self.hashes:
            headers["x-goog-hash"] = ",".join(told[name] for name in self.hashes)
        return headers

    def handle_error(self, *arguments):
        pass


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *arguments):
        pass

    def answer(self, status, headers, content, stop_after=None):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content[:stop_after])

    def do_GET(self):
        server = self.server
        server.requests.append((self.path, dict(self.headers)))
        content = server.files.get(self.path.lstrip("/"))
        trick = server.tricks.pop(0) if server.tricks else None
        if callable(trick):
            return trick(self, content)
        if isinstance(trick, int):
            return self.answer(trick, {"Content-Length": "0", "Retry-After": "0"}, b"")
        if content is None:
            return self.answer(404, {"Content-Length": "3"}, b"no!")
        headers, status = server.headers_of(content), 200
        asked = self.headers.get("Range")
        if asked and self.headers.get("If-Range") in (None, headers["ETag"]):
            start = int(asked.removeprefix("bytes=").rstrip("-"))
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
            content, status = content[start:], 206
        headers["Content-Length"] = str(len(content))
        stop_after = int(trick.removeprefix("break after ")) if isinstance(trick, str) else None
        return self.answer(status, headers, content, stop_after)


@pytest.fixture
def server(monkeypatch, tmp_path):
    monkeypatch.setattr(fetching, "PAUSE", 0.01)
    monkeypatch.delenv("BITLIB_OFFLINE", raising=False)
    with Server() as http:
        threading.Thread(target=http.serve_forever, args=(0.01,), daemon=True).start()
        monkeypatch.setenv("BITLIB_MIRROR", f"http://127.0.0.1:{http.server_port}")
        monkeypatch.setenv("BITLIB_CACHE", str(tmp_path / "cache"))
        yield http
        http.hang_up()


@pytest.fixture
def content(server):
    server.files[FILE] = an_archive()
    return server.files[FILE]


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


def kept(cache):
    return sorted(str(path.relative_to(cache)) for path in cache.rglob("*") if path.is_file())


def refused(match, error=ConnectionError):
    return pytest.raises(error, match=match)


class TestWhole:
    def test_once_and_with_its_hash(self, server, content, cache):
        path = checkpoint.fetch("R50x1_224")
        assert path == cache / FILE
        assert path.read_bytes() == content
        assert kept(cache) == [FILE, FILE + ".sha256"]
        assert (
            cache / (FILE + ".sha256")
        ).read_text() == f"{hashlib.sha256(content).hexdigest()}  R50x1_224.npz\n"
        assert checkpoint.fetch("R50x1_224") == path
        assert len(server.requests) == 1

    @pytest.mark.parametrize("hashes", [("md5",), ("crc32c",), ("crc32c", "md5"), ()])
    def test_whatever_hash_the_server_sends(self, server, content, hashes):
        server.hashes = hashes
        assert checkpoint.fetch("R50x1_224").read_bytes() == content

    def test_by_hub_handle(self, server, content):
        path = checkpoint.fetch("https://tfhub.dev/sayakpaul/distill_bit_resnet50x1_224_classification/1")
        assert path.read_bytes() == content

    def test_class_lists_too(self, server):
        server.files[LIST] = a_list()
        labels.names.cache_clear()
        assert labels.names("ilsvrc2012")[7] == "name 7"
        labels.names.cache_clear()

    def test_changed_afterwards(self, server, content, cache):
        path = checkpoint.fetch("R50x1_224")
        path.write_bytes(content[:-1] + b"!")
        with refused(r"changed since it was downloaded .* delete it and R50x1_224.npz.sha256"):
            checkpoint.fetch("R50x1_224")
        path.unlink()
        assert checkpoint.fetch("R50x1_224").read_bytes() == content

    def test_put_there_by_hand(self, server, cache):
        (cache / "distill").mkdir(parents=True)
        (cache / FILE).write_bytes(OTHER)
        assert checkpoint.fetch("R50x1_224").read_bytes() == OTHER
        assert server.requests == []
        (cache / FILE).write_bytes(OTHER + b"?")
        with refused("changed since"):
            checkpoint.fetch("R50x1_224")


class TestBroken:
    @pytest.mark.parametrize("places", [[0], [1000], [100_000, 50_000, 7], [1] * 9])
    def test_goes_on_where_it_broke(self, server, content, cache, places):
        server.tricks = [f"break after {place}" for place in places]
        assert checkpoint.fetch("R50x1_224").read_bytes() == content
        ranges = [headers.get("Range") for _, headers in server.requests]
        starts = np.cumsum([0, *places])
        assert ranges == [f"bytes={start}-" if start else None for start in starts]
        assert kept(cache) == [FILE, FILE + ".sha256"]

    def test_another_file_meanwhile(self, server, content):
        newer = an_archive(seed=1)

        def replaced(handler, old):
            server.files[FILE] = newer
            headers = server.headers_of(old) | {"Content-Length": str(len(old))}
            handler.answer(200, headers, old, 5000)

        server.tricks = [replaced]
        assert checkpoint.fetch("R50x1_224").read_bytes() == newer

    def test_a_server_that_cannot_go_on(self, server, content):
        def whole(handler, content):
            handler.answer(200, server.headers_of(content) | {"Content-Length": str(len(content))}, content)

        server.tricks = ["break after 500", whole]
        assert checkpoint.fetch("R50x1_224").read_bytes() == content

    def test_a_server_that_goes_on_elsewhere(self, server, content):
        def elsewhere(handler, content):
            headers = {"Content-Range": f"bytes 7-{len(content) - 1}/{len(content)}"}
            handler.answer(206, headers | {"Content-Length": str(len(content) - 7)}, content[7:])

        server.tricks = ["break after 500", elsewhere]
        assert checkpoint.fetch("R50x1_224").read_bytes() == content

    def test_for_ever(self, server, content, cache):
        server.tricks = ["break after 0"] * 50
        with refused(r"cannot be downloaded; .*BITLIB_MIRROR.*Tried 5 times\. The last time: "):
            checkpoint.fetch("R50x1_224")
        assert kept(cache) == []
        assert len(server.requests) == fetching.ATTEMPTS

    @pytest.mark.slow
    def test_a_silent_server(self, server, content, cache, monkeypatch):
        monkeypatch.setenv("BITLIB_TIMEOUT", "1")
        monkeypatch.setattr(fetching, "ATTEMPTS", 2)

        def silent(handler, content):
            handler.answer(
                200, server.headers_of(content) | {"Content-Length": str(len(content))}, content, 999
            )
            handler.wfile.flush()
            time.sleep(3)

        server.tricks = [silent]
        assert checkpoint.fetch("R50x1_224").read_bytes() == content
        (cache / FILE).unlink()
        server.tricks = [lambda handler, content: time.sleep(3)] * 2
        with refused("cannot be downloaded.*timed out"):
            checkpoint.fetch("R50x1_224")
        assert kept(cache) == [FILE + ".sha256"]


class TestLies:
    @pytest.mark.parametrize("hashes", [("md5",), ("crc32c",), ()])
    @pytest.mark.parametrize("damage", ["a bit", "cut"])
    def test_damaged_on_the_way(self, server, content, cache, hashes, damage):
        server.hashes = hashes

        def damaged(handler, content):
            headers = server.headers_of(content)
            content = bytearray(content)
            content[len(content) // 2] ^= 1
            sent = bytes(content if damage == "a bit" else content[: len(content) // 2])
            handler.answer(200, headers | {"Content-Length": str(len(sent))}, sent)

        server.tricks = [damaged]
        with refused(r"damaged on the way|not a whole \.npz"):
            checkpoint.fetch("R50x1_224")
        assert kept(cache) == []

    def test_a_length_that_is_not_the_stored_one(self, server, content, cache):
        def shortened(handler, content):
            headers = server.headers_of(content) | {"x-goog-stored-content-length": str(len(content))}
            handler.answer(200, headers | {"Content-Length": "1000"}, content[:1000])

        server.tricks = [shortened] * 9
        with refused(r"resumes after 1,000 bytes.*the connection broke after 1,000 of 300,\d+ bytes"):
            checkpoint.fetch("R50x1_224")
        assert not (cache / FILE).exists()

    @pytest.mark.parametrize("told", ["text/html; charset=utf-8", "application/octet-stream"])
    def test_a_log_in_page(self, server, content, cache, told):
        page = b"\n<!doctype html><title>Hotel Wi-Fi</title>"
        server.tricks = [
            lambda handler, _: handler.answer(
                200, {"Content-Type": told, "Content-Length": str(len(page))}, page
            )
        ]
        with refused("a web page came instead of the file.*log in"):
            checkpoint.fetch("R50x1_224")
        assert kept(cache) == []

    def test_a_redirection_to_a_log_in_page(self, server, content, cache):
        server.files["login"] = b"<html>"
        server.tricks = [
            lambda handler, _: handler.answer(302, {"Location": "/login", "Content-Length": "0"}, b"")
        ]
        with refused("a web page came instead of the file"):
            checkpoint.fetch("R50x1_224")
        assert kept(cache) == []

    def test_a_zip_of_something_else_is_refused_when_it_is_read(self, server, content):
        with pytest.raises(checkpoint.CheckpointError, match=r"^.*R50x1_224\.npz: "):
            bitlib.load("R50x1_224")


class TestRefusals:
    @pytest.mark.parametrize("status", [403, 404, 410])
    def test_for_good(self, server, cache, status):
        server.tricks = [status]
        with refused(rf"the server answers {status} .*see that the address, BITLIB_MIRROR.*put the file at"):
            checkpoint.fetch("R50x1_224")
        assert kept(cache) == []
        assert len(server.requests) == 1

    @pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
    def test_for_now(self, server, content, status):
        server.tricks = [status, status]
        assert checkpoint.fetch("R50x1_224").read_bytes() == content
        assert len(server.requests) == 3

    @pytest.mark.parametrize("status", [429, 503])
    def test_for_too_long(self, server, content, cache, status):
        server.tricks = [status] * 9
        with refused(rf"try again later.*Tried 5 times\. The last time: the server answers {status} "):
            checkpoint.fetch("R50x1_224")
        assert kept(cache) == []

    def test_pauses_grow_and_heed_the_server(self, server, content, monkeypatch):
        pauses = []
        monkeypatch.setattr(fetching.time, "sleep", pauses.append)
        monkeypatch.setattr(fetching, "PAUSE", 1.0)

        def later(handler, _):
            handler.answer(503, {"Retry-After": "7", "Content-Length": "0"}, b"")

        server.tricks = [500, 500, later]
        checkpoint.fetch("R50x1_224")
        assert pauses == [1, 2, 7]

    def test_no_network(self, monkeypatch, cache):
        monkeypatch.setattr(fetching, "PAUSE", 0.01)
        monkeypatch.setenv("BITLIB_CACHE", str(cache))
        monkeypatch.setenv("BITLIB_MIRROR", "http://127.0.0.1:9/")
        with refused("cannot be downloaded.*see whether this machine has a network"):
            checkpoint.fetch("R50x1_224")
        assert kept(cache) == []

    def test_a_network_that_goes_away_for_a_while(self, server, content, monkeypatch):
        """Once something has come, a server that is not reached is tried as often as one that breaks."""
        plain, gone = requests.Session.get, iter([False, True, True, True])

        def get(self, *arguments, **options):
            if next(gone, False):
                raise requests.exceptions.ConnectTimeout("timed out")
            return plain(self, *arguments, **options)

        monkeypatch.setattr(requests.Session, "get", get)
        server.tricks = ["break after 100000"]
        assert checkpoint.fetch("R50x1_224").read_bytes() == content
        assert len(server.requests) == 2


class TestOffline:
    def test_never_touches_the_network(self, server, content, monkeypatch):
        monkeypatch.setenv("BITLIB_OFFLINE", "1")
        with refused("BITLIB_OFFLINE forbids to download it; unset it, or put the file at"):
            checkpoint.fetch("R50x1_224")
        assert server.requests == []
        monkeypatch.setenv("BITLIB_OFFLINE", "0")
        path = checkpoint.fetch("R50x1_224")
        monkeypatch.setenv("BITLIB_OFFLINE", "1")
        assert checkpoint.fetch("R50x1_224") == path
        assert checkpoint.fetch(zoo.BUNDLED).is_file()

    def test_a_mirror_for_a_class(self, server, content, tmp_path, monkeypatch):
        server.files[LIST] = a_list()
        folder = tmp_path / "mirror"
        copies = checkpoint.prefetch(["R50x1_224", zoo.BUNDLED], folder)
        assert copies == [folder / FILE, folder / "BiT-XS-R14x0.5.npz"]
        monkeypatch.setenv("BITLIB_MIRROR", str(folder))
        monkeypatch.setenv("BITLIB_OFFLINE", "1")
        monkeypatch.setenv("BITLIB_CACHE", str(tmp_path / "another"))
        assert checkpoint.fetch("R50x1_224").read_bytes() == content
        assert checkpoint.fetch_file(LIST).read_bytes() == a_list()
        (folder / FILE).write_bytes(content[:-9])
        with refused("changed since it was downloaded"):
            checkpoint.fetch("R50x1_224")
        with refused("R50x1_160.npz: not in BITLIB_MIRROR"):
            checkpoint.fetch("R50x1_160")


class TestDisk:
    def test_full(self, server, content, cache, monkeypatch):
        monkeypatch.setattr(fetching.shutil, "disk_usage", lambda path: os.statvfs_result and _Usage(10))
        with refused(
            "the disk is full .*300.* bytes are needed, 10 are free.*BITLIB_CACHE", OSError
        ) as caught:
            checkpoint.fetch("R50x1_224")
        assert caught.value.errno == errno.ENOSPC
        assert kept(cache) == []

    def test_full_in_the_middle(self, server, content, cache, monkeypatch):
        def full(self, *arguments):
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(fetching, "_receive", full)
        with refused("the disk is full", OSError):
            checkpoint.fetch("R50x1_224")
        assert kept(cache) == []

    def test_a_cache_that_cannot_be_written(self, server, content, tmp_path, monkeypatch):
        (tmp_path / "file").write_text("in the way")
        monkeypatch.setenv("BITLIB_CACHE", str(tmp_path / "file"))
        with refused("cannot be written .*name another folder in BITLIB_CACHE", OSError):
            checkpoint.fetch("R50x1_224")

    def test_a_read_only_cache_serves_what_it_has(self, server, content, cache, monkeypatch):
        (cache / "distill").mkdir(parents=True)
        (cache / FILE).write_bytes(content)

        def read_only(path):
            raise OSError(errno.EROFS, "Read-only file system")

        monkeypatch.setattr(writing, "write_note", lambda *arguments: read_only(cache))
        assert checkpoint.fetch("R50x1_224").read_bytes() == content


class _Usage:
    def __init__(self, free):
        self.free = free


class TestAtOnce:
    @pytest.mark.slow
    def test_thirty_processes_end_with_one_good_copy(self, server, content, cache):
        code = """
            import hashlib
            from bitlib import checkpoint
            print(hashlib.sha256(checkpoint.fetch("R50x1_224").read_bytes()).hexdigest())
        """
        import textwrap

        server.tricks = ["break after 1000", 503]
        running = [
            subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE, text=True)
            for _ in range(30)
        ]
        printed = {process.communicate(timeout=120)[0].strip() for process in running}
        assert printed == {hashlib.sha256(content).hexdigest()}
        assert kept(cache) == [FILE, FILE + ".sha256"]
        assert len(server.requests) == 3

    def test_thirty_threads(self, server, content, cache):
        found = []
        threads = [
            threading.Thread(target=lambda: found.append(checkpoint.fetch("R50x1_224").read_bytes()))
            for _ in range(30)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert found == [content] * 30
        assert len(server.requests) == 1
