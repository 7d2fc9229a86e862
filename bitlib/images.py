"""From whatever holds a picture to a batch in [-1, 1], with the preprocessing a model was published with.

Files are decoded by Pillow, resized as the official code does (as `tf.image.resize`: bilinear, not
antialiased unless the card says so), and scaled last.
"""

from __future__ import annotations

import functools
import importlib
import io
import os
import re
import stat
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from bitlib.inputs import SMALLEST, array, check_flag, check_whole, described
from bitlib.zoo import Card

if TYPE_CHECKING:
    from numpy.typing import ArrayLike
    from PIL.Image import Image

    Picture = str | os.PathLike | bytes | Image | ArrayLike

FORMATS = ("PNG", "JPEG", "GIF", "BMP", "TIFF", "PPM", "AVIF", "WEBP")
"""The formats that are opened, by content, whatever a file is called; AVIF by Pillow 11.3, HEIC by
pillow-heif. Pillow knows thirty more; some start programs, as PostScript does."""

SUFFIXES = (
    *(".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".gif", ".bmp", ".dib", ".tif", ".tiff"),
    *(".webp", ".avif", ".heic", ".heif", ".hif", ".ppm", ".pgm", ".pbm", ".pnm"),
)
"""A file that is called so, in any case, is meant as a picture; of others the first bytes decide."""

MAX_PIXELS = 100_000_000
"""Pictures larger than this, in pixels, are refused before they are decoded. Of smaller ones, so many are
decoded side by side as have this many pixels together."""

MAX_BYTES = 10 * MAX_PIXELS  # of a file: 16 bits of red, green, blue and alpha a pixel, and metadata

_BAND = 1 << 20  # pixels converted at a time, so that no second picture is in memory
_EXPECTED = "expected a picture or a folder of pictures"
_BITS = "if they have 12 bits, multiply by 16"
_ORIENTATION = 0x0112  # a tag of EXIF
_TILE_WIDTH, _TILE_LENGTH = 322, 323  # tags of TIFF

# What operating systems, network disks and editors leave in folders.
_SYSTEMS = re.compile(
    r"[.@].*|~\$.*|.*~|__macosx|__pycache__|(eh)?thumbs(_vista)?\.db.*|desktop\.ini|picasa\.ini|icon\r"
    r"|recycler|\$recycle\.bin|#recycle|#snapshot|lost\+found|system volume information"
    r"|network trash folder|temporary items",
    re.IGNORECASE | re.DOTALL,
)
_HEIC = rb".{4}ftyp(hei|hev|mif|msf)"
_SIGNATURES = re.compile(
    rb"\x89PNG|\xff\xd8\xff|GIF8|BM.{4}\0{4}|II\*\0|MM\0\*|RIFF.{4}WEBP|.{4}ftypavi|" + _HEIC, re.DOTALL
)

_PARTS = 64
_ROOM = threading.BoundedSemaphore(_PARTS)  # a picture takes as many parts of it as it has of MAX_PIXELS
_DOOR = threading.Lock()  # held while waiting for parts: a large picture has its turn, and two never deadlock


def read(source: Picture) -> np.ndarray:
    """Read one picture, of any kind, as RGB: uint8 `[H, W, 3]`.

    Args:
        source: a path to a file in one of `FORMATS`, such a file's bytes, a PIL image, or an array `[H, W]`,
            `[H, W, 1]`, `[H, W, 3]` or `[H, W, 4]`: uint8 in [0, 255], uint16 in [0, 65535], float in
            [0, 1], or bool. Grey, palette, CMYK and 16-bit pictures are converted, transparent ones laid on
            white, photographs turned as their EXIF data says; of an animation the first frame is taken.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: not a picture, corrupt, empty, larger than `MAX_PIXELS` or `MAX_BYTES`, or another array.
    """
    with decoded(source) as picture:
        return picture


@contextmanager
def decoded(source: Picture) -> Iterator[np.ndarray]:
    """As `read`, for the body of a `with`, which must not read another: until it ends, a file counts as being
    decoded (`MAX_PIXELS`)."""
    from PIL import Image

    if isinstance(source, Image.Image):
        yield _from_pil(source, "image")
    elif isinstance(source, (bytes, bytearray, memoryview)):
        with _decoded(io.BytesIO(source), f"{len(source)} bytes", len(source)) as picture:
            yield picture
    elif isinstance(source, (str, os.PathLike)):
        path = Path(os.path.expanduser(source))
        size = file_size(path)
        with _failing_as(f"{path}: cannot be read"):
            file = path.open("rb")
        with file, _decoded(file, str(path), size) as picture:
            yield picture
    elif hasattr(source, "__array__"):
        with _failing_as("array: cannot be read"):
            levels = array(source, "array")
        yield _from_array(levels)
    else:
        expected = "a path, bytes, a PIL image or an array"
        raise ValueError(f"source: expected {expected}, received {type(source).__name__}")


def file_size(path: Path) -> int:
    """The size of a file in bytes. Raises: FileNotFoundError; ValueError of a folder, a pipe or a device."""
    try:
        status = path.stat()
    except (OSError, ValueError):
        raise FileNotFoundError(f"{str(path)[:500]}: no such file, {_EXPECTED}") from None
    if stat.S_ISDIR(status.st_mode):
        raise ValueError(f"{path}: a folder, expected a picture; bitlib.images.files lists those in a folder")
    if not stat.S_ISREG(status.st_mode):  # a pipe or a device would never end
        raise ValueError(f"{path}: not a regular file, expected a picture")
    return status.st_size


@contextmanager
def _failing_as(trouble: str) -> Iterator[None]:
    """Any failure in the body becomes a ValueError that begins so: decoders raise most of Python's errors."""
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
        parts = min(_PARTS, 1 + _PARTS * pixels // (MAX_PIXELS + 1))
        for _ in range(parts):
            _ROOM.acquire()
    try:
        picture = _from_pil(image, name)
        image.close()
        yield picture
    finally:
        _ROOM.release(parts)


@functools.cache
def _formats() -> tuple[str, ...]:
    """`FORMATS`, as far as this Pillow has them; and HEIF, if pillow-heif is installed."""
    from PIL import Image

    with suppress(ImportError):  # no dependency of ours: it is there if somebody wants it
        importlib.import_module("pillow_heif").register_heif_opener()
    Image.init()
    return tuple(name for name in ("HEIF", *FORMATS) if name in Image.OPEN)


def _opened(file, name: str):
    from PIL import Image, UnidentifiedImageError

    # In smaller blocks than 32 MiB, the memory of a picture would stay with its thread when it is freed.
    Image.core.set_block_size(64 << 20)
    formats = _formats()
    with _failing_as(f"{name}: corrupt or truncated picture"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a bomb, which is refused below, and of a missing decoder
        try:
            return Image.open(file, formats=formats)
        except UnidentifiedImageError:
            file.seek(0)
            reason = f"not a picture, expected {', '.join(formats[:-1])} or {formats[-1]}"
            if re.match(_HEIC, file.read(16), re.DOTALL):
                reason = "HEIC, which Pillow cannot read; pip install pillow-heif, or convert it to JPEG"
        except Image.DecompressionBombError:
            reason = f"too large, the limit is {MAX_PIXELS:,} pixels"
    raise ValueError(f"{name}: {reason}")


def _check_size(size: tuple[int, int], name: str) -> None:
    width, height = size
    if not 0 < width * height <= MAX_PIXELS:
        raise ValueError(f"{name}: {width}×{height} pixels, the limit is {MAX_PIXELS:,} in all, the least 1")


def _from_pil(image, name: str) -> np.ndarray:
    _check_size(image.size, name)
    corrupt = f"{name}: corrupt or truncated picture"
    with _failing_as(corrupt):
        image.load()
        orientation = image.getexif().get(_ORIENTATION)

    def levels(top: int, bottom: int) -> np.ndarray:
        with _failing_as(corrupt):
            found = _levels(image.crop((0, top, image.width, bottom)))
        low, high = found.min(), found.max()
        if found.dtype.kind == "i" and (low < 0 or high > 65535):
            raise ValueError(f"{name}: grey levels from {low} to {high}, expected [0, 65535]")
        return found.astype(np.uint16) if found.dtype.kind == "i" else found

    picture = _banded(levels, image.size, name)
    if orientation in (5, 6, 7, 8):
        picture = picture.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        picture = picture[::-1]
    if orientation in (2, 3, 6, 7):
        picture = picture[:, ::-1]
    return np.ascontiguousarray(picture)


def _levels(image) -> np.ndarray:
    """A PIL image of any mode as levels: grey `[h, w]` if of more than 8 bits, else RGB `[h, w, 3]`."""
    from PIL import Image

    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return np.asarray(image)  # Pillow's own conversion would clip these at 255
    image = image.convert("LA") if image.mode == "La" else image  # Pillow knows no other way
    if image.mode in ("RGBA", "PA", "LA", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.asarray(image.convert("RGB"))


def _from_array(array: np.ndarray) -> np.ndarray:
    array = array[..., None] if array.ndim == 2 else array
    if array.ndim != 3 or array.shape[-1] not in (1, 3, 4) or 0 in array.shape:
        first = array.ndim == 3 and array.shape[0] in (1, 3, 4)
        received = f"{array.shape}" + "; channels come last: array.transpose(1, 2, 0)" * first
        raise ValueError(f"array: expected shape [H, W] or [H, W, 1, 3 or 4], received {received}")
    size = array.shape[1::-1]
    _check_size(size, "array")
    return _banded(lambda top, bottom: array[top:bottom], size, "array")


def _banded(levels: Callable[[int, int], np.ndarray], size: tuple[int, int], name: str) -> np.ndarray:
    """A picture, uint8 `[H, W, 3]`, made of the levels between two of its rows at a time."""
    width, height = size
    picture = np.empty((height, width, 3), np.uint8)
    rows = max(1, _BAND // width)
    for top in range(0, height, rows):
        band = levels(top, min(top + rows, height))
        picture[top : top + rows] = _rgb(band.reshape(*band.shape[:2], -1), name)
    brightest = picture.max()
    if band.dtype == np.uint16 and brightest <= 16:
        most, hint = (255, "if they are in [0, 255], pass uint8") if brightest <= 1 else (4111, _BITS)
        warnings.warn(f"{name}: 16-bit levels in [0, 65535], none above {most}; {hint}", stacklevel=2)
    elif band.dtype == np.uint8 and brightest == 1:
        hint = "if they are in [0, 1], pass bool or float"
        warnings.warn(f"{name}: 8-bit levels in [0, 255], none above 1; {hint}", stacklevel=2)
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
            hint = "; divide by 255, or pass uint8" if low >= 0 and 1 < high <= 255 else ""
            hint = "; add 1 and halve" if -1 <= low < 0 and high <= 1 else hint  # nothing helps NaN
            raise ValueError(f"{name}: expected floats in [0, 1], received {low:.4g} to {high:.4g}{hint}")
    else:
        raise ValueError(f"{name}: expected dtype uint8, uint16, bool or float, received {levels.dtype}")
    if levels.shape[-1] == 4:
        alpha = levels[..., 3:]
        levels = levels[..., :3] * alpha + (1 - alpha)
    return (levels * 255).round().astype(np.uint8)


def prepare(
    source: Picture, resolution: int, short_side: int | None = None, antialias: bool = False
) -> np.ndarray:
    """Read one picture and preprocess it as published: float32 `[resolution, resolution, 3]` in [-1, 1].

    Args:
        source: as for `read`.
        resolution: height and width of the result, in pixels.
        short_side: resize to this short side first, keeping the shape, then cut the centre out; None
            to resize straight to `resolution`, whatever the shape, as BiT-S and BiT-M do.
        antialias: average over dropped pixels when shrinking; the published pipelines do not.

    Raises: as `read`; ValueError, if `resolution` is below 32, `short_side` below `resolution`, the picture
        beyond `MAX_PIXELS` at that short side.
    """
    resolution = pixels(resolution, "resolution")
    check_flag("antialias", antialias)
    if short_side is not None and pixels(short_side, "short_side") < resolution:
        raise ValueError(f"short_side: expected at least the resolution, {resolution}, received {short_side}")
    with decoded(source) as image:
        size = (resolution, resolution)
        if short_side is not None:
            scale = short_side / min(image.shape[:2])
            size = tuple(max(short_side, round(side * scale)) for side in image.shape[:2])
            if size[0] * size[1] > MAX_PIXELS:
                name = source if isinstance(source, (str, os.PathLike)) else "source"
                shape = f"{image.shape[1]}×{image.shape[0]} pixels"
                raise ValueError(f"{name}: {shape}, too long for a short side of {short_side}")
        image = resize(image, size, antialias)
    top, left = ((side - resolution) // 2 for side in image.shape[:2])
    image = image[top : top + resolution, left : left + resolution]
    return (image / 127.5 - 1).astype(np.float32)


def resize(image: np.ndarray, size: tuple[int, ...], antialias: bool = False) -> np.ndarray:
    """Resize bilinearly, to what `tf.image.resize` gives but for the last digits.

    From `[..., H, W, C]` of any dtype to float32 `[..., *size, C]` in the same range; `size` is height and
    width, `antialias` as of `prepare`. Raises: ValueError, unless these are such.
    """
    image, size = array(image, "image"), tuple(size) if isinstance(size, Iterable) else (size,)
    if image.ndim < 3 or 0 in image.shape or image.dtype.kind not in "biuf":
        raise ValueError(f"image: expected [..., H, W, C], received {image.dtype} of shape {image.shape}")
    if len(size) != 2:
        raise ValueError(f"size: expected height and width, received {size}")
    for side in size:
        check_whole("size", side)
    for axis, length in zip((-3, -2), size, strict=True):
        if image.shape[axis] == length:
            continue
        taps, weights = _taps(image.shape[axis], length, antialias)
        image = np.moveaxis(image, axis, 0)
        if taps.shape[1] < 8:
            columns = weights.T.reshape(-1, length, *[1] * (image.ndim - 1))
            image = sum(image[tap] * weight for tap, weight in zip(taps.T, columns, strict=True))
        else:  # a large picture becomes small: sums by BLAS
            lines = (image[tap].astype(np.float32) for tap in taps)
            image = np.stack([np.tensordot(*each, 1) for each in zip(weights, lines, strict=True)])
        image = np.moveaxis(image, 0, axis)
    return np.ascontiguousarray(image, np.float32)


def _taps(size: int, length: int, antialias: bool) -> tuple[np.ndarray, np.ndarray]:
    """Which pixels of a line of `size` each of `length` new ones is made of, and how much: `[length, taps]`.

    In float32, as TensorFlow computes: in 4000 pixels, float64 would be 0.06 grey levels away.
    """
    one, old, new = np.asarray([1, size, length], np.float32)
    scale = one / (new / old) if antialias else old / new
    centres = (np.arange(length, dtype=np.float32) + one / 2) * scale - one / 2
    radius = max(scale, one) if antialias else one
    taps = np.ceil(centres - radius)[:, None] + np.arange(int(2 * radius) + 2, dtype=np.float32)
    weights = np.maximum(1 - abs(taps - centres[:, None]) / radius, 0) * ((taps >= 0) & (taps < size))
    used = weights.any(0)
    weights /= weights.sum(1, keepdims=True)
    return taps.clip(0, size - 1).astype(np.intp)[:, used], weights[:, used]


def pixels(side: int, name: str) -> int:
    """A side of a picture for a network, checked. Raises: ValueError, which begins with `name`."""
    most = int(MAX_PIXELS**0.5)
    expected = f"at least {SMALLEST} pixels, a whole number, at most {most}"
    return check_whole(name, side, most, SMALLEST, expected)


def batch(sources: Iterable[Picture] | Picture, card: Card, resolution: int | None = None) -> np.ndarray:
    """Read pictures into one batch as a card says: float32 `[N, resolution, resolution, 3]` in [-1, 1].

    Args:
        sources: any iterable of what `read` takes; or one picture, for a batch of one. An array
            `[H, W]`, `[H, W, 1]`, `[H, W, 3]` or `[H, W, 4]` is one picture; `[N, H, W]` are N grey ones.
        card: of `bitlib.zoo.card` or of a model; tells resolution, crop and antialiasing.
        resolution: overrides the card's; a crop's short side is scaled along.

    Raises: as `prepare`; ValueError, if there are no pictures, or in no order, or no card.
    """
    card = getattr(card, "card", card)  # a model's or a source's
    if not isinstance(card, Card):
        raise ValueError(f"card: expected model.card or bitlib.zoo.card(name), received {described(card)}")
    size = card.resolution if resolution is None else pixels(resolution, "resolution")
    short_side = card.short_side and round(card.short_side * size / card.resolution)
    images = [prepare(source, size, short_side, card.antialias) for source in _separate(sources)]
    if not images:
        raise ValueError("sources: expected at least one picture, received none")
    return np.stack(images)


def _separate(sources) -> Iterable:
    """The pictures of a batch, one by one; a single one is a batch of one."""
    from PIL import Image

    shape = tuple(getattr(sources, "shape", (1,))) if hasattr(sources, "__array__") else (1,)
    single = isinstance(sources, (str, bytes, bytearray, memoryview, os.PathLike, Image.Image))
    is_table = hasattr(sources, "columns")  # of pandas
    if len(shape) == 2 and max(shape) > 4 * min(shape) > 0 and not is_table:
        warnings.warn(f"sources: {shape} is taken for one grey picture, not for rows", stacklevel=3)
    if (single or len(shape) in (0, 2) or (len(shape) == 3 and shape[-1] in (1, 3, 4))) and not is_table:
        return [sources]
    if len(shape) == 3 and shape[0] in (3, 4):
        hint = "of one whose channels come first, expected array.transpose(1, 2, 0)"
        warnings.warn(f"sources: {shape} is taken for {shape[0]} grey pictures; {hint}", stacklevel=3)
    if is_table or not isinstance(sources, Iterable) or isinstance(sources, (Mapping, Set, io.IOBase)):
        raise ValueError(f"sources: expected a picture or a list of them, received {type(sources).__name__}")
    return sources


def files(folder: str | os.PathLike) -> list[Path]:
    """The pictures in a folder and those below it, sorted by path. Raises: FileNotFoundError, if none are."""
    root = directory(folder)
    found = [path for path in walk(root) if is_picture(path)]
    if not found:
        raise FileNotFoundError(f"{root}: holds no pictures, expected files such as {', '.join(FORMATS)}")
    return found


def directory(path: str | os.PathLike) -> Path:
    """A folder that exists, its `~` expanded. Raises: FileNotFoundError."""
    if not isinstance(path, (str, os.PathLike)) or not os.path.isdir(folder := os.path.expanduser(path)):
        raise FileNotFoundError(f"{str(path)[:500]}: no such folder, {_EXPECTED}")
    return Path(folder)


def listed(folder: Path) -> tuple[list[Path], list[Path]]:
    """The subfolders and the files of a folder, each sorted, less what systems leave. Raises: ValueError."""
    with _failing_as(f"{folder}: cannot be listed"), os.scandir(folder) as entries:
        found = sorted((Path(each), each.is_dir()) for each in entries if not _SYSTEMS.fullmatch(each.name))
    return [path for path, inner in found if inner], [path for path, inner in found if not inner]


def walk(folder: Path) -> list[Path]:
    """Every file that `listed` gives in a folder and those below it, sorted by path; of links, each once."""
    found: list[Path] = []
    seen = set(map(os.path.realpath, folder.absolute().parents))  # where links may lead back
    waiting = [folder]
    while waiting:
        place = waiting.pop()
        if (real := os.path.realpath(place)) not in seen:
            seen.add(real)
            folders, files = listed(place)
            waiting += reversed(folders)
            found += files
    return sorted(found)


def is_picture(path: Path) -> bool:
    """Whether a file is meant as a picture: its suffix or its first bytes are those of one."""
    if path.suffix.lower() in SUFFIXES or not path.is_file():
        return path.suffix.lower() in SUFFIXES
    with suppress(OSError), path.open("rb") as file:
        return bool(_SIGNATURES.match(file.read(16)))
    return False
