"""Labelled sets of pictures by name, few-shot draws from them, and how they become `tf.data`.

Handwritten digits are the 1797 scans that every scikit-learn carries, glyphs are drawn by `bitlib.glyphs`:
nothing is downloaded for them. A folder of pictures and TensorFlow Datasets bring whatever else there is.

A labelled set is three things everywhere here: the pictures (a sequence of whatever
`bitlib.images.read` takes), their labels int64 `[N]`, and the names of the classes.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from bitlib import images
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
from bitlib.settings import offline

__all__ = [
    "GLYPH_SIZE", "TRAINING_FONTS", "UNSEEN_STYLES", "UNSEEN_TYPEFACES", "augment_glyphs", "digits",
    "digits_by_class", "draw", "folder", "font_characters", "font_path", "glyph_classes", "glyph_masks",
    "glyph_pictures", "glyphs_by_class", "labelled", "photographs", "pipeline", "render_glyph", "tfds",
]  # fmt: skip

if TYPE_CHECKING:
    import tensorflow as tf
    from numpy.typing import ArrayLike

_LARGE = 12_000_000  # values of a picture that `pipeline` resizes before it lets the next be decoded


def digits() -> tuple[np.ndarray, np.ndarray]:
    """scikit-learn's handwritten digits: 1797 real scans of 8×8 pixels, by 43 people.

    E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI, 1998 (CC BY 4.0).

    Returns:
        pictures uint8 `[1797, 64, 64]`, light on dark as they were scanned, enlarged to 48×48 and
        padded; and labels int64 `[1797]`, 0 to 9.
    """
    from PIL import Image
    from sklearn.datasets import load_digits

    scans = load_digits()
    levels = np.round(scans.images * (255 / 16)).astype(np.uint8)
    pictures = np.zeros((len(levels), GLYPH_SIZE, GLYPH_SIZE), np.uint8)
    for picture, level in zip(pictures, levels, strict=True):
        picture[8:56, 8:56] = np.asarray(Image.fromarray(level).resize((48, 48), Image.Resampling.BILINEAR))
    return pictures, scans.target


def digits_by_class() -> tuple[list[np.ndarray], np.ndarray, list[str]]:
    """scikit-learn's handwritten digits, as a labelled set."""
    pictures, labels = digits()
    return list(pictures), labels, [str(digit) for digit in range(10)]


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


def tfds(
    name: str, split: str = "train", data_dir: str | os.PathLike | None = None
) -> tuple[list, np.ndarray, list[str]]:
    """A split of TensorFlow Datasets (`cifar10`, `oxford_flowers102`), as a labelled set.

    Pictures stay encoded, as they are stored, until they are used; the whole split is in memory so.

    Args:
        name: of a data set with one picture and one class label an example, with its version if wanted.
        split: as TFDS writes them: `train`, `test`, `train[:10000]`, `train+validation`.
        data_dir: the folder of an offline copy; None for TFDS' own. What is not there is downloaded by
            TFDS, unless `BITLIB_OFFLINE` is 1.

    Returns:
        encoded pictures (bytes), labels int64 `[N]`, class names.

    Raises:
        ImportError: tensorflow-datasets is not installed.
        ValueError: there is no such data set or split, it is not of pictures and class labels, or it is
            not on this machine and `BITLIB_OFFLINE` forbids to get it.
    """
    try:
        import tensorflow_datasets
    except ImportError:
        raise ImportError(
            "tensorflow-datasets: the package is not installed; pip install 'bitlib[datasets]', "
            'or use a folder of pictures, "digits" or "glyphs"'
        ) from None

    data_dir = None if data_dir is None else str(data_dir)
    try:
        builder = tensorflow_datasets.builder(name, data_dir=data_dir)
    except tensorflow_datasets.core.DatasetNotFoundError as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"name: no data set {name!r} in TensorFlow Datasets ({reason})") from error
    keys: tuple = builder.info.supervised_keys or ()
    features = builder.info.features
    kinds = (tensorflow_datasets.features.Image, tensorflow_datasets.features.ClassLabel)
    if len(keys) != 2 or not all(
        isinstance(features[key], kind) for key, kind in zip(keys, kinds, strict=True)
    ):
        raise ValueError(f"name: {name} is not of pictures with one class label each")
    if not builder.is_prepared():
        if offline():
            where = data_dir or "the folder of TensorFlow Datasets"
            raise ValueError(f"name: {name} is not in {where}, and BITLIB_OFFLINE=1 forbids to download it")
        builder.download_and_prepare()
    encoded = {keys[0]: tensorflow_datasets.decode.SkipDecoding()}
    try:
        stored = builder.as_dataset(split=split, decoders=encoded, shuffle_files=False)
    except ValueError as error:
        known = ", ".join(builder.info.splits)
        raise ValueError(f"split: {name} has {known}, received {split!r}") from error
    pairs = [(example[keys[0]], example[keys[1]]) for example in stored.as_numpy_iterator()]
    pictures, labels = zip(*pairs, strict=True)
    return list(pictures), np.array(labels, np.int64), list(features[keys[1]].names)


def labelled(
    name: str | os.PathLike, data_dir: str | os.PathLike | None = None
) -> tuple[Sequence, np.ndarray, list[str]]:
    """A labelled set by any name: `digits`, `glyphs`, a folder of class subfolders, or one of TFDS.

    Raises:
        FileNotFoundError, ImportError, ValueError: as `folder` or `tfds`, whichever it is.
    """
    if name == "digits":
        return digits_by_class()
    if name == "glyphs":
        return glyphs_by_class()
    if isinstance(name, os.PathLike) or os.path.isdir(name) or (os.sep in name and not data_dir):
        return folder(name)
    return tfds(name, data_dir=data_dir)


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
    of_class = {label: rest[labels[rest] == label] for label in np.unique(labels)}
    for label, found in of_class.items():
        if len(found) < shots:
            raise ValueError(f"shots: class {label} has {len(found)} examples left, {shots} are wanted")
    train = np.concatenate([found[:shots] for found in of_class.values()])
    if num_test is None:
        test = rest[~np.isin(rest, train)]
        if not len(test):
            raise ValueError(f"shots: {shots} of each class are all there are, none is left to test on")
    return train, test


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

    def read(index):
        """The picture, and an empty array; or, of a large one, an empty array and the picture resized."""
        with images.decoded(pictures[index]) as image:
            if size is None or image.size < _LARGE:
                return image, np.zeros((0, 0, 3), np.float32)
            with tf.device("CPU"):
                return np.zeros((0, 0, 3), np.uint8), tf.image.resize(image, (size, size)).numpy()

    def load(index):
        image, resized = tf.numpy_function(read, [index], (tf.uint8, tf.float32), stateful=False)
        image.set_shape((None, None, 3))
        if size is None:
            return tf.cast(image, tf.float32) / 127.5 - 1
        resized.set_shape((None, None, 3))
        image = tf.cond(tf.size(resized) > 0, lambda: resized, lambda: tf.image.resize(image, (size, size)))
        return tf.ensure_shape(image, (size, size, 3)) / 127.5 - 1

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
