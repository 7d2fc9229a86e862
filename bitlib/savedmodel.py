"""From a model to a SavedModel that others can load: TF Hub, Keras, TF Serving, plain TensorFlow.

What is written follows the reusable SavedModel interface of TF2
(https://www.tensorflow.org/hub/reusable_saved_models): `__call__(inputs, training)`, `variables`,
`trainable_variables`, `regularization_losses`, and a signature, `serving_default`. Keras' own
`model.export` writes the signature only; `hub.KerasLayer(..., trainable=True)` cannot train that.
"""

from __future__ import annotations

import importlib
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras

from bitlib import checkpoint, ops, reference, zoo
from bitlib.checkpoint import CheckpointError, Source
from bitlib.files.writing import expanded, replacing
from bitlib.formats import modelcard, onnx
from bitlib.inputs import check_flag, check_input_range
from bitlib.model import BiT

TOLERANCE = 1e-4
"""Largest difference between a port and the float64 reference, as a share of the logits' scale."""

_OPTIONS = {
    "tf_saved_model": {"freeze", "jit_compile", "serving_bytes", "top", "stages"},
    "onnx": {"uint8", "batch_shape"},
    "litert": {"precision", "representative"},
}
"""The options of each format; the names of the formats are Keras'."""

_SUFFIXES = {".onnx": "onnx", ".tflite": "litert"}  # of the formats that are files

_OTHERS = {
    ".keras": "model.save writes such a file",
    ".h5": "model.save_weights writes a file of this kind, called .weights.h5",
    **dict.fromkeys((".npz", ".safetensors"), "bitlib.checkpoint.save writes such a file"),
}
"""Files that are no exports, and how to write them."""


def export(
    model: BiT,
    directory: str | os.PathLike,
    input_range: tuple[float, float] = (-1, 1),
    freeze: bool = False,
    jit_compile: bool = False,
    *,
    format: str | None = None,
    **options: Any,
) -> Path:
    """Write a model as a TF2 SavedModel, or an ONNX or LiteRT file, with dynamic batch, height and width.

    Args:
        model: a `bitlib.model.BiT`, as `bitlib.load` gives.
        directory: the folder to write, or the file; its parents are made. An earlier SavedModel or file there
            is replaced once the new one is complete.
        input_range: what callers will feed: `(-1, 1)`, or `(0, 1)` as the `google/bit` hub modules take it;
            the conversion is then part of the graph.
        freeze: write for inference only: weights become constants, kernels already standardised, and the
            halves of a batch are computed side by side.
        jit_compile: have XLA compile every GroupNorm of a frozen model: faster again on CPUs, after a second
            or two for each new shape of images; what runs the SavedModel must have XLA, as TensorFlow has.
        format: `"tf_saved_model"`, `"onnx"` or `"litert"`, as `keras.Model.export` names them; None for that
            of the suffix, `.onnx` or `.tflite`, and a SavedModel where there is none.
        options: of ONNX and LiteRT as `bitlib.formats.onnx.write` and `bitlib.formats.litert.write` take
            them; of SavedModels `serving_bytes=True` adds a second signature of this name, from files of
            pictures to the `top` (5) likeliest classes, as `bitlib.formats.graphs.signature`. `stages=True`
            writes feature maps for detectors and segmenters instead: signature and call give a dictionary of
            `root` and `block1` to `block4`, float32 `[N, h, w, C]` at strides 4, 4, 8, 16 and 32.

    Returns:
        The folder, or file. Its signature takes `inputs`, float32 `[N, H, W, 3]`, and gives `logits`
        `[N, classes]`, or `features` `[N, C]` for a model without a head. Images far beyond `input_range`, or
        smaller than 32 pixels, are an error; of a file, the output is NaN. In a folder lies a model card,
        `README.md`.

    Raises:
        TypeError: `model` is not a BiT.
        ValueError: an argument is none of the above; the suffix or an option is of another format;
            `jit_compile` without `freeze`, `stages` beside `freeze` or `serving_bytes`; or as
            `bitlib.formats.graphs.check`, `bitlib.formats.onnx.write`, `bitlib.formats.litert.write`.
        ImportError: the format needs a package that is not installed.
        FileExistsError: `directory` is a file, or holds anything that is not a SavedModel's.
        IsADirectoryError: `directory` is a folder, and the format a file.
    """
    checkpoint.check_model(model)
    directory = expanded(directory, "directory")
    format = _check(directory, input_range, freeze, jit_compile, format, options)
    if format != "tf_saved_model":
        writer = importlib.import_module(f"bitlib.formats.{format}")
        return writer.write(model, directory, input_range, **options)
    return _write(model, directory, input_range, freeze, jit_compile, **options)


