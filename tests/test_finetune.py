"""Fine-tuning: it learns, it resumes, it is the same however it is split, and it says when it fails."""

import contextlib
import dataclasses
import json
import os
import socket
import subprocess
import sys
import warnings
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score
from sklearn.multiclass import OneVsRestClassifier

import bitlib
from bitlib import datasets, features, finetune, hyperrule, images
from bitlib.model import BiT
from bitlib.training import augment, loop
from bitlib.training.devices import Devices
from tests.conftest import PEAK, needs_proc

ROOT = Path(__file__).parent.parent


def a_plan(**changes):
    settings = {
        "num_examples": 24, "image_size": 40, "batch_size": 8, "steps": 6, "base_lr": 0.3,
        "resize": 40, "crop": 32, "variant": "paper",
    }  # fmt: skip
    return hyperrule.plan(**(settings | changes))


@pytest.fixture
def examples():
    rng = np.random.default_rng(0)
    return rng.uniform(-1, 1, (24, 40, 40, 3)).astype("float32"), np.arange(24) % 3


@pytest.fixture
def model(small_npz):
    return bitlib.load(small_npz, head=3)


def weights(model):
    return {name: variable.numpy() for name, variable in model.arrays.items()}


def assert_same(one, other, atol=0.0):
    for name, array in one.items():
        np.testing.assert_allclose(array, other[name], rtol=0, atol=atol, err_msg=name)


def largest_change(one, other):
    return max(np.abs(one[name] - other[name]).max() for name in one)


class TestRule:
    @pytest.mark.slow
    def test_updates_are_those_of_momentum_by_the_plan(self, model, examples):
        """Against a plain loop in NumPy: v = 0.9 v - rate · gradient; w = w + v."""
        plan = a_plan(steps=3, mixup_alpha=0.2)
        twin = BiT(model.units, model.width, 3)
        twin.set_weights(model.get_weights())
        velocity = [np.zeros(v.shape, np.float32) for v in twin.trainable_variables]
        losses = []
        for step, (batch, labels) in enumerate(augment.training_batches(examples, plan, 3, seed=5)):
            with tf.GradientTape() as tape:
                logits = twin(batch)
                loss = tf.reduce_mean(-tf.reduce_sum(labels * tf.nn.log_softmax(logits), axis=-1))
            losses.append(float(loss))
            gradients = tape.gradient(loss, [v.value for v in twin.trainable_variables])
            for i, (variable, gradient) in enumerate(zip(twin.trainable_variables, gradients, strict=True)):
                velocity[i] = 0.9 * velocity[i] - plan.learning_rate(step) * gradient.numpy()
                variable.assign_add(velocity[i])
        history = finetune.fit(model, examples, plan, seed=5, verbose=0)
        np.testing.assert_allclose(history.loss, losses, rtol=1e-4)
        np.testing.assert_allclose(history.learning_rate, [plan.learning_rate(s) for s in range(3)])
        assert_same(weights(twin), weights(model), atol=1e-4)

    @pytest.mark.slow
    def test_first_loss_is_that_of_a_head_of_zeros(self, model, examples):
        history = finetune.fit(model, examples, a_plan(steps=1), verbose=0)
        np.testing.assert_allclose(history.loss, [np.log(3)], rtol=1e-6)

    @pytest.mark.slow
    def test_all_weights_are_trained(self, model, examples):
        before = weights(model)
        history = finetune.fit(model, examples, a_plan(), verbose=0)
        after = weights(model)
        assert [name for name in before if np.array_equal(before[name], after[name])] == []
        assert (history.trained, history.frozen) == (model.count_params(), 0)

    @pytest.mark.slow
    def test_arrays_and_datasets_give_the_same(self, small_npz, examples):
        plan = a_plan(steps=2, random_crop=False)
        tuned = []
        for train in (examples, tf.data.Dataset.from_tensor_slices(examples)):
            model = bitlib.load(small_npz, head=3)
            tuned.append((finetune.fit(model, train, plan, validation=train, verbose=0), weights(model)))
        (one, first), (other, second) = tuned
        assert one == other
        assert_same(first, second)


