"""What may enter a model: the checks of images and labels, and the errors that say what would be right."""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

if TYPE_CHECKING:
    import tensorflow as tf
    from numpy.typing import ArrayLike

    Examples: TypeAlias = tuple[ArrayLike, ArrayLike] | tf.data.Dataset
    Shares: TypeAlias = Callable[[tf.distribute.InputContext], tf.data.Dataset]


def whole(examples: Examples | Shares) -> Examples:
    """All examples, of a function that gives each of several machines its own."""
    import tensorflow as tf

    return examples(tf.distribute.InputContext()) if callable(examples) else examples


def check_input_range(input_range: tuple[float, float]) -> None:
    """Check the range that an exported model is to take.

    Raises:
        ValueError: it is neither (-1, 1) nor (0, 1).
    """
    if tuple(input_range) not in ((-1, 1), (0, 1)):
        raise ValueError(f"input_range: expected (-1, 1) or (0, 1), received {input_range!r}")


SMALLEST = 32
"""Height and width, in pixels, of the smallest images that a network takes: block 4 then has one pixel."""


def check_images(images: Any) -> None:
    """Check what is given to a network as images; every door of the package does so here.

    Args:
        images: an array or tensor of any library. Of a symbolic one, which has no values yet, the known part
            of the shape is checked.

    Raises:
        ValueError: not float `[N, H, W, 3]` in [-1, 1], N at least 1, H and W at least 32; NaN or infinite.

    Warns:
        UserWarning: as `check_range`.
    """
    shape = getattr(images, "shape", None)
    if shape is None or not hasattr(images, "dtype"):
        raise ValueError(
            f"images: expected float [N, H, W, 3] in [-1, 1], received {_described(images)}; "
            "bitlib.images.batch([...], model.card) reads and prepares pictures"
        )
    if getattr(shape, "rank", 0) is not None:  # TensorFlow's tensors may not know how many axes they have
        check_shape(shape)
    check_range(images)


def _described(value: Any) -> str:
    """The kind of a value, as a message says it."""
    if isinstance(value, (list, tuple)):
        return f"a {type(value).__name__} of {len(value)} {type(value[0]).__name__ if value else ''}"
    return f"{value!r:.60}" if isinstance(value, (str, bytes, int, float)) else type(value).__name__


def check_shape(shape: Sequence) -> None:
    """Check the shape of images, of whose numbers some may not be known (None). Raises: as `check_images`."""
    shape = list(shape)
    advice = "bitlib.images.batch([...], model.card) reads and prepares pictures"
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
    if any(side is not None and side < SMALLEST for side in shape[1:3]):
        raise ValueError(
            f"images: expected height and width of at least {SMALLEST} pixels, received {shape[1]}×{shape[2]}"
        )


def check_range(images: Any) -> None:
    """Catch images that are not in [-1, 1], which a network would take without a word.

    Args:
        images: an array or tensor of any shape; of a symbolic one, without values yet, the dtype is checked.

    Raises:
        ValueError: not floating point; NaN or infinite; or values beyond ±16: surely [0, 255].

    Warns:
        UserWarning: all values lie in [0, 1]: likely [0, 1], though a very bright image looks the same.
    """
    dtype = re.findall(r"\w+", str(images.dtype))[-1]  # of `torch.uint8`, `<dtype: 'uint8'>`, `uint8`
    if "float" not in dtype:
        raise ValueError(
            f"images: expected floats in [-1, 1], received {dtype}; if they are in [0, 255], divide by 127.5 "
            "and subtract 1"
        )
    values = _values(images)
    if values is None or values.size == 0:
        return
    low, high = float(values.min()), float(values.max())
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ValueError(
            f"images: expected finite numbers in [-1, 1], received NaN or infinity in "
            f"{np.count_nonzero(~np.isfinite(values)):,} of {values.size:,} values"
        )
    if max(-low, high) > 16:
        raise ValueError(
            f"images: expected floats in [-1, 1], received values from {low:.4g} to {high:.4g}; "
            "if they are in [0, 255], divide by 127.5 and subtract 1"
        )
    if 0 <= low < high <= 1:
        warnings.warn(
            f"images: all values lie in [0, 1] ({low:.4g} to {high:.4g}), the model expects [-1, 1]; "
            "if they were scaled to [0, 1], multiply by 2 and subtract 1",
            stacklevel=2,
        )


