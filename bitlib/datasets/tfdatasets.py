"""Data sets of TensorFlow Datasets, by name: a split in memory, its pictures encoded, or read from disk."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import numpy as np
import requests

from bitlib.files.fetching import offline
from bitlib.files.writing import expanded
from bitlib.inputs import tensorflow
from bitlib.zoo import BASE_URL

if TYPE_CHECKING:
    import tensorflow as tf


def tfds(
    name: str, split: str = "train", data_dir: str | os.PathLike | None = None
) -> tuple[list, np.ndarray, list[str]]:
    """A split of TensorFlow Datasets, as a labelled set: pictures stay encoded, as they are stored (bytes).

    Args:
        name: of a data set with one picture and one class label an example (`cifar10`, `cifar10:3.0.2`).
        split: as TFDS writes them: `train`, `test`, `train[:10000]`, `train+validation`.
        data_dir: the folder of an offline copy; None for TFDS' own. What is not there is downloaded by TFDS,
            unless `BITLIB_OFFLINE` is 1.

    Raises: ImportError, if tensorflow-datasets is not installed; ValueError, if there is no such data set or
        split, it has no pictures or class labels, or cannot be had.
    """
    stored, (image, label), class_names = _stored(name, split, data_dir)
    pairs = [(example[image], example[label]) for example in stored.as_numpy_iterator()]
    labels = np.array([label for _, label in pairs], np.int64)
    if not len(labels) or labels.min() < 0:
        raise ValueError(f"split: {split} of {name} has no {'labels' if len(labels) else 'examples'}")
    return [picture for picture, _ in pairs], labels, class_names


def stream(
    name: str, split: str, size: int, data_dir: str | os.PathLike | None = None, context: Any = None
) -> tuple[tf.data.Dataset, list[str]]:
    """As `tfds`, for a split that does not fit into memory: read from disk in each epoch.

    Args:
        name, split, data_dir: as of `tfds`, which also says what is raised.
        size: height and width to resize to, bilinearly, in pixels.
        context: a `tf.distribute.InputContext` gives this machine its part of the split; None for all.

    Returns:
        an unbatched `tf.data.Dataset` of images float32 `[size, size, 3]` in [-1, 1] and int64 labels, in the
        order of its files; and the class names.
    """
    tf = tensorflow("bitlib.datasets.stream")
    stored, (image, label), class_names = _stored(name, split, data_dir, context)

    def load(example):
        decoded = tf.io.decode_image(example[image], 3, expand_animations=False)
        resized = tf.image.resize(decoded, (size, size), "bilinear")
        return tf.ensure_shape(resized, (size, size, 3)) / 127.5 - 1, example[label]

    return stored.map(load, tf.data.AUTOTUNE, deterministic=True), class_names


def builder_of(name: str, data_dir: str | os.PathLike | None) -> tuple[Any, tuple]:
    """TFDS' own object for a data set, prepared; and the keys of its image and its label."""
    try:
        import tensorflow_datasets
    except ImportError:
        reason = "the package is not installed; pip install 'bitlib[datasets]', or use a folder or \"digits\""
        raise ImportError(f"tensorflow-datasets: {reason}") from None
    data_dir = None if data_dir is None else expanded(data_dir, "data_dir")
    try:
        builder = tensorflow_datasets.builder(name, data_dir=data_dir)
    except Exception as error:  # each of them has several reasons for saying no
        reason = f"in TensorFlow Datasets ({_first_line(error)})"
        raise ValueError(f"name: no data set {name!r} {reason}") from error
    keys, features = builder.info.supervised_keys or (), builder.info.features
    kinds = (tensorflow_datasets.features.Image, tensorflow_datasets.features.ClassLabel)
    if len(keys) != 2 or not all(map(isinstance, [features[key] for key in keys], kinds)):
        raise ValueError(f"name: {name} is not of pictures with one class label each")
    if not builder.is_prepared():
        if offline():
            where = data_dir or "the folder of TensorFlow Datasets"
            raise ValueError(f"name: {name} is not in {where}, and BITLIB_OFFLINE=1 forbids to download it")
        if not builder.MANUAL_DOWNLOAD_INSTRUCTIONS and not _answer(BASE_URL, builder.info.homepage):
            way = f"tensorflow_datasets.builder({name!r}).download_and_prepare() takes files that are here"
            raise ValueError(f"name: {name} has to be downloaded, and there is no network; {way}")
        try:
            builder.download_and_prepare()
        except Exception as error:
            trouble = f"TensorFlow Datasets cannot prepare {name} ({_first_line(error)})"
            raise ValueError(f"name: {trouble}") from error
    return builder, keys


def _answer(*addresses: str) -> bool:
    """Whether one of these servers does, within seconds; TFDS itself tries for minutes."""
    for address in filter(None, addresses):
        with suppress(requests.RequestException):
            requests.head(address, timeout=3)
            return True
    return False


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _stored(name: str, split: str, data_dir, context=None) -> tuple[tf.data.Dataset, tuple, list[str]]:
    """A split, its pictures encoded as they are stored; the keys of image and label; and the class names."""
    builder, (image, label) = builder_of(name, data_dir)
    import tensorflow_datasets

    if context:
        split = tensorflow_datasets.even_splits(split, context.num_input_pipelines)[context.input_pipeline_id]
    encoded = {image: tensorflow_datasets.decode.SkipDecoding()}
    try:
        stored = builder.as_dataset(split=split, decoders=encoded, shuffle_files=False)
        return stored, (image, label), list(builder.info.features[label].names)
    except ValueError as error:
        known = ", ".join(builder.info.splits)
        raise ValueError(f"split: {name} has {known}, received {split!r}") from error
