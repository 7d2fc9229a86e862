"""Ways out of the package: graphs of TensorFlow, ONNX, LiteRT; what they say of a model."""

import importlib


def __getattr__(name: str):
    if name in ("graphs", "litert", "modelcard", "onnx"):
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module 'bitlib.formats' has no attribute {name!r}")
