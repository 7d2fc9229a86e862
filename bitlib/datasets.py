"""Where pictures come from, how few of each class are drawn, and how they become `tf.data`.

Glyphs are drawn on the fly from the fonts that every matplotlib installation carries, handwritten
digits are the 1797 scans that every scikit-learn carries: nothing is downloaded for them. A folder of
pictures and TensorFlow Datasets bring whatever else there is.

A labelled set is three things everywhere here: the pictures (a sequence of whatever
`bitlib.images.read` takes), their labels int64 `[N]`, and the names of the classes.
"""

from __future__ import annotations

import functools
import os
import unicodedata
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

GLYPH_SIZE = 64
"""Height and width of a rendered glyph, in pixels."""

TRAINING_FONTS = (
    "DejaVuSans",
    "DejaVuSans-Bold",
    "DejaVuSans-Oblique",
    "DejaVuSans-BoldOblique",
    "DejaVuSansMono",
    "DejaVuSansMono-Bold",
    "DejaVuSansMono-Oblique",
    "DejaVuSerif",
    "DejaVuSerif-Bold",
    "DejaVuSerif-BoldItalic",
    "STIXGeneral",
    "STIXGeneralBol",
    "STIXGeneralBolIta",
)
"""The fonts that BiT-XS was trained on."""

UNSEEN_STYLES = ("DejaVuSansMono-BoldOblique", "DejaVuSerif-Italic", "STIXGeneralItalic")
"""Fonts kept back from training: new styles of typefaces that it did see."""

UNSEEN_TYPEFACES = ("cmr10", "cmb10", "cmss10", "cmtt10")
"""Fonts kept back from training: Computer Modern, of which it saw no style at all (52 letters)."""


def font_path(font: str) -> str:
    """The file of a font that matplotlib ships, by its bare file name (`DejaVuSans`)."""
    import matplotlib

    path = Path(matplotlib.get_data_path(), "fonts", "ttf", f"{font}.ttf")
    if not path.is_file():
        raise ValueError(f"font: {font!r} is not one of the fonts matplotlib ships")
    return str(path)


@functools.cache
def font_characters(font: str) -> frozenset[str]:
    """The characters a font has a glyph for. Computer Modern counts for its letters only: the
    other codes of those files hold other glyphs than Unicode's."""
    from matplotlib import ft2font

    characters = {chr(code) for code in ft2font.FT2Font(font_path(font)).get_charmap()}
    if font in UNSEEN_TYPEFACES:
        characters = {c for c in characters if c.isascii() and c.isalpha()}
    return frozenset(characters)


@functools.cache
def _font(font: str, points: int):
    from PIL import ImageFont

    return ImageFont.truetype(font_path(font), points, layout_engine=ImageFont.Layout.BASIC)


