"""What may enter a model: one check of images, and one of labels.

`bitlib.training.examples` reads what holds them.
"""

from __future__ import annotations

import functools
import math
import numbers
import operator
import re
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

SMALLEST = 32
"""Height and width, in pixels, of the smallest images that a network takes: block 4 then has one pixel."""

FARTHEST = 1.5
"""Beyond this, which no picture resized or augmented is, a call warns; exported files give errors or NaN."""

READING = "bitlib.images.batch([...], model.card) reads and prepares pictures"
_SCALING = (
    "if they are in [0, 255], divide by 127.5 and subtract 1, of a tf.data.Dataset by "
    ".map(lambda image, label: (tf.cast(image, tf.float32) / 127.5 - 1, label))"
)


def tensorflow(what: str) -> Any:
    """The package `tensorflow`. Raises: ImportError, which says `what` needs it, if it is not installed."""
    try:
        import tensorflow
    except ImportError:
        way = "pip install 'bitlib[tensorflow]' brings it"
        raise ImportError(f"{what}: needs tensorflow, which is not installed; {way}") from None
    return tensorflow


def check_input_range(input_range: tuple[float, float]) -> None:
    """Raise ValueError unless the range that an exported model is to take is (-1, 1) or (0, 1)."""
    if not isinstance(input_range, Iterable) or tuple(input_range) not in ((-1, 1), (0, 1)):
        raise ValueError(f"input_range: expected (-1, 1) or (0, 1), received {input_range!r}")


def check_flag(name: str, value: Any) -> None:
    """Raise ValueError unless a value is True or False: "no" and "false" would count as true."""
    if not isinstance(value, (bool, np.bool_)):
        raise ValueError(f"{name}: expected True or False, received {value!r:.80}")


def check_whole(name: str, value: Any, most: float = math.inf, least: int = 1, expected: str = "") -> int:
    """A whole number from `least` to `most`. Raises: ValueError, which says what was `expected`."""
    try:
        number = operator.index(value)  # of an array or tensor without axes, too
    except TypeError:
        number = least - 1
    if isinstance(value, bool) or not least <= number <= most:
        limits = f"at least {least}, a whole number" if most == math.inf else f"{least} to {most}"
        raise ValueError(f"{name}: expected {expected or limits}, received {value!r}")
    return number


def check_number(name: str, value: Any, least: float | None = None) -> None:
    """Raise ValueError unless it is a finite number above 0, or from `least` on."""
    is_number = isinstance(value, numbers.Real) and not isinstance(value, bool) and math.isfinite(value)
    if not is_number or (value <= 0 if least is None else value < least):
        expected = "a positive number" if least is None else f"{least} or more"
        raise ValueError(f"{name}: expected {expected}, received {value!r}")


def check_images(images: Any, smallest: int = SMALLEST, first: int = 0, warn: bool = True) -> None:
    """Check what is given to a network as images; every door of the package does so here.

    Args:
        images: an array or tensor of any library; of a symbolic one, the known part of the shape is checked.
        smallest: height and width that are needed; 1 for images that will be resized.
        first, warn: as of `check_range`.

    Raises:
        ValueError: not float `[N, H, W, 3]` in [-1, 1], N at least 1, H and W at least `smallest`; or NaN.
    """
    shape = getattr(images, "shape", None)
    partial = any(hasattr(images, name) for name in ("row_splits", "dense_shape", "mask"))  # ragged, sparse
    if shape is None or not hasattr(images, "dtype") or partial:
        received = f"received {described(images)}; {READING}"
        raise ValueError(f"images: expected float [N, H, W, 3] in [-1, 1], {received}")
    if getattr(shape, "rank", 0) is not None:  # TensorFlow's tensors may not know how many axes they have
        check_shape(shape, smallest)
    check_range(images, first, warn)


def check_predictable(x: Any) -> None:
    """As `check_images`, of the first batch that `predict` takes; generators and DataLoaders pass unseen."""
    if hasattr(x, "element_spec"):
        if not hasattr(x, "take"):
            return
        x = next(iter(x.take(1)), None)
    elif hasattr(x, "num_batches") and hasattr(x, "__getitem__"):  # keras.utils.PyDataset
        x = x[0]
    if not any(hasattr(x, name) for name in ("gi_frame", "dataset")):
        check_images(x[0] if isinstance(x, tuple) else x)


