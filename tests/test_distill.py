"""Function matching: same pixels for both, no label, the loss of a NumPy line, resumed to the bit."""

import os
import subprocess
import sys
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf

import bitlib
from bitlib import distill, finetune
from bitlib.training import augment, loop

CLASSES = 5


def small(seed, classes=CLASSES):
    keras.utils.set_random_seed(seed)
    layers = keras.layers
    return keras.Sequential(
        [
            layers.Input((None, None, 3)),
            layers.Conv2D(8, 3, 2, activation="relu"),
            layers.BatchNormalization(),
            layers.Conv2D(16, 3, 2, activation="relu"),
            layers.GlobalAveragePooling2D(),
            layers.Dropout(0.2),
            layers.Dense(classes),
        ]
    )


@pytest.fixture
def images():
    return np.random.default_rng(0).uniform(-1, 1, (24, 36, 36, 3)).astype("float32")


HOW = {"steps": 6, "batch_size": 8, "verbose": 0}


def log_softmax(x):
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


class TestLoss:
    @pytest.mark.parametrize("temperature", [0.5, 1, 4])
    def test_the_divergence_is_a_line_of_numpy(self, temperature):
        t, s = np.random.default_rng(1).normal(0, 3, (2, 7, 11))
        p, q = log_softmax(t / temperature), log_softmax(s / temperature)
        found = distill.divergence(tf.constant(t), tf.constant(s), temperature)
        np.testing.assert_allclose(found, (np.exp(p) * (p - q)).sum(-1), rtol=1e-10)

    def test_zero_for_the_same_function_whatever_is_added(self):
        logits = np.random.default_rng(1).normal(0, 30, (4, 9))
        np.testing.assert_allclose(distill.divergence(logits, logits + 7.0), 0, atol=1e-12)


class TestPlan:
    def test_a_cosine_to_zero(self):
        rule = distill.plan(32, steps=10, learning_rate=0.5)
        rates = [rule.learning_rate(step) for step in range(11)]
        np.testing.assert_allclose(rates, 0.25 * (1 + np.cos(np.pi * np.arange(11) / 10)), atol=1e-12)

    def test_mixup_is_uniform_and_in_every_batch(self):
        pictures = np.zeros((64, 32, 32, 3), "float32")
        pictures[:32] = 1
        rule = distill.plan(32, 32 * 8, resize=32, batch_size=64)
        shares = []
        for batch, _ in augment.training_batches((pictures, np.zeros(64, int)), rule, 1):
            values = np.unique(batch)
            shares.append(values[values < 1].max())
        assert abs(np.mean(shares) - 0.75) < 0.04  # the larger of a uniform share and the rest
        assert min(shares) < 0.56
        assert max(shares) > 0.94

    @pytest.mark.parametrize(
        ("how", "message"),
        [
            ({"crop": 31}, "^crop: expected at least 32, a whole number, received 31"),
            ({"steps": 0}, "^steps: .* at least 1"),
            ({"batch_size": 2.0}, "^batch_size: "),
            ({"resize": 40, "crop": 48}, "^resize: expected at least 48"),
            ({"learning_rate": float("nan")}, "^learning_rate: "),
            ({"temperature": 0}, "^temperature: expected a positive number"),
            ({"weight_decay": -1}, "^weight_decay: "),
            ({"accumulate": 9}, "^accumulate: expected 1 to the batch size, 8"),
        ],
    )
    def test_refusals(self, images, how, message):
        with pytest.raises(ValueError, match=message):
            distill.match(small(0), small(1), images, **HOW | how)


