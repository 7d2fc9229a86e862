"""Checks of exercises: right answers of any form pass, wrong ones fail, with a hint."""

import importlib
from pathlib import Path

import nbformat
import numpy as np
import pytest

from bitlib import distill, features, hyperrule, images, labels, pages, reference, zoo
from bitlib.pages import patience, plots, vtab

ROOT = Path(__file__).parent.parent


def checks(page, exercise):
    """The source of the checks of an exercise."""
    (path,) = (ROOT / "notebooks").glob(f"{page}_*.ipynb")
    title = f"# Check of exercise {exercise}"
    return [cell.source for cell in nbformat.read(path, 4).cells if cell.source.startswith(title)]


def surroundings(page):
    """What the checks find on their page, as far as they need it; made quickly."""
    rng = np.random.default_rng(0)
    common = {"np": np, "pages": pages, "seed": 0}
    if page == "01":
        arrays = {name: np.zeros(2) for name in ("resnet/head/conv2d/kernel", "resnet/head/conv2d/bias", "a")}
        extractor = type("Model", (), {"arrays": {"a": None}})
        kernel, image = rng.normal(size=(7, 7, 3, 32)), rng.uniform(-1, 1, (1, 32, 32, 3))
        return common | locals() | {"reference": reference, "features": extractor}
    if page == "02":
        card = zoo.card(zoo.BUNDLED)
        batch = images.batch([rng.integers(0, 256, (64, 64, 3), np.uint8)], card, 64)
        known, unknown = np.linspace(0.3, 1, 100), np.linspace(0.1, 0.9, 50)
        sample, digits = [*known], [*unknown]

        def classify(pictures, k):
            return [[("a class", probability)] for probability in pictures]

        return common | locals() | {"pictures_to_arrays": images, "size": 64}
    if page == "03":
        truth = np.arange(60) % 3
        found = {
            "labels": truth,
            "vectors": rng.normal(size=(60, 8)) + 4 * np.eye(3, 8)[truth],
            "chance": 1 / 3,
        }
        found |= {"class_names": list("abc"), "learn": np.arange(30), "ask": np.arange(30, 60)}
        return common | found | {"features": features, "shots": [2], "draws": 2, "num_test": 30}
    if page == "04":
        plan = hyperrule.plan(1000, 64, batch_size=64, steps=250, base_lr=0.1)
        recipe = {"batch_size": 64, "steps": 250, "base_lr": 0.1}
        halved = {"batch_size": 32, "steps": 500}
        train, (height, width) = (range(1000), None), (64, 64)
        return common | locals() | {"hyperrule": hyperrule}
    if page == "05":
        rows = vtab.by_task(vtab.stored(), tuple(vtab.METHODS))
        differences = np.array([3.0, 4.0, 5.0])
        return common | locals() | {"vtab": vtab}
    if page == "06":
        given = type("Data", (), {"class_names": list("0123")})
        shown, outputs = rng.uniform(size=(20, 8, 8, 3)), rng.normal(size=(2, 20, 4))
        teacher = type("Model", (), {"predict": lambda pictures, verbose: outputs[0]})
        count = patience.student(4, 16).count_params()
        student = {"predict": lambda pictures, verbose: outputs[1], "count_params": lambda: count}
        student = type("Model", (), student)
        own = {"patience": patience, "distill": distill, "probabilities": labels.probabilities}
        own |= {"plots": plots, "display": id, "np": np}
        exec(KL, own)
        return common | locals() | own | {"width": 16}
    if page == "07":
        jax = pytest.importorskip("jax")
        importlib.import_module("jax.export")
        arrays = rng.normal(size=(8 * 8 * 3, 5))  # a network of one matrix, in float64
        batch = rng.uniform(-1, 1, (2, 8, 8, 3)).astype("float32")
        linear = type("Reference", (), {"forward": lambda arrays, x: x.reshape(len(x), -1) @ arrays})
        expected = linear.forward(arrays, batch)
        best = expected.argmax(axis=-1)
        gradients = arrays.T[best].reshape(batch.shape)
        return common | locals() | {"reference": linear}
    network = type("Model", (), {"count_params": lambda: 1_000_000})
    logits = {name: rng.normal(size=(20, 3)) for name in ("live", "LiteRT int8")}
    task, test = type("Task", (), {"class_names": list("abc")}), rng.uniform(size=(20, 8, 8, 3))
    own = {"labels": labels, "plots": plots, "display": id, "coarsest": "LiteRT int8"}
    return common | locals() | own | {"model": network, "megabytes": {"live": 4.0, "LiteRT int8": 1.1}}


