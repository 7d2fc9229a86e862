"""The BiT-HyperRule: from the size of a data set to everything one needs to fine-tune on it.

arXiv 1912.11370, section 3.3 ("Downstream Fine-Tuning") and supplement F; the official code,
`bit_hyperrule.py` of google-research/big_transfer, differs in three places. Both variants are here:

- warm-up: none in the paper; linear in the code, over 100, 500, 500 steps;
- decays: at 30 %, 60 %, 90 % of the steps in the paper; in the code at 40 %, 60 %, 80 % for a small task;
- images of 96×96 and more: 448 → 384 in the paper (R152x4: 512 → 480); 512 → 480 in the code.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields

from bitlib.inputs import check_number, check_whole
from bitlib.zoo import VTAB_TASKS

REFERENCE_BATCH_SIZE = 512
"""The batch that the rule's learning rate is meant for; others scale the rate in proportion."""

NO_FLIP = ("dsprites-orientation", "smallnorb-azimuth", "dsprites-xpos")
"""VTAB tasks whose label a mirror destroys (supplement F)."""

NO_CROP = ("clevr-count", "clevr-distance", "dmlab", "kitti-distance", "dsprites-xpos")
"""VTAB tasks whose label a crop destroys (supplement F)."""

SMALL, LARGE = 20_000, 500_000
"""Numbers of examples from which on a task is no longer small, and from which on it is large."""


@dataclass(frozen=True)
class Plan:
    """The rule for one data set; made by `plan`.

    Attributes:
        variant: `official` or `paper`.
        steps: optimizer steps, numbered from 0.
        warmup_steps: steps over which the rate rises from 0 to `base_lr`.
        boundaries: steps at which the rate is divided by ten: from that step on in the paper, from
            the next one on in the official code.
        base_lr: learning rate after the warm-up, scaled to the batch.
        batch_size: examples a step.
        momentum: of SGD.
        resize: height and width that training images are resized to, in pixels.
        crop: height and width that are then cut out at random; test images are resized to it.
        mixup_alpha: of MixUp's Beta distribution; 0 for no MixUp.
        random_flip: whether training images are mirrored at random.
        random_crop: whether crops are random; if not, images are resized to `crop` straight away.
    """

    variant: str
    steps: int
    warmup_steps: int
    boundaries: tuple[int, ...]
    base_lr: float
    batch_size: int
    momentum: float
    resize: int
    crop: int
    mixup_alpha: float
    random_flip: bool
    random_crop: bool

    def learning_rate(self, step: int) -> float:
        """The rate of an optimizer step; 0 from `steps` on. Raises ValueError: `step` is negative."""
        if step < 0:
            raise ValueError(f"step: expected 0 or more, received {step}")
        if step >= self.steps:
            return 0.0
        if step < self.warmup_steps:
            return self.base_lr * step / self.warmup_steps
        rate, last = self.base_lr, step if self.variant == "paper" else step - 1
        for boundary in self.boundaries:
            if boundary <= last:
                rate /= 10
        return rate

    def rows(self) -> list[tuple[str, str]]:
        """The plan as pairs of name and value, to be shown as a table."""
        return [(field.name, _shown(getattr(self, field.name))) for field in fields(self)]

    def __str__(self) -> str:
        return "\n".join(f"{name:<13} {value}" for name, value in self.rows())

    def _repr_markdown_(self) -> str:
        return "| | |\n|:---|:---|\n" + "\n".join(f"| {name} | {value} |" for name, value in self.rows())


