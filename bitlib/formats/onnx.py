"""A model as an ONNX file, for ONNX Runtime, OpenVINO and whatever else reads the format.

It is written straight from the arrays, part by part in the order of the paper; kernels are standardised once,
in float64. `_group_norm` has a form of its own for speed, `_pool` as runtimes compute the plain one wrongly.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from bitlib import reference
from bitlib.checkpoint import HEAD, ROOT
from bitlib.files.writing import replacing
from bitlib.formats import modelcard
from bitlib.inputs import FARTHEST, SMALLEST, check_flag, check_input_range
from bitlib.model import BiT

OPSET, IR = 17, 8
"""The versions of operators and file format that are written: old enough for every runtime in use."""

LARGEST = 2_000_000_000  # bytes of weights in one file; protobuf reads 2 GiB

_GROUPS = 32


def write(
    model: BiT,
    path: str | os.PathLike,
    input_range: tuple[float, float] = (-1, 1),
    uint8: bool = False,
    batch_shape: tuple[int, int, int, int] | None = None,
) -> Path:
    """Write a model as an ONNX file with dynamic batch, height and width, or for batches of one shape.

    The same model gives the same bytes. Weights of more than 2 GB (R152x4) go into a second file beside it,
    `<name>-<digest>.data`, which has to travel with it; the `.onnx` is replaced after that is complete.

    Args:
        model: a `bitlib.model.BiT`, of any dtype policy; the file computes in float32.
        path: the file to write; its parents are made.
        input_range: what callers will feed, `(-1, 1)` or `(0, 1)`; the conversion is then part of the graph.
        uint8: whether callers will feed uint8 in [0, 255] instead, as decoders of images give it.
        batch_shape: `(N, height, width, 3)`, height and width at least 32, for a file that takes batches of
            this shape only: OpenVINO runs it about 1.15 times as fast; ONNX Runtime gains nothing.

    Returns:
        The path. The file's input is `inputs`, `[N, height, width, 3]`, height and width at least 32; its
        output `logits`, float32 `[N, classes]`, or `features` `[N, C]` for a model without a head. Its
        metadata hold what `bitlib.formats.modelcard.metadata` says, class names as JSON among them.

    Raises: ImportError, if the package `onnx` is missing; ValueError, if an argument is none of these, or
        `input_range` is (0, 1) with `uint8`; IsADirectoryError, if `path` is a folder.
    """
    library = check(input_range, uint8, batch_shape)
    shape = None if batch_shape is None else tuple(map(int, batch_shape))
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    scale = "[0, 255]" if uint8 else "[0, 1]" if tuple(input_range) == (0, 1) else "[-1, 1]"
    graph = _Graph(library, model.arrays, scale, shape)
    with replacing(path) as temporary:
        if 4 * model.count_params() <= LARGEST:
            network = _network(graph)
        else:
            data = path.with_name(f"{path.stem}-{_digest(model.arrays)}.data")
            with replacing(data) as beside, beside.open("wb") as graph.stream:
                graph.location = data.name
                network = _network(graph)
        opset = library.helper.make_opsetid("", OPSET)
        proto = library.helper.make_model(network, opset_imports=[opset], ir_version=IR)
        proto.producer_name, proto.producer_version = "bitlib", sys.modules["bitlib"].__version__
        library.helper.set_model_props(proto, modelcard.metadata(model) | {"input_range": scale})
        temporary.write_bytes(proto.SerializeToString(deterministic=True))
    return path


def check(input_range: tuple = (-1, 1), uint8: bool = False, batch_shape: tuple | None = None) -> Any:
    """Check the arguments of `write` that need no model. Returns the package `onnx`; raises as `write`."""
    check_input_range(input_range)
    check_flag("uint8", uint8)
    if uint8 and tuple(input_range) != (-1, 1):
        raise ValueError(f"input_range: uint8=True takes [0, 255], expected no range; received {input_range}")
    if batch_shape is not None:
        found = np.asarray(batch_shape)
        right = found.shape == (4,) and found.dtype.kind in "iu" and found[3] == 3
        if not right or found[0] < 1 or min(found[1:3]) < SMALLEST:
            expected = "None or (N, height, width, 3), height and width at least 32"
            raise ValueError(f"batch_shape: expected {expected}; received {batch_shape!r}")
    try:
        import onnx
    except ImportError:
        raise ImportError("onnx: the package is not installed; pip install 'bitlib[onnx]' does") from None
    return onnx


def _values(arrays: Mapping, name: str) -> np.ndarray:
    """A variable as float32, whatever its dtype."""
    return np.asarray(arrays[name], "<f4")


def _digest(arrays: Mapping) -> str:
    """Of all weights: it names the file that they lie in, so that no `.onnx` ever finds those of another."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        digest.update(_values(arrays, name).tobytes())
    return digest.hexdigest()[:16]


