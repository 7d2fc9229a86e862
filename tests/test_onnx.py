"""ONNX files in the runtimes that read them, optimised at every level, against the float64 reference."""

import hashlib
import json
import re
import sys

import numpy as np
import onnx
import onnxruntime
import openvino
import pytest
from packaging.version import Version

import bitlib
from bitlib import labels, reference, savedmodel
from bitlib.checkpoint import Architecture, CheckpointError
from bitlib.formats import onnx as writer
from tests.conftest import SMALL, random_arrays

LEVELS = [level for level in vars(onnxruntime.GraphOptimizationLevel) if level.startswith("ORT_")]


def onnx_runtime(path, level="ORT_ENABLE_ALL"):
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda images: session.run(None, {"inputs": images})[0]


def open_vino(path):
    settings = {"INFERENCE_PRECISION_HINT": "f32"}
    model = openvino.Core().compile_model(str(path), "CPU", settings)
    return lambda images: model(images)[0]


def runtimes(path):
    found = {level: onnx_runtime(path, level) for level in LEVELS}
    assert len(found) >= 4
    return found | {"OpenVINO": open_vino(path)}


def error(result, expected):
    """As a share of the largest value."""
    assert result.shape == expected.shape
    return float(np.abs(np.asarray(result, float) - expected).max() / np.abs(expected).max())


def noise(*shape, contrast=1.0, seed=0):
    return np.random.default_rng(seed).uniform(-contrast, contrast, (*shape, 3)).astype(np.float32)


def negative_everywhere(arrays):
    """Arrays and images such that all that the pool gets is below zero: green against red."""
    arrays = dict(arrays)
    kernel = arrays["resnet/root_block/standardized_conv2d/kernel"].copy()
    kernel[:, :, 0] += 1
    kernel[:, :, 1] -= 1
    arrays["resnet/root_block/standardized_conv2d/kernel"] = kernel
    images = [noise(*shape, contrast=0.1) for shape in ((1, 32, 34), (2, 33, 35), (1, 40, 37))]
    for batch in images:
        batch += np.float32([-0.8, 0.8, 0])
        assert (reference.convolve(batch, kernel, 2) < 0).all()
    return arrays, images


ANY = [noise(1, 32, 32), noise(3, 65, 41), noise(2, 47, 50, contrast=0.02)]
"""Images of even and odd sizes; in those of low contrast a wrong epsilon shows."""
SMALLER = [noise(1, 33, 32), noise(2, 32, 35)]

CASES = {
    "small": (random_arrays(SMALL), ANY),
    "other units and width": (random_arrays(Architecture((1, 1, 2, 1), 1.5, 7), seed=1), SMALLER),
    "kernels of variance 1e-8": (random_arrays(SMALL, seed=2, spread=1e-4), ANY),
    "features": (random_arrays(Architecture((1, 1, 1, 2), 0.5, None), seed=3), ANY),
    "negative everywhere": negative_everywhere(random_arrays(SMALL, seed=4)),
}


def exported_case(name, tmp_path, **options):
    """A case as an ONNX file, and what the reference makes of its images."""
    arrays, images = CASES[name]
    has_head = "resnet/head/conv2d/bias" in arrays
    np.savez(tmp_path / "m.npz", **arrays)
    model = bitlib.load(tmp_path / "m.npz", head="keep" if has_head else None)
    path = bitlib.export(model, tmp_path / "m.onnx", format="onnx", **options)
    return path, [reference.forward(arrays, batch, head=has_head) for batch in images]


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_every_runtime_agrees_with_the_reference(name, tmp_path):
    path, expected = exported_case(name, tmp_path)
    errors = {
        runtime: max(error(run(batch), made) for batch, made in zip(CASES[name][1], expected, strict=True))
        for runtime, run in runtimes(path).items()
    }
    assert max(errors.values()) < 1e-5, errors


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_files_for_one_shape_agree_with_the_reference(name, tmp_path):
    batch = CASES[name][1][-1]
    path, expected = exported_case(name, tmp_path, batch_shape=batch.shape)
    onnx.checker.check_model(path, full_check=True)
    for runtime, run in runtimes(path).items():
        assert error(run(batch), expected[-1]) < 1e-5, runtime
        with pytest.raises(
            (RuntimeError, ValueError, onnxruntime.capi.onnxruntime_pybind11_state.InvalidArgument)
        ):
            run(noise(1, 64, 64))


def test_the_bundled_model(tmp_path):
    model = bitlib.load("BiT-XS-R14x0.5")
    path = bitlib.export(model, tmp_path / "m.onnx", format="onnx")
    images = noise(2, 64, 64)
    expected = reference.forward(bitlib.checkpoint.read(model.source.path), images)
    for name, run in runtimes(path).items():
        assert error(run(images), expected) < 1e-5, name


