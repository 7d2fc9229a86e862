"""What every page needs and nothing else does: versions, tables, and the package's own source to read."""

from __future__ import annotations

import ast
import importlib.metadata
import inspect
import platform
import textwrap
from collections.abc import Iterable, Sequence


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


def source(*objects):
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
