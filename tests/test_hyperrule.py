"""The rule against tables worked out by hand from the paper and from the official code."""

import dataclasses

import numpy as np
import pytest

from bitlib.hyperrule import plan

SMALL, MEDIUM, LARGE = 19_999, 20_000, 500_000


@pytest.mark.parametrize(
    ("examples", "variant", "steps", "warmup", "boundaries", "alpha"),
    [
        (1, "official", 500, 100, (200, 300, 400), 0),
        (19_999, "official", 500, 100, (200, 300, 400), 0),
        (20_000, "official", 10_000, 500, (3_000, 6_000, 9_000), 0.1),
        (499_999, "official", 10_000, 500, (3_000, 6_000, 9_000), 0.1),
        (500_000, "official", 20_000, 500, (6_000, 12_000, 18_000), 0.1),
        (19_999, "paper", 500, 0, (150, 300, 450), 0),
        (20_000, "paper", 10_000, 0, (3_000, 6_000, 9_000), 0.1),
        (499_999, "paper", 10_000, 0, (3_000, 6_000, 9_000), 0.1),
        (500_000, "paper", 20_000, 0, (6_000, 12_000, 18_000), 0.1),
    ],
)
def test_schedule_by_size(examples, variant, steps, warmup, boundaries, alpha):
    result = plan(examples, 224, variant=variant)
    assert (result.steps, result.warmup_steps, result.boundaries) == (steps, warmup, boundaries)
    assert result.mixup_alpha == alpha
    assert (result.base_lr, result.momentum, result.batch_size) == (0.003, 0.9, 512)


@pytest.mark.parametrize(
    ("size", "variant", "architecture", "resize", "crop"),
    [
        (32, "official", None, 160, 128),
        ((95, 97), "official", None, 160, 128),  # 9215 pixels
        ((96, 96), "official", None, 512, 480),  # 9216 pixels
        (96, "official", "R152x4", 512, 480),
        ((64, 144), "paper", None, 448, 384),  # 9216 pixels
        ((1, 9215), "paper", "R152x4", 160, 128),
        (96, "paper", None, 448, 384),
        (96, "paper", "R50x1", 448, 384),
        (224, "paper", "R152x4", 512, 480),
    ],
)
def test_resolution_by_area(size, variant, architecture, resize, crop):
    result = plan(1000, size, variant=variant, architecture=architecture)
    assert (result.resize, result.crop) == (resize, crop)


@pytest.mark.parametrize(
    ("step", "rate"),
    [
        (0, 0),
        (1, 0.003 / 100),
        (50, 0.0015),
        (99, 0.003 * 0.99),
        (100, 0.003),
        (200, 0.003),  # `if s < step`: the official code decays after the boundary
        (201, 0.0003),
        (300, 0.0003),
        (301, 0.00003),
        (400, 0.00003),
        (401, 0.000003),
        (499, 0.000003),
        (500, 0),
    ],
)
def test_official_rates(step, rate):
    assert plan(SMALL, 32).learning_rate(step) == pytest.approx(rate, rel=1e-12)


@pytest.mark.parametrize(
    ("step", "rate"),
    [(0, 0.003), (149, 0.003), (150, 0.0003), (299, 0.0003), (300, 0.00003), (449, 0.00003), (450, 0.000003)],
)
def test_paper_rates(step, rate):
    assert plan(SMALL, 32, variant="paper").learning_rate(step) == pytest.approx(rate, rel=1e-12)


def test_every_official_rate_is_that_of_the_official_rule():
    """The staircase written down once more, as plainly as possible, for every step of each size."""
    for examples, supports in (
        (SMALL, [100, 200, 300, 400, 500]),
        (MEDIUM, [500, 3000, 6000, 9000, 10000]),
        (LARGE, [500, 6000, 12000, 18000, 20000]),
    ):
        result = plan(examples, 224)
        for step in range(supports[-1]):
            decays = sum(step > support for support in supports[1:])
            expected = 0.003 * step / supports[0] if step < supports[0] else 0.003 / 10**decays
            assert result.learning_rate(step) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("batch", "rate"), [(512, 0.003), (128, 0.00075), (1, 0.003 / 512), (100, 0.3 / 512), (4096, 0.024)]
)
def test_the_rate_follows_the_batch(batch, rate):
    result = plan(SMALL, 32, batch_size=batch)
    assert result.base_lr == pytest.approx(rate, rel=1e-12)
    assert result.steps == 500


def test_a_base_rate_of_ones_own_is_scaled_too():
    assert plan(SMALL, 32, batch_size=256, base_lr=0.01).base_lr == pytest.approx(0.005)


