"""Engines that run ONNX files on the CPU, with their own choice of threads; both sides use them."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any


@cache
def onnx_runtime(file: Any) -> Callable:
    """ONNX Runtime, optimised at the highest level, which is its default."""
    import onnxruntime

    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    (entry,) = session.get_inputs()
    return lambda images: session.run(None, {entry.name: images})[0]


@cache
def open_vino(file: Any) -> Callable:
    """OpenVINO in float32; on processors with bfloat16 its default would be that."""
    import openvino

    settings = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
    model = openvino.Core().compile_model(file, "CPU", settings)
    return lambda images: model(images)[0]


ENGINES = {"onnxruntime": onnx_runtime, "openvino": open_vino}
"""By the name of the variant."""
