"""From arrays to a SavedModel without Keras: the NumPy reference, traced by JAX and converted by jax2tf."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import tensorflow as tf

from bitlib import reference, savedmodel
from bitlib.files.layout import HEAD, check, infer, layout
from bitlib.formats import graphs

Arrays = Mapping[str, np.ndarray]

SHAPES = "(batch, height, width, 3)"  #: of images, for jax2tf: what has a name may be of any size


def convert(head: bool = True) -> Callable:
    """The reference as a function of TensorFlow: arrays by name and images -> logits.

    TensorFlow runs it as one operation, `XlaCallModule`, which XLA compiles for each new shape.

    Returns:
        A function of tensors or variables by their published names, and of images, float32
        `[N, H, W, 3]` in [-1, 1], differentiable in both. It gives float32 logits
        `[N, num_classes]`, or pooled features `[N, channels]` without the `head`.

    Raises: ImportError, if JAX is missing.
    """
    try:
        import jax
        from jax.experimental import jax2tf
    except ImportError as error:
        raise ImportError("the way through JAX needs it: pip install 'bitlib[jax]'") from error

    def forward(arrays, images):
        return reference.forward(arrays, images, head, xp=jax.numpy)

    converted = jax2tf.convert(forward, polymorphic_shapes=[None, SHAPES])
    # Else TensorFlow rewrites JAX's own Python, function by function: five times as slow.
    return tf.autograph.experimental.do_not_convert(converted)


def export(arrays: Arrays, directory: str | os.PathLike, head: bool = True) -> Path:
    """Write arrays and the reference as a reusable SavedModel, with dynamic batch, height, width.

    It has what `bitlib.export` writes, but for the model card: the same call, variables that train, and the
    same signature, from `inputs`, float32 `[N, H, W, 3]` in [-1, 1], to `logits` `[N, num_classes]`, or to
    `features` `[N, channels]` without the head.

    Args:
        arrays: a checkpoint's arrays by their published names, as `bitlib.checkpoint.read` gives.
        directory: the folder to write; its parents are made. An earlier SavedModel there is replaced.
        head: whether to apply the classifier; without it, its arrays are left out.

    Raises:
        ImportError: JAX is missing.
        CheckpointError: names or shapes are not those of a BiT.
        ValueError: there is no head to apply.
        FileExistsError: `directory` is a file, or holds what is not a SavedModel's.
    """
    shapes = {name: np.shape(array) for name, array in arrays.items()}
    architecture = infer(shapes)
    check(shapes, layout(architecture))
    if head and architecture.num_classes is None:
        raise ValueError("head: expected False for arrays without a classifier, received True")
    names = [name for name in shapes if head or name not in HEAD]
    variables = {name: tf.Variable(arrays[name], name=name, dtype=tf.float32) for name in names}
    converted, every = convert(head), list(variables.values())
    output = "logits" if head else "features"

    @tf.function(input_signature=[graphs.INPUTS])
    def signature(inputs):
        return {output: converted(variables, graphs.checked(inputs, (-1, 1)))}

    module = graphs.callable_as(signature, lambda results: results[output], every, every)
    return savedmodel.write(module, {"serving_default": signature}, directory)