class TestVectors:
    """Labels that are vectors. Where several classes are true, each has a sigmoid of its own."""

    @pytest.fixture
    def several(self, examples):
        return examples[0], np.random.default_rng(1).integers(0, 2, (24, 3)).astype("float32")

    @pytest.mark.slow
    def test_the_loss_is_a_sigmoid_for_each_class(self, model, several):
        history = finetune.fit(model, several, a_plan(steps=3), several, verbose=0)
        np.testing.assert_allclose(history.loss[0], 3 * np.log(2), rtol=1e-6)
        assert model.card.activation == "sigmoid"
        logits = finetune.predict(model, several[0], a_plan())
        probability = 1 / (1 + np.exp(-logits.astype(float)))
        truth = several[1].astype(bool)
        loss = -np.log(np.where(truth, probability, 1 - probability)).sum(axis=1).mean()
        score, found = finetune.evaluate(model, several, a_plan())
        assert found == pytest.approx(loss, rel=1e-5)
        assert score == pytest.approx(average_precision_score(truth, logits))
        assert history.validation_accuracy == [pytest.approx(score)]
        scores = finetune.multi_label_scores(several[1], logits)
        assert scores == pytest.approx(
            {"average_precision": score, "accuracy": ((logits > 0) == truth).mean()}
        )

    @pytest.mark.slow
    def test_one_hot_labels_are_learnt_as_their_numbers_are(self, small_npz, examples):
        images, labels = examples
        results = []
        for train in (
            labels,
            np.eye(3)[labels],
            tf.data.Dataset.from_tensor_slices((images, np.eye(3)[labels])),
        ):
            model = bitlib.load(small_npz, head=3)
            train = train if isinstance(train, tf.data.Dataset) else (images, train)
            history = finetune.fit(model, train, a_plan(steps=2, mixup_alpha=0.2), train, verbose=0)
            results.append((history.loss, history.validation_accuracy, history.validation_loss))
            assert model.card.activation == "softmax"
        for found in results[1:]:
            for values, expected in zip(found, results[0], strict=True):
                np.testing.assert_allclose(values, expected, rtol=1e-5)

    @pytest.mark.slow
    def test_one_hot_labels_by_sigmoids_if_wanted(self, model, examples):
        one_hot = examples[0], np.eye(3)[examples[1]]
        history = finetune.fit(model, one_hot, a_plan(steps=1), verbose=0, multi_label=True)
        np.testing.assert_allclose(history.loss[0], 3 * np.log(2), rtol=1e-6)
        assert model.card.activation == "sigmoid"
        score, loss = finetune.evaluate(model, one_hot, a_plan())
        assert (score, loss) == finetune.evaluate(model, one_hot, a_plan(), multi_label=True)
        of_one = finetune.evaluate(model, one_hot, a_plan(), multi_label=False)
        assert loss != of_one[1]
        assert of_one == finetune.evaluate(model, examples, a_plan())

    def test_a_model_that_knows_nothing_scores_no_more_than_guessing(self, model, several):
        scores = finetune.multi_label_scores(several[1], np.zeros((24, 3)))
        assert scores["average_precision"] == pytest.approx(several[1].mean())
        assert np.isnan(
            finetune.multi_label_scores(several[1], np.full((24, 3), np.nan))["average_precision"]
        )

    def test_several_classes_where_one_is_expected(self, model, examples, several):
        with pytest.raises(ValueError, match=r"^labels: expected one class .*multi_label=True"):
            finetune.fit(model, several, a_plan(), multi_label=False)
        with pytest.raises(ValueError, match=r"^labels: expected a vector .*multi_label=True"):
            finetune.fit(model, examples, a_plan(), multi_label=True)
        late = np.eye(3)[examples[1]]
        late[20] = 1
        dataset = tf.data.Dataset.from_tensor_slices((examples[0], late))
        with pytest.raises(ValueError, match=r"^labels: .* sums to 3 in example 20; .*multi_label=True"):
            finetune.fit(model, dataset, a_plan(), verbose=0)
        with pytest.raises(ValueError, match=r"^validation: labels: expected one class .*multi_label=True"):
            finetune.fit(model, examples, a_plan(), several)

    @pytest.mark.slow
    def test_arrays_and_datasets_give_the_same(self, small_npz, several):
        losses = [
            finetune.fit(
                bitlib.load(small_npz, head=3), train, a_plan(steps=2, mixup_alpha=0.2), verbose=0
            ).loss
            for train in (several, tf.data.Dataset.from_tensor_slices(several))
        ]
        np.testing.assert_allclose(*losses, rtol=1e-5)

    def test_refusals(self, model, several):
        images, labels = several
        with pytest.raises(
            ValueError, match=r"^labels: .* a vector of 3 numbers, as the model has 3 classes"
        ):
            finetune.fit(model, (images, labels[:, :2]), a_plan())
        with pytest.raises(ValueError, match=r"^labels: expected vectors of numbers in \[0, 1\]"):
            finetune.fit(model, (images, 2 * labels), a_plan())

    @pytest.mark.slow
    def test_two_digits_in_a_picture(self):
        """Which digits are in it? Beside scikit-learn's one-versus-rest on the same model's features."""
        scans, digits, _ = bitlib.datasets.tasks.mnist()
        rng = np.random.default_rng(0)
        pairs = rng.permutation(5000)[:1200].reshape(600, 2)
        pictures = np.pad(
            np.concatenate([scans[pairs[:, 0]], scans[pairs[:, 1]]], 2), ((0, 0), (14, 14), (0, 0))
        )
        truth = np.zeros((600, 10), "float32")
        truth[np.arange(600)[:, None], digits[pairs]] = 1
        batch = images.batch(pictures, bitlib.zoo.card(bitlib.zoo.BUNDLED))
        vectors = features.extract(bitlib.load(bitlib.zoo.BUNDLED, head=None), batch)
        probe = OneVsRestClassifier(LogisticRegression(max_iter=1000)).fit(vectors[:400], truth[:400])
        plan = hyperrule.plan(
            400, 64, **finetune.SMALL_MODEL | {"crop": 64, "resize": 64, "random_flip": False, "steps": 80}
        )
        model = bitlib.load(bitlib.zoo.BUNDLED, head=10)
        history = finetune.fit(model, (batch[:400], truth[:400]), plan, (batch[400:], truth[400:]), verbose=0)
        by_probe = average_precision_score(truth[400:], probe.decision_function(vectors[400:]))
        assert history.validation_accuracy[-1] >= by_probe
        logits = finetune.predict(model, batch[400:], plan)
        accuracy = finetune.multi_label_scores(truth[400:], logits)["accuracy"]
        assert accuracy >= (probe.predict(vectors[400:]) == truth[400:]).mean() - 0.005  # 10 of 2000 labels


