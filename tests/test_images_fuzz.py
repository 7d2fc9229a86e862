"""Pictures spoilt at random: each is read, or refused with a ValueError that names it.

A case follows from its number. `BITLIB_FUZZ_CASES=200000 pytest tests/test_images_fuzz.py` runs more of them,
`BITLIB_FUZZ_FIRST=200000` beside it others.
"""

import io
import os
import random
import struct
import time
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image, PngImagePlugin, features

from bitlib import images

CASES = int(os.environ.get("BITLIB_FUZZ_CASES", 6000))
FIRST = int(os.environ.get("BITLIB_FUZZ_FIRST", 0))
SECONDS = 5  # for one picture, on a busy machine; nearly all take less than a millisecond

NUMBERS = (
    0,
    1,
    2,
    3,
    8,
    16,
    127,
    128,
    255,
    256,
    32767,
    32768,
    65535,
    1 << 24,
    (1 << 31) - 1,
    1 << 31,
    (1 << 32) - 1,
)


def encoded(image, format="PNG", **options):
    data = io.BytesIO()
    image.save(data, format, **options)
    return data.getvalue()


def seeds():
    """Small whole pictures in every format and in most of the ways that each format has."""
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 12, 3), np.uint8)).resize((24, 18))
    paper = photo.convert("RGBA")
    paper.putalpha(photo.convert("L"))
    palette, grey, bits = photo.quantize(16), photo.convert("L"), photo.convert("1")
    deep = Image.fromarray(np.arange(24 * 18, dtype=np.uint16).reshape(18, 24) * 100)
    floats = Image.fromarray(np.linspace(0, 1, 24 * 18, dtype=np.float32).reshape(18, 24))
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a description"
    text = PngImagePlugin.PngInfo()
    text.add_text("comment", "hello " * 9, zip=True)
    text.add_itxt("another", "hello")
    profile = b"a colour profile" * 5
    yield from (
        encoded(image, "PNG") for image in (photo, paper, palette, grey, bits, deep, grey.convert("LA"))
    )
    yield encoded(palette, "PNG", transparency=3)
    yield encoded(photo, "PNG", exif=exif, pnginfo=text, icc_profile=profile)
    yield encoded(photo, "PNG", save_all=True, append_images=[photo.rotate(90)])
    yield from (encoded(image, "JPEG") for image in (grey, photo.convert("CMYK")))
    yield encoded(photo, "JPEG", exif=exif, icc_profile=profile, comment="hello")
    yield encoded(photo, "JPEG", progressive=True, restart_marker_blocks=1)
    yield from (encoded(image, "GIF") for image in (photo, grey))
    yield encoded(palette, "GIF", save_all=True, append_images=[palette.rotate(90)], transparency=2, loop=1)
    yield from (encoded(image, "BMP") for image in (photo, palette, grey, bits, paper))
    yield run_lengths(palette)
    for compression in ("raw", "tiff_lzw", "packbits", "tiff_adobe_deflate", "jpeg"):
        yield encoded(photo, "TIFF", compression=compression, exif=exif)
    yield from (
        encoded(image, "TIFF") for image in (palette, grey, deep, floats, paper, photo.convert("CMYK"))
    )
    yield encoded(bits, "TIFF", compression="group4")
    yield tiled(16, 64)
    yield encoded(photo, "TIFF", save_all=True, append_images=[grey])
    yield from (encoded(image, "PPM") for image in (photo, grey, bits, deep))
    if features.check("avif"):
        yield encoded(photo, "AVIF", exif=exif, icc_profile=profile)
        yield encoded(paper, "AVIF", save_all=True, append_images=[paper.rotate(90)])
    yield encoded(photo, "WEBP", exif=exif, icc_profile=profile)
    yield encoded(paper, "WEBP", lossless=True)
    yield encoded(paper, "WEBP", save_all=True, append_images=[paper.rotate(90)])


def tiled(side, tile):
    """A black TIFF of that side in one tile, which may be larger."""
    data = zlib.compress(bytes(tile * tile), 9)
    tags = {256: side, 257: side, 258: 8, 259: 8, 262: 1, 277: 1, 322: tile, 323: tile, 325: len(data)}
    tags[324] = 8 + 2 + 12 * (len(tags) + 1) + 4  # where the data begins
    fields = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in sorted(tags.items()))
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + fields + bytes(4) + data


