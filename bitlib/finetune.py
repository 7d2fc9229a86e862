"""Fine-tuning by the BiT-HyperRule (arXiv 1912.11370, section 3.3)."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import keras
import numpy as np
from keras import KerasTensor as Tensor  # stands for a tensor of any backend
from numpy.typing import ArrayLike

from bitlib import ops, zoo
from bitlib.checkpoint import check_model
from bitlib.hyperrule import Plan
from bitlib.inputs import check_flag, check_whole
from bitlib.model import BiT
from bitlib.training import augment, loop
from bitlib.training.devices import forward
from bitlib.training.examples import ahead, errors_in_words, prepare, takes_context
from bitlib.training.loop import STATE as STATE
from bitlib.training.loop import History

FREEZABLE = ("root", "block1", "block2", "block3", "block4", "backbone")
"""What `freeze` takes, from the bottom to the top."""

SMALL_MODEL = {"batch_size": 64, "steps": 250, "base_lr": 0.1, "resize": 56, "crop": 48}
"""Arguments of `bitlib.hyperrule.plan` for BiT-XS on a small task; the rate was chosen on
`bitlib.datasets.tasks.counting(104)` and `angles(108)`, which no page shows."""


def fit(
    model: BiT,
    train: Any,
    plan: Plan,
    validation: Any = None,
    seed: int = 0,
    verbose: int = 1,
    *,
    multi_label: bool | None = None,
    freeze: str | None = None,
    accumulate: int = 1,
    checkpoints: str | os.PathLike | None = None,
    save_every: int | None = None,
    validate_every: int | None = None,
    tensorboard: str | os.PathLike | None = None,
    jit_compile: bool = False,
) -> History:
    """Tune a model in place: SGD with momentum, cross-entropy, everything else by the plan.

    The cross-entropy is that of a softmax; where several classes may be true of an image, it is that of a
    sigmoid for each class, summed over classes.

    The replicas of a `tf.distribute` strategy, in whose scope the model was made, share each batch; so do
    JAX's devices under `keras.distribution.DataParallel`. The same seed gives the same batches on every
    backend, however many devices there are and wherever a run was stopped.

    Args:
        model: with a head, such as `bitlib.load(name, head=10)` gives: of zeros, as the rule wants it.
        train: images float `[N, H, W, 3]` in [-1, 1] and integer labels `[N]` or vectors `[N, classes]`; or
            a `tf.data.Dataset` or another source of such pairs, as `bitlib.training.examples.prepare` takes
            them. By a function from a `tf.distribute.InputContext` to a Dataset (docs/scaling.md has one),
            each of several machines reads its part only.
        plan: of `bitlib.hyperrule.plan`.
        validation: as `train`. The history has the score of `evaluate` as `validation_accuracy`.
        seed: of the order of examples, crops, flips and MixUp.
        verbose: 1 for a progress bar.
        multi_label: whether several classes, or none, may be true of an image. None to tell by the labels, of
            a Dataset by the first 16: where every vector sums to 1, one class is true.
        freeze: `root`, `block1` … `block4` to keep all weights up to and including that stage; `backbone` to
            train the head only; None to train all.
        accumulate: parts that a replica computes its share of a batch in, to save memory; the result is that
            of the whole batch, within rounding.
        checkpoints: a folder, which several machines share. The training is saved there and, called again
            with the same arguments and the same examples in the same order, goes on from there.
        save_every: steps between two savings; None for a tenth of the training. It is saved at the end.
        validate_every: steps between two validations; None for the end only.
        tensorboard: a folder for TensorBoard to read loss, rate and validation from.
        jit_compile: on TensorFlow, compile every GroupNorm with XLA: some hundredths faster on CPUs.

    Returns:
        The history, of the whole training also where it was resumed.

    Raises:
        TypeError: `model` is not a BiT.
        ValueError: an argument is out of range or does not fit the model or what `checkpoints` holds.
        RuntimeError: the model does not train: weights that should are as they were after two steps.
        FloatingPointError: the loss is not finite. The model then holds the last weights saved, if any.
    """
    num_classes = _check_model(model, plan)
    check_steps(plan, accumulate, save_every, validate_every)
    check_flag("jit_compile", jit_compile)
    if freeze is not None and freeze not in FREEZABLE:
        raise ValueError(f"freeze: expected None or one of {', '.join(FREEZABLE)}, received {freeze!r}")
    variables = _trainable(model, freeze)
    given = prepare(train, num_classes, multi_label, "train")
    several = given.several
    validate = None
    if validation is not None:
        validate = evaluator(model, validation, plan, num_classes, multi_label=several, name="validation")

    def share(context):
        return prepare(train(context), num_classes, several, "train")

    history = loop.train(
        model,
        plan,
        share if takes_context(train) else given,
        num_classes,
        _loss_of(model, plan, several, jit_compile),
        partial(_optimizer, model, plan),
        variables,
        validate,
        seed,
        verbose,
        run={"freeze": freeze},
        accumulate=accumulate,
        checkpoints=checkpoints,
        save_every=save_every,
        validate_every=validate_every,
        tensorboard=tensorboard,
    )
    card = model.card or zoo.own_card(model.name)
    activation = "sigmoid" if several else "softmax"
    model.card = replace(card, resolution=plan.crop, short_side=None, antialias=False, activation=activation)
    model.tuned = True
    return history


def evaluate(
    model: BiT, examples: Any, plan: Plan, batch_size: int = 64, *, multi_label: bool | None = None
) -> tuple[float, float]:
    """The score in [0, 1] and the mean cross-entropy in nats, of every example once; resized to `plan.crop`.

    Where one class is true of an image, the score is the accuracy: the share of images whose largest logit is
    that of the true class. Where several may be true, it is the mean average precision.

    Args:
        model, examples, plan: as `model`, `train` and `plan` of `fit`.
        batch_size: images computed at once.
        multi_label: as of `fit`; for a model that was trained by sigmoids, None is True of vectors.

    Raises: as `fit`.
    """
    num_classes = _check_model(model, plan)
    by_sigmoids = multi_label is None and model.card and model.card.activation == "sigmoid"
    by_labels = "vectors" if by_sigmoids else multi_label
    return evaluator(model, examples, plan, num_classes, batch_size, multi_label=by_labels)()


def evaluator(
    model: keras.Model,
    examples: Any,
    plan: Plan,
    num_classes: int,
    batch_size: int = 64,
    *,
    multi_label: bool | str | None = None,
    name: str = "examples",
) -> Callable[[], tuple[float, float]]:
    """A function that returns what `evaluate` returns; for any model from images to logits."""
    check_whole("batch_size", batch_size)
    given = prepare(examples, num_classes, multi_label, name)
    compute = forward(model)

    def evaluation() -> tuple[float, float]:
        with errors_in_words(name):
            batches = ahead(augment.evaluation_batches(given, plan, num_classes, batch_size))
            found = [(compute(images), labels) for images, labels in batches]
        logits, labels = map(np.concatenate, zip(*found, strict=True))
        truth = labels if labels.ndim == 2 else np.eye(logits.shape[-1], dtype=np.float32)[labels]
        loss = float(keras.ops.mean(_cross_entropy(truth, logits, given.several)))
        if given.several:
            return multi_label_scores(truth, logits)["average_precision"], loss
        return float(np.mean(np.argmax(logits, axis=-1) == np.argmax(truth, axis=-1))), loss

    return evaluation


def predict(model: BiT, images: Any, plan: Plan, batch_size: int = 64) -> np.ndarray:
    """The logits float32 `[N, classes]` of images, as of `evaluate`, whose labels are not looked at."""
    _check_model(model, plan)
    check_whole("batch_size", batch_size)
    compute = forward(model)
    with errors_in_words("images"):
        given = prepare(images, None, name="images")
        batches = ahead(augment.evaluation_batches(given, plan, None, batch_size))
        return np.concatenate([compute(batch) for batch, _ in batches])


def _check_model(model: BiT, plan: Plan) -> int:
    """The number of classes of a model that can be trained, once that and the plan are such."""
    check_model(model)
    if model.num_classes is None:
        raise ValueError("model: has no head; load it with head=<number of classes>")
    if not isinstance(plan, Plan):
        raise TypeError(f"plan: expected what bitlib.hyperrule.plan returns, received {type(plan).__name__}")
    if plan.crop < 32:
        raise ValueError(f"plan: crop is {plan.crop} pixels, the network needs at least 32")
    return model.num_classes


def check_steps(plan: Plan, accumulate: int, save_every: int | None, validate_every: int | None) -> None:
    """Raise TypeError or ValueError for what no training takes; `fit` says what it takes."""
    for name, value in (("save_every", save_every), ("validate_every", validate_every)):
        if value is not None:
            check_whole(name, value, expected="None or a positive number of steps")
    expected = f"1 to the batch size, {plan.batch_size}"
    check_whole("accumulate", accumulate, plan.batch_size, expected=expected)


def _trainable(model: BiT, freeze: str | None) -> list:
    """The variables to train. One that its owner marked otherwise is an error, not a silent exception."""
    order = ("root_block", "block1", "block2", "block3", "block4", "group_norm", "head")
    last = -1 if freeze is None else FREEZABLE.index(freeze)
    chosen = {name: v for name, v in model.arrays.items() if order.index(name.split("/")[1]) > last}
    off = [name for name, variable in chosen.items() if not variable.trainable]
    if off:
        found = f"{len(off)} of the {len(chosen)} arrays to train are marked as not trainable, {off[0]} first"
        raise ValueError(f"model: {found}; set model.trainable = True, or say freeze=...")
    return list(chosen.values())


class MomentumSGD(keras.optimizers.SGD):
    """Keras' own; in TensorFlow its update makes one pass over memory instead of ten."""

    def update_step(self, gradient: Tensor, variable: Any, learning_rate: Tensor) -> Any:
        """velocity = momentum · velocity - rate · gradient; variable += velocity."""
        velocity = self.momentums[self._get_variable_index(variable)].value
        if not hasattr(velocity, "handle") or not hasattr(variable, "handle"):
            return super().update_step(gradient, variable, learning_rate)
        import tensorflow as tf

        return tf.raw_ops.ResourceApplyKerasMomentum(
            var=variable.handle,
            accum=velocity.handle,
            lr=tf.cast(learning_rate, variable.dtype),
            grad=tf.cast(gradient, variable.dtype),
            momentum=tf.constant(self.momentum, variable.dtype),
        )