@needs_proc
@pytest.mark.slow
@pytest.mark.parametrize(("count", "side", "resize", "share"), [(20_000, 72, 64, 3), (50_000, 224, 96, 1)])
def test_memory_does_not_grow_with_the_data_set(tmp_path, small_npz, count, side, resize, share):
    """50 000 pictures of 224 pixels are 30 GB; what is held of them is `CACHED_BYTES`, and some batches."""
    script = tmp_path / "train.py"
    script.write_text(
        PEAK
        + """
import sys
import tensorflow as tf
import bitlib
from bitlib.training import augment
from bitlib import finetune, hyperrule

def picture(index):
    return tf.random.stateless_uniform((side, side, 3), (index, 0), -1, 1), index % 3

(count, side, resize), path = map(int, sys.argv[1:4]), sys.argv[4]
examples = tf.data.Dataset.range(count).map(picture)
plan = hyperrule.plan(count, side, batch_size=16, steps=4, resize=resize, crop=32)
model = bitlib.load(path, head=3)
before = peak()
history = finetune.fit(model, examples, plan, verbose=0)
assert len(history.loss) == 4
print(peak() - before)
"""
    )
    command = [sys.executable, script, *map(str, (count, side, resize)), small_npz]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "3"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert float(done.stdout) < share * augment.CACHED_BYTES / 2**20 + 600


class TestFreeze:
    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("freeze", "first"),
        [("root", "block1"), ("block2", "block3"), ("block4", "group_norm"), ("backbone", "head")],
    )
    def test_up_to_a_stage(self, model, examples, freeze, first):
        order = ["root_block", "block1", "block2", "block3", "block4", "group_norm", "head"]
        before = weights(model)
        history = finetune.fit(model, examples, a_plan(), verbose=0, freeze=freeze)
        after = weights(model)
        for name in before:
            kept = order.index(name.split("/")[1]) < order.index(first)
            assert np.array_equal(before[name], after[name]) == kept, name
        assert history.trained + history.frozen == model.count_params()
        trained = {
            name: a for name, a in after.items() if order.index(name.split("/")[1]) >= order.index(first)
        }
        assert history.trained == sum(array.size for array in trained.values())

    def test_unknown_stage(self, model, examples):
        with pytest.raises(ValueError, match="^freeze: expected None or one of root, block1.*received 'all'"):
            finetune.fit(model, examples, a_plan(), freeze="all")

    @pytest.mark.slow
    def test_a_model_marked_otherwise_is_refused(self, model, examples):
        model.blocks[1][0].trainable = False
        with pytest.raises(
            ValueError, match=r"^model: \d+ of the \d+ arrays .*block2/unit01.*trainable = True"
        ):
            finetune.fit(model, examples, a_plan())
        finetune.fit(model, examples, a_plan(steps=1), freeze="block2", verbose=0)


