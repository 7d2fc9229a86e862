"""Labelled sets of pictures by name, few-shot draws from them, and how they become `tf.data`.

A labelled set is three things everywhere here: the pictures (a sequence of whatever
`bitlib.images.read` takes), their labels int64 `[N]`, and the names of the classes.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from typing import TYPE_CHECKING, Any

import numpy as np

from bitlib import images
from bitlib.datasets import folders, tasks
from bitlib.datasets.folders import folder, table

# isort: off
from bitlib.datasets.tasks import (  # the old address of some of these
    GLYPH_SIZE, TRAINING_FONTS, UNSEEN_STYLES, UNSEEN_TYPEFACES, font_characters, font_path, glyph_classes,
    glyph_masks, glyph_pictures, glyphs_by_class, render_glyph,
)  # fmt: skip

# isort: on
from bitlib.datasets.tfdatasets import builder_of, stream, tfds
from bitlib.inputs import array, check_whole, tensorflow

if TYPE_CHECKING:
    import tensorflow as tf
    from numpy.typing import ArrayLike


Part = tuple[Sequence, np.ndarray]


def digits() -> tuple[np.ndarray, np.ndarray]:
    """The pictures uint8 `[1797, 64, 64]` and labels int64 `[1797]` of `bitlib.datasets.tasks.digits`."""
    return tasks.digits()[:2]


def digits_by_class() -> tuple[list[np.ndarray], np.ndarray, list[str]]:
    """scikit-learn's handwritten digits, as a labelled set."""
    pictures, labels, class_names = tasks.digits()
    return list(pictures), labels, class_names


def labelled(
    name: Any, data_dir: str | os.PathLike | None = None, columns: Mapping[str, str] | None = None
) -> tuple[Sequence, np.ndarray, list[str]]:
    """A labelled set by any name.

    Args:
        name: one of `bitlib.datasets.tasks.TASKS` (`digits`, `mnist`, `counting`, …), which installed
            packages carry; `glyphs`; what `folder` or `table` takes; or a name of TFDS, with `/config` and
            `:version` if wanted. A folder of the name of a built-in set is meant by `./name`; where a name is
            TFDS' too, `data_dir` or a version (`mnist:3.0.1`) asks for TFDS.
        data_dir: of TFDS, as `tfds` takes it; of a table, its `root`.
        columns: as `table` takes them.

    Raises: as `folder`, `table`, `tfds` or the task, whichever it is; ValueError, if it is none of these.

    Warns: as `folder` and `table`; or there is a folder of the name of the built-in set.
    """
    if folders.is_table(name):
        return table(name, columns, data_dir)
    if _is_built_in(name, data_dir):
        if os.path.isdir(name):
            other = f"name: {name!r} is the built-in set, not the folder; that is './{name}'"
            warnings.warn(other, stacklevel=2)
        pictures, labels, class_names = (tasks.TASKS | {"glyphs": glyphs_by_class})[name]()
        return list(pictures), labels, class_names
    if _is_folder(name):
        return folder(name)
    _tfds_splits(name, data_dir)
    return tfds(name, data_dir=data_dir)


