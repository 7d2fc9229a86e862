"""The paint box of `scripts/pretrain.py`: from drawn glyphs to the pictures that BiT-XS was trained on."""

from __future__ import annotations

import tensorflow as tf
from numpy.typing import ArrayLike

from bitlib.datasets import GLYPH_SIZE


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
