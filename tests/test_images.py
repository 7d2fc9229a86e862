import os
import struct
import threading
import time
import zlib

import numpy as np
import pandas as pd
import pytest
import tensorflow as tf
from PIL import Image, ImageFile, features

from bitlib import datasets, images, zoo
from bitlib.zoo import Card
from tests.test_images_fuzz import encoded, tiled


@pytest.fixture(scope="module")
def photo():
    return datasets.photographs()["flower.jpg"]


class TestRead:
    def test_path_bytes_pil_and_array_are_the_same(self, tmp_path, photo):
        image = Image.fromarray(photo)
        image.save(tmp_path / "x.png")
        for source in (
            tmp_path / "x.png",
            str(tmp_path / "x.png"),
            encoded(image),
            image,
            photo,
            tf.constant(photo),
        ):
            result = images.read(source)
            assert result.dtype == np.uint8
            np.testing.assert_array_equal(result, photo)

    @pytest.mark.parametrize("format", ["JPEG", "WEBP", "BMP", "TIFF", "GIF", "PPM", "AVIF"])
    def test_formats(self, photo, format):
        if format == "AVIF" and not features.check("avif"):
            pytest.skip("this Pillow has no AVIF")
        result = images.read(encoded(Image.fromarray(photo), format))
        assert result.shape == photo.shape
        assert np.abs(result.astype(float) - photo).mean() < 8

    @pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32, np.float64, bool])
    @pytest.mark.parametrize("channels", [1, 3, 4])
    def test_large_arrays_are_converted_in_bands(self, photo, monkeypatch, dtype, channels):
        array = np.concatenate([photo, photo[..., :1]], -1)[..., :channels].astype(np.float64) / 255
        whole = {np.uint8: 255, np.uint16: 65535}.get(dtype, 1)
        array = (array * whole).astype(dtype)
        at_once = images.read(array)
        monkeypatch.setattr(images, "_BAND", 10_000)
        np.testing.assert_array_equal(images.read(array), at_once)
        assert at_once.shape == photo.shape

    @pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "L", "I;16", "F", "CMYK"])
    def test_large_pictures_are_converted_in_bands(self, photo, monkeypatch, mode):
        grey = np.asarray(Image.fromarray(photo).convert("L"))
        image = {
            "I;16": lambda: Image.fromarray(grey.astype(np.uint16) * 257),
            "F": lambda: Image.fromarray(grey / np.float32(255)),
        }.get(mode, lambda: Image.fromarray(photo).convert(mode))()
        image.getexif()[0x0112] = 6
        whole = images.read(image)
        monkeypatch.setattr(images, "_BAND", 10_000)
        np.testing.assert_array_equal(images.read(image), whole)
        assert whole.shape == (640, 427, 3)

    @pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "L", "I;16", "F", "CMYK"])
    def test_every_mode_is_turned(self, photo, mode):
        grey = np.asarray(Image.fromarray(photo).convert("L"))
        image = {
            "I;16": lambda: Image.fromarray(grey.astype(np.uint16) * 257),
            "F": lambda: Image.fromarray(grey / np.float32(255)),
        }.get(mode, lambda: Image.fromarray(photo).convert(mode))()
        upright = images.read(image)
        image.getexif()[0x0112] = 6
        np.testing.assert_array_equal(images.read(image), np.rot90(upright, -1))
        assert images.read(image).flags.writeable

    def test_grey(self, photo):
        grey = Image.fromarray(photo).convert("L")
        result = images.read(encoded(grey))
        np.testing.assert_array_equal(result, np.stack([np.asarray(grey)] * 3, axis=-1))

    @pytest.mark.parametrize("mode", ["1", "P", "CMYK", "YCbCr", "LAB", "HSV"])
    def test_modes(self, photo, mode):
        image = Image.fromarray(photo).convert(mode)
        result = images.read(image)
        assert result.shape == photo.shape
        np.testing.assert_array_equal(result, np.asarray(image.convert("RGB")))

    def test_cmyk_jpeg(self, photo):
        result = images.read(encoded(Image.fromarray(photo).convert("CMYK"), "JPEG", quality=95))
        assert np.abs(result.astype(float) - photo).mean() < 4

    @pytest.mark.parametrize("mode", ["RGBA", "LA", "PA"])
    def test_transparency_is_laid_on_white(self, mode):
        image = Image.new("RGBA", (2, 1), (0, 0, 0, 255))
        image.putpixel((1, 0), (0, 0, 0, 0))
        image = image.quantize() if mode == "PA" else image.convert(mode)
        result = images.read(encoded(image))
        np.testing.assert_array_equal(result[0, :, 0], [0, 255])

    def test_palette_with_a_transparent_colour(self):
        image = Image.new("P", (2, 1))
        image.putpalette([10, 20, 30, 0, 0, 0])
        image.putpixel((1, 0), 1)
        result = images.read(encoded(image, transparency=1))
        np.testing.assert_array_equal(result[0], [[10, 20, 30], [255, 255, 255]])

    def test_16_bit_grey(self):
        levels = np.array([[0, 257 * 100, 65535]], np.uint16)
        for source in (encoded(Image.fromarray(levels)), encoded(Image.fromarray(levels), "TIFF"), levels):
            np.testing.assert_array_equal(images.read(source)[0, :, 0], [0, 100, 255])

    def test_32_bit_and_floating_point_grey(self):
        levels = np.array([[0, 65535]], np.int32)
        np.testing.assert_array_equal(images.read(Image.fromarray(levels))[0, :, 0], [0, 255])
        floats = np.array([[0, 0.5, 1]], np.float32)
        np.testing.assert_array_equal(
            images.read(encoded(Image.fromarray(floats), "TIFF"))[0, :, 0], [0, 128, 255]
        )
        with pytest.raises(ValueError, match=r"grey levels from 0 to 70000, expected \[0, 65535\]"):
            images.read(Image.fromarray(np.array([[0, 70000]], np.int32)))

    @pytest.mark.parametrize("orientation", range(1, 9))
    def test_exif_rotation(self, orientation):
        upright = Image.new("RGB", (3, 2))
        upright.putpixel((0, 0), (255, 0, 0))
        T = Image.Transpose
        stored_as = {2: T.FLIP_LEFT_RIGHT, 3: T.ROTATE_180, 4: T.FLIP_TOP_BOTTOM, 5: T.TRANSPOSE}
        stored_as |= {6: T.ROTATE_90, 7: T.TRANSVERSE, 8: T.ROTATE_270}
        stored = upright.transpose(stored_as[orientation]) if orientation > 1 else upright
        exif = Image.Exif()
        exif[0x0112] = orientation
        result = images.read(encoded(stored, "PNG", exif=exif))
        np.testing.assert_array_equal(result, np.asarray(upright))

    def test_animation_gives_its_first_frame(self):
        frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
        result = images.read(encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]))
        assert (result == [255, 0, 0]).all()

    def test_arrays(self):
        grey = np.array([[0, 1], [0.5, 1]], np.float32)
        np.testing.assert_array_equal(images.read(grey)[..., 0], [[0, 255], [128, 255]])
        np.testing.assert_array_equal(images.read(grey[..., None]), images.read(grey))
        np.testing.assert_array_equal(images.read(grey > 0)[..., 0], [[0, 255], [255, 255]])
        rgba = np.array([[[10, 20, 30, 255], [10, 20, 30, 0]]], np.uint8)
        np.testing.assert_array_equal(images.read(rgba), [[[10, 20, 30], [255, 255, 255]]])