@dataclass
class _Graph:
    """Nodes and constants of a graph in the making; the values of constants may go to a stream."""

    library: Any
    arrays: Mapping
    scale: str
    batch_shape: tuple[int, ...] | None
    stream: BinaryIO | None = None
    location: str = ""
    nodes: list = field(default_factory=list)
    constants: dict = field(default_factory=dict)

    def node(self, kind: str, inputs: list[str], name: str, **attributes: Any) -> str:
        """Add an operation; returns the name of its result, which is its own."""
        self.nodes.append(self.library.helper.make_node(kind, inputs, [name], name, **attributes))
        return name

    def constant(self, name: str, values: Any) -> str:
        """Add an array, unless one of that name is there: floats as float32, integers as int64."""
        if name not in self.constants:
            array = np.asarray(values)
            array = np.ascontiguousarray(array, "<i8" if array.dtype.kind == "i" else "<f4")
            tensor = self.constants[name] = self.library.TensorProto(name=name, dims=np.shape(values))
            tensor.data_type = tensor.INT64 if array.dtype.kind == "i" else tensor.FLOAT
            if self.stream is None or array.nbytes < 1024:  # small ones, shapes, are read with the graph
                tensor.raw_data = array.tobytes()
            else:
                tensor.data_location = tensor.EXTERNAL
                place = {"location": self.location, "offset": self.stream.tell(), "length": array.nbytes}
                for key, value in place.items():
                    tensor.external_data.add(key=key, value=str(value))
                self.stream.write(array.tobytes())
        return name


def _network(graph: _Graph) -> Any:
    """All of it: images, root, units, pooled features, head; as `bitlib.reference.forward`."""
    arrays, info, types = graph.arrays, graph.library.helper.make_tensor_value_info, graph.library.TensorProto
    shape = graph.batch_shape or ("N", "height", "width", 3)
    expected = f"RGB in {graph.scale}, at least {SMALLEST} pixels high and wide; of others the output is NaN"
    fed = info("inputs", types.UINT8 if graph.scale == "[0, 255]" else types.FLOAT, shape, expected)
    x = graph.node("Transpose", [_scaled(graph)], "images", perm=[0, 3, 1, 2])
    x = _pool(graph, _convolution(graph, x, ROOT, stride=2))
    for path, stride in reference.units(arrays):
        x = _unit(graph, x, path, stride)
    x = _group_norm(graph, x, "resnet/group_norm")
    x = graph.node("GlobalAveragePool", [x], "pooled")
    x = graph.node("Add", [x, _zero_or_nan(graph)], "pooled/with_nan")
    x = graph.node("Flatten", [x], "features")
    if HEAD[0] in arrays:
        kernel = graph.constant(HEAD[0], _values(arrays, HEAD[0])[0, 0])
        x = graph.node("Gemm", [x, kernel, graph.constant(HEAD[1], _values(arrays, HEAD[1]))], "logits")
    size = arrays[HEAD[1] if x == "logits" else "resnet/group_norm/gamma"].shape[0]
    given = info(x, types.FLOAT, [shape[0], size])
    constants = list(graph.constants.values())
    return graph.library.helper.make_graph(graph.nodes, "bit", [fed], [given], constants)


