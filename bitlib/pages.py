"""What every page needs and nothing else does: a quiet start, versions, tables, and source code to read."""

from __future__ import annotations

import ast
import importlib.metadata
import inspect
import logging
import os
import platform
import textwrap
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from bitlib.progress import stderr_aside


def quiet() -> None:
    """Import TensorFlow and tensorflow-hub without what they write to stderr, which a page shows in red.

    TensorFlow's C++ code logs while it is imported, whatever its settings; tensorflow-hub 0.16 warns of the
    deprecated `pkg_resources`; TensorFlow's Python code warns a page that trains several models of tracing
    their graphs anew. Errors are raised and logged as ever.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    with stderr_aside(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import tensorflow as tf

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
        raise type(error)(f"parameter {name} of this page: {error}") from error


def versions(*packages: str) -> None:
    """Print the versions of Python and of packages, on one line."""
    found = [f"{package} {importlib.metadata.version(package)}" for package in packages]
    print(", ".join([f"Python {platform.python_version()}", *found]))


def listed(value) -> list:
    """A parameter that is a list, or what papermill's command line makes of one: `"[1, 2]"`, `"a, b"`."""
    if not isinstance(value, str):
        return list(value)
    try:
        found = ast.literal_eval(value)
    except (SyntaxError, ValueError):
        found = [part.strip(" '\"") for part in value.strip(" []()").split(",")]
    return [part for part in (found if isinstance(found, (list, tuple)) else [found]) if part != ""]


def readable(files: Sequence, most: int) -> dict[str, np.ndarray]:
    """The first pictures that can be read, by file name; prints what is not shown, and why.

    Args:
        files: paths of pictures.
        most: how many to read.

    Returns:
        uint8 `[H, W, 3]` by name; files of the same name in several folders are named with the folder.

    Raises:
        ValueError: none can be read.
    """
    from bitlib import images

    found: dict[str, np.ndarray] = {}
    for count, file in enumerate(map(Path, files), start=1):
        try:
            name = file.name if file.name not in found else f"{file.parent.name}/{file.name}"
            found[name] = images.read(file)
        except (ValueError, OSError) as error:
            print(f"left out: {error}")
        if len(found) == most:
            if count < len(files):
                print(f"the first {most} of {len(files)} pictures are shown")
            break
    if not found:
        raise ValueError(f"files: none of {len(files)} pictures can be read")
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
