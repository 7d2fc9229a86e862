"""Files for LiteRT: what its interpreter computes from them, in every precision."""

import sys

import keras
import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter

import bitlib
from bitlib import checkpoint, datasets, features, reference, zoo
from bitlib import images as pictures
from bitlib.formats import litert
from bitlib.model import BiT
from tests.conftest import SMALL, random_arrays

HARD = random_arrays(SMALL, seed=1, spread=1e-4)
"""Kernels of variance 1e-8, where a wrong epsilon shows."""

DARK = np.random.default_rng(0).uniform(-1, -0.5, (40, 48, 64, 3)).astype(np.float32)
"""Images that are negative everywhere: the root's pool must find its zero border."""


def difference(result, expected):
    return np.abs(result - expected).max() / np.abs(expected).max()


@pytest.fixture
def small(small_npz):
    return bitlib.load(small_npz)


def fed_for(precision, images):
    return {"representative": images} if precision == "int8" else {}


@pytest.mark.slow
class TestAgreement:
    """With the float64 reference, as a share of the largest output; measured values are in the comments."""

    def test_any_batch_height_and_width(self, tmp_path, small, small_arrays):
        compute = litert.load(litert.write(small, tmp_path / "m.tflite"))
        for shape in ((2, 40, 56, 3), (1, 65, 33, 3), (5, 32, 32, 3)):
            images = np.random.default_rng(0).uniform(-1, 1, shape).astype(np.float32)
            assert difference(compute(images), reference.forward(small_arrays, images)) < 1e-5  # 2e-6

    @pytest.mark.parametrize(
        ("precision", "most"),
        [("float32", 1e-5), ("float16", 4e-3), ("dynamic", 0.1), ("int8", 0.25)],  # 1e-6, 1e-3, 0.03, 0.08
    )
    def test_hard_kernels_and_dark_images(self, tmp_path, precision, most):
        np.savez(tmp_path / "hard.npz", **HARD)
        model = bitlib.load(tmp_path / "hard.npz")
        path = litert.write(model, tmp_path / "m.tflite", precision=precision, **fed_for(precision, DARK))
        assert (reference.root(HARD, DARK[:4])[:, 0] == 0).any(), "no pixel needs the zeros at the border"
        compute = litert.load(path)
        for images in (DARK[:4], DARK[:2, :33, :40]):
            assert difference(compute(images), reference.forward(HARD, images)) < most

    def test_the_bundled_model(self, tmp_path):
        model = bitlib.load(zoo.BUNDLED)
        arrays = checkpoint.read(checkpoint.fetch(zoo.BUNDLED))
        digits = pictures.batch(datasets.digits()[0][:20], model.card)
        result = litert.load(litert.write(model, tmp_path / "m.tflite"))(digits)
        assert difference(result, reference.forward(arrays, digits)) < 1e-5  # 4e-6

    def test_inputs_in_0_1(self, tmp_path, small, images):
        path = bitlib.export(small, tmp_path / "m.tflite", (0, 1), format="litert")
        compute = litert.load(path)
        assert difference(compute((images + 1) / 2), small(images).numpy()) < 1e-5


@pytest.fixture(scope="module")
def digits():
    """Features of handwritten digits by the bundled model, and a linear probe on those of the first 400."""
    model = bitlib.load(zoo.BUNDLED, head=None)
    scans, labels = datasets.digits()
    images, labels = pictures.batch(scans[:900], model.card), labels[:900]
    vectors = features.extract(model, images)
    return model, images, labels, vectors, features.linear_probe(vectors[:400], labels[:400])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("precision", "megabytes", "most"),
    # Measured: 8.1, 4.1, 2.2 and 2.2 MB; 9e-6, 3e-4, 0.02 and 0.06; all probes are right as often.
    [("float32", 8.2, 3e-5), ("float16", 4.2, 1e-3), ("dynamic", 2.3, 0.06), ("int8", 2.3, 0.15)],
)
def test_size_and_accuracy_on_digits(tmp_path, digits, precision, megabytes, most):
    model, images, labels, vectors, probe = digits
    path = litert.write(model, tmp_path / "m.tflite", precision=precision, **fed_for(precision, images[:100]))
    assert 0.9 * megabytes < path.stat().st_size / 1e6 < megabytes
    compute = litert.load(path)
    found = np.concatenate([compute(images[start : start + 100]) for start in range(400, 900, 100)])
    assert difference(found, vectors[400:]) < most
    exact = probe.score(vectors[400:], labels[400:])
    assert exact > 0.93
    assert probe.score(found, labels[400:]) > exact - 0.015


