"""What else a SavedModel can give: names for files of pictures, and feature maps."""

import base64
import io
import json
import re
import shutil
import struct
import zlib
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_hub as hub
import tf_keras
from PIL import Image
from PIL.PngImagePlugin import PngInfo

import bitlib
from bitlib import checkpoint, labels, reference, zoo
from bitlib import images as pictures
from bitlib.formats import graphs
from bitlib.model import BiT

DOCS = Path(__file__).parent.parent / "docs" / "serving.md"


def scene(mode="RGB", size=(150, 110), seed=0):
    """A smooth picture, with a gradient of transparency if its mode has any."""
    levels = np.random.default_rng(seed).integers(0, 256, (9, 12, 4), np.uint8)
    return Image.fromarray(levels).resize(size, Image.Resampling.BICUBIC).convert(mode)


def encoded(image, format, **options):
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def png(depth, kind=0, transparent=None):
    """A PNG of random levels, of a bit depth and a kind of colours, one of which may be transparent."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    channels = {0: 1, 2: 3, 4: 2, 6: 4}[kind]
    rows = np.random.default_rng(depth).choice(np.array([0, 1, 2, 90, 255], np.uint8), (40, 8 * channels))
    header = struct.pack(">IIBBBBB", 8 * 8 // depth, 40, depth, kind, 0, 0, 0)
    data = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    clear = b"" if transparent is None else chunk(b"tRNS", struct.pack(">H", transparent) * channels)
    start = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + clear
    return start + chunk(b"IDAT", data) + chunk(b"IEND", b"")


SIXTEEN_BITS = (np.random.default_rng(0).random((60, 50)) * 65535).astype(np.uint16)

FILES = {
    "JPEG": encoded(scene(), "JPEG"),
    "JPEG, progressive, full chroma": encoded(scene(), "JPEG", progressive=True, subsampling=0, quality=97),
    "JPEG, grey": encoded(scene("L"), "JPEG"),
    "JPEG, CMYK": encoded(scene("CMYK"), "JPEG"),
    "JPEG, small": encoded(scene(size=(7, 33)), "JPEG"),
    "JPEG, large": encoded(scene(size=(1201, 801)), "JPEG"),
    "PNG": encoded(scene(), "PNG"),
    "PNG, grey": encoded(scene("L"), "PNG"),
    "PNG, 1 bit": encoded(scene("1"), "PNG"),
    "PNG, 2 bits": png(2),
    "PNG, 4 bits": png(4),
    **{
        f"PNG, {kind + 1}x{depth} bits, {value} clear": png(depth, kind, value)
        for kind, depth, value in [
            *((0, 1, 0), (0, 1, 1), (0, 2, 1), (0, 4, 2), (0, 8, 90), (0, 16, 90)),
            *((2, 8, 0), (2, 8, 90), (2, 16, 0), (2, 16, 0x5A5A), (2, 16, 90)),
        ]
    },
    **{f"PNG, {c}x16 bits": png(16, kind) for c, kind in ((3, 2), (2, 4), (4, 6))},
    "PNG, palette": encoded(scene("P"), "PNG"),
    "PNG, 16 colours": encoded(scene().quantize(16), "PNG"),
    "PNG, palette, transparent": encoded(scene().quantize(16), "PNG", transparency=3),
    "PNG, RGBA": encoded(scene("RGBA"), "PNG"),
    "PNG, grey and alpha": encoded(scene("LA"), "PNG"),
    "PNG, 16 bits": encoded(Image.fromarray(SIXTEEN_BITS), "PNG"),
}


class TestDecoding:
    @pytest.mark.parametrize("name", FILES)
    def test_grey_levels_are_those_of_pillow(self, name):
        ours = graphs.decoded(tf.constant(FILES[name])).numpy().astype(int)
        theirs = pictures.read(FILES[name]).astype(int)
        rounded = "alpha" in name or "RGBA" in name or "4x16" in name or "2x16" in name
        assert np.abs(ours - theirs).max() <= (1 if rounded else 0)

    @pytest.mark.parametrize("orientation", range(10))
    @pytest.mark.parametrize(("format", "order"), [("JPEG", "<"), ("JPEG", ">"), ("PNG", "<")])
    def test_orientation(self, orientation, format, order):
        exif = Image.Exif()
        exif.endian = order
        exif[0x010F] = "a maker of cameras"
        exif[0x0112] = orientation
        content = encoded(scene(), format, exif=exif)
        levels = graphs.turned(graphs.decoded(tf.constant(content)), graphs.orientation(tf.constant(content)))
        np.testing.assert_array_equal(levels, pictures.read(content))

    @pytest.mark.parametrize("orientation", range(10))
    @pytest.mark.parametrize("form", [' tiff:Orientation="{}"', "><tiff:Orientation>{}</tiff:Orientation"])
    @pytest.mark.parametrize("in_exif", [False, True])
    def test_orientation_in_xmp(self, orientation, form, in_exif):
        exif = Image.Exif()
        if in_exif:
            exif[0x0112] = 3
        xmp = f"<x:xmpmeta{form.format(orientation)}></x:xmpmeta>"
        text = PngInfo()
        text.add_itxt("XML:com.adobe.xmp", xmp)
        for content in (
            encoded(scene(), "JPEG", exif=exif, xmp=xmp.encode()),
            encoded(scene(), "PNG", exif=exif, pnginfo=text),
        ):
            found = graphs.orientation(tf.constant(content))
            levels = graphs.turned(graphs.decoded(tf.constant(content)), found)
            np.testing.assert_array_equal(levels, pictures.read(content))

    def test_orientation_of_damaged_exif(self):
        """Whatever stands there, it is a number from 1 to 8, and no error."""
        content = encoded(scene(), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
        assert graphs.orientation(tf.constant(content)) == 1
        rng = np.random.default_rng(0)
        find = tf.function(graphs.orientation, input_signature=[tf.TensorSpec((), tf.string)])
        for size in [*range(40), *([60] * 40)]:
            content = b"\xff\xd8\xff\xe1\0\0Exif\0\0MM\0*\0\0\0\x08" + rng.bytes(size)
            assert 1 <= find(tf.constant(content)) <= 8

    @pytest.mark.parametrize("short_side", [None, 72])
    @pytest.mark.parametrize("antialias", [False, True])
    @pytest.mark.parametrize("size", [(150, 110), (33, 90), (64, 64), (65, 641)])
    def test_preprocessing_is_that_of_images(self, short_side, antialias, size):
        card = replace(zoo.card(zoo.BUNDLED), short_side=short_side, antialias=antialias)
        content = encoded(scene(size=size), "PNG")
        ours = graphs.prepare(tf.constant(content), card) / 127.5 - 1
        np.testing.assert_allclose(ours, pictures.batch([content], card)[0], atol=1e-5)


@pytest.fixture(scope="module", params=[(-1, 1), (0, 1)], ids=["reusable", "frozen, [0, 1]"])
def served(request, tmp_path_factory):
    """The bundled model, and what was exported of it."""
    model = bitlib.load(zoo.BUNDLED)
    folder = tmp_path_factory.mktemp("served") / "bit" / "1"
    bitlib.export(
        model, folder, input_range=request.param, freeze=request.param == (0, 1), serving_bytes=True
    )
    loaded = tf.saved_model.load(str(folder))
    return SimpleNamespace(model=model, folder=folder, input_range=request.param, loaded=loaded)


def classified(model, contents, k=5):
    """As page 02 does it."""
    class_names, _ = labels.of_card(model.card, model.num_classes)
    probabilities = labels.probabilities(model(pictures.batch(contents, model.card)), model.card.activation)
    return labels.top_k(probabilities, class_names, k)


def rows(found):
    """The outputs of the signature in the form of `labels.top_k`."""
    names, probabilities = np.asarray(found["names"]), np.asarray(found["probabilities"])
    return [
        [(name.decode(), probability) for name, probability in zip(*row, strict=True)]
        for row in zip(names.tolist(), probabilities.tolist(), strict=True)
    ]


def agree(found, expected):
    assert len(found) == len(expected)
    for ours, theirs in zip(found, expected, strict=True):
        assert [name for name, _ in ours] == [name for name, _ in theirs]
        np.testing.assert_allclose([p for _, p in ours], [p for _, p in theirs], atol=1e-4)


@pytest.mark.slow
class TestServing:
    def test_files_get_the_names_and_probabilities_of_page_02(self, served):
        model, signature = served.model, served.loaded.signatures["serving_bytes"]
        exact = [content for name, content in FILES.items() if "16 bits" not in name and "alpha" not in name]
        agree(rows(signature(tf.constant(exact))), classified(model, exact))

    def test_classes_are_the_places_of_the_names(self, served):
        found = served.loaded.signatures["serving_bytes"](tf.constant([FILES["PNG"]]))
        class_names = labels.names("glyph1k")
        assert [class_names[index] for index in found["classes"][0]] == [name for name, _ in rows(found)[0]]
        assert (np.diff(found["probabilities"]) <= 0).all()

    def test_a_bad_file_is_an_error_and_the_next_request_gets_its_answer(self, served):
        model, signature = served.model, served.loaded.signatures["serving_bytes"]
        good = FILES["JPEG"]
        header = FILES["PNG"][:16] + struct.pack(">II", 20_000, 20_000) + FILES["PNG"][24:]
        for bad, message in (
            (b"", "neither a JPEG nor a PNG"),
            (b"GIF89a" + bytes(50), "neither a JPEG nor a PNG"),
            (good[: len(good) // 2], "Invalid JPEG data"),
            (FILES["PNG"][:-60], "Invalid PNG data"),
            (FILES["PNG"][:12], "PNG"),
            (header, "larger than 100,000,000 pixels"),
        ):
            with pytest.raises(tf.errors.InvalidArgumentError, match=message):
                signature(tf.constant([good, bad]))
            agree(rows(signature(tf.constant([good]))), classified(model, [good]))

    def test_rest_requests_as_the_docs_write_them(self, served):
        """TensorFlow Serving's JSON, decoded by its rules: a `b64` is binary, rows may omit the one name."""
        model, signature = served.model, served.loaded.signatures["serving_bytes"]
        contents = [FILES["JPEG"], FILES["PNG, RGBA"]]
        forms = re.findall(r"```json\n(.*?)\n```", DOCS.read_text(), re.S)
        assert len(forms) == 2
        for form in forms:
            for content in contents:
                form = form.replace("PICTURE", base64.b64encode(content).decode(), 1)
            request = json.loads(form, object_hook=lambda o: base64.b64decode(o["b64"]) if "b64" in o else o)
            assert request["signature_name"] == "serving_bytes"
            inputs = request.get("inputs") or {"image_bytes": request["instances"]}
            found = signature(**{name: tf.constant(value) for name, value in inputs.items()})
            agree(rows(found)[:1], classified(model, contents[:1]))
            assert rows(found)[1][0][0] == classified(model, contents[1:])[0][0][0]

    def test_grpc_request(self, served):
        model, signature = served.model, served.loaded.signatures["serving_bytes"]
        proto = tf.make_tensor_proto([FILES["JPEG"]])
        found = signature(image_bytes=tf.constant(tf.make_ndarray(proto)))
        answer = {name: tf.make_ndarray(tf.make_tensor_proto(value)) for name, value in found.items()}
        agree(rows(answer), classified(model, [FILES["JPEG"]]))

    def test_the_first_signature_and_the_call_stay(self, served):
        model, loaded = served.model, served.loaded
        batch = pictures.batch([FILES["JPEG"]], model.card)
        fed = batch if served.input_range == (-1, 1) else (batch + 1) / 2
        expected = model(batch).numpy()
        for result in (loaded(fed), loaded.signatures["serving_default"](inputs=tf.constant(fed))["logits"]):
            np.testing.assert_allclose(result, expected, atol=1e-4 * np.abs(expected).max())
        assert "`serving_bytes`" in (served.folder / "README.md").read_text("utf-8")

    @pytest.mark.skipif(not shutil.which("tensorflow_model_server"), reason="needs TensorFlow Serving")
    def test_tensorflow_serving_itself(self, served):
        import subprocess
        import time
        import urllib.request

        model, folder = served.model, served.folder
        command = ["tensorflow_model_server", "--rest_api_port=18501", "--port=18500", "--model_name=bit"]
        server = subprocess.Popen([*command, f"--model_base_path={folder.parent}"])
        try:
            instances = [{"b64": base64.b64encode(FILES["JPEG"]).decode()}]
            body = json.dumps({"signature_name": "serving_bytes", "instances": instances}).encode()
            for attempt in range(60):
                try:
                    address = "http://localhost:18501/v1/models/bit:predict"
                    answer = json.load(urllib.request.urlopen(address, body, 30))
                    break
                except OSError:
                    assert attempt < 59
                    time.sleep(1)
        finally:
            server.terminate()
        (found,) = answer["predictions"]
        agree(
            [list(zip(found["names"], found["probabilities"], strict=True))],
            classified(model, [FILES["JPEG"]]),
        )


