"""Function matching, "A good teacher is patient and consistent" (arXiv 2106.05237, section 3): a student
learns to compute what a teacher computes, from pictures without labels.

It is fine-tuning but for four things: the loss is between two networks, MixUp is at its strongest, the rate
follows a cosine, and Adam with decoupled weight decay takes the steps.
"""

from __future__ import annotations

import math
import os
import warnings
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from keras import KerasTensor as Tensor  # stands for a tensor of any backend

from bitlib import checkpoint, finetune, ops
from bitlib.hyperrule import Plan
from bitlib.inputs import check_flag, check_number, check_whole
from bitlib.model import BiT
from bitlib.training import loop
from bitlib.training.examples import prepare, takes_context
from bitlib.training.loop import History


@dataclass(frozen=True)
class Matching(Plan):
    """A plan whose rate falls from `base_lr` to zero along half a cosine, without a warm-up."""

    def learning_rate(self, step: int) -> float:
        """The rate of an optimizer step, from 0 to `steps - 1`; later ones have rate 0."""
        return self.base_lr * (1 + math.cos(math.pi * min(step / self.steps, 1))) / 2


def plan(
    crop: int,
    steps: int = 1000,
    resize: int | None = None,
    batch_size: int = 64,
    learning_rate: float = 1e-3,
    random_flip: bool = True,
    random_crop: bool = True,
) -> Matching:
    """How to match: MixUp's share is uniform in [0, 1], for every batch (section 3.1).

    Args:
        crop: height and width of what both networks see, in pixels, at least 32.
        steps: of the optimizer. The more, the better: the paper's longest runs take a million epochs.
        resize: height and width of the pictures before they are cropped; None for 8/7 of `crop`.
        batch_size: pictures a step.
        learning_rate: of the first step.
        random_flip, random_crop: whether to mirror and crop at random.

    Raises: ValueError, if a number is out of range.
    """
    crop = check_whole("crop", crop, least=32)
    resize = check_whole("resize", crop * 8 // 7 if resize is None else resize, least=crop)
    check_whole("steps", steps)
    check_whole("batch_size", batch_size)
    check_flag("random_flip", random_flip)
    check_flag("random_crop", random_crop)
    check_number("learning_rate", learning_rate)
    return Matching(
        variant="matching",
        steps=steps,
        warmup_steps=0,
        boundaries=(),
        base_lr=learning_rate,
        batch_size=batch_size,
        momentum=0.9,
        resize=resize,
        crop=crop,
        mixup_alpha=1.0,  # Beta(1, 1) is uniform
        random_flip=random_flip,
        random_crop=random_crop,
    )


def divergence(teacher: Tensor, student: Tensor, temperature: float = 1.0) -> Tensor:
    """KL(teacher ‖ student) of the softmax of logits over temperature (section 3, equation 1).

    From logits, float `[N, classes]`, to float `[N]`, in nats. Above a temperature of 1, unlikely classes
    count for more.
    """
    known = keras.ops.log_softmax(teacher / temperature)
    learnt = keras.ops.log_softmax(student / temperature)
    return keras.ops.sum(keras.ops.exp(known) * (known - learnt), axis=-1)


def match(
    teacher: keras.Model,
    student: keras.Model,
    images: Any,
    steps: int = 1000,
    validation: Any = None,
    seed: int = 0,
    verbose: int = 1,
    *,
    temperature: float = 1.0,
    weight_decay: float = 1e-4,
    accumulate: int = 1,
    checkpoints: str | os.PathLike | None = None,
    save_every: int | None = None,
    validate_every: int | None = None,
    tensorboard: str | os.PathLike | None = None,
    **how: Any,
) -> History:
    """Train the student in place until it computes what the teacher computes. No label is used.

    Both see the same pictures: cropped, mirrored and blended alike. The teacher is called for inference, and
    stays as it is. Gradients of the whole batch are clipped to norm 1.

    Args:
        teacher, student: any Keras models from images float `[N, H, W, 3]` in [-1, 1] to logits
            `[N, classes]`, of the same classes.
        images: float `[N, H, W, 3]` in [-1, 1]; or what else `bitlib.finetune.fit` takes, without its labels.
        validation: images and labels as `bitlib.finetune.fit` takes them, to follow the student's accuracy.
        temperature: of `divergence`.
        weight_decay: of AdamW, relative to the rate.
        steps, how: as of `plan`; without `crop`, it is the height of the first image.
        others: as of `bitlib.finetune.fit`.

    Returns:
        The history; `loss` is the divergence of each batch.

    Raises: as `bitlib.finetune.fit`, and
        ValueError: the two differ in their classes; the student has no weights to train, or shares some.
    """
    given = prepare(images, None, name="images")
    rule = plan(**{"crop": given.side, "steps": steps} | how)
    finetune.check_steps(rule, accumulate, save_every, validate_every)
    check_number("temperature", temperature)
    check_number("weight_decay", weight_decay, least=0)
    num_classes = _check_pair(teacher, student, rule)
    validate = None
    if validation is not None:
        validate = finetune.evaluator(student, validation, rule, num_classes, name="validation")

    def share(context: Any) -> Any:
        return prepare(images(context), None, name="images")

    def loss_of(pictures: Tensor, _) -> Tensor:
        with ExitStack() as stack:
            for model in (teacher, student):
                if isinstance(model, BiT):
                    stack.enter_context(ops.computed_by(model, ops.fast()))
            known = keras.ops.stop_gradient(teacher(pictures, training=False))
            learnt = student(pictures, training=True)
        apart = divergence(keras.ops.cast(known, "float32"), keras.ops.cast(learnt, "float32"), temperature)
        return keras.ops.sum(apart) / rule.batch_size

    return loop.train(
        student,
        rule,
        share if takes_context(images) else given,
        1,  # a label that nobody looks at
        loss_of,
        lambda: keras.optimizers.AdamW(rule.base_lr, weight_decay=weight_decay),
        student.trainable_variables,
        validate,
        seed,
        verbose,
        run={
            "temperature": temperature,
            "weight_decay": weight_decay,
            "teacher's weights": checkpoint.fingerprint(teacher),
        },
        models=(teacher, student),
        names=("student", "images"),
        clip=1.0,
        accumulate=accumulate,
        checkpoints=checkpoints,
        save_every=save_every,
        validate_every=validate_every,
        tensorboard=tensorboard,
    )


def _check_pair(teacher: keras.Model, student: keras.Model, plan: Plan) -> int:
    """The number of classes that both tell apart; builds a model that was never called."""
    shapes = []
    for name, model in (("teacher", teacher), ("student", student)):
        if not isinstance(model, keras.Model):
            raise TypeError(f"{name}: expected a Keras model, received {type(model).__name__}")
        logits = model(np.zeros((1, plan.crop, plan.crop, 3), np.float32), training=False)
        shapes.append(tuple(getattr(logits, "shape", ())))
        values = keras.ops.convert_to_numpy(logits) if len(shapes[-1]) == 2 else np.zeros((1, 1))
        if values.shape[1] > 1 and (values >= 0).all() and abs(values.sum() - 1) < 1e-4:
            warnings.warn(f"{name}: its outputs sum to 1; expected logits, not probabilities", stacklevel=3)
    if shapes[0] != shapes[1] or len(shapes[0]) != 2:
        found = f"outputs of shape {shapes[1]} for one image, the teacher's have {shapes[0]}"
        raise ValueError(
            f"student: gives {found}; expected logits [N, classes] of the same classes from both"
        )
    if not student.trainable_variables:
        raise ValueError("student: has no weights to train; set student.trainable = True")
    own = {id(variable) for variable in student.variables}
    common = [variable.path for variable in teacher.variables if id(variable) in own]
    if common:
        found = f"{len(common)} variables with the student, {common[0]} first"
        raise ValueError(f"teacher: shares {found}, and would train along; load it once more")
    if student.dtype_policy.compute_dtype == "float16":
        raise ValueError("student: computes in float16, whose small gradients vanish; use mixed_bfloat16")
    return shapes[0][-1]
