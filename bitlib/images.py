"""From whatever holds a picture to a batch in [-1, 1], with the preprocessing a model was published with.

Files are decoded by Pillow, resized as the official code does (`tf.image.resize`, bilinear, not
antialiased unless the card says so), and scaled last.
"""

from __future__ import annotations

import io
import os
import struct
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from bitlib.zoo import Card

if TYPE_CHECKING:
    from numpy.typing import ArrayLike
    from PIL.Image import Image

    Picture = str | os.PathLike | bytes | Image | ArrayLike

MAX_PIXELS = 100_000_000
"""Pictures larger than this, in pixels, are refused before they are decoded."""

SUFFIXES = (".png", ".jpg", ".jpeg", ".gif", ".bmp", ".tif", ".tiff", ".webp")
"""What `files` looks for in a folder, in any case."""


def read(source: Picture) -> np.ndarray:
    """Read one picture, of any kind, as RGB.

    Args:
        source: a path, encoded bytes, a PIL image, or an array `[H, W]`, `[H, W, 1]`, `[H, W, 3]` or
            `[H, W, 4]`: uint8 in [0, 255], uint16 in [0, 65535], float in [0, 1], or bool.
            Grey, palette, CMYK and 16-bit pictures are converted, transparent ones laid on white,
            photographs turned as their EXIF data says; of an animation the first frame is taken.

    Returns:
        uint8 `[H, W, 3]`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: not a picture, corrupt, empty, larger than `MAX_PIXELS`, or an array of another
            shape, dtype or range. The message names the source.
    """
    from PIL import Image

    if isinstance(source, Image.Image):
        return _from_pil(source, "image")
    if isinstance(source, (bytes, bytearray)):
        return _decode(io.BytesIO(source), f"{len(source)} bytes")
    if isinstance(source, (str, os.PathLike)):
        path = Path(source)
        if not path.exists():
            raise FileNotFoundError(f"{path}: no such file, expected a picture")
        if path.is_dir():
            raise ValueError(
                f"{path}: a folder, expected a picture; bitlib.images.files lists those in a folder"
            )
        with path.open("rb") as file:
            return _decode(file, str(path))
    if hasattr(source, "__array__"):
        return _from_array(np.asarray(source))
    raise ValueError(
        f"source: expected a path, bytes, a PIL image or an array, received {type(source).__name__}"
    )


def _decode(file, name: str) -> np.ndarray:
    from PIL import Image, UnidentifiedImageError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(file) as image:
                return _from_pil(image, name)
    except UnidentifiedImageError:
        file.seek(0)
        empty = not file.read(1)
        reason = "empty" if empty else "not a picture in any format that Pillow reads"
        raise ValueError(f"{name}: {reason}") from None
    except Image.DecompressionBombError as error:
        raise ValueError(f"{name}: too large ({error}), the limit is {MAX_PIXELS:,} pixels") from None
    except (OSError, SyntaxError, EOFError, struct.error, IndexError, TypeError, ZeroDivisionError) as error:
        raise ValueError(f"{name}: corrupt or truncated picture ({error})") from error


def _from_pil(image, name: str) -> np.ndarray:
    from PIL import Image, ImageOps

    width, height = image.size
    if width * height > MAX_PIXELS:
        raise ValueError(f"{name}: {width}×{height} pixels, the limit is {MAX_PIXELS:,} in all")
    if width * height == 0:
        raise ValueError(f"{name}: {width}×{height} pixels, expected at least one")
    image = ImageOps.exif_transpose(image)
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return _from_array(_grey_levels(np.asarray(image), name))
    if image.mode == "PA" or "transparency" in image.info or image.mode in ("LA", "La", "RGBa"):
        image = image.convert("RGBA")
    if image.mode == "RGBA":
        paper = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(paper, image)
    return np.asarray(image.convert("RGB"))


def _grey_levels(levels: np.ndarray, name: str) -> np.ndarray:
    """16-bit grey as uint16, floating-point grey as it is; Pillow's own conversion clips both at 255."""
    if levels.dtype.kind == "f":
        return levels
    if levels.min() < 0 or levels.max() > 65535:
        raise ValueError(f"{name}: grey levels from {levels.min()} to {levels.max()}, expected [0, 65535]")
    return levels.astype(np.uint16)


