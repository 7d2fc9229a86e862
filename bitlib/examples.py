"""From arrays, data sets, lists or generators to checked images and labels: one way in for every door."""

from __future__ import annotations

import inspect
import itertools
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from bitlib.inputs import (
    READING,
    array,
    check_float,
    check_images,
    check_labels,
    check_range,
    check_shape,
    described,
    holds_several,
)

if TYPE_CHECKING:
    import tensorflow as tf

    Shares: TypeAlias = Callable[[tf.distribute.InputContext], tf.data.Dataset]

READ_BYTES = 1 << 30
"""As much of a generator, which can be read once only, is read into memory."""


@dataclass(frozen=True)
class Examples:
    """Checked examples, as `prepare` makes them.

    Attributes:
        pairs: arrays of images float `[N, H, W, 3]` and labels, int64 `[N]` or float32 `[N, classes]`; or an
            unbatched `tf.data.Dataset` of such pairs, which checks every example as it passes.
        first: the first image.
        several: whether several classes may be true of an image.
    """

    pairs: Any
    first: np.ndarray
    several: bool = False


def takes_context(examples: Any) -> bool:
    """Whether it is a function of a `tf.distribute.InputContext`, which gives each machine its share."""
    if not _is_function(examples):
        return False
    try:
        given = list(inspect.signature(examples).parameters.values())
    except ValueError:  # of `zip` and others that are not written in Python
        return False
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    needed = [each.name for each in given if each.default is each.empty and each.kind in positional]
    if len(needed) > 1:
        expected = "a function of a tf.distribute.InputContext or of nothing"
        raise ValueError(f"examples: expected {expected}, received one of {', '.join(needed)}")
    return bool(needed) or (bool(given) and given[0].name == "context")


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

    Raises:
        ValueError: anything else; or there is no example, or a Dataset has no end. What is wrong with a later
            example of a Dataset is found when that is reached; `errors_in_words` raises it as the same.
    """
    import tensorflow as tf

    if isinstance(examples, Examples):
        return examples
    with errors_in_words(name):
        found = _opened(examples, name)
        if not isinstance(found, tuple):
            found = found if isinstance(found, tf.data.Dataset) else _as_dataset(found, num_classes, name)
            return _checked(_unbatched(found, num_classes is not None, name), num_classes, multi_label, name)
        check_images(found[0], smallest=1)
        images = array(found[0], "images")
        if num_classes is None:
            return Examples((images, np.zeros(len(images), np.int64)), images[0])
        if found[1] is None:
            raise ValueError(_PAIRS.format(name, "images alone"))
        labels = check_labels(found[1], num_classes, len(images))
        return Examples((images, labels), images[0], holds_several(labels, multi_label))


_PAIRS = "{}: expected pairs of an image and a label, received {}"
_NONE = "{}: expected at least one example, received none"


def image_batches(images: Any, size: int) -> Iterator[np.ndarray]:
    """Images from whatever `prepare` takes, of one size, as arrays of up to `size`; the next is read ahead.

    Raises:
        ValueError: as `prepare`; or images are smaller than `SMALLEST`, or of several sizes.
    """
    import tensorflow as tf

    first = 0
    with errors_in_words("images"):
        found = _opened(images, "images")
        if isinstance(found, tuple):
            check_shape(found[0].shape)
            singles: Iterator = ((image,) for image in array(found[0], "images"))
        elif isinstance(found, tf.data.Dataset):
            singles = _unbatched(found, False, "images").prefetch(size).as_numpy_iterator()
        else:
            singles = found() if callable(found) else found
        while batch := [image for image, *_ in itertools.islice(singles, size)]:
            if len(sizes := {image.shape for image in batch}) > 1:
                raise ValueError(f"images: expected one size, received {sorted(sizes)[0]} and {max(sizes)}")
            check_images(stacked := np.stack(batch), first=first)
            first += len(batch)
            yield stacked
    if not first:
        raise ValueError(_NONE.format("images"))


@contextmanager
def errors_in_words(name: str) -> Iterator[None]:
    """Raise what a Dataset says of a wrong example as ValueError; say so of what is wrong in a validation."""
    import tensorflow as tf

    try:
        yield
    except (tf.errors.OpError, ValueError) as error:
        words = str(error)
        if isinstance(error, tf.errors.OpError):
            named = "(?:images|labels|examples|train|validation): .*"
            ours = re.search(rf"assertion failed: \[({named})\]$|ValueError: ({named})$", words, re.MULTILINE)
            if not ours:
                raise
            words = ours[1] or ours[2]
        raise ValueError(words if name != "validation" or name in words else f"{name}: {words}") from None


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
    if len(element) == 3:
        weights = "triples; weights of examples (sample_weight) are not taken: "
        way = ".map(lambda image, label, weight: (image, label))"
        raise ValueError(_PAIRS.format(name, weights + way))
    if len(element) > 3:
        raise ValueError(_PAIRS.format(name, f"{len(element)} parts"))
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
        raise ValueError(
            f"{name}: expected float images in [-1, 1], received {described(value)}; pictures and files are "
            "read by bitlib.datasets.pipeline(pictures, labels), or by bitlib.images.batch([...], model.card)"
        )


def _opened(examples: Any, name: str) -> Any:
    """Arrays `(images, labels or None)`; a Dataset; `_singles`, or a function to them, to be read again."""
    import tensorflow as tf

    if isinstance(examples, tf.data.Dataset):
        return examples
    if takes_context(examples):
        return _opened(examples(tf.distribute.InputContext()), name)
    if _is_function(examples):
        return _opened(examples(), name)
    _check_read(examples, name)
    if _are_parts(examples):
        images, labels = _parts(examples, name)
        if not _is_list(images):
            return images if hasattr(images, "shape") else array(images, "images"), labels
        examples = images if labels is None else list(_zipped(images, labels))
    if hasattr(examples, "shape") and not _is_list(examples):
        return examples, None
    by_number = hasattr(examples, "__len__") and hasattr(examples, "__getitem__")
    if isinstance(examples, (type, set, frozenset)) or not (by_number or hasattr(examples, "__iter__")):
        expected = "arrays (images, labels), a tf.data.Dataset of such pairs, or another source of them"
        raise ValueError(f"{name}: expected {expected}, received {described(examples)}; {READING}")
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
        images = array(images, "images")
        labels = None if labels is None else array(labels, "labels")
        if images.ndim != 4:
            images, labels = images[None], None if labels is None else labels[None]
        check_shape(images.shape, 1)
        check_float(images)
        labels = [None] * len(images) if labels is None else labels
        yield from _zipped(images.astype(np.float32, copy=False), labels)


def _zipped(images: Any, labels: Any) -> Iterator[tuple]:
    if len(labels) != len(images):
        raise ValueError(f"labels: expected one for each of {len(images)} images, received {len(labels)}")
    return zip(images, labels, strict=True)


def _as_dataset(source: Any, num_classes: int | None, name: str) -> tf.data.Dataset:
    """A Dataset of what `_opened` gives; what can be read once only is read into memory."""
    import tensorflow as tf

    if not callable(source):
        read, size = [], 0
        for single in source:
            read.append(single)
            size += single[0].nbytes
            if size > READ_BYTES:
                expected = f"a generator of at most {READ_BYTES:,} bytes, as it is read to memory"
                way = "tf.data.Dataset.from_generator takes the function"
                raise ValueError(f"{name}: expected {expected}; this one is larger or endless: {way}")
        source = partial(iter, read)

    def singles() -> Iterator[tuple]:
        for number, (image, label) in enumerate(source()):
            if num_classes is None:
                yield (image,)
            elif label is None:
                raise ValueError(_PAIRS.format(name, "images alone"))
            else:
                yield image, check_labels([label], num_classes, 1, number)[0]

    first = next(singles(), None)
    if first is None:
        raise ValueError(_NONE.format(name))
    spec = (tf.TensorSpec((None, None, 3), tf.float32), *(tf.TensorSpec(None, x.dtype) for x in first[1:]))
    return tf.data.Dataset.from_generator(singles, output_signature=spec)


def _unbatched(dataset: tf.data.Dataset, labelled: bool, name: str) -> tf.data.Dataset:
    """A Dataset of single `(image, label)`, or of single `(image,)`, whatever its batches are."""
    import tensorflow as tf

    if dataset.cardinality() == tf.data.INFINITE_CARDINALITY:
        raise ValueError(f"{name}: a dataset without end; give one epoch of it, without repeat()")
    image, label = _parts(dataset.element_spec, name)
    if labelled and (label is None or isinstance(label, tf.NoneTensorSpec)):
        raise ValueError(_PAIRS.format(name, "images alone"))
    for part in (image, label) if labelled else (image,):
        if not isinstance(part, tf.TensorSpec):
            raise ValueError(_PAIRS.format(name, f"elements {part}"))
        if part.shape.rank is not None and 0 in part.shape:
            raise ValueError(f"{name}: expected no empty images or labels, received shape {part.shape}")
    if image.dtype == tf.string:
        _check_read("names", name)
    if image.shape.rank is not None:
        check_shape(([None] if image.shape.rank < 4 else []) + list(image.shape), 1)

    def pick(*element):
        parts = _parts(element[0] if len(element) == 1 else element, name)[: 1 + labelled]
        full = tf.reduce_all([tf.size(part) > 0 for part in parts])  # TensorFlow would crash
        with tf.control_dependencies([tf.debugging.Assert(full, [f"{name}: expected no empty batches"])]):
            return tuple(tf.identity(part) for part in parts)

    picked = dataset.map(pick)
    first = next(iter(picked.take(1)), None)  # a Dataset itself may not know how many axes its images have
    if first is None:
        raise ValueError(_NONE.format(name))
    return picked.unbatch() if first[0].shape.rank == 4 else picked


def _checked(singles: tf.data.Dataset, num_classes: Any, multi_label: Any, name: str) -> Examples:
    """Check the first examples of a Dataset, and let it check each one that passes.

    A graph tells at once that an example is right; where it does not, the checks of arrays decide, and say
    what is wrong.
    """
    import tensorflow as tf

    def check_one(number: int, image: Any, *label: Any) -> list[np.ndarray]:
        check_images(np.asarray(image)[None], 1, number, warn=False)
        return [check_labels(np.asarray(each)[None], num_classes, 1, number) for each in label]

    some = list(singles.take(16).as_numpy_iterator())
    if not some:
        raise ValueError(_NONE.format(name))
    rows = [row for number, example in enumerate(some) for row in check_one(number, *example)]
    check_range(np.concatenate([image.ravel() for image, *_ in some]))  # of one alone, [0, 1] may be bright
    vectors = bool(rows) and rows[0].ndim == 2
    several = any(holds_several(row, multi_label, number) for number, row in enumerate(rows))

    def words(number, *example) -> bytes:
        try:
            for row in check_one(int(number), *example):
                if (row.ndim == 2) != vectors:
                    raise ValueError(f"labels: expected one shape, received another in example {number}")
                holds_several(row, several, int(number))
        except ValueError as error:
            return str(error).encode()
        return b""

    def check(number, example):
        image, *label = example
        right = tf.reduce_all(tf.abs(image) <= 16) & (tf.rank(image) == 3) & (tf.shape(image)[-1] == 3)
        for value in label:
            value = tf.cast(value, tf.float32)
            right &= tf.reduce_all(value >= 0)
            if vectors:
                right &= (tf.rank(value) == 1) & (tf.size(value) == num_classes) & tf.reduce_all(value <= 1)
                right &= several or abs(tf.reduce_sum(value) - 1) <= 1e-3
            else:
                right &= (tf.size(value) == 1) & (tf.reduce_max(value) < num_classes)
                right &= tf.reduce_all(value == tf.floor(value))
        found = tf.cond(right, lambda: "", lambda: tf.numpy_function(words, [number, *example], tf.string))
        with tf.control_dependencies([tf.debugging.Assert(found == "", [found])]):
            image = tf.ensure_shape(tf.cast(image, tf.float32), (None, None, 3))
            if vectors:
                return image, tf.ensure_shape(tf.cast(label[0], tf.float32), (num_classes,))
            return image, tf.reshape(tf.cast(label[0], tf.int64), ()) if label else tf.zeros((), tf.int64)

    return Examples(singles.enumerate().map(check), some[0][0], several)
