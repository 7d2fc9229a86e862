import numpy as np
import pytest

from bitlib import checkpoint
from bitlib.checkpoint import Architecture

SMALL = Architecture((1, 2, 1, 1), 0.5, 11)


def random_arrays(architecture, seed=0, spread=0.05):
    """Arrays in the published layout: kernels of any scale, gammas and betas of both signs."""
    rng = np.random.default_rng(seed)
    arrays = {}
    for name, shape in checkpoint.layout(architecture).items():
        if name.endswith(("kernel", "bias")):
            arrays[name] = rng.normal(0, spread, shape)
        else:
            arrays[name] = rng.normal(0.5 if name.endswith("gamma") else 0, 0.3, shape)
        arrays[name] = arrays[name].astype(np.float32)
    return arrays


@pytest.fixture(scope="session")
def small_arrays():
    return random_arrays(SMALL)


@pytest.fixture
def small_npz(tmp_path, small_arrays):
    path = tmp_path / "small.npz"
    np.savez(path, **small_arrays)
    return path


@pytest.fixture
def images():
    return np.random.default_rng(3).uniform(-1, 1, (2, 40, 56, 3)).astype(np.float32)
