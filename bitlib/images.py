"""From whatever holds a picture to a batch in [-1, 1], with the preprocessing a model was published with.

Files are decoded by Pillow, resized as the official code does (`tf.image.resize`, bilinear, not
antialiased unless the card says so), and scaled last.
"""

from __future__ import annotations

import io
import os
import stat
import threading
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from bitlib.zoo import Card

if TYPE_CHECKING:
    from numpy.typing import ArrayLike
    from PIL.Image import Image

    Picture = str | os.PathLike | bytes | Image | ArrayLike

FORMATS = ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP")
"""What is opened, whatever the file is called: what cameras, scanners and browsers write, each decoded inside
this process by a library that many use. Pillow knows thirty more; some start programs, as PostScript does."""

SUFFIXES = (".png", ".jpg", ".jpeg", ".gif", ".bmp", ".tif", ".tiff", ".webp")
"""What `files` looks for in a folder, in any case."""

MAX_PIXELS = 100_000_000
"""Pictures larger than this, in pixels, are refused before they are decoded. Of smaller ones, so many are
decoded side by side as have this many pixels together."""

MAX_BYTES = 10 * MAX_PIXELS
"""Larger files are refused too: 16 bits of red, green, blue and alpha for each pixel, and metadata."""

_BAND = 1 << 20  # pixels converted at a time, so that no second picture is in memory
_ORIENTATION = 0x0112  # a tag of EXIF
_TILE_WIDTH, _TILE_LENGTH = 322, 323  # tags of TIFF


class _Room:
    """Room for pixels: whoever enters waits until there is enough, or nobody else is inside."""

    def __init__(self):
        self.changed = threading.Condition()
        self.inside = 0

    def enter(self, pixels: int) -> None:
        with self.changed:
            self.changed.wait_for(lambda: not self.inside or self.inside + pixels <= MAX_PIXELS)
            self.inside += pixels

    def leave(self, pixels: int) -> None:
        with self.changed:
            self.inside -= pixels
            self.changed.notify_all()


_ROOM = _Room()
_DOOR = threading.Lock()  # held while waiting for room too: a large picture has its turn


def read(source: Picture) -> np.ndarray:
    """Read one picture, of any kind, as RGB.

    Args:
        source: a path to a file in one of `FORMATS`, such a file's bytes, a PIL image, or an array `[H, W]`,
            `[H, W, 1]`, `[H, W, 3]` or `[H, W, 4]`: uint8 in [0, 255], uint16 in [0, 65535], float in
            [0, 1], or bool. Grey, palette, CMYK and 16-bit pictures are converted, transparent ones laid on
            white, photographs turned as their EXIF data says; of an animation the first frame is taken.

    Returns:
        uint8 `[H, W, 3]`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: not a picture, corrupt, empty, larger than `MAX_PIXELS` or `MAX_BYTES`, or an array of
            another shape, dtype or range. The message names the source.
    """
    with decoded(source) as picture:
        return picture


@contextmanager
def decoded(source: Picture) -> Iterator[np.ndarray]:
    """As `read`, for the body of a `with`: until it ends, a file counts as being decoded.

    In many threads, what is made of large pictures in the body takes no more memory than the pictures
    themselves; see `MAX_PIXELS`. A body must not read another picture.
    """
    from PIL import Image

    if isinstance(source, (bytes, bytearray)):
        with _decoded(io.BytesIO(source), f"{len(source)} bytes", len(source)) as picture:
            yield picture
    elif isinstance(source, (str, os.PathLike)):
        path = Path(source)
        size = _size(path)
        with _failing_as(f"{path}: cannot be read"):
            file = path.open("rb")
        with file, _decoded(file, str(path), size) as picture:
            yield picture
    elif isinstance(source, Image.Image):
        yield _from_pil(source, "image")
    elif hasattr(source, "__array__"):
        yield _from_array(np.asarray(source), "array")
    else:
        raise ValueError(
            f"source: expected a path, bytes, a PIL image or an array, received {type(source).__name__}"
        )


