"""What may enter a model: one check of images, one of labels, one way to read whatever holds examples."""

from __future__ import annotations

import inspect
import itertools
import math
import os
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

if TYPE_CHECKING:
    import tensorflow as tf
    from numpy.typing import ArrayLike

    Shares: TypeAlias = Callable[[tf.distribute.InputContext], tf.data.Dataset]

SMALLEST = 32
"""Height and width, in pixels, of the smallest images that a network takes: block 4 then has one pixel."""

READ_BYTES = 1 << 30
"""As much of a generator, which can be read once only, is read into memory."""

_READING = "bitlib.images.batch([...], model.card) reads and prepares pictures"
_SCALING = (
    "if they are in [0, 255], divide by 127.5 and subtract 1, of a tf.data.Dataset by "
    ".map(lambda image, label: (tf.cast(image, tf.float32) / 127.5 - 1, label))"
)


def check_input_range(input_range: tuple[float, float]) -> None:
    """Check the range that an exported model is to take.

    Raises:
        ValueError: it is neither (-1, 1) nor (0, 1).
    """
    if tuple(input_range) not in ((-1, 1), (0, 1)):
        raise ValueError(f"input_range: expected (-1, 1) or (0, 1), received {input_range!r}")


def check_whole(name: str, value: Any, most: float = math.inf) -> None:
    """Raise ValueError unless `value` is a whole number from 1 to `most`."""
    if not isinstance(value, (int, np.integer)) or isinstance(value, bool) or not 1 <= value <= most:
        limit = "at least 1, a whole number" if most == math.inf else f"1 to {most}"
        raise ValueError(f"{name}: expected {limit}, received {value!r}")


def check_images(images: Any, smallest: int = SMALLEST, first: int = 0, warn: bool = True) -> None:
    """Check what is given to a network as images; every door of the package does so here.

    Args:
        images: an array or tensor of any library. Of a symbolic one, which has no values yet, the known part
            of the shape is checked.
        smallest: height and width that are needed; 1 for images that will be resized.
        first: the number of the first image, for the message.
        warn: whether to warn as `check_range` does.

    Raises:
        ValueError: not float `[N, H, W, 3]` in [-1, 1], N at least 1, H and W at least `smallest`; NaN or
            infinite.
    """
    shape = getattr(images, "shape", None)
    if shape is None or not hasattr(images, "dtype"):
        raise ValueError(
            f"images: expected float [N, H, W, 3] in [-1, 1], received {_described(images)}; {_READING}"
        )
    if getattr(shape, "rank", 0) is not None:  # TensorFlow's tensors may not know how many axes they have
        _check_shape(list(shape), smallest)
    check_range(images, first, warn)


def _described(value: Any) -> str:
    """The kind of a value, as a message says it."""
    if isinstance(value, (list, tuple)):
        return f"a {type(value).__name__} of {len(value)} {type(value[0]).__name__ if value else ''}".rstrip()
    return f"{value!r:.60}" if isinstance(value, (str, bytes, int, float)) else type(value).__name__


def _check_shape(shape: list, smallest: int = 1) -> None:
    """Check a shape, of whose numbers some may not be known (None)."""
    advice = _READING
    if len(shape) == 3 and shape[-1] in (1, 3, 4):
        advice = f"one picture without the batch's axis? images[None]; {advice}"
    elif len(shape) == 4 and shape[1] == 3 != shape[3]:
        advice = "channels first? numpy.transpose(images, (0, 2, 3, 1))"
    elif len(shape) == 3 or (len(shape) == 4 and shape[-1] == 1):
        advice = f"grey pictures? three equal channels are RGB; {advice}"
    if len(shape) != 4 or shape[-1] not in (3, None):
        raise ValueError(f"images: expected shape [N, H, W, 3], received {shape}; {advice}")
    if shape[0] == 0:
        raise ValueError(f"images: expected at least one, received none (shape {shape})")
    if any(side is not None and side < smallest for side in shape[1:3]):
        raise ValueError(
            f"images: expected height and width of at least {smallest} pixels, received {shape[1]}×{shape[2]}"
        )