def checked(method: Callable) -> Callable:
    """A method of Keras models that takes images, checking them first."""

    @functools.wraps(method)
    def checking(self: Any, x: Any = None, *args: Any, **kwargs: Any) -> Any:
        check_predictable(x)
        return method(self, x, *args, **kwargs)

    return checking


def described(value: Any) -> str:
    """The kind of a value, as a message says it."""
    if isinstance(value, (list, tuple)):
        return f"a {type(value).__name__} of {len(value)} {type(value[0]).__name__ if value else ''}".rstrip()
    return f"{value!r:.60}" if isinstance(value, (str, bytes, int, float)) else type(value).__name__


def check_shape(shape: Sequence, smallest: int = SMALLEST) -> None:
    """Check the shape of images, of whose numbers some may not be known (None). Raises: as `check_images`."""
    shape, advice = list(shape), READING
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
        expected = f"height and width of at least {smallest} pixels"
        raise ValueError(f"images: expected {expected}, received {shape[1]}×{shape[2]}")


def check_float(images: Any) -> None:
    """Raise ValueError unless the dtype of images is floating point."""
    dtype = re.findall(r"\w+", str(images.dtype))[-1]  # of `torch.uint8`, `<dtype: 'uint8'>`, `uint8`
    if "float" not in dtype:
        raise ValueError(f"images: expected floats in [-1, 1], received {dtype}; {_SCALING}")


def check_range(images: Any, first: int = 0, warn: bool = True) -> None:
    """Catch images that are not in [-1, 1], which a network would take without a word.

    Args:
        images: an array or tensor of any shape; of a symbolic one the dtype is checked.
        first: the number of the first image, for the message.
        warn: whether to warn of values all in [0, 1], as a very bright image has, or beyond `FARTHEST`.

    Raises:
        ValueError: not floating point; NaN or infinite; or values beyond ±16: surely [0, 255].
    """
    check_float(images)
    values = _values(images)
    if values is None or values.size == 0:
        return
    low, high = float(values.min()), float(values.max())
    if not (math.isfinite(low) and math.isfinite(high)):
        wrong = ~np.isfinite(values)
        found = f"{wrong.sum():,} of {values.size:,} values, first in image {number_of(wrong, first)}"
        raise ValueError(f"images: expected finite numbers in [-1, 1], received NaN or infinity in {found}")
    if max(-low, high) > 16:
        found = f"{low:.4g} to {high:.4g}, first in image {number_of(abs(values) > 16, first)}"
        raise ValueError(f"images: expected floats in [-1, 1], received values from {found}; {_SCALING}")
    found = f"({low:.4g} to {high:.4g}), the model expects [-1, 1]; if they were"
    if warn and 0 <= low < high <= 1:
        way = "scaled to [0, 1], multiply by 2 and subtract 1"
        warnings.warn(f"images: all values lie in [0, 1] {found} {way}", stacklevel=2)
    elif warn and max(-low, high) > FARTHEST:
        way = "divided by a standard deviation, leave that out"
        warnings.warn(f"images: values are beyond [-1, 1] {found} {way}", stacklevel=2)


def number_of(wrong: np.ndarray, first: int) -> int:
    """The number of the first row that holds something wrong."""
    return first + int(np.argmax(wrong.reshape(len(wrong), -1).any(axis=1)) if wrong.ndim else 0)


def _values(images: Any) -> np.ndarray | None:
    """The values of an array or tensor; None of a symbolic one."""
    if isinstance(images, np.ndarray):
        return images
    try:
        values = _numpy(images)
    except (TypeError, ValueError, NotImplementedError, RuntimeError):  # so tracers of each library answer
        return None
    return values if values.dtype.kind == "f" else values.astype(np.float32)  # bfloat16


def _numpy(values: Any) -> np.ndarray:  # PyTorch's, perhaps with a gradient or on a GPU
    return np.asarray(values.detach().cpu().numpy() if hasattr(values, "detach") else values)