def splits(
    name: Any,
    data_dir: str | os.PathLike | None = None,
    shots: int = 0,
    num_test: int | None = None,
    seed: int = 0,
    columns: Mapping[str, str] | None = None,
) -> tuple[Part, Part, list[str]]:
    """Pictures to learn from and to test on: the splits of a data set where it has its own, else drawn.

    A data set of TFDS has its own if it has `train` and `test` (or `validation`); a folder, if it has
    subfolders that are called so (`bitlib.datasets.folders.SPLITS`: `Train`, `val`, `seg_train`, …); a table,
    if it has a column of them. Of three, the test split is tested on, and the validation split is not used.

    Args:
        name, data_dir, columns: as of `labelled`.
        shots: examples of each class to learn from, drawn by `draw`; 0 for all.
        num_test: examples to test on, at most, in proportion to the classes; None for all that are not learnt
            from. Without shots and splits a third is set aside, at most: of each class with two pictures or
            more at least one, and not all.
        seed: of what is drawn.

    Returns:
        pictures and labels int64 `[N]` to learn from; the same to test on; class names.

    Raises: as `labelled` and `draw`; ValueError, if there are classes to test on that are not to learn from,
        or `num_test` is less than one of each class.

    Warns: as `labelled`; or no picture of a class is to test on.
    """
    own = _parts(name, data_dir, columns)
    if len(own) == 1:
        return drawn_splits(own[0], shots, num_test, seed)
    (pictures, labels, class_names), (test_pictures, test_labels, test_names) = own
    test_labels = as_learnt(name, class_names, labels, test_names, test_labels)
    folders.warn_of_copies(pictures, test_pictures)
    if _count("shots", shots):
        chosen = _first_of_each(labels, _rng(seed).permutation(len(labels)), shots)
        pictures, labels = [pictures[i] for i in chosen], labels[chosen]
    if _count("num_test", num_test):
        some = _in_turn(test_labels, _rng(seed).permutation(len(test_labels)))[:num_test]
        test_pictures, test_labels = [test_pictures[i] for i in some], test_labels[some]
    _warn_if_untested(labels, test_labels, class_names)
    return (pictures, labels), (test_pictures, test_labels), class_names


def _count(name: str, number: int | None) -> int:
    return check_whole(name, number or 0, least=0, expected="a number of examples, 0 or more")


def as_learnt(
    name: Any, class_names: list[str], labels: Iterable[int], test_names: list[str], test_labels: np.ndarray
) -> np.ndarray:
    """The labels of a test split as numbers among the class names of the training split, int64 `[N]`.
    Raises: ValueError, if pictures are of a class that none to learn from is of."""
    learnt = {class_names[label] for label in set(labels)}
    tested = {test_names[label] for label in set(test_labels)}
    if tested - learnt:
        odd = ", ".join(sorted(learnt ^ tested)[:5])
        raise ValueError(f"name: {name} has other classes to test on than to learn from: {odd}")
    places = {name: place for place, name in enumerate(class_names)}
    return np.array([places[test_names[label]] for label in test_labels], np.int64)


def _rng(seed: int) -> np.random.Generator:
    return np.random.default_rng(check_whole("seed", seed, least=0))


def drawn_splits(
    found: tuple[Sequence, ArrayLike, list[str]], shots: int, num_test: int | None, seed: int
) -> tuple[Part, Part, list[str]]:
    """As `splits`, of a labelled set at hand, whatever it is."""
    pictures, labels = paired(*found[:2])
    rng = _rng(seed)
    tested = _count("num_test", num_test)
    if _count("shots", shots):
        chosen, test = _drawn(labels, shots, None, seed)
        test = rng.permutation(test)[: tested or None]
    else:
        test, chosen = _stratified(labels, tested, rng)
    _warn_if_untested(labels[chosen], labels[test], found[2])
    learnt, tests = (([pictures[i] for i in part], labels[part]) for part in (chosen, test))
    folders.warn_of_copies(learnt[0], tests[0])
    return learnt, tests, found[2]


def _warn_if_untested(labels: np.ndarray, tested: np.ndarray, class_names: Sequence | None = None) -> None:
    if missing := sorted(set(labels) - set(tested)):
        names = ", ".join(str(class_names[label] if class_names else label) for label in missing[:5])
        where = "name" if class_names else "labels"
        warnings.warn(f"{where}: none to test on of {names}; {len(missing)} classes in all", stacklevel=4)


def _in_turn(labels: np.ndarray, order: np.ndarray) -> np.ndarray:
    """Indices in such an order that however many are taken, they are in proportion to the classes."""
    rank = np.zeros(len(labels))
    for label in np.unique(labels):
        of_class = order[labels[order] == label]
        rank[of_class] = np.linspace(0, 1, len(of_class))
    return order[np.argsort(rank[order], kind="stable")]