class Echo(keras.Model):
    """A teacher that returns what it is given, as logits, and remembers it."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def call(self, pictures, training=None):
        assert not training
        values = tf.reshape(tf.image.resize(pictures, (2, 2)), (tf.shape(pictures)[0], 12))
        tf.py_function(lambda batch: self.seen.append(batch.numpy()), [pictures], [])
        return values


class Watching(Echo):
    def __init__(self):
        super().__init__()
        self.dense = keras.layers.Dense(12)

    def call(self, pictures, training=None):
        tf.py_function(lambda batch: self.seen.append(batch.numpy()), [pictures], [])
        return self.dense(tf.reshape(tf.image.resize(pictures, (2, 2)), (-1, 12)))


class TestMatch:
    def test_both_see_the_same_pixels(self, images):
        teacher, student = Echo(), Watching()
        distill.match(teacher, student, images, **HOW)
        assert len(teacher.seen) == len(student.seen) == 6 + 1  # once before, to learn of the classes
        for one, other in zip(teacher.seen, student.seen, strict=True):
            np.testing.assert_array_equal(one, other)
        assert len({batch.tobytes() for batch in teacher.seen}) == 7

    def test_steps_are_those_of_adamw_on_the_clipped_gradient(self, images):
        """Against a plain loop with Keras' optimizer; a huge learning signal, so that clipping matters."""
        teacher, student, twin = Echo(), Watching(), Watching()
        for model in (student, twin):
            model(images[:1])
            model.dense.kernel.assign(100 * np.random.default_rng(2).normal(size=(12, 12)))
        history = distill.match(teacher, student, images, **HOW, seed=3, weight_decay=0.01)
        rule = distill.plan(36, 6, batch_size=8)
        optimizer = keras.optimizers.AdamW(1e-3, weight_decay=0.01)
        batches = augment.training_batches((images, np.zeros(24, int)), rule, 1, 3)
        for step, (pictures, _) in enumerate(batches):
            optimizer.learning_rate = rule.learning_rate(step)
            with tf.GradientTape() as tape:
                p, q = teacher(pictures), twin(pictures)
                p, q = tf.nn.log_softmax(p), tf.nn.log_softmax(q)
                loss = tf.reduce_mean(tf.reduce_sum(tf.exp(p) * (p - q), -1))
            np.testing.assert_allclose(history.loss[step], loss, rtol=1e-4)
            gradients = tape.gradient(loss, [v.value for v in twin.trainable_variables])
            norm = np.sqrt(sum(np.sum(np.square(g)) for g in gradients))
            gradients = [g * min(1, 1 / norm) for g in gradients]
            optimizer.apply_gradients(zip(gradients, twin.trainable_variables, strict=True))
        np.testing.assert_allclose(student.dense.kernel, twin.dense.kernel, rtol=1e-4)

    def test_a_student_learns_the_function_and_the_teacher_stays(self, images):
        teacher, student = small(0), small(1)
        teacher.layers[-1].kernel.assign(20 * teacher.layers[-1].kernel)
        before = teacher.get_weights()
        history = distill.match(teacher, student, images, **HOW | {"steps": 150, "learning_rate": 0.01})
        assert np.mean(history.loss[-10:]) < np.mean(history.loss[:10]) / 3
        assert all(map(np.array_equal, before, teacher.get_weights()))
        assert history.trained == sum(int(np.prod(v.shape)) for v in student.trainable_variables)

    def test_datasets_and_pairs_are_pictures_too(self, images):
        losses = []
        for given in (
            images,
            tf.data.Dataset.from_tensor_slices(images),
            tf.data.Dataset.from_tensor_slices((images, np.array([b"label"] * 24))),
        ):
            losses.append(distill.match(small(0), small(1), given, **HOW, random_crop=False, crop=36).loss)
        np.testing.assert_allclose(losses[1], losses[0], rtol=1e-5)
        np.testing.assert_allclose(losses[2], losses[0], rtol=1e-5)

    def test_batches_in_parts(self, images):
        losses = []
        for parts in (1, 3):
            keras.utils.set_random_seed(0)
            losses.append(distill.match(Echo(), Watching(), images, **HOW, accumulate=parts).loss)
        np.testing.assert_allclose(losses[1], losses[0], rtol=1e-4)

    def test_accuracy_is_followed(self, images):
        teacher = small(0)
        labels = np.argmax(teacher(images), -1)
        student = small(1)
        history = distill.match(
            teacher, student, images, **HOW, validation=(images, labels), validate_every=3
        )
        assert history.validated == [3, 6]
        assert history.validation_accuracy[-1] == np.mean(np.argmax(student(images), -1) == labels)

    @pytest.mark.slow
    def test_a_bit_teaches_a_bit(self, small_npz, images):
        teacher, student = bitlib.load(small_npz), bitlib.load(small_npz, head=11)
        before = teacher.get_weights()
        history = distill.match(teacher, student, images, **HOW)
        assert all(map(np.array_equal, before, teacher.get_weights()))
        assert history.loss[-1] < history.loss[0]


class Stop(Exception):
    pass


class TestResume:
    @pytest.mark.slow
    def test_to_the_bit(self, images, tmp_path, monkeypatch):
        """With dropout and batch normalisation, whose states are saved too."""
        teacher = small(0)
        unbroken, stopped, resumed = small(1), small(1), small(2)
        whole = distill.match(teacher, unbroken, images, **HOW)
        plain = loop.train_step

        def broken(*arguments, **named):
            step, calls = plain(*arguments, **named), []

            def run(*batch):
                calls.append(0)
                if len(calls) == 5:
                    raise Stop
                return step(*batch)

            return run

        monkeypatch.setattr(loop, "train_step", broken)
        with pytest.raises(Stop):
            distill.match(teacher, stopped, images, **HOW, checkpoints=tmp_path, save_every=2)
        monkeypatch.setattr(loop, "train_step", plain)
        history = distill.match(teacher, resumed, images, **HOW, checkpoints=tmp_path)
        assert history == whole
        assert all(map(np.array_equal, unbroken.get_weights(), resumed.get_weights()))
        assert [path.name for path in tmp_path.iterdir()] == [finetune.STATE]

    def test_the_rate_is_set_at_each_step_and_not_saved(self, images, tmp_path):
        distill.match(small(0), small(1), images, **HOW, checkpoints=tmp_path)
        saved = np.load(tmp_path / finetune.STATE)
        momenta = [saved[name] for name in saved if name.startswith("optimizer/")]
        assert len(momenta) == 1 + 2 * len(small(1).trainable_variables)  # the step, and two of each
        assert [array for array in momenta if array.ndim == 0] == [6]

    def test_another_matching_is_refused(self, images, tmp_path):
        distill.match(small(0), small(1), images, **HOW, checkpoints=tmp_path)
        with pytest.raises(ValueError, match=r"^checkpoints: .*temperature 1.0, expected 2.0"):
            distill.match(small(0), small(1), images, **HOW, checkpoints=tmp_path, temperature=2.0)

    def test_another_student_is_refused(self, images, tmp_path):
        distill.match(small(0), small(1), images, **HOW, checkpoints=tmp_path)
        other = keras.Sequential([keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(CLASSES)])
        with pytest.raises(ValueError, match=r"^checkpoints: .*begin anew"):
            distill.match(small(0), other, images, **HOW, checkpoints=tmp_path)