class TestSplitting:
    @pytest.mark.slow
    @pytest.mark.parametrize(
        "how", [{"accumulate": 2}, {"accumulate": 3, "jit_compile": True}, {"accumulate": 8}]
    )
    def test_accumulated_batches_are_the_whole_batch(self, small_npz, examples, how):
        plan = a_plan(mixup_alpha=0.2, base_lr=0.1)
        one, other = (bitlib.load(small_npz, head=3) for _ in range(2))
        before = weights(one)
        plain = finetune.fit(one, examples, plan, verbose=0)
        parts = finetune.fit(other, examples, plan, verbose=0, **how)
        np.testing.assert_allclose(parts.loss, plain.loss, rtol=1e-4)
        difference = largest_change(weights(one), weights(other))
        assert difference < 2e-3 * largest_change(before, weights(one))

    @pytest.mark.parametrize("value", [0, 9, 1.5])
    def test_accumulate_out_of_range(self, model, examples, value):
        with pytest.raises(ValueError, match="^accumulate: expected 1 to the batch size, 8"):
            finetune.fit(model, examples, a_plan(), accumulate=value)

    @pytest.mark.slow
    def test_mixed_precision(self, small_npz, examples):
        losses = {}
        for dtype in ("float32", "mixed_bfloat16", "mixed_float16"):
            model = bitlib.load(small_npz, head=3, dtype=dtype)
            losses[dtype] = finetune.fit(model, examples, a_plan(base_lr=0.1), verbose=0).loss
            assert {variable.dtype for variable in model.variables} == {"float32"}
        np.testing.assert_allclose(losses["mixed_bfloat16"], losses["float32"], rtol=0.1)
        np.testing.assert_allclose(losses["mixed_float16"], losses["float32"], rtol=0.1)


RUN = """
import os, sys
import numpy as np
import bitlib
from bitlib import finetune
from bitlib.training import loop
from tests.test_finetune import a_plan
archive, folder, out = sys.argv[1:4]
kill_after = int(sys.argv[4]) if len(sys.argv) > 4 else None
rng = np.random.default_rng(0)
examples = rng.uniform(-1, 1, (24, 40, 40, 3)).astype("float32"), np.arange(24) % 3
if kill_after is not None:
    plain, steps = loop.train_step, 0
    def counted(*args):
        step = plain(*args)
        def run(*batch):
            global steps
            if steps == kill_after:
                os.kill(os.getpid(), 9)
            steps += 1
            return step(*batch)
        return run
    loop.train_step = counted
model = bitlib.load(archive, head=3)
plan = a_plan(steps=9, mixup_alpha=0.2)
history = finetune.fit(model, examples, plan, examples, seed=3, verbose=0, checkpoints=folder, save_every=2)
assert len(history.loss) == 9 and history.validated == [9]
bitlib.checkpoint.save(model, out)
"""


