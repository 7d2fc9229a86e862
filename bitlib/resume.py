"""Where a training is saved and resumed: one file that holds all that the next step depends on."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from bitlib import checkpoint
from bitlib.model import BiT
from bitlib.writing import replacing

if TYPE_CHECKING:
    import keras

STATE = "training.npz"
"""The file of a checkpoint folder: weights, momenta, step, history, and what run they belong to."""


@dataclass
class History:
    """What happened in a training.

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


@dataclass
class Saved:
    """The saved state of one training.

    Attributes:
        file: where it is; None for a training that is not saved.
        model, optimizer: whose variables it holds.
        run: the arguments that make this training this one, as JSON has them.
    """

    file: Path | None
    model: keras.Model
    optimizer: keras.optimizers.Optimizer
    run: Mapping

    @property
    def weights(self) -> dict[str, keras.Variable]:
        """The model's variables under the names they are saved by: those of a BiT's arrays, else numbers."""
        if isinstance(self.model, BiT):
            return self.model.arrays
        return {f"weights/{index}": variable for index, variable in enumerate(self.model.variables)}

    @property
    def momenta(self) -> list[keras.Variable]:
        """The optimizer's variables but for its rate, which is set at each step."""
        rate = self.optimizer.learning_rate
        return [variable for variable in self.optimizer.variables if variable is not rate]

    @classmethod
    def in_folder(
        cls,
        folder: str | os.PathLike | None,
        model: keras.Model,
        optimizer: keras.optimizers.Optimizer,
        run: Mapping,
    ) -> Saved:
        """The state in a folder, which is made; None for a training that is not saved."""
        if folder is None:
            return cls(None, model, optimizer, run)
        folder = Path(folder).expanduser()
        folder.mkdir(parents=True, exist_ok=True)
        return cls(folder / STATE, model, optimizer, run)

    def restore(self) -> History | None:
        """Bring model and optimizer to where this training was stopped; None if nothing is saved.

        Raises:
            ValueError: what is saved cannot be read, or is another training.
        """
        if self.file is None or not self.file.exists():
            return None
        variables = self.momenta
        try:
            with np.load(self.file, allow_pickle=False) as stored:
                arrays = dict(stored)
            training = json.loads(str(arrays["training"]))
            found, history = dict(training["run"]), History(**training["history"])
            momenta = [arrays[f"optimizer/{index}"] for index in range(len(variables))]
        except Exception as error:  # a file of any content
            reason = f"{type(error).__name__}: {error}"
            raise ValueError(
                f"checkpoints: {self.file} cannot be read as a training ({reason}); delete it to begin anew"
            ) from error
        for name, value in self.run.items():
            if found.get(name) != value:
                raise ValueError(
                    f"checkpoints: {self.file.parent} holds a training with {name} {found.get(name)!r}, "
                    f"expected {value!r}; choose another folder, or delete it"
                )
        values = {n: a for n, a in arrays.items() if n != "training" and not n.startswith("optimizer/")}
        try:
            checkpoint.check(
                {variable.path: array.shape for variable, array in zip(variables, momenta, strict=True)},
                {variable.path: tuple(variable.shape) for variable in variables},
            )
            checkpoint.fill(self.weights, values)
        except checkpoint.CheckpointError as error:
            raise ValueError(f"checkpoints: {self.file}: {error}; delete it to begin anew") from error
        for variable, array in zip(variables, momenta, strict=True):
            variable.assign(array)
        return history

    def save(self, history: History) -> None:
        """Write the whole state, unless the training is not saved or its weights are not finite."""
        if self.file is None:
            return
        weights = {name: variable.numpy() for name, variable in self.weights.items()}
        if not all(np.isfinite(array).all() for array in weights.values()):
            return
        momenta = {f"optimizer/{i}": variable.numpy() for i, variable in enumerate(self.momenta)}
        training = json.dumps({"run": self.run, "history": asdict(history)})
        with replacing(self.file) as temporary, temporary.open("wb") as file:
            np.savez(file, training=np.array(training), **weights, **momenta)
