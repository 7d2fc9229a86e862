"""What scripts/publish.py writes: links of the right form, and pages that bring the package with them."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).parent.parent
ADDRESS = "https://github.com/someone/bit-pages"


def publish(folder, *options):
    command = [sys.executable, ROOT / "scripts" / "publish.py", *options, folder]
    return subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    folder = tmp_path_factory.mktemp("published")
    done = publish(folder, "--repository", ADDRESS + ".git", "--branch", "v1")
    assert done.returncode == 0, done.stderr
    return folder


def test_every_link_leads_to_a_file_of_the_repository(published):
    pages = sorted((published / "notebooks").glob("*.ipynb"))
    assert len(pages) == len(list((ROOT / "notebooks").glob("*.ipynb")))
    texts = {
        page: "".join(cell.source for cell in nbformat.read(page, 4).cells if cell.cell_type == "markdown")
        for page in pages
    }
    texts[published / "README.md"] = (published / "README.md").read_text()
    for path, text in texts.items():
        targets = re.findall(r"\]\((?!https?:|#)([^)]+)\)", text)
        assert targets == [], path
        own = re.findall(rf"{ADDRESS}/(blob|tree|raw)/v1/([^)#\s]+)", text)
        assert own, path
        for kind, target in own:
            assert (ROOT / target).is_dir() if kind == "tree" else (ROOT / target).is_file(), target


def test_every_page_opens_everywhere(published):
    for path in sorted((published / "notebooks").glob("*.ipynb")):
        opening = nbformat.read(path, 4).cells[0].source
        page = f"someone/bit-pages/blob/v1/notebooks/{path.name}"
        assert f"(https://colab.research.google.com/github/{page})" in opening
        assert f"(https://kaggle.com/kernels/welcome?src=https://github.com/{page})" in opening
        assert f"(https://mybinder.org/v2/gh/someone/bit-pages/v1?labpath=notebooks/{path.name})" in opening
        assert f"github/{page}" in (published / "README.md").read_text()


def test_pages_are_otherwise_as_they_are(published):
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        ours, theirs = (
            nbformat.read(path, 4).cells,
            nbformat.read(published / "notebooks" / path.name, 4).cells,
        )
        changed = [a for a, b in zip(ours, theirs, strict=True) if a.cell_type == "code" and a != b]
        assert [cell.metadata.tags for cell in changed] == [["install"]]


@pytest.mark.slow
def test_hand_outs_lead_to_themselves(tmp_path):
    student = tmp_path / "student"
    subprocess.run([sys.executable, ROOT / "scripts" / "student.py", student], check=True)
    done = publish(tmp_path / "out", "--repository", ADDRESS, "--pages", str(student))
    assert done.returncode == 0, done.stderr
    pages = sorted((tmp_path / "out" / "student").glob("*.ipynb"))
    assert len(pages) == len(list((ROOT / "notebooks").glob("*.ipynb")))
    for path in pages:
        page = nbformat.read(path, 4)
        assert f"someone/bit-pages/blob/main/student/{path.name})" in page.cells[0].source
        assert f'ADDRESS = "git+{ADDRESS}@main"' in "".join(cell.source for cell in page.cells)
        assert "BEGIN SOLUTION" not in "".join(cell.source for cell in page.cells)


def test_no_address(tmp_path):
    done = publish(tmp_path)
    assert done.returncode == 2
    assert "--repository: expected an address such as" in done.stderr
    assert not list(tmp_path.iterdir())


# The first cell, run in an environment that has everything but this package.


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    """A Python that has the installed packages, less ours."""
    folder = tmp_path_factory.mktemp("bare")
    venv.create(folder, with_pip=False, symlinks=True)
    python = folder / "bin" / "python"
    for path in Path(sysconfig.get_paths()["purelib"]).iterdir():
        if "bitlib" not in path.name:
            (library(python) / path.name).symlink_to(path)
    return python


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """Page 02, published for a copy of this repository at a local address."""
    copy = tmp_path_factory.mktemp("repository") / "bit"
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if listed.returncode:
        pytest.skip("this is not a clone: git does not know its files")
    for name in listed.stdout.splitlines():
        if (ROOT / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, copy / name)
    for command in (["init", "-q", "-b", "main"], ["add", "-A"], ["commit", "-qm", "all"]):
        who = ["-c", "user.name=a", "-c", "user.email=a@b"]
        subprocess.run(["git", *who, *command], cwd=copy, check=True)
    folder = tmp_path_factory.mktemp("out")
    assert publish(folder, "--repository", copy.as_uri()).returncode == 0
    return folder / "notebooks" / "02_inference.ipynb"


def run(python, page, tmp_path, cells=None, **environment):
    """The code of a page as a script, in that environment, as nbconvert would write it."""
    code = [cell.source for cell in nbformat.read(page, 4).cells if cell.cell_type == "code"][:cells]
    script = tmp_path / "page.py"
    script.write_text("\n\n".join(code))
    clean = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")}
    # As on a machine without an index: hatchling is taken from what is installed.
    offline = {"PIP_NO_INDEX": "1", "PIP_NO_BUILD_ISOLATION": "0", "MPLBACKEND": "agg"}
    return subprocess.run(
        [str(python), str(script)], capture_output=True, text=True, check=False, cwd=tmp_path,
        env=clean | offline | environment,
    )  # fmt: skip


def test_at_home_nothing_is_installed(bare, page, tmp_path):
    (tmp_path / "bitlib").mkdir()  # as an editable install leaves one behind: it is no package
    done = run(bare, page, tmp_path, cells=1)
    assert "ModuleNotFoundError: bitlib is not installed; README.md says how" in done.stderr


def test_where_the_package_cannot_be_fetched(bare, page, tmp_path):
    broken = tmp_path / "02.ipynb"
    broken.write_text(page.read_text().replace("git+file://", "git+file:///nowhere"))
    done = run(bare, broken, tmp_path, cells=1, COLAB_RELEASE_TAG="release")
    assert "ConnectionError: bitlib cannot be installed; is there a network? pip says: " in done.stderr


@pytest.mark.slow
def test_a_guest_brings_the_package_and_runs_whole(bare, page, tmp_path):
    before = listed(bare)
    done = run(bare, page, tmp_path, COLAB_RELEASE_TAG="release")
    assert done.returncode == 0, done.stderr[-2000:]
    assert "installed: bitlib, from git+file://" in done.stdout
    assert "are refused, at the price of " in done.stdout
    assert listed(bare) - before == {"bitlib"}
    again = run(bare, page, tmp_path, cells=1, COLAB_RELEASE_TAG="release")
    assert (again.returncode, again.stdout) == (0, "")


def library(python):
    """Where that Python's own packages are."""
    return next((python.parent.parent / "lib").glob("python*")) / "site-packages"


def listed(python):
    """The packages of the environment's own folder."""
    return {path.name.split("-")[0] for path in library(python).glob("*.dist-info")}
