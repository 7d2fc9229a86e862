"""Write each page as slides, with reveal.js beside them: they need no network.

    python scripts/slides.py build/slides

A heading begins a column of slides, each paragraph one below the last. A figure's cell shows the figure
alone, others show their code too. What prepares a page is left out, and so are answers and checks.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import nbconvert
import nbformat
import sphinx_revealjs
from nbconvert.preprocessors import TagRemovePreprocessor
from nbformat import NotebookNode

from bitlib.files import writing

ROOT = Path(__file__).parent.parent
TEMPLATES = ROOT / "scripts" / "html"
REVEAL = Path(sphinx_revealjs.__file__).parent / "_static" / "revealjs"
FIGURE = "figure"
"""The tag of cells whose code is not shown."""
LONGEST = 14
"""Lines of code and output that fit on a slide below a paragraph."""


def slide_type(cell: NotebookNode, prepared: bool) -> str:
    """Where a cell goes, in the words of nbconvert; `prepared`: the first section after set-up has begun."""
    if cell.cell_type == "markdown":
        return "slide" if cell.source.startswith(("# ", "## ")) else "subslide"
    if not prepared or {"solution", "check", "parameters"} & set(cell.metadata.get("tags", [])):
        return "skip"
    return "subslide" if lines(cell) > LONGEST and not shows_figure(cell) else "-"


def lines(cell: NotebookNode) -> int:
    """How many lines a code cell takes, with what it prints."""
    shown = [output.get("text") or output.get("data", {}).get("text/markdown", "") for output in cell.outputs]
    return len("\n".join([cell.source, *shown]).splitlines())


def shows_figure(cell: NotebookNode) -> bool:
    """Whether a picture is among the outputs of a cell."""
    return any("image/png" in output.get("data", {}) for output in cell.get("outputs", []))


def slides(page: NotebookNode) -> str:
    """A page with stored outputs -> HTML that loads `reveal.js/` beside it."""
    prepared = False
    for cell in page.cells:
        prepared = prepared or (cell.source.startswith("## ") and cell.source[3:17] != "The parameters")
        cell.metadata["slideshow"] = {"slide_type": slide_type(cell, prepared)}
        if cell.cell_type == "code" and shows_figure(cell):
            cell.metadata["tags"] = [*cell.metadata.get("tags", []), FIGURE]
    exporter = nbconvert.SlidesExporter(
        template_name="slides",
        extra_template_basedirs=[str(TEMPLATES)],
        extra_template_paths=[str(TEMPLATES)],
        reveal_url_prefix="reveal.js",
        reveal_theme="white",  # its fonts are local
    )
    exporter.register_preprocessor(
        TagRemovePreprocessor(remove_input_tags={FIGURE}, enabled=True), enabled=True
    )
    return exporter.from_notebook_node(page)[0]


def is_slides(folder: Path) -> str | None:
    """Why a folder must not be replaced: None for slides, or an empty folder."""
    if not any(folder.iterdir()) or (folder / "reveal.js").is_dir():
        return None
    return "it holds something else than slides"


def main() -> int:
    if len(sys.argv) != 2:
        print(__doc__)
        return 2
    output = Path(sys.argv[1])
    output.parent.mkdir(parents=True, exist_ok=True)
    with writing.replacing(output, is_slides) as folder:
        shutil.copytree(REVEAL, folder / "reveal.js", ignore=shutil.ignore_patterns("*.map"))
        for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
            page = nbformat.read(path, 4)
            page.metadata["title"] = page.cells[0].source.splitlines()[0].removeprefix("# ")
            (folder / f"{path.stem}.html").write_text(slides(page), encoding="utf-8")
    print(f"open {output / '00_big_transfer.html'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