@pytest.mark.slow
def test_full_size(tmp_path):
    arrays = random_arrays(Architecture((3, 4, 6, 3), 1, 1000))
    np.savez(tmp_path / "m.npz", **arrays)
    path = bitlib.export(bitlib.load(tmp_path / "m.npz"), tmp_path / "m.onnx", format="onnx")
    images = noise(1, 224, 224)
    expected = reference.forward(arrays, images)
    for run in (onnx_runtime(path), open_vino(path)):
        assert error(run(images), expected) < 1e-4
    path = bitlib.port(tmp_path / "m.npz", path, format="onnx", batch_shape=images.shape)
    for run in (onnx_runtime(path), open_vino(path)):
        assert error(run(images), expected) < 1e-4


def with_plain_pool(path):
    """The same file, its pool in the plain form: zeros by Pad, then MaxPool."""
    proto = onnx.load(path)
    nodes = [node for node in proto.graph.node if not node.name.startswith("pool/") and node.name != "pool"]
    (root,) = (index for index, node in enumerate(nodes) if "root_block" in node.name)
    pads = onnx.numpy_helper.from_array(np.int64([0, 0, 1, 1, 0, 0, 1, 1]), "pads")
    pad = onnx.helper.make_node("Pad", [nodes[root].output[0], "pads"], ["padded"])
    pool = onnx.helper.make_node("MaxPool", ["padded"], ["pool"], kernel_shape=[3, 3], strides=[2, 2])
    nodes[root + 1 : root + 1] = [pad, pool]
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
    proto.graph.initializer.append(pads)
    plain = path.with_name("plain.onnx")
    onnx.save(proto, plain)
    onnx.checker.check_model(plain, full_check=True)
    return plain


@pytest.mark.parametrize("level", LEVELS)
def test_the_plain_form_of_the_pool_is_a_trap(tmp_path, level):
    """Before 1.32, ONNX Runtime makes the zeros minus infinity. Many will have an older one for years."""
    arrays, images = CASES["negative everywhere"]
    np.savez(tmp_path / "m.npz", **arrays)
    ours = bitlib.export(bitlib.load(tmp_path / "m.npz"), tmp_path / "m.onnx", format="onnx")
    expected = reference.forward(arrays, images[0])
    assert error(onnx_runtime(ours, level)(images[0]), expected) < 1e-5
    far = error(onnx_runtime(with_plain_pool(ours), level)(images[0]), expected)
    mended = Version(onnxruntime.__version__) >= Version("1.32")
    assert (far < 1e-5) if mended or level == "ORT_DISABLE_ALL" else (far > 1e-3)


@pytest.fixture
def model(small_npz):
    return bitlib.load(small_npz)


def described(path):
    proto = onnx.load(path)
    return proto, {entry.key: entry.value for entry in proto.metadata_props}


