"""Labelled sets of pictures by name, few-shot draws from them, and how they become `tf.data`.

`bitlib.tasks` has pictures that installed packages carry, `bitlib.glyphs` draws characters: nothing is
downloaded for them. A folder of pictures and TensorFlow Datasets bring whatever else there is.

A labelled set is three things everywhere here: the pictures (a sequence of whatever
`bitlib.images.read` takes), their labels int64 `[N]`, and the names of the classes.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bitlib import images, tasks
from bitlib.glyphs import (  # the old address of some of these
    GLYPH_SIZE,
    TRAINING_FONTS,
    UNSEEN_STYLES,
    UNSEEN_TYPEFACES,
    augment_glyphs,
    font_characters,
    font_path,
    glyph_classes,
    glyph_masks,
    glyph_pictures,
    glyphs_by_class,
    render_glyph,
)
from bitlib.tfdatasets import builder_of, stream, tfds

__all__ = [
    "GLYPH_SIZE", "TRAINING_FONTS", "UNSEEN_STYLES", "UNSEEN_TYPEFACES", "augment_glyphs", "digits",
    "digits_by_class", "draw", "folder", "font_characters", "font_path", "glyph_classes", "glyph_masks",
    "glyph_pictures", "glyphs_by_class", "labelled", "photographs", "pipeline", "render_glyph",
    "splits", "stream", "tfds",
]  # fmt: skip

if TYPE_CHECKING:
    import tensorflow as tf
    from numpy.typing import ArrayLike

_LARGE = 12_000_000  # values of a picture that `pipeline` resizes before it lets the next be decoded


def digits() -> tuple[np.ndarray, np.ndarray]:
    """The pictures uint8 `[1797, 64, 64]` and labels int64 `[1797]` of `bitlib.tasks.digits`."""
    return tasks.digits()[:2]


def digits_by_class() -> tuple[list[np.ndarray], np.ndarray, list[str]]:
    """scikit-learn's handwritten digits, as a labelled set."""
    pictures, labels, class_names = tasks.digits()
    return list(pictures), labels, class_names


def folder(path: str | os.PathLike, verify: bool = True) -> tuple[list[Path], np.ndarray, list[str]]:
    """A folder with one subfolder of pictures a class, as a labelled set.

    Args:
        path: the folder.
        verify: read every picture once, and leave out those that cannot be read, with a warning that
            names them; without it, such a picture is an error when it is used.

    Returns:
        the pictures' paths, their labels int64 `[N]`, and the class names: those of the subfolders,
        sorted.

    Raises:
        FileNotFoundError: there is no such folder, or no picture in it.
        ValueError: pictures lie beside the subfolders, or fewer than two subfolders have pictures.

    Warns:
        UserWarning: some pictures cannot be read.
    """
    files = images.files(path)
    owners = [file.relative_to(path).parts[0] for file in files]
    loose = [file.name for file, owner in zip(files, owners, strict=True) if file.name == owner]
    if loose:
        raise ValueError(
            f"path: {path} holds {loose[0]} beside its subfolders, expected one subfolder a class"
        )
    if verify:
        files = _readable(files)
        owners = [file.relative_to(path).parts[0] for file in files]
    class_names = sorted(set(owners))
    if len(class_names) < 2:
        found = f"one class, {class_names[0]}" if class_names else "no picture that can be read"
        raise ValueError(f"path: {path} has {found}; expected at least two subfolders of pictures")
    return files, np.array([class_names.index(owner) for owner in owners]), class_names


def _readable(files: Sequence[Path]) -> list[Path]:
    """The files that can be read as pictures; a warning tells of the others."""

    def trouble(file: Path) -> str | None:
        try:
            images.read(file)
        except (ValueError, OSError) as error:
            return str(error)
        return None

    with ThreadPoolExecutor() as pool:
        troubles = list(pool.map(trouble, files))
    told = [text for text in troubles if text]
    if told:
        more = f"\n… and {len(told) - 10} more" if len(told) > 10 else ""
        warnings.warn(
            f"{len(told)} of {len(files)} pictures cannot be read and are left out:\n"
            + "\n".join(told[:10])
            + more,
            stacklevel=3,
        )
    return [file for file, text in zip(files, troubles, strict=True) if not text]