def render_glyph(character: str, font: str = "DejaVuSans", size: int = GLYPH_SIZE) -> np.ndarray:
    """Draw one character as large as fits: its ink centred, its longer side 11/16 of the image.

    Args:
        character: one Unicode character.
        font: a font that matplotlib ships, by its bare file name.
        size: height and width of the result, in pixels.

    Returns:
        uint8 `[size, size]`: 0 for paper, 255 for ink.

    Raises:
        ValueError: the font does not exist, has no glyph for the character, or it leaves no ink.
    """
    from PIL import Image

    if character not in font_characters(font):
        raise ValueError(f"character: {font} has no glyph for {character!r}")
    mask, _ = _font(font, 4 * size).getmask2(character, mode="L")
    ink = Image.frombytes("L", mask.size, bytes(mask))
    box = ink.getbbox()
    if box is None:
        raise ValueError(f"character: {character!r} leaves no ink in {font}")
    ink = ink.crop(box)
    scale = 11 / 16 * size / max(ink.size)
    ink = ink.resize([max(1, round(side * scale)) for side in ink.size], Image.Resampling.BOX)
    image = Image.new("L", (size, size))
    image.paste(ink, ((size - ink.width) // 2, (size - ink.height) // 2))
    return np.asarray(image)


def glyph_masks(characters: Sequence[str], fonts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Draw every character in every font that has it.

    Returns:
        masks uint8 `[M, 64, 64]` and labels int64 `[M]` that index `characters`, ordered by label.
    """
    drawn = [
        (render_glyph(character, font), label)
        for label, character in enumerate(characters)
        for font in fonts
        if character in font_characters(font)
    ]
    masks, labels = zip(*drawn, strict=True)
    return np.stack(masks), np.array(labels)


def glyph_pictures(characters: Sequence[str], fonts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """As `glyph_masks`, but black on white, as print is.

    Returns:
        pictures uint8 `[M, 64, 64]` (0 for ink) and labels int64 `[M]` that index `characters`.
    """
    masks, labels = glyph_masks(characters, fonts)
    return 255 - masks, labels


def glyph_classes() -> list[str]:
    """The 1000 characters of Glyph-1k, in the order of BiT-XS's outputs."""
    from bitlib import labels

    return [unicodedata.lookup(name) for name in labels.names("glyph1k")]


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
        picture[8:56, 8:56] = Image.fromarray(level).resize((48, 48), Image.Resampling.BILINEAR)
    return pictures, scans.target


def digits_by_class() -> tuple[list[np.ndarray], np.ndarray, list[str]]:
    """scikit-learn's handwritten digits, as a labelled set."""
    pictures, labels = digits()
    return list(pictures), labels, [str(digit) for digit in range(10)]


def glyphs_by_class() -> tuple[list[np.ndarray], np.ndarray, list[str]]:
    """Glyph-1k in all fonts that have its characters, black on white, as a labelled set of 1000 classes."""
    from bitlib import labels as class_lists

    pictures, labels = glyph_pictures(glyph_classes(), (*TRAINING_FONTS, *UNSEEN_STYLES, *UNSEEN_TYPEFACES))
    return list(pictures), labels, class_lists.names("glyph1k")


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
    from bitlib import images

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
    from bitlib import images

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
            "tensorflow-datasets is not installed: pip install tensorflow-datasets (or bitlib[datasets]), "
            'or use a folder of pictures, "digits" or "glyphs"'
        ) from None

    from bitlib.download import offline

    data_dir = None if data_dir is None else str(data_dir)
    try:
        builder = tensorflow_datasets.builder(name, data_dir=data_dir)
    except tensorflow_datasets.core.DatasetNotFoundError as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"name: no data set {name!r} in TensorFlow Datasets ({reason})") from error
    keys = builder.info.supervised_keys or ()
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


def draw(labels, shots: int, num_test: int | None = None, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
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


def pipeline(pictures: Sequence, labels, size: int | None = None, seed: int | None = None):
    """A labelled set as `tf.data`, decoded in parallel as it is read.

    Args:
        pictures: as of a labelled set.
        labels: int `[N]`.
        size: height and width to resize to, bilinearly, in pixels; None to leave them as they are.
        seed: shuffle with that seed; None to keep the order.

    Returns:
        An unbatched `tf.data.Dataset` of images float32 `[H, W, 3]` in [-1, 1] and int64 labels: every
        example once, in the same order each time.

    Raises:
        ValueError: there are not as many labels as pictures, or none at all. A picture that cannot be
            read is an error of TensorFlow's when it is reached, and names the file.
    """
    import tensorflow as tf

    from bitlib import images

    labels = np.asarray(labels, np.int64)
    if len(pictures) != len(labels) or not len(labels):
        raise ValueError(f"labels: expected one for each of {len(pictures)} pictures, received {len(labels)}")
    order = np.arange(len(labels)) if seed is None else np.random.default_rng(seed).permutation(len(labels))

    def load(index):
        image = tf.numpy_function(lambda i: images.read(pictures[i]), [index], tf.uint8, stateful=False)
        image.set_shape((None, None, 3))
        image = tf.cast(image, tf.float32) if size is None else tf.image.resize(image, (size, size))
        return image / 127.5 - 1

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


def augment_glyphs(masks, seed):
    """Turn glyph masks into pictures: warped, thickened or thinned, blurred, coloured, noisy.

    Handwriting is what a font is not: slanted, uneven, of any thickness, scanned at any resolution.
    The ranges below are meant to be wide enough to cover it; they were chosen once, not tuned on any.

    Args:
        masks: uint8 `[N, 64, 64]`, 255 for ink.
        seed: int `[2]`; the same seed gives the same pictures.

    Returns:
        float32 `[N, 64, 64, 3]` in [-1, 1].
    """
    import tensorflow as tf

    seeds = iter(tf.unstack(tf.random.experimental.stateless_split(seed, 24)))
    count = tf.shape(masks)[0]

    def uniform(low, high, *shape):
        return tf.random.stateless_uniform((count, *shape), next(seeds), low, high)

    def normal(*shape):
        return tf.random.stateless_normal((count, *shape), next(seeds))

    ink = tf.cast(masks, tf.float32)[..., None] / 255
    ink = _warp(ink, uniform, normal)
    # Strokes: towards the brightest neighbour (thicker) or the darkest (thinner), by a random amount.
    weight = uniform(-1.0, 1.0, 1, 1, 1)
    thick = tf.nn.max_pool2d(ink, 5, 1, "SAME")
    thin = -tf.nn.max_pool2d(-ink, 3, 1, "SAME")
    ink += tf.nn.relu(weight) * (thick - ink) + 0.8 * tf.nn.relu(-weight) * (thin - ink)
    # Resolution: a third stays sharp, a third passes through 9-15 pixels, a third through 14-31.
    sharp, coarse, medium = tf.split(ink, [count - 2 * (count // 3), count // 3, count // 3])
    parts = [sharp]
    for images, low, high, method in ((coarse, 9, 16, "bilinear"), (medium, 14, 32, "bicubic")):
        side = tf.random.stateless_uniform((), next(seeds), low, high, tf.int32)
        images = tf.image.resize(images, (side, side), "area")
        parts.append(tf.image.resize(images, (GLYPH_SIZE, GLYPH_SIZE), method))
    ink = tf.clip_by_value(tf.concat(parts, 0), 0.0, 1.0)
    return _paint(ink, uniform, normal)


def _warp(images, uniform, normal):
    """Rotate, shear, scale, shift and bend `[N, S, S, 1]`, each image by draws of its own."""
    import tensorflow as tf

    size = GLYPH_SIZE
    angle, shear = uniform(-0.3, 0.3), uniform(-0.35, 0.35)
    zoom, aspect = tf.exp(uniform(-0.5, 0.3)), tf.exp(uniform(-0.3, 0.3))
    shift = uniform(-0.15, 0.15, 1, 1, 2)
    cos, sin = tf.cos(angle), tf.sin(angle)
    rotation = tf.stack([tf.stack([cos, -sin], -1), tf.stack([sin, cos], -1)], 1)
    slant = tf.stack(
        [tf.stack([tf.ones_like(shear), shear], -1), tf.stack([0 * shear, 1 + 0 * shear], -1)], 1
    )
    scale = tf.linalg.diag(tf.stack([zoom * tf.sqrt(aspect), zoom / tf.sqrt(aspect)], -1))
    inverse = tf.linalg.inv(rotation @ slant @ scale)
    axis = tf.linspace(-1.0, 1.0, size)
    grid = tf.stack(tf.meshgrid(axis, axis), -1) - shift
    grid = tf.einsum("nij,nyxj->nyxi", inverse, grid)
    bend = tf.image.resize(normal(5, 5, 2), (size, size), "bicubic")
    grid += uniform(0.0, 0.09, 1, 1, 1) * bend
    return _sample(images, (grid + 1) * (size - 1) / 2)


def _sample(images, points):
    """Read `[N, S, S, 1]` at `points` `[N, S, S, 2]` (x, y in pixels), bilinearly; 0 outside."""
    import tensorflow as tf

    size = GLYPH_SIZE
    padded = tf.pad(images[..., 0], ((0, 0), (1, 1), (1, 1)))
    points = tf.clip_by_value(points + 1, 0.0, size + 0.999)
    corner = tf.floor(points)
    right, down = tf.unstack(points - corner, axis=-1)
    x, y = tf.unstack(tf.cast(corner, tf.int32), axis=-1)
    row = size + 2
    index = (tf.range(tf.shape(images)[0])[:, None, None] * row + y) * row + x
    flat = tf.reshape(padded, [-1])
    top = tf.gather(flat, index) * (1 - right) + tf.gather(flat, index + 1) * right
    bottom = tf.gather(flat, index + row) * (1 - right) + tf.gather(flat, index + row + 1) * right
    return (top * (1 - down) + bottom * down)[..., None]


def _paint(ink, uniform, normal):
    """Ink `[N, S, S, 1]` in [0, 1] -> pictures `[N, S, S, 3]` in [-1, 1], dark on light or light on dark."""
    import tensorflow as tf

    contrast = uniform(0.35, 1.0, 1, 1, 1)
    darker = uniform(0.0, 1.0, 1, 1, 1) * (1 - contrast)
    light_ink = tf.cast(uniform(0.0, 1.0, 1, 1, 1) < 0.5, tf.float32)
    paper = darker + (1 - light_ink) * contrast
    ink_colour = darker + light_ink * contrast
    tinted = tf.cast(uniform(0.0, 1.0, 1, 1, 1) < 0.5, tf.float32)
    paper += tinted * 0.15 * normal(1, 1, 3)
    ink_colour += tinted * 0.15 * normal(1, 1, 3)
    soiled = tf.cast(uniform(0.0, 1.0, 1, 1, 1) < 0.5, tf.float32)
    paper += soiled * 0.1 * tf.image.resize(normal(4, 4, 1), (GLYPH_SIZE, GLYPH_SIZE), "bicubic")
    picture = paper + ink * (ink_colour - paper)
    picture += soiled * uniform(0.0, 0.1, 1, 1, 1) * normal(GLYPH_SIZE, GLYPH_SIZE, 1)
    return 2 * tf.clip_by_value(picture, 0.0, 1.0) - 1