def _from_array(array: np.ndarray) -> np.ndarray:
    if array.ndim == 2:
        array = array[..., None]
    if array.ndim != 3 or array.shape[-1] not in (1, 3, 4) or 0 in array.shape:
        raise ValueError(
            f"array: expected shape [H, W], [H, W, 1], [H, W, 3] or [H, W, 4], received {array.shape}"
        )
    if array.shape[0] * array.shape[1] > MAX_PIXELS:
        raise ValueError(
            f"array: {array.shape[1]}×{array.shape[0]} pixels, the limit is {MAX_PIXELS:,} in all"
        )
    if array.dtype == np.uint16:
        array = array / np.float32(65535)
    elif array.dtype in (np.uint8, np.bool_):
        array = array / np.float32(255 if array.dtype == np.uint8 else 1)
    elif array.dtype.kind == "f":
        low, high = float(array.min()), float(array.max())
        if not (low >= 0 and high <= 1):
            hint = {True: "divide by 255, or pass uint8", False: "add 1 and halve"}[high > 1]
            raise ValueError(f"array: expected floats in [0, 1], received {low:.4g} to {high:.4g}; {hint}")
    else:
        raise ValueError(f"array: expected dtype uint8, uint16, bool or float, received {array.dtype}")
    if array.shape[-1] == 4:
        alpha = array[..., 3:]
        array = array[..., :3] * alpha + (1 - alpha)
    array = (array * 255).round().astype(np.uint8)
    return np.repeat(array, 3, axis=-1) if array.shape[-1] == 1 else array


def prepare(
    source: Picture, resolution: int, short_side: int | None = None, antialias: bool = False
) -> np.ndarray:
    """Read one picture and preprocess it as published.

    Args:
        source: as for `read`.
        resolution: height and width of the result, in pixels.
        short_side: resize to this short side first, keeping the shape, then cut the centre out; None
            to resize straight to `resolution`, whatever the shape, as BiT-S and BiT-M do.
        antialias: average over dropped pixels when shrinking; the published pipelines do not.

    Returns:
        float32 `[resolution, resolution, 3]` in [-1, 1].

    Raises:
        ValueError: as `read`; or `resolution` is below 32, or `short_side` below `resolution`.
    """
    import tensorflow as tf

    if resolution < 32:
        raise ValueError(f"resolution: expected at least 32 pixels, received {resolution}")
    if short_side is not None and short_side < resolution:
        raise ValueError(f"short_side: expected at least the resolution, {resolution}, received {short_side}")
    image = read(source)
    size = (resolution, resolution)
    if short_side is not None:
        scale = short_side / min(image.shape[:2])
        size = tuple(max(short_side, round(side * scale)) for side in image.shape[:2])
    image = tf.image.resize(image, size, "bilinear", antialias=antialias).numpy()
    top, left = ((side - resolution) // 2 for side in image.shape[:2])
    image = image[top : top + resolution, left : left + resolution]
    return (image / 127.5 - 1).astype(np.float32)


def batch(sources: Iterable[Picture], card: Card, resolution: int | None = None) -> np.ndarray:
    """Read pictures into one batch, preprocessed as a model's card says.

    Args:
        sources: any iterable of what `read` takes.
        card: of `bitlib.zoo.card`; tells resolution, crop and antialiasing.
        resolution: overrides the card's; a crop's short side is scaled along.

    Returns:
        float32 `[N, resolution, resolution, 3]` in [-1, 1].

    Raises:
        ValueError: as `prepare`; or there are no pictures.
    """
    size = resolution or card.resolution
    short_side = card.short_side and round(card.short_side * size / card.resolution)
    images = [prepare(source, size, short_side, card.antialias) for source in sources]
    if not images:
        raise ValueError("sources: expected at least one picture, received none")
    return np.stack(images)


def files(folder: str | os.PathLike) -> list[Path]:
    """The pictures in a folder and those below it, sorted by path.

    Raises:
        FileNotFoundError: the folder does not exist, or holds no file with a suffix of `SUFFIXES`.
    """
    folder = Path(folder)
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    if not found:
        state = "holds no pictures" if folder.is_dir() else "no such folder"
        raise FileNotFoundError(f"{folder}: {state}, expected files ending in {', '.join(SUFFIXES)}")
    return found
