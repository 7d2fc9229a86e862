"""From a model to a SavedModel that others can load: TF Hub, Keras, TF Serving, plain TensorFlow.

What is written follows the reusable SavedModel interface of TF2
(https://www.tensorflow.org/hub/reusable_saved_models): `__call__(inputs, training)`, `variables`,
`trainable_variables`, `regularization_losses`, and one signature, `serving_default`. Keras' own
`model.export` writes the signature only; `hub.KerasLayer(..., trainable=True)` cannot train that.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import tensorflow as tf
from tensorflow.python.eager.context import context
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2
from tensorflow.python.saved_model.save_context import save_context

from bitlib import checkpoint, modelcard, ops, reference, zoo
from bitlib.checkpoint import CheckpointError, Source
from bitlib.model import BiT
from bitlib.writing import replacing

TOLERANCE = 1e-4
"""Largest difference between a port and the float64 reference, as a share of the logits' scale."""


class _Reusable(tf.Module):
    """The object that `tf.saved_model.save` writes; the names below are the interface's."""

    # tf.Module derives these from its attributes; the interface wants exactly the model's own.
    variables: Any = None
    trainable_variables: Any = None
    regularization_losses: Any = None


def export(
    model: BiT,
    directory: str | os.PathLike,
    input_range: tuple[float, float] = (-1, 1),
    freeze: bool = False,
    jit_compile: bool = False,
) -> Path:
    """Write a model as a TF2 SavedModel with dynamic batch, height and width.

    Args:
        model: a `bitlib.model.BiT`, as `bitlib.load` gives.
        directory: the folder to write; its parents are made. An earlier SavedModel there is replaced
            once the new one is complete.
        input_range: what callers will feed: `(-1, 1)`, or `(0, 1)` as the `google/bit` hub modules
            take it; the conversion is then part of the graph.
        freeze: write for inference only: weights become constants, kernels already standardised, and the
            halves of a batch are computed side by side.
        jit_compile: have XLA compile every GroupNorm of a frozen model. It is faster again on CPUs; each new
            shape of images costs a second or two when it is first seen, and whatever runs the SavedModel
            must have XLA, as TensorFlow itself has.

    Returns:
        The folder. Its signature takes `inputs`, float32 `[N, H, W, 3]`, and gives `logits`
        `[N, classes]`, or `features` `[N, C]` for a model without a head. A model card lies in it,
        `README.md`: what it is, where its weights came from, how to feed and load it.

    Raises:
        TypeError: `model` is not a BiT.
        ValueError: `input_range` is neither of the two, or `jit_compile` without `freeze`.
        FileExistsError: `directory` is a file, or holds anything that is not a SavedModel's: a file of
            yours, or a README.md that is not such a model card.
    """
    if not isinstance(model, BiT):
        raise TypeError(f"model: expected a bitlib.model.BiT, received {type(model).__name__}")
    _check(input_range, freeze, jit_compile)
    _replaceable(directory)  # before seconds are spent
    module, signature = _frozen(model, input_range, jit_compile) if freeze else _reusable(model, input_range)
    return write(module, signature, directory, modelcard.text(model, input_range, freeze, jit_compile))


def write(module: tf.Module, signature: Callable, directory: str | os.PathLike, card: str = "") -> Path:
    """Write a module with one signature, and a model card if there is any, as `export` does.

    Returns:
        The folder.

    Raises:
        FileExistsError: as `export`.
    """
    directory = _replaceable(directory)
    directory.parent.mkdir(parents=True, exist_ok=True)
    with replacing(directory, unless=_holds_others_files) as temporary, _without_log():
        tf.saved_model.save(module, str(temporary), signatures={"serving_default": signature})
        if card:
            (temporary / "README.md").write_text(card, "utf-8")
    return directory


def _check(input_range, freeze: bool, jit_compile: bool) -> None:
    if tuple(input_range) not in ((-1, 1), (0, 1)):
        raise ValueError(f"input_range: expected (-1, 1) or (0, 1), received {input_range!r}")
    if jit_compile and not freeze:
        raise ValueError("jit_compile: expected False, or freeze=True beside it; received True alone")


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


def _replaceable(directory: str | os.PathLike) -> Path:
    """The directory, if an export may be written there."""
    directory = Path(directory)
    reason = "is a file, not a SavedModel" if directory.is_file() else None
    if directory.is_dir():
        reason = _holds_others_files(directory)
    if reason:
        raise FileExistsError(f"directory: {directory} {reason}; choose another folder")
    return directory


