"""Our side on whichever backend KERAS_BACKEND names: a process that answers as `protocol.py` says."""

from __future__ import annotations

from functools import cache

import keras
import numpy as np
from protocol import serve

from bitlib import finetune, hyperrule
from bitlib.model import BiT
from bitlib.training import loop
from bitlib.training.devices import devices_of, forward
from bitlib.zoo import units_and_width


@cache
def model(architecture: str, num_classes: int | None = 1000, dtype: str = "float32") -> BiT:
    """A network of the published shape with random weights."""
    keras.utils.set_random_seed(0)
    return BiT(*units_and_width(architecture), num_classes, dtype=dtype)


@cache
def images(batch: int, size: int) -> np.ndarray:
    """A batch of noise."""
    return np.random.default_rng(0).uniform(-1, 1, (batch, size, size, 3)).astype("float32")


def inference(architecture: str, batch: int, size: int, variant: str):
    """One forward pass, as `finetune.predict` does it."""
    run = forward(model(architecture))
    return lambda: run(images(batch, size))


def training(architecture: str, batch: int, size: int, variant: str):
    """One step of SGD with momentum."""
    net = model(architecture, dtype="mixed_bfloat16" if variant == "bfloat16" else "float32")
    plan = hyperrule.plan(100, size, base_lr=1e-6, batch_size=batch, steps=10**6, resize=size, crop=size)
    optimizer, devices = finetune._optimizer(net, plan), devices_of(net, batch)
    optimizer.build(net.trainable_variables)
    loss_of = finetune._loss_of(net, plan, jit_compile=variant == "compiled")
    step = loop.train_step(loss_of, optimizer, net.trainable_variables, devices, [net])
    labels = np.eye(1000, dtype="float32")[np.arange(batch) % 1000]
    fed = next(devices.distributed([(images(batch, size), labels)], whole=True))
    return lambda: float(step(*fed))


if __name__ == "__main__":
    serve({"inference": inference, "training": training})
