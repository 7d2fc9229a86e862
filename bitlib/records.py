"""Pictures and labels in TFRecord files, so that each of many machines reads its part and no more.

    records.write(pictures, labels, class_names, "/shared/my_records")
    finetune.fit(model, records.find("/shared/my_records").part, plan)

Small files are what network disks and buckets are slow at; a few hundred large ones are read in long runs.
Pictures are stored as they are in theirs, JPEG as JPEG. An example's features have the names that TensorFlow
Datasets gives them, `image` and `label`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
import tensorflow as tf
from numpy.typing import ArrayLike

from bitlib import datasets, images
from bitlib.writing import replacing

INDEX = "records.json"
"""The file of a folder that says what lies in the others."""


@dataclass(frozen=True)
class Records:
    """What `write` wrote.

    Attributes:
        folder: where the files are.
        class_names: in the order of the labels.
        counts: examples of each file; as many as there are files.
    """

    folder: Path
    class_names: list[str]
    counts: list[int]

    def __len__(self) -> int:
        """Examples in all."""
        return sum(self.counts)

    def part(
        self, context: tf.distribute.InputContext | None = None, size: int | None = None
    ) -> tf.data.Dataset:
        """The examples of one machine's files, each once, in the same order each time.

        Args:
            context: says which of how many machines this is, and takes every n-th file; None for all.
            size: height and width to resize to, bilinearly, in pixels; None to leave pictures as they are.

        Returns:
            An unbatched dataset of images float32 `[H, W, 3]` in [-1, 1] and int64 labels.

        Raises:
            ValueError: there are more machines than files.
        """
        context = context or tf.distribute.InputContext()
        machines, index = context.num_input_pipelines, context.input_pipeline_id
        if machines > len(self.counts):
            raise ValueError(
                f"{self.folder}: {len(self.counts)} files cannot be shared by {machines} machines; write more"
            )
        names = [str(self.folder / _name(number, len(self.counts))) for number in range(len(self.counts))]
        load = datasets.loader(lambda encoded: encoded, size)

        def example(record):
            kinds = {
                "image": tf.io.FixedLenFeature((), tf.string),
                "label": tf.io.FixedLenFeature((), tf.int64),
            }
            features = tf.io.parse_single_example(record, kinds)
            return load(features["image"]), features["label"]

        return (
            tf.data.TFRecordDataset(names[index::machines])
            .map(example, tf.data.AUTOTUNE, deterministic=True)
            .apply(tf.data.experimental.assert_cardinality(sum(self.counts[index::machines])))
        )


def _name(number: int, files: int) -> str:
    return f"examples-{number:05d}-of-{files:05d}.tfrecord"


def find(folder: str | os.PathLike) -> Records:
    """Look up a folder that `write` wrote.

    Raises:
        FileNotFoundError: it is none.
    """
    folder = Path(os.path.expanduser(folder))
    index = folder / INDEX
    if not index.is_file():
        raise FileNotFoundError(f"folder: {folder} has no {INDEX}, expected one that records.write wrote")
    return Records(folder, **json.loads(index.read_text("utf-8")))


def write(
    pictures: Sequence,
    labels: ArrayLike,
    class_names: Sequence[str],
    folder: str | os.PathLike,
    files: int = 16,
    seed: int = 0,
) -> Records:
    """Write a labelled set as TFRecord files, in random order, so that each file is a sample of all.

    Args:
        pictures, labels, class_names: as `bitlib.datasets.labelled` and `bitlib.datasets.folder` give them.
            Files are copied as they are, arrays stored as PNG.
        folder: to write; an earlier one that this wrote is replaced once the new one is complete.
        files: at least one for each machine; a multiple of their number gives all the same work.
        seed: of the order.

    Returns:
        What was written.

    Raises:
        ValueError: as `bitlib.datasets.paired`; there are fewer pictures than files, or a label without a
            name; or a picture that is not in a file cannot be read.
        FileExistsError: `folder` holds something else.
    """
    pictures, labels = datasets.paired(pictures, labels)
    if isinstance(class_names, str) or labels.max() >= len(class_names):
        expected = f"expected 0 to {len(class_names) - 1}, as there are {len(class_names)} names"
        raise ValueError(f"labels: {expected} in class_names; received {labels.min()} to {labels.max()}")
    if not 1 <= files <= len(labels):
        raise ValueError(f"files: expected 1 to {len(labels)}, the number of pictures, received {files}")
    folder = Path(os.path.expanduser(folder))
    folder.parent.mkdir(parents=True, exist_ok=True)
    parts = [np.random.default_rng(seed).permutation(len(labels))[number::files] for number in range(files)]
    with replacing(folder, unless=_holds_others) as temporary:
        temporary.mkdir()
        for number, part in enumerate(parts):
            with tf.io.TFRecordWriter(str(temporary / _name(number, files))) as writer:
                for index in part:
                    writer.write(_example(pictures[index], labels[index]).SerializeToString())
        about = {"class_names": list(class_names), "counts": [len(part) for part in parts]}
        (temporary / INDEX).write_text(json.dumps(about), "utf-8")
    return find(folder)


def _holds_others(folder: Path) -> str | None:
    """Why a folder may not be replaced; None if it is empty, or of records and nothing else."""
    for path in folder.iterdir():
        if path.name != INDEX and not path.match("examples-*-of-*.tfrecord"):
            return f"holds {path.name!r}, which is not of records and would be lost"
    return None


def _example(picture, label: int) -> tf.train.Example:
    if isinstance(picture, (str, os.PathLike)):
        path = Path(os.path.expanduser(picture))
        encoded = path.read_bytes() if images.file_size(path) else b""
    elif isinstance(picture, bytes):
        encoded = picture
    else:
        from PIL import Image

        stream = BytesIO()
        Image.fromarray(images.read(picture)).save(stream, "PNG")
        encoded = stream.getvalue()
    features = {
        "image": tf.train.Feature(bytes_list=tf.train.BytesList(value=[encoded])),
        "label": tf.train.Feature(int64_list=tf.train.Int64List(value=[label])),
    }
    return tf.train.Example(features=tf.train.Features(feature=features))
