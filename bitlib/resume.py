"""Where a training is saved and resumed: one file that holds all that the next step depends on."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import keras
import numpy as np

from bitlib import checkpoint
from bitlib.model import BiT
from bitlib.writing import expanded, replacing

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