class TestRefusals:
    def test_not_an_image(self, tmp_path):
        (tmp_path / "notes.jpg").write_text("not a picture")
        with pytest.raises(ValueError, match=r"notes\.jpg: not a picture"):
            images.read(tmp_path / "notes.jpg")

    def test_empty_and_missing_and_folder(self, tmp_path):
        (tmp_path / "empty.png").touch()
        with pytest.raises(ValueError, match=r"empty\.png: empty"):
            images.read(tmp_path / "empty.png")
        with pytest.raises(ValueError, match="0 bytes: empty"):
            images.read(b"")
        with pytest.raises(
            FileNotFoundError, match=r"none\.png: no such file, expected a picture or a folder"
        ):
            images.read(tmp_path / "none.png")
        with pytest.raises(ValueError, match="a folder"):
            images.read(tmp_path)

    @pytest.mark.parametrize("format", ["PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP"])
    def test_truncated(self, photo, format):
        data = encoded(Image.fromarray(photo), format)
        with pytest.raises(ValueError, match="bytes: (corrupt or truncated|not a) picture"):
            images.read(data[: len(data) // 2])

    def test_corrupt(self, photo):
        data = bytearray(encoded(Image.fromarray(photo)))
        data[200:260] = bytes(60)
        with pytest.raises(ValueError, match="corrupt or truncated picture"):
            images.read(bytes(data))

    def test_absurdly_large(self, monkeypatch):
        bomb = encoded(Image.new("1", (20_000, 20_000)))
        assert len(bomb) < 100_000
        with pytest.raises(ValueError, match="too large|pixels, the limit is 100,000,000"):
            images.read(bomb)
        monkeypatch.setattr(images, "MAX_PIXELS", 10)
        for source in (Image.new("L", (4, 4)), np.zeros((4, 4), np.uint8)):
            with pytest.raises(ValueError, match="4×4 pixels, the limit is 10"):
                images.read(source)

    @pytest.mark.parametrize("format", ["ICO", "TGA", "PCX", "SGI", "DDS", "JPEG2000"])
    def test_other_formats_whatever_they_are_called(self, tmp_path, format):
        path = tmp_path / "x.png"
        path.write_bytes(encoded(Image.new("RGB", (8, 8)), format))
        with pytest.raises(ValueError, match=r"x\.png: not a picture, expected PNG, JPEG, .* or WEBP$"):
            images.read(path)

    def test_a_program_is_never_started(self, tmp_path, monkeypatch):
        ghostscript = tmp_path / "gs"
        ghostscript.write_text(f"#!/bin/sh\ntouch {tmp_path}/started\n")
        ghostscript.chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
        path = tmp_path / "x.png"
        path.write_bytes(encoded(Image.new("RGB", (8, 8)), "EPS"))
        with pytest.raises(ValueError, match=r"x\.png: not a picture"):
            images.read(path)
        assert not (tmp_path / "started").exists()

    @pytest.mark.parametrize("error", [MemoryError, struct.error, KeyError, AttributeError, OverflowError,
                                       RecursionError, zlib.error, OSError, AssertionError])  # fmt: skip
    def test_whatever_the_decoder_raises(self, tmp_path, monkeypatch, error):
        def fails(image):
            raise error("\x1b[31mred")

        monkeypatch.setattr(ImageFile.ImageFile, "load", fails)
        Image.new("RGB", (8, 8)).save(tmp_path / "x.bmp")
        with pytest.raises(ValueError, match=r"x\.bmp: corrupt or truncated picture \(.*red.?\)$") as caught:
            images.read(tmp_path / "x.bmp")
        assert str(caught.value).isprintable()

    @pytest.mark.parametrize("kind", [b"zTXt", b"iTXt", b"iCCP"])
    def test_bombs_in_metadata(self, kind):
        packed = zlib.compress(bytes(5_000_000))
        body = {b"zTXt": b"x\0\0", b"iTXt": b"x\0\1\0\0\0", b"iCCP": b"x\0\0"}[kind] + packed
        whole = encoded(Image.new("RGB", (8, 8)))
        chunk = struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        spoilt = whole[:33] + chunk + whole[33:]  # after the header
        try:
            assert images.read(spoilt).shape == (8, 8, 3)  # as good: what is not a picture is passed over
        except ValueError as error:
            assert str(error).startswith(f"{len(spoilt)} bytes: corrupt")  # noqa: PT017

    @pytest.mark.parametrize("length", [9, 20, 30, 40])
    def test_a_cut_header(self, length):
        with pytest.raises(ValueError, match=f"^{length} bytes: (not a|corrupt or truncated) picture"):
            images.read(encoded(Image.new("RGB", (8, 8)))[:length])

    def test_floating_point_grey_of_another_range(self, tmp_path):
        Image.fromarray(np.full((4, 4), 200, np.float32)).save(tmp_path / "x.tif")
        with pytest.raises(ValueError, match=r"x\.tif: expected floats in \[0, 1\].*divide by 255"):
            images.read(tmp_path / "x.tif")

    def test_a_tile_larger_than_its_picture(self):
        assert images.read(tiled(16, 64)).shape == (16, 16, 3)
        vast = tiled(16, 16_384)
        assert len(vast) < 300_000
        with pytest.raises(ValueError, match=r"tiles of 268,435,456 pixels, the limit is 100,000,000"):
            images.read(vast)

    def test_a_file_too_large_for_any_picture(self, tmp_path):
        with (tmp_path / "x.webp").open("wb") as file:
            file.write(b"RIFF\xff\xff\xff\xffWEBPVP8 ")
            file.truncate(images.MAX_BYTES + 1)  # of holes; nothing is written
        with pytest.raises(ValueError, match=r"x\.webp: 1,000,000,001 bytes, the limit is 1,000,000,000"):
            images.read(tmp_path / "x.webp")

    @pytest.mark.parametrize("name", ["x" * 300, "a\0b", "none/none.png"])
    def test_what_cannot_be_a_path(self, name):
        with pytest.raises(FileNotFoundError, match="expected a picture or a folder of pictures"):
            images.read(name)

    @pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="Windows has no named pipes")
    def test_a_pipe_that_would_never_end(self, tmp_path):
        os.mkfifo(tmp_path / "x.png")
        with pytest.raises(ValueError, match=r"x\.png: not a regular file"):
            images.read(tmp_path / "x.png")

    @pytest.mark.parametrize(
        ("array", "told"),
        [
            (np.zeros((4, 4, 2), np.uint8), "expected shape"),
            (np.zeros((1, 4, 4, 3), np.uint8), "expected shape"),
            (np.zeros((0, 4, 3), np.uint8), "expected shape"),
            (np.zeros((4, 4, 3), np.int64), "received int64"),
            (np.full((4, 4, 3), 200.0), "divide by 255"),
            (np.full((4, 4, 3), -0.5), "add 1 and halve"),
            (np.full((4, 4, 3), np.nan), "received nan"),
        ],
    )
    def test_arrays(self, array, told):
        with pytest.raises(ValueError, match=f"^array: .*{told}"):
            images.read(array)

    def test_other_things(self):
        with pytest.raises(ValueError, match="received int"):
            images.read(7)


class TestManyThreads:
    @pytest.mark.parametrize(("limit", "most"), [(10_000, 1), (35_000, 3)])
    def test_pixels_decoded_side_by_side_are_limited(self, monkeypatch, limit, most):
        monkeypatch.setattr(images, "MAX_PIXELS", limit)
        picture = encoded(Image.new("RGB", (100, 100)))
        inside, seen = [], []

        def reading():
            with images.decoded(picture):
                inside.append(1)
                seen.append(len(inside))
                time.sleep(0.02)
                inside.pop()

        threads = [threading.Thread(target=reading) for _ in range(12)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout=30)
        assert max(seen) == most
        assert len(seen) == 12

    def test_a_picture_that_fails_makes_room(self, monkeypatch):
        monkeypatch.setattr(images, "MAX_PIXELS", 10_000)
        whole = encoded(Image.fromarray(np.random.default_rng(0).integers(0, 255, (100, 100, 3), np.uint8)))
        for _ in range(3):
            with pytest.raises(ValueError, match="corrupt"):
                images.read(whole[: len(whole) // 2])
        assert images.read(whole).shape == (100, 100, 3)


class TestPrepare:
    def test_a_line_of_pixels(self):
        with pytest.raises(ValueError, match="source: 1000000×1 pixels, too long for a short side of 256"):
            images.prepare(np.zeros((1, 1_000_000), np.uint8), 224, short_side=256)

    def test_straight_is_tensorflows_resize(self, photo):
        for antialias in (False, True):
            expected = tf.image.resize(photo, (96, 96), antialias=antialias) / 127.5 - 1
            np.testing.assert_allclose(images.prepare(photo, 96, antialias=antialias), expected, atol=1e-5)

    @pytest.mark.parametrize("antialias", [False, True])
    @pytest.mark.parametrize(
        ("shape", "size"),
        [
            ((1200, 1601, 3), (480, 480)), ((37, 501, 3), (160, 200)), ((1, 1, 3), (64, 64)),
            ((2, 3, 1), (64, 32)), ((2, 5, 33, 40, 3), (224, 31)), ((7, 4999, 3), (96, 96)),
            ((64, 64, 3), (64, 64)),
        ],
    )  # fmt: skip
    def test_resize_is_tensorflows(self, shape, size, antialias):
        image = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
        found = images.resize(image, size, antialias)
        each = image.reshape(-1, *shape[-3:])
        expected = tf.image.resize(each, size, antialias=antialias).numpy().reshape(found.shape)
        assert found.dtype == np.float32
        assert np.abs(found - expected).max() / 127.5 < 1e-6

    def test_short_side_then_centre(self, photo):
        expected = tf.image.resize(photo, (128, 192))[12:116, 44:148] / 127.5 - 1
        np.testing.assert_allclose(images.prepare(photo, 104, short_side=128), expected, atol=1e-5)

    def test_range_and_dtype(self, photo):
        result = images.prepare(photo, 64)
        assert result.dtype == np.float32
        assert -1 <= result.min() < -0.9 < 0.9 < result.max() <= 1

    def test_a_picture_of_the_right_size_is_not_resampled(self, photo):
        square = photo[:64, :64]
        np.testing.assert_array_equal(np.round((images.prepare(square, 64) + 1) * 127.5), square)

    def test_nonsense(self, photo):
        with pytest.raises(ValueError, match="^resolution: expected at least 32"):
            images.prepare(photo, 16)
        with pytest.raises(ValueError, match="^short_side: expected at least the resolution"):
            images.prepare(photo, 64, short_side=48)


class TestBatch:
    def test_by_the_card(self, photo):
        card = Card("x", "x.npz", "R50x1", 10, None, "nothing", resolution=64, short_side=80)
        batch = images.batch([photo, photo[:, :100]], card)
        assert batch.shape == (2, 64, 64, 3)
        np.testing.assert_array_equal(batch[0], images.prepare(photo, 64, 80))
        np.testing.assert_array_equal(images.batch([photo], card, 128)[0], images.prepare(photo, 128, 160))
        with pytest.raises(ValueError, match="at least one"):
            images.batch([], card)

    @pytest.mark.parametrize(
        "kind",
        ["str", "Path", "bytes", "bytearray", "memoryview", "PIL", "rgb", "rgba", "grey", "grey1", "tensor"],
    )
    def test_one_picture_is_a_batch_of_one(self, tmp_path, photo, kind):
        image = Image.fromarray(photo[:50, :60])
        array = np.asarray(image)
        image.save(tmp_path / "x.png")
        one = {
            "str": str(tmp_path / "x.png"), "Path": tmp_path / "x.png", "bytes": encoded(image), "PIL": image,
            "bytearray": bytearray(encoded(image)), "memoryview": memoryview(encoded(image)), "rgb": array,
            "rgba": np.asarray(image.convert("RGBA")), "grey": array[..., 0], "grey1": array[..., :1],
            "tensor": tf.constant(array),
        }[kind]  # fmt: skip
        card = zoo.card("BiT-XS-R14x0.5")
        batch = images.batch(one, card)
        assert batch.shape == (1, 64, 64, 3)
        np.testing.assert_array_equal(batch, images.batch([one], card))

    def test_many_are_many(self, photo):
        card = zoo.card("BiT-XS-R14x0.5")
        pictures = np.stack([photo[:50, :60], photo[60:110, :60]])
        expected = images.batch(list(pictures), card)
        for many in (pictures, tuple(pictures), iter(pictures), tf.constant(pictures)):
            np.testing.assert_array_equal(images.batch(many, card), expected)
        assert images.batch(pictures[..., 0], card).shape == (2, 64, 64, 3)
        assert images.batch(pictures[..., :1], card).shape == (2, 64, 64, 3)
        for planes in (photo[:50, :60].transpose(2, 0, 1), np.repeat(pictures[..., 0], 2, 0)):
            words = (
                rf"^sources: \({len(planes)}, 50, 60\) is taken for {len(planes)} grey pictures; .*transpose"
            )
            with pytest.warns(UserWarning, match=words):
                assert images.batch(planes, card).shape == (len(planes), 64, 64, 3)

    def test_rows_of_numbers_are_no_picture(self):
        card = zoo.card("BiT-XS-R14x0.5")
        with pytest.warns(
            UserWarning, match=r"^sources: \(9, 64\) is taken for one grey picture, not for rows"
        ):
            images.batch(np.zeros((9, 64)), card)
        with pytest.raises(
            ValueError, match="^sources: expected a picture or a list of them, received DataFrame"
        ):
            images.batch(pd.DataFrame(np.zeros((9, 64))), card)

    def test_premultiplied_grey(self):
        grey = Image.fromarray(np.tile(np.uint8([[200, 255], [0, 0]]), (20, 20, 1)), "LA")
        np.testing.assert_array_equal(images.read(grey.convert("La")), images.read(grey))

    def test_antialias_is_a_flag(self, photo):
        with pytest.raises(ValueError, match="^antialias: expected True or False, received 'no'"):
            images.prepare(photo, 64, antialias="no")

    def test_a_model_has_a_card(self, photo):
        class Model:
            card = zoo.card("BiT-XS-R14x0.5")

        np.testing.assert_array_equal(images.batch(photo, Model()), images.batch(photo, Model.card))

    @pytest.mark.parametrize(
        ("sources", "message"),
        [
            (None, "^sources: expected a picture or a list of them, received NoneType"),
            (7, "^sources: expected a picture or a list of them, received int"),
            ({"a.png": 1}, "^sources: expected a picture or a list of them, received dict"),
            ({"a.png"}, "^sources: expected a picture or a list of them, received set"),
            ([None], "^source: expected a path, bytes, a PIL image or an array, received NoneType"),
            ([[1, 2]], "^source: expected a path, bytes, a PIL image or an array, received list"),
            ((), "^sources: expected at least one picture, received none"),
            (np.zeros((0, 40, 40, 3), np.uint8), "^sources: expected at least one picture, received none"),
            (np.zeros((2, 3, 40, 40), np.uint8), r"^array: .*\(3, 40, 40\); channels come last: array.trans"),
            (np.zeros((2, 2, 40, 40, 3), np.uint8), r"^array: expected shape .*received \(2, 40, 40, 3\)"),
            (np.zeros(7), r"^array: expected shape .*received \(\)"),
            (np.full((40, 40, 3), -0.5), r"^array: .*received -0.5 to -0.5; add 1 and halve$"),
            (np.full((40, 40, 3), 200.0), r"^array: .*received 200 to 200; divide by 255, or pass uint8$"),
            (np.full((40, 40, 3), np.nan), r"^array: expected floats in \[0, 1\], received nan to nan$"),
            (np.full((40, 40, 3), np.inf), r"^array: expected floats in \[0, 1\], received inf to inf$"),
            (np.linspace(-2, 2, 4800).reshape(40, 40, 3), r"^array: .*received -2 to 2$"),
            (np.zeros((40, 40, 3), int), "^array: expected dtype uint8, .*or float, received int64"),
            (np.array([["a", "b"]]), r"^array: expected dtype uint8, .* received <U1"),
        ],
    )  # fmt: skip
    def test_wrong_sources(self, sources, message):
        with pytest.raises(ValueError, match=message):
            images.batch(sources, zoo.card("BiT-XS-R14x0.5"))

    @pytest.mark.parametrize("card", ["BiT-XS-R14x0.5", None, 224, object()])
    def test_no_card(self, photo, card):
        with pytest.raises(ValueError, match=r"^card: expected model.card or bitlib.zoo.card\(name\)"):
            images.batch(photo, card)

    @pytest.mark.parametrize("resolution", ["64", "64px", 64.0, 16, 0, -1, 10**6, (64, 64), True])
    def test_no_resolution(self, photo, resolution):
        with pytest.raises(ValueError, match=r"^resolution: expected (at least 32|a whole number of) pixels"):
            images.batch(photo, zoo.card("BiT-XS-R14x0.5"), resolution)

    def test_home(self, tmp_path, photo, monkeypatch):
        monkeypatch.setenv("HOME", str(tmp_path))
        Image.fromarray(photo).save(tmp_path / "x.png")
        assert images.read("~/x.png").shape == photo.shape
        assert images.files("~") == [tmp_path / "x.png"]
        with pytest.raises(FileNotFoundError, match="~nobody.*no such file"):
            images.read("~nobody_here/x.png")

    def test_published_preprocessing(self):
        told = {name: (zoo.card(name).resolution, zoo.card(name).short_side) for name in zoo.names()}
        assert told["BiT-M-R50x1-ILSVRC2012"] == (480, None)
        assert told["R50x1_224"] == told["R152x2_T_224"] == (224, 256)
        assert told["R152x2_T_384"] == (384, None)
        assert told["R152x2_T_flowers128"] == (128, 160)


def test_files(tmp_path, photo):
    (tmp_path / "b").mkdir()
    for name in ("b/x.JPG", "a.png"):
        Image.fromarray(photo).save(tmp_path / name, "PNG")
    (tmp_path / "notes.txt").write_text("BMW, P1, GIF")
    assert [path.name for path in images.files(tmp_path)] == ["a.png", "x.JPG"]
    (tmp_path / "empty.png").mkdir()
    with pytest.raises(FileNotFoundError, match="holds no pictures"):
        images.files(tmp_path / "empty.png")
    assert [path.name for path in images.files(tmp_path)] == ["a.png", "x.JPG"]
    with pytest.raises(FileNotFoundError, match="no such folder, expected a picture or a folder of pictures"):
        images.files(tmp_path / "nowhere")


@pytest.mark.parametrize(("dtype", "most"), [(np.uint16, 4095), (np.uint8, 1)])
def test_fewer_bits_than_their_dtype_are_told(dtype, most):
    levels = np.full((16, 16), most, dtype)
    with pytest.warns(UserWarning, match=rf"none above ({most}|4111); if they (are|have)"):
        images.read(levels)


@pytest.mark.parametrize(
    ("size", "words"), [((0, 5), "received 0"), ((5.5, 5), "received 5.5"), (5, "height and width, received")]
)
def test_a_size_is_two_whole_numbers(size, words):
    with pytest.raises(ValueError, match=f"^size: expected .*{words}"):
        images.resize(np.zeros((8, 8, 3), np.uint8), size)


@pytest.mark.parametrize("levels", [np.arange(256).reshape(16, 16), np.full((16, 16), 100)])
def test_16_bits_that_hold_8_are_told(levels):
    with pytest.warns(UserWarning, match=r"16-bit levels .*none above 255; .*pass uint8"):
        images.read(levels.astype(np.uint16))