class TestFile:
    def test_passes_the_checker_and_has_dynamic_sizes(self, model, tmp_path):
        for uint8 in (False, True):
            path = bitlib.export(model, tmp_path / "m.onnx", format="onnx", uint8=uint8)
            onnx.checker.check_model(path, full_check=True)
        (inputs,), (outputs,) = onnx.load(path).graph.input, onnx.load(path).graph.output
        sizes = lambda value: [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]  # noqa: E731
        assert (inputs.name, sizes(inputs)) == ("inputs", ["N", "height", "width", 3])
        assert (outputs.name, sizes(outputs)) == ("logits", ["N", 11])

    def test_the_same_model_gives_the_same_bytes(self, model, small_npz, tmp_path):
        one = bitlib.export(model, tmp_path / "1.onnx", format="onnx").read_bytes()
        low = bitlib.load(small_npz, dtype="mixed_bfloat16")  # whose weights are float32
        assert bitlib.export(low, tmp_path / "2.onnx", format="onnx").read_bytes() == one

    def test_weights_of_bfloat16_are_written_as_float32(self, small_npz, tmp_path):
        low = bitlib.load(small_npz, dtype="bfloat16")
        path = bitlib.export(low, tmp_path / "m.onnx", format="onnx")
        arrays = {name: np.asarray(v, np.float32) for name, v in low.arrays.items()}
        assert error(onnx_runtime(path)(ANY[0]), reference.forward(arrays, ANY[0])) < 1e-5

    def test_tells_class_names_preprocessing_and_origin(self, tmp_path):
        model = bitlib.load("BiT-XS-R14x0.5")
        proto, told = described(bitlib.export(model, tmp_path / "m.onnx", (0, 1), format="onnx"))
        assert (proto.producer_name, proto.producer_version) == ("bitlib", bitlib.__version__)
        assert tuple(json.loads(told["class_names"])) == labels.names("glyph1k")
        digest = hashlib.sha256(model.source.path.read_bytes()).hexdigest()
        expected = {
            "name": "BiT-XS-R14x0.5", "source_sha256": digest, "fine_tuned": "false", "input_range": "[0, 1]",
            "resolution": "64", "antialias": "true", "activation": "softmax", "class_list": "glyph1k",
        }  # fmt: skip
        assert {name: told[name] for name in expected} == expected
        assert told["preprocessing"].startswith("resize straight to 64×64 pixels")

    def test_tells_what_a_tuned_model_is_and_has_its_weights(self, small_npz, tmp_path):
        model = bitlib.load(small_npz, head=["cat", "dog"])
        model.tuned = True
        model.root.convolution.kernel.assign(model.root.convolution.kernel[::-1])
        model.head.convolution.kernel.assign(
            model.head.convolution.kernel + noise(1, 1024, 2)[..., 0].reshape(1, 1, 1024, 2)
        )
        path = bitlib.export(model, tmp_path / "m.onnx", format="onnx")
        told = described(path)[1]
        assert json.loads(told["class_names"]) == ["cat", "dog"]
        assert told["fine_tuned"] == "true"
        assert error(onnx_runtime(path)(ANY[0]), model(ANY[0]).numpy()) < 1e-5

    def test_tells_little_of_a_model_made_from_nothing(self, tmp_path):
        made = bitlib.model.BiT((1, 1, 1, 1), 0.5, None)
        told = described(bitlib.export(made, tmp_path / "m.onnx", format="onnx"))[1]
        assert told == {"units": "1-1-1-1", "width": "0.5", "fine_tuned": "false", "input_range": "[-1, 1]"}


class TestInput:
    def test_range_from_0_to_1(self, model, tmp_path):
        path = bitlib.export(model, tmp_path / "m.onnx", (0, 1), format="onnx")
        for name, run in runtimes(path).items():
            assert error(run((ANY[0] + 1) / 2), model(ANY[0]).numpy()) < 1e-5, name

    def test_uint8(self, model, tmp_path):
        path = bitlib.export(model, tmp_path / "m.onnx", format="onnx", uint8=True)
        pixels = np.random.default_rng(0).integers(0, 256, (2, 37, 40, 3), np.uint8)
        expected = model(pixels / np.float32(127.5) - 1).numpy()
        for name, run in runtimes(path).items():
            assert error(run(pixels), expected) < 1e-5, name


class TestRefusals:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"format": "tflite"}, "^format: expected one of tf_saved_model, onnx, litert, received"),
            ({"format": "onnx", "freeze": True},
             "^freeze: no option of format 'onnx', which takes batch_shape, uint8$"),
            ({"format": "tf_saved_model", "top": 2}, "^top: expected serving_bytes=True beside it"),
            ({"format": "onnx", "jit_compile": True}, "^jit_compile: no option of format 'onnx'"),
            ({"format": "onnx", "input_range": (0, 255)}, "^input_range: expected .* received .0, 255"),
            ({"format": "onnx", "input_range": (0, 1), "uint8": True}, "^input_range: uint8=True takes"),
            ({"format": "onnx", "batch_shape": (8, 224, 224)}, "^batch_shape: expected None or .N, height"),
            ({"format": "onnx", "batch_shape": (1, 31, 224, 3)}, "^batch_shape: .*at least 32; received"),
            ({"format": "onnx", "batch_shape": (None, 64, 64, 3)}, "^batch_shape: .*received .None, 64"),
            ({"format": "tf_saved_model", "uint8": True}, "^uint8: no option of format 'tf_saved_model', "),
            ({"format": "litert", "uint8": True}, "^uint8: .*which takes precision, representative"),
        ],
    )  # fmt: skip
    def test_what_does_not_fit(self, small_npz, model, tmp_path, options, message):
        for write, source in ((bitlib.export, model), (bitlib.port, small_npz)):
            with pytest.raises(ValueError, match=message):
                write(source, tmp_path / "new" / "m.onnx", **options)
        assert not (tmp_path / "new").exists()

    def test_a_folder_and_another_kind_of_model(self, model, tmp_path):
        (tmp_path / "m.onnx").mkdir()
        with pytest.raises(IsADirectoryError, match=r"^path: .*m\.onnx is a folder"):
            bitlib.export(model, tmp_path / "m.onnx", format="onnx")
        with pytest.raises(TypeError, match="^model: expected a bitlib.model.BiT, received str"):
            bitlib.export("BiT-XS", tmp_path / "n.onnx", format="onnx")

    def test_without_the_package(self, model, tmp_path, monkeypatch):
        monkeypatch.setitem(sys.modules, "onnx", None)
        with pytest.raises(ImportError, match=r"^onnx: .*pip install 'bitlib\[onnx\]'"):
            bitlib.export(model, tmp_path / "m.onnx", format="onnx")
        with pytest.raises(ImportError, match="^onnx: "):  # before any file is looked for
            bitlib.port(tmp_path / "none.npz", tmp_path / "m.onnx", format="onnx")
        assert not (tmp_path / "m.onnx").exists()