@pytest.mark.slow
class TestFile:
    def test_names_and_built_in_operations_only(self, tmp_path, small):
        content = litert.write(small, tmp_path / "m.tflite").read_bytes()
        interpreter = Interpreter(model_content=content)
        (signature,) = interpreter.get_signature_list().items()
        assert signature == ("serving_default", {"inputs": ["inputs"], "outputs": ["logits"]})
        assert list(interpreter.get_input_details()[0]["shape_signature"]) == [-1, -1, -1, 3]
        used = {operation["op_name"] for operation in interpreter._get_ops_details()}
        assert {"CONV_2D", "MEAN", "RSQRT"} <= used
        # No kernel is standardised again, no variable waits for a value, nothing needs TensorFlow.
        roots = sum(operation["op_name"] == "RSQRT" for operation in interpreter._get_ops_details())
        assert roots == sum("gamma" in variable.path for variable in small.variables)
        assert not {"READ_VARIABLE", "CUSTOM"} & used
        assert not any(name.startswith("Flex") for name in used)

    def test_int8_is_int8_between_its_ends(self, tmp_path, small, images):
        path = litert.write(small, tmp_path / "m.tflite", precision="int8", representative=images)
        interpreter = Interpreter(str(path))
        tensors = interpreter.get_tensor_details()
        floats = {tensor["index"] for tensor in tensors if tensor["dtype"] == np.float32}
        ends = interpreter.get_input_details() + interpreter.get_output_details()
        assert floats == {end["index"] for end in ends}

    def test_same_bytes_each_time_and_nothing_on_stderr(self, tmp_path, small, images, capfd):
        given = {"precision": "int8", "representative": images}
        one, two = (litert.write(small, tmp_path / "a" / name, **given) for name in ("1.tflite", "2.tflite"))
        litert.load(one)(images)
        assert one.read_bytes() == two.read_bytes()
        assert capfd.readouterr() == ("", "")

    def test_the_model_itself_stays_live(self, tmp_path, small, images):
        before = small(images).numpy()
        litert.write(small, tmp_path / "m.tflite")
        small.root.convolution.kernel.assign(small.root.convolution.kernel[::-1])
        assert np.abs(small(images) - before).max() > 1e-3


class TestErrors:
    @pytest.mark.parametrize(
        ("changed", "message"),
        [
            ({"precision": "int4"}, "^precision: expected one of float32, .* received 'int4'"),
            ({"input_range": (0, 255)}, r"^input_range: expected .* received \(0, 255\)"),
            ({"precision": "int8"}, r"^representative: expected float images .* takes its ranges from them"),
            ({"representative": DARK}, "^representative: expected None, as precision is 'float32'"),
            ({"representative": DARK[0]}, r"received shape \[48, 64, 3\]"),
            ({"representative": DARK[:0]}, r"received shape \[0, 48, 64, 3\]"),
            ({"representative": DARK[:, :31]}, r"received shape \[40, 31, 64, 3\]"),
            ({"representative": np.zeros((2, 32, 32, 3), np.uint8)}, "received uint8"),
            ({"representative": 100 * DARK}, "received values from -100 to -50"),
            ({"representative": DARK * np.nan}, "received values from nan"),
        ],
    )
    def test_arguments(self, tmp_path, small, changed, message):
        if "received" in message and "representative" in changed:
            changed = {"precision": "int8", **changed}
        with pytest.raises(ValueError, match=message):
            litert.write(small, tmp_path / "a" / "m.tflite", **changed)
        assert not (tmp_path / "a").exists()

    def test_models_and_paths(self, tmp_path, small, monkeypatch):
        with pytest.raises(TypeError, match="^model: expected .* received Sequential"):
            litert.write(keras.Sequential(), tmp_path / "m.tflite")
        half = BiT((1, 1, 1, 1), 0.5, 3, dtype="mixed_bfloat16")
        with pytest.raises(ValueError, match="^model: computes in bfloat16, expected float32"):
            litert.write(half, tmp_path / "m.tflite")
        monkeypatch.setattr(litert, "MAX_BYTES", 1000)
        with pytest.raises(ValueError, match=r"^model: .* bytes of weights, .* 1,000 at most"):
            litert.write(small, tmp_path / "m.tflite")
        assert [path.name for path in tmp_path.iterdir()] == ["small.npz"]

    def test_an_interrupted_writer_leaves_the_former(self, tmp_path, small, monkeypatch):
        (tmp_path / "m.tflite").write_text("former")
        monkeypatch.setattr(litert, "_converted", lambda *a: (_ for _ in ()).throw(MemoryError))
        with pytest.raises(MemoryError):
            litert.write(small, tmp_path / "m.tflite")
        assert (tmp_path / "m.tflite").read_text() == "former"
        assert sorted(path.name for path in tmp_path.iterdir()) == ["m.tflite", "small.npz"]

    def test_no_interpreter_or_no_file(self, tmp_path, monkeypatch):
        (tmp_path / "odd.tflite").write_text("nothing")
        with pytest.raises(ValueError, match="^path: .* cannot be read as a .tflite file"):
            litert.load(tmp_path / "odd.tflite")
        with pytest.warns(UserWarning, match=r"^representative: all values lie in \[0, 1\], the file takes"):
            litert._checked_images(-DARK, (-1, 1), "int8")
        with pytest.raises(FileNotFoundError, match="^path: .* is no file"):
            litert.load(tmp_path / "m.tflite")
        monkeypatch.setitem(sys.modules, "ai_edge_litert.interpreter", None)
        with pytest.raises(ImportError, match=r"pip install 'bitlib\[litert\]'"):
            litert.load(tmp_path / "m.tflite")
