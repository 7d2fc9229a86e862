"""The training loop: any loss, on one replica or many, resumable, watched by a guard.

It is our own, around `strategy.run` and the optimizer: `keras.Model.fit` fails under
`MultiWorkerMirroredStrategy`, cannot be stopped and resumed to the same weights, and does not notice a
model that does not train.
"""

from __future__ import annotations

import math
import os
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, replace
from importlib.util import find_spec
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from bitlib import augment, ops, progress
from bitlib.examples import errors_in_words
from bitlib.hyperrule import Plan
from bitlib.inputs import check_whole
from bitlib.resume import History, Saved

ops.require_tensorflow("training by bitlib")


def train(
    model: keras.Model,
    plan: Plan,
    examples: Any,
    num_classes: int,
    loss_of: Callable,
    make_optimizer: Callable[[], keras.optimizers.Optimizer],
    variables: Sequence[keras.Variable],
    validate: Callable[[], tuple[float, float]] | None = None,
    seed: int = 0,
    verbose: int = 1,
    *,
    run: dict[str, Any],
    names: tuple[str, str] = ("model", "train"),
    clip: float | None = None,
    accumulate: int = 1,
    checkpoints: str | os.PathLike | None = None,
    save_every: int | None = None,
    validate_every: int | None = None,
    tensorboard: str | os.PathLike | None = None,
) -> History:
    """Train a model in place, from where this training was stopped.

    Args:
        examples, num_classes: as of `shared`.
        loss_of, variables, clip: as of `train_step`.
        make_optimizer: called in the scope of the model's strategy. The rate is set at each step.
        validate: () -> accuracy and loss; None for no validation.
        run: the arguments that make this training this one, besides plan and seed, as JSON has them.
        names: the arguments that model and examples were given by, for messages.
        others: as of `bitlib.finetune.fit`.

    Raises: as `bitlib.finetune.fit`.
    """
    seed = check_whole("seed", seed, least=-(2**63))
    strategy = _strategy_of(model, plan.batch_size)
    with strategy.scope():
        optimizer = make_optimizer()
        optimizer.build(variables)
    run = asdict(plan) | {"boundaries": list(plan.boundaries), "seed": seed} | run
    saved = Saved(checkpoints, model, optimizer, run)
    trained = sum(math.prod(variable.shape) for variable in variables)
    history = saved.restore() or History(trained=trained, frozen=model.count_params() - trained)
    start = len(history.loss)
    guard = None if start else Guard(variables, names[0])
    update = train_step(loss_of, optimizer, variables, strategy, accumulate, clip)
    save_every = save_every or max(1, plan.steps // 10)
    chief = is_chief(strategy)
    log = TensorBoard(tensorboard if chief else None)
    with errors_in_words(names[1]), progress.bar(plan.steps, "step", start, bool(verbose and chief)) as bar:
        batches = shared(examples, plan, num_classes, seed, start, strategy)
        for done, batch in zip(range(start + 1, plan.steps + 1), batches, strict=False):
            rate = optimizer.learning_rate = plan.learning_rate(done - 1)
            loss = float(update(*batch))
            if not math.isfinite(loss):
                raise _diverged(loss, done - 1, rate, saved)
            history.loss.append(loss)
            history.learning_rate.append(rate)
            guard = guard and guard.after(rate)
            bar.update()
            bar.set_postfix(loss=f"{loss:.3f}", rate=f"{rate:.1e}")
            log.write(done, loss=loss, learning_rate=rate)
            if validate and (done == plan.steps or (validate_every and done % validate_every == 0)):
                accuracy, validation_loss = validate()
                history.validated.append(done)
                history.validation_accuracy.append(accuracy)
                history.validation_loss.append(validation_loss)
                log.write(done, validation_accuracy=accuracy, validation_loss=validation_loss)
            if chief and (done == plan.steps or done % save_every == 0):
                saved.save(history)
    if len(history.loss) < plan.steps:
        raise ValueError(
            f"{names[1]}: gave batches for {len(history.loss)} of {plan.steps} steps; is it an empty dataset?"
        )
    return history


def _strategy_of(model: keras.Model, batch_size: int) -> tf.distribute.Strategy:
    """The strategy that a model was made in, or the one whose scope we are in; its replicas share a batch."""
    owner = getattr(model.variables[0].value, "distribute_strategy", None)
    strategy = owner or tf.distribute.get_strategy()
    replicas = strategy.num_replicas_in_sync
    if owner is None and replicas > 1:
        raise ValueError("model: made outside the strategy's scope; load it within `with strategy.scope():`")
    if batch_size % replicas:
        raise ValueError(
            f"plan: batch_size {batch_size} cannot be shared equally by the {replicas} replicas of the "
            "strategy"
        )
    return strategy


def is_chief(strategy: tf.distribute.Strategy) -> bool:
    """Whether this process writes files: the only one, or the first of several."""
    resolver = strategy.cluster_resolver
    if resolver is None or resolver.task_type in (None, "", "chief"):
        return True
    is_first = resolver.task_type == "worker" and resolver.task_id == 0
    return is_first and "chief" not in resolver.cluster_spec().jobs


def shared(
    examples: Any, plan: Plan, num_classes: int, seed: int, start: int, strategy: tf.distribute.Strategy
) -> Iterable:
    """The batches of a plan from a step on, each shared by the replicas.

    MixUp blends across shares: every machine makes whole batches and takes its own part, so they are the same
    batches however many machines there are. Where `examples` is a function of a machine's
    `tf.distribute.InputContext`, each makes its share, and blends within it, from what that gives it.
    """

    def part(context):
        machines, index = context.num_input_pipelines, context.input_pipeline_id
        share = plan.batch_size // machines
        if callable(examples):
            rule, own_seed = replace(plan, batch_size=share), seed + (index << 31)
            return augment.training_batches(examples(context), rule, num_classes, own_seed, start)
        rows = slice(index * share, (index + 1) * share)
        whole = augment.training_batches(examples, plan, num_classes, seed, start)
        return whole.map(lambda images, labels: (images[rows], labels[rows])) if machines > 1 else whole

    replicas = strategy.num_replicas_in_sync
    if replicas == 1:
        return part(tf.distribute.InputContext())
    return strategy.distribute_datasets_from_function(
        lambda context: part(context).rebatch(plan.batch_size // replicas)
    )


def train_step(
    loss_of: Callable,
    optimizer: keras.optimizers.Optimizer,
    variables: Sequence[keras.Variable],
    strategy: tf.distribute.Strategy,
    accumulate: int = 1,
    clip: float | None = None,
) -> Callable:
    """A function from one batch, as `shared` gives it, to its loss; it updates the variables.

    Args:
        loss_of: part of a batch -> its share of the loss: summed over parts and replicas it is the mean.
        accumulate: parts that a replica computes its share of the batch in, one after the other.
        clip: the norm that the gradient of the whole batch, of all variables together, is shrunk to if it
            is longer.
    """

    def gradients(*batch):
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch([variable.value for variable in variables])
            loss = loss_of(*batch)
            scaled = optimizer.scale_loss(loss)
        return loss, tape.gradient(scaled, [variable.value for variable in variables])

    def accumulated(*batch):
        if accumulate == 1:
            return gradients(*batch)
        count = tf.shape(batch[0])[0]
        size = -(-count // accumulate)

        def add(part, loss, sums):
            rows = slice(part * size, (part + 1) * size)
            more, grads = gradients(*(values[rows] for values in batch))
            return part + 1, loss + more, [total + grad for total, grad in zip(sums, grads, strict=True)]

        # One part after the other: side by side they would need the memory that this is to save.
        _, loss, sums = tf.while_loop(
            lambda part, *_: part * size < count,
            add,
            (tf.constant(0), tf.constant(0.0), [tf.zeros(variable.shape) for variable in variables]),
            parallel_iterations=1,
        )
        return loss, sums

    def replica_step(*batch):
        loss, grads = accumulated(*batch)
        if clip is not None:
            replica = tf.distribute.get_replica_context()
            whole, _ = tf.clip_by_global_norm(replica.all_reduce(tf.distribute.ReduceOp.SUM, grads), clip)
            grads = [gradient / replica.num_replicas_in_sync for gradient in whole]
        optimizer.apply(grads, variables)  # sums them over replicas
        return loss

    @tf.function
    def step(*batch):
        losses = strategy.run(replica_step, args=batch)
        return strategy.reduce(tf.distribute.ReduceOp.SUM, losses, axis=None)

    return step


class Guard:
    """Watches the first steps for weights that should change and do not.

    A head of zeros lets no gradient through: its first update changes the head alone, the second
    everything. Steps of rate 0, as a warm-up begins with, do not count.
    """

    def __init__(self, variables: Sequence[keras.Variable], name: str = "model"):
        self.variables, self.name, self.updates = variables, name, 0
        self.before = self._fingerprints()

    def _fingerprints(self) -> list[int]:
        return [zlib.crc32(np.ascontiguousarray(variable.numpy()).data) for variable in self.variables]

    def after(self, rate: float) -> Guard | None:
        """Call after each step; returns the guard while it is needed."""
        if rate == 0:
            return self
        self.updates += 1
        changed: dict[str, list[bool]] = {"head": [], "backbone": []}
        for variable, before, now in zip(self.variables, self.before, self._fingerprints(), strict=True):
            changed["head" if "head" in variable.path.split("/") else "backbone"].append(before != now)
        for part in ("head", "backbone")[: self.updates]:
            if changed[part] and not any(changed[part]):
                weights = sum(math.prod(variable.shape) for variable in self.variables)
                raise RuntimeError(
                    f"{self.name}: its {part} does not train: {len(changed[part])} arrays are what they were "
                    f"before {self.updates} steps ({weights:,} weights to train in all). A rate of "
                    f"{rate:g} may be too small for float32, or the examples give no gradient"
                )
        return self if self.updates == 1 else None


def _diverged(loss: float, step: int, rate: float, saved: Saved) -> FloatingPointError:
    where = "its weights are of no use; name a folder in checkpoints to have the last good ones saved"
    if saved.file and (last := saved.restore()):
        where = f"the model holds the weights after step {len(last.loss)} again, saved in {saved.file.parent}"
    return FloatingPointError(
        f"loss: {loss} at step {step}, learning rate {rate:g}: {where}. Try a smaller base_lr, a longer "
        "warm-up, or bfloat16 instead of float16; and see that all images are finite"
    )


class TensorBoard:
    """Scalars for TensorBoard; does nothing where no folder is named."""

    def __init__(self, folder: str | os.PathLike | None):
        if folder is not None and find_spec("tensorboard") is None:
            raise ImportError("tensorboard: the package is not installed; pip install 'bitlib[tensorboard]'")
        self.writer = None if folder is None else tf.summary.create_file_writer(str(folder))

    def write(self, step: int, **scalars: float) -> None:
        """Write values of one step, by name."""
        if self.writer:
            with self.writer.as_default():
                for name, value in scalars.items():
                    tf.summary.scalar(name, value, step)
                self.writer.flush()
