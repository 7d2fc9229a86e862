"""From a model to a .tflite file for LiteRT, once TensorFlow Lite, which runs on telephones and small boards.

TensorFlow's own converter writes it; only to run it here does one need the package `ai-edge-litert`.
Features that BiT-XS has of handwritten digits differ from float64, as a share of the largest, by 9e-6 in
float32 (8.1 MB), 3e-4 in float16 (4.1 MB), 0.02 in dynamic and 0.06 in int8 (2.2 MB each); a linear probe
learned on the model's own has 94.8 % on each.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import tensorflow as tf
from numpy.typing import ArrayLike

from bitlib import ops
from bitlib.checkpoint import check_model
from bitlib.console import stderr_aside
from bitlib.files.writing import expanded, replacing
from bitlib.formats.graphs import INPUTS, function, scaled, without_log
from bitlib.inputs import FARTHEST, SMALLEST, array, check_images, check_input_range
from bitlib.model import BiT

PRECISIONS = ("float32", "float16", "dynamic", "int8")

MAX_BYTES = 2_000_000_000  # of a model's float32 weights: by its format, a file may have 2 GiB


def write(
    model: BiT,
    path: str | os.PathLike,
    input_range: tuple[float, float] = (-1, 1),
    precision: str = "float32",
    representative: ArrayLike | None = None,
) -> Path:
    """Write a model as a .tflite file for inference, of LiteRT's built-in operations only.

    Batch, height and width are dynamic: `resize_tensor_input` sets them before the tensors are allocated.
    The same model gives the same bytes. Converting takes about twelve times the memory of the weights.

    Args:
        model: a `bitlib.model.BiT` that computes in float32.
        path: the file, usually named `.tflite`; its parents are made.
        input_range: what callers will feed, `(-1, 1)` or `(0, 1)`; the conversion is then part of the file.
        precision: of the weights, and of what is computed with them. `float32`: as the model.
            `float16`: weights in half the bytes; computed in float32, unless a GPU takes over.
            `dynamic`: kernels in int8, a quarter of the bytes; activations are float32, and rounded to int8
            on the way into a convolution, each batch by its own range.
            `int8`: every weight and activation in int8, GroupNorm's statistics too, in ranges that
            `representative` decides. Input and output stay float32.
        representative: for `int8`, and only there: some hundred images such as will be fed, float
            `[N, H, W, 3]` in `input_range`, not augmented.

    Returns:
        The path. The signature `serving_default` takes `inputs`, float32 `[N, H, W, 3]`, H and W at least 32,
        and gives `logits` `[N, classes]`, or `features` `[N, C]` for a model without a head.

    Raises: TypeError, if `model` is no BiT; ValueError, if it computes in another dtype or has more weights
        than `MAX_BYTES`, or another argument is not as above; IsADirectoryError, if `path` is a folder.
    """
    path = Path(path)
    check_model(model)
    if (dtype := model.compute_dtype) != "float32":
        raise ValueError(f"model: computes in {dtype}, expected float32; load it with dtype='float32'")
    if (size := 4 * model.count_params()) > MAX_BYTES:
        raise ValueError(f"model: {size:,} bytes of weights, a .tflite file is made of {MAX_BYTES:,} at most")
    check_input_range(input_range)
    if precision not in PRECISIONS:
        raise ValueError(f"precision: expected one of {', '.join(PRECISIONS)}, received {precision!r}")
    images = _checked_images(representative, input_range, precision)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        temporary.write_bytes(_converted(model, input_range, precision, images))
    return path


def load(path: str | os.PathLike) -> Callable[[ArrayLike], np.ndarray]:
    """A .tflite file as a function of images, computed by LiteRT's interpreter on the CPU.

    Returns:
        A function: float32 `[N, H, W, 3]`, in the range that the file was written for -> float32
        `[N, classes]` or `[N, C]`; not for several threads at once. Checks are `bitlib.inputs.check_images`.

    Raises: FileNotFoundError; ImportError, if the package `ai-edge-litert` is missing.
    """
    try:
        from ai_edge_litert.interpreter import Interpreter
    except ImportError as error:
        raise ImportError("LiteRT's interpreter: pip install 'bitlib[litert]'") from error
    if not expanded(path, "path").is_file():
        raise FileNotFoundError(f"path: {path} is no file, expected a .tflite file")
    try:
        with stderr_aside():
            interpreter = Interpreter(str(expanded(path, "path")), num_threads=os.cpu_count())
    except ValueError as error:
        raise ValueError(f"path: {path} cannot be read as a .tflite file ({error})") from error
    (fed,), (given,) = interpreter.get_input_details(), interpreter.get_output_details()

    def compute(images: ArrayLike) -> np.ndarray:
        images = np.asarray(images)
        check_images(images, warn=False)  # whose range is the file's, [-1, 1] or [0, 1]
        images = images.astype(np.float32)
        if tuple(interpreter.get_input_details()[0]["shape"]) != images.shape:
            interpreter.resize_tensor_input(fed["index"], images.shape)
        with stderr_aside():
            interpreter.allocate_tensors()
        interpreter.set_tensor(fed["index"], images)
        interpreter.invoke()
        found = interpreter.get_tensor(given["index"])
        if np.isnan(found).any():
            received = f"values from {images.min():.4g} to {images.max():.4g}"
            raise ValueError(f"images: expected values in the range of the file, received {received}")
        return found

    return compute


def _checked_images(representative, input_range, precision: str) -> np.ndarray | None:
    """The representative images, if they are some and are needed; None where they are not."""
    if precision != "int8" and representative is None:
        return None
    if precision != "int8":
        raise ValueError(f"representative: expected None, as precision is {precision!r} and not 'int8'")
    images = array(representative, "representative")
    (low, high), found = input_range, ""
    if representative is None:
        found = "None, and precision 'int8' takes its ranges from them"
    elif images.ndim != 4 or images.shape[3] != 3 or not len(images) or min(images.shape[1:3]) < SMALLEST:
        found = f"shape {list(images.shape)}"
    elif images.dtype.kind != "f":
        found = str(images.dtype)
    elif not (low - 1e-3 <= images.min() <= images.max() <= high + 1e-3):
        found = f"values from {images.min():.4g} to {images.max():.4g}"
    if found:
        expected = f"float images [N, H, W, 3] in {list(input_range)}, H and W at least {SMALLEST}"
        raise ValueError(f"representative: expected {expected}; received {found}")
    if low < 0 <= images.min():
        advice = "if callers will feed [0, 1], say input_range=(0, 1); else multiply by 2 and subtract 1"
        warnings.warn(
            f"representative: all values lie in [0, 1], the file takes [-1, 1]; {advice}", stacklevel=4
        )
    return images.astype(np.float32)


def _converted(model: BiT, input_range, precision: str, images: np.ndarray | None) -> bytes:
    weights = tf.Module()
    weights.standardized = []

    def hold(kernel):
        weights.standardized.append(tf.Variable(kernel))
        return weights.standardized[-1]

    compute, output = function(model, input_range)

    def results(inputs):
        zero = tf.reduce_sum(inputs - inputs, (1, 2, 3))  # or NaN, which a ReLU would lose
        far = tf.reduce_max(abs(scaled(inputs, input_range)), (1, 2, 3)) > FARTHEST
        return {output: compute(inputs) + tf.where(far, np.nan, zero)[:, None]}

    # The converter logs a dozen lines; what fails is raised.
    with without_log(), stderr_aside(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # Kernels in variables, which the converter reads: in a graph they would be copied at each step of it.
        with ops.constant_kernels(model, ops.REDUCED, hold):
            concrete = tf.function(results, input_signature=[INPUTS]).get_concrete_function()
        weights.others = [variable.value for variable in model.variables]
        converter = tf.lite.TFLiteConverter.from_concrete_functions([concrete], weights)
        # Else the file would have variables, which nothing fills: its results are noise, without an error.
        converter.experimental_enable_resource_variables = False
        if precision != "float32":
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
        if precision == "float16":
            converter.target_spec.supported_types = [tf.float16]
        if images is not None:
            converter.representative_dataset = lambda: ([image[None]] for image in images)
            converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
        return converter.convert()