def labelled(
    name: str | os.PathLike, data_dir: str | os.PathLike | None = None
) -> tuple[Sequence, np.ndarray, list[str]]:
    """A labelled set by any name.

    Args:
        name: one of `bitlib.tasks.TASKS` (`digits`, `mnist`, `counting`, …), which installed packages carry;
            `glyphs`; a folder with one subfolder of pictures a class; or a name of TFDS. Where a name is
            both, `data_dir` or a version (`mnist:3.0.1`) asks for TFDS.
        data_dir: of TFDS, as `tfds` takes it.

    Raises:
        FileNotFoundError, ImportError, ValueError: as `folder`, `tfds` or the task, whichever it is.
    """
    if name in tasks.TASKS and not data_dir:
        pictures, labels, class_names = tasks.TASKS[str(name)]()
        return list(pictures), labels, class_names
    if name == "glyphs":
        return glyphs_by_class()
    if _is_folder(name, data_dir):
        return folder(name)
    return tfds(str(name), data_dir=data_dir)


Part = tuple[Sequence, np.ndarray]


def splits(
    name: str | os.PathLike,
    data_dir: str | os.PathLike | None = None,
    shots: int = 0,
    num_test: int | None = None,
    seed: int = 0,
) -> tuple[Part, Part, list[str]]:
    """What to learn from and what to test on: the splits of a data set where it has its own, else drawn.

    A data set of TFDS has its own if it has `train` and `test` (or `validation`); a folder, if it has the
    subfolders `train` and `test` (or `validation`, or `val`), each with one subfolder of pictures a class.

    Args:
        name, data_dir: as of `labelled`.
        shots: examples of each class to learn from, drawn by `draw`; 0 for all.
        num_test: examples to test on, at most; None for all that are not learnt from. Where all are to be
            learnt from and there are no splits, a third is set aside, at most.
        seed: of what is drawn.

    Returns:
        pictures and labels int64 `[N]` to learn from; the same to test on; class names.

    Raises:
        FileNotFoundError, ImportError, ValueError: as `labelled` and `draw`; or the two splits of a folder
            have other classes.
    """
    own = _own_splits(name, data_dir)
    if own is None:
        return drawn_splits(labelled(name, data_dir), shots, num_test, seed)
    (pictures, labels, class_names), (test_pictures, test_labels, test_names) = own
    check_same_classes(name, class_names, test_names)
    if shots:
        chosen = _first_of_each(labels, np.random.default_rng(seed).permutation(len(labels)), shots)
        pictures, labels = [pictures[i] for i in chosen], labels[chosen]
    if num_test:
        some = np.random.default_rng(seed).permutation(len(test_labels))[:num_test]
        test_pictures, test_labels = [test_pictures[i] for i in some], test_labels[some]
    return (pictures, labels), (test_pictures, test_labels), class_names


def check_same_classes(name: str | os.PathLike, class_names: Sequence, test_names: Sequence) -> None:
    """Raise ValueError unless the two splits of the data set `name` have the same classes, in one order."""
    if class_names != test_names:
        odd = ", ".join(sorted(set(class_names) ^ set(test_names))[:5])
        raise ValueError(f"name: {name} has other classes to test on than to learn from: {odd}")