class TestNames:
    @pytest.mark.slow
    def test_sigmoid_names_of_ones_own_and_fewer_classes_than_asked_for(self, tmp_path):
        model = bitlib.load(zoo.BUNDLED, head=["ash", "birch", "cedar"])
        model.head.convolution.bias.assign([0.1, 3.0, -2.0])
        model.card = replace(model.card, activation="sigmoid")
        bitlib.export(model, tmp_path / "m", serving_bytes=True)
        found = tf.saved_model.load(str(tmp_path / "m")).signatures["serving_bytes"](
            tf.constant([FILES["PNG"]])
        )
        agree(rows(found), [[("birch", 0.95257), ("ash", 0.52498), ("cedar", 0.11920)]])

    def test_a_new_head_without_names_has_numbers(self):
        assert graphs.check(bitlib.load(zoo.BUNDLED, head=3), 5)[1] == ("class 0", "class 1", "class 2")

    def test_a_published_list_is_taken_from_the_disk_or_asked_for(self, tmp_path, small_npz, monkeypatch):
        monkeypatch.setenv("BITLIB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr("bitlib.files.fetching._download", lambda *a: pytest.fail("downloads"))
        model = bitlib.load(small_npz)
        model.card = replace(model.card, labels="ilsvrc2012")
        with pytest.raises(
            ValueError, match=r"^serving_bytes: .* not on this machine; bitlib.labels.names\('ilsvrc2012'\)"
        ):
            bitlib.export(model, tmp_path / "m", serving_bytes=True)
        assert not (tmp_path / "m").exists()
        model.card = replace(model.card, class_names=tuple("abcdefghijk"))
        assert graphs.check(model, 5)[1] == tuple("abcdefghijk")

        published = BiT((1, 1, 1, 1), 0.5, 1000)
        published.card = zoo.card("R50x1_224")
        (tmp_path / "cache").mkdir()
        words = [f"name_{index}" for index in range(1000)]
        (tmp_path / "cache" / zoo.CLASS_LISTS["ilsvrc2012"]).write_text("\n".join(words))
        labels.names.cache_clear()
        try:
            assert graphs.check(published, 5)[1][:2] == ("name 0", "name 1")
        finally:
            labels.names.cache_clear()

    def test_nonsense_is_refused(self, tmp_path, small_npz):
        model = bitlib.load(small_npz)
        for changed, message in (
            ({"serving_bytes": True, "top": 0}, "^top: expected at least 1, a whole number, received 0"),
            ({"serving_bytes": True, "stages": True}, "^stages: expected False beside freeze or serving"),
            ({"freeze": True, "stages": True}, "^stages: expected False beside freeze or serving"),
        ):
            with pytest.raises(ValueError, match=message):
                bitlib.export(model, tmp_path / "m", **changed)
        with pytest.raises(ValueError, match="^serving_bytes: expected a model with a head"):
            bitlib.export(bitlib.load(small_npz, head=None), tmp_path / "m", serving_bytes=True)
        with pytest.raises(ValueError, match="^serving_bytes: expected a model with a card"):
            bitlib.export(BiT((1, 1, 1, 1), 0.5, 3), tmp_path / "m", serving_bytes=True)
        assert not (tmp_path / "m").exists()


def reference_stages(arrays, images):
    x = reference.root(arrays, images)
    found = {"root": x}
    for path, stride in reference.units(arrays):
        x = reference.unit(x, arrays, path, stride)
        found[path.split("/")[1]] = x
    return found


@pytest.fixture(scope="module")
def exported(tmp_path_factory, small_arrays):
    folder = tmp_path_factory.mktemp("stages")
    np.savez(folder / "small.npz", **small_arrays)
    return bitlib.export(bitlib.load(folder / "small.npz"), folder / "m", input_range=(0, 1), stages=True)


@pytest.mark.slow
class TestStages:
    @pytest.mark.parametrize("shape", [(2, 40, 56, 3), (1, 65, 33, 3)])
    def test_they_are_those_of_the_reference(self, exported, small_arrays, shape):
        images = np.random.default_rng(0).uniform(-1, 1, shape).astype(np.float32)
        expected = reference_stages(small_arrays, images)
        loaded = tf.saved_model.load(str(exported))
        fed = tf.constant((images + 1) / 2)
        for found in (loaded(fed), loaded(fed, training=True), loaded.signatures["serving_default"](fed)):
            assert set(found) == {"root", "block1", "block2", "block3", "block4"} == set(expected)
            for name, value in expected.items():
                assert np.abs(found[name] - value).max() < 1e-5 * np.abs(value).max(), name

    def test_every_weight_below_the_head_trains(self, exported, small_arrays):
        """With a head of one's own on two of the maps."""
        layer = hub.KerasLayer(str(exported), trainable=True)
        own = len([name for name in small_arrays if "/block" in name or "/root_block" in name])
        assert len(layer.trainable_weights) == own == len(small_arrays) - 4
        inputs = tf_keras.Input((64, 64, 3))
        found = layer(inputs)
        near = tf_keras.layers.Conv2D(4, 1)(found["block2"])
        far = tf_keras.layers.UpSampling2D(4)(tf_keras.layers.Conv2D(4, 1)(found["block4"]))
        model = tf_keras.Model(inputs, near + far)
        images = np.random.default_rng(0).uniform(0, 1, (2, 64, 64, 3)).astype(np.float32)
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(model(images, training=True) ** 2)
        gradients = tape.gradient(loss, layer.trainable_weights)
        assert all(gradient is not None and np.abs(gradient).max() > 0 for gradient in gradients)

    def test_the_card_says_what_comes_out(self, exported):
        told = (exported / "README.md").read_text("utf-8")
        assert "`block4` `[N, height / 32, width / 32, 1024]`" in told
        assert "stages = model(images)" in told

    def test_the_bundled_model(self, tmp_path):
        arrays = checkpoint.read(checkpoint.fetch(zoo.BUNDLED))
        images = np.random.default_rng(0).uniform(-1, -0.5, (1, 48, 48, 3)).astype(np.float32)
        loaded = tf.saved_model.load(
            str(bitlib.export(bitlib.load(zoo.BUNDLED), tmp_path / "m", stages=True))
        )
        found = loaded(images)
        for name, value in reference_stages(arrays, images).items():
            assert np.abs(found[name] - value).max() < 1e-5 * np.abs(value).max(), name
