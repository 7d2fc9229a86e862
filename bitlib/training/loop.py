"""The training loop: any loss, on any backend, on one device or many, resumable, watched by a guard.

It is our own: `keras.Model.fit` fails under `MultiWorkerMirroredStrategy`, cannot be resumed to the same
weights, and does not notice a model that does not train.
"""

from __future__ import annotations

import json
import math
import os
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import keras
import numpy as np

from bitlib import checkpoint, console
from bitlib.files.writing import expanded, replacing
from bitlib.hyperrule import Plan
from bitlib.inputs import check_whole
from bitlib.model import BiT
from bitlib.training import augment
from bitlib.training.devices import Devices, Training, devices_of
from bitlib.training.examples import ahead, errors_in_words, machine

STATE = "training.npz"
"""The file of a checkpoint folder: weights, momenta, step, history, and the run that they belong to."""

FINGERPRINTS = ("examples", "weights", "teacher's weights")
"""Of what `fit` and `match` are given, besides arguments: numbers that differ where these do."""


@dataclass
class History:
    """A record of a training.

    Attributes:
        loss: of each step, in nats, mean over the batch, before the step's update.
        learning_rate: of each step.
        validated: numbers of steps after which the model was validated.
        validation_accuracy, validation_loss: as many values, as `bitlib.finetune.evaluate` returns them.
        trained, frozen: how many weights (numbers, not arrays) were trained, and how many were not.
    """

    loss: list[float] = field(default_factory=list)
    learning_rate: list[float] = field(default_factory=list)
    validated: list[int] = field(default_factory=list)
    validation_accuracy: list[float] = field(default_factory=list)
    validation_loss: list[float] = field(default_factory=list)
    trained: int = 0
    frozen: int = 0


