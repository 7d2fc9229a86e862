"""Checkpoints spoilt at random: each reads as what was written, or is refused with a `CheckpointError`.

A case is made from its number alone. To run more of them, and to run a range again:

    BITLIB_FUZZ=200000 pytest tests/test_fuzz.py
    BITLIB_FUZZ=4711:4712 pytest tests/test_fuzz.py
"""

import io
import os
import struct
import zipfile
from collections import Counter

import numpy as np
import pytest

from bitlib import checkpoint
from bitlib.checkpoint import CheckpointError
from bitlib.files import archive

SHAPES = {
    checkpoint.ROOT: (7, 7, 3, 32),
    "resnet/block1/unit01/a/group_norm/gamma": (32,),
    "resnet/group_norm/gamma": (1024,),
    checkpoint.HEAD[0]: (1, 1, 8, 3),
    checkpoint.HEAD[1]: (3,),
}
"""A network of five arrays, so that a case takes a millisecond. What is known of real ones stays."""

START, _, STOP = os.environ.get("BITLIB_FUZZ", "2500").rpartition(":")
CASES = range(int(START or 0), int(STOP))

KINDS = {"bytes", "fields", "members", "note"}
NUMBERS = [0, 1, 7, 8, 9, 12, 14, 20, 45, 255, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 2, 2**32 - 1]
TEXTS = [
    *[
        "",
        "-1",
        "0",
        "True",
        "None",
        "1e9",
        "9" * 30,
        "9" * 5000,
        "2**63",
        "4294967296",
        "1_0",
        "0x7",
        "(3,)",
    ],
    *["'", '"', "(", ")", "{", "}", ",", ", ,", "#", "L", "(" * 300, "-" * 5000, "[" * 90 + "]" * 90],
    *[
        "\\",
        "\\x",
        "\n",
        " \n  ",
        "\0",
        "\x1b[2J",
        "é",
        "\ud800",
        "lambda: 0",
        "__import__('os')",
        "{**{}}",
        "b'x'",
    ],
    *["'|O'", "'>f4'", "'<f8'", "('<f4', (2,))", "[('a', '<f4')]", "'f4,f4'", "'<M8[s]'", "False"],
    *["'shape': (3,), ", "(" + "1," * 4000 + ")", "NaN", "1e999", "[]", "null", "true"],
]


@pytest.fixture(scope="module")
def arrays():
    rng = np.random.default_rng(0)
    return {name: rng.normal(size=shape).astype("float32") for name, shape in SHAPES.items()}


@pytest.fixture(autouse=True)
def small_layout(monkeypatch):
    monkeypatch.setattr(archive, "layout", lambda architecture: SHAPES)


def npy(array):
    data = io.BytesIO()
    np.lib.format.write_array(data, array)
    return data.getvalue()


def zipped(members, compression):
    """A zip of names and bytes. The names may be the same, or have any character."""
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", compression) as file:
        for name, content in members:
            info = zipfile.ZipInfo("x")
            info.filename = name or "x"  # its own constructor cuts names
            file.writestr(info, content, compression)
    return data.getvalue()


def pick(rng, choices):
    return choices[rng.integers(len(choices))]


def edited(rng, text):
    """A piece of a text replaced by something that parsers stumble over."""
    start = rng.integers(len(text) + 1)
    return text[:start] + pick(rng, TEXTS) + text[start + rng.integers(12) :]


def spoil_bytes(rng, data):
    """Flip, overwrite, cut, repeat, swap or end: anywhere, or where the structure is."""
    data = bytearray(data)
    for _ in range(rng.integers(1, 4)):
        size = len(data)
        if size < 64:
            break
        marks = [
            i
            for i in (data.find(b"PK\x03\x04", rng.integers(size)), data.rfind(b"PK\x01\x02"), size - 64)
            if i >= 0
        ]
        at = int(pick(rng, [rng.integers(size), min(size - 1, pick(rng, marks) + rng.integers(64))]))
        other, length = int(rng.integers(size)), int(rng.integers(1, 200))
        kind = rng.integers(7)
        if kind == 0:
            data[at] ^= 1 << rng.integers(8)
        elif kind == 1:
            data[at] = rng.integers(256)
        elif kind == 2:
            field = struct.pack("<Q", pick(rng, NUMBERS))[: pick(rng, [2, 4, 8])]
            data[at : at + len(field)] = field
        elif kind == 3:
            del data[at : at + length]
        elif kind == 4:
            data[at:at] = data[other : other + length]
        elif kind == 5:
            data[at : at + length] = data[other : other + length]
        else:
            del data[at:]
    return bytes(data)