class TestResume:
    def run(self, *arguments):
        return subprocess.run(
            [sys.executable, "-c", RUN, *map(str, arguments)],
            cwd=ROOT, env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}, capture_output=True, timeout=300,
        )  # fmt: skip

    @pytest.mark.slow
    def test_killed_anywhere_it_ends_with_the_same_weights(self, small_npz, tmp_path):
        """Killed with -9 before its third step, and again two steps after it went on."""
        unbroken, broken = tmp_path / "unbroken.npz", tmp_path / "broken.npz"
        assert self.run(small_npz, tmp_path / "a", unbroken).returncode == 0
        assert self.run(small_npz, tmp_path / "b", broken, 3).returncode == -9
        assert not broken.exists()
        assert self.run(small_npz, tmp_path / "b", broken, 3).returncode == -9
        assert self.run(small_npz, tmp_path / "b", broken).returncode == 0
        assert unbroken.read_bytes() == broken.read_bytes()
        assert [path.name for path in (tmp_path / "b").iterdir()] == [finetune.STATE]

    @pytest.mark.slow
    def test_a_finished_training_is_not_run_again(self, small_npz, examples, tmp_path):
        results = []
        for _ in range(2):
            model = bitlib.load(small_npz, head=3)
            history = finetune.fit(model, examples, a_plan(), examples, verbose=0, checkpoints=tmp_path)
            results.append((history, weights(model)))
        assert results[0][0] == results[1][0]
        assert_same(results[0][1], results[1][1])

    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("changes", "arguments", "message"),
        [
            ({"steps": 7}, {}, "a training with steps 6, expected 7"),
            ({"base_lr": 0.1}, {}, "base_lr"),
            ({}, {"seed": 1}, "seed 0, expected 1"),
            ({}, {"freeze": "root"}, "freeze None, expected 'root'"),
        ],
    )
    def test_another_training_is_refused(self, small_npz, examples, tmp_path, changes, arguments, message):
        model = bitlib.load(small_npz, head=3)
        finetune.fit(model, examples, a_plan(), verbose=0, checkpoints=tmp_path)
        with pytest.raises(ValueError, match=f"^checkpoints: .*{message}"):
            finetune.fit(model, examples, a_plan(**changes), verbose=0, checkpoints=tmp_path, **arguments)

    @pytest.mark.slow
    def test_other_examples_or_weights_are_told(self, small_npz, examples, tmp_path):
        images, labels = examples
        model = bitlib.load(small_npz, head=3)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            for _ in range(2):
                finetune.fit(model, examples, a_plan(), verbose=0, checkpoints=tmp_path)
        for other in ((images, (labels + 1) % 3), (np.concatenate([images[:-1], -images[-1:]]), labels)):
            with pytest.warns(UserWarning, match="^checkpoints: .* a training with other examples, which go"):
                finetune.fit(model, other, a_plan(), verbose=0, checkpoints=tmp_path)
        model.source = dataclasses.replace(model.source, fingerprint=1)
        with pytest.warns(UserWarning, match="^checkpoints: .* a training with other weights, which goes on"):
            finetune.fit(model, examples, a_plan(), verbose=0, checkpoints=tmp_path)

    def test_no_folder_is_refused(self, model, examples, tmp_path):
        (tmp_path / "file").write_text("x")
        for folder, received in (
            (tmp_path / "file", "received the file"),
            ("", "received ''"),
            (3, "received 3"),
        ):
            with pytest.raises(ValueError, match=f"^checkpoints: expected a .*{received}"):
                finetune.fit(model, examples, a_plan(), checkpoints=folder)

    def test_a_broken_file_is_refused(self, model, examples, tmp_path):
        (tmp_path / finetune.STATE).write_bytes(b"PK nothing")
        with pytest.raises(ValueError, match="^checkpoints: .*cannot be read .*delete it to begin anew"):
            finetune.fit(model, examples, a_plan(), checkpoints=tmp_path)

    @pytest.mark.slow
    @pytest.mark.parametrize("name", ["optimizer/3", "resnet/head/conv2d/bias"])
    def test_a_file_of_other_shapes_is_refused_and_named(self, small_npz, examples, tmp_path, name):
        model = bitlib.load(small_npz, head=3)
        finetune.fit(model, examples, a_plan(), verbose=0, checkpoints=tmp_path)
        with np.load(tmp_path / finetune.STATE) as stored:
            arrays = dict(stored)
        np.savez(tmp_path / finetune.STATE, **arrays | {name: np.zeros((7, 7), "float32")})
        before = model.head.convolution.bias.numpy()
        with pytest.raises(ValueError, match=r"^checkpoints: .*training\.npz.*expected shape.*begin anew"):
            finetune.fit(model, examples, a_plan(), verbose=0, checkpoints=tmp_path)
        np.testing.assert_array_equal(model.head.convolution.bias, before)


