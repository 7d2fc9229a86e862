"""Checkpoints from strangers: each lie is refused by name, before it takes memory."""

import copy
import json
import struct
import subprocess
import sys
import textwrap
import zipfile
import zlib
from functools import partial

import numpy as np
import pytest

import bitlib
from bitlib import checkpoint
from bitlib.checkpoint import Architecture, CheckpointError
from bitlib.files import archive
from tests.conftest import PEAK, needs_proc

GAMMA = "resnet/block3/unit01/c/group_norm/gamma"


def header(shape, version=(1, 0), length=None):
    """A `.npy` header, of a length in bytes if one is given."""
    text = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {tuple(shape)}, }}"
    text = text.ljust((length or 118) - 1).encode() + b"\n"
    return b"\x93NUMPY" + bytes(version) + struct.pack("<H" if version == (1, 0) else "<I", len(text)) + text


def zipped(path, members):
    """A zip of members given as name, bytes, and fields that its directory shall declare."""
    with zipfile.ZipFile(path, "w") as file:
        for name, data, declared in members:
            info = zipfile.ZipInfo(f"{name}.npy")
            info.compress_type = declared.pop("compress_type", zipfile.ZIP_STORED)
            file.writestr(info, data)
            for field, value in declared.items():
                setattr(info, field, value)
    return path


def with_gamma(path, arrays, data, **declared):
    """A checkpoint whose one gamma is stored so."""
    members = [
        (name, header(array.shape) + array.tobytes(), {}) for name, array in arrays.items() if name != GAMMA
    ]
    return zipped(path, [*members, (GAMMA, data, declared)])


def refusal(path):
    with pytest.raises(CheckpointError) as raised:
        checkpoint.read(path)
    assert str(raised.value).startswith(f"{path}: ")
    assert str(raised.value).isprintable()
    return str(raised.value)


def a_lie_about_width(path, method):
    """10 kB that claim a network of width 64 and hold no data."""
    shapes = checkpoint.layout(Architecture((1, 1, 1, 1), 64, 1000))
    members = []
    for name, shape in shapes.items():
        size = len(header(shape)) + 4 * int(np.prod(shape))
        members.append((name, header(shape), {"compress_type": method, "file_size": size}))
    return zipped(path, members)


def a_long_header(path):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file, file.open(f"{GAMMA}.npy", "w") as member:
        member.write(b"\x93NUMPY\2\0" + struct.pack("<I", 1 << 28))
        for _ in range(64):
            member.write(b" " * (1 << 22))
    return path


def many_zeros(path):
    """Right in all but the plausibility."""
    shapes = checkpoint.layout(Architecture((1, 1, 1, 1), 3, 10))
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, shape in shapes.items():
            file.writestr(f"{name}.npy", header(shape) + bytes(4 * int(np.prod(shape))))
    return path


def a_long_directory(path):
    with zipfile.ZipFile(path, "w") as file:
        for number in range(20_000):
            file.writestr(f"{number}.npy", b"")
    return path


