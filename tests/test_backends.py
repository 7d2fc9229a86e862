"""One training on TensorFlow, JAX and PyTorch: the same pictures, the same losses, resumed to the bit."""

import functools
import importlib.util
import json
import os
import socket
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
import keras
if "two" in sys.argv:
    keras.distribution.initialize(sys.argv[-1], 2, int(sys.argv[-2]))
    keras.distribution.set_distribution(keras.distribution.DataParallel())
import numpy as np
from bitlib.training import augment, loop
from bitlib import distill, finetune, hyperrule
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

if "two" in sys.argv:
    def parts(context):
        mine = slice(context.input_pipeline_id, None, context.num_input_pipelines)
        return images[mine], labels[mine]

    network = BiT((1, 1, 1, 1), 0.5, 3)
    plan = hyperrule.plan(24, 40, batch_size=8, steps=2, resize=40, crop=32)
    shares = finetune.fit(network, parts, plan, verbose=0).loss
    accuracy = finetune.evaluate(network, (images, labels), plan, batch_size=10)
    result = {"match": match(small(1)).loss, "shares": shares, "evaluate": accuracy}
    print(json.dumps(result | {"devices": len(keras.distribution.list_devices())}))
    sys.exit()

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
    logits = finetune.predict(network, images[:5], plan)
    result["five"] = np.abs(logits[:1] - finetune.predict(network, images[:1], plan)).max().item()
    try:
        distill.match(small(0), small(1), images, steps=1, batch_size=6)
    except ValueError as error:
        result["unequal"] = str(error)
result["tensorflow"] = "tensorflow" in sys.modules
print(json.dumps(result))
"""


def start(backend, *words):
    """The script's process on a backend; without Keras' settings of whoever runs this."""
    environment = os.environ | {
        "KERAS_BACKEND": backend,
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "PYTHONPATH": str(ROOT),
    }
    if "eight" in words:
        environment["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
    command = [sys.executable, "-c", SCRIPT, *words]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=pipe, stderr=pipe, text=True)


def result(process):
    """What a script has printed last."""
    out, errors = process.communicate(timeout=600)
    assert process.returncode == 0, errors[-3000:]
    return json.loads(out.splitlines()[-1])


@functools.cache
def run(backend, *words):
    return result(start(backend, *words))


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
    assert found["five"] < 1e-5  # five images, shared by eight devices
    assert "batch_size 6 cannot be shared equally by the 8 devices" in found["unequal"]


@pytest.mark.slow
@pytest.mark.skipif(not importlib.util.find_spec("jax"), reason="jax is not installed")
def test_two_processes_of_jax_train_as_one():
    with socket.socket() as one, socket.socket() as other:
        for each in (one, other):
            each.bind(("127.0.0.1", 0))
        jobs = ",".join(f"127.0.0.1:{each.getsockname()[1]}" for each in (one, other))
    first, second = [result(each) for each in [start("jax", "two", str(index), jobs) for index in (0, 1)]]
    assert first == second
    assert first["devices"] == 2
    np.testing.assert_allclose(first["match"], run("jax", *WORDS["jax"])["match"], rtol=1e-5)
    assert np.isfinite(first["shares"]).all()
    assert np.isfinite(first["evaluate"]).all()
