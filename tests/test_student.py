"""Hand-outs: nothing of an answer in them, the same as nbgrader makes, never over a learner's own."""

import itertools
import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).parent.parent
PAGES = sorted((ROOT / "notebooks").glob("*.ipynb"))


def write(folder):
    command = [sys.executable, ROOT / "scripts" / "student.py", folder]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def cells(path, tag):
    return [cell for cell in nbformat.read(path, 4).cells if tag in cell.metadata.get("tags", [])]


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    folder = tmp_path_factory.mktemp("class") / "student"
    done = write(folder)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
class TestPages:
    def test_exercises_are_few_and_marked_by_difficulty(self, page):
        text = "\n".join(c.source for c in nbformat.read(page, 4).cells if c.cell_type == "markdown")
        marks = re.findall(r"^### Exercise (\d) (★+)$", text, re.M)
        assert [int(number) for number, _ in marks] == list(range(1, len(marks) + 1))
        assert (1 if page.name.startswith("00") else 2) <= len(marks) <= 4
        assert max(len(stars) for _, stars in marks) <= 3
        assert len(cells(page, "solution")) == len(marks)

    def test_each_answer_is_followed_by_its_check(self, page):
        code = [cell for cell in nbformat.read(page, 4).cells if cell.cell_type == "code"]
        for answer, check in itertools.pairwise(code):
            if "solution" in answer.metadata.get("tags", []):
                assert "check" in check.metadata.tags
                number = re.match(r"# @title Answer to exercise (\d)\n", answer.source)[1]
                assert check.source.startswith(f"# Check of exercise {number}")
                assert re.search(r"^ *assert .+", check.source, re.M)

    def test_no_word_of_an_answer(self, page, student):
        handed = nbformat.read(student / page.name, 4)
        nbformat.validate(handed)
        text = "\n".join(cell.source for cell in handed.cells)
        assert "SOLUTION" not in text
        assert not any(cell.get("outputs") for cell in handed.cells)
        for cell in cells(page, "solution"):
            for answer in re.findall(r"### BEGIN SOLUTION\n(.*?)### END SOLUTION", cell.source, re.S):
                lines = [line.strip() for line in answer.splitlines() if len(line.strip()) > 4]
                assert lines
                assert [line for line in lines if line in text] == []
        assert not any("jupyter" in cell.metadata for cell in cells(student / page.name, "solution"))

    def test_links_hold(self, page, student):
        """The folder `student` lies beside `notebooks`."""
        texts = [c.source for c in nbformat.read(student / page.name, 4).cells if c.cell_type == "markdown"]
        for text in texts:
            for target in re.findall(r"\]\((?!http)([^)#]+)", text):
                assert (ROOT / "notebooks" / target).exists() or (student / target).exists()

    def test_all_else_is_as_it_was(self, page, student):
        handed = nbformat.read(student / page.name, 4).cells
        for ours, theirs in zip(nbformat.read(page, 4).cells, handed, strict=True):
            assert ours.source == theirs.source or ours.metadata.tags == ["solution"]


def test_what_a_learner_filled_in_is_not_overwritten(tmp_path):
    (tmp_path / PAGES[0].name).write_text("mine")
    done = write(tmp_path)
    assert done.returncode == 1
    assert f"{PAGES[0].name} there already" in done.stdout
    assert [path.name for path in tmp_path.iterdir()] == [PAGES[0].name]


@pytest.mark.slow
def test_nbgrader_makes_the_same(tmp_path, student):
    pytest.importorskip("nbgrader", reason="nbgrader is not installed; pip install 'bitlib[teach]' brings it")
    source = tmp_path / "source" / "bit"
    source.mkdir(parents=True)
    for page in PAGES:
        (source / page.name).write_bytes(page.read_bytes())
    command = [sys.executable, "-m", "nbgrader", "generate_assignment", "bit", "--create"]
    stub = 'c = get_config()\nc.ClearSolutions.code_stub = {"python": "# Your code here"}\n'
    (tmp_path / "nbgrader_config.py").write_text(stub)
    # nbgrader starts alembic, which lies beside Python.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(
        command,
        cwd=tmp_path,
        env=os.environ | {"PATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    for page in PAGES:
        theirs = nbformat.read(tmp_path / "release" / "bit" / page.name, 4).cells
        ours = nbformat.read(student / page.name, 4).cells
        assert [cell.source for cell in theirs] == [cell.source for cell in ours]
        assert not any(cell.get("outputs") for cell in theirs)
        points = [
            cell.metadata.nbgrader.points for cell in theirs if cell.metadata.get("nbgrader", {}).get("grade")
        ]
        assert len(points) >= len(cells(page, "solution"))
