"""From arrays, data sets, lists or generators to checked images and labels: one way in for every door."""

from __future__ import annotations

import inspect
import itertools
import os
import re
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any

import keras
import numpy as np

from bitlib import inputs
from bitlib.ops import BACKEND

READ_BYTES = 1 << 30  #: as much of a generator, which can be read once only, is read into memory


@dataclass(frozen=True)
class Examples:
    """Checked examples, as `prepare` makes them.

    Attributes:
        read: gives every example: an image float32 `[H, W, 3]`, and its label, int64 or float32 `[classes]`;
            raises ValueError at one that is wrong.
        side: height of the first image.
        arrays: all images and labels, where they came as arrays.
        count: how many there are; None if only reading them tells.
        several: whether several classes may be true of an image.
    """

    read: Callable[[], Iterator[tuple[np.ndarray, Any]]]
    side: int
    arrays: tuple[np.ndarray, np.ndarray] | None = None
    count: int | None = None
    several: bool = False

    def fingerprint(self) -> int:
        """A number that tells them from others: of arrays of all, else of the first 16."""
        found = 0 if self.arrays or self.count is None else self.count
        for image, label in itertools.islice(self.read(), None if self.arrays else 16):
            found = zlib.crc32(np.asarray(image, np.float32).tobytes(), found)
            found = zlib.crc32(np.asarray(label, np.float32).tobytes(), found)
        return found


def takes_context(examples: Any) -> bool:
    """Whether it is a function of a `tf.distribute.InputContext`, which gives each machine its share."""
    if not _is_function(examples):
        return False
    try:
        given = list(inspect.signature(examples).parameters.values())
    except ValueError:  # of `zip` and others that are not written in Python
        return False
    needed = [
        each.name for each in given if each.default is each.empty and each.kind <= each.POSITIONAL_OR_KEYWORD
    ]
    if len(needed) > 1:
        expected = "a function of a tf.distribute.InputContext or of nothing"
        raise ValueError(f"examples: expected {expected}, received one of {', '.join(needed)}")
    return bool(needed) or (bool(given) and given[0].name == "context")


def machine(index: int = 0, machines: int = 1, replicas: int = 1) -> Any:
    """What such a function gets: a `tf.distribute.InputContext`; without TensorFlow, its three numbers."""
    if BACKEND == "tensorflow":
        import tensorflow as tf

        return tf.distribute.InputContext(machines, index, replicas)
    numbers = {"num_input_pipelines": machines, "input_pipeline_id": index, "num_replicas_in_sync": replicas}
    return SimpleNamespace(**numbers)


def _is_function(examples: Any) -> bool:
    return inspect.isroutine(examples) or isinstance(examples, partial)


def prepare(
    examples: Any, num_classes: int | None, multi_label: bool | str | None = None, name: str = "examples"
) -> Examples:
    """Read and check whatever holds examples: the one way into `fit`, `evaluate`, `predict` and `match`.

    Args:
        examples: images float `[H, W, 3]` in [-1, 1] and labels as of `check_labels`, in any of

            - arrays of any library: `(images, labels)`, or a dictionary of `image` and `label`; two arrays of
              images are a list of two batches;
            - a `tf.data.Dataset` of pairs, dictionaries or images, in batches of any size or without;
            - a list of images, pairs or batches, a `keras.utils.PyDataset`, a PyTorch `DataLoader`;
            - a generator, a function that makes one, `zip`: read into memory, up to `READ_BYTES`;
            - a function of a `tf.distribute.InputContext` to any of these.
        num_classes: of the labels; None for images whose labels are not looked at.
        multi_label: as of `holds_several`; None: all labels of arrays tell, or the first 16 of others.
        name: of the argument, for messages.

    Raises: ValueError, for anything else, for no example and for a Dataset without end; at a wrong example of
        a Dataset when that is reached, by `errors_in_words`.
    """
    if isinstance(examples, Examples):
        return examples
    if multi_label not in (None, "vectors"):
        inputs.check_flag("multi_label", multi_label)
    with errors_in_words(name):
        found = _opened(examples, name)
        if not isinstance(found, tuple):
            read = found if callable(found) else _memorized(found, name)
            return _checked(read, num_classes, multi_label, name, _count(examples))
        inputs.check_images(found[0], smallest=1)
        images = inputs.array(found[0], "images")
        labels, several = np.zeros(len(images), np.int64), False
        if num_classes is not None:
            if found[1] is None:
                raise ValueError(_PAIRS.format(name, "images alone"))
            labels = inputs.check_labels(found[1], num_classes, len(images))
            several = inputs.holds_several(labels, multi_label)
        arrays = images, labels
        return Examples(partial(zip, *arrays, strict=True), len(images[0]), arrays, len(images), several)


