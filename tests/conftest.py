import gc
import sys
from pathlib import Path

import numpy as np
import pytest

from bitlib import checkpoint, zoo
from bitlib.checkpoint import Architecture

PEAK = """
def peak():
    # Not getrusage: what that tells of a new process is the peak of the one that started it, if larger.
    with open("/proc/self/status") as status:
        return int(status.read().split("VmHWM:")[1].split()[0]) / 1024
"""
"""Code of a function that tells the peak memory of its process in MiB."""

needs_proc = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is told by Linux only")


def pytest_collection_modifyitems(items):
    """Whatever runs a page is slow: it starts a kernel, which imports TensorFlow."""
    for item in items:
        if item.path.name == "test_pages.py" and {"run", "papermilled"} & set(item.fixturenames):
            item.add_marker("slow")


@pytest.fixture(autouse=True, scope="module")
def light_heap():
    """What a module's models leave behind makes every collection after it slower, and all tracing with it."""
    yield
    if "keras" in sys.modules:
        sys.modules["keras"].utils.clear_session()
    gc.collect()
    gc.freeze()  # what is left stays: later collections need not look at it


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


@pytest.fixture
def published(tmp_path, monkeypatch, small_npz):
    """A mirror that has small networks under published names."""
    folder = tmp_path / "published"
    for name in (
        "BiT-M-R50x1",
        "BiT-M-R50x1-ILSVRC2012",
        "R50x1_224",
        "R50x1_160",
        "R152x2_T_224",
        "R152x2_T_384",
    ):
        file = folder / zoo.card(name).file
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(small_npz.read_bytes())
    monkeypatch.setenv("BITLIB_MIRROR", str(folder))
    monkeypatch.setenv("BITLIB_CACHE", str(tmp_path / "cache"))
    return folder


@pytest.fixture(scope="session")
def trees(tmp_path_factory):
    """A data set prepared as TFDS prepares them: 12 pictures of 3 classes, and 5 for testing."""
    import tensorflow_datasets as tfds

    class Trees(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            image = tfds.features.Image(shape=(None, None, 3), encoding_format="png")
            label = tfds.features.ClassLabel(names=["ash", "birch", "cedar"])
            features = tfds.features.FeaturesDict({"image": image, "label": label})
            return self.dataset_info_from_configs(features=features, supervised_keys=("image", "label"))

        def _split_generators(self, manager):
            return {"train": self._generate_examples(12), "test": self._generate_examples(5)}

        def _generate_examples(self, count):
            rng = np.random.default_rng(count)
            for index in range(count):
                yield index, {"image": rng.integers(0, 256, (30, 40, 3), np.uint8), "label": index % 3}

    folder = tmp_path_factory.mktemp("tfds")
    Trees(data_dir=folder).download_and_prepare()
    return folder