def run_lengths(palette):
    """A BMP with run lengths, which Pillow reads and does not write."""
    rows = b"".join(b"\x18" + bytes([row]) + b"\0\0" for row in range(18)) + b"\0\1"
    data = bytearray(encoded(palette, "BMP"))
    (start,) = struct.unpack_from("<I", data, 10)
    data[start:] = rows
    struct.pack_into("<I", data, 30, 1)
    return bytes(data)


SEEDS = list(seeds())


def spoilt(number):
    """Case `number`: a seed with one to six changes."""
    rng = random.Random(number)
    data = bytearray(rng.choice(SEEDS))
    for _ in range(rng.choice((1, 1, 1, 2, 3, 6))):
        change(data, rng)
    if data.startswith(b"\x89PNG") and rng.random() < 0.7:
        mend_checksums(data)
    return bytes(data)


def change(data, rng):
    # Headers are short and decide most: half of the changes fall among the first bytes.
    reach = min(len(data), 64) if rng.random() < 0.5 else len(data)
    place = rng.randrange(reach) if reach else 0
    length = rng.choice((1, 2, 4, 9, 40))
    kind = rng.randrange(8)
    if kind == 0 and data:
        data[place] ^= 1 << rng.randrange(8)
    elif kind == 1 and data:
        data[place] = rng.choice((0, 1, 127, 128, 255, rng.randrange(256)))
    elif kind == 2:
        order, width = rng.choice("<>"), rng.choice("HI")
        number = rng.choice(NUMBERS) & (65535 if width == "H" else 0xFFFFFFFF)
        packed = struct.pack(order + width, number)
        data[place : place + len(packed)] = packed
    elif kind == 3:
        del data[place : place + length]
    elif kind == 4:
        data[place:place] = data[place : place + length] * rng.choice((1, 2, 50))
    elif kind == 5:
        data[place : place + length] = rng.randbytes(length)
    elif kind == 6:
        del data[max(place, 8) :]
    else:
        other = rng.choice(SEEDS)
        start = rng.randrange(len(other))
        data[place : place + length] = other[start : start + length]


def mend_checksums(data):
    """PNG's chunks carry checksums; with the right ones a changed chunk is looked into."""
    place = 8
    while place + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, place)
        end = place + 8 + length
        if end + 4 > len(data):
            return
        struct.pack_into(">I", data, end, zlib.crc32(data[place + 4 : end]))
        place = end + 4


@pytest.fixture
def small_limits(monkeypatch):
    monkeypatch.setattr(images, "MAX_PIXELS", 1_000_000)


def test_seeds_are_pictures():
    for seed in SEEDS:
        assert images.read(seed).shape[-1] == 3


def test_spoilt_pictures_are_read_or_refused_by_name(small_limits, tmp_path):
    path = tmp_path / "spoilt.png"
    outcomes = {"read": 0, "refused": 0}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of much that it reads all the same
        for number in range(FIRST, FIRST + CASES):
            data = spoilt(number)
            source, name = data, f"{len(data)} bytes"
            if number % 4 == 0:  # files take other ways through the decoders than bytes
                path.write_bytes(data)
                source, name = path, str(path)
            start = time.monotonic()
            picture, refusal = attempt(number, source)
            assert time.monotonic() - start < SECONDS, number
            if refusal is not None:
                assert refusal.startswith(f"{name}: "), (number, refusal)
                assert refusal.isprintable(), (number, refusal)
            else:
                assert picture.dtype == np.uint8, number
                assert picture.ndim == 3, number
                assert picture.shape[-1] == 3, number
            outcomes["read" if refusal is None else "refused"] += 1
    assert min(outcomes.values()) > CASES / 10, outcomes


def attempt(number, source):
    """The picture, or the message of the refusal; no other error is allowed."""
    try:
        return images.read(source), None
    except ValueError as error:
        return None, str(error)
    except BaseException as error:
        raise AssertionError(f"case {number}: {error!r}") from error