class TestFailures:
    @pytest.mark.slow
    def test_divergence_stops_with_the_last_good_weights(self, small_npz, examples, tmp_path):
        model = bitlib.load(small_npz, head=3)
        plain = loop.train_step

        def poisoned(*arguments):
            step, calls = plain(*arguments), []

            def run(*batch):
                calls.append(0)
                loss = step(*batch)
                if len(calls) == 5:
                    model.variables[3].assign(model.variables[3] * np.nan)
                return loss

            return run

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(loop, "train_step", poisoned)
            with pytest.raises(
                FloatingPointError, match=r"^loss: nan at step 5, .*weights after step 4 again"
            ):
                finetune.fit(model, examples, a_plan(), verbose=0, checkpoints=tmp_path, save_every=1)
        good = bitlib.load(small_npz, head=3)
        history = finetune.fit(good, examples, a_plan(), verbose=0, checkpoints=tmp_path)
        assert len(history.loss) == 6
        unbroken = bitlib.load(small_npz, head=3)
        finetune.fit(unbroken, examples, a_plan(), verbose=0)
        assert_same(weights(good), weights(unbroken))

    @pytest.mark.slow
    def test_divergence_without_a_folder(self, model, examples):
        model.head.convolution.bias.assign([np.nan, 0, 0])
        with pytest.raises(FloatingPointError, match=r"^loss: nan at step 0.*name a folder in checkpoints"):
            finetune.fit(model, examples, a_plan(), verbose=0)

    @pytest.mark.slow
    def test_a_model_that_does_not_train_is_found_out(self, model, examples, monkeypatch):
        """As a raw hub object in a Keras model: gradients arrive, weights stay."""
        monkeypatch.setattr(finetune.MomentumSGD, "update_step", lambda *args: None)
        with pytest.raises(
            RuntimeError, match=r"^model: its head does not train: 2 arrays are what they were before 1 steps"
        ):
            finetune.fit(model, examples, a_plan(), verbose=0)

    @pytest.mark.slow
    def test_a_backbone_that_does_not_train_is_found_out(self, model, examples, monkeypatch):
        plain = finetune.MomentumSGD.update_step

        def heads_only(self, gradient, variable, rate):
            if variable.shape[-1] == 3:
                plain(self, gradient, variable, rate)

        monkeypatch.setattr(finetune.MomentumSGD, "update_step", heads_only)
        with pytest.raises(RuntimeError, match="^model: its backbone does not train"):
            finetune.fit(model, examples, a_plan(), verbose=0)

    @pytest.mark.slow
    def test_the_guard_waits_for_the_warm_up(self, model, examples):
        finetune.fit(model, examples, a_plan(variant="official", steps=25), verbose=0)

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"plan": a_plan(crop=31)}, "^plan: crop is 31 pixels"),
            ({"save_every": 0}, "^save_every: expected None or a positive number"),
            ({"validate_every": 1.5}, "^validate_every"),
            ({"train": (np.zeros((2, 40, 40, 3), np.float32), np.array([0, 3]))}, "labels: expected 0 to 2"),
        ],
    )
    def test_refusals(self, model, examples, arguments, message):
        with pytest.raises(ValueError, match=message):
            finetune.fit(**({"model": model, "train": examples, "plan": a_plan()} | arguments))

    def test_models_without_a_head_or_of_another_kind(self, small_npz, examples):
        with pytest.raises(ValueError, match="^model: has no head"):
            finetune.fit(bitlib.load(small_npz, head=None), examples, a_plan())
        with pytest.raises(ValueError, match="^model: has no head"):
            finetune.evaluate(bitlib.load(small_npz, head=None), examples, a_plan())
        with pytest.raises(TypeError, match="^model: expected a bitlib.model.BiT, received Sequential"):
            finetune.fit(keras.Sequential(), examples, a_plan())
        with pytest.raises(TypeError, match="^plan: expected what bitlib.hyperrule.plan returns"):
            finetune.fit(bitlib.load(small_npz, head=3), examples, {"steps": 3})


class TestEvaluation:
    @pytest.mark.slow
    def test_every_example_counts_once(self, model, examples):
        model.head.convolution.kernel.assign(
            np.random.default_rng(1).normal(size=model.head.convolution.kernel.shape)
        )
        plan = a_plan()
        logits = finetune.predict(model, examples[0], plan, batch_size=7)
        expected = model(augment.resized(examples[0], plan.crop)).numpy()
        np.testing.assert_allclose(logits, expected, atol=1e-4 * np.abs(expected).max())
        accuracy, loss = finetune.evaluate(model, examples, plan, batch_size=7)
        assert accuracy == np.mean(expected.argmax(-1) == examples[1])
        probabilities = np.exp(expected) / np.exp(expected).sum(-1, keepdims=True)
        np.testing.assert_allclose(loss, -np.log(probabilities[np.arange(24), examples[1]]).mean(), rtol=1e-3)

    @pytest.mark.slow
    def test_validation_is_recorded(self, model, examples):
        history = finetune.fit(model, examples, a_plan(), examples, verbose=0, validate_every=2)
        assert history.validated == [2, 4, 6]
        accuracy, loss = finetune.evaluate(model, examples, a_plan())
        assert history.validation_accuracy[-1] == accuracy
        np.testing.assert_allclose(history.validation_loss[-1], loss, rtol=1e-6)

    @pytest.mark.slow
    def test_progress_and_tensorboard(self, model, examples, tmp_path, capsys):
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        history = finetune.fit(model, examples, a_plan(), examples, verbose=1, tensorboard=tmp_path)
        assert "6/6" in capsys.readouterr().err
        events = EventAccumulator(str(tmp_path), size_guidance={"tensors": 0}).Reload()
        assert set(events.Tags()["tensors"]) == {
            "loss", "learning_rate", "validation_accuracy", "validation_loss",
        }  # fmt: skip
        logged = [float(tf.make_ndarray(event.tensor_proto)) for event in events.Tensors("loss")]
        np.testing.assert_allclose(logged, history.loss, rtol=1e-6)