def _stratified(labels: np.ndarray, num_test: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Indices to test on, a third at most, and the others; each class with two examples is on both sides."""
    order = rng.permutation(len(labels))
    classes, counts = np.unique(labels, return_counts=True)
    several = np.sum(counts > 1)
    if 0 < num_test < several:
        raise ValueError(f"num_test: expected at least {several}, one for each class, received {num_test}")
    if not several:
        raise ValueError("labels: each class has one picture; expected two, to learn from and to test on")
    count = max(several, min(num_test or len(labels), len(labels) // 3, len(labels) - len(classes)))
    single = np.isin(labels, classes[counts == 1])  # learnt from, always
    in_turn = _in_turn(labels, order)
    tested = np.isin(order, in_turn[~single[in_turn]][:count])
    return order[tested], order[~tested]


def _is_built_in(name, data_dir) -> bool:
    return isinstance(name, str) and not data_dir and (name in tasks.TASKS or name == "glyphs")


def _is_folder(name) -> bool:
    if not isinstance(name, (str, os.PathLike)) or not os.fspath(name):
        expected = "that of a data set, a folder, a CSV file or a DataFrame"
        raise ValueError(f"name: expected {expected}, received {name!r:.80}")
    far = isinstance(name, os.PathLike) or name.startswith((".", "~", os.sep)) or name.endswith(os.sep)
    return far or os.path.isdir(name)


def _tfds_splits(name: str, data_dir: str | os.PathLike | None) -> Iterable[str]:
    """The names of a data set's splits in TFDS. Raises: as `builder_of`; or `name` is nothing else either."""
    try:
        return builder_of(name, data_dir)[0].info.splits
    except (ImportError, ValueError) as error:
        if not isinstance(error, ImportError) and "no data set" not in str(error):
            raise
        kind = FileNotFoundError if os.sep in name else type(error)
        known = f"nor one of the built-in sets {', '.join(tasks.TASKS)}, glyphs"
        raise kind(f"name: no such folder, {name!r}, {known}; {error}") from error


def _parts(name, data_dir, columns) -> Sequence[tuple[Sequence, np.ndarray, list[str]]]:
    """The training and the test split of a data set that has them; of another the one labelled set."""
    if folders.is_table(name):
        return folders.table_parts(name, columns, data_dir)
    if not _is_built_in(name, data_dir):
        if _is_folder(name):
            return folders.parts(name)
        known = _tfds_splits(name, data_dir)
        if tests := [part for part in ("test", "validation") if part in known and "train" in known]:
            return [tfds(name, part, data_dir) for part in ("train", tests[0])]
    return [labelled(name, data_dir)]


def paired(pictures: Sequence, labels: ArrayLike) -> tuple[Sequence, np.ndarray]:
    """Pictures and their class numbers, checked: the columns of a table by position, whatever their index.

    Args:
        pictures: a sequence of what `bitlib.images.read` takes.
        labels: one class number for each, from 0: integers of any type, or floats without a fraction, `[N]`.

    Returns the pictures, and the labels as int64 `[N]`. Raises: ValueError, if they are something else.
    """
    if hasattr(pictures, "iloc"):  # a column of pandas
        pictures = list(pictures)
    single = isinstance(pictures, (str, bytes, os.PathLike, Mapping, Set))
    if single or not (hasattr(pictures, "__len__") and hasattr(pictures, "__getitem__")):
        raise ValueError(f"pictures: expected a list of pictures, received {type(pictures).__name__}")
    try:
        given = np.asarray(labels)
    except ValueError:  # of lists of several lengths
        given = np.asarray(labels, object)
    if given.shape != (len(pictures),) or not len(pictures):
        found = len(given) if given.ndim == 1 else f"shape {given.shape}"
        raise ValueError(f"labels: expected one for each of {len(pictures)} pictures, received {found}")
    values = given.tolist()
    numbers = np.array([value if isinstance(value, (int, float)) else np.nan for value in values], np.float64)
    wrong = np.flatnonzero(~((numbers >= 0) & (numbers < 2**53) & (numbers == np.floor(numbers))))
    if len(wrong):
        received = f"{values[wrong[0]]!r} at position {wrong[0]}; bitlib.datasets.table numbers names"
        raise ValueError(f"labels: expected class numbers from 0, received {received}")
    return pictures, numbers.astype(np.int64)


def draw(
    labels: ArrayLike, shots: int, num_test: int | None = None, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Draw `shots` examples of each class to learn from, and `num_test` others (None: all) to test on.

    Args:
        labels: int `[N]`.
        shots, num_test: numbers of examples; those to test on are drawn first.
        seed: the same seed gives the same draw.

    Returns:
        indices int64 `[classes * shots]`, class by class, and `[num_test]`; no index is in both. A warning
        says if nothing of a class is left to test on.

    Raises:
        ValueError: a class has fewer than `shots` examples left, or nothing is left to test on.
    """
    labels = array(labels, "labels")
    if labels.ndim != 1 or not len(labels):
        raise ValueError(f"labels: expected one for each example, [N], received shape {labels.shape}")
    if any(value is None or value != value for value in labels.tolist()):
        raise ValueError("labels: expected class numbers or names, received missing values")
    train, test = _drawn(labels, shots, num_test, seed)
    _warn_if_untested(labels, labels[test])
    return train, test


def _drawn(labels: np.ndarray, shots: int, num_test: int | None, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """As `draw`, without a warning."""
    check_whole("shots", shots, expected="at least 1 example of each class, a whole number")
    if num_test is not None:
        check_whole("num_test", num_test, most=len(labels) - 1)
    order = _rng(seed).permutation(len(labels))
    test, rest = order[: num_test or 0], order[num_test or 0 :]
    train = _first_of_each(labels, rest, shots)
    if num_test is None:
        test = rest[~np.isin(rest, train)]
        if not len(test):
            raise ValueError(f"shots: {shots} of each class are all there are, none is left to test on")
    return train, test


def _first_of_each(labels: np.ndarray, order: np.ndarray, shots: int) -> np.ndarray:
    """The first `shots` indices of each class, class by class, among those in `order`."""
    of_class = {label: order[labels[order] == label] for label in np.unique(labels)}
    for label, found in of_class.items():
        if len(found) < shots:
            raise ValueError(f"shots: class {label} has {len(found)} examples left, {shots} are wanted")
    return np.concatenate([found[:shots] for found in of_class.values()])


def loader(picture: Callable[[Any], Any], size: int | None = None) -> Callable[[tf.Tensor], tf.Tensor]:
    """How `tf.data` reads a picture: a function, scalar tensor -> image float32 `[H, W, 3]` in [-1, 1].

    Args:
        picture: the value of that tensor -> whatever `bitlib.images.read` takes.
        size: as of `pipeline`.
    """
    tf = tensorflow("bitlib.datasets.loader")

    def read(key):
        with images.decoded(picture(key)) as image, tf.device("CPU"):
            return image if size is None else tf.image.resize(image, (size, size)).numpy()

    def load(key):
        image = tf.numpy_function(read, [key], tf.uint8 if size is None else tf.float32, stateful=False)
        return tf.cast(tf.ensure_shape(image, (size, size, 3)), tf.float32) / 127.5 - 1

    return load


def pipeline(
    pictures: Sequence, labels: ArrayLike, size: int | None = None, seed: int | None = None
) -> tf.data.Dataset:
    """A labelled set as `tf.data`, decoded in parallel: images float32 `[H, W, 3]` in [-1, 1], int64 labels.

    Args:
        pictures, labels: as `paired` takes them.
        size: height and width to resize to, bilinearly, in pixels; memory is then bounded whatever the
            pictures are (`bitlib.images.MAX_PIXELS`). None to leave them as they are, one for each thread.
        seed: shuffle with that seed; None to keep the order.

    It is unbatched, and has every example once, in the same order each time. Raises: as `paired`. A picture
    that cannot be read is TensorFlow's error, which names the file.
    """
    tf = tensorflow("bitlib.datasets.pipeline")
    pictures, labels = paired(pictures, labels)
    if size is not None:
        check_whole("size", size)
    order = np.arange(len(labels)) if seed is None else _rng(seed).permutation(len(labels))
    load = loader(lambda index: pictures[index], size)
    indices = tf.data.Dataset.from_tensor_slices((order, labels[order]))
    return indices.map(lambda index, label: (load(index), label), tf.data.AUTOTUNE, deterministic=True)


def photographs() -> dict[str, np.ndarray]:
    """scikit-learn's photographs, a Chinese palace and a flower, by file name: uint8 `[427, 640, 3]`."""
    from sklearn.datasets import load_sample_images

    sample = load_sample_images()
    return dict(zip(map(os.path.basename, sample.filenames), sample.images, strict=True))