def spoil_fields(rng, data):
    """Fields of the zip's headers: local, directory or end."""
    data = bytearray(data)
    for _ in range(rng.integers(1, 4)):
        mark = pick(rng, [b"PK\x03\x04", b"PK\x01\x02", b"PK\x05\x06"])
        at = data.find(mark, int(rng.integers(len(data))))
        at = at if at >= 0 else data.find(mark)
        field = int(at + 4 + 2 * rng.integers(9 if mark[2] == 5 else 21))
        value = struct.pack("<Q", pick(rng, [*NUMBERS, int(rng.integers(len(data)))]))
        width = pick(rng, [2, 4])
        data[field : field + width] = value[:width]
    return bytes(data)


def spoil_members(rng, arrays, compression):
    """A whole zip, its checksums right, whose arrays are not: headers, names, dtypes, shapes, doubles."""
    members = [[f"{name}.npy", npy(array)] for name, array in arrays.items()]
    for _ in range(rng.integers(1, 3)):
        member = pick(rng, members)
        kind = rng.integers(7)
        if kind < 3:
            header, data = member[1][10:128].decode("latin1"), member[1][128:]
            header = edited(rng, header)[: pick(rng, [118, 118, 60_000])].encode("utf-8", "surrogatepass")
            version = pick(rng, [b"\1\0", b"\1\0", b"\1\0", b"\2\0", b"\3\0", b"\4\0"])
            length = pick(rng, [len(header), len(header), len(header), pick(rng, NUMBERS)])
            packed = struct.pack("<Q", length)[: 2 if version == b"\1\0" else 4]
            member[1] = b"\x93NUMPY" + version + packed + header + data
        elif kind == 3:
            member[0] = edited(rng, member[0]).encode("utf-8", "replace").decode()
        elif kind == 4:
            member[1] = spoil_bytes(rng, member[1])
        elif kind == 5:
            dtype = pick(rng, ["f8", "f2", "i4", ">f4", "?", "S4", "c8", "M8[s]"])
            member[1] = npy(np.zeros(pick(rng, list(SHAPES.values())), dtype))
        else:
            members.append(list(pick(rng, members)))
    return zipped(members, compression)


def spoilt(number, arrays):
    """The case of a number: what it was made by, and the file."""
    rng = np.random.default_rng([7, number])
    compression = pick(rng, [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
    note = pick(rng, [b"", b'{"bitlib": {"resolution": 64, "class_names": ["a", "b", "c"]}}'])
    kind = pick(rng, sorted(KINDS))
    if kind == "members":
        if rng.integers(20) == 0:
            compression = pick(rng, [zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2])
        return kind, spoil_members(rng, arrays, compression)
    data = zipped([(f"{name}.npy", npy(array)) for name, array in arrays.items()], compression)
    if kind == "note":
        note = (
            b'{"bitlib": {"resolution": 64, "short_side": 70, "antialias": true, "class_names": ["a", "b"]}}'
        )
        note = edited(rng, note.decode()).encode("utf-8", "surrogatepass")[:65535]
    with io.BytesIO(data) as file:
        with zipfile.ZipFile(file, "a") as opened:
            opened.comment = note
        data = file.getvalue()
    return kind, {"bytes": spoil_bytes, "fields": spoil_fields}.get(kind, lambda rng, data: data)(rng, data)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::SyntaxWarning", "ignore::DeprecationWarning")
def test_spoilt_checkpoints_read_as_written_or_are_refused(tmp_path, arrays):
    path = tmp_path / "x.npz"
    counts = Counter()
    for number in CASES:
        kind, data = spoilt(number, arrays)
        path.write_bytes(data)
        for read in (checkpoint.read, checkpoint._noted):
            outcome, found = outcome_of(read, path, f"case {number}, {kind}")
            if outcome == "read" and read is checkpoint.read:
                expected = dict(np.load(path)) if kind == "members" else arrays
                expected = {archive._NUMBERED.sub(r"\1", name): array for name, array in expected.items()}
                assert found.keys() == expected.keys(), number
                assert all(np.array_equal(found[name], expected[name]) for name in found), number
            counts[kind, read.__name__, outcome] += 1
    print(counts)
    if len(CASES) > 1000:  # each kind of file, with either outcome
        assert {kind for kind, _, outcome in counts if outcome == "read"} == KINDS
        assert {kind for kind, _, outcome in counts if outcome == "refused"} == KINDS


def outcome_of(read, path, case):
    """Whether a file is read or refused, and what was read. Any other error is a failure."""
    try:
        return "read", read(path)
    except CheckpointError as error:
        message = str(error)
    except Exception as error:
        raise AssertionError(case) from error
    assert message.startswith(f"{path}: "), case
    assert message.isprintable(), case
    assert len(message) < 3000, case
    return "refused", None
