"""Servers that lie, drip, break for ever and go on; kills; notes, settings and names that make no sense."""

import base64
import gzip
import hashlib
import io
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
import zipfile

import pytest
import requests

from bitlib import checkpoint, labels, zoo
from bitlib.files import fetching, writing
from tests.test_download import FILE, LIST, a_list, an_archive, refused
from tests.test_download import cache as cache
from tests.test_download import content as content
from tests.test_download import server as server

PART = "distill/.R50x1_224.npz.partial"


def visible(cache):
    return sorted(
        str(path.relative_to(cache))
        for path in cache.rglob("*")
        if path.is_file() and not path.name.startswith(".")
    )


def everything(cache):
    return sorted(str(path.relative_to(cache)) for path in cache.rglob("*") if path.is_file())


def answering(status=200, body=None, stop_after=None, **headers):
    """A trick: the server's own headers, with others (None: without), and the whole file or another body."""

    def trick(handler, content):
        sent = content if body is None else body
        all_headers = handler.server.headers_of(content or b"") | {"Content-Length": str(len(sent))}
        all_headers |= {name.replace("_", "-"): value for name, value in headers.items()}
        given = {name: value for name, value in all_headers.items() if value is not None}
        handler.answer(status, given, sent, stop_after)

    return trick


def raw(*pieces, pause=0.0, endless=None):
    """A trick: bytes as they are, one piece after the other, and then one for ever."""

    def trick(handler, content):
        for piece in itertools.chain(pieces, itertools.repeat(endless) if endless else ()):
            handler.wfile.write(piece)
            handler.wfile.flush()
            threading.Event().wait(pause)  # time.sleep is patched by some tests

    return trick