_OURS = re.compile(
    r"saved_model\.pb|fingerprint\.pb|keras_metadata\.pb|assets/|"
    r"variables/(variables\.index|variables\.data-\d{5}-of-\d{5})?"
)
"""What the writer of a SavedModel puts into its folder."""


def _holds_others_files(directory: Path) -> str | None:
    """Why a folder may not be replaced: it is no SavedModel, or holds more. None if it may, or is empty."""
    if any(directory.iterdir()) and not (directory / "saved_model.pb").is_file():
        return "is not a SavedModel"
    for folder, folders, files in os.walk(directory):
        for name in [*(f"{name}/" for name in folders), *files]:
            path = Path(folder, name)
            entry = path.relative_to(directory).as_posix() + "/" * name.endswith("/")
            if not _OURS.fullmatch(entry) and not (entry == "README.md" and modelcard.is_one(path)):
                return f"holds {entry!r}, which is not a SavedModel's and would be lost"
    return None


INPUTS = tf.TensorSpec((None, None, None, 3), tf.float32, "inputs")


def _function(model: BiT, input_range):
    """The model as one function of what callers feed, and the name of what comes out."""

    def compute(inputs):
        return model(inputs if tuple(input_range) == (-1, 1) else 2 * inputs - 1)

    return compute, "features" if model.head is None else "logits"


def _reusable(model: BiT, input_range):
    compute, output = _function(model, input_range)
    variables, trainable = model.variables, model.trainable_variables
    return reusable(compute, output, [v.value for v in variables], [v.value for v in trainable])


def reusable(
    compute: Callable,
    output: str,
    variables: Sequence[tf.Variable],
    trainable_variables: Sequence[tf.Variable],
) -> tuple[tf.Module, Callable]:
    """A function of images and its variables, as `write` writes them with the reusable interface.

    Args:
        compute: float32 `[N, H, W, 3]` -> float32 `[N, C]`, in training as in inference.
        output: the name of what it returns, in the signature.
        variables, trainable_variables: all that it uses, and those that a training may change.

    Returns:
        The module, and the signature.
    """
    signature = tf.function(lambda inputs: {output: compute(inputs)}, input_signature=[INPUTS])
    module = _Reusable()
    # Inference and training share the signature's graph.
    module.__call__ = tf.function(lambda inputs, training=False: signature(inputs)[output])
    # Traced as `save` would trace it; else it would trace all again, and hold both graphs.
    with save_context(tf.saved_model.SaveOptions()):
        for training in (False, True):
            module.__call__.get_concrete_function(INPUTS, training=training)
    module.variables = variables
    module.trainable_variables = trainable_variables
    module.regularization_losses = []
    return module, signature


def _frozen(model: BiT, input_range, jit_compile):
    compute, output = _function(model, input_range)
    operations = ops.fast(written_gradients=False, compiled=True) if jit_compile else ops.PLAIN
    with ops.constant_kernels(model, operations):
        traced = tf.function(compute, input_signature=[INPUTS]).get_concrete_function()
        constant = convert_variables_to_constants_v2(traced)
    halves = tf.function(_in_halves(constant), input_signature=[INPUTS])
    module = tf.Module()
    module.__call__ = halves
    return module, tf.function(lambda inputs: {output: halves(inputs)}, input_signature=[INPUTS])


def _in_halves(compute):
    """The same function, computed for the two halves of a batch side by side.

    An operation keeps all cores waiting for the slowest of them; meanwhile those of the other half go on.
    """

    def halves(inputs):
        count = tf.shape(inputs)[0]
        size = (count + 1) // 2

        def add(start, results):
            (result,) = compute(inputs[start : start + size])
            return start + size, tf.concat([results, result], 0)

        none = tf.zeros((0, compute.outputs[0].shape[-1]))
        any_number = (tf.TensorShape(()), tf.TensorShape((None, none.shape[-1])))
        return tf.while_loop(lambda start, _: start < count, add, (0, none), any_number, 2)[1]

    return halves


@dataclass(frozen=True)
class Ported:
    """One SavedModel that `port_all` wrote.

    Attributes:
        name: of the checkpoint.
        folder: where it is.
        output: `logits` or `features`.
        size: of the folder, in bytes.
        difference: from the float64 reference, as a share of its scale.
    """

    name: str
    folder: Path
    output: str
    size: int
    difference: float