def _check_float(images: Any) -> None:
    dtype = re.findall(r"\w+", str(images.dtype))[-1]  # of `torch.uint8`, `<dtype: 'uint8'>`, `uint8`
    if "float" not in dtype:
        raise ValueError(f"images: expected floats in [-1, 1], received {dtype}; {_SCALING}")


def check_range(images: ArrayLike, first: int = 0, warn: bool = True) -> None:
    """Catch images that are not in [-1, 1], which a network would take without a word.

    Args:
        images: an array or tensor of any shape; of a symbolic one, without values yet, the dtype is checked.
        first: the number of the first image, for the message.
        warn: whether to warn.

    Raises:
        ValueError: not floating point; NaN or infinite; or values beyond ±16: surely [0, 255].

    Warns:
        UserWarning: all values lie in [0, 1]: likely [0, 1], though a very bright image looks the same.
    """
    _check_float(images)
    values = _values(images)
    if values is None or values.size == 0:
        return
    low, high = float(values.min()), float(values.max())
    if not (math.isfinite(low) and math.isfinite(high)):
        wrong = ~np.isfinite(values)
        raise ValueError(
            f"images: expected finite numbers in [-1, 1], received NaN or infinity in "
            f"{np.count_nonzero(wrong):,} of {values.size:,} values, first in image {_number(wrong, first)}"
        )
    if max(-low, high) > 16:
        raise ValueError(
            f"images: expected floats in [-1, 1], received values from {low:.4g} to {high:.4g}, first in "
            f"image {_number(abs(values) > 16, first)}; {_SCALING}"
        )
    if warn and 0 <= low < high <= 1:
        warnings.warn(
            f"images: all values lie in [0, 1] ({low:.4g} to {high:.4g}), the model expects [-1, 1]; "
            "if they were scaled to [0, 1], multiply by 2 and subtract 1",
            stacklevel=2,
        )


def _number(wrong: np.ndarray, first: int) -> int:
    """The number of the first row that holds something wrong."""
    return first + int(np.argmax(wrong.reshape(len(wrong), -1).any(axis=1)) if wrong.ndim else 0)


def _values(images: Any) -> np.ndarray | None:
    """The values of an array or tensor; None of a symbolic one."""
    if isinstance(images, np.ndarray):
        return images
    try:
        values = _numpy(images)
    except (TypeError, ValueError, NotImplementedError):  # as tracers of JAX, TensorFlow and Keras answer
        return None
    return values.astype(np.float32) if values.dtype.kind not in "f" else values  # bfloat16


def _numpy(values: Any) -> np.ndarray:
    # PyTorch's, perhaps with a gradient or on a GPU
    return np.asarray(values.detach().cpu().numpy() if hasattr(values, "detach") else values)


def array(values: Any, name: str) -> np.ndarray:
    """Numbers of any library as a NumPy array; raises ValueError for what is none."""
    try:
        return _numpy(values)
    except Exception as error:  # each library has its own
        raise ValueError(f"{name}: expected an array, received {_described(values)}") from error


