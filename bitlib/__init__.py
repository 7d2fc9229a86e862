"""Learn, port and use BiT (Big Transfer) image models; Keras is imported when first needed (PEP 562)."""

import importlib
import importlib.abc
import importlib.util
import sys
import warnings

__version__ = "0.1.0"

_HOMES = {"CheckpointError": "checkpoint", "load": "checkpoint", "export": "savedmodel", "port": "savedmodel"}
_MODULES = (
    "checkpoint",
    "datasets",
    "distill",
    "features",
    "finetune",
    "formats",
    "hyperrule",
    "images",
    "jaxport",
    "labels",
    "model",
    "pages",
    "reference",
    "savedmodel",
    "zoo",
)
_MOVED = {
    "archive": "files.archive",
    "augment": "training.augment",
    "devices": "training.devices",
    "digests": "files.writing",
    "examples": "training.examples",
    "fetching": "files.fetching",
    "folders": "datasets.folders",
    "glyphs": "datasets.tasks",
    "graphs": "formats.graphs",
    "handles": "zoo",
    "layout": "files.layout",
    "litert": "formats.litert",
    "loop": "training.loop",
    "modelcard": "formats.modelcard",
    "onnx": "formats.onnx",
    "paths": "files.writing",
    "patience": "pages.patience",
    "plots": "pages.plots",
    "progress": "console",
    "resume": "training.loop",
    "serving": "formats.graphs",
    "settings": "files.fetching",
    "tables": "zoo",
    "tasks": "datasets.tasks",
    "tensors": "files.archive",
    "tfdatasets": "datasets.tfdatasets",
    "torchnames": "files.archive",
    "vtab": "pages.vtab",
    "writing": "files.writing",
}
"""Modules of earlier versions, and those that have what they had."""

__all__ = [*_HOMES, *_MODULES]


class _Moved(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Imports a module of an earlier version from where it is now."""

    def find_spec(self, name, path, target=None):
        package, _, old = name.partition(".")
        return importlib.util.spec_from_loader(name, self) if package == __name__ and old in _MOVED else None

    def exec_module(self, module):
        old = module.__name__
        new = f"{__name__}.{_MOVED[old.partition('.')[2]]}"
        warnings.warn(f"{old} is now {new}", DeprecationWarning, stacklevel=2)
        sys.modules[old] = importlib.import_module(new)


sys.meta_path.append(_Moved())


class _AfterKeras(importlib.abc.MetaPathFinder):
    """Makes Keras know our layers once somebody imports it, so that its `load_model` reads `.keras` files."""

    def find_spec(self, name, path, target=None):
        if name != "keras":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec and spec.loader:
            execute = spec.loader.exec_module

            def import_both(module):
                try:
                    execute(module)
                except ModuleNotFoundError as error:
                    other = "KERAS_BACKEND=tensorflow, jax or torch, set before Python starts, names another"
                    raise ImportError(f"Keras needs {_advice(error)}; {other}") from None
                importlib.import_module("bitlib.model")

            vars(spec.loader)["exec_module"] = import_both
        return spec


def _advice(error: ModuleNotFoundError) -> str:
    """The package that is not installed, and, of a backend, what brings it."""
    package = str(error.name).partition(".")[0]
    is_backend = package in ("tensorflow", "jax", "torch")
    brings = f"; pip install 'bitlib[{package}]' brings it" if is_backend else ""
    return f"{package}, which is not installed{brings}"


if "keras" in sys.modules:
    importlib.import_module("bitlib.model")
else:
    sys.meta_path.insert(0, _AfterKeras())


def __getattr__(name: str):
    try:
        if name in _MODULES or name in _MOVED:
            return importlib.import_module(f"bitlib.{name}")
        if name in _HOMES:
            return getattr(importlib.import_module(f"bitlib.{_HOMES[name]}"), name)
    except ModuleNotFoundError as error:
        raise ImportError(f"bitlib.{name} needs {_advice(error)}") from error
    raise AttributeError(f"module 'bitlib' has no attribute {name!r}")


def __dir__():
    return sorted([*globals(), *__all__])
