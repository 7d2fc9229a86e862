"""The bundled model is what data/README.md says it is."""

import importlib
import importlib.metadata
import re
from pathlib import Path

import numpy as np
import pytest

import bitlib
from bitlib import checkpoint, datasets, features, images, reference, zoo

CARD = zoo.card(zoo.BUNDLED)
ROOT = Path(__file__).parent.parent
README = ROOT / "data" / "README.md"


@pytest.fixture(scope="module")
def model():
    return bitlib.load(zoo.BUNDLED)


def stated(row, column=1):
    """A percentage out of a table of data/README.md."""
    (line,) = [line for line in README.read_text().splitlines() if line.startswith(f"| {row}")]
    return float(re.findall(r"([\d.]+) %", line)[column - 1]) / 100


@pytest.mark.slow
def test_classes_are_those_that_the_script_chooses(monkeypatch):
    """The class list is a function of the fonts; a matplotlib with other fonts may choose others."""
    constraints = (ROOT / "constraints.txt").read_text()
    installed = importlib.metadata.version("matplotlib")
    if f"matplotlib=={installed}\n" not in constraints:
        pytest.skip(f"matplotlib {installed} is not the one whose fonts BiT-XS was trained on")
    monkeypatch.syspath_prepend(ROOT / "scripts")
    assert importlib.import_module("pretrain").choose_classes() == datasets.glyph_classes()


def test_at_most_8_mb_in_the_published_layout():
    path = checkpoint.fetch(zoo.BUNDLED)
    assert path.stat().st_size <= 8_000_000
    assert len(checkpoint.read(path)) == 45


def test_port_agrees_with_the_reference(model):
    arrays = checkpoint.read(checkpoint.fetch(zoo.BUNDLED))
    assert reference.disagreement(model, arrays) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize(
    ("row", "fonts"),
    [("unseen styles", datasets.UNSEEN_STYLES), ("unseen typeface", datasets.UNSEEN_TYPEFACES)],
)
def test_reads_fonts_it_never_saw_as_stated(model, row, fonts):
    pictures, truth = datasets.glyph_pictures(datasets.glyph_classes(), fonts)
    predicted = model.predict(images.batch(pictures, CARD), verbose=0).argmax(-1)
    assert np.mean(predicted == truth) == pytest.approx(stated(row), abs=0.01)


@pytest.mark.slow
@pytest.mark.parametrize("size", [40, 48, 64, 96, 128])
def test_bears_other_resolutions_as_stated(model, size):
    pictures, truth = datasets.glyph_pictures(datasets.glyph_classes(), datasets.UNSEEN_STYLES)
    some = slice(None, None, 4)
    predicted = model.predict(images.batch(pictures[some], CARD, size), verbose=0).argmax(-1)
    assert np.mean(predicted == truth[some]) == pytest.approx(stated(f"{size} pixels"), abs=0.03)


@pytest.mark.slow
@pytest.mark.parametrize(("task", "side"), [("digits", 8), ("mnist", 28)])
def test_features_tell_digits_apart_as_stated(model, task, side):
    """Logistic regression on pooled features, k digits of each class, 800 test images, five draws."""
    pictures, targets, _ = datasets.labelled(task)
    batch = images.batch(pictures, CARD)
    for row, vectors in (
        (f"{task}, raw pixels", features.shrink(batch, side)),
        (f"{task}, BiT-XS", features.extract(model, batch)),
    ):
        for column, shots in enumerate((1, 5, 10, 50), start=1):
            mean = features.few_shot(vectors, targets, shots).mean()
            assert mean == pytest.approx(stated(row, column), abs=0.01)
