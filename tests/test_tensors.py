"""Weights of timm and transformers: names, shapes, damage, and both ways to the bit."""

import json
import os
import struct
import subprocess
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import bitlib
from bitlib import checkpoint, reference
from bitlib.checkpoint import CheckpointError
from bitlib.files import archive
from bitlib.files.layout import Architecture, layout
from tests.conftest import SMALL

ROOT = Path(__file__).parent.parent


def in_torch(arrays, library):
    """Arrays of the published layout as a library has them."""
    found = {}
    for name, array in arrays.items():
        array = array.transpose(3, 2, 0, 1) if array.ndim == 4 else array
        if library == "transformers" and name.endswith("head/conv2d/kernel"):
            array = array[:, :, 0, 0]
        found[archive.torch_names(library)[name]] = np.array(array, order="C")
    return found


@pytest.fixture
def timm(tmp_path, small_arrays):
    path = tmp_path / "model.safetensors"
    save_file(in_torch(small_arrays, "timm"), path, {"format": "pt"})
    return path


class TestNames:
    @pytest.mark.parametrize("library", ["timm", "transformers"])
    def test_each_array_has_one_of_its_own(self, library):
        for units in ((1, 1, 1, 1), (3, 4, 23, 3)):
            names = list(layout(Architecture(units, 1, 7)))
            assert len({archive.torch_names(library)[name] for name in names}) == len(names)

    def test_as_timm_has_them(self):
        names = {
            "resnet/root_block/standardized_conv2d/kernel": "stem.conv.weight",
            "resnet/block1/unit01/a/group_norm/gamma": "stages.0.blocks.0.norm1.weight",
            "resnet/block1/unit01/a/proj/standardized_conv2d/kernel": "stages.0.blocks.0.downsample.conv."
            "weight",
            "resnet/block3/unit12/c/standardized_conv2d/kernel": "stages.2.blocks.11.conv3.weight",
            "resnet/group_norm/beta": "norm.bias",
            "resnet/head/conv2d/kernel": "head.fc.weight",
        }
        assert {name: archive.torch_names("timm")[name] for name in names} == names


class TestReading:
    @pytest.mark.parametrize("library", ["timm", "transformers"])
    def test_its_arrays_are_those_of_the_published_layout(self, tmp_path, small_arrays, library):
        path = tmp_path / "model.safetensors"
        save_file(in_torch(small_arrays, library), path, {"format": "pt"})
        found = checkpoint.read(path)
        assert list(found) == list(checkpoint.layout(SMALL))
        for name, array in small_arrays.items():
            np.testing.assert_array_equal(found[name], array)
        assert checkpoint.shapes(path) == checkpoint.layout(SMALL)

    def test_half_precision_is_read_as_float32(self, tmp_path, small_arrays):
        halves = {n: a.astype(np.float16) for n, a in in_torch(small_arrays, "timm").items()}
        save_file(halves, tmp_path / "half.safetensors")
        found = checkpoint.read(tmp_path / "half.safetensors")
        for name, array in small_arrays.items():
            assert found[name].dtype == np.float32
            np.testing.assert_array_equal(found[name], array.astype(np.float16).astype(np.float32))

    def test_a_model_like_any(self, timm, small_npz, images):
        model = bitlib.load(timm)
        np.testing.assert_array_equal(model(images), bitlib.load(small_npz)(images))
        assert model.source.path == timm
        assert bitlib.load(timm, head=None)(images).shape == (2, 1024)
        assert bitlib.load(str(timm), head=3)(images).shape == (2, 3)

    @pytest.mark.slow
    def test_it_is_ported(self, timm, small_arrays, images, tmp_path):
        import tensorflow as tf

        folder = bitlib.port(timm, tmp_path / "port" / "1")
        expected = reference.forward(small_arrays, images)
        logits = tf.saved_model.load(str(folder))(images)
        np.testing.assert_allclose(logits, expected, atol=1e-4 * np.abs(expected).max())