class TestRefusals:
    def test_other_classes(self, images):
        with pytest.raises(ValueError, match=r"^student: gives outputs of shape \(1, 4\).*\(1, 5\)"):
            distill.match(small(0), small(1, 4), images, **HOW)

    def test_probabilities_are_told(self, images):
        teacher = keras.Sequential([small(1), keras.layers.Softmax()])
        with pytest.warns(UserWarning, match="^teacher: its outputs sum to 1; expected logits, not prob"):
            distill.match(teacher, small(2), images, 1, verbose=0, batch_size=4)

    def test_another_teacher_is_told(self, images, tmp_path):
        for teacher in (small(1), small(3)):
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                distill.match(teacher, small(2), images, 1, verbose=0, batch_size=4, checkpoints=tmp_path)
        assert any("a training with other teacher's weights" in str(each.message) for each in caught)

    def test_no_logits(self, images):
        maps = keras.Sequential([keras.layers.Conv2D(5, 1)])
        with pytest.raises(ValueError, match=r"expected logits \[N, classes\]"):
            distill.match(maps, maps, images, **HOW)

    def test_a_student_that_does_not_train(self, images):
        student = small(1)
        student.trainable = False
        with pytest.raises(ValueError, match="^student: has no weights to train"):
            distill.match(small(0), student, images, **HOW)

    def test_a_student_whose_weights_stay(self, images, monkeypatch):
        monkeypatch.setattr(keras.optimizers.AdamW, "update_step", lambda *args: None)
        with pytest.raises(RuntimeError, match=r"^student: its backbone does not train"):
            distill.match(small(0), small(1), images, **HOW | {"weight_decay": 0})

    def test_a_teacher_that_would_train_along(self, images):
        student = small(1)
        with pytest.raises(ValueError, match=r"^teacher: shares \d+ variables with the student"):
            distill.match(student, student, images, **HOW)
        around = keras.Sequential([student, keras.layers.Dense(CLASSES)])
        with pytest.raises(ValueError, match=r"^teacher: shares \d+ variables with the student"):
            distill.match(around, student, images, **HOW)

    def test_other_kinds(self, images):
        with pytest.raises(TypeError, match="^teacher: expected a Keras model, received function"):
            distill.match(lambda pictures: pictures, small(1), images, **HOW)
        half = bitlib.model.BiT((1, 1, 1, 1), 0.5, CLASSES, dtype="mixed_float16")
        with pytest.raises(ValueError, match="^student: computes in float16"):
            distill.match(small(0), half, images, **HOW)

    @pytest.mark.parametrize(
        "given", [[], np.zeros((0, 36, 36, 3), "float32"), np.zeros((36, 36, 3), "float32")]
    )
    def test_no_pictures(self, given):
        with pytest.raises(ValueError, match=r"^images: "):
            distill.match(small(0), small(1), given, **HOW)
        with pytest.raises(ValueError, match=r"^(images|examples): "):
            distill.match(small(0), small(1), tf.data.Dataset.from_tensor_slices(np.float32(given)), **HOW)

    def test_integers_are_no_pictures(self, images):
        with pytest.raises(ValueError, match=r"^images: "):
            distill.match(small(0), small(1), (images * 127).astype("int8"), **HOW)


REPLICAS = """
import keras
import numpy as np
import tensorflow as tf
from bitlib import distill
(cpu,) = tf.config.list_physical_devices("CPU")
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
images = np.random.default_rng(0).uniform(-1, 1, (24, 36, 36, 3)).astype("float32")
def network(seed):
    keras.utils.set_random_seed(seed)
    layers = [keras.Input((None, None, 3)), keras.layers.Conv2D(8, 3, 2, activation="relu")]
    return keras.Sequential([*layers, keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(5)])
def matched():
    teacher, student = network(0), network(1)
    before = student.get_weights()
    history = distill.match(teacher, student, images, 5, batch_size=8, learning_rate=0.1, verbose=0)
    return history.loss, student.get_weights(), before
loss, weights, before = matched()
with tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]).scope():
    shared_loss, shared, _ = matched()
np.testing.assert_allclose(shared_loss, loss, rtol=1e-4)
for ours, one, start in zip(shared, weights, before, strict=True):
    assert np.abs(one - start).max() > 0.01
    np.testing.assert_allclose(ours, one, atol=1e-3 * np.abs(one - start).max())
"""


@pytest.mark.slow
def test_two_replicas_give_what_one_gives():
    command = [sys.executable, "-c", REPLICAS]
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