class Saved:
    """The saved state of one training: `file`, which is None for a training that is not saved."""

    def __init__(self, folder: str | os.PathLike | None, model: keras.Model, optimizer: Any, run: Mapping):
        """`run` has the arguments that make this training this one, as JSON has them. Makes the folder.

        Of those in `FINGERPRINTS`, others are told of: nobody can know whether they were meant.
        """
        self.file = None if folder is None else expanded(folder, "checkpoints") / STATE
        if self.file:
            if self.file.parent.is_file():
                raise ValueError(f"checkpoints: expected a folder, received the file {self.file.parent}")
            self.file.parent.mkdir(parents=True, exist_ok=True)
        self.run = run
        numbered = {f"weights/{index}": variable for index, variable in enumerate(model.variables)}
        rate = optimizer.learning_rate  # which is not saved: it is set at each step
        momenta = [variable for variable in optimizer.variables if variable is not rate]
        weights = model.arrays if isinstance(model, BiT) else numbered
        self.variables = weights | {f"optimizer/{index}": each for index, each in enumerate(momenta)}

    def restore(self) -> History | None:
        """Bring model and optimizer to where this training was stopped; None if nothing is saved.

        Raises: ValueError, if the file cannot be read, or is of another training.
        """
        if self.file is None or not self.file.exists():
            return None
        try:
            with np.load(self.file, allow_pickle=False) as stored:
                arrays = dict(stored)
            training = json.loads(str(arrays.pop("training")))
            found, history = dict(training["run"]), History(**training["history"])
        except Exception as error:  # a file of any content
            reason = f"cannot be read as a training ({type(error).__name__}: {error})"
            raise ValueError(f"checkpoints: {self.file} {reason}; delete it to begin anew") from error
        for name, value in self.run.items():
            if name in FINGERPRINTS and found.get(name, value) != value:
                goes_on = f"{self.file.parent} holds a training with other {name}, which goes on from there"
                way = "to begin anew, choose another folder, or delete it"
                warnings.warn(f"checkpoints: {goes_on} as if they were the same; {way}", stacklevel=4)
            elif name not in FINGERPRINTS and found.get(name) != value:
                has = f"holds a training with {name} {found.get(name)!r}, expected {value!r}"
                raise ValueError(
                    f"checkpoints: {self.file.parent} {has}; choose another folder, or delete it"
                )
        try:
            checkpoint.fill(self.variables, arrays)
        except checkpoint.CheckpointError as error:
            raise ValueError(f"checkpoints: {self.file}: {error}; delete it to begin anew") from error
        return history

    def save(self, history: History) -> None:
        """Write the whole state, unless the training is not saved or its numbers are not finite."""
        if self.file is None:
            return
        arrays = {name: variable.numpy() for name, variable in self.variables.items()}
        if not all(np.isfinite(array).all() for array in arrays.values()):
            return
        training = json.dumps({"run": self.run, "history": asdict(history)})
        with replacing(self.file) as temporary, temporary.open("wb") as file:
            np.savez(file, training=np.array(training), **arrays)


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
    models: Sequence[keras.Model] = (),
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
        loss_of, variables, models, clip: as of `train_step`.
        make_optimizer: called in the scope of the model's devices. The rate is set at each step.
        validate: () -> accuracy and loss; None for no validation.
        run: the arguments that make this training this one, besides plan and seed, as JSON has them.
        names: the arguments that model and examples were given by, for messages.
        others: as of `bitlib.finetune.fit`.

    Raises: as `bitlib.finetune.fit`.
    """
    seed = check_whole("seed", seed, least=-(2**63))
    devices = devices_of(model, plan.batch_size)
    with devices.scope():
        optimizer = make_optimizer()
        optimizer.build(variables)
    run = asdict(plan) | {"boundaries": list(plan.boundaries), "seed": seed} | run
    if checkpoints is not None and not callable(examples):
        run["examples"] = examples.fingerprint()
    source = getattr(model, "source", None)
    if source and source.fingerprint is not None:
        run["weights"] = source.fingerprint
    saved = Saved(checkpoints, model, optimizer, run)
    trained = sum(math.prod(variable.shape) for variable in variables)
    history = saved.restore() or History(trained=trained, frozen=model.count_params() - trained)
    start = len(history.loss)
    guard = None if start else Guard(variables, names[0])
    update = train_step(loss_of, optimizer, variables, devices, models or [model], accumulate, clip)
    save_every = save_every or max(1, plan.steps // 10)
    chief = devices.chief
    log = TensorBoard(tensorboard if chief else None)
    with errors_in_words(names[1]), console.bar(plan.steps, "step", start, bool(verbose and chief)) as bar:
        batches = shared(examples, plan, num_classes, seed, start, devices)
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
    if (given := len(history.loss)) < plan.steps:
        raise ValueError(
            f"{names[1]}: gave batches for {given} of {plan.steps} steps; is it an empty dataset?"
        )
    return history


def shared(
    examples: Any, plan: Plan, num_classes: int, seed: int, start: int, devices: Devices
) -> Iterator[tuple]:
    """The batches of a plan from a step on, as tensors, each shared by the devices.

    Every machine makes whole batches and takes its part, as MixUp blends across parts. Where `examples` is a
    function of a `tf.distribute.InputContext`, each makes its own share, and blends within it.
    """
    whole = not callable(examples)
    if not whole:
        examples = examples(machine(devices.index, devices.machines, plan.batch_size))
        plan = replace(plan, batch_size=plan.batch_size // devices.machines)
        seed += devices.index << 31
    batches = augment.training_batches(examples, plan, num_classes, seed, start)
    return devices.distributed(ahead(batches), whole)


def train_step(
    loss_of: Callable,
    optimizer: keras.optimizers.Optimizer,
    variables: Sequence[keras.Variable],
    devices: Devices,
    models: Sequence[keras.Model],
    accumulate: int = 1,
    clip: float | None = None,
) -> Callable:
    """A function from one batch, as `shared` gives it, to its loss; it updates the variables.

    Args:
        loss_of: part of a batch -> its share of the loss: summed over parts and devices it is the mean.
        models: that `loss_of` calls.
        accumulate: parts that a device computes its share of the batch in, one after the other.
        clip: the most that the norm of the whole batch's gradient, of all variables together, may be.
    """
    return devices.step(Training(loss_of, optimizer, variables, models, accumulate, clip))


class Guard:
    """Watches the first steps for weights that should change and do not.

    A head of zeros lets no gradient through: the first update changes it alone, the second everything. Steps
    of rate 0, as a warm-up begins with, do not count.
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
                raise RuntimeError(
                    f"{self.name}: its {part} does not train: {len(changed[part])} arrays are what they were "
                    f"before {self.updates} steps. A rate of {rate:g} may be too small for float32, or the "
                    "examples give no gradient"
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
        self.writer = None
        if folder is not None:
            try:
                from tensorboard.summary import Writer
            except ImportError as error:
                needed = "tensorboard: the package is not installed; pip install 'bitlib[tensorboard]'"
                raise ImportError(needed) from error
            self.writer = Writer(str(expanded(folder, "tensorboard")))

    def write(self, step: int, **scalars: float) -> None:
        """Write values of one step, by name."""
        if self.writer:
            for name, value in scalars.items():
                self.writer.add_scalar(name, value, step)
            self.writer.flush()