class TestWriting:
    def test_timm_reads_its_own_names(self, small_npz, small_arrays, tmp_path):
        path = checkpoint.save(bitlib.load(small_npz), tmp_path / "out.safetensors")
        found = load_file(path)
        for name, array in in_torch(small_arrays, "timm").items():
            np.testing.assert_array_equal(found.pop(name), array)
        assert found == {}

    def test_the_same_model_and_note_again(self, small_npz, images, tmp_path):
        model = bitlib.load(small_npz, head=["oak", "pine"])
        model.head.convolution.kernel.assign(
            np.random.default_rng(0).normal(size=model.head.convolution.kernel.shape)
        )
        path = checkpoint.save(model, tmp_path / "out.safetensors")
        again = bitlib.load(path)
        np.testing.assert_array_equal(again(images), model(images))
        assert again.card.class_names == ("oak", "pine")
        assert again.card.resolution == model.card.resolution
        first = path.read_bytes()
        assert checkpoint.save(again, path).read_bytes() == first

    def test_nothing_is_left_if_it_fails(self, small_npz, tmp_path, monkeypatch):
        import safetensors.numpy

        def full(*arguments):
            raise OSError("disk full")

        monkeypatch.setattr(safetensors.numpy, "save_file", full)
        with pytest.raises(OSError, match="disk full"):
            checkpoint.save(bitlib.load(small_npz), tmp_path / "out.safetensors")
        assert [path.name for path in tmp_path.iterdir()] == [small_npz.name]


def rewritten(path, change):
    """The file with another header."""
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    change(header)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + size :])


class TestDamage:
    @pytest.mark.parametrize("share", [0.0001, 0.3, 0.999])
    def test_cut(self, timm, share):
        data = timm.read_bytes()
        timm.write_bytes(data[: max(3, int(share * len(data)))])
        with pytest.raises(CheckpointError, match=r"model\.safetensors: (corrupt or truncated|a header of)"):
            checkpoint.read(timm)

    def test_empty(self, timm):
        timm.write_bytes(b"")
        with pytest.raises(CheckpointError, match="an empty file"):
            checkpoint.read(timm)

    def test_a_header_without_an_end(self, timm):
        timm.write_bytes(struct.pack("<Q", 1 << 40) + b"{" * 100)
        with pytest.raises(CheckpointError, match=r"a header of 1099511627776 bytes, expected at most"):
            checkpoint.read(timm)

    def test_not_a_bit(self, tmp_path):
        save_file({"conv1.weight": np.ones((3, 3), np.float32)}, tmp_path / "x.safetensors")
        with pytest.raises(CheckpointError, match=r"no array stem\.conv\.weight or .*no BiT of timm"):
            checkpoint.read(tmp_path / "x.safetensors")

    def test_not_finite(self, tmp_path, small_arrays):
        arrays = in_torch(small_arrays, "timm")
        arrays["norm.bias"][3] = np.inf
        save_file(arrays, tmp_path / "x.safetensors")
        with pytest.raises(CheckpointError, match=r"norm\.bias: 1 of \d+ values are NaN or infinite"):
            bitlib.load(tmp_path / "x.safetensors")

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda a: a.pop("norm.bias"), r"resnet/group_norm/beta: missing"),
            (lambda a: a.update(more=np.ones(2, np.float32)), r"more: unexpected"),
            (
                lambda a: a.update({"stages.0.blocks.0.conv2.weight": np.ones((32, 16, 3, 3), np.float32)}),
                r"block1/unit01/b/standardized_conv2d/kernel: expected shape",
            ),
            (
                lambda a: a.update({"norm.bias": np.ones(1024, np.int32)}),
                r"norm\.bias: expected one of F16, F32",
            ),
        ],
    )
    def test_arrays(self, tmp_path, small_arrays, change, message):
        arrays = in_torch(small_arrays, "timm")
        change(arrays)
        save_file(arrays, tmp_path / "x.safetensors")
        with pytest.raises(CheckpointError, match=message):
            checkpoint.read(tmp_path / "x.safetensors")

    def test_a_spoilt_note(self, timm):
        rewritten(timm, lambda header: header["__metadata__"].update(bitlib='{"bitlib": 3}'))
        with pytest.raises(CheckpointError, match="note that it carries is damaged"):
            bitlib.load(timm)

    def test_random_bytes_in_the_header(self, timm):
        """Another error than `CheckpointError` fails the test; most changes are found, others harmless."""
        data, rng = timm.read_bytes(), np.random.default_rng(0)
        size = int.from_bytes(data[:8], "little")
        refused = 0
        for _ in range(200):
            spoilt = bytearray(data)
            for place in rng.integers(0, size + 8, rng.integers(1, 5)):
                spoilt[place] = rng.integers(256)
            timm.write_bytes(spoilt)
            try:
                checkpoint.shapes(timm)
            except CheckpointError:
                refused += 1
        assert refused > 150

    def test_without_the_package(self, timm, monkeypatch):
        import sys

        monkeypatch.setitem(sys.modules, "safetensors", None)
        with pytest.raises(ImportError, match=r"^safetensors: .*pip install 'bitlib\[safetensors\]'"):
            bitlib.load(timm)


