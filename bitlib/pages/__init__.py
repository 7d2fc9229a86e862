"""Needed by pages only: a quiet start, parameters, versions, tables, source code."""

from __future__ import annotations

import ast
import importlib.metadata
import inspect
import logging
import math
import numbers
import os
import platform
import re
import textwrap
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from bitlib import checkpoint, images, zoo
from bitlib.console import stderr_aside
from bitlib.datasets import tasks
from bitlib.datasets.tfdatasets import builder_of


def quiet() -> None:
    """Import TensorFlow and tensorflow-hub without their logs and warnings, which a page shows in red."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    with stderr_aside(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import tensorflow as tf

        tf.config.list_physical_devices()  # looks for CUDA, and says so where JAX was imported before
        tf.get_logger().setLevel("ERROR")
        with suppress(ImportError):  # a page that needs it says so at its own import
            import tensorflow_hub  # noqa: F401
    # Not by the level, which saving resets: what comes through JAX has no second derivatives.
    logging.getLogger("absl").addFilter(lambda record: "unsaved custom gradients" not in str(record.msg))


@contextmanager
def parameter(name: str) -> Iterator[None]:
    """A context in which an error about a value begins with the page's parameter that it came from."""
    try:
        yield
    except (ValueError, OSError) as error:
        kind = ValueError if isinstance(error, ValueError) else type(error)  # Unicode's take other arguments
        raise kind(f"parameter {name} of this page: {error}") from error


@contextmanager
def check(*answers: Any) -> Iterator[None]:
    """A context for the checks of an exercise; without an answer it prints so, or fails under nbgrader."""
    if not any(answer is None or answer is ... for answer in answers):
        yield
        return
    with suppress(Exception):  # whatever the checks make of no answer
        yield
    if "NBGRADER_EXECUTION" in os.environ:
        raise AssertionError("not answered yet")
    print("not answered yet")


def versions(*packages: str) -> None:
    """Print the versions of Python and of packages, on one line."""
    found = [f"{package} {importlib.metadata.version(package)}" for package in packages]
    print(f"Python {platform.python_version()}", *found, sep=", ")


def read(page: dict[str, Any], **kinds: Callable[[Any], Any]) -> None:
    """Read the parameters of a page, as they are written there or as papermill's command line passes them.

    Args:
        page: `globals()` of the page; what was read replaces what is there.
        kinds: for each parameter one of the functions below, which returns the value or raises an error.
    """
    for name, kind in kinds.items():
        with parameter(name):
            page[name] = kind(page[name])


def text(value) -> str:
    """A text, also one that papermill took for a number; None for an empty one."""
    if value is None or (isinstance(value, str) and value == "None"):
        return ""
    if isinstance(value, bool) or not isinstance(value, (str, os.PathLike, numbers.Real)):
        raise ValueError(f"expected text, received {value!r}")
    return str(value)


def folder(value) -> str:
    """A folder to write to."""
    path = os.path.expanduser(text(value))
    if not path or os.path.isfile(path):
        raise ValueError(f"expected a folder to write to, received {value!r}")
    return path


def switch(value) -> bool:
    """True or False."""
    found = _literal(value)
    if not isinstance(found, (bool, np.bool_, int, float)) or found not in (0, 1):
        raise ValueError(f"expected true or false, received {value!r}")
    return bool(found)


def number(
    least: float = 0, most: float = 2**31 - 1, what: str = "a number", of: type = float, also: tuple = ()
) -> Callable[[Any], Any]:
    """A number in a range, or one of `also`, as a type `of` numbers; None for 0."""

    def kind(value):
        found: Any = 0 if _literal(value) is None else _literal(value)
        is_one: bool = isinstance(found, numbers.Real) and not isinstance(found, bool)
        if is_one and (least <= found <= most or found in also) and of(found) == found:
            return of(found)
        limits = f"from {least} to {most:,}" if most < 2**31 - 1 else f"at least {least}"
        raise ValueError(f"expected {what}, {limits}, received {value!r}")

    return kind


whole = partial(number, what="a whole number", of=int)
"""A whole number in a range: arguments as of `number`."""

pixels = number(32, 2048, "0, or a whole number of pixels", int, also=(0,))
"""A height and width in pixels, or 0 for the model's own."""


def several(kind: Callable[[Any], Any]) -> Callable[[Any], list]:
    """A list of values of a kind, one at least."""
    return lambda value: [kind(item) for item in _listed(value) or [value]]


def input_range(value) -> tuple[float, float]:
    """The least and the largest value that a model is fed."""
    with suppress(ValueError, TypeError):
        low, high = map(float, _listed(value))
        if -math.inf < low < high < math.inf:
            return low, high
    raise ValueError(f"expected two numbers, such as [-1, 1] or [0, 1], received {value!r}")