def _values(images: Any) -> np.ndarray | None:
    """The values of an array or tensor; None of a symbolic one."""
    if isinstance(images, np.ndarray):
        return images
    if hasattr(images, "detach"):  # PyTorch's, perhaps with a gradient or on a GPU
        images = images.detach().cpu()
    try:
        values = np.asarray(images)
    except (TypeError, ValueError, NotImplementedError):  # as tracers of JAX, TensorFlow and Keras answer
        return None
    return values.astype(np.float32) if values.dtype.kind not in "f" else values  # bfloat16


def are_vectors(examples: Any) -> bool:
    """Whether each label is a vector with a number for each class (several may be true), not one integer."""
    spec = getattr(examples, "element_spec", None)
    if spec is None:
        return np.ndim(examples[1]) == 2
    if not (isinstance(spec, tuple) and len(spec) == 2):
        return False  # and no example at all, as `check_dataset` says
    rank = spec[1].shape.rank
    return rank == 1 if rank is not None else any(np.ndim(label) == 1 for _, label in examples.take(1))


def check_examples(images: np.ndarray, labels: np.ndarray, num_classes: int) -> None:
    """Check labelled images.

    Raises:
        ValueError: `images` are not float `[N, H, W, 3]` in [-1, 1], N at least 1; or `labels` are neither N
            integers from 0 to `num_classes - 1` nor N vectors of `num_classes` numbers in [0, 1].
    """
    _check_pairs(images, labels, num_classes)
    check_range(images)


def _check_pairs(images: np.ndarray, labels: np.ndarray, num_classes: int) -> None:
    if images.ndim != 4 or images.shape[-1] != 3:
        raise ValueError(f"images: expected shape [N, H, W, 3], received {list(images.shape)}")
    if labels.shape not in (images.shape[:1], (len(images), num_classes)):
        raise ValueError(
            f"labels: expected one integer for each of {len(images)} images, or a vector of {num_classes} "
            f"numbers, as the model has {num_classes} classes; received shape {labels.shape}"
        )
    if not len(images):
        raise ValueError("images: expected at least one, received none")
    if labels.ndim == 2:
        if labels.dtype.kind not in "biuf" or not ((labels >= 0) & (labels <= 1)).all():
            raise ValueError(
                f"labels: expected vectors of numbers in [0, 1], received {labels.dtype} from "
                f"{labels.min()} to {labels.max()}"
            )
    elif labels.dtype.kind not in "iu":
        raise ValueError(f"labels: expected integers, received {labels.dtype}")
    elif labels.min() < 0 or labels.max() >= num_classes:
        raise ValueError(
            f"labels: expected 0 to {num_classes - 1}, as the model has {num_classes} classes; "
            f"received {labels.min()} to {labels.max()}"
        )


def check_dataset(examples: tf.data.Dataset, num_classes: int) -> None:
    """Check a `tf.data.Dataset` by what it says of itself and by its first examples.

    Raises:
        ValueError: it is not of pairs, it is batched, it has no end, it is empty; or as `check_examples`.
    """
    import tensorflow as tf

    spec = examples.element_spec
    if not (isinstance(spec, tuple) and len(spec) == 2):
        raise ValueError(f"examples: expected pairs of an image and a label, received elements {spec}")
    if examples.cardinality() == tf.data.INFINITE_CARDINALITY:
        raise ValueError("examples: a dataset without end; give one epoch of it, without repeat()")
    values: list[np.ndarray] = []
    for image, label in examples.take(16):  # of one picture alone, [0, 1] may be a bright one in [-1, 1]
        if image.shape.rank == 4:
            raise ValueError(f"examples: expected an unbatched dataset, received batches {image.shape}")
        if not values:
            _check_pairs(image.numpy()[None], np.asarray(label)[None], num_classes)
        values.append(image.numpy().ravel())
    if not values:
        raise ValueError("examples: expected at least one example, received none")
    check_range(np.concatenate(values))