def _shown(value) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, tuple):
        return ", ".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def plan(
    num_examples: int,
    image_size: int | Sequence[int],
    batch_size: int = REFERENCE_BATCH_SIZE,
    base_lr: float = 0.003,
    steps: int | None = None,
    variant: str = "official",
    architecture: str | None = None,
    task: str | None = None,
    resize: int | None = None,
    crop: int | None = None,
    random_flip: bool | None = None,
    random_crop: bool | None = None,
    mixup_alpha: float | None = None,
) -> Plan:
    """Apply the rule.

    Args:
        num_examples: labelled training examples.
        image_size: height and width of the images as they come, in pixels; one number if square.
        batch_size: examples a step. The rate is scaled by `batch_size / 512`.
        base_lr: the rate at batch 512.
        steps: how long to train, if not as the rule says; warm-up and decays are scaled along.
        variant: `official` or `paper`, see the top of this module.
        architecture: `R152x4` has a resolution of its own in the paper.
        task: one of `bitlib.zoo.VTAB_TASKS`, for some of which flips or crops destroy the label. For a task
            of your own say so with `random_flip`, `random_crop`.
        resize, crop, random_flip, random_crop, mixup_alpha: None for what the rule says.

    Raises: ValueError, if a number is out of range, `crop` exceeds `resize`, or a name is unknown.
    """
    num_examples = check_whole("num_examples", num_examples)
    sides = list(image_size) if isinstance(image_size, Iterable) else [image_size] * 2
    if len(sides) != 2:
        raise ValueError(f"image_size: expected one number or height and width, received {image_size!r}")
    height, width = (check_whole("image_size", side) for side in sides)
    batch_size = check_whole("batch_size", batch_size)
    check_number("base_lr", base_lr)
    for name, value in (("random_flip", random_flip), ("random_crop", random_crop)):
        if value not in (None, False, True):
            raise ValueError(f"{name}: expected None, True or False, received {value!r}")
    if variant not in ("official", "paper"):
        raise ValueError(f"variant: expected 'official' or 'paper', received {variant!r}")
    if task is not None and task not in VTAB_TASKS:
        raise ValueError(f"task: expected None or one of {', '.join(VTAB_TASKS)}, received {task!r}")
    if mixup_alpha is None:
        mixup_alpha = 0.0 if num_examples < SMALL else 0.1
    check_number("mixup_alpha", mixup_alpha, least=0)

    large = (512, 480) if variant == "official" or _is_largest(architecture) else (448, 384)
    rule = (160, 128) if height * width < 96 * 96 else large
    crop = None if crop is None else check_whole("crop", crop)
    resize = max(rule[0], crop or 0) if resize is None else check_whole("resize", resize)
    crop = crop or min(rule[1], resize)
    if crop > resize:
        raise ValueError(f"crop: expected at most resize, {resize}, received {crop}")

    warmup, *boundaries, total = _supports(num_examples, variant)
    steps = total if steps is None else check_whole("steps", steps)
    return Plan(
        variant=variant,
        steps=steps,
        warmup_steps=round(warmup * steps / total),
        boundaries=tuple(round(boundary * steps / total) for boundary in boundaries),
        base_lr=base_lr * batch_size / REFERENCE_BATCH_SIZE,
        batch_size=batch_size,
        momentum=0.9,
        resize=resize,
        crop=crop,
        mixup_alpha=float(mixup_alpha),
        random_flip=task not in NO_FLIP if random_flip is None else bool(random_flip),
        random_crop=task not in NO_CROP if random_crop is None else bool(random_crop),
    )


def _is_largest(architecture: str | None) -> bool:
    """Whether it is R152x4, in any case, or the name of a model that is."""
    if architecture is not None and not isinstance(architecture, str):
        raise ValueError(
            f"architecture: expected None or a name such as 'R152x4', received {architecture!r:.80}"
        )
    return "r152x4" in (architecture or "").lower()


def _supports(num_examples: int, variant: str) -> tuple[int, ...]:
    """End of the warm-up, the decays, end of the training."""
    if num_examples < SMALL:
        return (100, 200, 300, 400, 500) if variant == "official" else (0, 150, 300, 450, 500)
    warmup = 500 if variant == "official" else 0
    if num_examples < LARGE:
        return warmup, 3_000, 6_000, 9_000, 10_000
    return warmup, 6_000, 12_000, 18_000, 20_000