@pytest.mark.parametrize(
    ("variant", "steps", "warmup", "boundaries"),
    [
        ("official", 200, 40, (80, 120, 160)),
        ("official", 1000, 200, (400, 600, 800)),
        ("official", 7, 1, (3, 4, 6)),
        ("paper", 200, 0, (60, 120, 180)),
        ("paper", 7, 0, (2, 4, 6)),
    ],
)
def test_warmup_and_boundaries_follow_the_steps(variant, steps, warmup, boundaries):
    result = plan(SMALL, 32, steps=steps, variant=variant)
    assert (result.steps, result.warmup_steps, result.boundaries) == (steps, warmup, boundaries)


@pytest.mark.parametrize(
    ("task", "flip", "crop"),
    [
        (None, True, True),
        ("cifar100", True, True),
        ("svhn", True, True),
        ("smallnorb-elevation", True, True),
        ("dsprites-orientation", False, True),
        ("smallnorb-azimuth", False, True),
        ("dsprites-xpos", False, False),
        ("clevr-count", True, False),
        ("clevr-distance", True, False),
        ("dmlab", True, False),
        ("kitti-distance", True, False),
    ],
)
@pytest.mark.parametrize("variant", ["official", "paper"])
def test_exceptions_of_supplement_f(task, flip, crop, variant):
    result = plan(1000, 224, task=task, variant=variant)
    assert (result.random_flip, result.random_crop) == (flip, crop)


def test_what_is_said_overrides_the_rule():
    result = plan(50_000, 64, resize=72, crop=64, random_flip=False, random_crop=False, mixup_alpha=0)
    assert (result.resize, result.crop, result.mixup_alpha) == (72, 64, 0)
    assert not result.random_flip
    assert not result.random_crop
    assert plan(100, 64, resize=64).crop == 64
    assert plan(100, 64, crop=200).resize == 200
    assert plan(100, 64, task="dmlab", random_crop=True).random_crop


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"num_examples": 0}, "num_examples"),
        ({"num_examples": 10.5}, "num_examples"),
        ({"num_examples": True}, "num_examples"),
        ({"image_size": 0}, "image_size"),
        ({"image_size": (3, 4, 5)}, "image_size"),
        ({"image_size": (32, -1)}, "image_size"),
        ({"batch_size": 0}, "batch_size"),
        ({"base_lr": 0}, "base_lr"),
        ({"base_lr": float("nan")}, "base_lr"),
        ({"base_lr": float("inf")}, "base_lr"),
        ({"steps": 0}, "steps"),
        ({"variant": "tf2"}, "variant"),
        ({"task": "dsprite"}, "task"),
        ({"resize": 100, "crop": 128}, "crop"),
        ({"mixup_alpha": -0.1}, "mixup_alpha"),
    ],
)
def test_nonsense_is_refused_by_name(arguments, named):
    with pytest.raises(ValueError, match=rf"^{named}: expected .*received"):
        plan(**{"num_examples": 1000, "image_size": 32, **arguments})


def test_negative_steps_have_no_rate():
    with pytest.raises(ValueError, match="^step: "):
        plan(1000, 32).learning_rate(-1)


def test_a_plan_is_a_constant_and_prints_as_a_table():
    result = plan(1000, 32, batch_size=128)
    with pytest.raises(dataclasses.FrozenInstanceError):
        result.steps = 3
    assert "base_lr       0.00075" in str(result)
    assert "| boundaries | 200, 300, 400 |" in result._repr_markdown_()
    assert "random_flip   yes" in str(result)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"random_flip": "no"}, "^random_flip: expected None, True or False, received 'no'"),
        ({"random_crop": "False"}, "^random_crop: expected None, True or False"),
        ({"base_lr": "0.003"}, "^base_lr: expected a positive number, received '0.003'"),
        ({"base_lr": True}, "^base_lr: expected a positive number, received True"),
        ({"mixup_alpha": "x"}, "^mixup_alpha: expected 0 or more, received 'x'"),
        ({"image_size": 224.0}, "^image_size: expected at least 1, a whole number, received 224.0"),
        ({"image_size": None}, "^image_size: expected at least 1, a whole number, received None"),
    ],
)
def test_arguments_of_another_kind_are_refused(arguments, words):
    with pytest.raises(ValueError, match=words):
        plan(**{"num_examples": 100, "image_size": 224} | arguments)


def test_whole_numbers_of_numpy_are_whole_numbers():
    assert plan(np.int64(100), np.int64(224)) == plan(100, 224)


@pytest.mark.parametrize("name", ["R152x4", "r152x4", "BiT-M-R152x4"])
def test_the_largest_network_by_any_of_its_names(name):
    assert plan(1000, 300, variant="paper", architecture=name).resize == 512
    assert plan(1000, 300, variant="paper", architecture="as in the file").resize == 448
    with pytest.raises(ValueError, match="^architecture: expected None or a name such as"):
        plan(1000, 300, variant="paper", architecture=152)