def _optimizer(model: BiT, plan: Plan):
    sgd = MomentumSGD if ops.BACKEND == "tensorflow" else keras.optimizers.SGD
    optimizer = sgd(plan.base_lr, momentum=plan.momentum)
    is_half = model.dtype_policy.compute_dtype == "float16"  # whose smallest gradients would round to zero
    return keras.optimizers.LossScaleOptimizer(optimizer) if is_half else optimizer


def _cross_entropy(labels: Tensor, logits: Tensor, several: bool) -> Tensor:
    """Of a softmax, or of a sigmoid for each class: labels, logits float `[N, classes]` -> `[N]`, in nats."""
    if several:
        return keras.ops.sum(keras.ops.binary_crossentropy(labels, logits, from_logits=True), axis=-1)
    return keras.ops.categorical_crossentropy(labels, logits, from_logits=True)


def _loss_of(model: BiT, plan: Plan, several: bool = False, jit_compile: bool = False) -> Callable:
    """The loss that `bitlib.training.loop.train_step` takes."""

    def loss_of(images, labels):
        with ops.computed_by(model, ops.fast(compiled=jit_compile)):
            logits = keras.ops.cast(model(images, training=True), "float32")
        return keras.ops.sum(_cross_entropy(labels, logits, several)) / plan.batch_size

    return loss_of


def multi_label_scores(labels: ArrayLike, logits: ArrayLike) -> dict[str, float]:
    """Scores of logits `[N, classes]` where several classes may be true: labels `[N, classes]` above a half.

    Returns:
        `average_precision`: its mean over the classes that are true of some image; NaN if there is none.
        `accuracy`: the share of all labels that the sign of their logits gives, high for always saying no.
    """
    from sklearn.metrics import average_precision_score

    truth, logits = np.asarray(labels) > 0.5, np.asarray(logits)
    if not np.isfinite(logits).all():
        return {"average_precision": math.nan, "accuracy": math.nan}
    known = truth.any(axis=0)
    precision = float(average_precision_score(truth[:, known], logits[:, known])) if known.any() else math.nan
    return {"average_precision": precision, "accuracy": float(np.mean((logits > 0) == truth))}
