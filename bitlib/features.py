"""From images to vectors, and what can be done with vectors alone: linear probes and neighbours."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from keras import ops

from bitlib import console
from bitlib.checkpoint import check_model
from bitlib.datasets import draw
from bitlib.inputs import array, check_flag, check_images, check_number, check_whole
from bitlib.model import BiT
from bitlib.ops import PLAIN
from bitlib.training.devices import forward
from bitlib.training.examples import image_batches

if TYPE_CHECKING:
    from numpy.typing import ArrayLike
    from sklearn.linear_model import LogisticRegression

STAGES = ("root", "block1", "block2", "block3", "block4", "features")


def extract(
    model: BiT,
    images: Any,
    stage: str = "features",
    pool: bool = True,
    batch_size: int = 32,
    verbose: int = 0,
) -> np.ndarray:
    """Features of images, before the head; two batches are in memory at a time, besides the result.

    Args:
        model: a `bitlib.model.BiT`, with or without a head.
        images: float in [-1, 1], of one size: an array `[N, H, W, 3]`, or anything that
            `bitlib.training.examples.prepare` takes. Labels are not looked at.
        stage: `features` as the head sees them, or the output of the `root` or of `block1` to `block4`.
        pool: whether to average a block's output over height and width.
        batch_size: images computed at once.
        verbose: 1 for a progress bar.

    Returns:
        float32 `[N, C]`, or `[N, H', W', C]` for a block without pooling.

    Raises:
        TypeError: `model` is not a BiT.
        ValueError: there is no such stage or no image; or images are not as `bitlib.inputs.check_images`
            wants them.
    """
    if stage not in STAGES:
        raise ValueError(f"stage: expected one of {', '.join(STAGES)}, received {stage!r}")
    check_model(model)
    check_whole("batch_size", batch_size)
    check_flag("pool", pool)
    compute = _compiled(model, stage, pool and stage != "features")
    results = []
    total = len(images) if isinstance(images, np.ndarray) and images.ndim else None
    with console.bar(total, "image", shown=bool(verbose)) as bar:
        for batch in image_batches(images, batch_size):
            results.append(compute(batch.astype(np.float32, copy=False)))
            bar.update(len(batch))
    return np.concatenate(results)


def _compiled(model: BiT, stage: str, average: bool) -> Callable[[np.ndarray], np.ndarray]:
    """A function that computes a stage, compiled once and cached with its model: tracing is slow."""

    def compute(batch):
        result = model.stages(batch)[stage]
        return ops.mean(result, axis=(1, 2)) if average else result

    # Past Keras, which would look for layers in it; and not while the model computes in another way.
    plain = model.root.convolution.arithmetic is PLAIN
    cache: dict = model.__dict__.setdefault("_extractors", {}) if plain else {}
    if (stage, average) not in cache:
        cache[stage, average] = forward(model, compute)
    return cache[stage, average]


def _check_vectors(name: str, vectors: ArrayLike) -> np.ndarray:
    """Vectors as an array; raises ValueError unless they are finite numbers `[N, C]`."""
    found = array(vectors, name)
    if found.ndim != 2 or not found.size or found.dtype.kind not in "biuf":
        raise ValueError(f"{name}: expected float [N, C], received {found.dtype} of shape {found.shape}")
    if not np.isfinite(found).all():
        row = int(np.argmin(np.isfinite(found).all(axis=1)))
        raise ValueError(f"{name}: expected finite numbers, received NaN or infinity, first in row {row}")
    return found


def _check_labelled(features: ArrayLike, labels: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Vectors and as many labels, numbers or names, of two classes or more; raises ValueError for others."""
    vectors, classes = _check_vectors("features", features), array(labels, "labels")
    if classes.ndim == 2 and classes.shape[1] == 1:
        classes = classes[:, 0]
    if classes.shape != (count := len(vectors),):
        raise ValueError(f"labels: expected one for each of {count} features, received {classes.shape}")
    values, expected = classes.tolist(), "labels: expected class numbers or names, received"
    if classes.dtype.kind in "OSU" and not any(value is None or value != value for value in values):
        # NumPy makes texts of a list of several kinds; of a column of pandas, numbers stay numbers.
        given = labels if isinstance(labels, (list, tuple)) and np.ndim(labels[0]) == 0 else values
        kinds = {str if isinstance(value, str) else type(value) for value in given}
        if len(kinds) > 1 or not isinstance(values[0], (str, int, float, np.number)):
            raise ValueError(f"{expected} several kinds of values")
        classes = np.asarray(values)
    if classes.dtype == object or (classes.dtype.kind == "f" and (classes != np.floor(classes)).any()):
        raise ValueError(f"{expected} missing values or fractions")
    if len(np.unique(classes)) < 2:
        raise ValueError(f"labels: expected two classes or more, received {classes.tolist()[0]!r} alone")
    return vectors, classes