def _write(
    model: BiT, directory, input_range, freeze, jit_compile, serving_bytes=False, top=5, stages=False
) -> Path:
    from bitlib.formats import graphs

    if serving_bytes:
        graphs.check(model, top)
    if freeze:
        module, signature = graphs.frozen(model, input_range, jit_compile)
    else:
        module, signature = (graphs.stages if stages else graphs.reusable)(model, input_range)
    signatures = {"serving_default": signature}
    if serving_bytes:
        signatures["serving_bytes"] = graphs.signature(signature, model, input_range, top)
    card = modelcard.text(model, input_range, freeze, jit_compile, serving_bytes, stages)
    return write(module, signatures, directory, card)


def write(module: Any, signatures: dict, directory: str | os.PathLike, card: str = "") -> Path:
    """Write a `tf.Module` with its signatures, and a model card if there is any, as `export`."""
    import tensorflow as tf

    from bitlib.formats import graphs

    _check_replaceable(directory := Path(directory))
    directory.parent.mkdir(parents=True, exist_ok=True)
    # TensorFlow would log the temporary folder as the place it wrote to.
    with replacing(directory, unless=_holds_others_files) as temporary, graphs.without_log():
        tf.saved_model.save(module, str(temporary), signatures=signatures)
        if card:
            (temporary / "README.md").write_text(card, "utf-8")
    return directory


def _check(
    directory, input_range, freeze: bool, jit_compile: bool, format: str | None, options: Mapping[str, Any]
) -> str:
    """Check the arguments before the slow part; returns the format."""
    directory = expanded(directory, "directory")
    flags = {"freeze": freeze, "jit_compile": jit_compile, **options}
    for name in ("freeze", "jit_compile", "serving_bytes", "stages"):
        check_flag(name, flags.get(name, False))
    suffix = directory.suffix.lower()
    format = _SUFFIXES.get(suffix, "tf_saved_model") if format is None else format
    if not isinstance(format, str) or format not in _OPTIONS:
        raise ValueError(f"format: expected one of {', '.join(_OPTIONS)}, received {format!r}")
    given = {*options, *(name for name in ("freeze", "jit_compile") if flags[name])}
    if unknown := sorted(given - _OPTIONS[format]):
        takes = ", ".join(sorted(_OPTIONS[format]))
        raise ValueError(f"{unknown[0]}: no option of format {format!r}, which takes {takes}")
    if "top" in options and not options.get("serving_bytes"):
        raise ValueError("top: expected serving_bytes=True beside it, received it alone")
    foreign = suffix and suffix not in _SUFFIXES and suffix in " ".join(zoo.FOREIGN).split()
    if _SUFFIXES.get(suffix, format) != format or suffix in _OTHERS or foreign:
        written = f"bitlib.export(..., format={_SUFFIXES.get(suffix)!r}) writes such a file"
        other = _OTHERS.get(suffix, "leave out the suffix" if foreign else written)
        raise ValueError(f"directory: {str(directory)!r} is called like no {format}; {other}")
    check_input_range(input_range)
    if jit_compile and not freeze:
        raise ValueError("jit_compile: expected False, or freeze=True beside it; received True alone")
    if options.get("stages") and (freeze or options.get("serving_bytes")):
        raise ValueError("stages: expected False beside freeze or serving_bytes, received True")
    if format == "onnx":
        onnx.check(input_range, **options)
        return format
    ops.require_tensorflow(f"format {format!r}")
    if format == "tf_saved_model":
        _check_replaceable(directory)
    return format


def _check_replaceable(directory: str | os.PathLike) -> None:
    """Raise FileExistsError unless an export may be written there."""
    directory = Path(directory)
    reason = _holds_others_files(directory) if directory.is_dir() else "is a file, not a SavedModel"
    if reason and directory.exists():
        raise FileExistsError(f"directory: {directory} {reason}; choose another folder")


_OURS = re.compile(
    r"saved_model\.pb|fingerprint\.pb|keras_metadata\.pb|assets/|"
    r"variables/(variables\.index|variables\.data-\d{5}-of-\d{5})?"
)
"""What the writer of a SavedModel puts into its folder."""


def _holds_others_files(directory: Path) -> str | None:
    """Why a folder may not be replaced: it is no SavedModel, or holds more. None if it may, or is empty."""
    if any(directory.iterdir()) and not (directory / "saved_model.pb").is_file():
        return "is not a SavedModel"
    for path in directory.rglob("*"):
        entry = path.relative_to(directory).as_posix() + "/" * path.is_dir()
        if not _OURS.fullmatch(entry) and not (entry == "README.md" and modelcard.is_one(path)):
            return f"holds {entry!r}, which is not a SavedModel's and would be lost"
    return None


