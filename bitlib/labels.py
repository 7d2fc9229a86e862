"""From the index of an output to the name of a class."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike

from bitlib.files.fetching import fetch_file, on_disk, parse_class_list
from bitlib.files.writing import bundled
from bitlib.inputs import check_whole, described, scores
from bitlib.zoo import CLASS_LISTS, Card


@functools.cache
def names(class_list: str) -> tuple[str, ...]:
    """The class names of a list (`glyph1k`, `ilsvrc2012`, `imagenet21k`), in the order of a model's outputs.

    Raises:
        ValueError: there is no such list.
        ConnectionError: it is not bundled, and cannot be downloaded; or what is cached is no such list.
    """
    if not isinstance(class_list, str) or class_list not in CLASS_LISTS:
        raise ValueError(f"class_list: expected one of {', '.join(CLASS_LISTS)}, received {class_list!r}")
    file = CLASS_LISTS[class_list]
    path = bundled(file) if class_list == "glyph1k" else fetch_file(file)
    try:
        lines = parse_class_list(path.read_bytes(), file)
    except ValueError as error:
        raise ConnectionError(f"{path}: not a class list ({error}); delete it to get it again") from error
    return tuple(line.replace("_", " ") for line in lines)


def are_here(class_list: str) -> bool:
    """Whether `names` can have a list without the network."""
    return class_list == "glyph1k" or on_disk(CLASS_LISTS[class_list]) is not None


def names_or_numbers(class_list: str | None, num_classes: int) -> tuple[tuple[str, ...], str]:
    """As `names`, and ""; where they cannot be had or do not fit, `class 0`, `class 1`, … and the reason."""
    reason = "the model has no published class list"
    if class_list:
        try:
            found = names(class_list)
            if len(found) == num_classes:
                return found, ""
            reason = f"{class_list} has {len(found)} names, the model {num_classes} outputs"
        except ConnectionError as error:
            reason = str(error)
    return tuple(f"class {index}" for index in range(num_classes)), reason


def of_card(card: Card | None, num_classes: int) -> tuple[tuple[str, ...], str]:
    """The class names of a model: those that its file carries, else as `names_or_numbers`."""
    if card and card.class_names and len(card.class_names) == num_classes:
        return card.class_names, ""
    return names_or_numbers(card.labels if card else None, num_classes)


def probabilities(logits: ArrayLike, activation: str = "softmax") -> np.ndarray:
    """Turn logits, float `[N, classes]`, into probabilities, float64 `[N, classes]` in [0, 1].

    Args:
        logits: a UserWarning says if they are probabilities already.
        activation: `softmax` for one class a picture, `sigmoid` for any number (ImageNet-21k).
    """
    logits = scores(logits, "logits")
    if logits.size and logits.min() >= 0 and logits.shape[-1] > 1 and (abs(logits.sum(-1) - 1) < 1e-5).all():
        warnings.warn("logits: each row sums to 1; expected logits, not probabilities", stacklevel=2)
    if activation == "sigmoid":
        return 0.5 * (1 + np.tanh(logits / 2))
    if activation != "softmax":
        raise ValueError(f"activation: expected 'softmax' or 'sigmoid', received {activation!r}")
    shifted = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return shifted / shifted.sum(axis=-1, keepdims=True)


def top_k(probabilities: ArrayLike, class_names: Sequence[str], k: int = 5) -> list[list[tuple[str, float]]]:
    """The k likeliest classes of each row, best first, ties in the order of the classes.

    Args:
        probabilities: float `[N, classes]`; a UserWarning says if they are beyond [0, 1], as logits are.
        class_names: one a class.
        k: at least 1; no more are given than there are classes.

    Returns:
        For each row, k pairs of name and probability. Raises: ValueError, if names and classes differ in
        number, k is below 1, or there is NaN.
    """
    probabilities = scores(probabilities, "probabilities")
    if probabilities.ndim != 2:
        expected = "[N, classes], of one picture probabilities[None]"
        raise ValueError(f"probabilities: expected {expected}, received shape {probabilities.shape}")
    if getattr(class_names, "ndim", 1) == 1 and hasattr(class_names, "tolist"):
        class_names = class_names.tolist()  # of pandas: by position, whatever its index
    in_order = hasattr(class_names, "__getitem__") and not hasattr(class_names, "ndim")
    in_order = in_order and not isinstance(class_names, Mapping)
    if not in_order or len(class_names) != probabilities.shape[1]:
        received = len(class_names) if in_order else described(class_names)
        raise ValueError(f"class_names: expected {probabilities.shape[1]} names, received {received}")
    check_whole("k", k)
    if probabilities.size and not (probabilities.min() >= 0 and probabilities.max() <= 1 + 1e-5):
        extent = f"{probabilities.min():.4g} to {probabilities.max():.4g}"
        way = "bitlib.labels.probabilities makes them of logits"
        warnings.warn(f"probabilities: expected [0, 1], received {extent}; {way}", stacklevel=2)
    order = np.argsort(-probabilities, axis=-1, kind="stable")[:, :k]
    pairs = zip(probabilities, order, strict=True)
    return [[(class_names[index], float(row[index])) for index in best] for row, best in pairs]
