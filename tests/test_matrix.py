"""The pure parts of scripts/matrix.py: pins, reports and the table."""

import importlib.util
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def matrix():
    spec = importlib.util.spec_from_file_location("matrix", ROOT / "scripts" / "matrix.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["matrix"] = module  # dataclasses look there for the types of their fields
    spec.loader.exec_module(module)
    yield module
    del sys.modules["matrix"]


@pytest.fixture(scope="module")
def sets(matrix):
    return {chosen.name: chosen for chosen in matrix.sets()}


def test_lower_bounds_become_pins(matrix):
    requirements = [
        "tf_keras>=2.18,<2.22",
        "numpy>=1.26",
        "setuptools<82",
        "bitlib[pages]",
        "a==3.*; extra == 'b'",
    ]
    assert matrix.lower_bounds(requirements[:4]) == ("numpy==1.26", "tf-keras==2.18")
    assert matrix.lower_bounds(requirements[4:]) == ("a==3.*",)


def test_the_oldest_set_pins_what_pyproject_bounds(sets):
    oldest = sets["oldest"]
    assert oldest.python == "3.11"
    assert {"tensorflow==2.18", "keras==3.6", "numpy==1.26", "matplotlib==3.9"} <= set(oldest.constraints)
    assert not any(pin.startswith(("bitlib", "setuptools")) for pin in oldest.constraints)


def test_the_newest_set_is_free_and_the_numbered_ones_are_bound_by_the_constraints(matrix, sets):
    assert sets["newest"].constraints == ()
    known = matrix.pins(ROOT / "constraints.txt")
    assert all(sets[python].constraints == known for python in matrix.PYTHONS)


def test_the_versions_of_colab_are_within_the_bounds_of_pyproject(matrix, sets):
    colab = dict(pin.split("==") for pin in sets["colab"].constraints)
    versions = {canonicalize_name(name): version for name, version in colab.items()}
    bounds = {canonicalize_name(bound.name): bound.specifier for bound in map(Requirement, matrix.declared())}
    shared = set(versions) & set(bounds)
    assert {"tensorflow", "keras", "numpy", "ipykernel", "setuptools"} <= shared
    assert [name for name in shared if versions[name] not in bounds[name]] == []


def test_a_changed_pin_is_found_under_any_spelling(matrix):
    versions = {"tf-keras": "2.20.1", "numpy": "2.4.0"}
    assert matrix.missing(["tf_keras==2.20.1"], versions) == []
    assert matrix.missing(["numpy==2.1.3", "absent==1"], versions) == ["numpy==2.1.3", "absent==1"]


REPORT = """<testsuites><testsuite>
<testcase classname="notebooks.01.ipynb" name="Cell 0"/>
<testcase classname="notebooks.01.ipynb" name="Cell 1"><failure message="differs"/></testcase>
<testcase classname="notebooks.02.ipynb" name="Cell 0"/>
<testcase classname="notebooks.02.ipynb" name="Cell 1"><skipped/></testcase>
<testcase classname="tests.a" name="test_b"><error message="setup"/></testcase>
</testsuite></testsuites>"""


def test_reports_are_counted_by_test_and_by_page(matrix, tmp_path):
    report = tmp_path / "report.xml"
    report.write_text(REPORT)
    assert matrix.outcome(report) == (2, ["notebooks.01.ipynb::Cell 1", "tests.a::test_b"])
    assert matrix.outcome(report, by_file=True) == (1, ["notebooks.01.ipynb", "tests.a"])


def test_the_table_shows_what_was_run_and_names_what_failed(matrix):
    tests = {"passed": 700, "failed": ["tests.a::test_b"], "seconds": 90, "date": "2026-01-02"}
    pages = {"passed": 4, "failed": [], "seconds": 110, "date": "2026-01-03"}
    versions = {"python": "3.11.7", "tensorflow": "2.18.0", "keras": "3.6.0", "numpy": "1.26.0"}
    rows = {
        "oldest": {"versions": versions, "tests": tests, "pages": pages},
        "3.12": {"problem": "no Python 3.12 on this machine"},
    }
    lines = matrix.table(rows).splitlines()
    assert lines[2] == "| oldest | 3.11.7 | 2.18.0 | 3.6.0 | 1.26.0 | 700 / 1 | 4 / 0 | 200 | 2026-01-03 |"
    assert lines[3] == "| 3.12 | – | – | – | – | – | – | – | – |"
    assert lines[4:] == ["", "- oldest: `tests.a::test_b` failed", "- 3.12: no Python 3.12 on this machine"]


def test_a_python_that_does_not_run_is_passed_over(matrix, tmp_path, monkeypatch):
    broken, good = tmp_path / "broken", tmp_path / "good"
    name = "python{}.{}".format(*sys.version_info)
    for folder, text in (
        (broken, "#!/bin/sh\nexit 127\n"),
        (good, f'#!/bin/sh\nexec "{sys.executable}" "$@"\n'),
    ):
        folder.mkdir()
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{broken}:{good}")
    matrix.find_python.cache_clear()
    assert matrix.find_python(name.removeprefix("python")) == Path(sys.executable)
    assert matrix.find_python("3.99") is None
    matrix.find_python.cache_clear()
