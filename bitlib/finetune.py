"""Fine-tuning by the BiT-HyperRule (arXiv 1912.11370, section 3.3): a model, examples and a plan in, a
tuned model out.

The loop is our own, around `strategy.run` and the optimizer: `keras.Model.fit` fails under
`MultiWorkerMirroredStrategy`, cannot be stopped and resumed to the same weights, and would not tell a
model that trains from one that does not.
"""

from __future__ import annotations

import json
import math
import os
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from tqdm import tqdm

from bitlib import augment, checkpoint
from bitlib._files import replacing
from bitlib.hyperrule import Plan
from bitlib.model import BiT, compiled_norms, written_gradients

STATE = "training.npz"
"""The file of a checkpoint folder: weights, momenta, step, history, and what run they belong to."""

FREEZABLE = ("root", "block1", "block2", "block3", "block4", "backbone")
"""What `freeze` takes: everything up to and including that stage; `backbone` is all but the head."""


SMALL_MODEL = {"batch_size": 64, "steps": 200, "base_lr": 0.03, "resize": 72, "crop": 60}
"""The rule for BiT-XS on a small task: arguments of `bitlib.hyperrule.plan`. It has the rule's shape; the
numbers were chosen on fifteen draws of ten digits a class, from one half of scikit-learn's digits (every
second one) and tested on the rest of that half."""


@dataclass
class History:
    """What happened in a training.

    Attributes:
        loss: of each step: cross-entropy in nats, mean over the batch, before the step's update.
        learning_rate: of each step.
        validated: numbers of steps after which the model was validated.
        validation_accuracy, validation_loss: as many values, the former in [0, 1].
        trained, frozen: how many weights (numbers, not arrays) were trained, and how many kept.
    """

    loss: list[float] = field(default_factory=list)
    learning_rate: list[float] = field(default_factory=list)
    validated: list[int] = field(default_factory=list)
    validation_accuracy: list[float] = field(default_factory=list)
    validation_loss: list[float] = field(default_factory=list)
    trained: int = 0
    frozen: int = 0


