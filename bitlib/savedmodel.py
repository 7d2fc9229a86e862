"""From a model to a SavedModel that others can load: TF Hub, Keras, TF Serving, plain TensorFlow.

What is written follows the reusable SavedModel interface of TF2
(https://www.tensorflow.org/hub/reusable_saved_models): `__call__(inputs, training)`, `variables`,
`trainable_variables`, `regularization_losses`, and one signature, `serving_default`. Keras' own
`model.export` writes the signature only; `hub.KerasLayer(..., trainable=True)` cannot train that.
"""

from __future__ import annotations

import os
from contextlib import contextmanager
from pathlib import Path

import tensorflow as tf
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

from bitlib import checkpoint, reference
from bitlib._files import replacing
from bitlib.checkpoint import CheckpointError
from bitlib.model import BiT

TOLERANCE = 1e-4
"""Largest difference between a port and the float64 reference, as a share of the logits' scale."""


class _Reusable(tf.Module):
    """The object that `tf.saved_model.save` writes; the names below are the interface's."""

    # tf.Module derives these from its attributes; the interface wants exactly the model's own.
    variables = trainable_variables = regularization_losses = None


def export(
    model: BiT,
    directory: str | os.PathLike,
    input_range: tuple[float, float] = (-1, 1),
    freeze: bool = False,
) -> Path:
    """Write a model as a TF2 SavedModel with dynamic batch, height and width.

    Args:
        model: a `bitlib.model.BiT`, as `bitlib.load` gives.
        directory: the folder to write; its parents are made. An earlier SavedModel there is replaced
            once the new one is complete.
        input_range: what callers will feed: `(-1, 1)`, or `(0, 1)` as the `google/bit` hub modules
            take it; the conversion is then part of the graph.
        freeze: write for inference only: weights become constants, kernels already standardised.

    Returns:
        The folder. Its signature takes `inputs`, float32 `[N, H, W, 3]`, and gives `logits`
        `[N, classes]`, or `features` `[N, C]` for a model without a head.

    Raises:
        TypeError: `model` is not a BiT.
        ValueError: `input_range` is neither of the two.
        FileExistsError: `directory` holds something that is not a SavedModel.
    """
    if not isinstance(model, BiT):
        raise TypeError(f"model: expected a bitlib.model.BiT, received {type(model).__name__}")
    if tuple(input_range) not in ((-1, 1), (0, 1)):
        raise ValueError(f"input_range: expected (-1, 1) or (0, 1), received {input_range!r}")
    directory = Path(directory)
    if directory.exists() and not _replaceable(directory):
        raise FileExistsError(f"directory: {directory} exists and is not a SavedModel; choose another folder")
    directory.parent.mkdir(parents=True, exist_ok=True)
    module, signature = _frozen(model, input_range) if freeze else _reusable(model, input_range)
    with replacing(directory) as temporary, _without_log():
        tf.saved_model.save(module, str(temporary), signatures={"serving_default": signature})
    return directory


@contextmanager
def _without_log():
    """TensorFlow would log the temporary folder as the place it wrote to."""
    logger = tf.get_logger()
    level = logger.level
    logger.setLevel("ERROR")
    try:
        yield
    finally:
        logger.setLevel(level)


def _replaceable(directory: Path) -> bool:
    return directory.is_dir() and ((directory / "saved_model.pb").is_file() or not any(directory.iterdir()))


INPUTS = tf.TensorSpec((None, None, None, 3), tf.float32, "inputs")


def _function(model: BiT, input_range):
    """The model as one function of what callers feed, and the name of what comes out."""

    @tf.function(input_signature=[INPUTS])
    def compute(inputs):
        return model(inputs if tuple(input_range) == (-1, 1) else 2 * inputs - 1)

    return compute, "features" if model.head is None else "logits"


def _reusable(model: BiT, input_range):
    compute, output = _function(model, input_range)
    module = _Reusable()
    # A BiT does in training what it does in inference; both, and the signature, share one traced graph.
    module.__call__ = tf.function(lambda inputs, training=False: compute(inputs))
    for training in (False, True):
        module.__call__.get_concrete_function(INPUTS, training=training)
    module.variables = [variable.value for variable in model.variables]
    module.trainable_variables = [variable.value for variable in model.trainable_variables]
    module.regularization_losses = []
    return module, tf.function(lambda inputs: {output: compute(inputs)}, input_signature=[INPUTS])


def _frozen(model: BiT, input_range):
    compute, output = _function(model, input_range)
    with model.constant_kernels():
        constant = convert_variables_to_constants_v2(compute.get_concrete_function())
    module = tf.Module()
    module.__call__ = tf.function(lambda inputs: constant(inputs)[0], input_signature=[INPUTS])
    return module, tf.function(lambda inputs: {output: constant(inputs)[0]}, input_signature=[INPUTS])


def port(
    source: str | os.PathLike,
    directory: str | os.PathLike,
    head: str | int | None = "keep",
    input_range: tuple[float, float] = (-1, 1),
    freeze: bool = False,
) -> Path:
    """From NumPy arrays to a checked SavedModel: load, compare with the reference, export.

    Args:
        source, head: as for `bitlib.load`.
        directory, input_range, freeze: as for `export`.

    Returns:
        The folder of the SavedModel.

    Raises:
        CheckpointError: as `bitlib.checkpoint.read`; or the port differs from the float64 reference
            by more than `TOLERANCE`, in which case nothing is written.
    """
    path = checkpoint.resolve(source)
    model = checkpoint.load(path, head=head)
    with checkpoint.opened(path) as arrays:
        difference = reference.disagreement(model, arrays)
    if not difference <= TOLERANCE:
        raise CheckpointError(
            f"{path}: the ported model differs from the NumPy reference by {difference:.1e} of the "
            f"logits' scale, expected at most {TOLERANCE:.0e}"
        )
    return export(model, directory, input_range, freeze)