_PAIRS = "{}: expected pairs of an image and a label, received {}"
_NONE = "{}: expected at least one example, received none"


def image_batches(images: Any, size: int) -> Iterator[np.ndarray]:
    """Images from whatever `prepare` takes, of one size, as arrays of up to `size`; the next is read ahead.

    Raises: ValueError, as `prepare`; or images are smaller than `SMALLEST`, or of several sizes.
    """
    first = 0
    with errors_in_words("images"):
        found = _opened(images, "images")
        if isinstance(found, tuple):
            inputs.check_shape(found[0].shape)
            singles: Iterator = ((image,) for image in inputs.array(found[0], "images"))
        else:
            singles = ahead(found(), size) if callable(found) else found
        for part in batched(singles, size):
            batch = [image for image, *_ in part]
            if len(sizes := {image.shape for image in batch}) > 1:
                raise ValueError(f"images: expected one size, received {sorted(sizes)[0]} and {max(sizes)}")
            inputs.check_images(stacked := np.stack(batch), first=first)
            first += len(batch)
            yield stacked
    if not first:
        raise ValueError(_NONE.format("images"))


@contextmanager
def errors_in_words(name: str) -> Iterator[None]:
    """Raise what a Dataset's graph says of a wrong example as ValueError; say so if it is of a validation."""
    try:
        yield
    except Exception as error:
        words = str(error)
        if type(error).__module__.startswith("tensorflow"):
            named = re.search(r"(?m)ValueError: ((images|labels|examples|train|validation): .*)$", words)
            if not named:
                raise
            words = named[1]
        elif not isinstance(error, ValueError):
            raise
        raise ValueError(words if name != "validation" or name in words else f"{name}: {words}") from None


def batched(items: Iterable, size: int) -> Iterator[list]:
    """Lists of up to `size` items."""
    items = iter(items)
    while batch := list(itertools.islice(items, size)):
        yield batch


def ahead(items: Iterable, count: int = 2) -> Iterator:
    """The same items; a thread makes the next ones meanwhile."""
    items, end = iter(items), object()
    with ThreadPoolExecutor(1) as thread:
        waiting = deque(thread.submit(next, items, end) for _ in range(count))
        while (item := waiting.popleft().result()) is not end:
            waiting.append(thread.submit(next, items, end))
            yield item


def mapped(function: Callable, items: Iterable) -> Iterator:
    """`function` of each item, in order, computed by several threads; few items are read ahead."""
    workers = min(32, os.cpu_count() or 1)
    with ThreadPoolExecutor(workers) as threads:
        waiting: deque = deque()
        for item in items:
            waiting.append(threads.submit(function, item))
            if len(waiting) > 2 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _is_list(value: Any) -> bool:
    """Whether it is a list, also one that NumPy holds, as it does images of several sizes."""
    return isinstance(value, (list, tuple)) or str(getattr(value, "dtype", "")) == "object"


def _rank(value: Any) -> int | None:
    """How many axes an array or a list of lists has; None of what has none, as of pairs."""
    if _is_list(value):
        ranks = [_rank(value[0]), _rank(value[-1])] if len(value) else [0, 0]
        return None if ranks[0] is None or ranks[0] != ranks[1] else ranks[0] + 1
    shape = getattr(value, "shape", () if np.isscalar(value) or value is None else None)
    return None if shape is None else len(shape)