def scores(values: Any, name: str) -> np.ndarray:
    """Numbers of classes, float64 `[..., classes]`. Raises: ValueError for what is none, NaN and infinity."""
    found = array(values, name)
    numbers = found.dtype.kind in "iuf" and found.ndim and found.shape[-1]
    if not numbers or not ((found < np.inf).all() and (found.max(-1) > -np.inf).all()):
        received = "NaN or infinity" if found.dtype.kind == "f" and found.size > 1 else described(values)
        raise ValueError(f"{name}: expected a number for each class, [N, classes], received {received}")
    return found.astype(np.float64)


def array(values: Any, name: str) -> np.ndarray:
    """Numbers of any library as a NumPy array; raises ValueError for what is none."""
    if np.ma.is_masked(values):
        raise ValueError(f"{name}: expected an array without missing values, received a masked one")
    try:
        return _numpy(values)
    except Exception as error:  # each library has its own
        raise ValueError(f"{name}: expected an array, received {described(values)}") from error


def check_labels(labels: Any, num_classes: int, count: int, first: int = 0) -> np.ndarray:
    """Check the labels of `count` images, the first of which has the number `first`.

    Args:
        labels: N integers from 0 to `num_classes - 1`, or N vectors of `num_classes` numbers in [0, 1]. A
            column `[N, 1]`, as Keras gives two classes by `label_mode="binary"`, is N whole numbers.

    Returns int64 `[N]` or float32 `[N, num_classes]`. Raises: ValueError, if they are something else.
    """
    found = array(labels, "labels")
    is_column = found.ndim == 2 and found.shape[1] == 1 != num_classes
    found = found[:, 0] if is_column else found
    model = f"as the model has {num_classes} classes"
    if found.shape not in ((count,), (count, num_classes)):
        expected = f"one integer for each of {count} images, or a vector of {num_classes} numbers, {model}"
        raise ValueError(f"labels: expected {expected}; received shape {found.shape}")
    if found.dtype.kind not in "biuf":
        received = f"{found.dtype}, such as {str(found.flat[0])!r:.40}"
        way = "numpy.unique(labels, return_inverse=True) numbers names"
        raise ValueError(f"labels: expected integers, received {received}; {way}")
    if found.ndim == 2:
        wrong = ~((found >= 0) & (found <= 1))
        expected = "vectors of numbers in [0, 1]"
    elif found.dtype.kind in "iu" or (is_column and (found == np.floor(found)).all()):
        wrong = (found < 0) | (found >= num_classes)
        expected = f"0 to {num_classes - 1}, {model}"
        if num_classes == 1:
            expected = "vectors [N, 1], as the model has one class; for two, bitlib.load(..., head=2)"
    else:
        wrong, expected = np.ones(count, bool), f"integers, received {found.dtype}"
    if wrong.any():
        extent = f"{found.min()} to {found.max()}" if count > 1 else found[0]
        received = f"{extent}, first in example {number_of(wrong, first)}"
        raise ValueError(f"labels: expected {expected}; received {received}")
    return found.astype(np.float32 if found.ndim == 2 else np.int64)


def holds_several(labels: np.ndarray, multi_label: bool | str | None, first: int = 0) -> bool:
    """Whether several classes may be true of an image, by labels as `check_labels` returns them.

    Vectors that sum to 1 are of one class each, or blend such vectors, unless `multi_label` is True, or
    `"vectors"`: True of vectors, False of integers. Raises: ValueError, if `labels` are not what it says.
    """
    if multi_label == "vectors":
        return labels.ndim == 2
    if labels.ndim == 1 and multi_label:
        raise ValueError("labels: expected a vector of numbers each, as multi_label=True; received integers")
    other = abs(labels.sum(axis=1) - 1) > 1e-3 if labels.ndim == 2 else np.zeros(1, bool)
    if multi_label is False and other.any():
        number = number_of(other, first)
        received = f"a vector that sums to {labels[number - first].sum():g} in example {number}"
        hint = "where several classes or none may be true, say multi_label=True"
        raise ValueError(f"labels: expected one class for each image, received {received}; {hint}")
    return bool(other.any() if multi_label is None else multi_label)
