"""R50x1 at its real size, random weights in the published layout, numbered names: the whole way once."""

import numpy as np
import pytest
import tensorflow_hub as hub

import bitlib
from bitlib import checkpoint, reference
from bitlib.checkpoint import Architecture
from bitlib.model import UNITS
from tests.conftest import random_arrays

R50X1 = Architecture(UNITS[50], 1, 1000)


@pytest.fixture(scope="module")
def arrays():
    arrays = random_arrays(R50X1, seed=50, spread=0.01)
    arrays["resnet/block3/unit02/b/standardized_conv2d/kernel"] *= np.float32(0.01)  # variance 1e-8
    return arrays


@pytest.fixture(scope="module")
def npz(tmp_path_factory, arrays):
    path = tmp_path_factory.mktemp("r50x1") / "R50x1.npz"
    numbered = {
        name.replace("standardized_conv2d", f"standardized_conv2d_{n}"): array
        for n, (name, array) in enumerate(arrays.items())
    }
    np.savez(path, **numbered)
    return path


@pytest.mark.slow
def test_load_check_export_reload(npz, arrays, tmp_path):
    assert sum(array.size for array in arrays.values()) == 25549352
    model = bitlib.load(npz)
    assert (model.units, model.width, model.num_classes) == tuple(R50X1)

    images = np.random.default_rng(0).uniform(-1, 1, (2, 224, 224, 3)).astype("float32")
    expected = reference.forward(arrays, images)
    scale = np.abs(expected).max()
    assert np.abs(model(images) - expected).max() < 1e-4 * scale

    folder = bitlib.port(npz, tmp_path / "R50x1" / "1", input_range=(0, 1))
    assert np.abs(hub.load(str(folder))((images + 1) / 2) - expected).max() < 1e-4 * scale

    again = checkpoint.read(checkpoint.save(model, tmp_path / "again.npz"))
    assert all(np.array_equal(again[name], arrays[name]) for name in arrays)
