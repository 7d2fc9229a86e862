"""Glyphs: characters drawn from the fonts that every matplotlib installation carries, and painted into
the pictures that BiT-XS was trained on. Nothing is downloaded.
"""

from __future__ import annotations

import functools
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from bitlib.labels import names

if TYPE_CHECKING:
    import tensorflow as tf
    from numpy.typing import ArrayLike

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
    return [unicodedata.lookup(name) for name in names("glyph1k")]


def glyphs_by_class() -> tuple[list[np.ndarray], np.ndarray, list[str]]:
    """Glyph-1k in all fonts that have its characters, black on white, as a labelled set of 1000 classes."""
    pictures, labels = glyph_pictures(glyph_classes(), (*TRAINING_FONTS, *UNSEEN_STYLES, *UNSEEN_TYPEFACES))
    return list(pictures), labels, list(names("glyph1k"))


def augment_glyphs(masks: ArrayLike, seed: ArrayLike, size: int = GLYPH_SIZE) -> tf.Tensor:
    """Turn glyph masks into pictures: thickened or thinned, bent, placed anywhere, blurred, coloured, noisy.

    Handwriting is what a font is not: slanted, uneven, of any thickness, scanned at any resolution. And as
    with the random resized crops of published models, a glyph covers a third of the picture's side or all
    of it, and stands off its centre. The ranges were chosen once, not tuned on any task of the pages.

    Args:
        masks: uint8 `[N, 64, 64]`, 255 for ink, as of `glyph_masks`.
        seed: int `[2]`; the same seed gives the same pictures.
        size: height and width of the pictures, in pixels.

    Returns:
        float32 `[N, size, size, 3]` in [-1, 1].
    """
    import tensorflow as tf

    seeds = iter(tf.unstack(tf.random.experimental.stateless_split(seed, 24)))
    count = tf.shape(masks)[0]

    def uniform(low, high, *shape):
        return tf.random.stateless_uniform((count, *shape), next(seeds), low, high)

    def normal(*shape):
        return tf.random.stateless_normal((count, *shape), next(seeds))

    ink = tf.cast(masks, tf.float32)[..., None] / 255
    # Strokes: towards the brightest neighbour (thicker) or the darkest (thinner), by a random amount.
    weight = uniform(-1.0, 1.0, 1, 1, 1)
    thick = tf.nn.max_pool2d(ink, 5, 1, "SAME")
    thin = -tf.nn.max_pool2d(-ink, 3, 1, "SAME")
    ink += tf.nn.relu(weight) * (thick - ink) + 0.8 * tf.nn.relu(-weight) * (thin - ink)
    # Resolution: a third stays sharp, a third passes through 9-15 pixels, a third through 14-31. The fewer
    # the pixels, the more of the picture the glyph covers: what is left of it can still be read.
    thirds = count - 2 * (count // 3), count // 3, count // 3
    least = tf.concat([tf.fill([n], least) for n, least in zip(thirds, (0.33, 0.6, 0.45), strict=True)], 0)
    ink = _warp(ink, least, 2 * size if size < GLYPH_SIZE else size, uniform, normal)
    sharp, coarse, medium = tf.split(ink, thirds)
    parts = [tf.image.resize(sharp, (size, size), "area")]
    for images, low, high, method in ((coarse, 9, 16, "bilinear"), (medium, 14, 32, "bicubic")):
        side = tf.random.stateless_uniform((), next(seeds), low, high, tf.int32)
        images = tf.image.resize(images, (side, side), "area")
        parts.append(tf.image.resize(images, (size, size), method))
    ink = tf.clip_by_value(tf.concat(parts, 0), 0.0, 1.0)
    return _paint(ink, uniform, normal)


def _warp(images, least, size, uniform, normal):
    """Rotate, shear, scale, shift and bend `[N, 64, 64, 1]` into `[N, size, size, 1]`, each by its own draws.

    The longer side of a glyph becomes `least` (float32 `[N]`) to all of the picture's, all ratios alike.
    """
    import tensorflow as tf

    angle, shear = uniform(-0.3, 0.3), uniform(-0.35, 0.35)
    share, aspect = tf.exp(uniform(0.0, 1.0) * tf.math.log(least)), tf.exp(uniform(-0.3, 0.3))
    zoom = share / (11 / 16)
    free = tf.maximum(0.15, 0.9 * (1 - share))  # how far from the centre it may stand
    shift = uniform(-1.0, 1.0, 1, 1, 2) * free[:, None, None, None]
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
    return _sample(images, (grid + 1) * (GLYPH_SIZE - 1) / 2)


def _sample(images, points):
    """Read `[N, 64, 64, 1]` at `points` `[N, H, W, 2]` (x, y in pixels), bilinearly; 0 outside."""
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

    height, width = ink.shape[1:3]
    contrast = uniform(0.35, 1.0, 1, 1, 1)
    darker = uniform(0.0, 1.0, 1, 1, 1) * (1 - contrast)
    light_ink = tf.cast(uniform(0.0, 1.0, 1, 1, 1) < 0.5, tf.float32)
    paper = darker + (1 - light_ink) * contrast
    ink_colour = darker + light_ink * contrast
    tinted = tf.cast(uniform(0.0, 1.0, 1, 1, 1) < 0.5, tf.float32)
    paper += tinted * 0.15 * normal(1, 1, 3)
    ink_colour += tinted * 0.15 * normal(1, 1, 3)
    soiled = tf.cast(uniform(0.0, 1.0, 1, 1, 1) < 0.5, tf.float32)
    paper += soiled * 0.1 * tf.image.resize(normal(4, 4, 1), (height, width), "bicubic")
    picture = paper + ink * (ink_colour - paper)
    picture += soiled * uniform(0.0, 0.1, 1, 1, 1) * normal(height, width, 1)
    return 2 * tf.clip_by_value(picture, 0.0, 1.0) - 1
