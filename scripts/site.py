"""Build the site: the pages with their stored outputs, the reference, the guides.

    python scripts/site.py build/site

Nothing is run, and nothing on the site comes from another: it works from a folder, without a network.
"""

from __future__ import annotations

import argparse
import base64
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import nbformat
import play

from bitlib import writing

ROOT = Path(__file__).parent.parent
GUIDES = ["README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "THIRD_PARTY.md", "data/README.md"]
ATTACHED = ["CITATION.cff", "environment.yml", "constraints.txt", "pyproject.toml", "LICENSE"]


def figures(page: nbformat.NotebookNode) -> list:
    """The outputs of a page that are pictures."""
    outputs = [output for cell in page.cells for output in cell.get("outputs", [])]
    return [output for output in outputs if "image/png" in output.get("data", {})]


def readable(page: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """A page for MyST-NB: answers closed, figures with their text alternatives and widths."""
    for cell in page.cells:
        tags = cell.metadata.setdefault("tags", [])
        closed = ["hide-cell"] * ("solution" in tags)
        closed += ["hide-input"] * bool({"install", "setup"} & set(tags))
        cell.metadata["tags"] = tags + closed
        for output in cell.get("outputs", []):
            if "image/png" in output.get("data", {}):
                told = output.metadata["image/png"]
                cell.metadata["mystnb"] = {"image": {"alt": told["alt"], "width": f"{told['width']}px"}}
    return page


def gallery(source: Path) -> str:
    """A card for each page: its first figure, its title, what one has at its end."""
    cards = []
    rows = re.findall(
        r"^\| \[(.+?)\]\(notebooks/(.+?)\.ipynb\) \| (.+?) \|$", (ROOT / "README.md").read_text(), re.M
    )
    for title, name, result in rows:
        figure = figures(nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", 4))[0]
        (source / "_static" / f"{name}.png").write_bytes(base64.b64decode(figure.data["image/png"]))
        alt = figure.metadata["image/png"]["alt"].split(". ")[0]
        cards.append(
            f":::{{grid-item-card}} {title}\n:link: notebooks/{name}\n:link-type: doc\n"
            f":img-top: _static/{name}.png\n:img-alt: {alt}\n\n{result}\n:::"
        )
    return "::::{grid} 1 1 2 2\n:gutter: 3\n\n" + "\n".join(cards) + "\n::::"


def reference(source: Path) -> None:
    """A page for each module of the package, in the order of the layers, and one that lists them."""
    contributing = (ROOT / "CONTRIBUTING.md").read_text()
    layers = re.search(r"```text\n(pages .*?)```", contributing, re.S)[1]
    names = [name for line in layers.splitlines() for name in re.split(r"\s{2,}", line)[0].split(" · ")]
    folder = source / "api"
    folder.mkdir()
    for name in names:
        rst = f".. automodule:: bitlib.{name}\n   :members:\n   :ignore-module-all:\n"
        rst += "   :exclude-members: Described\n" if name == "plots" else ""  # it has matplotlib's docstrings
        (folder / f"{name}.md").write_text(f"# bitlib.{name}\n\n```{{eval-rst}}\n{rst}```\n")
    listed = "\n".join(names)
    surface = ".. automodule:: bitlib\n"
    (folder / "index.md").write_text(
        f"# Reference\n\n```{{eval-rst}}\n{surface}```\n\nModules import those below them only.\n\n"
        f"```{{toctree}}\n{listed}\n```\n"
    )


def can_play(source: Path) -> bool:
    """Put the page that one draws on there, with what it loads; where that cannot be had, say why."""
    try:
        play.build(source / "extra" / "play")
    except play.Missing as missing:
        print(f"the page that one draws on is left out: {missing}", file=sys.stderr)
        return False
    shutil.copy(ROOT / "docs" / "site" / "play.md", source)
    return True


def assemble(source: Path) -> None:
    """Everything that Sphinx reads, in one folder; files lie as in the repository, so links hold."""
    for folder in ("notebooks", "data", "docs"):
        (source / folder).mkdir()
    shutil.copytree(ROOT / "docs" / "site" / "_static", source / "_static")
    shutil.copy(ROOT / "docs" / "site" / "conf.py", source)
    ignored = shutil.ignore_patterns("__pycache__", "data")
    for folder in ("bitlib", "scripts", "benchmarks", "tests"):  # what pages and guides link to
        shutil.copytree(ROOT / folder, source / folder, ignore=ignored)
    for file in [*GUIDES, *ATTACHED, *(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.*"))]:
        shutil.copy(ROOT / file, source / file)
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        nbformat.write(readable(nbformat.read(path, 4)), source / "notebooks" / path.name)
    (source / "extra").mkdir()
    index = (ROOT / "docs" / "site" / "index.md").read_text().replace("../overview.png", "docs/overview.png")
    if not can_play(source):
        index = re.sub(r"^(play|- \*\*To play.*)\n", "", index, flags=re.M)
    (source / "index.md").write_text(index.replace("GALLERY", gallery(source)))
    reference(source)


def accessible(html: str) -> str:
    """What Sphinx leaves out for screen readers and keyboards: a heading's level, a focus to scroll by."""
    html = html.replace('role="heading">', 'role="heading" aria-level="2">')
    return re.sub(r'<(pre|div class="table-wrapper[^"]*")>', r'<\1 tabindex="0">', html)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("output", type=Path)
    options = parser.parse_args()
    options.output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, writing.replacing(options.output, is_site) as site:
        assemble(Path(folder))
        command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-d", f"{folder}/_build"]
        done = subprocess.run([*command, folder, str(site)], check=False)
        if done.returncode:
            raise SystemExit(done.returncode)
        for page in site.rglob("*.html"):
            page.write_text(accessible(page.read_text()))
    print(f"open {options.output / 'index.html'}")
    return 0


def is_site(folder: Path) -> str | None:
    """Why a folder must not be replaced: None for a site, or an empty folder."""
    if not any(folder.iterdir()) or (folder / "objects.inv").is_file():
        return None
    return "it holds something else than a site"


if __name__ == "__main__":
    sys.exit(main())
