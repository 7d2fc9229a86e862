"""What people do with Keras models, done with a BiT: on the backend of this process, whichever it is.

    KERAS_BACKEND=jax python -m pytest tests/test_habits.py

needs no package of another backend. Where several are installed, the last test runs this file on the others.
"""

import copy
import importlib.util
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest

import bitlib
from bitlib import checkpoint, features, images, reference
from bitlib.checkpoint import Architecture
from bitlib.model import UNITS, BiT
from tests.conftest import SMALL, random_arrays

BACKEND = keras.backend.backend()
ROOT = Path(__file__).parent.parent
PICTURES = np.random.default_rng(3).uniform(-1, 1, (4, 32, 32, 3)).astype(np.float32)
LABELS = np.array([0, 1, 2, 1])
TINY = Architecture((1, 1, 1, 1), 0.5, 3)
UNIT_NAMES = ["block1_unit01", "block2_unit01", "block2_unit02", "block3_unit01", "block4_unit01"]


def numpy(tensor):
    return keras.ops.convert_to_numpy(tensor)


def filled(architecture=TINY, **kwargs):
    model = BiT(*architecture, **kwargs)
    checkpoint.assign(model, random_arrays(architecture))
    return model


@pytest.fixture(scope="module")
def model():
    return filled(SMALL)


@pytest.fixture(scope="module")
def expected():
    return reference.forward(random_arrays(SMALL), PICTURES)


@pytest.fixture
def backbone():
    arrays = random_arrays(TINY)
    model = BiT(*TINY[:2], None)
    checkpoint.assign(model, {name: array for name, array in arrays.items() if name not in checkpoint.HEAD})
    return model


def assert_close(found, wanted, tolerance=2e-5):
    found, wanted = numpy(found), numpy(wanted)
    assert found.shape == wanted.shape
    assert np.abs(found - wanted).max() <= tolerance * np.abs(wanted).max()


def gradients(function, arrays):
    """The gradients of a scalar function of tensors, by the backend's own means."""
    tensors = [keras.ops.convert_to_tensor(array) for array in arrays]
    if BACKEND == "jax":
        import jax

        return [np.asarray(each) for each in jax.grad(lambda tensors: function(*tensors))(tensors)]
    if BACKEND == "torch":
        import torch

        tensors = [tensor.detach().requires_grad_() for tensor in tensors]
        return [each.cpu().numpy() for each in torch.autograd.grad(function(*tensors), tensors)]
    import tensorflow as tf

    with tf.GradientTape() as tape:
        tape.watch(tensors)
        value = function(*tensors)
    return [np.asarray(each) for each in tape.gradient(value, tensors)]


class TestLooking:
    def test_summary_has_names_and_shapes(self, model):
        lines = []
        model.summary(print_fn=lines.append, line_length=120)
        text = "\n".join(lines)
        for name, shape in [
            *zip(["root_block", *UNIT_NAMES], [32, 128, 256, 256, 512, 1024], strict=True),
            ("features", 1024),
            ("head", 11),
        ]:
            (line,) = (line for line in text.splitlines() if f" {name} " in line)
            assert f"{shape})" in line
            assert "?" not in line

    def test_output_shape(self, model):
        assert (model.input_shape, model.output_shape) == ((None, None, None, 3), (None, 11))
        assert model.get_layer("block4_unit01").output.shape == (None, None, None, 1024)

    def test_names_of_layers_are_unique(self, model):
        names = [layer.name for layer in model.layers]
        assert names == ["images", "root_block", *UNIT_NAMES, "group_norm", "features", "head"]

    def test_count_params(self, model):
        assert model.count_params() == sum(array.size for array in random_arrays(SMALL).values())

    def test_config_makes_another_like_it(self, model):
        again = BiT.from_config(json.loads(json.dumps(model.get_config())))
        assert again.get_config() == model.get_config()
        assert {name: v.shape for name, v in again.arrays.items()} == {
            name: v.shape for name, v in model.arrays.items()
        }

    @pytest.mark.slow
    def test_pyramid_of_feature_maps(self, model):
        names = ["root_block", "block1_unit01", "block2_unit02", "block3_unit01", "block4_unit01"]
        pyramid = keras.Model(model.input, [model.get_layer(name).output for name in names])
        for found, wanted in zip(
            pyramid.predict(PICTURES, verbose=0), model.feature_maps(PICTURES).values(), strict=True
        ):
            assert_close(found, wanted)

    def test_grad_cam(self, model):
        """Which places of the last maps raise a logit: behind the last GroupNorm the head's weights tell."""
        maps = keras.Model(model.input, model.get_layer("group_norm").output)(PICTURES)
        rest = keras.Model(model.get_layer("group_norm").output, model.output)
        (found,) = gradients(lambda maps: keras.ops.sum(rest(maps)[:, 2]), [maps])
        weights = numpy(model.head.convolution.kernel)[0, 0, :, 2] / np.prod(maps.shape[1:3])
        np.testing.assert_allclose(found, np.broadcast_to(weights, found.shape), atol=1e-6)
        heat = (found.mean((1, 2), keepdims=True) * numpy(maps)).sum(-1)
        logits = numpy(model(PICTURES))[:, 2] - numpy(model.head.convolution.bias)[2]
        np.testing.assert_allclose(heat.sum((1, 2)), logits, rtol=1e-3, atol=1e-3)


