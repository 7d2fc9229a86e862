"""The reference in JAX, and exports through JAX: the same conformance tests as for `bitlib.export`."""

import sys

import numpy as np
import pytest
import tensorflow as tf

import bitlib
from bitlib import jaxport, reference
from bitlib.checkpoint import Architecture, CheckpointError
from tests.conftest import SMALL, random_arrays

# pytest collects these here as well, and gives them the fixtures of this module.
from tests.test_savedmodel import (  # noqa: F401
    test_height_and_width_are_dynamic,
    test_hub_keras_layer,
    test_hub_load,
    test_hub_trains_every_weight,
    test_keras_tfsm_layer,
    test_tf_saved_model,
)

jax = pytest.importorskip("jax", reason="JAX is not installed; pip install 'bitlib[jax]' to run these tests")
slow = pytest.mark.slow


@pytest.fixture(scope="module", params=[pytest.param("through JAX", marks=slow)])
def exported(tmp_path_factory, small_arrays):
    """Classifier and features through JAX, each with the Keras model of the same arrays."""
    folder = tmp_path_factory.mktemp("jax")
    np.savez(folder / "small.npz", **small_arrays)
    made = {}
    for output, head in (("logits", "keep"), ("features", None)):
        path = jaxport.export(small_arrays, folder / output / "1", head=head is not None)
        made[output, -1] = path, bitlib.load(folder / "small.npz", head=head)
    return made


@pytest.fixture(params=["logits", "features"])
def case(request, exported, images):
    """Folder, name of the output, what callers feed, and what must come out."""
    path, model = exported[request.param, -1]
    return path, request.param, images, model(images).numpy()


@pytest.fixture
def float64():
    before = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", before)


def forward(arrays, images):
    return reference.forward(arrays, images, xp=jax.numpy)


class TestReference:
    """The lines of NumPy in another namespace."""

    @pytest.mark.slow
    def test_it_jits_and_agrees(self, small_arrays, images):
        expected = reference.forward(small_arrays, images)
        found = jax.jit(forward)(small_arrays, images)
        assert found.dtype == "float32"
        np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())

    @slow
    @pytest.mark.parametrize(
        ("architecture", "spread"),
        [(Architecture((2, 1, 1, 1), 0.5, 5), 0.05), (Architecture((1, 1, 2, 1), 1, 21), 3)],
        ids=str,
    )
    def test_in_float64_it_is_numpys(self, float64, architecture, spread, images):
        arrays = random_arrays(architecture, seed=6, spread=spread)
        expected = reference.forward(arrays, images)
        found = jax.jit(forward)(arrays, images)
        assert found.dtype == "float64"
        np.testing.assert_allclose(found, expected, atol=1e-10 * np.abs(expected).max())

    @slow
    def test_it_differentiates(self, float64, small_arrays, images):
        """By every array; along its own gradient the sum of logits has the slope that steps in NumPy show."""
        gradients = jax.jit(jax.grad(lambda arrays: forward(arrays, images).sum()))(small_arrays)
        for name, gradient in gradients.items():
            gradient = np.asarray(gradient, float)
            length = np.linalg.norm(gradient)
            assert length > 0, name
            steps = [small_arrays[name] + sign * 1e-6 * gradient / length for sign in (-1, 1)]
            low, high = (reference.forward(small_arrays | {name: step}, images).sum() for step in steps)
            assert (high - low) / 2e-6 == pytest.approx(length, rel=1e-3), name


class TestExport:
    def test_the_network_is_one_operation_without_sizes(self, exported, small_arrays):
        path, model = exported["logits", -1]
        loaded = tf.saved_model.load(str(path))
        graph = loaded.signatures["serving_default"].graph.as_graph_def()
        nodes = [*graph.node, *(node for part in graph.library.function for node in part.node_def)]
        used = {node.op for node in nodes}
        assert "XlaCallModule" in used
        assert not used & {"Conv2D", "MatMul"}
        names = {variable.name.removesuffix(":0") for variable in loaded.variables}
        assert names == set(small_arrays) == set(model.arrays)

    @slow
    def test_an_earlier_savedmodel_is_replaced_and_nothing_else(self, tmp_path, small_arrays, images):
        folder = jaxport.export(small_arrays, tmp_path / "m")
        changed = small_arrays | {"resnet/head/conv2d/bias": np.ones(11, np.float32)}
        assert jaxport.export(changed, folder) == folder
        expected = reference.forward(changed, images)
        found = tf.saved_model.load(str(folder))(images)
        np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())
        (folder / "thesis.tex").touch()
        with pytest.raises(FileExistsError, match=r"^directory: .*thesis\.tex"):
            jaxport.export(small_arrays, folder)

    def test_other_arrays_are_refused(self, tmp_path, small_arrays):
        name = "resnet/block2/unit02/b/group_norm/gamma"
        for wrong in (
            {key: array for key, array in small_arrays.items() if key != name},
            small_arrays | {name: np.ones(7, np.float32)},
        ):
            with pytest.raises(CheckpointError, match=f"^{name}: "):
                jaxport.export(wrong, tmp_path / "m")
        headless = random_arrays(SMALL._replace(num_classes=None))
        with pytest.raises(ValueError, match="^head: expected False"):
            jaxport.export(headless, tmp_path / "m")
        assert not (tmp_path / "m").exists()

    def test_without_jax_the_extra_is_named(self, tmp_path, small_arrays, monkeypatch):
        monkeypatch.setitem(sys.modules, "jax", None)
        with pytest.raises(ImportError, match=r"pip install 'bitlib\[jax\]'"):
            jaxport.export(small_arrays, tmp_path / "m")
        assert not (tmp_path / "m").exists()
