"""Run the fast tests and the pages on several Pythons and sets of packages; write docs/matrix.md.

    python scripts/matrix.py                   every set that has no result yet
    python scripts/matrix.py colab oldest      of these only
    python scripts/matrix.py --again colab     whether it has a result or not; newest: in a new environment
    python scripts/matrix.py --without-pages   the fast tests only; the pages may follow later

Each set has a virtual environment in build/matrix, which is made anew when the dependencies, the pins or the
Python change. Results and logs are there, too. A result stays until it is asked for again.
"""

from __future__ import annotations

import argparse
import datetime
import functools
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
import tomllib
import xml.etree.ElementTree as ET
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
WORK = ROOT / "build" / "matrix"
TABLE = ROOT / "docs" / "matrix.md"
PYTHONS = ("3.11", "3.12", "3.13")
CHECKS = ("tests", "pages")
SHOWN = ("tensorflow", "keras", "numpy")

PAGE = """# What the package is tested with

Written by `make matrix`: the fast tests (`make check` runs the same) and every page, compared with its stored
outputs, in a fresh environment for each set of packages.

{sets}

{table}
"""


@dataclass(frozen=True)
class PackageSet:
    """A Python, and the versions of packages to test with.

    Attributes:
        name: of the row of the table.
        python: major and minor version.
        about: which versions these are.
        constraints: pins that bind whatever is installed.
        preinstalled: whether all of the pins are installed first, and must be the same afterwards.
    """

    name: str
    python: str
    about: str
    constraints: tuple[str, ...] = ()
    preinstalled: bool = False


def pins(path: Path) -> tuple[str, ...]:
    """The lines of a file of pins, without its comments."""
    lines = (line.partition("#")[0].strip() for line in path.read_text().splitlines())
    return tuple(line for line in lines if line)


def lower_bounds(requirements: Iterable[str]) -> tuple[str, ...]:
    """The oldest version that each requirement allows, as a pin; none where it names no oldest."""
    found = []
    for requirement in map(Requirement, requirements):
        oldest = [bound.version for bound in requirement.specifier if bound.operator in (">=", "==", "~=")]
        found += [f"{canonicalize_name(requirement.name)}=={version}" for version in oldest]
    return tuple(sorted(found))


def declared() -> list[str]:
    """Every requirement of pyproject.toml, those of the extras too."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = [item for group in project["optional-dependencies"].values() for item in group]
    return [*project["dependencies"], *extras]


def sets() -> list[PackageSet]:
    """Every set, in the order of the table."""
    known = pins(ROOT / "constraints.txt")
    oldest = lower_bounds(declared())
    colab = pins(ROOT / "constraints-colab.txt")
    return [
        *(PackageSet(python, python, "the versions of `constraints.txt`", known) for python in PYTHONS),
        PackageSet("oldest", PYTHONS[0], "the oldest versions that `pyproject.toml` allows", oldest),
        PackageSet("newest", PYTHONS[-1], "the newest ones it allows"),
        PackageSet("colab", "3.13", "Colab's own, `constraints-colab.txt`, left as they are", colab, True),
    ]


@functools.cache
def find_python(version: str) -> Path | None:
    """An interpreter of a version, among pyenv's and on PATH; None if there is none that runs."""
    name = f"python{version}"
    folders = [Path(folder) for folder in os.environ.get("PATH", "").split(os.pathsep) if folder]
    if pyenv := shutil.which("pyenv"):
        root = Path(subprocess.run([pyenv, "root"], capture_output=True, text=True).stdout.strip())
        folders = [*sorted((root / "versions").glob(f"{version}.*/bin"), reverse=True), *folders]
    for folder in folders:
        code = "import sys; print(sys.executable); print('%d.%d' % sys.version_info[:2])"
        if (folder / name).is_file():
            run = subprocess.run([folder / name, "-c", code], capture_output=True, text=True)
            if run.returncode == 0 and run.stdout.split()[1] == version:
                return Path(run.stdout.split()[0])
    return None