WORKER = """
import json, os, sys
import numpy as np
import tensorflow as tf
import bitlib
from bitlib import finetune
from bitlib.training import loop
from tests.test_finetune import a_plan, part_of
archive, folder, dies_after, share = sys.argv[1:5]
index = json.loads(os.environ["TF_CONFIG"])["task"]["index"]
write = loop.TensorBoard.write
def write_or_die(self, step, **scalars):
    if (index, step) == (1, int(dies_after)):
        os._exit(9)
    write(self, step, **scalars)
loop.TensorBoard.write = write_or_die
strategy = tf.distribute.MultiWorkerMirroredStrategy()
rng = np.random.default_rng(0)
examples = rng.uniform(-1, 1, (24, 40, 40, 3)).astype("float32"), np.arange(24) % 3
with strategy.scope():
    model = bitlib.load(archive, head=3)
plan = a_plan(mixup_alpha=0.2, base_lr=0.1)
train = part_of(examples) if share else examples
history = finetune.fit(model, train, plan, examples, verbose=0, checkpoints=folder + "/state")
np.savez(f"{folder}/worker{index}.npz", loss=history.loss, **{v.path: v.numpy() for v in model.variables})
"""

REPLICAS = """
import sys
import numpy as np
import tensorflow as tf
import bitlib
from bitlib import finetune
from tests.test_finetune import a_plan
archive, folder = sys.argv[1:3]
(cpu,) = tf.config.list_physical_devices("CPU")
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
rng = np.random.default_rng(0)
examples = rng.uniform(-1, 1, (24, 40, 40, 3)).astype("float32"), np.arange(24) % 3
with strategy.scope():
    model = bitlib.load(archive, head=3)
plan = a_plan(mixup_alpha=0.2, base_lr=0.1)
history = finetune.fit(model, examples, plan, examples, verbose=0, jit_compile=True)
np.savez(f"{folder}/worker0.npz", loss=history.loss, **{v.path: v.numpy() for v in model.variables})
try:
    finetune.fit(model, examples, a_plan(batch_size=9))
except ValueError as error:
    assert "cannot be shared equally by the 2 replicas" in str(error)
with strategy.scope():
    pass
outside = bitlib.load(archive, head=3)
try:
    with strategy.scope():
        finetune.fit(outside, examples, plan)
except ValueError as error:
    assert str(error).startswith("model: made outside the strategy's scope")
else:
    raise AssertionError
"""


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def part_of(examples):
    """Every n-th of the examples, as pictures, for each of n machines."""

    def part(context):
        every = slice(context.input_pipeline_id, None, context.num_input_pipelines)
        pictures = np.uint8(np.round(127.5 * examples[0][every] + 127.5))
        return datasets.pipeline(pictures, examples[1][every])

    return part


def share_of(index, *arguments, shared=loop.shared):
    """The batches that one of two machines makes; arguments as of `loop.shared`."""

    class OfTwo(Devices):
        machines = 2

        def distributed(self, batches, whole):
            return batches

    OfTwo.index = index
    return shared(*arguments[:-1], OfTwo())