class TestEnds:
    def test_a_server_without_ranges_that_breaks_here_and_there(self, server, content, cache):
        places = itertools.cycle([0.05, 0.5])
        server.tricks = [
            answering(stop_after=int(next(places) * len(content)), ETag=None, Accept_Ranges=None)
            for _ in range(500)
        ]
        with refused("Tried 6 times"):  # 5 %, 50 %, and four that bring nothing new
            checkpoint.fetch("R50x1_224")
        assert len(server.requests) == 6

    def test_a_server_that_answers_each_range_wrongly(self, server, content, cache):
        def wrongly(handler, content):
            if handler.headers.get("Range"):
                return answering(206, content[7:], Content_Range=f"bytes 7-9/{len(content)}")(
                    handler, content
                )
            return answering(stop_after=5000)(handler, content)

        server.tricks = [wrongly] * 500
        with refused("cannot be downloaded"):
            checkpoint.fetch("R50x1_224")
        assert len(server.requests) <= 2 * fetching.ATTEMPTS

    def test_a_server_that_breaks_a_little_later_each_time(self, server, content, monkeypatch):
        monkeypatch.setattr(fetching, "PAUSE", 0)
        monkeypatch.setattr(fetching, "MOST_ATTEMPTS", 20)
        server.tricks = ["break after 10"] * 500
        with refused("Tried 20 times"):
            checkpoint.fetch("R50x1_224")
        assert len(server.requests) == 20

    @pytest.mark.slow
    @pytest.mark.parametrize(
        "drip",
        [
            raw(b"HTTP/1.1 200 OK\r\n", b"X-Header: ", pause=0.02, endless=b"x"),
            raw(b"HTTP/1.1 200 OK\r\nContent-Length: 300000\r\n\r\n", pause=0.02, endless=b"x"),
            raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0", pause=0.02, endless=b"0"),
            raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n", endless=b"X: tail\r\n" * 99),
        ],
        ids=["header", "body", "chunk", "trailer"],
    )  # fmt: skip
    def test_a_server_that_drips(self, request, server, content, monkeypatch, drip):
        dripping_headers = request.node.callspec.id == "header"
        monkeypatch.setenv("BITLIB_TIMEOUT", "0.2")
        monkeypatch.setattr(fetching, "ATTEMPTS", 2)
        monkeypatch.setattr(fetching, "MOST_ATTEMPTS", 3)
        server.tricks = [drip] * 9
        start = time.monotonic()
        with refused("cannot be downloaded"):
            checkpoint.fetch("R50x1_224")
        assert time.monotonic() - start < 10
        reads_on = [thread for thread in threading.enumerate() if thread.name == "bitlib-download"]
        if not dripping_headers:  # those end by themselves: http.client takes no more than 64 kB of a line
            for thread in reads_on:
                thread.join(5)
            assert not any(thread.is_alive() for thread in reads_on)

    @pytest.mark.slow
    def test_a_slow_but_honest_line(self, server, monkeypatch):
        content = server.files[FILE] = an_archive(size=20_000)
        monkeypatch.setenv("BITLIB_TIMEOUT", "0.5")

        def slowly(handler, _):
            handler.send_response(200)
            handler.send_header("Content-Length", str(len(content)))
            handler.end_headers()
            for start in range(0, len(content), 500):
                handler.wfile.write(content[start : start + 500])
                handler.wfile.flush()
                time.sleep(0.05)

        server.tricks = [slowly]
        assert checkpoint.fetch("R50x1_224").read_bytes() == content
        assert len(server.requests) == 1

    def test_redirections_in_a_circle(self, server, content):
        server.tricks = [answering(302, b"", Location=f"/{FILE}")] * 500
        with refused("Exceeded 10 redirects"):
            checkpoint.fetch("R50x1_224")

    def test_an_endless_redirection_is_not_read(self, server, content):
        server.tricks = [
            raw(f"HTTP/1.1 302 Found\r\nLocation: /{FILE}\r\n\r\n".encode(), endless=b"x" * 9999)
        ]
        assert checkpoint.fetch("R50x1_224").read_bytes() == content

    def test_a_redirection_to_another_protocol(self, server, content, tmp_path):
        (tmp_path / "secret").write_text("mine")
        server.tricks = [answering(302, b"", Location=f"file://{tmp_path}/secret")] * 9
        with refused("the server leads to file://"):
            checkpoint.fetch("R50x1_224")

    def test_a_redirection_from_https_to_http(self, server, content, monkeypatch):
        """The file behind it is the right one, and yet anybody on the way might have sent it."""
        plain, asked = requests.adapters.HTTPAdapter.send, []
        insecure = f"{os.environ['BITLIB_MIRROR']}/{FILE}"

        def send(self, request, **options):
            asked.append(request.url)
            if request.url.startswith("http://"):
                return plain(self, request, **options)
            response = requests.Response()
            response.status_code, response.url, response.request = 302, request.url, request
            response.headers["Location"], response.raw = insecure, io.BytesIO()
            return response

        monkeypatch.setattr(requests.adapters.HTTPAdapter, "send", send)
        monkeypatch.setenv("BITLIB_MIRROR", "https://example.org")
        with refused(f"the server leads to {insecure}"):
            checkpoint.fetch("R50x1_224")
        assert set(asked) == {f"https://example.org/{FILE}"}

    def test_more_than_any_published_file(self, server, content, cache, monkeypatch):
        monkeypatch.setattr(fetching, "LARGEST", 100_000)
        server.tricks = [answering()] * 5 + [answering(Content_Length=None, x_goog_hash=None)] * 5
        for _ in range(2):
            with refused("more than 100,000 bytes"):
                checkpoint.fetch("R50x1_224")
        assert visible(cache) == []


