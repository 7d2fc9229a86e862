"""Figures draw without warnings, say what their axes are, and are closed."""

import warnings

import matplotlib.pyplot as plt
import numpy as np
import pytest

from bitlib import checkpoint, hyperrule
from bitlib.checkpoint import Architecture
from bitlib.finetune import History
from bitlib.pages import plots
from tests.conftest import SMALL

RNG = np.random.default_rng(0)
PICTURE = RNG.integers(0, 255, (40, 40, 3), dtype=np.uint8)
PLAN = hyperrule.plan(100, 64, steps=30)
METHODS = ("fine-tuned", "frozen backbone", "random crops", "random flips", "random head", "decays unscaled")
TOP = [("LATIN CAPITAL LETTER O", 0.7), ("class, other names", 0.2)]

FIGURES = {
    "anatomy": lambda: plots.anatomy(checkpoint.layout(SMALL), 64),
    "anatomy without a head": lambda: plots.anatomy(
        checkpoint.layout(Architecture((3, 8, 36, 3), 4, None)), 480
    ),
    "transfer": lambda: plots.transfer(["S: a\nb", "M"], "network", ["x", "y", "z"]),
    "standardization": lambda: plots.standardization(
        RNG.normal(size=(3, 3, 8, 4)), RNG.normal(size=(3, 3, 8, 4))
    ),
    "group_norm": lambda: plots.group_norm(RNG.normal(size=(2, 2, 64)), RNG.normal(size=(2, 2, 64))),
    "agreement": lambda: plots.agreement(RNG.normal(size=(1, 50)), RNG.normal(size=(1, 50))),
    "agreement, exact": lambda: plots.agreement(np.arange(5), np.arange(5)),
    "predictions": lambda: plots.predictions([PICTURE] * 5, [TOP] * 5, ["title"] * 5),
    "one prediction": lambda: plots.predictions([PICTURE / 127.5 - 1], [TOP], ["title"]),
    "confusions": lambda: plots.confusions([(PICTURE, "A", PICTURE, "B")] * 3),
    "no confusion": lambda: plots.confusions([]),
    "near_misses": lambda: plots.near_misses([PICTURE] * 10, [TOP] * 10, [PICTURE] * 10),
    "near_misses of unknown classes": lambda: plots.near_misses([PICTURE] * 3, [TOP] * 3),
    "mistakes": lambda: plots.mistakes(
        [PICTURE / 127.5 - 1] * 3, ["right", "wrong", "worse"], [1, 0.5, 0], "share"
    ),
    "neighbours": lambda: plots.neighbours([PICTURE] * 2, [[PICTURE] * 3] * 2, [["7"] * 4] * 2),
    "maps": lambda: plots.maps({"a": RNG.normal(size=(9, 2)), "b": np.ones((9, 2))}, range(9), "012345678"),
    "few_shot_curves": lambda: plots.few_shot_curves(
        [1, 5, 10], {"x": RNG.uniform(size=(3, 4)), "y": np.ones((3, 4))}
    ),
    "feature_maps": lambda: plots.feature_maps(
        PICTURE, {"root": RNG.normal(size=(8, 8, 9)), "b": np.ones((1, 1, 3))}
    ),
    "bars": lambda: plots.bars(["root", "block1"], [0.5, 1], "title", "accuracy"),
    "rates": lambda: plots.rates({"small": {"a": PLAN, "b": PLAN}, "large": {"a": PLAN}}),
    "gallery": lambda: plots.gallery([PICTURE] * 11, ["two\nlines"] * 11),
    "empty gallery": lambda: plots.gallery([], []),
    "learning_curves": lambda: plots.learning_curves(
        {"a": History([2, 1], [1, 1], [1, 2], [0.2, 0.9], [2, 1]), "b": History([3, 1])}, [1]
    ),
    "differences": lambda: plots.differences(
        {"a": {"x": (0.01, 0.02), "y": (-0.1, np.inf)}, "b": {"y": (0.2, 0.1)}}, "title"
    ),
    "scatter": lambda: plots.scatter({"a": (1, 2), "b": (8, 0.3)}, "title", "MB", "ms"),
    "by_task": lambda: plots.by_task(
        {"a": dict.fromkeys(METHODS, (0.9, 0.01)), "b": {"random head": (0.5, np.inf)}}, "title"
    ),
    "saliency": lambda: plots.saliency([PICTURE] * 4, [RNG.normal(size=(40, 40, 3))] * 4, ["A\n9 %"] * 4),
    "curve": lambda: plots.curve([1, 2, 4], [3, 2, 1], "title", "x (pixels)", "y", 2),
}


@pytest.mark.parametrize("draw", FIGURES.values(), ids=FIGURES)
def test_draws(draw, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.simplefilter("ignore", DeprecationWarning)  # matplotlib 3.10 on pyparsing 3.3
        figure = draw()
        figure.savefig(tmp_path / "figure.png")
    assert plt.get_fignums() == []
    for legend in figure.legends:
        box = legend.get_window_extent()
        assert box.x0 >= 0, "the legend is cut off"
        assert box.x1 <= figure.bbox.x1, "the legend is cut off"
    for ax in figure.axes:
        if ax.axison and ax.get_title():
            assert ax.get_xlabel(), ax.get_title()


@pytest.mark.parametrize(
    ("name", "short"),
    [
        ("LATIN CAPITAL LETTER O", "Latin capital letter O"),
        ("LATIN SMALL LETTER T", "Latin small letter t"),
        ("LATIN CAPITAL LETTER H WITH STROKE", "Latin capital letter H with stroke"),
        ("LATIN SMALL LETTER AE", "Latin small letter ae"),
        ("LATIN CAPITAL LETTER AE", "Latin capital letter AE"),
        ("LATIN LETTER SMALL CAPITAL R", "Latin letter small capital R"),
        ("EURO SIGN", "Euro sign"),
        ("Indian elephant, Elephas maximus", "Indian elephant"),
        ("class 7", "class 7"),
        ("x" * 50, "x" * 33 + "…"),
    ],
)
def test_shorten(name, short):
    assert plots.shorten(name) == short