PEERS = """
import sys
sys.path.insert(0, "benchmarks")
import peers  # torchvision without a compiled part
import numpy as np, timm, torch, transformers
from safetensors.torch import load_file, save_file
folder, images = sys.argv[1], torch.from_numpy(np.load(sys.argv[1] + "/images.npy")).permute(0, 3, 1, 2)
torch.manual_seed(0)
model = timm.create_model("resnetv2_50x1_bit", num_classes=7).eval()
for p in model.parameters(): torch.nn.init.normal_(p, 0.3, 0.5)
save_file(model.state_dict(), folder + "/timm.safetensors")
np.save(folder + "/timm.npy", model(images).detach().numpy())
config = transformers.BitConfig(num_labels=7)
model = transformers.BitForImageClassification(config).eval()
for p in model.parameters(): torch.nn.init.normal_(p, 0.3, 0.5)
model.save_pretrained(folder + "/hf")
np.save(folder + "/hf.npy", model(images).logits.detach().numpy())
"""
BACK = """
import sys
sys.path.insert(0, "benchmarks")
import peers
import numpy as np, timm, torch
from safetensors.torch import load_file
folder, images = sys.argv[1], torch.from_numpy(np.load(sys.argv[1] + "/images.npy")).permute(0, 3, 1, 2)
model = timm.create_model("resnetv2_50x1_bit", num_classes=7).eval()
model.load_state_dict(load_file(folder + "/back.safetensors"), strict=True)
np.save(folder + "/back.npy", model(images).detach().numpy())
"""


@pytest.mark.slow
def test_timm_and_transformers_themselves(tmp_path):
    """Their random weights give their own logits here, and timm loads what is written back, strictly."""
    python = Path(os.environ.get("BITLIB_PEERS", ROOT / ".venv-bench" / "bin" / "python"))
    if not python.exists():
        pytest.skip("timm and transformers are not installed: `make bench` makes .venv-bench, which has them")

    def run(code):
        subprocess.run([python, "-c", code, tmp_path], cwd=ROOT, check=True)

    images = np.random.default_rng(0).uniform(-1, 1, (2, 64, 64, 3)).astype("float32")
    np.save(tmp_path / "images.npy", images)
    run(PEERS)
    for file, logits in (("timm.safetensors", "timm.npy"), ("hf/model.safetensors", "hf.npy")):
        model, expected = bitlib.load(tmp_path / file), np.load(tmp_path / logits)
        np.testing.assert_allclose(model(images), expected, atol=1e-4 * np.abs(expected).max())
    checkpoint.save(bitlib.load(tmp_path / "timm.safetensors"), tmp_path / "back.safetensors")
    run(BACK)
    expected = np.load(tmp_path / "timm.npy")
    np.testing.assert_allclose(np.load(tmp_path / "back.npy"), expected, atol=1e-6 * np.abs(expected).max())
    assert archive.read_note(tmp_path / "timm.safetensors") == {}
