"""A Plan as `tf.data`: its crops, flips and MixUp.

Every batch is a pure function of the seed and of the step's number. That is what lets a training that
was stopped go on as if it had not been.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow import Tensor

from bitlib.examples import Examples, errors_in_words, prepare
from bitlib.hyperrule import Plan

CACHED_BYTES = 1 << 30
"""A dataset whose resized pictures fit into this memory is read once and cached; a larger one is read anew in
each epoch, and shuffled within this memory. Three times as much is used for a moment, while one is cached."""


def _resized(plan: Plan) -> int:
    """Height and width of a training image before it is cropped, if it is."""
    return plan.resize if plan.random_crop else plan.crop


def training_image(image: Tensor, plan: Plan, seed: Tensor) -> Tensor:
    """Resize, cut out and mirror at random, as the plan says: float `[H, W, 3]` -> float32 `[crop, crop, 3]`.

    The same seed, int `[2]`, gives the same crop.
    """
    crop_seed, flip_seed = tf.unstack(tf.random.split(seed, 2))
    size = _resized(plan)
    image = tf.image.resize(image, (size, size), "bilinear")
    if size > plan.crop:
        image = tf.image.stateless_random_crop(image, (plan.crop, plan.crop, 3), crop_seed)
    if plan.random_flip:
        image = tf.image.stateless_random_flip_left_right(image, flip_seed)
    return image


def evaluation_image(image: Tensor, plan: Plan) -> Tensor:
    """Resize only: float `[H, W, 3]` or `[N, H, W, 3]` -> float32, `crop` high and wide."""
    return tf.image.resize(image, (plan.crop, plan.crop), "bilinear")


def mixup(images: Tensor, labels: Tensor, alpha: float, seed: Tensor) -> tuple[Tensor, Tensor]:
    """Blend every example of a batch with another one of it (arXiv 1710.09412, equation 1).

    Partners are drawn at random, the share λ from Beta(α, α), one for the whole batch as in the official
    code of BiT.

    Args:
        images, labels: float `[N, H, W, 3]` and `[N, classes]`; so are those that are returned.
        alpha: of the Beta distribution; 0 for no MixUp.
        seed: int `[2]`.
    """
    if alpha == 0:
        return images, labels
    share_seed, partner_seed = tf.unstack(tf.random.split(seed, 2))
    # Beta(α, α) as a ratio of two Gammas; of both so small that they round to 0, neither has a share.
    first, second = tf.unstack(tf.random.stateless_gamma([2], share_seed, alpha, dtype=tf.float64))
    share = tf.cast(tf.where(first + second > 0, first / (first + second), 1.0), images.dtype)
    partners = tf.random.experimental.stateless_shuffle(tf.range(tf.shape(images)[0]), partner_seed)

    def blend(values):
        return share * values + (1 - share) * tf.gather(values, partners)

    return blend(images), blend(labels)


def training_batches(
    examples: Any, plan: Plan, num_classes: int, seed: int = 0, start: int = 0
) -> tf.data.Dataset:
    """The batches of a training, step by step.

    Examples are shuffled anew each time all have been seen; batches run across these epochs, so no
    example is left out or seen twice in one.

    Args:
        examples: as `bitlib.examples.prepare` takes and makes them; images may differ in size. A Dataset that
            does not fit into `CACHED_BYTES` is shuffled as far as that allows: let it come shuffled, too.
        plan, seed: as of `bitlib.finetune.fit`.
        num_classes: labels are 0 to `num_classes - 1`.
        start: step to begin with.

    Returns:
        A dataset of images float32 `[batch, crop, crop, 3]` and labels float32 `[batch, num_classes]`.

    Raises:
        ValueError: as `prepare`. An example of a Dataset that is too large to cache is checked when it is
            reached; within `bitlib.examples.errors_in_words`, that is the same error.
    """
    base = tf.constant([seed & 0x7FFFFFFF, seed >> 31 & 0x7FFFFFFF], tf.int64)

    def seeded(purpose, number):
        return tf.random.fold_in(tf.random.fold_in(base, purpose), number)

    def augment(position, example):
        image, label = example
        image = training_image(tf.cast(image, tf.float32), plan, seeded(1, position))
        return image, tf.cast(label, tf.float32) if label.shape.rank else tf.one_hot(label, num_classes)

    def mix(step, batch):
        images, labels = batch
        return mixup(images, labels, plan.mixup_alpha, seeded(2, step))

    position = start * plan.batch_size
    given = prepare(examples, num_classes)
    cached = given.pairs if isinstance(given.pairs, tuple) else _cached(given.pairs, plan)
    shuffled = _stream(given, position, seeded) if cached is None else _drawn(cached, position, seeded)
    return (
        shuffled.enumerate(position)
        .map(augment, tf.data.AUTOTUNE, deterministic=True)
        .batch(plan.batch_size, drop_remainder=True)
        .enumerate(start)
        .map(mix)
        .take(max(0, plan.steps - start))
        .prefetch(2)
    )


def _drawn(arrays: tuple[np.ndarray, np.ndarray], position: int, seeded) -> tf.data.Dataset:
    """Examples without end from a position on, each epoch in an order of its own."""
    with tf.device("CPU"):
        images, labels = (tf.constant(array) for array in arrays)
    count = len(labels)

    def example(position):
        seed = seeded(0, position // count)
        index = tf.random.experimental.index_shuffle(position % count, seed, count - 1)
        return images[index], labels[index]

    return tf.data.Dataset.range(position, np.iinfo(np.int64).max).map(example)


def _stream(given: Examples, position: int, seeded) -> tf.data.Dataset:
    """As `_drawn`, for a dataset that is too large to cache."""
    examples = given.pairs
    buffer = max(1, CACHED_BYTES // (given.first.size * 4))
    count = int(examples.cardinality())
    if count < 1:  # Only to go on in the middle must they be counted; a run from the start needs no number.
        count = int(examples.reduce(np.int64(0), lambda n, _: n + 1)) if position else 1
    first, skipped = divmod(position, count)

    def epoch(number):
        # A global seed, where someone has set one, would mix into the order.
        tf.compat.v1.set_random_seed(None)
        seed = tf.random.stateless_uniform((), seeded(0, number), None, None, tf.int64)
        return examples.shuffle(buffer, seed, reshuffle_each_iteration=False)

    return tf.data.Dataset.range(first, np.iinfo(np.int64).max).flat_map(epoch).skip(skipped)


def _cached(examples: tf.data.Dataset, plan: Plan) -> tuple[np.ndarray, np.ndarray] | None:
    """A dataset as arrays, resized as the plan will resize them; None if they exceed `CACHED_BYTES`."""
    size = _resized(plan)
    most = CACHED_BYTES // (size * size * 3 * 4)
    if int(examples.cardinality()) > most:
        return None

    def resize(image, label):
        return tf.image.resize(tf.cast(image, tf.float32), (size, size), "bilinear"), label

    images = np.empty((most, size, size, 3), np.float32)  # only what is filled takes memory
    labels: list[np.ndarray] = []
    with errors_in_words("train"):
        for image, label in examples.map(resize, tf.data.AUTOTUNE, deterministic=True).as_numpy_iterator():
            if len(labels) == most:
                return None
            images[len(labels)] = image
            labels.append(label)
    return images[: len(labels)], np.stack(labels)


def evaluation_batches(examples: Any, plan: Plan, num_classes: int, batch_size: int = 64) -> tf.data.Dataset:
    """Every example once, in order, resized only; the last batch holds what is left.

    Args, Returns, Raises: as of `training_batches`, but labels are as they came, int64 `[N]` or vectors.
    """
    pairs = prepare(examples, num_classes).pairs
    if isinstance(pairs, tuple):
        with tf.device("CPU"):
            pairs = tf.data.Dataset.from_tensor_slices(pairs)

    def resize(image, label):
        return evaluation_image(tf.cast(image, tf.float32), plan), label

    return pairs.map(resize, tf.data.AUTOTUNE, deterministic=True).batch(batch_size).prefetch(2)