class TestDistribution:
    """Two replicas share each batch, MixUp across both; the result is that of one."""

    def start(self, code, *arguments, **environment):
        return subprocess.Popen(
            [sys.executable, "-c", code, *map(str, arguments)],
            cwd=ROOT, env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", **environment},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip

    def compare(self, small_npz, examples, tmp_path, workers):
        model = bitlib.load(small_npz, head=3)
        before = weights(model)
        plan = a_plan(mixup_alpha=0.2, base_lr=0.1)
        history = finetune.fit(model, examples, plan, verbose=0)
        moved = largest_change(before, weights(model))
        saved = [np.load(tmp_path / f"worker{index}.npz") for index in range(workers)]
        for worker in saved:
            np.testing.assert_allclose(worker["loss"], history.loss, rtol=1e-4)
            for variable in model.variables:
                difference = np.abs(worker[variable.path] - variable.numpy()).max()
                assert difference < 2e-3 * moved, variable.path
                np.testing.assert_array_equal(worker[variable.path], saved[0][variable.path])

    @contextlib.contextmanager
    def two_workers(self, small_npz, tmp_path, dies_after=0, share=""):
        addresses = [f"127.0.0.1:{free_port()}" for _ in range(2)]
        tasks = [{"type": "worker", "index": index} for index in range(2)]
        told = [json.dumps({"cluster": {"worker": addresses}, "task": task}) for task in tasks]
        arguments = small_npz, tmp_path, dies_after, share
        workers = [self.start(WORKER, *arguments, TF_CONFIG=config) for config in told]
        try:
            yield workers
        finally:
            for worker in workers:
                worker.kill()
                worker.communicate()

    def wait_for(self, workers):
        for worker in workers:
            said, _ = worker.communicate(timeout=400)
            assert worker.returncode == 0, said[-3000:]

    @pytest.mark.slow
    def test_two_workers_that_read_a_part_each(self, small_npz, examples, tmp_path, monkeypatch):
        with self.two_workers(small_npz, tmp_path, share="yes") as workers:
            self.wait_for(workers)

        def joined(*arguments):
            """What the two compute together, as the batches of one."""
            for shares in zip(*(share_of(index, *arguments) for index in range(2)), strict=True):
                yield tuple(map(tf.concat, zip(*shares, strict=True), (0, 0)))

        monkeypatch.setattr(loop, "shared", joined)
        self.compare(small_npz, part_of(examples), tmp_path, 2)

    @pytest.mark.slow
    def test_two_workers_of_which_one_dies_started_again(self, small_npz, examples, tmp_path):
        with self.two_workers(small_npz, tmp_path, dies_after=4) as (_, dying):
            assert dying.wait(timeout=400) == 9, dying.stdout.read()[-3000:]
        saved = json.loads(str(np.load(tmp_path / "state" / finetune.STATE)["training"]))
        assert 2 <= len(saved["history"]["loss"]) <= 4
        with self.two_workers(small_npz, tmp_path) as workers:
            self.wait_for(workers)
        self.compare(small_npz, examples, tmp_path, 2)
        assert [path.name for path in (tmp_path / "state").iterdir()] == [finetune.STATE]

    def test_a_part_is_read_by_one_machine_only_and_gone_on_with(self):
        values = np.linspace(-0.9, 0.9, 24, dtype=np.float32)
        images = np.uint8(127.5 * np.broadcast_to(values[:, None, None, None], (24, 40, 40, 3)) + 127.5)
        values = images[:, 0, 0, 0] / np.float32(127.5) - 1
        part = part_of((images / 127.5 - 1, np.arange(24)))
        plan = a_plan(mixup_alpha=0.0)
        seen = []
        for index in range(2):
            made = [batch for batch, _ in share_of(index, part, plan, 24, 0, 0, None)]
            assert {len(batch) for batch in made} == {plan.batch_size // 2}
            later = [batch for batch, _ in share_of(index, part, plan, 24, 0, 2, None)]
            np.testing.assert_array_equal(later, made[2:])
            seen.append({round(float(value), 4) for batch in made for value in batch[:, 0, 0, 0]})
        assert seen == [{round(float(value), 4) for value in values[index::2]} for index in range(2)]

    @pytest.mark.slow
    def test_two_replicas_of_one_process(self, small_npz, examples, tmp_path):
        process = self.start(REPLICAS, small_npz, tmp_path)
        told, _ = process.communicate(timeout=400)
        assert process.returncode == 0, told[-3000:]
        self.compare(small_npz, examples, tmp_path, 1)


class TestHandwriting:
    """The bundled model on the task it is for."""

    @pytest.mark.slow
    @pytest.mark.parametrize("seed", [11])
    def test_ten_digits_a_class(self, seed):
        card = bitlib.zoo.card(bitlib.zoo.BUNDLED)
        pictures, labels = datasets.digits()
        train, test = datasets.draw(labels, 10, 400, seed)
        fed = images.batch(pictures, card)
        model = bitlib.load(card.name, head=10)
        plan = hyperrule.plan(100, 64, random_flip=False, **finetune.SMALL_MODEL)
        history = finetune.fit(
            model, (fed[train], labels[train]), plan, (fed[test], labels[test]), seed, verbose=0
        )
        assert history.validation_accuracy[-1] >= 0.95