def drawn_splits(
    found: tuple[Sequence, np.ndarray, list[str]], shots: int, num_test: int | None, seed: int
) -> tuple[Part, Part, list[str]]:
    """As `splits`, of a labelled set at hand, whatever it is."""
    pictures, labels, class_names = found
    if shots:
        chosen, test = draw(labels, shots, seed=seed)
        test = np.random.default_rng(seed).permutation(test)[:num_test]
    else:
        order = np.random.default_rng(seed).permutation(len(labels))
        test, chosen = np.split(order, [min(num_test or len(order), len(order) // 3)])
    parts = [([pictures[i] for i in part], labels[part]) for part in (chosen, test)]
    return parts[0], parts[1], class_names


def _is_folder(name, data_dir) -> bool:
    return isinstance(name, os.PathLike) or os.path.isdir(name) or (os.sep in name and not data_dir)


def _own_splits(name, data_dir):
    """The two labelled sets of a data set that has a training and a test split; None of another."""
    if (name in tasks.TASKS and not data_dir) or name == "glyphs":
        return None
    if _is_folder(name, data_dir):
        parts = [Path(name, part) for part in ("test", "validation", "val") if Path(name, part).is_dir()]
        train = Path(name, "train")
        return (folder(train), folder(parts[0])) if parts and train.is_dir() else None
    known = builder_of(str(name), data_dir)[0].info.splits
    test = next((part for part in ("test", "validation") if part in known), None)
    if test is None or "train" not in known:
        return None
    return tfds(str(name), "train", data_dir), tfds(str(name), test, data_dir)


def draw(
    labels: ArrayLike, shots: int, num_test: int | None = None, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Draw a few examples of each class to learn from, and others to test on.

    Examples are shuffled; the first `num_test` are set aside, and of the others the first `shots` of each
    class are taken.

    Args:
        labels: int `[N]`.
        shots: examples of each class.
        num_test: examples to test on; None for all that are not learnt from.
        seed: the same seed gives the same draw.

    Returns:
        indices int64 `[classes * shots]`, class by class, and `[num_test]`; no index is in both.

    Raises:
        ValueError: a class has fewer than `shots` examples left, or nothing is left to test on.
    """
    labels = np.asarray(labels)
    if shots < 1:
        raise ValueError(f"shots: expected at least 1 example of each class, received {shots}")
    if num_test is not None and not 1 <= num_test < len(labels):
        raise ValueError(f"num_test: expected 1 to {len(labels) - 1}, received {num_test}")
    order = np.random.default_rng(seed).permutation(len(labels))
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
    """How `tf.data` reads a picture.

    Args:
        picture: the value of a scalar tensor -> whatever `bitlib.images.read` takes.
        size: as of `pipeline`.

    Returns:
        a function for `tf.data.Dataset.map`: scalar tensor -> image float32 `[H, W, 3]` in [-1, 1].
    """
    import tensorflow as tf

    def read(key):
        """The picture, and an empty array; or, of a large one, an empty array and the picture resized."""
        with images.decoded(picture(key)) as image:
            if size is None or image.size < _LARGE:
                return image, np.zeros((0, 0, 3), np.float32)
            with tf.device("CPU"):
                return np.zeros((0, 0, 3), np.uint8), tf.image.resize(image, (size, size)).numpy()

    def load(key):
        image, resized = tf.numpy_function(read, [key], (tf.uint8, tf.float32), stateful=False)
        image.set_shape((None, None, 3))
        if size is None:
            return tf.cast(image, tf.float32) / 127.5 - 1
        resized.set_shape((None, None, 3))
        image = tf.cond(tf.size(resized) > 0, lambda: resized, lambda: tf.image.resize(image, (size, size)))
        return tf.ensure_shape(image, (size, size, 3)) / 127.5 - 1

    return load


def pipeline(
    pictures: Sequence, labels: ArrayLike, size: int | None = None, seed: int | None = None
) -> tf.data.Dataset:
    """A labelled set as `tf.data`, decoded in parallel as it is read.

    Args:
        pictures: as of a labelled set.
        labels: int `[N]`.
        size: height and width to resize to, bilinearly, in pixels; None to leave them as they are. With a
            size, memory is bounded whatever the pictures are (`bitlib.images.MAX_PIXELS`); without, there
            are as many of them in memory as TensorFlow has threads.
        seed: shuffle with that seed; None to keep the order.

    Returns:
        An unbatched `tf.data.Dataset` of images float32 `[H, W, 3]` in [-1, 1] and int64 labels: every
        example once, in the same order each time.

    Raises:
        ValueError: there are not as many labels as pictures, or none at all. A picture that cannot be
            read is an error of TensorFlow's when it is reached, and names the file.
    """
    import tensorflow as tf

    labels = np.asarray(labels, np.int64)
    if len(pictures) != len(labels) or not len(labels):
        raise ValueError(f"labels: expected one for each of {len(pictures)} pictures, received {len(labels)}")
    order = np.arange(len(labels)) if seed is None else np.random.default_rng(seed).permutation(len(labels))

    load = loader(lambda index: pictures[index], size)
    indices = tf.data.Dataset.from_tensor_slices((order, labels[order]))
    return indices.map(lambda index, label: (load(index), label), tf.data.AUTOTUNE, deterministic=True)


def photographs() -> dict[str, np.ndarray]:
    """The two photographs that ship with scikit-learn: a Chinese palace and a flower.

    Returns:
        uint8 `[427, 640, 3]` by file name.
    """
    from sklearn.datasets import load_sample_images

    sample = load_sample_images()
    return {
        str(name).rsplit("/")[-1]: image for name, image in zip(sample.filenames, sample.images, strict=True)
    }