class TestBuilding:
    def test_sequential_with_augmentation(self, backbone):
        model = keras.Sequential(
            [keras.layers.RandomFlip("horizontal", seed=1), backbone, keras.layers.Dense(3, "softmax")]
        )
        assert_close(keras.ops.sum(model(PICTURES), -1), np.ones(4))
        assert model.output_shape[-1] == 3

    def test_functional_under_rescaling(self, backbone):
        inputs = keras.Input((None, None, 3))
        outputs = keras.layers.Dense(3)(backbone(keras.layers.Rescaling(1 / 127.5, -1)(inputs)))
        model = keras.Model(inputs, outputs)
        assert model(127.5 * (PICTURES + 1)).shape == (4, 3)
        cut = keras.Model(inputs, model.layers[-1].input)
        assert_close(cut(127.5 * (PICTURES + 1)), backbone(PICTURES), 1e-4)

    def test_freezing(self, backbone):
        backbone.trainable = False
        assert not backbone.trainable_variables
        backbone.trainable = True
        for layer in backbone.layers[:-3]:
            layer.trainable = False
        trained = {v.path.split("/")[0] for v in backbone.trainable_variables}
        assert trained == {"block4_unit01", "group_norm"}

    @pytest.mark.slow
    def test_frozen_weights_stay_as_they_are(self, backbone):
        backbone.trainable = False
        model = keras.Sequential([backbone, keras.layers.Dense(3)])
        before = backbone.get_weights()
        model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        model.fit(PICTURES, LABELS, verbose=0)
        assert all(map(np.array_equal, before, backbone.get_weights()))
        assert np.abs(model.layers[-1].get_weights()[1]).max() > 0


class TestTraining:
    def compiled(self, model, rate=1e-3, **kwargs):
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(keras.optimizers.SGD(rate), loss, metrics=["accuracy"], **kwargs)
        return model

    @pytest.mark.slow
    def test_fit_evaluate_predict(self, tmp_path):
        model = self.compiled(filled())
        model.head.convolution.kernel.assign(numpy(model.head.convolution.kernel) * 0)
        seen = []
        history = model.fit(
            PICTURES,
            LABELS,
            batch_size=2,
            epochs=3,
            verbose=0,
            shuffle=False,
            validation_data=(PICTURES, LABELS),
            class_weight={0: 1.0, 1: 2.0, 2: 0.5},
            callbacks=[
                keras.callbacks.ModelCheckpoint(tmp_path / "best.keras", save_best_only=True),
                keras.callbacks.EarlyStopping(patience=3),
                keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: seen.append(sorted(logs))),
            ],
        ).history
        assert history["loss"][-1] < history["loss"][0]
        assert seen == [["accuracy", "loss", "val_accuracy", "val_loss"]] * 3
        loss, accuracy = model.evaluate(PICTURES, LABELS, verbose=0)
        logits = model.predict(PICTURES, verbose=0)
        assert accuracy == (logits.argmax(1) == LABELS).mean()
        assert_close(logits, model(PICTURES))
        assert loss == pytest.approx(history["val_loss"][-1], rel=1e-4)
        best = keras.saving.load_model(tmp_path / "best.keras")
        assert best.evaluate(PICTURES, LABELS, verbose=0)[0] == pytest.approx(
            min(history["val_loss"]), rel=1e-4
        )

    @pytest.mark.slow
    @pytest.mark.skipif(BACKEND == "torch", reason="Keras' jit_compile of PyTorch starts a compiler of C++")
    def test_jit_compile(self):
        model, plain = (self.compiled(filled(), jit_compile=jit) for jit in (True, False))
        losses = [each.train_on_batch(PICTURES, LABELS)[0] for each in (model, plain)]
        assert losses[0] == pytest.approx(losses[1], rel=1e-5)
        assert_close(model(PICTURES), plain(PICTURES), 1e-4)

    @pytest.mark.slow
    def test_run_eagerly(self):
        model, plain = (self.compiled(filled(), run_eagerly=eager) for eager in (True, False))
        losses = [each.train_on_batch(PICTURES, LABELS)[0] for each in (model, plain)]
        assert losses[0] == pytest.approx(losses[1], rel=1e-5)

    @pytest.mark.slow
    @pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
    def test_mixed_precision(self, policy):
        model, full = self.compiled(filled(dtype=policy), 1e-6), filled()
        assert_close(model(PICTURES), full(PICTURES), 0.1 if policy == "mixed_bfloat16" else 0.02)
        assert keras.backend.standardize_dtype(model(PICTURES).dtype) == "float32"
        maps = model.feature_maps(PICTURES)["block1"]
        assert keras.backend.standardize_dtype(maps.dtype) == policy.removeprefix("mixed_")
        before = model.get_weights()
        assert np.isfinite(model.train_on_batch(PICTURES, LABELS)[0])
        assert any(not np.array_equal(a, b) for a, b in zip(before, model.get_weights(), strict=True))