def _parts(element: Any, name: str) -> tuple[Any, Any]:
    """Image and label of an example, or images and labels of a batch; None for a label that is not there."""
    if isinstance(element, Mapping):
        image = [element[key] for key in ("image", "images", "x") if key in element]
        label = [element[key] for key in ("label", "labels", "y") if key in element]
        if len(image) != 1 or len(label) > 1:
            raise ValueError(f"{name}: expected a dictionary of image and label, received {list(element)}")
        return image[0], label[0] if label else None
    if not isinstance(element, (tuple, list)):
        return element, None
    if len(element) > 2:
        way = ".map(lambda image, label, weight: (image, label))"
        weights = f"; weights of examples (sample_weight) are not taken: {way}" if len(element) == 3 else ""
        raise ValueError(_PAIRS.format(name, f"{len(element)} parts{weights}"))
    return element[0], element[1] if len(element) == 2 else None


def _are_parts(element: Any) -> bool:
    """Whether it is one example, or one batch, in parts; and not a list of images or of examples."""
    if not isinstance(element, (tuple, list)):
        return isinstance(element, Mapping)
    ranks = [_rank(part) for part in element]
    return len(element) in (2, 3) and None not in ranks and ranks[0] != ranks[1]


def _check_read(value: Any, name: str) -> None:
    """Refuse what has to be read first: names of files, pictures of Pillow, tables."""
    while _is_list(value) or isinstance(value, Mapping):
        value = next(iter(value.values() if isinstance(value, Mapping) else value), None)
    is_file = isinstance(value, (str, bytes, os.PathLike))
    is_file |= bool(re.search(r"str|<U|\|S", str(getattr(value, "dtype", ""))))
    if is_file or type(value).__module__.startswith(("PIL", "pandas")):
        way = "bitlib.datasets.pipeline(pictures, labels), or by bitlib.images.batch([...], model.card)"
        received = f"received {inputs.described(value)}; pictures and files are read by {way}"
        raise ValueError(f"{name}: expected float images in [-1, 1], {received}")


def _is_dataset(value: Any) -> bool:
    """Whether it is a `tf.data.Dataset`, which can be told without TensorFlow."""
    return hasattr(value, "element_spec") and hasattr(value, "as_numpy_iterator")


def _count(examples: Any) -> int | None:
    """The number of examples, where it is known and they come one by one."""
    if _is_dataset(examples):
        rank = _parts(examples.element_spec, "examples")[0].shape.rank
        return int(examples.cardinality()) if rank == 3 and examples.cardinality() >= 0 else None
    if isinstance(examples, (Mapping, keras.utils.PyDataset)) or not hasattr(examples, "__getitem__"):
        return None
    first = _parts(examples[0], "examples")[0] if len(examples) and _are_parts(examples[0]) else None
    return len(examples) if _rank(first) == 3 else None


def _opened(examples: Any, name: str) -> Any:
    """Arrays `(images, labels or None)`; or `_singles`; or a function to them, which can be read again."""
    if _is_dataset(examples):
        return _of_dataset(examples, name)
    if takes_context(examples):
        return _opened(examples(machine()), name)
    if _is_function(examples):
        return _opened(examples(), name)
    _check_read(examples, name)
    if _are_parts(examples):
        images, labels = _parts(examples, name)
        if not _is_list(images):
            return images if hasattr(images, "shape") else inputs.array(images, "images"), labels
        examples = images if labels is None else list(_zipped(images, labels))
    if hasattr(examples, "shape") and not _is_list(examples):
        return examples, None
    by_number = hasattr(examples, "__len__") and hasattr(examples, "__getitem__")
    if isinstance(examples, (type, set, frozenset)) or not (by_number or hasattr(examples, "__iter__")):
        expected = "arrays (images, labels), a tf.data.Dataset of such pairs, or another source of them"
        raise ValueError(
            f"{name}: expected {expected}, received {inputs.described(examples)}; {inputs.READING}"
        )
    if by_number:
        return lambda: _singles((examples[index] for index in range(len(examples))), name)
    if getattr(examples, "num_batches", 0) is None:
        raise ValueError(f"{name}: a {type(examples).__name__} without end; give one epoch of it")
    return _singles(examples, name) if hasattr(examples, "__next__") else lambda: _singles(examples, name)


