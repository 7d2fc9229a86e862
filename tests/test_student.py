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
STUB = 'c = get_config()\nc.ClearSolutions.code_stub = {"python": "# Your code here"}\n'


def write(folder):
    command = [sys.executable, ROOT / "scripts" / "student.py", folder]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def nbgrader(folder, *words):
    """nbgrader starts alembic, which lies beside Python."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    command = [sys.executable, "-m", "nbgrader", *words]
    environment = os.environ | {"PATH": path, "TF_CPP_MIN_LOG_LEVEL": "3"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


def generate(folder, pages):
    """nbgrader's assignment `bit` of some pages."""
    source = folder / "source" / "bit"
    source.mkdir(parents=True)
    for page in pages:
        (source / page.name).write_bytes(page.read_bytes())
    (folder / "nbgrader_config.py").write_text(STUB)
    nbgrader(folder, "generate_assignment", "bit", "--create")


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

    def test_links_lead_from_page_to_page(self, page, student):
        texts = [c.source for c in nbformat.read(student / page.name, 4).cells if c.cell_type == "markdown"]
        targets = [target for text in texts for target in re.findall(r"\]\((?!https?:|#)([^)]+)\)", text)]
        assert all((student / target).is_file() for target in targets)
        assert targets

    def test_checks_are_closed_and_tags_are_those_of_learners(self, page, student):
        checks = cells(student / page.name, "check")
        assert all(cell.metadata.jupyter.source_hidden and not cell.metadata.editable for cell in checks)
        tags = [cell.metadata.get("tags", []) for cell in nbformat.read(student / page.name, 4).cells]
        assert not [tag for each in tags for tag in each if tag.startswith("nbval")]

    def test_all_else_is_as_it_was(self, page, student):
        handed = nbformat.read(student / page.name, 4).cells
        for ours, theirs in zip(nbformat.read(page, 4).cells, handed, strict=True):
            is_answer = "solution" in ours.metadata.get("tags", [])
            plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", theirs.source)
            assert is_answer or plain == re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", ours.source)


def test_what_a_learner_filled_in_is_not_overwritten(tmp_path):
    (tmp_path / PAGES[0].name).write_text("mine")
    done = write(tmp_path)
    assert done.returncode == 1
    assert f"{PAGES[0].name} there already" in done.stdout
    assert [path.name for path in tmp_path.iterdir()] == [PAGES[0].name]


@pytest.mark.slow
def test_nbgrader_makes_the_same(tmp_path, student):
    pytest.importorskip("nbgrader", reason="nbgrader is not installed; pip install 'bitlib[teach]' brings it")
    generate(tmp_path, PAGES)
    for page in PAGES:
        theirs = nbformat.read(tmp_path / "release" / "bit" / page.name, 4).cells
        ours = nbformat.read(student / page.name, 4).cells
        code = [[cell.source for cell in each if cell.cell_type == "code"] for each in (theirs, ours)]
        assert code[0] == code[1]
        assert not any(cell.get("outputs") for cell in theirs)
        points = [
            cell.metadata.nbgrader.points for cell in theirs if cell.metadata.get("nbgrader", {}).get("grade")
        ]
        assert len(points) >= len(cells(page, "solution"))


@pytest.mark.slow
def test_nbgrader_marks_what_learners_hand_in(tmp_path):
    pytest.importorskip("nbgrader", reason="nbgrader is not installed; pip install 'bitlib[teach]' brings it")
    from nbgrader.api import Gradebook

    page = PAGES[0]
    generate(tmp_path, [page])
    (answer,) = cells(page, "solution")
    handed_in = {
        "right": re.search(r"### BEGIN SOLUTION\n(.*?)### END", answer.source, re.S)[1],
        "wrong": 'guess = "pixels"\nuntrained = scores["pixels"][-1]\n',
        "untouched": "# Your code here",
    }
    for learner, text in handed_in.items():
        submitted = tmp_path / "submitted" / learner / "bit"
        submitted.mkdir(parents=True)
        released = nbformat.read(tmp_path / "release" / "bit" / page.name, 4)
        (cell,) = [cell for cell in released.cells if "solution" in cell.metadata.get("tags", [])]
        cell.source = cell.source.replace("# Your code here", text)
        nbformat.write(released, submitted / page.name)
    nbgrader(tmp_path, "autograde", "bit", "--ExecutePreprocessor.timeout=300")
    nbgrader(tmp_path, "generate_feedback", "bit")
    with Gradebook(f"sqlite:///{tmp_path}/gradebook.db") as book:
        points = {learner: book.find_submission("bit", learner).score for learner in handed_in}
    assert points["right"] > 0
    assert points["wrong"] == points["untouched"] == 0
    feedback = {
        learner: tmp_path / "feedback" / learner / "bit" / f"{page.stem}.html" for learner in handed_in
    }
    assert "use the random network" in feedback["wrong"].read_text()
    assert all(path.is_file() for path in feedback.values())