@dataclass(frozen=True)
class Ported:
    """One SavedModel that `port_all` wrote: the name of its checkpoint, its folder, its output (`logits` or
    `features`), its size in bytes, and the difference from the float64 reference as a share of its scale."""

    name: str
    folder: Path
    output: str
    size: int
    difference: float


def port_all(
    sources: Iterable, directory: str | os.PathLike, freeze: bool = False, jit_compile: bool = False
) -> Iterator[Ported]:
    """Port a list of checkpoints into a folder tree that mirrors TensorFlow Hub's.

    A hub handle gives the module of that handle, in the folder of that name; a collection, all its members.
    Any other name or file gives a classifier and a feature extractor: in the folders and with the input range
    of their handles if there were any, else in `<name>/classifier/1` and `<name>/features/1`, for [-1, 1].

    Args:
        sources: as for `bitlib.load`, and names of collections.
        directory: the root of the tree; `hub.load(f"{directory}/{handle}")` is what `hub.load(handle)` was.
        freeze, jit_compile: as for `export`.

    Yields what was written, one by one, each checked as by `port`. Raises: as `export` and ValueError of an
    unknown name, before anything is written; CheckpointError as `port`, and what was written before stays.
    """
    targets = [target for source in sources for target in _targets(source)]
    for _, folder, _, input_range in targets:
        _check(Path(directory, folder), input_range, freeze, jit_compile, "tf_saved_model", {})
    return (_port(*target, directory, freeze, jit_compile) for target in targets)


def _targets(source) -> list[tuple[Any, str, str | None, tuple]]:
    """What `port_all` makes of a source: for each SavedModel its source, folder, head and range of inputs."""
    if zoo.is_collection(str(source)):
        return [target for handle in zoo.handles(str(source)) for target in _targets(handle)]
    card = zoo.card_of(source)
    if not card.name.strip("."):
        raise ValueError(f"sources: {source} has no name that a folder can have; rename the file")
    heads = {"logits": "keep", "features": None}
    if card.handle:
        return [(source, card.handle, heads[card.output], card.input_range)]
    targets = []
    for output, plain in (("logits", "classifier"), ("features", "features")):
        handle = card.handles.get(output)
        input_range = zoo.card(handle).input_range if handle else card.input_range
        targets.append((source, handle or f"{card.name}/{plain}/1", heads[output], input_range))
    return targets


def _port(source, folder, head, input_range, directory, freeze: bool, jit_compile: bool) -> Ported:
    source = checkpoint.find(source)
    model, difference = _checked(source, head)
    folder = export(model, Path(directory, folder), input_range, freeze, jit_compile)
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    output = "features" if model.head is None else "logits"
    return Ported(source.card.name, folder, output, size, difference)


def _checked(source: Source, head) -> tuple[BiT, float]:
    """A loaded model and its difference from the float64 reference, if that is small enough."""
    model = checkpoint.load(source, head=head)
    size = 64 if model.count_params() < 300_000_000 else 32  # as many sums, fewer of each
    with checkpoint.opened(source.path) as arrays:
        difference = reference.disagreement(model, arrays, size)
    if keras.backend.backend() == "tensorflow":
        from tensorflow.python.eager.context import context

        context().clear_kernel_cache()  # what the comparison has compiled for its shapes: 10 MB
    if not difference <= TOLERANCE:
        found = f"{difference:.1e} of the logits' scale, expected at most {TOLERANCE:.0e}"
        raise CheckpointError(f"{source.path}: the ported model differs from the NumPy reference by {found}")
    return model, difference


def port(
    source: str | os.PathLike,
    directory: str | os.PathLike,
    head: str | int | None = "keep",
    input_range: tuple[float, float] | None = None,
    freeze: bool = False,
    jit_compile: bool = False,
    *,
    format: str | None = None,
    **options: Any,
) -> Path:
    """From NumPy arrays to a checked SavedModel, or file: load, compare with the reference, export.

    Args:
        source, head: as for `bitlib.load`.
        directory, freeze, jit_compile, format, options: as for `export`.
        input_range: as for `export`; None for that of the old module if `source` is a hub handle, and
            [-1, 1] otherwise. A file that takes `uint8` has none.

    Returns and raises as `export`; and CheckpointError as `bitlib.checkpoint.read`, or if the port differs
    from the float64 reference by more than `TOLERANCE`. Then nothing is written.
    """
    format = _check(directory, input_range or (-1, 1), freeze, jit_compile, format, options)
    found = checkpoint.find(source)
    model, _ = _checked(found, head)
    of_source = (-1, 1) if options.get("uint8") else found.card.input_range
    return export(model, directory, input_range or of_source, freeze, jit_compile, format=format, **options)