HOSTILE = {
    "superscript length": answering(Content_Length="²"),
    "negative length": answering(Content_Length="-5"),
    "two lengths": answering(Content_Length="300264, 7"),
    "length of 5000 digits": answering(Content_Length="9" * 5000),
    "length of 4000 digits": answering(Content_Length="9" * 4000),
    "length of words": answering(Content_Length="many"),
    "stored length": answering(x_goog_stored_content_length="²"),
    "retry after ¹": answering(503, b"", Retry_After="¹"),
    "retry after 5000 digits": answering(503, b"", Retry_After="9" * 5000),
    "retry before": answering(503, b"", Retry_After="-1"),
    "retry on a date": answering(503, b"", Retry_After="Fri, 31 Dec 1999 23:59:59 GMT"),
    "hash of nonsense": answering(x_goog_hash="md5=²,crc32c,=,,md5"),
    "hash of escapes": answering(x_goog_hash="md5=\x1b[31m"),
    "no content": answering(204, b""),
    "reset content": answering(205, b""),
    "unasked part": answering(206, Content_Range="bytes 0-9/10"),
    "choices": answering(300, b""),
    "redirection to nowhere": answering(302, b"", Location=""),
    "redirection to nonsense": answering(302, b"", Location="http://[::1"),
    "redirection to a number": answering(302, b"", Location="http://256.256.256.256:99999/x"),
    "redirection to a blank": answering(302, b"", Location="http:// x/"),
    "a status of escapes": raw(b"HTTP/1.1 404 \x1b[31mred\r\n\r\n"),
    "a status of nothing": raw(b"HTTP/1.1\r\n\r\n"),
    "a status of 99999": raw(b"HTTP/1.1 99999 x\r\n\r\n"),
    "no HTTP at all": raw(b"SSH-2.0-OpenSSH_9.6\r\n"),
    "nothing": raw(),
    "a header of nonsense": raw(b"HTTP/1.1 200 OK\r\n\xff\xfe: \xff\r\n\0\r\n\r\nbody"),
    "200 headers": raw(b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 200 + b"\r\n"),
    "a header of a megabyte": raw(b"HTTP/1.1 200 OK\r\nX: " + b"y" * 1_000_000 + b"\r\n\r\n"),
    "a chunk of nonsense": raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n"),
    "a chunk below nothing": raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-5\r\nhello"),
    "an empty file": answering(body=b"", x_goog_hash=None),
    "gzip": answering(Content_Encoding="gzip"),
    "brotli, gzip": answering(Content_Encoding="br, gzip"),
}

ODD = ("superscript length", "negative length", "length of 5000 digits", "length of words", "stored length",
       "hash of nonsense", "gzip", "brotli, gzip")  # fmt: skip
"""Headers that make no sense, and yet the file comes whole."""


