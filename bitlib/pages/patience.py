"""How consistent and how patient must a teacher be? The comparison of page 06, after arXiv 2106.05237.

A few pictures have labels, and a teacher is tuned on them. A student, a small network, then learns from all
pictures without labels, or from the labelled ones without a teacher. `scripts/patience.py` computes every
method at several lengths, and stores what comes out in `data/patience.csv`.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from bitlib import checkpoint, datasets, distill, finetune, hyperrule, images
from bitlib.files.writing import bundled
from bitlib.model import BiT
from bitlib.pages.vtab import read_rows
from bitlib.training import augment

if TYPE_CHECKING:
    from bitlib.checkpoint import Source

LEARNING_RATE = 3e-3  #: of the student's first step, whatever it learns from
NUM_TEST = 1000  #: pictures set aside, at most


@dataclass(frozen=True)
class Data:
    """Pictures, some of them with labels: float32 `[N, H, W, 3]` in [-1, 1], of 1.5 times the size of a crop.

    Attributes:
        crop: height and width of what teacher and student see, in pixels.
        images: those to learn from, without labels.
        labelled, test: images and labels, of the few among `images` that have some, and of those set aside.
    """

    crop: int
    images: np.ndarray
    labelled: tuple[np.ndarray, np.ndarray]
    test: tuple[np.ndarray, np.ndarray]
    class_names: list[str]


def data(source: Source, name: str = "mnist", shots: int = 20, seed: int = 0, crop: int = 32) -> Data:
    """Draw pictures to learn from and to test on, of a set `name` as `bitlib.datasets.labelled` takes it.

    `shots` of each class have labels; `source` is that of the teacher.

    Raises: as `labelled`; ValueError, if `shots` is more than the rarest class has.
    """
    found = datasets.labelled(name)
    few, test = datasets.draw(found[1], shots, min(NUM_TEST, len(found[1]) // 5), seed)
    batch = images.batch(found[0], source.card, crop * 3 // 2)
    learnt = np.setdiff1d(np.arange(len(batch)), test)
    return Data(crop, batch[learnt], (batch[few], found[1][few]), (batch[test], found[1][test]), found[2])


def teacher(source: Source, given: Data, seed: int = 0, steps: int = 150) -> BiT:
    """A BiT, tuned by the rule on the labelled pictures."""
    model = checkpoint.load(source, head=given.class_names)
    size: dict[str, Any] = {"resize": given.crop * 8 // 7, "crop": given.crop}
    how = finetune.SMALL_MODEL | size | {"steps": steps, "random_flip": False}
    rule = hyperrule.plan(len(given.labelled[1]), given.crop, **how)
    finetune.fit(model, given.labelled, rule, seed=seed, verbose=0)
    return model


def student(num_classes: int, width: int = 16, seed: int = 0) -> keras.Sequential:
    """Six 3×3 convolutions of `width`, twice and four times as many channels; a dense layer."""
    keras.utils.set_random_seed(seed)
    layers = keras.layers
    parts: list[keras.Layer] = [keras.Input((None, None, 3))]
    for channels in (width, 2 * width, 4 * width):
        for strides in (2, 1):
            parts.append(layers.Conv2D(channels, 3, strides, padding="same", use_bias=False))
            parts += [layers.BatchNormalization(momentum=0.9), layers.ReLU()]
    return keras.Sequential([*parts, layers.GlobalAveragePooling2D(), layers.Dense(num_classes)])


class View(keras.layers.Layer):
    """Cut `[N, H, W, 3]` to `[N, crop, crop, 3]`: each picture at random, or all at the centre."""

    def __init__(self, crop: int, random: bool):
        super().__init__(trainable=False)
        self.crop, self.random = crop, random

    def call(self, pictures: tf.Tensor) -> tf.Tensor:
        """In training and in inference alike."""
        if not self.random:
            return tf.image.resize_with_crop_or_pad(pictures, self.crop, self.crop)
        count, height = tf.unstack(tf.shape(pictures)[:2])
        corners = tf.random.uniform((2, count, 1), maxval=height - self.crop + 1, dtype=tf.int32)
        top, left = tf.unstack(corners + tf.range(self.crop))
        rows = tf.gather(pictures, top, axis=1, batch_dims=1)
        return tf.gather(rows, left, axis=2, batch_dims=1)


def resized(pictures: np.ndarray, size: int) -> np.ndarray:
    """Whole pictures, float32 `[N, size, size, 3]`, as a network is tested on them."""
    return augment.resized(pictures, size)


def accuracy(model: keras.Model, given: Data) -> float:
    """Share of the test pictures, whole and resized, whose largest logit is that of their class."""
    pictures, labels = given.test
    logits = model.predict(resized(pictures, given.crop), verbose=0)
    return float(np.mean(np.argmax(logits, axis=-1) == labels))


def matched(
    given: Data,
    teacher: BiT,
    steps: int,
    seed: int = 0,
    views: str = "the same",
    pictures: np.ndarray | None = None,
    resize: int | None = None,
    width: int = 16,
) -> float:
    """The accuracy of a student that was matched with the teacher, without labels.

    Args:
        given, teacher: of `data` and `teacher`.
        seed: of the student's weights, of batches, crops and MixUp.
        views: what the two see of a picture: `the same` crop; `independent` crops; or the student crops
            and the teacher always the centre, `fixed`.
        pictures: to match on; None for those of `given`.
        resize: height and width that crops are cut from, in pixels; None for those of `given`'s images.
    """
    pictures = given.images if pictures is None else pictures
    resize = resize or given.images.shape[1]
    small = student(len(given.class_names), width, seed)
    how: dict[str, Any] = {"seed": seed, "verbose": 0, "learning_rate": LEARNING_RATE, "random_flip": False}
    if views == "the same":
        distill.match(teacher, small, pictures, steps, crop=given.crop, resize=resize, **how)
    else:
        seen = keras.Sequential([View(given.crop, random=views == "independent"), teacher])
        cropped = keras.Sequential([View(given.crop, random=True), small])
        distill.match(seen, cropped, pictures, steps, crop=resize, random_crop=False, **how)
    return accuracy(small, given)


def from_labels(
    given: Data, teacher: BiT | None, steps: int, seed: int = 0, resize: int | None = None, width: int = 16
) -> float:
    """As `matched`, of the same student trained on the labelled pictures: same crops, MixUp, optimizer."""
    small = student(len(given.class_names), width, seed)
    resize = resize or given.images.shape[1]
    rule = distill.plan(given.crop, steps, resize, learning_rate=LEARNING_RATE, random_flip=False)
    batches = augment.training_batches(given.labelled, rule, len(given.class_names), seed)
    optimizer = keras.optimizers.AdamW(rule.base_lr, weight_decay=1e-4, global_clipnorm=1.0)
    small.compile(optimizer, keras.losses.CategoricalCrossentropy(from_logits=True))

    def set_rate(step: int, logs: Any) -> None:
        optimizer.learning_rate = rule.learning_rate(step)

    rates = keras.callbacks.LambdaCallback(on_train_batch_begin=set_rate)
    small.fit(batches, steps_per_epoch=steps, shuffle=False, verbose=0, callbacks=[rates])
    return accuracy(small, given)


LENGTHS = (125, 500, 2000)  #: steps of the stored runs

METHODS: dict[str, Callable[..., float]] = {
    "function matching": matched,
    "independent views": partial(matched, views="independent"),
    "fixed teacher": partial(matched, views="fixed"),
    "labels alone": from_labels,
}
"""Ways to train a student; each takes the data, the teacher, the steps and the seed."""


class Result(NamedTuple):
    """A row of `data/patience.csv`."""

    method: str
    steps: int
    seed: int
    accuracy: float
    date: str


def stored(path: str | os.PathLike | None = None) -> list[Result]:
    """The rows of a file of `scripts/patience.py`; None for what it found for the bundled model."""
    return read_rows(path or bundled("patience.csv"), Result)


def by_method(results: list[Result]) -> dict[str, dict[int, list[float]]]:
    """Accuracies of every seed, by method and steps."""
    found: dict[str, dict[int, list[float]]] = {}
    for result in sorted(results, key=lambda row: row.steps):
        found.setdefault(result.method, {}).setdefault(result.steps, []).append(result.accuracy)
    return found