KL = """
def divergence(a, b, T=1.0):
    p, q = probabilities(a / T), probabilities(b / T)
    return np.sum(p * np.log(p / q), axis=-1)
"""
STABLE = """
from scipy.special import log_softmax
def divergence(a, b, T=1):
    p, q = log_softmax(a / T, 1), log_softmax(b / T, 1)
    return (np.exp(p) * (p - q)).sum(1)
"""
CHOOSE = """
def choose(by):
    return max(by, key=lambda name: by[name][0] + by[name][1])
"""
CONFUSION = """
answers = features.linear_probe(vectors[learn], labels[learn]).predict(vectors[ask])
confusion = np.zeros((3, 3), int)
for true, taken in zip(labels[ask], answers):
    confusion[true, taken] += 1
"""
PROTOTYPES = """
prototypes = np.array([vectors[learn][labels[learn] == n].mean(0) for n in range(3)])
lengths = np.linalg.norm(prototypes, axis=1)
answers = (vectors[ask] @ prototypes.T / lengths).argmax(axis=1)
"""
FURTHEST = "apart = divergence(*outputs); furthest = np.argsort(apart)[::-1][:8]"
MOVED = """
live, other = (labels.probabilities(logits[name]) for name in ("live", coarsest))
gap = np.abs(np.take_along_axis(live - other, live.argmax(1)[:, None], 1)[:, 0])
moved = sorted(range(20), key=lambda n: -gap[n])[:8]
"""
DOUBTED = "doubted = batch - 0.002 * np.sign(gradients)"
BACK = "back = np.round(127.5 * batch[0] + 127.5).astype('uint8')"
THRESHOLD = "threshold = np.sort(known)[5]; refused = np.mean(unknown < threshold)"
UNIT = "unit = vectors / np.sqrt((vectors ** 2).sum(axis=1))[:, None]"

RIGHT = [
    ("01", 1, "factor = 1"),
    ("01", 1, "factor = 1.0"),
    ("01", 2, "unneeded = ['resnet/head/conv2d/bias', 'resnet/head/conv2d/kernel']"),
    ("01", 2, "unneeded = {name for name in arrays if 'head' in name}"),
    ("02", 1, BACK),
    ("02", 1, "back = ((batch[0] + 1) / 2 * 255 + 0.5).astype(np.uint8)"),
    ("02", 2, "known, unknown = np.array(sample), np.array(digits)"),
    ("02", 2, "known, unknown = sample, digits"),
    ("02", 4, THRESHOLD),
    ("02", 4, "threshold = sorted(known)[5]; refused = sum(unknown < threshold) / len(unknown)"),
    ("03", 1, UNIT),
    ("03", 1, "unit = np.stack([v / np.linalg.norm(v) for v in vectors])"),
    ("03", 2, CONFUSION),
    ("03", 2, CONFUSION + "confusion = confusion.astype(float)"),
    ("03", 3, PROTOTYPES),
    ("03", 3, PROTOTYPES + "answers = answers.astype(float)"),
    ("04", 1, "warmup, decay, rate = 100, 200, 0.00625"),
    ("04", 1, "warmup, decay, rate = 2 * plan.warmup_steps, 2 * plan.boundaries[0], plan.base_lr / 2"),
    ("05", 2, "from scipy import stats\nneeded = 7"),
    ("05", 2, "needed = np.int64(7)"),
    ("05", 3, CHOOSE),
    ("05", 3, "def choose(by):\n    return sorted(by, key=lambda n: -np.mean(by[n][:2]))[0]"),
    ("06", 1, "times = 4"),
    ("06", 1, "times = 3.8"),
    ("06", 2, KL),
    ("06", 2, STABLE),
    ("06", 3, FURTHEST),
    ("06", 3, FURTHEST + ".tolist()"),
    ("07", 1, "times = 3"),
    ("07", 1, "times = len({x.shape for x in (batch, batch[:1], batch[:, ::2])})"),
    ("07", 2, "square = '(batch, side, side, 3)'"),
    ("07", 2, "square = 'n,s,s,3'"),
    ("07", 3, DOUBTED),
    ("07", 3, "doubted = np.where(gradients > 0, batch - 0.002, batch + 0.002)"),
    ("08", 1, "in_float32, in_int8 = 4, 1"),
    ("08", 1, "in_float32, in_int8 = 4.0, 1.1"),
    ("08", 2, MOVED),
    ("08", 2, MOVED + "moved = np.array(moved)"),
]