def _zero_or_nan(graph: _Graph) -> str:
    """0 for each image, `[N, 1, 1, 1]`, or NaN if a pixel is NaN or infinite, which pools and ReLUs lose,
    or if `bitlib.formats.graphs.checked` refuses it: an ONNX graph has no errors of its own."""
    mean = graph.node("ReduceMean", ["images"], "images/mean", axes=[1, 2, 3], keepdims=1)
    side = graph.node("Shape", ["images"], "images/size", start=2)
    side = graph.node("ReduceMin", [side], "images/side", keepdims=1)
    small = graph.node("Less", [side, graph.constant("smallest", [SMALLEST])], "images/small")
    nowhere, farthest = graph.constant("nowhere", -1.0), graph.constant("farthest", FARTHEST)
    limit = graph.node("Where", [small, nowhere, farthest], "images/limit")
    most = graph.node("Abs", ["images"], "images/absolute")
    most = graph.node("ReduceMax", [most], "images/most", axes=[1, 2, 3], keepdims=1)
    far = graph.node("Greater", [most, limit], "images/far")
    zero = graph.node("Where", [far, graph.constant("nan", np.nan), mean], "images/or_nan")
    return graph.node("Sub", [zero, zero], "images/zero_or_nan")


def _scaled(graph: _Graph) -> str:
    """Images in [-1, 1] from what callers feed."""
    if graph.scale == "[-1, 1]":
        return "inputs"
    whole = graph.scale == "[0, 255]"
    x = graph.node("Cast", ["inputs"], "floats", to=graph.library.TensorProto.FLOAT) if whole else "inputs"
    x = graph.node("Div", [x, graph.constant("half", 127.5 if whole else 0.5)], "from_0_to_2")
    return graph.node("Sub", [x, graph.constant("one", 1.0)], "from_-1_to_1")


def _convolution(graph: _Graph, x: str, name: str, stride: int = 1) -> str:
    """A convolution with a standardised kernel, padded on both sides by half its size."""
    kernel = reference.standardize(_values(graph.arrays, name)).transpose(3, 2, 0, 1)
    size = kernel.shape[-1]
    return graph.node(
        "Conv", [x, graph.constant(name, kernel)], name.removesuffix("/kernel"),
        kernel_shape=[size] * 2, strides=[stride] * 2, pads=[size // 2] * 4,
    )  # fmt: skip


def _pool(graph: _Graph, x: str) -> str:
    """The 3×3 pool, which has zeros at the border.

    A Pad of zeros before MaxPool is the plain form, which ONNX Runtime before 1.32 takes for MaxPool's own
    border, minus infinity: logits are off by hundredths of their scale. Here windows that reach beyond the
    image, known by a mean of ones below 1, are brought up to 0 after the pool, on a quarter of the pixels.
    """
    window = {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1] * 4}
    size = graph.node("Shape", [x], "pool/size", start=2)
    shape = graph.node("Concat", [graph.constant("one_channel", [1, 1]), size], "pool/shape", axis=0)
    ones = graph.node("Expand", [graph.constant("one", 1.0), shape], "pool/ones")
    share = graph.node("AveragePool", [ones], "pool/share_inside", count_include_pad=1, **window)
    inside = graph.node("Greater", [share, graph.constant("nearly_one", 0.99)], "pool/inside")
    lowest, zero = graph.constant("lowest", np.finfo(np.float32).min), graph.constant("zero", 0.0)
    least = graph.node("Where", [inside, lowest, zero], "pool/least")
    x = graph.node("MaxPool", [x], "pool/max", **window)
    return graph.node("Max", [x, least], "pool")


def _unit(graph: _Graph, x: str, path: str, stride: int) -> str:
    """A pre-activation bottleneck; the first of a block projects its shortcut."""

    def convolved(x, part, stride=1):
        return _convolution(graph, x, f"{path}/{part}/standardized_conv2d/kernel", stride)

    residual = _group_norm(graph, x, f"{path}/a/group_norm")
    projects = f"{path}/a/proj/standardized_conv2d/kernel" in graph.arrays
    shortcut = convolved(residual, "a/proj", stride) if projects else x
    residual = convolved(residual, "a")
    residual = convolved(_group_norm(graph, residual, f"{path}/b/group_norm"), "b", stride)
    residual = convolved(_group_norm(graph, residual, f"{path}/c/group_norm"), "c")
    return graph.node("Add", [shortcut, residual], path)