def _size(path: Path) -> int:
    """The size of a file in bytes, if it is one."""
    try:
        status = path.stat()
    except (OSError, ValueError):
        raise FileNotFoundError(f"{path}: no such file, expected a picture or a folder of pictures") from None
    if stat.S_ISDIR(status.st_mode):
        raise ValueError(f"{path}: a folder, expected a picture; bitlib.images.files lists those in a folder")
    if not stat.S_ISREG(status.st_mode):  # a pipe or a device would never end
        raise ValueError(f"{path}: not a regular file, expected a picture")
    return status.st_size


@contextmanager
def _failing_as(trouble: str) -> Iterator[None]:
    """Whatever fails in the body is a ValueError that begins so: decoders raise most of Python's errors."""
    try:
        yield
    except Exception as error:
        reason = repr(str(error) or type(error).__name__)[1:-1]  # no control characters out of a file
        raise ValueError(f"{trouble} ({reason})") from error


@contextmanager
def _decoded(file, name: str, size: int) -> Iterator[np.ndarray]:
    if size == 0:
        raise ValueError(f"{name}: empty, expected a picture")
    if size > MAX_BYTES:
        raise ValueError(f"{name}: {size:,} bytes, the limit is {MAX_BYTES:,}")
    with _DOOR:
        image = _opened(file, name)
        with _failing_as(f"{name}: corrupt or truncated picture"):
            tags = getattr(image, "tag_v2", {})  # a tile is decoded whole, and may be larger than its picture
            tile = tags.get(_TILE_WIDTH, 0) * tags.get(_TILE_LENGTH, 0)
        _check_size(image.size, name)
        if tile > MAX_PIXELS:
            raise ValueError(f"{name}: tiles of {tile:,} pixels, the limit is {MAX_PIXELS:,}")
        pixels = max(image.width * image.height, tile, size // 4)
        _ROOM.enter(pixels)
    try:
        picture = _from_pil(image, name)
        image.close()
        yield picture
    finally:
        _ROOM.leave(pixels)


def _opened(file, name: str):
    from PIL import Image, UnidentifiedImageError

    # In smaller blocks than 32 MiB, the memory of a picture would stay with its thread when it is freed.
    Image.core.set_block_size(64 << 20)
    try:
        with _failing_as(f"{name}: corrupt or truncated picture"), warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            return Image.open(file, formats=FORMATS)
    except ValueError as error:
        if isinstance(error.__cause__, UnidentifiedImageError):
            raise ValueError(
                f"{name}: not a picture, expected {', '.join(FORMATS[:-1])} or {FORMATS[-1]}"
            ) from None
        if isinstance(error.__cause__, Image.DecompressionBombError):
            raise ValueError(f"{name}: too large, the limit is {MAX_PIXELS:,} pixels") from None
        raise


def _check_size(size: tuple[int, int], name: str) -> None:
    width, height = size
    if width * height > MAX_PIXELS:
        raise ValueError(f"{name}: {width}×{height} pixels, the limit is {MAX_PIXELS:,} in all")
    if width * height == 0:
        raise ValueError(f"{name}: {width}×{height} pixels, expected at least one")


def _from_pil(image, name: str) -> np.ndarray:
    corrupt = f"{name}: corrupt or truncated picture"
    _check_size(image.size, name)
    with _failing_as(corrupt):
        image.load()
        orientation = image.getexif().get(_ORIENTATION)
        width, height = image.size
        turned = orientation in (5, 6, 7, 8)
        picture = np.empty((width, height, 3) if turned else (height, width, 3), np.uint8)
    stored = picture  # the same memory, its rows and columns as they are in the file
    if orientation in (3, 4, 7, 8):
        stored = stored[::-1]
    if orientation in (2, 3, 6, 7):
        stored = stored[:, ::-1]
    if turned:
        stored = stored.swapaxes(0, 1)
    rows = max(1, _BAND // width)
    for top in range(0, height, rows):
        bottom = min(top + rows, height)
        with _failing_as(corrupt):
            band = _levels(image if rows >= height else image.crop((0, top, width, bottom)))
        if band.dtype.kind in "iu" and band.dtype != np.uint8:
            band = _as_uint16(band, name)
        stored[top:bottom] = _rgb(band, name)
    return picture


def _levels(image) -> np.ndarray:
    """A PIL image of any mode as levels for `_rgb`: grey where it has more than 8 bits, else RGB."""
    from PIL import Image

    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return np.asarray(image)[..., None]  # Pillow's own conversion would clip these at 255
    if image.mode == "PA" or "transparency" in image.info or image.mode in ("LA", "La", "RGBa"):
        image = image.convert("RGBA")
    if image.mode == "RGBA":
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.asarray(image.convert("RGB"))


def _as_uint16(levels: np.ndarray, name: str) -> np.ndarray:
    """The integers that Pillow holds grey levels of more than 8 bits in."""
    low, high = levels.min(), levels.max()
    if low < 0 or high > 65535:
        raise ValueError(f"{name}: grey levels from {low} to {high}, expected [0, 65535]")
    return levels.astype(np.uint16)


def _from_array(array: np.ndarray, name: str) -> np.ndarray:
    if array.ndim == 2:
        array = array[..., None]
    if array.ndim != 3 or array.shape[-1] not in (1, 3, 4) or 0 in array.shape:
        raise ValueError(
            f"{name}: expected shape [H, W], [H, W, 1], [H, W, 3] or [H, W, 4], received {array.shape}"
        )
    height, width = array.shape[:2]
    _check_size((width, height), name)
    picture = np.empty((height, width, 3), np.uint8)
    rows = max(1, _BAND // width)
    for top in range(0, height, rows):
        picture[top : top + rows] = _rgb(array[top : top + rows], name)
    return picture


def _rgb(levels: np.ndarray, name: str) -> np.ndarray:
    """Levels `[h, w, 1]`, `[h, w, 3]` or `[h, w, 4]` of any supported dtype as uint8, without alpha."""
    if levels.dtype == np.uint8 and levels.shape[-1] < 4:
        return levels
    if levels.dtype in (np.uint8, np.uint16, np.bool_):
        whole = {"u1": 255, "u2": 65535, "b1": 1}[levels.dtype.str[1:]]
        levels = levels / np.float32(whole)
    elif levels.dtype.kind == "f":
        low, high = float(levels.min()), float(levels.max())
        if not (low >= 0 and high <= 1):
            hint = "divide by 255, or pass uint8" if high > 1 else "add 1 and halve"
            raise ValueError(f"{name}: expected floats in [0, 1], received {low:.4g} to {high:.4g}; {hint}")
    else:
        raise ValueError(f"{name}: expected dtype uint8, uint16, bool or float, received {levels.dtype}")
    if levels.shape[-1] == 4:
        alpha = levels[..., 3:]
        levels = levels[..., :3] * alpha + (1 - alpha)
    return (levels * 255).round().astype(np.uint8)


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
        ValueError: as `read`; or `resolution` is below 32, or `short_side` below `resolution`, or the
            picture is so long that it would exceed `MAX_PIXELS` at that short side.
    """
    import tensorflow as tf

    if resolution < 32:
        raise ValueError(f"resolution: expected at least 32 pixels, received {resolution}")
    if short_side is not None and short_side < resolution:
        raise ValueError(f"short_side: expected at least the resolution, {resolution}, received {short_side}")
    with decoded(source) as image:
        size = (resolution, resolution)
        if short_side is not None:
            scale = short_side / min(image.shape[:2])
            size = tuple(max(short_side, round(side * scale)) for side in image.shape[:2])
            if size[0] * size[1] > MAX_PIXELS:
                raise ValueError(
                    f"{source if isinstance(source, (str, os.PathLike)) else 'source'}: "
                    f"{image.shape[1]}×{image.shape[0]} pixels, too long for a short side of {short_side}"
                )
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
    """The pictures in a folder and those below it, by their suffix, sorted by path.

    Raises:
        FileNotFoundError: the folder does not exist, or holds no file with a suffix of `SUFFIXES`.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder, expected a picture or a folder of pictures")
    found = sorted(
        path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and not path.is_dir()
    )
    if not found:
        raise FileNotFoundError(
            f"{folder}: holds no pictures, expected files ending in {', '.join(SUFFIXES)}"
        )
    return found