def run(command: Sequence[str | Path], log: Path) -> int:
    """Run a command in the repository, as if nothing else were installed; its output goes to a log."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    if Path(command[0]).parent.name == "bin":
        environment["PATH"] = f"{Path(command[0]).parent}{os.pathsep}{environment['PATH']}"
    with log.open("a") as file:
        print("$", *command, file=file, flush=True)
        return subprocess.run(command, cwd=ROOT, env=environment, stdout=file, stderr=file).returncode


def install(chosen: PackageSet, python: Path, folder: Path) -> str | None:
    """Make the environment of a set, unless it is there; returns what went wrong, or None."""
    version = subprocess.run([python, "--version"], capture_output=True, text=True).stdout
    inputs = hashlib.sha256(json.dumps([declared(), chosen.constraints, version]).encode()).hexdigest()
    stamp = folder / "inputs"
    if stamp.is_file() and stamp.read_text() == inputs:
        return None
    print(f"{chosen.name}: installing", flush=True)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    log, constraints, bin = folder / "install.log", folder / "constraints.txt", folder / "venv" / "bin"
    constraints.write_text("".join(f"{pin}\n" for pin in chosen.constraints))
    pip = [bin / "python", "-m", "pip", "install", "--disable-pip-version-check"]
    steps = [[python, "-m", "venv", folder / "venv"]]
    if chosen.preinstalled:
        steps.append([*pip, "--requirement", constraints])
    steps.append([*pip, "--constraint", constraints, "--editable", ".[test]"])
    if any(run(step, log) for step in steps):
        return f"not installed, see {log.relative_to(ROOT)}"
    if chosen.preinstalled and (changed := missing(chosen.constraints, installed(bin))):
        return f"installing it changed {', '.join(changed)}"
    stamp.write_text(inputs)
    return None


def installed(bin: Path) -> dict[str, str]:
    """The version of every package of an environment, by its canonical name."""
    command = [bin / "python", "-m", "pip", "list", "--format", "json", "--disable-pip-version-check"]
    packages = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    return {canonicalize_name(package["name"]): package["version"] for package in packages}


def missing(wanted: Iterable[str], versions: dict[str, str]) -> list[str]:
    """The pins that are not among the versions of an environment."""
    pairs = (pin.split("==") for pin in wanted)
    return [
        f"{name}=={version}" for name, version in pairs if versions.get(canonicalize_name(name)) != version
    ]


def outcome(report: Path, by_file: bool = False) -> tuple[int, list[str]]:
    """How many tests of a JUnit report passed, and the names of those that failed; of files, if by file."""
    failures: dict[str, bool] = {}
    for case in ET.parse(report).iter("testcase"):
        if case.find("skipped") is None:
            name = case.get("classname", "") + ("" if by_file else f"::{case.get('name')}")
            bad = case.find("failure") is not None or case.find("error") is not None
            failures[name] = failures.get(name, False) or bad
    failed = [name for name, bad in failures.items() if bad]
    return len(failures) - len(failed), failed


def check(folder: Path, what: str) -> dict:
    """Run the fast tests, or the pages, in an environment; returns counts, failures, seconds and date."""
    log, report = folder / f"{what}.log", folder / f"{what}.xml"
    log.unlink(missing_ok=True)
    report.unlink(missing_ok=True)
    nbval = ["--nbval", "--nbval-current-env", "--nbval-cell-timeout=600", "notebooks"]
    arguments = {
        "tests": ["--dist", "worksteal", "-m", "not slow"],
        "pages": ["--dist", "loadfile", *nbval],
    }[what]
    pytest = [folder / "venv" / "bin" / "python", "-m", "pytest", "-n", "2", f"--junitxml={report}"]
    started = time.perf_counter()
    code = run([*pytest, *arguments], log)
    passed, failed = outcome(report, what == "pages") if report.is_file() else (0, [])
    if code and not failed:
        failed = [f"pytest ended with code {code}"]
    return {
        "passed": passed,
        "failed": failed,
        "seconds": round(time.perf_counter() - started),
        "date": datetime.date.today().isoformat(),
    }


def results(row: dict) -> list[dict]:
    """What of the tests and pages has been run."""
    return [row[what] for what in CHECKS if what in row]


def table(rows: Mapping[str, dict]) -> str:
    """The results of each set as a Markdown table, and what failed below it."""
    header = ["set", "Python", "TensorFlow", "Keras", "NumPy"]
    header += ["tests passed / failed", "pages passed / failed", "seconds", "date"]
    lines = [header, ["---"] * 5 + ["---:"] * 3 + ["---"]]
    notes = []
    for name, row in rows.items():
        done = results(row)
        counts = ["–" if c not in row else f"{row[c]['passed']} / {len(row[c]['failed'])}" for c in CHECKS]
        seconds = str(sum(part["seconds"] for part in done)) if done else "–"
        date = max((part["date"] for part in done), default="–")
        versions = [row.get("versions", {}).get(package, "–") for package in ("python", *SHOWN)]
        lines.append([name, *versions, *counts, seconds, date])
        if "problem" in row:
            notes.append(f"- {name}: {row['problem']}")
        notes += [f"- {name}: `{test}` failed" for part in done for test in part["failed"]]
    return "\n".join(["| " + " | ".join(line) + " |" for line in lines] + (["", *notes] if notes else []))


def forget(chosen: PackageSet) -> None:
    """Delete the results of a set; its environment too, where time alone can change what it holds."""
    folder = WORK / chosen.name
    (folder / "result.json").unlink(missing_ok=True)
    if not chosen.constraints:
        shutil.rmtree(folder, ignore_errors=True)


def examine(chosen: PackageSet, python: Path, checks: Sequence[str]) -> dict:
    """Whatever has no result yet of the tests and pages; returns the row of the table."""
    folder = WORK / chosen.name
    if problem := install(chosen, python, folder):
        return {"problem": problem}
    row = stored(chosen)
    for what in checks:
        if what not in row:
            print(f"{chosen.name}: {what}", flush=True)
            row[what] = check(folder, what)
            (folder / "result.json").write_text(json.dumps(row, indent=1))
    return row


def stored(chosen: PackageSet) -> dict:
    """The row of a set as far as it has been run."""
    folder = WORK / chosen.name
    if (folder / "result.json").is_file():
        return json.loads((folder / "result.json").read_text())
    if not (folder / "inputs").is_file():
        return {"problem": "not run"}
    python = folder / "venv" / "bin" / "python"
    version = subprocess.run([python, "--version"], capture_output=True, text=True, check=True).stdout
    versions = {name: installed(python.parent).get(name, "–") for name in SHOWN}
    return {"versions": {"python": version.split()[1], **versions}}


def main() -> int:
    known = sets()
    names = [chosen.name for chosen in known]
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sets", nargs="*", metavar="set", help=f"of {', '.join(names)}; all if none is named")
    parser.add_argument("--again", action="store_true", help="run them whether they have results or not")
    parser.add_argument("--without-pages", action="store_true", help="run the fast tests only")
    arguments = parser.parse_args()
    if unknown := set(arguments.sets) - set(names):
        parser.error(f"set: expected some of {', '.join(names)}, received {', '.join(unknown)}")
    asked = set(arguments.sets or names)
    checks = CHECKS[:1] if arguments.without_pages else CHECKS
    rows = {}
    for chosen in known:
        python = find_python(chosen.python)
        if chosen.name not in asked:
            rows[chosen.name] = stored(chosen)
        elif python is None:
            rows[chosen.name] = {"problem": f"no Python {chosen.python} on this machine"}
        else:
            if arguments.again:
                forget(chosen)
            rows[chosen.name] = examine(chosen, python, checks)
    about = "\n".join(f"- **{chosen.name}**: Python {chosen.python}, {chosen.about}" for chosen in known)
    TABLE.write_text(PAGE.format(sets=about, table=table(rows)))
    print(table(rows))
    bad = [name for name in asked if "problem" in rows[name] or any(c["failed"] for c in results(rows[name]))]
    return int(bool(bad))


if __name__ == "__main__":
    sys.exit(main())
