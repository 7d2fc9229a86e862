"""From images to vectors, and what can be done with vectors alone: linear probes and neighbours."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sized
from typing import TYPE_CHECKING

import numpy as np

from bitlib import progress
from bitlib.datasets import draw
from bitlib.inputs import check_range

if TYPE_CHECKING:
    from numpy.typing import ArrayLike
    from sklearn.linear_model import LogisticRegression

    from bitlib.model import BiT

STAGES = ("root", "block1", "block2", "block3", "block4", "features")


def extract(
    model: BiT,
    images: np.ndarray | Iterable,
    stage: str = "features",
    pool: bool = True,
    batch_size: int = 32,
    verbose: int = 0,
) -> np.ndarray:
    """What a network makes of images, before its head.

    Two batches are in memory at a time, besides the result: one that is computed, one that is read.

    Args:
        model: a `bitlib.model.BiT`, with or without a head.
        images: float in [-1, 1]: an array `[N, H, W, 3]`, any iterable of images `[H, W, 3]` of one
            size, or an unbatched `tf.data.Dataset` of images or of (image, label) pairs.
        stage: `features` as the head sees them (after GroupNorm, ReLU and average pooling), or the
            output of the `root` or of a block, `block1` to `block4`.
        pool: whether to average a block's output over height and width.
        batch_size: images computed at once.
        verbose: 1 for a progress bar.

    Returns:
        float32 `[N, C]`, or `[N, H', W', C]` for a block without pooling.

    Raises:
        ValueError: there is no such stage, no image, or `batch_size` is below 1; or an image is not
            in [-1, 1], as `bitlib.model.check_range` tells.
    """
    import tensorflow as tf

    if stage not in STAGES:
        raise ValueError(f"stage: expected one of {', '.join(STAGES)}, received {stage!r}")
    if batch_size < 1:
        raise ValueError(f"batch_size: expected at least 1, received {batch_size}")
    compute = _traced(model, stage, pool and stage != "features")
    results = []
    total = len(images) if isinstance(images, Sized) else None
    with progress.bar(total, "image", shown=bool(verbose)) as bar:
        for batch in _batches(images, batch_size):
            check_range(batch)
            results.append(compute(tf.constant(batch, tf.float32)).numpy().astype(np.float32))
            bar.update(len(batch))
    if not results:
        raise ValueError("images: expected at least one, received none")
    return np.concatenate(results)


def _traced(model, stage: str, average: bool):
    """The graph that computes a stage: traced once and cached with its model, for an R50x1 takes as long to
    trace as fifty images to compute."""
    import tensorflow as tf

    from bitlib.ops import PLAIN

    # Past Keras, which would look for layers in it; and not while the model computes in another way.
    cache = vars(model).setdefault("_extractors", {}) if model.root.convolution.arithmetic is PLAIN else {}
    if (stage, average) not in cache:

        def compute(batch):
            result = model.stages(batch)[stage]
            return tf.reduce_mean(result, axis=(1, 2)) if average else result

        images = tf.TensorSpec((None, None, None, 3), tf.float32)
        cache[stage, average] = tf.function(compute).get_concrete_function(images)
    return cache[stage, average]


def _batches(images, batch_size: int) -> Iterator[np.ndarray]:
    """Whatever holds images -> arrays of up to `batch_size` of them; of pairs the first."""
    import tensorflow as tf

    if isinstance(images, np.ndarray):
        for start in range(0, len(images), batch_size):
            yield images[start : start + batch_size]
        return
    if isinstance(images, tf.data.Dataset):  # read the next batch while one is computed
        alone = images.map(lambda image, *_: image)
        yield from alone.batch(batch_size).prefetch(1).as_numpy_iterator()
        return
    collected: list[np.ndarray] = []
    for image in images:
        collected.append(np.asarray(image[0] if isinstance(image, tuple) else image, np.float32))
        if len(collected) == batch_size:
            yield np.stack(collected)
            collected = []
    if collected:
        yield np.stack(collected)


def linear_probe(features: ArrayLike, labels: ArrayLike, regularization: float = 1.0) -> LogisticRegression:
    """Fit a logistic regression on features, the simplest way to use them.

    Args:
        features: float `[N, C]`.
        labels: `[N]`.
        regularization: scikit-learn's `C`, the inverse of the penalty's strength.

    Returns:
        A fitted scikit-learn classifier, with `predict` and `score`.
    """
    from sklearn.linear_model import LogisticRegression
    from threadpoolctl import threadpool_limits

    # Threads waiting for each other make a small fit ten times slower, on a busy machine hundreds of times.
    with threadpool_limits(1 if np.size(features) < 10_000_000 else None):
        return LogisticRegression(C=regularization, max_iter=5000).fit(features, labels)


def few_shot(
    features: ArrayLike, labels: ArrayLike, shots: int, draws: int = 5, num_test: int = 800, seed: int = 0
) -> np.ndarray:
    """Accuracy of linear probes that saw only a few examples of each class.

    For each draw (`bitlib.datasets.draw`) a probe is fitted on `shots` examples of each class, and scored
    on `num_test` others.

    Args:
        features: float `[N, C]`.
        labels: int `[N]`.
        shots: examples of each class to learn from.
        draws: how often, with seeds `seed`, `seed + 1`, …
        num_test: examples to score on.

    Returns:
        float64 `[draws]` in [0, 1].

    Raises:
        ValueError: a class has fewer than `shots` examples left.
    """
    features, labels = np.asarray(features), np.asarray(labels)
    scores = []
    for each in range(seed, seed + draws):
        train, test = draw(labels, shots, num_test, each)
        scores.append(linear_probe(features[train], labels[train]).score(features[test], labels[test]))
    return np.array(scores)


def nearest(features: np.ndarray, queries: np.ndarray, count: int = 5) -> tuple[np.ndarray, np.ndarray]:
    """The most similar of a set of vectors, by cosine.

    Args:
        features: float `[N, C]`, where to look.
        queries: float `[Q, C]`, what to look for.
        count: neighbours of each query.

    Returns:
        indices int `[Q, count]` into `features`, most similar first, and similarities `[Q, count]`
        in [-1, 1].

    Raises:
        ValueError: `count` is below 1 or above the number of vectors.
    """
    from sklearn.neighbors import NearestNeighbors

    if not 1 <= count <= len(features):
        raise ValueError(f"count: expected 1 to {len(features)}, received {count}")
    index = NearestNeighbors(n_neighbors=count, metric="cosine").fit(features)
    distances, indices = index.kneighbors(queries)
    return indices, 1 - distances


def shrink(images: np.ndarray, size: int = 8) -> np.ndarray:
    """Raw pixels as vectors, to compare features with: grey pictures of a few pixels each.

    Args:
        images: float `[N, H, W, 3]`.
        size: height and width to average them down to.

    Returns:
        float32 `[N, size * size]`.
    """
    import tensorflow as tf

    grey = tf.reduce_mean(images, axis=-1, keepdims=True)
    return tf.reshape(tf.image.resize(grey, (size, size), "area"), (len(images), -1)).numpy()