def _singles(elements: Iterable, name: str) -> Iterator[tuple[np.ndarray, Any]]:
    """Each image float32 `[H, W, 3]` with its label or None, of elements that are examples or batches."""
    for element in elements:
        if isinstance(element, (tuple, list)) and len(element) == 1:  # as PyTorch's of images alone
            element = element[0]
        images, labels = _parts(element, name) if _are_parts(element) else (element, None)
        _check_read(images, name)
        images = inputs.array(images, "images")
        labels = None if labels is None else inputs.array(labels, "labels")
        if images.ndim != 4:
            images, labels = images[None], None if labels is None else labels[None]
        inputs.check_shape(images.shape, 1)
        inputs.check_float(images)
        labels = [None] * len(images) if labels is None else labels
        yield from _zipped(images.astype(np.float32, copy=False), labels)


def _zipped(images: Any, labels: Any) -> Iterator[tuple]:
    if len(labels) != len(images):
        raise ValueError(f"labels: expected one for each of {len(images)} images, received {len(labels)}")
    return zip(images, labels, strict=True)


def _of_dataset(dataset: Any, name: str) -> Callable[[], Iterator]:
    """A function to `_singles` of a `tf.data.Dataset`."""
    if dataset.cardinality() == -1:  # tf.data.INFINITE_CARDINALITY
        raise ValueError(f"{name}: a dataset without end; give one epoch of it, without repeat()")
    for part in _parts(dataset.element_spec, name):
        if part is not None and type(part).__name__ not in ("TensorSpec", "NoneTensorSpec"):
            raise ValueError(_PAIRS.format(name, f"elements {part}"))
    image = _parts(dataset.element_spec, name)[0]
    if image.dtype == "string":
        _check_read("names", name)
    if image.shape.rank is not None:
        inputs.check_shape(([None] if image.shape.rank < 4 else []) + list(image.shape), 1)
    return lambda: _singles(dataset.as_numpy_iterator(), name)


def _memorized(singles: Iterator, name: str) -> Callable[[], Iterator]:
    """What can be read once only, read into memory."""
    read, size = [], 0
    for single in singles:
        read.append(single)
        size += single[0].nbytes
        if size > READ_BYTES:
            expected = f"a generator of at most {READ_BYTES:,} bytes, as it is read to memory"
            raise ValueError(f"{name}: expected {expected}; of a larger or endless one, give the function")
    return partial(iter, read)


def _checked(
    read: Callable[[], Iterator], num_classes: int | None, multi_label: Any, name: str, count: int | None
) -> Examples:
    """Check the first 16 examples, and each one that passes later."""

    def check(number: int, image: np.ndarray, label: Any) -> tuple[np.ndarray, Any]:
        inputs.check_images(image[None], 1, number, warn=False)
        if num_classes is None:
            return image, np.int64(0)
        if label is None:
            raise ValueError(_PAIRS.format(name, "images alone"))
        return image, inputs.check_labels(np.asarray(label)[None], num_classes, 1, number)[0]

    some = [check(number, *single) for number, single in enumerate(itertools.islice(read(), 16))]
    if not some:
        raise ValueError(_NONE.format(name))
    # Of one picture alone, [0, 1] may be bright.
    inputs.check_range(np.concatenate([image.ravel() for image, _ in some]))
    how = None if num_classes is None else multi_label
    several = any(inputs.holds_several(np.asarray(label)[None], how, n) for n, (_, label) in enumerate(some))
    rank = np.ndim(some[0][1])

    def every() -> Iterator[tuple[np.ndarray, Any]]:
        for number, single in enumerate(read()):
            image, label = check(number, *single)
            if np.ndim(label) != rank:
                raise ValueError(f"labels: expected one shape, received another in example {number}")
            if rank:
                inputs.holds_several(label[None], several, number)
            yield image, label

    return Examples(every, len(some[0][0]), None, count, several)