class TestKeeping:
    @pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
    def test_copies(self, model, expected, copied):
        again = copied(model)
        assert_close(again(PICTURES), expected)
        again.head.convolution.bias.assign(np.ones(11))
        assert_close(model(PICTURES), expected)

    def test_clone_has_weights_of_its_own(self, model, expected):
        clone = keras.models.clone_model(model)
        assert type(clone) is BiT
        assert not numpy(clone.head.convolution.kernel).any()
        clone.set_weights(model.get_weights())
        assert_close(clone(PICTURES), expected)

    @pytest.mark.slow
    def test_keras_file(self, model, expected, tmp_path):
        model.card = bitlib.zoo.own_card("mine")
        model.save(tmp_path / "m.keras")
        for again in (keras.saving.load_model(tmp_path / "m.keras"), bitlib.load(tmp_path / "m.keras")):
            assert_close(again(PICTURES), expected)
            assert again.card == model.card
        code = "import bitlib, keras; print(type(keras.saving.load_model('m.keras')).__name__)"
        assert python(code, tmp_path).splitlines()[-1] == "BiT"

    def test_weights_file(self, model, expected, tmp_path):
        model.save_weights(tmp_path / "m.weights.h5")
        again = BiT(*SMALL)
        again.load_weights(tmp_path / "m.weights.h5")
        assert_close(again(PICTURES), expected)

    @pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
    def test_published_files(self, model, tmp_path, suffix):
        pytest.importorskip("safetensors", reason="pip install 'bitlib[safetensors]'")
        checkpoint.save(model, tmp_path / f"m{suffix}")
        again = bitlib.load(tmp_path / f"m{suffix}")
        for name, variable in again.arrays.items():
            np.testing.assert_array_equal(numpy(variable), numpy(model.arrays[name]))

    @pytest.mark.slow
    def test_keras_own_export(self, model, expected, tmp_path):
        """Keras writes a SavedModel by TensorFlow, a `.pt2` by PyTorch; on JAX it says what it needs."""
        if BACKEND == "tensorflow":
            model.export(tmp_path / "m", verbose=False)
            layer = keras.layers.TFSMLayer(tmp_path / "m", call_endpoint="serve")
            assert_close(layer(PICTURES), expected)
        elif BACKEND == "torch":
            import torch

            signature = [keras.InputSpec(shape=PICTURES.shape, dtype="float32")]  # else it tries one pixel
            model.export(tmp_path / "m.pt2", format="torch", input_signature=signature, verbose=False)
            program = torch.export.load(tmp_path / "m.pt2")
            assert_close(program.module()(torch.from_numpy(PICTURES)).detach(), expected)
        else:
            with pytest.raises(ValueError, match="requires PyTorch backend"):
                model.export(tmp_path / "m.pt2", format="torch", verbose=False)

    def test_quantize_warns_once_and_changes_nothing(self, model, expected):
        """Keras itself warns of every layer (https://github.com/keras-team/keras/issues/21085)."""
        with pytest.warns(UserWarning, match="^quantize: ") as warned:
            model.quantize("int8")
        assert len(warned) == 1
        assert_close(model(PICTURES), expected)


