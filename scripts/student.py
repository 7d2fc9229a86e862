"""Write the pages for a class: the exercises without answers, and no outputs.

    python scripts/student.py student

Answers stand between `### BEGIN SOLUTION` and `### END SOLUTION`, and the cells carry nbgrader's metadata, so
`nbgrader generate_assignment` leaves out the same. A page that is there already is not touched: it may be
filled in. Checks are closed. Links lead from page to page, wherever the folder is taken; others are text.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import nbformat
from nbformat import NotebookNode

PAGES = Path(__file__).parent.parent / "notebooks"
CLOSED = {"jupyter": {"source_hidden": True}, "cellView": "form", "_kg_hide-input": True}
"""Metadata that close a cell in JupyterLab, Colab and Kaggle."""
LINK = re.compile(r"\[([^\]]*)\]\((?!https?:|#)(?![\w.]+\.ipynb\))[^)]*\)")
ANSWER = re.compile(r"^( *)### BEGIN SOLUTION\n.*?^ *### END SOLUTION$", re.MULTILINE | re.DOTALL)


def handed_out(page: NotebookNode) -> NotebookNode:
    """A page as learners get it: answers are theirs to write, checks cannot be edited, nothing was run."""
    for cell in page.cells:
        tags = [tag for tag in cell.metadata.get("tags", []) if not tag.startswith("nbval")]
        cell.metadata.pop("tags", None)
        if tags:
            cell.metadata["tags"] = tags
        if cell.cell_type != "code":
            cell.source = LINK.sub(r"\1", cell.source)
            continue
        cell.outputs, cell.execution_count = [], None
        if "solution" in tags:
            cell.source = ANSWER.sub(r"\1# Your code here", cell.source)
            for closes in CLOSED:
                cell.metadata.pop(closes, None)
        elif "check" in tags:
            cell.metadata |= CLOSED | {"editable": False, "deletable": False}
    return page


def main() -> int:
    if len(sys.argv) != 2:
        print(__doc__)
        return 2
    folder = Path(sys.argv[1])
    pages = sorted(PAGES.glob("*.ipynb"))
    if there := [page.name for page in pages if (folder / page.name).exists()]:
        print(f"{folder}: {', '.join(there)} there already; move what is filled in, or name another folder")
        return 1
    folder.mkdir(parents=True, exist_ok=True)
    for page in pages:
        nbformat.write(handed_out(nbformat.read(page, 4)), folder / page.name)
    print(f"{folder}: {len(pages)} pages without answers")
    return 0


if __name__ == "__main__":
    sys.exit(main())
