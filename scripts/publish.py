"""Write the pages and the README as they are to be read at a public address.

    python scripts/publish.py --repository https://github.com/OWNER/NAME OUT
    python scripts/publish.py --repository file:///a/clone --branch main OUT
    python scripts/publish.py --repository https://github.com/OWNER/NAME --pages student OUT

Pages then install the package from that address where it is missing; on GitHub they get badges that open them
in Colab, Kaggle and Binder, and links to files lead to the repository. Without `--repository` the address is
`Repository` of `[project.urls]` in pyproject.toml.
"""

from __future__ import annotations

import argparse
import posixpath
import re
import tomllib
from pathlib import Path

import nbformat

ROOT = Path(__file__).parent.parent
LINK = re.compile(r"(!?)\[([^\]]*)\]\((?!https?:|#|mailto:)([^)#\s]+)(#[^)\s]*)?\)")


def badges(repository: str, branch: str, page: str) -> str:
    """Links that open a page (`notebooks/…`) in Colab, Kaggle and Binder; none for what is not on GitHub."""
    found = re.fullmatch(r"https://github\.com/([^/]+/[^/]+)", repository)
    if not found:
        return ""
    name = found[1]
    hosts = {
        "Colab": f"https://colab.research.google.com/github/{name}/blob/{branch}/{page}",
        "Kaggle": f"https://kaggle.com/kernels/welcome?src={repository}/blob/{branch}/{page}",
        "Binder": f"https://mybinder.org/v2/gh/{name}/{branch}?labpath={page}",
    }
    return " · ".join(f"[Open in {host}]({address})" for host, address in hosts.items())


def linked(text: str, folder: str, repository: str, branch: str) -> str:
    """Markdown with its relative links, which start from a folder of the repository, made absolute.

    Raises:
        FileNotFoundError: a link leads to no file.
    """
    if not repository.startswith("https://"):
        return text

    def absolute(match):
        picture, words, target, anchor = match.groups()
        path = posixpath.normpath(posixpath.join(folder, target))
        source = posixpath.normpath(posixpath.join("notebooks", target)) if folder else path
        if not (ROOT / source).exists():  # hand-outs are named as the pages that they are made of
            raise FileNotFoundError(f"{target}, linked in {folder or '.'}/: no such file in the repository")
        kind = "raw" if picture else "tree" if (ROOT / source).is_dir() else "blob"
        return f"{picture}[{words}]({repository}/{kind}/{branch}/{path}{anchor or ''})"

    return LINK.sub(absolute, text)


def published(path: Path, repository: str, branch: str) -> nbformat.NotebookNode:
    """A page for that address, in a folder of the same name: the same cells, outputs and counts."""
    page = nbformat.read(path, 4)
    for cell in page.cells:
        if cell.cell_type == "markdown":
            cell.source = linked(cell.source, path.parent.name, repository, branch)
        elif "install" in cell.metadata.get("tags", []):
            cell.source = cell.source.replace('ADDRESS = ""', f'ADDRESS = "git+{repository}@{branch}"')
    title, rest = page.cells[0].source.split("\n", 1)
    if opens := badges(repository, branch, f"{path.parent.name}/{path.name}"):
        page.cells[0].source = f"{title}\n\n{opens}\n{rest}"
    return page


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("--repository")
    parser.add_argument("--branch", default="main")
    parser.add_argument("--pages", type=Path, default=ROOT / "notebooks", help="student, for hand-outs")
    options = parser.parse_args()
    urls = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"].get("urls", {})
    repository = (options.repository or urls.get("Repository", "")).removesuffix("/").removesuffix(".git")
    if not re.match(r"(https|file|ssh)://", repository):
        wanted = "an address such as https://github.com/OWNER/NAME"
        parser.error(f"--repository: expected {wanted}, received {repository!r}")
    folder = options.output / options.pages.resolve().name
    folder.mkdir(parents=True, exist_ok=True)
    for path in sorted(options.pages.resolve().glob("*.ipynb")):
        nbformat.write(published(path, repository, options.branch), folder / path.name)
    readme = linked((ROOT / "README.md").read_text(), "", repository, options.branch)
    readme = readme.replace("https://github.com/OWNER/NAME", repository)
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        opens = badges(repository, options.branch, f"notebooks/{path.name}")
        address = f"({repository}/blob/{options.branch}/notebooks/{path.name}) |"
        readme = readme.replace(address, f"{address[:-2]} ({opens}) |" if opens else address)
    (options.output / "README.md").write_text(readme)
    print(f"{options.output}: README.md and the pages, for {repository}, branch {options.branch}")


if __name__ == "__main__":
    main()