class TestBitlib:
    @pytest.mark.slow
    def test_features_and_what_is_made_of_them(self, model):
        vectors = features.extract(model, PICTURES)
        assert_close(vectors, reference.forward(random_arrays(SMALL), PICTURES, head=False))
        probe = features.linear_probe(vectors, LABELS)
        assert (probe.predict(vectors) == LABELS).all()
        indices, similarities = features.nearest(vectors, vectors[:2], 1)
        assert indices.ravel().tolist() == [0, 1]
        np.testing.assert_allclose(similarities, 1, atol=1e-6)
        assert features.shrink(PICTURES).shape == (4, 64)

    @pytest.mark.slow
    def test_a_picture_gets_a_name(self, tmp_path):
        model = bitlib.load("BiT-XS-R14x0.5")
        pictures, labels, names = bitlib.datasets.glyphs_by_class()
        batch = images.batch(pictures[:2], model.card)
        best = bitlib.labels.probabilities(numpy(model(batch))).argmax(1)
        shown = bitlib.labels.names(model.card.labels)
        assert [shown[i] for i in best] == [names[i] for i in labels[:2]]

    def test_folders_tables_and_arrays(self, tmp_path):
        from PIL import Image

        for number, picture in enumerate(np.uint8(127.5 * (PICTURES + 1))):
            path = tmp_path / "data" / "ab"[number % 2] / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture).save(path)
        pictures, labels, names = bitlib.datasets.labelled(tmp_path / "data")
        assert (len(pictures), labels.tolist(), names) == (4, [0, 0, 1, 1], ["a", "b"])
        rows = [
            f"{Path(picture).relative_to(tmp_path)},{names[i]}"
            for picture, i in zip(pictures, labels, strict=True)
        ]
        (tmp_path / "table.csv").write_text("\n".join(["image,label", *rows]))
        assert bitlib.datasets.table(tmp_path / "table.csv")[1].tolist() == [0, 0, 1, 1]
        (learn, _), (test, _), _ = bitlib.datasets.splits(tmp_path / "data", shots=1)
        assert (len(learn), len(test)) == (2, 2)
        assert bitlib.datasets.labelled("digits")[1].shape == (1797,)

    def test_rule(self):
        assert bitlib.hyperrule.plan(100, 64).steps == 500

    def test_onnx(self, model, expected, tmp_path):
        runtime = pytest.importorskip("onnxruntime")
        bitlib.export(model, tmp_path / "m.onnx")
        session = runtime.InferenceSession(tmp_path / "m.onnx", providers=["CPUExecutionProvider"])
        assert_close(session.run(None, {"inputs": PICTURES})[0], expected)

    @pytest.mark.skipif(BACKEND == "tensorflow", reason="which can do it")
    @pytest.mark.parametrize("path", ["model", "model.tflite"])
    def test_what_only_tensorflow_can_do_says_so(self, model, tmp_path, path):
        with pytest.raises(ImportError, match=f"^format '.*': only TensorFlow .* {BACKEND}; KERAS_BACKEND="):
            bitlib.export(model, tmp_path / path)
        assert not list(tmp_path.iterdir())

    def test_wrong_images_are_refused_in_our_words(self, model):
        for wrong, words in [
            (PICTURES[0], r"^images: expected shape \[N, H, W, 3\], received \[32, 32, 3\]"),
            (PICTURES.transpose(0, 3, 1, 2), "^images: .*channels first"),
            (PICTURES[:, :16], "^images: .*at least 32 pixels"),
            (np.uint8(PICTURES), "^images: .*received uint8"),
            (127.5 * (PICTURES + 1), "^images: .*divide by 127.5"),
        ]:
            for door in (model, lambda x: model.predict(x, verbose=0), lambda x: features.extract(model, x)):
                with pytest.raises(ValueError, match=words):
                    door(wrong)


