"""One rule on every task of the small VTAB, beside a linear probe and the same network from scratch.

As VTAB-1k has it (arXiv 1910.04867): up to 1000 examples to learn from, the same settings for every task.
`bitlib.datasets.tasks` has the tasks; `scripts/vtab.py` computes each by every method into
`data/small_vtab.csv`."""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, get_type_hints

import keras
import numpy as np
from scipy import stats

from bitlib import checkpoint, datasets, features, finetune, hyperrule, images
from bitlib.datasets import tasks
from bitlib.files.writing import bundled
from bitlib.model import BiT

if TYPE_CHECKING:
    from bitlib.checkpoint import Source
    from bitlib.hyperrule import Plan
    from bitlib.training.loop import History

NUM_TRAIN, NUM_TEST = 1000, 2000
"""Examples to learn from and to test on, at most."""

SPARED = {name: {"random_flip": False} for name in ("digits", "mnist", "angles", "typefaces")}
SPARED["counting"] = {"random_crop": False}
"""The flips and crops that destroy the labels of a task, which no rule can know. Arguments of `plan`."""


class Task(NamedTuple):
    """A task, split into what is learnt from and what is tested on."""

    name: str
    train: tuple[Sequence, np.ndarray]
    test: tuple[Sequence, np.ndarray]
    class_names: list[str]


def task(name: str, seed: int = 0) -> Task:
    """A task by name, as `bitlib.datasets.labelled` takes it; drawn by the seed.

    As many examples of each class to learn from, up to 1000 in all and half of the rarest class; up to 2000
    others to test on.
    """
    found = datasets.labelled(name)
    counts = np.bincount(found[1])
    shots = max(1, min(NUM_TRAIN // len(counts), int(counts.min()) // 2))
    return Task(name, *datasets.drawn_splits(found, shots, NUM_TEST, seed))


def plan(task: Task, **how: Any) -> Plan:
    """The rule for a task and the bundled model; `how` as `bitlib.hyperrule.plan` takes it."""
    pictures, _ = task.train
    size = images.read(pictures[0]).shape[:2]
    return hyperrule.plan(len(pictures), size, **finetune.SMALL_MODEL | SPARED.get(task.name, {}) | how)


def probe(source: Source, task: Task, seed: int = 0) -> float:
    """Accuracy in [0, 1] of a linear probe on the features."""
    model = checkpoint.load(source, head=None)
    parts = (images.batch(pictures, source.card) for pictures, _ in (task.train, task.test))
    train, test = (features.extract(model, part) for part in parts)
    return float(features.linear_probe(train, task.train[1]).score(test, task.test[1]))


def fit(model: BiT, task: Task, plan: Plan, seed: int = 0, **how: Any) -> History:
    """Train on a task and test once, at the end; `how` as `bitlib.finetune.fit` takes it."""
    train = datasets.pipeline(*task.train, plan.resize if plan.random_crop else plan.crop)
    test = datasets.pipeline(*task.test, plan.crop).cache()
    return finetune.fit(model, train, plan, test, seed, **{"verbose": 0} | how)


def tuned(
    source: Source,
    task: Task,
    seed: int = 0,
    freeze: str | None = None,
    random_head: bool = False,
    **how: Any,
) -> float:
    """Accuracy in [0, 1] of the whole network, tuned by the rule; `how` to change what it says."""
    model = checkpoint.load(source, head=task.class_names)
    if random_head and model.head:  # Keras' usual initial weights
        start = keras.initializers.GlorotUniform(seed=seed)
        kernel = model.head.convolution.kernel
        kernel.assign(start(kernel.shape))
    boundaries = how.pop("boundaries", None)
    ruled = plan(task, **how)
    ruled = replace(ruled, boundaries=boundaries) if boundaries else ruled
    return fit(model, task, ruled, seed, freeze=freeze).validation_accuracy[-1]


def scratch(source: Source, task: Task, seed: int = 0, **how: Any) -> float:
    """Accuracy in [0, 1] of the same network from random weights."""
    keras.utils.set_random_seed(seed)
    shape = checkpoint.load(source, head=None)
    model = BiT(shape.units, shape.width, len(task.class_names))
    return fit(model, task, plan(task, **how), seed).validation_accuracy[-1]


METHODS: dict[str, Callable[..., float]] = {
    "linear probe": probe,
    "fine-tuned": tuned,
    "from scratch": scratch,
}
"""Compared on every task."""

MISTAKES: dict[str, Callable[..., float]] = {
    "frozen backbone": partial(tuned, freeze="backbone"),
    "random crops": partial(tuned, random_crop=True),
    "random flips": partial(tuned, random_flip=True),
    "random head": partial(tuned, random_head=True),
    "decays unscaled": partial(tuned, boundaries=(200, 300, 400)),
}
"""Mistakes that much code makes: see page 04."""

MADE_ON = {
    "counting": ("frozen backbone", "random crops", "random head", "decays unscaled"),
    "angles": ("frozen backbone", "random flips", "random head", "decays unscaled"),
}
"""The mistakes that were made on each task."""


class Result(NamedTuple):
    """A row of `data/small_vtab.csv`."""

    task: str
    method: str
    seed: int
    accuracy: float
    date: str


def stored(path: str | os.PathLike | None = None) -> list[Result]:
    """The rows of a file of `scripts/vtab.py`; None for what it found for the bundled model."""
    return read_rows(path or bundled("small_vtab.csv"), Result)


def read_rows(path: str | os.PathLike, kind: Any) -> list[Any]:
    """The rows of a CSV file; `kind` is a `NamedTuple` of texts and numbers, `accuracy` and `date` last."""
    types = get_type_hints(kind)
    with Path(path).open(newline="") as file:
        return [kind(*(types[name](row[name]) for name in types)) for row in csv.DictReader(file)]


def interval(values: Sequence[float] | np.ndarray) -> tuple[float, float]:
    """The mean over draws, and half the width of its 95 % interval by Student's t; infinite for one draw."""
    half = stats.t.ppf(0.975, len(values) - 1) * stats.sem(values) if len(values) > 1 else np.inf
    return float(np.mean(values)), float(half)


def difference(ours: Sequence[float], others: Sequence[float]) -> tuple[float, float]:
    """As `interval`, of the differences draw by draw: both saw the same examples."""
    return interval(np.subtract(ours, others))


def by_task(results: Sequence[Result], methods: Sequence[str]) -> dict[str, dict[str, list[float]]]:
    """Accuracies of every draw, by task and method; tasks in the order of `bitlib.datasets.tasks.TASKS`."""
    found: dict[str, dict[str, list[float]]] = {name: {} for name in tasks.TASKS}
    for method in methods:
        for result in results:
            if result.method == method:
                found[result.task].setdefault(method, []).append(result.accuracy)
    return {name: values for name, values in found.items() if values}


def compute(source: Source, name: str, method: str, seed: int) -> float:
    """The accuracy in [0, 1] of one row: of a task by a method, one of `METHODS` or `MISTAKES`."""
    return (METHODS | MISTAKES)[method](source, task(name, seed), seed)
