"""Progress bars: text in a terminal, HTML on a Jupyter page."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tqdm import tqdm


class _OnPage(tqdm):
    """tqdm as an output of its cell; its text would go to stderr, which Jupyter shows in red."""

    def __init__(self, *args, **kwargs):
        self._output = None
        super().__init__(*args, **kwargs, file=io.StringIO())

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        """Draw the bar, or redraw it; an empty message, which closes it, empties the output."""
        from IPython.display import HTML, display

        state = self.format_dict
        words = [f"{state['prefix'] or ''}", f"{state['n']:,} of {state['total'] or '?':,} {state['unit']}s"]
        bar = f'<progress max="{state["total"] or 0}" value="{state["n"]}"></progress>'
        drawn = HTML("" if msg == "" else f"{bar} {' '.join(words).strip()} {state['postfix'] or ''}")
        if self._output is None:
            self._output = display(drawn, display_id=True)
        else:
            self._output.update(drawn)


def bar(total: int | None, unit: str, initial: int = 0, shown: bool = True, **kwargs: Any) -> tqdm:
    """A progress bar as `tqdm.tqdm` makes it, its unit in the singular; not `shown`, it draws nothing."""
    kwargs |= {"total": total, "unit": unit, "initial": initial, "disable": not shown}
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython else None
    if shown and shell is not None and "IPKernelApp" in shell.config:  # a Jupyter kernel, or Colab's
        return _OnPage(**kwargs | {"leave": False})
    return tqdm(**kwargs)


@contextmanager
def stderr_aside() -> Iterator[None]:
    """Discard what is written to file descriptor 2, by C++ code too."""
    saved = os.dup(2)
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