class TestWriting:
    def test_parents_are_made_and_the_former_is_replaced(self, model, tmp_path):
        path = tmp_path / "a" / "b" / "m.onnx"
        bitlib.export(model, path, format="onnx")
        model.head.convolution.bias.assign(model.head.convolution.bias + 1)
        assert bitlib.export(model, path, format="onnx") == path
        assert error(onnx_runtime(path)(ANY[0]), model(ANY[0]).numpy()) < 1e-5
        assert [file.name for file in path.parent.iterdir()] == ["m.onnx"]

    @pytest.mark.parametrize("largest", [writer.LARGEST, 0], ids=["one file", "two files"])
    def test_an_interrupted_export_leaves_what_was(self, model, tmp_path, monkeypatch, largest):
        monkeypatch.setattr(writer, "LARGEST", largest)
        path = bitlib.export(model, tmp_path / "there" / "m.onnx", format="onnx")
        before = {file.name: file.read_bytes() for file in path.parent.iterdir()}
        model.head.convolution.bias.assign(model.head.convolution.bias + 1)
        monkeypatch.setattr(writer, "_group_norm", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        for folder, expected in (("there", before), ("new", {})):
            with pytest.raises(KeyboardInterrupt):
                bitlib.export(model, tmp_path / folder / "m.onnx", format="onnx")
            left = {file.name: file.read_bytes() for file in (tmp_path / folder).iterdir()}
            assert left == expected

    @pytest.mark.slow
    def test_weights_too_large_for_one_file(self, model, tmp_path, monkeypatch):
        monkeypatch.setattr(writer, "LARGEST", 4 * model.count_params() - 1)
        path = tmp_path / "big" / "m.onnx"
        for _ in range(2):
            bitlib.export(model, path, format="onnx")
            for name, run in runtimes(path).items():
                assert error(run(ANY[0]), model(ANY[0]).numpy()) < 1e-5, name
            assert path.stat().st_size < 200_000
            onnx.checker.check_model(path, full_check=True)
            model.head.convolution.bias.assign(model.head.convolution.bias + 1)
        files = sorted(file.name for file in path.parent.iterdir())
        assert len(files) == 3  # the former .onnx, opened meanwhile, still finds its weights
        assert all(re.fullmatch(r"m(-[0-9a-f]{16}\.data|\.onnx)", name) for name in files)


class TestPort:
    def test_from_a_file(self, small_npz, small_arrays, tmp_path):
        path = bitlib.port(small_npz, tmp_path / "m.onnx", head=None, format="onnx", uint8=True)
        pixels = np.random.default_rng(0).integers(0, 256, (1, 40, 40, 3), np.uint8)
        expected = reference.forward(small_arrays, pixels / 127.5 - 1, head=False)
        assert error(open_vino(path)(pixels), expected) < 1e-5

    def test_pixels_are_pixels_whatever_the_handle_took(self, published, small_arrays, tmp_path):
        handle = "google/bit/m-r50x1/1"  # a feature extractor of images in [0, 1]
        path = bitlib.port(handle, tmp_path / "m.onnx", format="onnx", uint8=True)
        pixels = np.random.default_rng(0).integers(0, 256, (1, 40, 40, 3), np.uint8)
        expected = reference.forward(small_arrays, pixels / 127.5 - 1, head=False)
        assert error(open_vino(path)(pixels), expected) < 1e-5

    def test_what_differs_from_the_reference_is_not_written(self, small_npz, tmp_path, monkeypatch):
        monkeypatch.setattr(reference, "disagreement", lambda *arguments: 2 * savedmodel.TOLERANCE)
        with pytest.raises(CheckpointError, match="differs from the NumPy reference"):
            bitlib.port(small_npz, tmp_path / "m.onnx", format="onnx")
        assert not (tmp_path / "m.onnx").exists()