def check_labels(labels: Any, num_classes: int, count: int, first: int = 0) -> np.ndarray:
    """Check the labels of `count` images, the first of which has the number `first`.

    Args:
        labels: N integers from 0 to `num_classes - 1`, or N vectors of `num_classes` numbers in [0, 1]. A
            column `[N, 1]`, as Keras gives two classes by `label_mode="binary"`, is N whole numbers.

    Returns:
        int64 `[N]` or float32 `[N, num_classes]`.

    Raises:
        ValueError: they are something else.
    """
    found = array(labels, "labels")
    is_column = found.ndim == 2 and found.shape[1] == 1 != num_classes
    found = found[:, 0] if is_column else found
    if found.shape not in ((count,), (count, num_classes)):
        raise ValueError(
            f"labels: expected one integer for each of {count} images, or a vector of {num_classes} "
            f"numbers, as the model has {num_classes} classes; received shape {found.shape}"
        )
    if found.dtype.kind not in "biuf":
        raise ValueError(
            f"labels: expected integers, received {found.dtype}, such as {str(found.flat[0])!r:.40}; "
            "numpy.unique(labels, return_inverse=True) numbers names"
        )
    if found.ndim == 2:
        wrong = ~((found >= 0) & (found <= 1))
        expected = "vectors of numbers in [0, 1]"
    elif found.dtype.kind in "iu" or (is_column and (found == np.floor(found)).all()):
        wrong = (found < 0) | (found >= num_classes)
        expected = f"0 to {num_classes - 1}, as the model has {num_classes} classes"
    else:
        wrong, expected = np.ones(count, bool), f"integers, received {found.dtype}"
    if wrong.any():
        extent = f"{found.min()} to {found.max()}" if count > 1 else found[0]
        raise ValueError(
            f"labels: expected {expected}; received {extent}, first in example {_number(wrong, first)}"
        )
    return found.astype(np.float32 if found.ndim == 2 else np.int64)


def holds_several(labels: np.ndarray, multi_label: bool | str | None, first: int = 0) -> bool:
    """Whether several classes may be true of an image, by labels as `check_labels` returns them.

    Vectors that sum to 1 are of one class each, or blend such vectors, unless `multi_label` is True, or
    `"vectors"`, which is True of vectors and False of integers.

    Raises:
        ValueError: `labels` are not what `multi_label` says.
    """
    if multi_label == "vectors":
        return labels.ndim == 2
    if labels.ndim == 1 and multi_label:
        raise ValueError("labels: expected a vector of numbers each, as multi_label=True; received integers")
    other = abs(labels.sum(axis=1) - 1) > 1e-3 if labels.ndim == 2 else np.zeros(1, bool)
    if multi_label is False and other.any():
        number = _number(other, first)
        raise ValueError(
            f"labels: expected one class for each image, received a vector that sums to "
            f"{labels[number - first].sum():g} in example {number}; where several classes or none may be "
            "true, say multi_label=True"
        )
    return bool(other.any() if multi_label is None else multi_label)


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
        raise ValueError(
            f"examples: expected a function of a tf.distribute.InputContext or of nothing, not {needed}"
        )
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
            raise ValueError(_ALONE.format(name))
        labels = check_labels(found[1], num_classes, len(images))
        return Examples((images, labels), images[0], holds_several(labels, multi_label))