def fit(
    model: BiT,
    train,
    plan: Plan,
    validation=None,
    seed: int = 0,
    verbose: int = 1,
    *,
    freeze: str | None = None,
    accumulate: int = 1,
    checkpoints: str | os.PathLike | None = None,
    save_every: int | None = None,
    validate_every: int | None = None,
    tensorboard: str | os.PathLike | None = None,
    jit_compile: bool = False,
) -> History:
    """Tune a model in place: SGD with momentum, softmax cross-entropy, everything else by the plan.

    Called inside the scope of a `tf.distribute` strategy, or with a model made in one, it trains on all
    of its replicas, which share each batch of the plan. The same seed gives the same batches however many
    replicas there are, however each batch is accumulated, and wherever a run was stopped.

    Args:
        model: a `bitlib.model.BiT` with a head, such as `bitlib.load(name, head=10)` gives; that head
            starts at zero, as the rule wants it.
        train: images float `[N, H, W, 3]` in [-1, 1] and integer labels `[N]`; or an unbatched
            `tf.data.Dataset` of such pairs.
        plan: of `bitlib.hyperrule.plan`.
        validation: as `train`; resized only, and every example counted once.
        seed: of the order of examples, crops, flips and MixUp.
        verbose: 1 for a progress bar.
        freeze: None to train all; `root`, `block1` … `block4` to keep all weights up to and including
            that stage; `backbone` to train the head only.
        accumulate: parts that a replica computes its share of a batch in, to save memory. The gradients
            are summed: the result is that of the whole batch, within rounding.
        checkpoints: a folder; the training is saved there and, called again with the same arguments,
            goes on from there. Replicas on several machines need one they share.
        save_every: steps between two savings; None for a tenth of the training. It is saved at the end.
        validate_every: steps between two validations; None for the end only.
        tensorboard: a folder for TensorBoard to read loss, rate and validation from.
        jit_compile: compile every GroupNorm of the training step with XLA: the same numbers to the last
            digits, some hundredths faster on CPUs.

    Returns:
        The history, of the whole training also where it was resumed.

    Raises:
        TypeError: `model` is not a BiT.
        ValueError: an argument is out of range or does not fit the model; or `checkpoints` holds another
            training.
        RuntimeError: the model does not train: weights that should are as they were after two steps.
        FloatingPointError: the loss is not finite. The model then holds the last weights saved, if any.
    """
    _check(model, plan, freeze, accumulate, save_every, validate_every)
    variables = _trainable(model, freeze)
    strategy = _strategy(model)
    if plan.batch_size % strategy.num_replicas_in_sync:
        raise ValueError(
            f"plan: batch_size {plan.batch_size} cannot be shared equally by the "
            f"{strategy.num_replicas_in_sync} replicas of the strategy"
        )
    trained = sum(math.prod(variable.shape) for variable in variables)
    history = History(trained=trained, frozen=model.count_params() - trained)
    with strategy.scope():
        optimizer = _optimizer(model, plan)
        optimizer.build(variables)
    chief = _is_chief(strategy)
    state = None
    if checkpoints is not None:
        state = Path(checkpoints).expanduser() / STATE
        state.parent.mkdir(parents=True, exist_ok=True)
    run = asdict(plan) | {"boundaries": list(plan.boundaries), "seed": seed, "freeze": freeze}
    history = _restore(state, model, optimizer, run) or history
    start = len(history.loss)
    train_step = _train_step(model, optimizer, variables, strategy, plan, accumulate, jit_compile)
    if validation is not None:
        validation = augment.evaluation_batches(validation, plan, model.num_classes)
    batches = _distributed(train, plan, model.num_classes, seed, start, strategy)
    guard = _Guard(variables, history) if start == 0 else None
    save_every = save_every or max(1, plan.steps // 10)
    logged = _TensorBoard(tensorboard if chief else None)
    forward = _forward(model, plan)
    with tqdm(total=plan.steps, initial=start, unit="step", disable=not (verbose and chief)) as progress:
        for step, batch in zip(range(start, plan.steps), batches, strict=False):
            rate = plan.learning_rate(step)
            loss = float(train_step(*batch))
            if not math.isfinite(loss):
                raise _diverged(loss, step, rate, state, model, optimizer, run)
            history.loss.append(loss)
            history.learning_rate.append(rate)
            done = step + 1
            if guard:
                guard = guard.after(rate)
            progress.update()
            progress.set_postfix(loss=f"{loss:.3f}", rate=f"{rate:.1e}")
            logged.write(done, loss=loss, learning_rate=rate)
            due = done == plan.steps or (validate_every and done % validate_every == 0)
            if validation is not None and due:
                accuracy, validation_loss = _evaluate(forward, validation)
                history.validated.append(done)
                history.validation_accuracy.append(accuracy)
                history.validation_loss.append(validation_loss)
                logged.write(done, validation_accuracy=accuracy, validation_loss=validation_loss)
            if state and chief and (done == plan.steps or done % save_every == 0):
                _save(state, model, optimizer, run, history)
    model.tuned = True
    if len(history.loss) < plan.steps:
        raise ValueError(
            f"train: gave batches for {len(history.loss)} of {plan.steps} steps; is it an empty dataset?"
        )
    return history


def evaluate(model: BiT, examples, plan: Plan, batch_size: int = 64) -> tuple[float, float]:
    """Accuracy in [0, 1] and mean cross-entropy in nats, of every example once; resized to `plan.crop`.

    Args:
        model: a `bitlib.model.BiT` with a head.
        examples: as `train` of `fit`.
        plan: of `bitlib.hyperrule.plan`; tells the resolution.
        batch_size: images computed at once.

    Raises:
        ValueError: `examples` are of other shapes, dtypes or ranges, or there are none.
    """
    return _evaluate(
        _forward(model, plan), augment.evaluation_batches(examples, plan, model.num_classes, batch_size)
    )


def predict(model: BiT, images, plan: Plan, batch_size: int = 64) -> np.ndarray:
    """What a tuned model says of images, resized to `plan.crop`.

    Args:
        model: a `bitlib.model.BiT` with a head.
        images: float `[N, H, W, 3]` in [-1, 1]; or an unbatched `tf.data.Dataset` of pairs of such an image
            and a label, which is not looked at.
        plan: of `bitlib.hyperrule.plan`; tells the resolution.
        batch_size: images computed at once.

    Returns:
        Logits float32 `[N, classes]`.

    Raises:
        ValueError: as `evaluate`.
    """
    if not isinstance(images, tf.data.Dataset):
        images = images, np.zeros(len(images), np.int64)
    batches = augment.evaluation_batches(images, plan, model.num_classes, batch_size)
    forward = _forward(model, plan)
    return np.concatenate([forward(batch) for batch, _ in batches])


def _check(model, plan, freeze, accumulate, save_every, validate_every) -> None:
    if not isinstance(model, BiT):
        raise TypeError(f"model: expected a bitlib.model.BiT, received {type(model).__name__}")
    if model.head is None:
        raise ValueError("model: has no head to train; load it with head=<number of classes>")
    if not isinstance(plan, Plan):
        raise TypeError(f"plan: expected what bitlib.hyperrule.plan returns, received {type(plan).__name__}")
    if plan.crop < 32:
        raise ValueError(f"plan: crop is {plan.crop} pixels, the network needs at least 32")
    if freeze is not None and freeze not in FREEZABLE:
        raise ValueError(f"freeze: expected None or one of {', '.join(FREEZABLE)}, received {freeze!r}")
    for name, value in (("save_every", save_every), ("validate_every", validate_every)):
        if value is not None and not (isinstance(value, int) and value > 0):
            raise ValueError(f"{name}: expected None or a positive number of steps, received {value!r}")
    if not isinstance(accumulate, int) or not 1 <= accumulate <= plan.batch_size:
        raise ValueError(
            f"accumulate: expected 1 to the batch size, {plan.batch_size}, received {accumulate!r}"
        )


def _strategy(model: BiT) -> tf.distribute.Strategy:
    """The strategy that the model was made in, or the one whose scope we are in."""
    owner = getattr(model.variables[0].value, "distribute_strategy", None)
    current = tf.distribute.get_strategy()
    if owner is None and current.num_replicas_in_sync > 1:
        raise ValueError("model: made outside the strategy's scope; load it within `with strategy.scope():`")
    return owner or current


def _trainable(model: BiT, freeze: str | None) -> list:
    """The variables to train. One that its owner marked otherwise is an error, not a silent exception."""
    order = ("root_block", "block1", "block2", "block3", "block4", "group_norm", "head")
    last = -1 if freeze is None else 5 if freeze == "backbone" else FREEZABLE.index(freeze)
    chosen = [v for v in model.variables if order.index(checkpoint.array_name(v).split("/")[1]) > last]
    off = [v for v in chosen if not v.trainable]
    if off:
        raise ValueError(
            f"model: {len(off)} of the {len(chosen)} arrays to train are marked as not trainable, "
            f"{checkpoint.array_name(off[0])} first; set model.trainable = True, or say freeze=..."
        )
    return chosen


class MomentumSGD(keras.optimizers.SGD):
    """Keras' own, its update in one pass over memory instead of ten."""

    def update_step(self, gradient, variable, learning_rate):
        """velocity = momentum · velocity - rate · gradient; variable += velocity."""
        velocity = self.momentums[self._get_variable_index(variable)].value
        if not hasattr(velocity, "handle") or not hasattr(variable, "handle"):
            return super().update_step(gradient, variable, learning_rate)
        return tf.raw_ops.ResourceApplyKerasMomentum(
            var=variable.handle,
            accum=velocity.handle,
            lr=tf.cast(learning_rate, variable.dtype),
            grad=tf.cast(gradient, variable.dtype),
            momentum=tf.constant(self.momentum, variable.dtype),
        )


def _optimizer(model: BiT, plan: Plan):
    optimizer = MomentumSGD(plan.schedule(), momentum=plan.momentum)
    if model.dtype_policy.compute_dtype == "float16":  # whose smallest gradients would round to zero
        return keras.optimizers.LossScaleOptimizer(optimizer)
    return optimizer


def _train_step(
    model, optimizer, variables, strategy, plan: Plan, accumulate: int = 1, jit_compile: bool = False
):
    """A function from one batch, as `_distributed` gives it, to its loss; it updates the weights."""

    def gradients(images, labels):
        with written_gradients(), compiled_norms(jit_compile):
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch([variable.value for variable in variables])
                logits = model(images, training=True)
                losses = tf.nn.softmax_cross_entropy_with_logits(labels, tf.cast(logits, tf.float32))
                # Of the whole batch, not of this part: summed over parts and replicas it is the mean.
                loss = tf.reduce_sum(losses) / plan.batch_size
                scaled = optimizer.scale_loss(loss)
            return loss, tape.gradient(scaled, [variable.value for variable in variables])

    def accumulated(images, labels):
        if accumulate == 1:
            return gradients(images, labels)
        size = -(-tf.shape(images)[0] // accumulate)

        def add(part, loss, sums):
            rows = slice(part * size, (part + 1) * size)
            more, grads = gradients(images[rows], labels[rows])
            return part + 1, loss + more, [total + grad for total, grad in zip(sums, grads, strict=True)]

        zeros = [tf.zeros(variable.shape) for variable in variables]
        # One part after the other: side by side they would need the memory that this is to save.
        _, loss, sums = tf.while_loop(
            lambda part, *_: part * size < tf.shape(images)[0],
            add,
            (tf.constant(0), tf.constant(0.0), zeros),
            parallel_iterations=1,
        )
        return loss, sums

    def replica_step(images, labels):
        loss, grads = accumulated(images, labels)
        optimizer.apply(grads, variables)  # sums them over replicas
        return loss

    @tf.function
    def step(images, labels):
        losses = strategy.run(replica_step, args=(images, labels))
        return strategy.reduce(tf.distribute.ReduceOp.SUM, losses, axis=None)

    return step


def _distributed(train, plan: Plan, num_classes: int, seed: int, start: int, strategy):
    """The batches, each shared by the replicas. MixUp blends across shares, so every machine makes
    whole batches and keeps its own part: the same batches, however many there are."""
    batches = augment.training_batches(train, plan, num_classes, seed, start)
    if strategy.num_replicas_in_sync == 1:
        return batches

    def part(context):
        share = plan.batch_size // context.num_input_pipelines
        rows = slice(context.input_pipeline_id * share, (context.input_pipeline_id + 1) * share)
        own = batches.map(lambda images, labels: (images[rows], labels[rows]))
        return own.rebatch(plan.batch_size // context.num_replicas_in_sync)

    return strategy.distribute_datasets_from_function(part)


def _is_chief(strategy) -> bool:
    """Whether this process writes files: the only one, or the first of several."""
    resolver = strategy.cluster_resolver
    if resolver is None or resolver.task_type in (None, "", "chief"):
        return True
    chief_apart = "chief" in resolver.cluster_spec().jobs
    return resolver.task_type == "worker" and resolver.task_id == 0 and not chief_apart


def _forward(model: BiT, plan: Plan):
    return tf.function(
        lambda images: model(augment.evaluation_image(images, plan)),
        input_signature=[tf.TensorSpec((None, None, None, 3), tf.float32)],
    )


def _evaluate(forward, batches: tf.data.Dataset) -> tuple[float, float]:
    correct, loss, count = 0, 0.0, 0
    for images, labels in batches:
        logits = forward(images)
        losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, tf.cast(logits, tf.float32))
        loss += float(tf.reduce_sum(losses))
        correct += int(np.sum(np.argmax(logits, axis=-1) == labels))
        count += len(labels)
    return correct / count, loss / count


class _Guard:
    """Watches the first steps for weights that should change and do not.

    A head of zeros lets no gradient through: its first update changes the head alone, the second
    everything. Steps of rate 0, as a warm-up begins with, do not count.
    """

    def __init__(self, variables: Sequence, history: History):
        self.variables, self.history, self.updates = variables, history, 0
        self.before = self._fingerprints()

    def _fingerprints(self) -> list[int]:
        return [zlib.crc32(np.ascontiguousarray(variable.numpy())) for variable in self.variables]

    def after(self, rate: float) -> _Guard | None:
        """Call after each step; returns the guard while it is needed."""
        self.updates += rate > 0
        if self.updates == 0 or (self.updates == 1 and rate == 0):
            return self
        changed = [a != b for a, b in zip(self.before, self._fingerprints(), strict=True)]
        is_head = ["/head/" in variable.path for variable in self.variables]
        parts = [("head", is_head)]
        if self.updates > 1:
            parts.append(("backbone", [not head for head in is_head]))
        for part, members in parts:
            if any(members) and not any(c for c, member in zip(changed, members, strict=True) if member):
                raise RuntimeError(
                    f"model: its {part} does not train: {sum(members)} arrays are what they were before "
                    f"{self.updates} steps ({self.history.trained:,} weights to train in all). A rate of "
                    f"{rate:g} may be too small for float32, or the examples give no gradient"
                )
        return self if self.updates == 1 else None


def _restore(state: Path | None, model: BiT, optimizer, run: dict) -> History | None:
    """Bring model and optimizer to where a training was stopped, if it was this one."""
    if state is None or not state.exists():
        return None
    try:
        with np.load(state, allow_pickle=False) as saved:
            arrays = dict(saved)
    except Exception as error:
        raise ValueError(f"checkpoints: {state} cannot be read ({error}); delete it to begin anew") from error
    known = json.loads(str(arrays["told"]))
    for name, value in run.items():
        found = known["run"].get(name)
        if found != value:
            raise ValueError(
                f"checkpoints: {state.parent} holds a training with {name} {found!r}, expected {value!r}; "
                "choose another folder, or delete it"
            )
    checkpoint.assign(model, {n: a for n, a in arrays.items() if n.startswith("resnet/")})
    for index, variable in enumerate(optimizer.variables):
        variable.assign(arrays[f"optimizer/{index}"])
    return History(**known["history"])


def _save(state: Path, model: BiT, optimizer, run: dict, history: History) -> None:
    """Write the whole state of a training, unless its weights are not finite."""
    weights = {checkpoint.array_name(variable): variable.numpy() for variable in model.variables}
    if not all(np.isfinite(array).all() for array in weights.values()):
        return
    momenta = {f"optimizer/{index}": variable.numpy() for index, variable in enumerate(optimizer.variables)}
    told = json.dumps({"run": run, "history": asdict(history)})
    with replacing(state) as temporary, temporary.open("wb") as file:
        np.savez(file, told=np.array(told), **weights, **momenta)


def _diverged(loss, step, rate, state, model, optimizer, run) -> FloatingPointError:
    where = "its weights are of no use; name a folder in checkpoints to keep the last good ones"
    if state is not None and state.exists():
        last = _restore(state, model, optimizer, run)
        where = f"the model holds the weights after step {len(last.loss)} again, saved in {state.parent}"
    return FloatingPointError(
        f"loss: {loss} at step {step}, learning rate {rate:g}: {where}. Try a smaller base_lr, a longer "
        "warm-up, or bfloat16 instead of float16; and see that all images are finite"
    )


class _TensorBoard:
    """Scalars for TensorBoard; does nothing where no folder is named."""

    def __init__(self, folder):
        self.writer = None if folder is None else tf.summary.create_file_writer(str(folder))
        if self.writer:
            try:
                import tensorboard  # noqa: F401
            except ImportError:
                raise ImportError(
                    "tensorboard: the package is not installed; pip install tensorboard"
                ) from None

    def write(self, step: int, **scalars: float) -> None:
        """Write values of one step, by name."""
        if self.writer:
            with self.writer.as_default():
                for name, value in scalars.items():
                    tf.summary.scalar(name, value, step)
                self.writer.flush()
