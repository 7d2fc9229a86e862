"""Learn, port and use BiT (Big Transfer) image models.

`import bitlib` loads neither TensorFlow nor Keras: what needs them is imported when first used
(PEP 562), so looking something up in the catalogue takes milliseconds.
"""

import importlib

__version__ = "0.1.0"

_HOMES = {
    "CheckpointError": "checkpoint",
    "load": "checkpoint",
    "export": "savedmodel",
    "port": "savedmodel",
}
_MODULES = (
    "augment",
    "checkpoint",
    "datasets",
    "distill",
    "features",
    "finetune",
    "hyperrule",
    "images",
    "jaxport",
    "labels",
    "litert",
    "model",
    "patience",
    "plots",
    "reference",
    "savedmodel",
    "zoo",
)
__all__ = [*_HOMES, *_MODULES]


def __getattr__(name: str):
    if name in _MODULES:
        return importlib.import_module(f"bitlib.{name}")
    if name in _HOMES:
        return getattr(importlib.import_module(f"bitlib.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'bitlib' has no attribute {name!r}")


def __dir__():
    return sorted([*globals(), *__all__])