class TestHostile:
    @pytest.mark.parametrize("name", HOSTILE)
    def test_a_connection_error_or_the_right_file(self, server, content, cache, monkeypatch, name):
        monkeypatch.setattr(fetching, "PAUSE", 0)
        server.tricks = [HOSTILE[name]] * 99
        if name in ODD:
            assert checkpoint.fetch("R50x1_224").read_bytes() == content
            return
        with refused(".") as caught:
            checkpoint.fetch("R50x1_224")
        assert str(caught.value).isprintable()
        assert "BITLIB_MIRROR" in str(caught.value) or "try again" in str(caught.value)
        assert visible(cache) == []

    def test_fuzzed_heads_of_responses(self, server, content, cache, monkeypatch):
        monkeypatch.setattr(fetching, "PAUSE", 0)
        monkeypatch.setattr(fetching, "ATTEMPTS", 1)
        monkeypatch.setenv("BITLIB_TIMEOUT", "5")
        head = b'HTTP/1.1 200 OK\r\nContent-Length: %d\r\nETag: "x"\r\nContent-Type: a/b\r\n' % len(content)
        head += b"x-goog-hash: md5=" + base64.b64encode(hashlib.md5(content).digest()) + b"\r\n\r\n"
        rng = random.Random(11)
        outcomes = set()
        for number in range(100):
            spoilt = bytearray(head)
            for _ in range(rng.choice((1, 2, 5))):
                place = rng.randrange(len(spoilt))
                spoilt[place : place + rng.choice((0, 1, 3))] = rng.randbytes(rng.choice((0, 1, 2)))
            server.tricks = [raw(bytes(spoilt), content)]
            try:
                assert checkpoint.fetch("R50x1_224").read_bytes() == content, number
                outcomes.add("whole")
            except ConnectionError as error:
                outcomes.add(type(error))
            for file in everything(cache):
                (cache / file).unlink()
        assert outcomes == {"whole", ConnectionError}

    @pytest.mark.parametrize(
        "page",
        [
            b"\xef\xbb\xbf<!doctype html><title>Wi-Fi</title>",
            b"\xef\xbb\xbf\n <!-- a comment --><html>",
            "<html>Wi-Fi</html>".encode("utf-16"),
            b"<?xml version='1.0'?><html>",
        ],
    )
    @pytest.mark.parametrize("file", [FILE, LIST])
    def test_web_pages_of_all_kinds(self, server, cache, page, file):
        server.files[file] = b"x"
        server.tricks = [answering(body=page, x_goog_hash=None)]
        with refused("a web page came instead of the file"):
            fetching.fetch_file(file)
        assert everything(cache) == []

    def test_archives_that_zipfile_stumbles_over(self, server, cache):
        whole = an_archive(size=4000)
        server.hashes = ()
        rng = random.Random(5)
        outcomes = set()
        for _ in range(60):
            spoilt = bytearray(whole)
            for _ in range(3):
                spoilt[rng.choice((rng.randrange(60), -rng.randrange(1, 120)))] = rng.randrange(256)
            server.files[FILE] = bytes(spoilt)
            try:
                checkpoint.fetch("R50x1_224")
                outcomes.add("whole")
            except ConnectionError:
                outcomes.add("refused")
            for file in everything(cache):
                (cache / file).unlink()
        assert "refused" in outcomes

    def test_a_zip_bomb(self, server, cache, monkeypatch):
        monkeypatch.setattr(fetching, "LARGEST", 1_000_000)
        bomb = io.BytesIO()
        with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("x.npy", bytes(2_000_000))
        server.files[FILE], server.hashes = bomb.getvalue(), ()
        with refused("more than 1,000,000 bytes are packed in it"):
            checkpoint.fetch("R50x1_224")


class TestClassLists:
    @pytest.mark.parametrize(
        ("spoilt", "reason"),
        [
            (lambda text: text[:-1], "21,674 bytes, it has 21,675"),
            (lambda text: text.replace(b"\n", b" ", 1), "999 lines, expected 1,000"),
            (lambda text: b"\xef\xbb\xbf" + text[3:], r"line 1 is '\\ufeffe_0'"),
            (lambda text: b"\xff" + text[1:], "can't decode byte 0xff in position 0"),
            (lambda text: b"\x1b" + text[1:], r"line 1 is '\\x1bame_0'"),
            (lambda text: text.replace(b"name_1\n", b"\n", 1) + b"xxxxxx", "line 2 is ''|1,001 lines"),
            (gzip.compress, "bytes, it has 21,675"),
        ],
    )
    def test_lists_that_are_none(self, server, cache, spoilt, reason):
        server.files[LIST] = a_list()
        server.tricks = [answering(body=spoilt(a_list()), x_goog_hash=None)]
        with refused(f"not the published list .*{reason}"):
            fetching.fetch_file(LIST)
        assert everything(cache) == []
        assert fetching.fetch_file(LIST).read_bytes() == a_list()

    def test_other_lists_by_their_lines(self, server):
        server.files["imagenet21k_wordnet_lemmas.txt"] = b"name\n" * 21842
        with refused("21,842 lines, expected 21,843"):
            fetching.fetch_file("imagenet21k_wordnet_lemmas.txt")
        server.files["imagenet21k_wordnet_lemmas.txt"] += b"\n"  # two classes are empty
        assert fetching.fetch_file("imagenet21k_wordnet_lemmas.txt").is_file()

    def test_an_unasked_part(self, server, cache):
        server.files[LIST] = a_list()
        server.tricks = [answering(206, a_list(), Content_Range="bytes 0-21674/21675")] * 9
        with refused("the server cannot go on where the download broke"):
            fetching.fetch_file(LIST)

    def test_what_was_put_there_by_hand(self, cache, monkeypatch):
        monkeypatch.setenv("BITLIB_CACHE", str(cache))
        cache.mkdir()
        (cache / LIST).write_bytes(b"\xff\xfe" + b"x\n" * 1000)
        labels.names.cache_clear()
        with refused("not a class list .*can't decode byte 0xff in position 0.*; delete it"):
            labels.names("ilsvrc2012")
        names, reason = labels.names_or_numbers("ilsvrc2012", 1000)
        assert names[3] == "class 3"
        assert "can't decode byte 0xff" in reason