def _group_norm(graph: _Graph, x: str, name: str) -> str:
    """GroupNorm with 32 groups and epsilon 1e-5, and the ReLU after it, in the form that is fastest.

    Of any shape, the groups are normalised as if each were a channel. Scale and shift of true channels are
    a depthwise 1×1 convolution: with the ReLU, runtimes make one pass over memory of it, in the layout that
    the next convolution wants. R50x1 at 224 px on one thread takes 1.06 to 1.2 times as long with the opset's
    GroupNormalization, with Mul and Add, or with the form below.
    """
    if graph.batch_shape:
        return _group_norm_of_fixed_shape(graph, x, name)
    shape = graph.node("Shape", [x], f"{name}/shape")
    groups = graph.constant("groups", [0, _GROUPS, -1])
    y = graph.node("Reshape", [x, groups], f"{name}/groups")
    ones, zeros = graph.constant("ones", np.ones(_GROUPS)), graph.constant("zeros", np.zeros(_GROUPS))
    y = graph.node("InstanceNormalization", [y, ones, zeros], f"{name}/normal", epsilon=1e-5)
    y = graph.node("Reshape", [y, shape], f"{name}/channels")
    gamma = graph.constant(f"{name}/gamma", _values(graph.arrays, f"{name}/gamma")[:, None, None, None])
    beta = graph.constant(f"{name}/beta", _values(graph.arrays, f"{name}/beta"))
    channels = graph.arrays[f"{name}/gamma"].shape[0]
    y = graph.node("Conv", [y, gamma, beta], f"{name}/scaled", group=channels, kernel_shape=[1, 1])
    return graph.node("Relu", [y], name)


def _group_norm_of_fixed_shape(graph: _Graph, x: str, name: str) -> str:
    """Mean and variance of each channel, those of a group averaged; then one scale and shift a channel.

    Large arrays keep their shape, and so, in OpenVINO, the layout that convolutions want. The mean of squares
    less the square of the mean would lose digits.
    """
    channels = graph.arrays[f"{name}/gamma"].shape[0]
    grouped = graph.constant("groups", [0, _GROUPS, -1])
    channelwise = graph.constant(f"channels/{channels}", [0, channels, 1, 1])

    def means(y: str, result: str) -> str:
        """Of groups, [N, 32, 1]."""
        y = graph.node("ReduceMean", [y], f"{result}/of_channels", axes=[2, 3], keepdims=1)
        y = graph.node("Reshape", [y, grouped], f"{result}/groups")
        return graph.node("ReduceMean", [y], result, axes=[2], keepdims=1)

    def parameter(kind: str) -> str:
        values = _values(graph.arrays, f"{name}/{kind}")
        return graph.constant(f"{name}/{kind}", values.reshape(1, _GROUPS, -1))

    mean = means(x, f"{name}/mean")
    zeros = graph.constant(f"zeros/{channels}", np.zeros((1, 1, channels // _GROUPS)))
    spread = graph.node("Add", [mean, zeros], f"{name}/mean/spread")
    centred = graph.node("Reshape", [spread, channelwise], f"{name}/mean/channels")
    centred = graph.node("Sub", [x, centred], f"{name}/centred")
    variance = means(graph.node("Mul", [centred, centred], f"{name}/squares"), f"{name}/variance")
    variance = graph.node("Add", [variance, graph.constant("epsilon", 1e-5)], f"{name}/variance/epsilon")
    deviation = graph.node("Sqrt", [variance], f"{name}/deviation")
    scale = graph.node("Div", [parameter("gamma"), deviation], f"{name}/scale/groups")
    shift = graph.node("Mul", [scale, mean], f"{name}/shift/mean")
    shift = graph.node("Sub", [parameter("beta"), shift], f"{name}/shift/groups")
    scale = graph.node("Reshape", [scale, channelwise], f"{name}/scale")
    shift = graph.node("Reshape", [shift, channelwise], f"{name}/shift")
    y = graph.node("Mul", [x, scale], f"{name}/scaled")
    return graph.node("Relu", [graph.node("Add", [y, shift], f"{name}/shifted")], name)
