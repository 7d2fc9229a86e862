"""A plan's batches: its crops, flips and MixUp, in NumPy, the same on every backend.

Every batch is a pure function of the seed and of the step's number. That is what lets a training that
was stopped go on as if it had not been.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from typing import Any

import numpy as np

from bitlib.hyperrule import Plan
from bitlib.images import resize
from bitlib.training.examples import Examples, batched, errors_in_words, mapped, prepare

CACHED_BYTES = 1 << 30
"""Examples whose resized pictures fit into this memory are read once and cached; more are read anew in each
epoch, and shuffled within this memory. Three times as much is used for a moment, while they are cached."""


def resized(images: np.ndarray, size: int) -> np.ndarray:
    """Bilinear, as the official code resizes: `[..., H, W, 3]` -> float32 `[..., size, size, 3]`."""
    return resize(images, (size, size))


def _sized(given: Examples, size: int) -> Iterator[tuple[np.ndarray, Any]]:
    """Every example, its image resized."""
    return mapped(lambda example: (resized(example[0], size), example[1]), given.read())


def _size(plan: Plan) -> int:
    """Height and width of a training image before it is cropped, if it is."""
    return plan.resize if plan.random_crop else plan.crop


def cropped(images: np.ndarray, plan: Plan, rng: np.random.Generator) -> np.ndarray:
    """Cut out and mirror at random, as the plan says: `[N, resize, resize, 3]` -> `[N, crop, crop, 3]`."""
    count, room = len(images), images.shape[1] - plan.crop + 1
    corners = rng.integers(0, room, (count, 2))
    mirrored = rng.random(count) < (0.5 if plan.random_flip else 0)
    found = np.empty((count, plan.crop, plan.crop, 3), np.float32)
    for to, image, (top, left), mirror in zip(found, images, corners, mirrored, strict=True):
        part = image[top : top + plan.crop, left : left + plan.crop]
        to[:] = part[:, ::-1] if mirror else part
    return found


def mixup(
    images: np.ndarray, labels: np.ndarray, alpha: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Blend every example of a batch with another one of it (arXiv 1710.09412, equation 1).

    Partners are drawn at random, the share λ from Beta(α, α), one for the whole batch as in the official
    code of BiT.

    Args:
        images, labels: float `[N, H, W, 3]` and `[N, classes]`; so are those that are returned.
        alpha: of the Beta distribution; 0 for no MixUp.
    """
    if alpha == 0:
        return images, labels
    share = np.float32(rng.beta(alpha, alpha))
    partners = rng.permutation(len(images))
    return (share * images + (1 - share) * images[partners], share * labels + (1 - share) * labels[partners])


def training_batches(
    examples: Any, plan: Plan, num_classes: int, seed: int = 0, start: int = 0
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The batches of a training, step by step.

    Examples are shuffled anew each time all have been seen; batches run across these epochs, so no
    example is left out or seen twice in one.

    Args:
        examples: as `bitlib.training.examples.prepare` takes and makes them; images may differ in size. Such
            as do not fit into `CACHED_BYTES` are shuffled as far as that allows: let them come shuffled, too.
        plan, seed: as of `bitlib.finetune.fit`.
        num_classes: labels are 0 to `num_classes - 1`.
        start: step to begin with.

    Returns:
        An iterator of images float32 `[batch, crop, crop, 3]` and labels float32 `[batch, num_classes]`.

    Raises:
        ValueError: as `prepare`. An example that is too many to cache is checked when it is reached.
    """
    given = prepare(examples, num_classes)
    size = _size(plan)
    arrays = _cached(given, size)

    def generator(purpose: int, number: int) -> np.random.Generator:
        return np.random.default_rng([seed % 2**64, purpose, number])

    def batches() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        first = start * plan.batch_size
        if arrays:
            drawn = _drawn(*arrays, size, first, plan.batch_size, generator)
        else:
            drawn = _stream(given, size, first, plan.batch_size, generator)
        for step, (images, labels) in zip(range(start, plan.steps), drawn, strict=False):
            images = cropped(images, plan, generator(1, step))
            if labels.ndim == 1:
                labels = np.eye(num_classes, dtype=np.float32)[labels]
            yield mixup(images, labels.astype(np.float32), plan.mixup_alpha, generator(2, step))

    return batches()


def _drawn(
    images: np.ndarray, labels: np.ndarray, size: int, position: int, batch: int, generator: Callable
) -> Iterator:
    """Batches without end from a position on, each epoch in an order of its own."""
    count = len(labels)

    @lru_cache(2)
    def order(epoch: int) -> np.ndarray:
        return generator(0, epoch).permutation(count)

    for first in itertools.count(position, batch):
        rows = np.array([order(at // count)[at % count] for at in range(first, first + batch)])
        yield resized(images[rows], size), labels[rows]


def _stream(given: Examples, size: int, position: int, batch: int, generator: Callable) -> Iterator:
    """As `_drawn`, of examples that are too many to cache."""
    room = max(1, CACHED_BYTES // (size * size * 3 * 4))
    count = given.count
    if count is None:  # Only to go on in the middle must they be counted.
        count = sum(1 for _ in given.read()) if position else 1
    first, skipped = divmod(position, count)

    def shuffled() -> Iterator:
        for epoch in itertools.count(first):
            rng, waiting = generator(0, epoch), list[tuple]()
            for example in _sized(given, size):
                if len(waiting) < room:
                    waiting.append(example)
                    continue
                at = rng.integers(room)
                yield waiting[at]
                waiting[at] = example
            yield from (waiting[at] for at in rng.permutation(len(waiting)))

    return _stacked(itertools.islice(shuffled(), skipped, None), batch)


def _stacked(examples: Iterable, size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Batches of up to `size` images of one size, and their labels."""
    for batch in batched(examples, size):
        images, labels = map(np.stack, zip(*batch, strict=True))
        yield images, labels


def _cached(given: Examples, size: int) -> tuple[np.ndarray, np.ndarray] | None:
    """Examples as arrays, resized unless they were arrays; None if they exceed `CACHED_BYTES`."""
    if given.arrays:
        return given.arrays
    most = CACHED_BYTES // (size * size * 3 * 4)
    if (given.count or 0) > most:
        return None
    images = np.empty((most, size, size, 3), np.float32)  # only what is filled takes memory
    labels: list[Any] = []
    with errors_in_words("train"):
        for image, label in _sized(given, size):
            if len(labels) == most:
                return None
            images[len(labels)] = image
            labels.append(label)
    return images[: len(labels)], np.stack(labels)


def evaluation_batches(
    examples: Any, plan: Plan, num_classes: int | None, batch_size: int = 64
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Every example once, in order, resized only; the last batch holds what is left.

    Args, Returns, Raises: as of `training_batches`, but labels are as they came, int64 `[N]` or vectors.
    """
    return _stacked(_sized(prepare(examples, num_classes), plan.crop), batch_size)
