"""One training on TensorFlow, JAX and PyTorch: the same pictures, the same losses, resumed to the bit."""

import functools
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parent.parent
BACKENDS = [
    pytest.param(name, marks=pytest.mark.skipif(not found, reason=f"{name} is not installed"))
    for name in ("tensorflow", "jax", "torch")
    for found in [importlib.util.find_spec(name)]
]

SCRIPT = """
import hashlib, json, sys, tempfile
import keras, numpy as np
from bitlib import augment, distill, finetune, hyperrule, loop
from bitlib.model import BiT

rng = np.random.default_rng(0)
images = rng.uniform(-1, 1, (24, 40, 40, 3)).astype("float32")
labels = np.arange(24) % 3
layers = keras.layers

def small(seed, norm=layers.BatchNormalization):
    model = keras.Sequential([
        layers.Input((None, None, 3)), layers.Conv2D(8, 3, 2), norm(), layers.ReLU(),
        layers.GlobalAveragePooling2D(), layers.Dense(5),
    ])
    rng = np.random.default_rng(seed)
    model.set_weights([rng.normal(0.1, 0.3, w.shape) if w.ndim > 1 else w for w in model.get_weights()])
    return model

def match(student, **how):
    return distill.match(small(0), student, images, steps=6, batch_size=8, crop=32, verbose=0, seed=3, **how)

def weights(model):
    return [w.tolist() for w in model.get_weights()]

def stopped(folder):
    plain, calls = loop.train_step, []
    def breaking(*arguments):
        step = plain(*arguments)
        def run(*batch):
            calls.append(0)
            if len(calls) == 4:
                raise InterruptedError
            return step(*batch)
        return run
    loop.train_step = breaking
    try:
        match(small(1), checkpoints=folder, save_every=2)
    except InterruptedError:
        pass
    finally:
        loop.train_step = plain

student, again = small(1), small(2)
plan = hyperrule.plan(24, 40, batch_size=8, steps=4, resize=40, crop=32, mixup_alpha=0.2)
pictures = hashlib.sha256()
for batch in augment.training_batches((images, labels), plan, 3, 5):
    for values in batch:
        pictures.update(values.tobytes())
folder = tempfile.mkdtemp()
match_loss = match(student).loss
stopped(folder)
result = {
    "pictures": pictures.hexdigest(),
    "match": match_loss,
    "resumed": match(again, checkpoints=folder).loss,
    "weights": weights(student) == weights(again),
    "statistics": student.layers[1].moving_mean.numpy().tolist(),
    "whole": match(small(1, layers.ReLU)).loss,
    "parts": match(small(1, layers.ReLU), accumulate=3).loss,
}
if "network" in sys.argv:
    network = BiT((1, 1, 1, 1), 0.5, 3)
    arrays = np.random.default_rng(1)
    for variable in network.arrays.values():
        shape = variable.shape
        variable.assign(arrays.normal(0, 0.05, shape) if len(shape) > 1 else np.full(shape, 1 / shape[0]))
    plan = hyperrule.plan(24, 40, batch_size=8, steps=3, resize=40, crop=32, base_lr=0.03)
    result["fit"] = finetune.fit(network, (images, labels), plan, (images, labels), verbose=0).loss
    result["evaluate"] = finetune.evaluate(network, (images, labels), plan, batch_size=10)
    several = np.eye(3, dtype="float32")[labels] + np.eye(3, dtype="float32")[0]
    result["several"] = finetune.evaluate(network, (images, np.minimum(several, 1)), plan)
if "eight" in sys.argv:
    keras.distribution.set_distribution(keras.distribution.DataParallel())
    result["devices"] = len(keras.distribution.list_devices())
    result["shared"] = match(small(1)).loss
result["tensorflow"] = "tensorflow" in sys.modules
print(json.dumps(result))
"""


@functools.cache
def run(backend, *words):
    """What the script prints on a backend; without Keras' settings of whoever runs this."""
    environment = os.environ | {
        "KERAS_BACKEND": backend,
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "PYTHONPATH": str(ROOT),
    }
    if "eight" in words:
        environment["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
    command = [sys.executable, "-c", SCRIPT, *words]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


WORDS = {"tensorflow": ("network",), "jax": ("network", "eight"), "torch": ("network",)}


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
class TestEach:
    def test_a_stopped_training_resumes_to_the_bit(self, backend):
        found = run(backend, *WORDS[backend])
        assert found["resumed"] == found["match"]
        assert found["weights"]

    def test_in_parts_it_is_that_of_the_whole_batch(self, backend):
        found = run(backend, *WORDS[backend])
        np.testing.assert_allclose(found["parts"], found["whole"], rtol=1e-5)

    def test_statistics_of_a_students_batch_normalisation_move(self, backend):
        assert np.abs(run(backend, *WORDS[backend])["statistics"]).min() > 0

    def test_tensorflow_is_imported_where_it_computes_and_nowhere_else(self, backend):
        assert run(backend, *WORDS[backend])["tensorflow"] == (backend == "tensorflow")


@pytest.fixture(scope="module")
def found():
    installed = [name for name in WORDS if importlib.util.find_spec(name)]
    if len(installed) < 2:
        pytest.skip("one backend alone is installed")
    return {name: run(name, *WORDS[name]) for name in installed}


@pytest.mark.slow
class TestTogether:
    def test_the_same_pictures_in_the_same_order(self, found):
        assert len({result["pictures"] for result in found.values()}) == 1

    @pytest.mark.parametrize("what", ["match", "parts", "fit", "evaluate", "several"])
    def test_the_same_numbers(self, found, what):
        one, *others = (result[what] for result in found.values())
        for other in others:
            np.testing.assert_allclose(other, one, rtol=1e-3)


@pytest.mark.slow
@pytest.mark.skipif(not importlib.util.find_spec("jax"), reason="jax is not installed")
def test_eight_devices_of_jax_train_as_one():
    found = run("jax", *WORDS["jax"])
    assert found["devices"] == 8
    np.testing.assert_allclose(found["shared"], found["match"], rtol=1e-5)