def linear_probe(features: ArrayLike, labels: ArrayLike, regularization: float = 1.0) -> LogisticRegression:
    """Fit scikit-learn's logistic regression on features, the simplest way to use them.

    Args:
        features: float `[N, C]`.
        labels: `[N]`, numbers or names.
        regularization: scikit-learn's `C`, the inverse of the penalty's strength.

    Raises:
        ValueError: `features` are not finite `[N, C]`; `labels` are not N, or of one class alone.
    """
    from sklearn.linear_model import LogisticRegression
    from threadpoolctl import threadpool_limits

    features, labels = _check_labelled(features, labels)
    check_number("regularization", regularization)
    # Threads waiting for each other make a small fit ten times slower, on a busy machine hundreds of times.
    with threadpool_limits(1 if np.size(features) < 10_000_000 else None):
        return LogisticRegression(C=regularization, max_iter=5000).fit(features, labels)


def few_shot(
    features: ArrayLike,
    labels: ArrayLike,
    shots: int,
    draws: int = 5,
    num_test: int | None = 800,
    seed: int = 0,
) -> np.ndarray:
    """Accuracy of linear probes that saw only a few examples of each class: float64 `[draws]` in [0, 1].

    Args:
        features, labels: as of `linear_probe`.
        shots: examples of each class to learn from, drawn by `bitlib.datasets.draw`.
        draws: how often, with seeds `seed`, `seed + 1`, …
        num_test: other examples, to score on; None for all others.

    Raises:
        ValueError: as `linear_probe`; or a class has fewer than `shots` examples left.
    """
    features, labels = _check_labelled(features, labels)
    check_whole("shots", shots)
    check_whole("draws", draws)
    if num_test is not None:
        check_whole("num_test", num_test)
    check_whole("seed", seed, least=0)
    scores = []
    for each in range(seed, seed + draws):
        train, test = draw(labels, shots, num_test, each)
        scores.append(linear_probe(features[train], labels[train]).score(features[test], labels[test]))
    return np.array(scores)


def nearest(features: np.ndarray, queries: np.ndarray, count: int = 5) -> tuple[np.ndarray, np.ndarray]:
    """The features, float `[N, C]`, most similar to each of the queries, float `[Q, C]`, by cosine.

    Returns:
        indices int `[Q, count]` into `features`, most similar first, and similarities `[Q, count]`
        in [-1, 1].

    Raises:
        ValueError: vectors are not finite, or of two lengths; `count` is not 1 to the number of vectors.
    """
    from sklearn.neighbors import NearestNeighbors

    features, queries = _check_vectors("features", features), _check_vectors("queries", queries)
    if queries.shape[1] != features.shape[1]:
        raise ValueError(f"queries: expected [Q, {features.shape[1]}], received {list(queries.shape)}")
    check_whole("count", count, len(features))
    index = NearestNeighbors(n_neighbors=count, metric="cosine").fit(features)
    distances, indices = index.kneighbors(queries)
    return indices, 1 - distances


def shrink(images: np.ndarray, size: int = 8) -> np.ndarray:
    """Raw pixels as vectors, to compare features with: grey pictures averaged down to a few pixels.

    From images float `[N, H, W, 3]` to float32 `[N, size * size]`.

    Raises: ValueError, if `images` are something else, or `size` is below 1.
    """
    check_images(images, smallest=1, warn=False)
    check_whole("size", size)
    grey = array(images, "images").mean(-1)
    rows, columns = (_shares(side, size) for side in grey.shape[1:])
    return (rows @ grey @ columns.T).reshape(len(grey), -1).astype(np.float32)


def _shares(length: int, size: int) -> np.ndarray:
    """How much of each of `size` equal parts of a line lies in each of its `length` pixels."""
    ends = np.arange(length + 1) * size / length - np.arange(size)[:, None]
    return np.diff(np.clip(ends, 0, 1))