_ALONE = "{}: expected pairs of an image and a label, received images alone"
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
            _check_shape(list(found[0].shape), SMALLEST)
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
        image, label = (
            [element[key] for key in keys if key in element]
            for keys in (("image", "images", "x"), ("label", "labels", "y"))
        )
        if len(image) != 1 or len(label) > 1:
            raise ValueError(f"{name}: expected a dictionary of image and label, received {list(element)}")
        return image[0], label[0] if label else None
    if not isinstance(element, (tuple, list)):
        return element, None
    if len(element) == 3:
        raise ValueError(
            f"{name}: expected pairs of an image and a label, received triples; weights of examples "
            "(sample_weight) are not taken: .map(lambda image, label, weight: (image, label))"
        )
    if len(element) > 3:
        raise ValueError(f"{name}: expected pairs of an image and a label, received {len(element)} parts")
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
            f"{name}: expected float images in [-1, 1], received {_described(value)}; pictures and files are "
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
        if labels is not None and len(labels) != len(images):
            raise ValueError(f"labels: expected one for each of {len(images)} images, received {len(labels)}")
        examples = images if labels is None else list(zip(images, labels, strict=True))
    if hasattr(examples, "shape") and not _is_list(examples):
        return examples, None
    by_number = hasattr(examples, "__len__") and hasattr(examples, "__getitem__")
    if isinstance(examples, (type, set, frozenset)) or not (by_number or hasattr(examples, "__iter__")):
        raise ValueError(
            f"{name}: expected arrays (images, labels), a tf.data.Dataset of such pairs, or another source "
            f"of them, received {_described(examples)}; {_READING}"
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
        images = array(images, "images")
        labels = None if labels is None else array(labels, "labels")
        if images.ndim != 4:
            images, labels = images[None], None if labels is None else labels[None]
        _check_shape(list(images.shape))
        _check_float(images)
        labels = [None] * len(images) if labels is None else labels
        if len(labels) != len(images):
            raise ValueError(f"labels: expected one for each of {len(images)} images, received {len(labels)}")
        yield from zip(images.astype(np.float32, copy=False), labels, strict=True)


def _as_dataset(source: Any, num_classes: int | None, name: str) -> tf.data.Dataset:
    """A Dataset of what `_opened` gives; what can be read once only is read into memory."""
    import tensorflow as tf

    if not callable(source):
        read, size = [], 0
        for single in source:
            read.append(single)
            size += single[0].nbytes
            if size > READ_BYTES:
                raise ValueError(
                    f"{name}: expected a generator of at most {READ_BYTES:,} bytes, as it is read to "
                    "memory; this one is larger or endless: tf.data.Dataset.from_generator takes the function"
                )
        source = partial(iter, read)

    def singles() -> Iterator[tuple]:
        for number, (image, label) in enumerate(source()):
            if label is None and num_classes is not None:
                raise ValueError(_ALONE.format(name))
            yield (
                (image,) if num_classes is None else (image, check_labels([label], num_classes, 1, number)[0])
            )

    first = next(singles(), None)
    if first is None:
        raise ValueError(_NONE.format(name))
    spec = [
        tf.TensorSpec((None, None, 3), tf.float32),
        *(tf.TensorSpec(None, part.dtype) for part in first[1:]),
    ]
    return tf.data.Dataset.from_generator(singles, output_signature=tuple(spec))


def _unbatched(dataset: tf.data.Dataset, labelled: bool, name: str) -> tf.data.Dataset:
    """A Dataset of single `(image, label)`, or of single `(image,)`, whatever its batches are."""
    import tensorflow as tf

    if dataset.cardinality() == tf.data.INFINITE_CARDINALITY:
        raise ValueError(f"{name}: a dataset without end; give one epoch of it, without repeat()")
    image, label = _parts(dataset.element_spec, name)
    if labelled and (label is None or isinstance(label, tf.NoneTensorSpec)):
        raise ValueError(_ALONE.format(name))
    for part in (image, label) if labelled else (image,):
        if not isinstance(part, tf.TensorSpec):
            raise ValueError(f"{name}: expected pairs of an image and a label, received elements {part}")
        if part.shape.rank is not None and 0 in part.shape:
            raise ValueError(
                f"{name}: expected images and labels, received empty ones, of shape {part.shape}"
            )
    if image.dtype == tf.string:
        _check_read("names", name)
    if image.shape.rank is not None:
        _check_shape(([None] if image.shape.rank < 4 else []) + list(image.shape))

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
                right &= (tf.size(value) == 1) & tf.reduce_all(
                    (value < num_classes) & (value == tf.floor(value))
                )
        found = tf.cond(right, lambda: "", lambda: tf.numpy_function(words, [number, *example], tf.string))
        with tf.control_dependencies([tf.debugging.Assert(found == "", [found])]):
            image = tf.ensure_shape(tf.cast(image, tf.float32), (None, None, 3))
            if vectors:
                return image, tf.ensure_shape(tf.cast(label[0], tf.float32), (num_classes,))
            return image, tf.reshape(tf.cast(label[0], tf.int64), ()) if label else tf.zeros((), tf.int64)

    return Examples(singles.enumerate().map(check), some[0][0], several)
