import unicodedata

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from sklearn.datasets import load_digits

from bitlib import datasets


def test_no_digit_of_any_script_is_a_class():
    characters = datasets.glyph_classes()
    assert len(set(characters)) == 1000
    assert not [c for c in characters if unicodedata.numeric(c, None) is not None]
    assert not [c for c in characters if any(n.isnumeric() for n in unicodedata.normalize("NFKC", c))]
    assert not [c for c in characters if "DIGIT" in unicodedata.name(c)]


def test_alikes_are_one_class():
    characters = set(datasets.glyph_classes())
    for alikes in ("AΑА", "OΟОo", "Cc", "Ii|", "Vv", "Ss", "PΡР", "HΗН", "Zz", "xXхХ"):
        assert len(characters & set(alikes)) <= (2 if alikes in ("Ii|", "xXхХ") else 1), alikes
    assert {"A", "O", "Ω", "Ж", "ქ", "€"} <= characters


def test_fonts_are_kept_apart():
    unseen = {*datasets.UNSEEN_STYLES, *datasets.UNSEEN_TYPEFACES}
    assert not unseen & set(datasets.TRAINING_FONTS)
    for font in (*datasets.TRAINING_FONTS, *unseen):
        assert datasets.render_glyph("A", font).max() == 255


def test_render_glyph_is_centred_and_fits():
    for character in "AgЖ€─":
        if character in datasets.font_characters("DejaVuSans"):
            rows, columns = np.nonzero(datasets.render_glyph(character) > 20)
            assert max(np.ptp(rows), np.ptp(columns)) in range(40, 45)
            assert abs(rows.min() + rows.max() - 63) <= 3
            assert abs(columns.min() + columns.max() - 63) <= 3


def test_render_glyph_refuses():
    with pytest.raises(ValueError, match="^font: 'Comic Sans'"):
        datasets.render_glyph("A", "Comic Sans")
    with pytest.raises(ValueError, match="^character: cmr10 has no glyph for 'Ж'"):
        datasets.render_glyph("Ж", "cmr10")
    with pytest.raises(ValueError, match="leaves no ink"):
        datasets.render_glyph(" ")


def test_glyph_masks_are_ordered_by_label():
    masks, labels = datasets.glyph_masks("ЖA", ("DejaVuSans", "cmr10"))
    assert labels.tolist() == [0, 1, 1]
    np.testing.assert_array_equal(masks[2], datasets.render_glyph("A", "cmr10"))
    pictures, _ = datasets.glyph_pictures("ЖA", ("DejaVuSans", "cmr10"))
    np.testing.assert_array_equal(pictures, 255 - masks)


@pytest.fixture
def masks():
    return tf.constant(datasets.glyph_masks("ABCDEFGHIJKLMN", ("DejaVuSans",))[0])


class TestAugment:
    def test_shape_range_and_seed(self, masks):
        first, again, other = (datasets.augment_glyphs(masks, (1, n)) for n in (2, 2, 3))
        assert first.shape == (14, 64, 64, 3)
        assert first.dtype == "float32"
        assert np.min(first) >= -1
        assert np.max(first) <= 1
        np.testing.assert_array_equal(first, again)
        assert np.abs(first - other).mean() > 0.1

    def test_pictures_keep_their_order(self, masks):
        """A picture correlates with its own glyph more than with the others, most of the time."""
        found = total = 0
        for seed in range(6):
            pictures = np.asarray(datasets.augment_glyphs(masks, (seed, 0))).mean(-1)
            ink = np.asarray(masks, float)
            flat = [p.reshape(14, -1) - p.reshape(14, -1).mean(1, keepdims=True) for p in (pictures, ink)]
            flat = [f / np.linalg.norm(f, axis=1, keepdims=True) for f in flat]
            found += (np.abs(flat[0] @ flat[1].T).argmax(1) == np.arange(14)).sum()
            total += 14
        assert found / total > 0.4  # chance is 0.07


def test_digits_are_the_scans():
    pictures, labels = datasets.digits()
    scans = load_digits()
    assert pictures.shape == (1797, 64, 64)
    np.testing.assert_array_equal(labels, scans.target)
    border = pictures.copy()
    border[:, 8:56, 8:56] = 0
    assert not border.any()
    small = pictures[:, 8:56, 8:56].reshape(-1, 8, 6, 8, 6).mean((2, 4))
    assert np.corrcoef(small.ravel(), scans.images.ravel())[0, 1] > 0.97


def test_photographs():
    photographs = datasets.photographs()
    assert set(photographs) == {"china.jpg", "flower.jpg"}
    assert all(photo.shape == (427, 640, 3) and photo.dtype == np.uint8 for photo in photographs.values())


class TestFolder:
    @pytest.fixture
    def root(self, tmp_path):
        for name in ("b/2.png", "a/1.png", "a/deeper/3.png"):
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            Image.new("L", (40, 40)).save(tmp_path / name)
        return tmp_path

    def test_one_subfolder_a_class(self, root):
        files, labels, names = datasets.folder(root)
        assert [file.name for file in files] == ["1.png", "3.png", "2.png"]
        assert labels.tolist() == [0, 0, 1]
        assert names == ["a", "b"]

    def test_refusals(self, root, tmp_path):
        (root / "a" / "1.png").unlink()
        with pytest.raises(ValueError, match="has one class, deeper"):
            datasets.folder(root / "a")
        Image.new("L", (40, 40)).save(root / "loose.png")
        with pytest.raises(ValueError, match="holds loose.png beside its subfolders"):
            datasets.folder(root)
        with pytest.raises(FileNotFoundError, match="no such folder"):
            datasets.folder(tmp_path / "nowhere")


def test_digits_by_class():
    pictures, labels, names = datasets.digits_by_class()
    assert len(pictures) == len(labels) == 1797
    assert names[labels[3]] == "3"