def head(value) -> Any:
    """`"keep"`, a number of classes, or a list of their names."""
    found, names = _literal(value), _listed(value)
    found = found if isinstance(found, numbers.Real) else "keep" if names == ["keep"] else names
    checkpoint._checked_head(found)
    return found


def sources(value) -> list[str]:
    """A list of what `bitlib.port` takes, or of collections; may be empty. No file is fetched yet."""
    names = [text(item) for item in _listed(value)]
    for name in names:
        if not zoo.is_collection(name) and zoo.path_of(name):
            checkpoint.find(name)
    return names


def data_set(data_dir: Any = None) -> Callable[[Any], str]:
    """A name or a folder, as `bitlib.datasets.labelled` takes it. Its pictures are not read yet."""

    def kind(value) -> str:
        name = os.path.expanduser(text(value))
        if name not in (*tasks.TASKS, "glyphs") and not os.path.isdir(name):
            os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # as `quiet`, which has not been called yet
            try:
                with stderr_aside():
                    builder_of(name, text(data_dir) or None)
            except Exception as error:  # TFDS raises a dozen kinds
                known = f"one of {', '.join(tasks.TASKS)}, a folder, or a name of TensorFlow Datasets"
                where = f"there is no such folder in {os.getcwd()}, and {error}"
                raise ValueError(f"expected {known}, received {value!r}; {where}") from error
        return name

    return kind


def pictures(most: int) -> Callable[[Any], dict[str, np.ndarray]]:
    """Picture files, or folders of them, as `readable` reads them; none if nothing is given."""

    def is_there(path: str) -> bool:
        return os.path.exists(os.path.expanduser(path))

    def kind(value) -> dict[str, np.ndarray]:
        files: list = []
        for path in map(text, _listed(value, is_there)):
            if not is_there(path):
                where = f"there is no {path} in {os.getcwd()}"
                raise FileNotFoundError(f"expected pictures or a folder of them, received {value!r}; {where}")
            path = os.path.expanduser(path)
            files += images.files(path) if os.path.isdir(path) else [path]
        return readable(files, most) if files else {}

    return kind


def _literal(value):
    """The value that a text stands for; the text itself if it stands for nothing else."""
    words = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False, "none": None}
    if isinstance(value, str):
        word = value.strip().lower()
        with suppress(SyntaxError, ValueError, MemoryError, RecursionError):
            return words[word] if word in words else ast.literal_eval(value.strip())
    return value


def _listed(value, is_one: Callable[[str], bool] = lambda text: False) -> list:
    """The items of a list, however it is written; what `is_one` is not parted at its commas."""
    found = value if isinstance(value, str) and is_one(value) else _literal(value)
    if isinstance(value, str) and not isinstance(found, (list, tuple)):
        inner = re.fullmatch(r"\s*[\[(](.*)[\])]\s*", value, re.DOTALL)
        parts, found = (inner[1] if inner else value).split(","), []
        while parts:
            lengths = range(len(parts), 1, -1)
            length = next((n for n in lengths if is_one(",".join(parts[:n]).strip())), 1)
            found.append(",".join(parts[:length]).strip(" '\""))
            parts = parts[length:]
    if not isinstance(found, Iterable) or isinstance(found, (bytes, dict)):
        found = [] if found is None else [found]
    return [item for item in found if item is not None and str(item) not in ("", "None")]


def readable(files: Sequence, most: int) -> dict[str, np.ndarray]:
    """The first pictures that can be read, uint8 `[H, W, 3]` by file name; prints what is not shown, and why.

    Raises: ValueError, if none can be read.
    """
    found: dict[str, np.ndarray] = {}
    reason: Exception | None = None
    for count, file in enumerate(map(Path, files), start=1):
        try:
            name = file.name if file.name not in found else f"{file.parent.name}/{file.name}"
            found[name] = images.read(file)
        except (ValueError, OSError) as error:
            reason = reason or error
            print(f"left out: {error}")
        if len(found) == most:
            if count < len(files):
                print(f"the first {most} of {len(files)} pictures are shown")
            break
    if not found:
        raise ValueError(f"files: none of {len(files)} pictures can be read; {reason}")
    return found


def source(*objects: Any) -> Any:
    """The real source of functions or classes, highlighted, as a page's output."""
    from IPython.display import Markdown

    code = "\n\n".join(textwrap.dedent(inspect.getsource(thing)).rstrip() for thing in objects)
    return Markdown(f"```python\n{code}\n```")


def table(header: Sequence[str], rows: Iterable[Sequence]):
    """A table as a page's output; numbers are aligned to the right."""
    from IPython.display import Markdown

    rows = [list(row) for row in rows]
    numeric = [all(isinstance(row[i], (int, float)) for row in rows) for i in range(len(header))]
    lines = [header, ["---:" if right else ":---" for right in numeric]]
    lines += [[f"{cell:,}" if isinstance(cell, int) else str(cell) for cell in row] for row in rows]
    return Markdown("\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines))