def a_shared_member(path):
    """Thousands of entries for the same bytes."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("0.npy", header((1 << 20,)) + bytes(1 << 22))
        for number in range(1, 5000):
            entry = copy.copy(file.infolist()[0])
            entry.filename = f"{number}.npy"
            file.filelist.append(entry)
    return path


@needs_proc
@pytest.mark.parametrize(
    "make",
    [
        partial(a_lie_about_width, method=zipfile.ZIP_STORED),
        partial(a_lie_about_width, method=zipfile.ZIP_DEFLATED),
        a_long_header,
        many_zeros,
        a_long_directory,
        a_shared_member,
    ],
    ids=["lie", "deflated lie", "long header", "many zeros", "long directory", "shared member"],
)
def test_a_refusal_takes_little_memory(tmp_path, make):
    path = make(tmp_path / "x.npz")
    code = f"""
        from bitlib import checkpoint
        checkpoint.shapes(checkpoint.fetch("BiT-XS-R14x0.5"))
        before = peak()
        try:
            checkpoint.read({str(path)!r})
        except checkpoint.CheckpointError as error:
            print(peak() - before)
    """
    run = subprocess.run(
        [sys.executable, "-c", PEAK + textwrap.dedent(code)], capture_output=True, text=True, check=True
    )
    assert float(run.stdout) < 4 * path.stat().st_size / 2**20 + 30


def test_it_is_refused_before_a_model_is_built(tmp_path, monkeypatch):
    from bitlib import model

    monkeypatch.setattr(model, "BiT", None)
    with pytest.raises(CheckpointError, match="cannot hold the"):
        bitlib.load(a_lie_about_width(tmp_path / "x.npz", zipfile.ZIP_STORED))


class TestNamed:
    """What is wrong with one member is said of its array."""

    @pytest.mark.parametrize(
        ("declared", "expected"),
        [
            ({"flag_bits": 1}, "encrypted, expected plain data"),
            (
                {"compress_type": zipfile.ZIP_LZMA},
                r"compression method 14, expected stored \(0\) or deflated",
            ),
            ({"compress_type": zipfile.ZIP_BZIP2}, "compression method 12"),
            ({"header_offset": 0}, "corrupt or truncated"),
            ({"header_offset": 1 << 60}, "corrupt or truncated"),
            (
                {"file_size": 1 << 50},
                "640 bytes in the file cannot hold",
            ),
            ({"compress_size": 1 << 50}, "its data end at byte"),
            ({"CRC": 1}, "corrupt or truncated"),
        ],
        ids=str,
    )
    def test_fields_of_the_zip(self, tmp_path, small_arrays, declared, expected):
        data = header((128,)) + bytes(512)
        path = with_gamma(tmp_path / "x.npz", small_arrays, data, **declared)
        with pytest.raises(CheckpointError, match=expected) as raised:
            checkpoint.read(path)
        assert GAMMA in str(raised.value) or "header_offset" in declared

    @pytest.mark.parametrize(
        "text",
        [
            *["'", "\\", "(" * 150, "-" * 9000 + "1", "[" * 9000, "\0", "\x1b[2J"],
            "{'descr': '<f4'" + "\n  1" * 100,
            "{'descr': '<f4', 'fortran_order': False, 'shape': (" + "9" * 5000 + ",)}", "0777", "é",
            "{'descr': '<f4', 'fortran_order': False, 'shape': (-128, -1)}", "\t 1\n  2",
            "{'descr': '<f4', 'fortran_order': False, 'shape': (1" + "0" * 4000 + ", 0)}", "{[]: 1}",
            "{'descr': ['<f4', ()], 'fortran_order': False, 'shape': (128,)}", "{'descr': 4, 'shape': 1}",
        ],
        ids=lambda text: text[:20].encode("unicode_escape").decode(),
    )  # fmt: skip
    def test_headers(self, tmp_path, small_arrays, text):
        text = text.encode("latin1") + b"\n"
        data = b"\x93NUMPY\1\0" + struct.pack("<H", len(text)) + text + bytes(512)
        assert f"{GAMMA}: " in refusal(with_gamma(tmp_path / "x.npz", small_arrays, data))

    def test_a_long_header(self, tmp_path, small_arrays):
        data = header((128,), (2, 0), 20_000) + bytes(512)
        message = refusal(with_gamma(tmp_path / "x.npz", small_arrays, data))
        assert f"{GAMMA}: corrupt or truncated" in message
        assert "header" in message

    def test_a_member_that_inflates_to_more_than_it_declares(self, tmp_path, small_arrays):
        data = header((128,)) + bytes(512)
        lying = {"compress_type": zipfile.ZIP_DEFLATED, "file_size": len(data), "CRC": zlib.crc32(data)}
        path = with_gamma(tmp_path / "x.npz", small_arrays, data + bytes(10**8), **lying)
        assert not checkpoint.read(path)[GAMMA].any()

    def test_two_members_in_one_place(self, tmp_path, small_arrays):
        path = zipped(
            tmp_path / "x.npz", [(n, header(a.shape) + a.tobytes(), {}) for n, a in small_arrays.items()]
        )
        with zipfile.ZipFile(path, "a") as file:
            first, second = file.infolist()[:2]
            second.header_offset = first.header_offset + 4
            file.comment = b"to have the directory written again"
        assert "begins at" in refusal(path)


class TestTerminal:
    """What a file says cannot command the terminal that shows it."""

    def test_names_of_arrays(self, tmp_path, small_arrays):
        names = {f"evil\x1b]0;title\x07{number}": np.zeros(3, "float32") for number in range(9)}
        np.savez(tmp_path / "x.npz", **small_arrays, **names)
        assert r"evil\x1b]0;title\x070: unexpected" in refusal(tmp_path / "x.npz")

    def test_a_name_of_kilobytes_is_cut(self, tmp_path, small_arrays):
        np.savez(tmp_path / "x.npz", **small_arrays, **{"x" * 60_000: np.zeros(3, "float32")})
        assert len(refusal(tmp_path / "x.npz")) < 3000

    def test_names_of_classes(self, small_npz):
        with pytest.raises(ValueError, match="^head: expected"):
            bitlib.load(small_npz, head=["ash", "\x1b[2J"])


class TestNote:
    @pytest.mark.parametrize(
        "note",
        [
            *["1", "[]", "null", '"x"', "{", '{"x": 1}', "[" * 30_000, "\xff"],
            *['{"resolution": 1e999}', '{"resolution": NaN}', '{"resolution": true}', '{"resolution": 31}'],
            *['{"resolution": ' + "9" * 5000 + "}", '{"short_side": 1}', '{"short_side": null}'],
            *['{"labels": []}', '{"labels": {}}', '{"labels": "x"}', '{"activation": []}'],
            '{"antialias": 1}',
            *['{"class_names": []}', '{"class_names": "abc"}', '{"class_names": [1]}'],
            *['{"class_names": [["a"]]}', '{"class_names": ["\\u001b[2J"]}', '{"class_names": ["\\ud800"]}'],
            *['{"class_names": ' + "[" * 30_000 + "}", '{"trained_on": "a\\nb"}'],
        ],
        ids=lambda note: note[:30].encode("unicode_escape").decode(),
    )  # fmt: skip
    def test_a_damaged_note_is_refused(self, small_npz, note):
        with zipfile.ZipFile(small_npz, "a") as file:
            file.comment = b'{"bitlib": ' + note.encode("latin1") + b"}"
        with pytest.raises(
            CheckpointError, match="small.npz: the note (about the model )?that it carries is damaged"
        ) as raised:
            checkpoint.find(small_npz)
        assert str(raised.value).isprintable()

    def test_a_whole_one_is_read(self, small_npz):
        note = {"resolution": 64, "short_side": 70, "antialias": False, "class_names": list("abcdefghijk")}
        with zipfile.ZipFile(small_npz, "a") as file:
            file.comment = json.dumps({archive.NOTE: note}).encode()
        assert checkpoint.find(small_npz).card.class_names == tuple("abcdefghijk")

    def test_any_other_comment_is_left_alone(self, small_npz):
        with zipfile.ZipFile(small_npz, "a") as file:
            file.comment = b'{"other": [['
        assert checkpoint.find(small_npz).card.class_names is None
