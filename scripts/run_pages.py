"""Run every page from top to bottom with papermill, and say how long each took.

    python scripts/run_pages.py build        write the executed pages to build/
    python scripts/run_pages.py notebooks    store the outputs in the pages themselves
    python scripts/run_pages.py notebooks 02 04      only those pages

The second is for maintainers, after a change to a page: outputs are stored, timings and other traces of
the run are not. A page fails if a cell fails or writes to stderr; the stored page is then as it was.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import nbformat
import papermill
from tqdm import tqdm

PAGES = Path(__file__).parent.parent / "notebooks"
KEPT = ("tags", "jupyter", "cellView", "_kg_hide-input", "nbgrader")
"""Metadata of cells that stay: the second to fourth close one in JupyterLab, Colab and Kaggle."""


def strip_traces(page: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Keep sources, outputs, counts and tags; drop what shows when, where and by whom it was run."""
    page.metadata = nbformat.from_dict(
        {
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
        }
    )
    for cell in page.cells:
        kept = {key: cell.metadata[key] for key in KEPT if cell.metadata.get(key)}
        cell.metadata = nbformat.from_dict(kept)
        if cell.cell_type == "code":
            # A progress bar that is done leaves an empty output.
            cell.outputs = [
                output for output in cell.outputs if output.get("data", {}).get("text/html") != ""
            ]
            for output in cell.outputs:
                output.pop("transient", None)
    return page


def complaints(page: nbformat.NotebookNode) -> str:
    """What the cells of an executed page wrote to stderr, which JupyterLab shows in red."""
    outputs = [output for cell in page.cells for output in cell.get("outputs", [])]
    return "".join(output.text for output in outputs if output.get("name") == "stderr")


def main() -> int:
    if len(sys.argv) < 2:
        print(__doc__)
        return 2
    folder = Path(sys.argv[1]).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    # What kernels and TensorFlow log goes to a file; the terminal is for progress.
    log = folder / ".run_pages.log"
    sys.stderr = os.fdopen(os.dup(2), "w", buffering=1)
    os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644), 2)
    in_place = folder == PAGES.resolve()
    results, failed = [], False
    pages = sorted(page for page in PAGES.glob("*.ipynb") if page.name.startswith(tuple(sys.argv[2:]) or ""))
    for page in tqdm(pages, desc="pages", unit="page"):
        started = time.perf_counter()
        output = folder / (f".{page.name}.partial" if in_place else page.name)
        try:
            papermill.execute_notebook(
                str(page), str(output), cwd=str(folder), kernel_name="python3", coalesce_streams=True
            )
            executed = nbformat.read(output, 4)
            outcome = "passed"
            if text := complaints(executed):
                outcome, failed = f"FAILED, it wrote to stderr: {text.strip().splitlines()[0][:200]}", True
            elif in_place:
                nbformat.write(strip_traces(executed), output)
                output.replace(page)
        except papermill.PapermillExecutionError as error:
            outcome, failed = f"FAILED in cell {error.exec_count}: {error.ename}: {error.evalue}", True
        finally:
            if in_place:
                output.unlink(missing_ok=True)
        results.append((page.name, time.perf_counter() - started, outcome))
    print()
    for name, seconds, outcome in results:
        print(f"{name:<32} {seconds:6.1f} s  {outcome}")
    print(f"{'together':<32} {sum(seconds for _, seconds, _ in results):6.1f} s  in {folder.name}/")
    if failed:
        print(f"what the kernels logged is in {log}")
    else:
        log.unlink()
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