class TestExactness:
    """Against float64: one part after the other, and whole."""

    @pytest.mark.parametrize("spread", [0.05, 1e-5, 3])
    @pytest.mark.parametrize("size", [(32, 32), (45, 67)])
    def test_logits(self, spread, size):
        arrays = random_arrays(TINY, 1, spread)
        arrays["resnet/head/conv2d/kernel"] *= np.float32(0.05 / spread)
        model = BiT(*TINY)
        checkpoint.assign(model, arrays)
        pictures = np.random.default_rng(5).uniform(-1, 1, (2, *size, 3)).astype(np.float32)
        assert_close(model(pictures), reference.forward(arrays, pictures), 1e-5)

    @pytest.mark.slow
    @pytest.mark.parametrize(
        "architecture", [Architecture((1, 1, 1, 1), 0.5, 21843), Architecture(UNITS[50], 1, 1000)], ids=str
    )
    def test_large_networks(self, architecture):
        arrays = random_arrays(architecture, 2)
        model = BiT(*architecture, kernel_initializer="zeros")
        checkpoint.assign(model, arrays)
        pictures = np.random.default_rng(6).uniform(-1, 1, (1, 63, 81, 3)).astype(np.float32)
        assert_close(model.predict(pictures, verbose=0), reference.forward(arrays, pictures), 1e-5)
        assert reference.disagreement(model, arrays) < 1e-5

    @pytest.mark.slow
    def test_gradients(self):
        """Along a random direction in each array, of a sum of squares: as differences in float64 have it.

        What agrees so to 1e-4 on each backend agrees between them.
        """
        arrays = random_arrays(TINY, 4)
        model = BiT(*TINY)
        checkpoint.assign(model, arrays)
        pictures = PICTURES[:1]
        variables = model.arrays
        order = [list(map(id, model.trainable_variables)).index(id(v)) for v in variables.values()]

        def loss(*tensors):
            given = [tensors[order.index(place)] for place in range(len(order))]
            logits, _ = model.stateless_call(given, [], pictures)
            return keras.ops.sum(keras.ops.square(logits))

        rng = np.random.default_rng(0)
        found = gradients(loss, [numpy(v) for v in variables.values()])
        for (name, array), gradient in zip(((n, arrays[n]) for n in variables), found, strict=True):
            direction = rng.choice([-1.0, 1.0], array.shape)
            step = 1e-8  # small: a ReLU or a pool has many corners
            sides = [
                np.square(reference.forward(arrays | {name: array + s * step * direction}, pictures)).sum()
                for s in (1, -1)
            ]
            slope = (sides[0] - sides[1]) / (2 * step)
            assert abs((gradient * direction).sum() - slope) < 1e-4 * np.linalg.norm(gradient), name


def python(code, folder, **environment):
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


LOAD = "import bitlib; model = bitlib.load('BiT-XS-R14x0.5'); print(model.dtype_policy.name)"


@pytest.mark.slow
@pytest.mark.parametrize(
    "setting",
    [{"image_data_format": "channels_first"}, {"floatx": "float16"}, {"floatx": "float64"}],
    ids=str,
)
def test_other_settings_of_keras(tmp_path, setting):
    (tmp_path / "keras.json").write_text(json.dumps(setting))
    code = f"{LOAD}; import numpy; print(model(numpy.zeros((1, 40, 32, 3), 'float32')).shape[1])"
    assert python(code, tmp_path, KERAS_HOME=str(tmp_path)) == "float32\n1000\n"


@pytest.mark.parametrize("missing", ["tensorflow", "jax", "torch"])
def test_a_backend_that_is_not_installed_is_named(tmp_path, missing):
    code = (
        f"import sys; sys.modules[{missing!r}] = None\ntry: {LOAD}\nexcept ImportError as error: print(error)"
    )
    words = python(code, tmp_path, KERAS_BACKEND=missing)
    assert words.startswith(f"Keras needs {missing}, which is not installed; pip install 'bitlib[{missing}]'")
    assert "; KERAS_BACKEND=" in words
    assert words.count("\n") == 1


@pytest.mark.slow
def test_no_other_backend_is_imported(tmp_path):
    code = f"{LOAD}; import sys; print(sorted({{'tensorflow', 'jax', 'torch'}} & set(sys.modules)))"
    found = python(code, tmp_path).splitlines()[-1]
    assert found.replace("'jax', 't", "'t") == str([BACKEND]), (
        "TensorFlow itself imports JAX where it is installed"
    )


@pytest.mark.slow
@pytest.mark.parametrize("other", [name for name in ("tensorflow", "jax", "torch") if name != BACKEND])
def test_the_same_on(other, tmp_path):
    if "BITLIB_HABITS" in os.environ or not importlib.util.find_spec(other):
        pytest.skip(f"{other} is not installed, or runs already")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "not slow", __file__],
        cwd=ROOT,
        env={**os.environ, "KERAS_BACKEND": other, "BITLIB_HABITS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-5000:]
