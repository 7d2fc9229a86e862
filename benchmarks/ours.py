"""Our side of the benchmarks: a process that answers cases with seconds, as `protocol.py` says."""

from __future__ import annotations

import os
from functools import cache, partial

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import anywhere
import engines
import keras
import tensorflow as tf
from anywhere import model, training
from protocol import serve

from bitlib import datasets, features, ops, savedmodel
from bitlib.formats import graphs


@cache
def images(batch: int, size: int):
    """A batch of noise."""
    return tf.constant(anywhere.images(batch, size))


@cache
def live(architecture: str):
    """The model as a traced function of any batch and size."""
    return tf.function(model(architecture), input_signature=[graphs.INPUTS])


@cache
def bfloat16(architecture: str):
    """The model with bfloat16 arithmetic, its kernels standardised once."""
    low = model(architecture, dtype="mixed_bfloat16")
    with ops.constant_kernels(low):
        return tf.function(low, input_signature=[graphs.INPUTS]).get_concrete_function()


@cache
def frozen(architecture: str, jit_compile: bool = False):
    """The classifier exported for inference, loaded back."""
    folder = f"build/bench/{architecture}{'-compiled' * jit_compile}"
    savedmodel.export(model(architecture), folder, freeze=True, jit_compile=jit_compile)
    loaded = tf.saved_model.load(folder)
    frozen.kept = [*getattr(frozen, "kept", []), loaded]  # a signature does not keep its object alive
    return loaded.signatures["serving_default"]


@cache
def landmark(architecture: str):
    """Keras Applications' ResNet50V2, traced as `live`."""
    return tf.function(keras.applications.ResNet50V2(weights=None), reduce_retracing=True)


@cache
def onnx_file(architecture: str, variant: str, batch: int, size: int):
    """The classifier as an ONNX file: for one shape of images where that is faster."""
    fixed = {"batch_shape": (batch, size, size, 3)} if variant == "openvino" else {}
    path = f"build/bench/{architecture}-{variant}-{batch}x{size}.onnx"
    return savedmodel.export(model(architecture), path, format="onnx", **fixed)


def inference(architecture: str, batch: int, size: int, variant: str):
    """One forward pass."""
    if variant in engines.ENGINES:
        run = engines.ENGINES[variant](onnx_file(architecture, variant, batch, size))
        fed = images(batch, size).numpy()
        return lambda: run(fed)
    made = {
        "live": live,
        "frozen": frozen,
        "bfloat16": bfloat16,
        "ResNet50V2": landmark,
        "compiled": partial(frozen, jit_compile=True),
    }
    function = made[variant](architecture)
    return lambda: tf.nest.flatten(function(images(batch, size)))[0].numpy()


def jpegs(architecture: str, folder: str, size: int, variant: str):
    """From JPEG files to pooled features."""
    files = sorted(os.path.join(folder, name) for name in os.listdir(folder))
    net = model(architecture, None)
    return lambda: features.extract(net, datasets.pipeline(files, [0] * len(files), size))


def matmul(size: int, variant: str):
    """A large matrix product: what the machine can do."""
    matrix = tf.random.normal((size, size))
    return lambda: tf.linalg.matmul(matrix, matrix)[0, 0].numpy()


CASES = {"inference": inference, "training": training, "jpegs": jpegs, "matmul": matmul}


if __name__ == "__main__":
    serve(CASES)