def port_all(
    sources: Iterable[str | os.PathLike],
    directory: str | os.PathLike,
    freeze: bool = False,
    jit_compile: bool = False,
) -> Iterator[Ported]:
    """Port a list of checkpoints into a folder tree that mirrors TensorFlow Hub's.

    A hub handle gives the module of that handle, in the folder of that name. A collection gives all its
    members. Any other name or file gives a classifier and a feature extractor: where there were handles
    of them in their folders and with their input range, else in `<name>/classifier/1` and
    `<name>/features/1`, for inputs in [-1, 1]. Names and folders are looked up before the first is written.

    Args:
        sources: as for `bitlib.load`, and names of collections.
        directory: the root of the tree; `hub.load(f"{directory}/{handle}")` is what `hub.load(handle)` was.
        freeze, jit_compile: as for `export`.

    Yields:
        What was written, one by one, each checked as by `port`.

    Raises:
        ValueError, FileExistsError: a name is unknown, or as `export`.
        CheckpointError: as `port`; what was written before stays.
    """
    _check((-1, 1), freeze, jit_compile)
    targets = [target for source in sources for target in _targets(source)]
    for target in targets:
        _replaceable(Path(directory, target.folder))
    return (_port(target, Path(directory), freeze, jit_compile) for target in targets)


class _Target(NamedTuple):
    """One SavedModel to make of a source."""

    source: str | os.PathLike
    folder: str
    head: str | None
    input_range: tuple[float, float]


def _targets(source) -> list[_Target]:
    """Everything that `port_all` makes of a source."""
    if zoo.is_collection(str(source)):
        return [target for handle in zoo.handles(str(source)) for target in _targets(handle)]
    card = zoo.card_of(source)
    if not card.name.strip("."):
        raise ValueError(f"sources: {source} has no name that a folder can have; rename the file")
    heads = {"logits": "keep", "features": None}
    if card.handle:
        return [_Target(source, card.handle, heads[card.output], card.input_range)]
    targets = []
    for output, plain in (("logits", "classifier"), ("features", "features")):
        handle = card.handles.get(output)
        input_range = zoo.card(handle).input_range if handle else card.input_range
        targets.append(_Target(source, handle or f"{card.name}/{plain}/1", heads[output], input_range))
    return targets


def _port(target: _Target, directory: Path, freeze: bool, jit_compile: bool) -> Ported:
    source = checkpoint.find(target.source)
    model, difference = _checked(source, target.head)
    folder = export(model, directory / target.folder, target.input_range, freeze, jit_compile)
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    output = "features" if model.head is None else "logits"
    return Ported(source.card.name, folder, output, size, difference)


def _checked(source: Source, head) -> tuple[BiT, float]:
    """A loaded model and its difference from the float64 reference, if that is small enough."""
    model = checkpoint.load(source, head=head)
    # For the largest a small image will do: as many sums, fewer of each.
    size = 64 if model.count_params() < 300_000_000 else 32
    with checkpoint.opened(source.path) as arrays:
        difference = reference.disagreement(model, arrays, size)
    context().clear_kernel_cache()  # what the comparison has compiled for its shapes: 10 MB
    if not difference <= TOLERANCE:
        raise CheckpointError(
            f"{source.path}: the ported model differs from the NumPy reference by {difference:.1e} of the "
            f"logits' scale, expected at most {TOLERANCE:.0e}"
        )
    return model, difference


def port(
    source: str | os.PathLike,
    directory: str | os.PathLike,
    head: str | int | None = "keep",
    input_range: tuple[float, float] | None = None,
    freeze: bool = False,
    jit_compile: bool = False,
) -> Path:
    """From NumPy arrays to a checked SavedModel: load, compare with the reference, export.

    Args:
        source, head: as for `bitlib.load`.
        directory, freeze, jit_compile: as for `export`.
        input_range: as for `export`; None for that of the old module if `source` is a hub handle, and
            [-1, 1] otherwise.

    Returns:
        The folder of the SavedModel.

    Raises:
        ValueError, FileExistsError: as `export`.
        CheckpointError: as `bitlib.checkpoint.read`; or the port differs from the float64 reference
            by more than `TOLERANCE`, in which case nothing is written.
    """
    _check(input_range or (-1, 1), freeze, jit_compile)  # before minutes are spent
    _replaceable(directory)
    found = checkpoint.find(source)
    model, _ = _checked(found, head)
    return export(model, directory, input_range or found.card.input_range, freeze, jit_compile)