WRONG = [
    ("01", 1, "factor = 10"),
    ("01", 1, "factor = 0"),
    ("01", 1, "factor = 0.1"),
    ("01", 2, "unneeded = []"),
    ("01", 2, "unneeded = list(arrays)"),
    ("01", 2, "unneeded = {'resnet/head/conv2d/bias'}"),
    ("02", 1, "back = (batch[0] * 255).astype('uint8')"),
    ("02", 1, "back = ((batch[0] + 1) * 127.5).astype('uint8')[::-1]"),
    ("02", 1, "back = (batch[0] + 1) * 127.5"),
    ("02", 2, "known, unknown = np.array(digits), np.array(sample)"),
    ("02", 2, "known, unknown = 5 * np.array(sample), 5 * np.array(digits)"),
    ("02", 2, "known, unknown = 1 - np.array(sample), 1 - np.array(digits)"),
    ("02", 4, "threshold = 0.9; refused = np.mean(unknown < threshold)"),
    ("02", 4, "threshold = 0.0; refused = 0.0"),
    ("02", 4, THRESHOLD.replace("<", ">")),
    ("03", 1, "unit = vectors"),
    ("03", 1, "unit = -vectors / np.linalg.norm(vectors, axis=1, keepdims=True)"),
    ("03", 1, "unit = vectors / np.linalg.norm(vectors)"),
    ("03", 2, CONFUSION + "confusion = confusion.T[::-1]"),
    ("03", 2, CONFUSION + "confusion = confusion / 30"),
    ("03", 2, "confusion = np.full((3, 3), 10 / 3)"),
    ("03", 3, PROTOTYPES + "prototypes = prototypes / lengths[:, None]"),
    ("03", 3, PROTOTYPES + "answers = (answers + 1) % 3"),
    ("03", 3, PROTOTYPES + "answers = answers[:-1]"),
    ("04", 1, "warmup, decay, rate = plan.warmup_steps, plan.boundaries[0], plan.base_lr"),
    ("04", 1, "warmup, decay, rate = 100, 200, 0.025"),
    ("04", 1, "warmup, decay, rate = 25, 50, 0.00625"),
    ("05", 2, "needed = 4  # the factor of 2 for any number of draws"),
    ("05", 2, "needed = 3"),
    ("05", 2, "needed = 70"),
    ("05", 3, "def choose(by):\n    return max(by, key=lambda n: by[n][2])"),
    ("05", 3, "def choose(by):\n    return max(by, key=lambda n: by[n][0])"),
    ("05", 3, "def choose(by):\n    return max(by, key=lambda n: np.mean(by[n]))"),
    ("06", 1, "times = 2"),
    ("06", 1, "times = 8"),
    ("06", 1, "times = 1"),
    ("06", 2, KL.replace("(a, b", "(b, a")),
    ("06", 2, KL.replace("a / T", "a").replace("b / T", "b")),
    ("06", 2, KL.replace("axis=-1", "axis=0")),
    ("06", 3, FURTHEST + "[::-1]"),
    ("06", 3, FURTHEST.replace("*outputs", "*outputs[::-1]")),
    ("06", 3, "furthest = np.arange(8)"),
    ("07", 1, "times = 6"),
    ("07", 1, "times = 5"),
    ("07", 1, "times = 1"),
    ("07", 2, "square = '(batch, height, width, 3)'"),
    ("07", 2, "square = '(2, side, side, 3)'"),
    ("07", 2, "square = ('batch', 'side', 'side', 3)"),
    ("07", 3, DOUBTED.replace("-", "+")),
    ("07", 3, DOUBTED.replace("0.002", "0.003")),
    ("07", 3, "doubted = batch - 0.002 * gradients / np.abs(gradients).max()"),
    ("08", 2, MOVED + "moved = moved[::-1]"),
    ("08", 2, "moved = np.arange(8)"),
    ("08", 2, MOVED + "moved = moved[1:]"),
    ("08", 1, "in_float32, in_int8 = 32, 8"),
    ("08", 1, "in_float32, in_int8 = 4, 4"),
    ("08", 1, "in_float32, in_int8 = 1, 1"),
]


def answered(page, exercise, answer):
    found = surroundings(page)
    exec(answer, found)
    for source in checks(page, exercise):
        exec(source, found)


@pytest.mark.parametrize(("page", "exercise", "answer"), RIGHT)
def test_right_answers_pass(page, exercise, answer, capsys):
    answered(page, exercise, answer)
    assert "not answered yet" not in capsys.readouterr().out


@pytest.mark.parametrize(("page", "exercise", "answer"), WRONG)
def test_wrong_answers_fail_with_a_hint(page, exercise, answer):
    with pytest.raises(AssertionError) as caught:
        answered(page, exercise, answer)
    assert len(str(caught.value).split()) > 2


class TestUnanswered:
    def test_the_page_goes_on(self, capsys):
        with pages.check(None):
            raise TypeError
        with pages.check(1, ...):
            raise AssertionError("an answer is missing")
        assert capsys.readouterr().out == "not answered yet\n" * 2

    def test_nbgrader_gets_an_error(self, monkeypatch):
        monkeypatch.setenv("NBGRADER_EXECUTION", "autograde")
        with pytest.raises(AssertionError, match="not answered yet"), pages.check(...):
            pass

    def test_of_an_answer_nothing_is_hidden(self):
        with pytest.raises(KeyError), pages.check(0):
            raise KeyError