FETCH = "from bitlib import checkpoint; checkpoint.fetch('R50x1_224')"


class TestGoingOn:
    def killed_half_way(self, server, content, cache):
        """What a kill leaves: the first half of the file, and a note."""

        def stalling(handler, content):
            answering(stop_after=len(content) // 2)(handler, content)
            handler.wfile.flush()
            time.sleep(5)

        server.tricks = [stalling]
        process = subprocess.Popen([sys.executable, "-c", FETCH], stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 60
        while not (cache / PART).exists() or (cache / PART).stat().st_size < len(content) // 2 - 20_000:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL if hasattr(signal, "SIGKILL") else signal.SIGTERM)
        process.wait()
        server.requests.clear()
        return (cache / PART).stat().st_size

    def test_after_a_kill_in_a_later_process(self, server, content, cache):
        size = self.killed_half_way(server, content, cache)
        assert size > 0
        assert visible(cache) == []
        assert checkpoint.fetch("R50x1_224").read_bytes() == content
        ((_, headers),) = server.requests
        assert headers["Range"] == f"bytes={size}-"
        assert headers["If-Range"].startswith('"')
        assert everything(cache) == [FILE, FILE + ".sha256"]

    @pytest.fixture
    def left(self, server, content, cache):
        """As `killed_half_way`, made by hand."""

        def leave(part=content[:150_000], **other):
            md5 = base64.b64encode(hashlib.md5(content).digest()).decode()
            url = f"{os.environ['BITLIB_MIRROR']}/{FILE}"
            fields = {"url": hashlib.sha256(url.encode()).hexdigest(), "length": len(content), "md5": md5}
            fields |= {"etag": f'"{hashlib.md5(content).hexdigest()}"', "crc32c": None} | other
            (cache / "distill").mkdir(parents=True, exist_ok=True)
            (cache / PART).write_bytes(part)
            (cache / f"{PART}.json").write_text(json.dumps(fields))

        return leave

    def first_range(self, server, content, cache):
        assert checkpoint.fetch("R50x1_224").read_bytes() == content
        assert everything(cache) == [FILE, FILE + ".sha256"]
        return server.requests[0][1].get("Range")

    def test_from_a_note(self, server, content, cache, left):
        left()
        assert self.first_range(server, content, cache) == "bytes=150000-"

    def test_with_a_hash_alone(self, server, content, cache, left):
        left(etag=None)
        assert self.first_range(server, content, cache) == "bytes=150000-"

    def test_the_last_byte_is_asked_for_if_all_are_there(self, server, content, cache, left):
        left(part=content)
        assert self.first_range(server, content, cache) == f"bytes={len(content) - 1}-"

    @pytest.mark.parametrize(
        "other",
        [
            {"url": "http://127.0.0.1/another"},
            {"length": 7},
            {"length": "²"},
            {"length": -1},
            {"length": True},
            {"etag": None, "md5": None},
            {"etag": 7},
            {"md5": ["x"]},
        ],
    )
    def test_not_from_a_note_that_does_not_fit(self, server, content, cache, left, other):
        left(**other)
        assert self.first_range(server, content, cache) is None

    @pytest.mark.parametrize("note", [b"", b"\xff\xfe", b"[1]", b"[" * 9000, b"{}", b"null", b"9" * 5000])
    def test_not_from_a_note_of_something_else(self, server, content, cache, left, note):
        left()
        (cache / f"{PART}.json").write_bytes(note)
        assert self.first_range(server, content, cache) is None

    def test_not_where_the_file_is_another_now(self, server, content, cache, left):
        left(etag='"an older file"', md5="of an older file")
        assert self.first_range(server, content, cache) == "bytes=150000-"
        assert len(server.requests) == 1  # If-Range: the server sent the whole file

    def test_not_where_the_server_does_not_say_which_file_it_is(self, server, content, cache, left):
        left()
        rest = content[150_000:]
        silent = {"Content_Range": f"bytes 150000-{len(content) - 1}/{len(content)}", "ETag": None}
        server.tricks = [answering(206, rest, x_goog_hash=None, **silent)]
        self.first_range(server, content, cache)
        assert [headers.get("Range") for _, headers in server.requests] == ["bytes=150000-", None]

    def test_a_spoilt_leftover_is_thrown_away(self, server, content, cache, left):
        left(part=bytes(150_000))
        self.first_range(server, content, cache)
        assert [headers.get("Range") for _, headers in server.requests] == ["bytes=150000-", None]

    def test_after_giving_up(self, server, content, cache):
        server.tricks = ["break after 100000", *["break after 0"] * 5]
        with refused(r"try again later \(it resumes after 100,000 bytes\)"):
            checkpoint.fetch("R50x1_224")
        assert visible(cache) == []
        server.requests.clear()
        assert self.first_range(server, content, cache) == "bytes=100000-"

    def test_after_ctrl_c(self, server, content, cache, monkeypatch):
        server.tricks = ["break after 100000"]

        def interrupted(seconds):
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(fetching.time, "sleep", interrupted)
            with pytest.raises(KeyboardInterrupt):
                checkpoint.fetch("R50x1_224")
        server.requests.clear()
        assert self.first_range(server, content, cache) == "bytes=100000-"


class TestSweeping:
    @pytest.fixture
    def leftovers(self, cache):
        def leave(name, days):
            (cache / "distill").mkdir(parents=True, exist_ok=True)
            for file in (cache / f"distill/{name}", cache / f"distill/{name}.json"):
                file.write_text("{}")
                os.utime(file, (time.time() - days * 86400 - 60,) * 2)

        return leave

    def test_old_ones_go_and_young_ones_stay(self, server, content, cache, leftovers):
        leftovers(".old.npz.partial", fetching.DAYS)
        leftovers(".young.npz.partial", fetching.DAYS - 1)
        leftovers(".R50x1_160.npz.0123.partial", fetching.DAYS)
        (cache / "distill/.other").write_text("not ours")
        checkpoint.fetch("R50x1_224")
        assert {file.name for file in (cache / "distill").iterdir()} == {
            ".young.npz.partial", ".young.npz.partial.json", "R50x1_224.npz", "R50x1_224.npz.sha256",
            ".other",
        }  # fmt: skip

    def test_each_try_makes_its_part_young_again(self, server, content, cache, leftovers):
        """Else a download of another file would sweep it while it grows."""
        leftovers(".R50x1_224.npz.partial", fetching.DAYS - 1)
        url = hashlib.sha256(f"{os.environ['BITLIB_MIRROR']}/{FILE}".encode()).hexdigest()
        note = {"url": url, "length": None, "etag": '"x"', "md5": None, "crc32c": None}
        (cache / f"{PART}.json").write_text(json.dumps(note))
        server.tricks = [503] * 9
        with refused("it resumes after 2 bytes"):
            checkpoint.fetch("R50x1_224")
        assert (cache / PART).stat().st_mtime > time.time() - 600

    @pytest.mark.skipif(sys.platform == "win32", reason="needs flock")
    def test_who_finds_another_machine_at_work_works_apart(self, server, content, cache, leftovers):
        leftovers(".R50x1_224.npz.partial", 0)
        (cache / PART).write_bytes(b"another's")
        with fetching._claimed(cache / FILE):  # without the lock that processes of this machine share
            assert checkpoint.fetch("R50x1_224").read_bytes() == content
            assert (cache / PART).read_bytes() == b"another's"


class TestNotes:
    @pytest.mark.parametrize(
        "note", [b"", b"\n", b"\xff\xfe\0", b"abc  R50x1_224.npz\n", b"0" * 63, b"0" * 65]
    )
    def test_a_damaged_note_is_no_hash(self, server, content, cache, note):
        path = checkpoint.fetch("R50x1_224")
        writing.note_of(path).write_bytes(note)
        with refused(r"R50x1_224\.npz\.sha256: expected the SHA-256 .* delete it to trust the file as it is"):
            checkpoint.fetch("R50x1_224")
        writing.note_of(path).unlink()
        assert checkpoint.fetch("R50x1_224") == path

    def test_a_note_by_another_program(self, server, content):
        path = checkpoint.fetch("R50x1_224")
        digest = hashlib.sha256(content).hexdigest().upper()
        writing.note_of(path).write_text(f"{digest} *R50x1_224.npz\r\n")
        assert checkpoint.fetch("R50x1_224") == path


class TestSettings:
    @pytest.mark.parametrize("value", ["abc", "0", "-1", "nan", "inf", "1e300", "1,5", "²"])
    def test_timeouts_that_are_none(self, server, content, monkeypatch, value):
        monkeypatch.setenv("BITLIB_TIMEOUT", value)
        with refused(
            f"^BITLIB_TIMEOUT: expected seconds, above 0 and up to 3600, received '{value}'", ValueError
        ):
            checkpoint.fetch("R50x1_224")
        assert server.requests == []

    def test_timeouts_that_are(self, monkeypatch):
        for value, seconds in (("", 20), ("0.5", 0.5), (" 3 ", 3), ("3600", 3600)):
            monkeypatch.setenv("BITLIB_TIMEOUT", value)
            assert fetching.timeout() == seconds

    @pytest.mark.parametrize(
        "value",
        ["ftp://example.org", "file:///mirror", "s3://bucket/x", "https://", "http://:80/", "http:x",
         "http://example.org:x/", "http://[::1/", "https://example.org/?a=b"],
    )  # fmt: skip
    def test_mirrors_that_are_none(self, monkeypatch, cache, value):
        monkeypatch.setenv("BITLIB_CACHE", str(cache))
        monkeypatch.setenv("BITLIB_MIRROR", value)
        with refused("^BITLIB_MIRROR: expected a folder or an address like https://", ValueError):
            checkpoint.fetch("R50x1_224")

    def test_mirrors_that_are(self, monkeypatch, tmp_path):
        for value in ("https://example.org/a", "http://localhost:80", str(tmp_path), "folder", r"C:\mirror"):
            monkeypatch.setenv("BITLIB_MIRROR", value)
            assert str(fetching.mirror()) == value

    @pytest.mark.parametrize("value", ["yes", "true", "2", "off", "no"])
    def test_offline_that_is_neither(self, monkeypatch, cache, value):
        monkeypatch.setenv("BITLIB_CACHE", str(cache))
        monkeypatch.setenv("BITLIB_OFFLINE", value)
        with refused(
            f"^BITLIB_OFFLINE: expected 1 .no network., 0 or nothing, received '{value}'", ValueError
        ):
            checkpoint.fetch("R50x1_224")

    @pytest.mark.parametrize("variable", ["BITLIB_CACHE", "BITLIB_MIRROR"])
    @pytest.mark.parametrize("value", ["~nobody-of-that-name/x", "x" * 300])
    def test_folders_that_cannot_be(self, monkeypatch, variable, value):
        monkeypatch.setenv(variable, value)
        with refused(f"^{variable}: expected a path, received '{value[:80]}' ", ValueError):
            checkpoint.fetch("R50x1_224")

    def test_passwords_are_neither_shown_nor_noted(self, server, content, cache, monkeypatch):
        address = os.environ["BITLIB_MIRROR"].replace("//", "//me:secret@")
        monkeypatch.setenv("BITLIB_MIRROR", address)
        server.tricks = ["break after 100000", *["break after 0"] * 5, 404]
        for _ in range(2):
            with refused("^http://127") as caught:
                checkpoint.fetch("R50x1_224")
            assert "secret" not in str(caught.value)
            notes = [file.read_text() for file in cache.rglob("*.json")]
            assert "secret" not in "".join(notes)
        assert checkpoint.fetch("R50x1_224").read_bytes() == content
        basic = base64.b64encode(b"me:secret").decode()
        assert {headers["Authorization"] for _, headers in server.requests} == {f"Basic {basic}"}


class TestNames:
    @pytest.mark.parametrize(
        "file",
        ["../x", "..", ".", "", "/etc/passwd", "a/../../x", "a//b", "a\\..\\b", "C:x", "a/", "./x", ".hidden",
         "vtab/.R50x1_224.npz.partial", "a\0b", "a b", "x?y", "x#y", "%2e%2e/x", "ä"],
    )  # fmt: skip
    def test_files_outside_of_the_cache(self, server, cache, file):
        with refused("^file: expected a path below the published address", ValueError):
            fetching.fetch_file(file)
        assert server.requests == []

    def test_every_published_file_is_inside(self):
        files = {zoo.card(name).file for name in zoo.names()} | set(zoo.CLASS_LISTS.values())
        assert all(fetching._INSIDE.fullmatch(file) for file in files)

    @pytest.mark.parametrize("name", ["../BiT-M-R50x1", "/BiT-M-R50x1.npz", "..\\BiT-M-R50x1"])
    def test_prefetch_writes_into_its_folder_only(self, server, cache, tmp_path, name):
        server.files["BiT-M-R50x1.npz"] = an_archive()
        server.files["imagenet21k_wordnet_lemmas.txt"] = b"name\n" * 21843
        folder = tmp_path / "deep" / "mirror"
        try:
            assert checkpoint.prefetch([name], folder) == [folder / "BiT-M-R50x1.npz"]
        except ValueError as error:
            assert "no published BiT is called" in str(error)  # noqa: PT017
        assert {path.name for path in tmp_path.iterdir()} <= {"deep", "cache"}
        assert {path.name for path in tmp_path.glob("deep/*")} <= {"mirror"}

    @pytest.mark.parametrize(
        "name", ["x" * 256, "x" * 5000, "a/" + "x" * 300, "a\0b", "~nobody-of-that-name/x"]
    )
    def test_names_that_no_file_can_have(self, name):
        with refused("no published BiT", ValueError):
            checkpoint.find(name)
        with refused("no published BiT", ValueError):
            zoo.card_of(name)

    @pytest.mark.parametrize("name", ["...npz", "..npz"])
    def test_a_file_that_would_be_ported_out_of_its_folder(self, small_npz, tmp_path, monkeypatch, name):
        from bitlib import savedmodel

        (tmp_path / "deep").mkdir()
        monkeypatch.chdir(tmp_path / "deep")
        small_npz.rename(name)
        with refused(f"^sources: {name} has no name that a folder can have; rename the file", ValueError):
            savedmodel.port_all([name], "out")
        assert [path.name for path in tmp_path.iterdir()] == ["deep"]

    @pytest.mark.parametrize("name", ["x" * 256 + ".npz", "~nobody-of-that-name/x.npz"])
    def test_paths_that_no_file_can_have(self, name):
        with refused("^source: expected a path, received '.* .(File name too long|Could not)", ValueError):
            checkpoint.find(name)
