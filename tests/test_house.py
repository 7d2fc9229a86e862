"""The repository itself: layers, make targets, types, and the files that greet people who join."""

import ast
import json
import re
import tomllib
from pathlib import Path

import grimp
import pytest
import yaml
from packaging.specifiers import SpecifierSet

import bitlib
from scripts import architecture

ROOT = Path(__file__).parent.parent


def test_the_picture_of_the_layers_is_the_contract_that_the_lint_checks():
    picture = re.search(r"```text\n(pages .*?)```", (ROOT / "CONTRIBUTING.md").read_text(), re.S)[1]
    drawn = [re.split(r"\s{2,}", line)[0].split(" · ") for line in picture.splitlines()]
    assert drawn == architecture.layers()


def test_places_that_the_guide_points_to_exist():
    guide = (ROOT / "CONTRIBUTING.md").read_text()
    rows = re.findall(r"^\| .*\? \| `([\w/]+\.py)`(?:: `(?:\w+\.)?(\w+)`)? \|$", guide, re.M)
    assert len(rows) >= 5
    for file, function in rows:
        source = (ROOT / "bitlib" / file).read_text()
        assert not function or f"def {function}(" in source, (file, function)


def test_the_guide_to_the_package_lists_every_module():
    guide = (ROOT / "docs" / "package.md").read_text()
    listed = re.findall(r"\[`(\w+)`\]\(\.\./bitlib/([\w/]+)\.py\)", guide)
    assert all(name == file.removesuffix("/__init__").rpartition("/")[2] for name, file in listed)
    paths = [path.relative_to(ROOT / "bitlib").with_suffix("") for path in (ROOT / "bitlib").rglob("*.py")]
    empty = {f"{folder}/__init__" for folder in ("files", "formats", "training")}
    assert {file for _, file in listed} == {str(path) for path in paths} - {"__init__"} - empty


def test_each_published_thing_has_its_test():
    table = (ROOT / "docs" / "migration.md").read_text().split("## What was published")[1].split("\n## ")[0]
    rows = re.findall(r"\[`(?:(\w+)::)?(\w+)`\]\(\.\./(tests/\w+\.py)\)", table)
    assert len(rows) == table.count("\n|") - 2 >= 10
    for group, name, file in rows:
        body = ast.parse((ROOT / file).read_text()).body
        if group:
            (body,) = (node.body for node in body if isinstance(node, ast.ClassDef) and node.name == group)
        assert name in {node.name for node in body if isinstance(node, ast.FunctionDef)}, (file, name)


def test_the_package_is_imported_as_a_whole_by_nobody():
    """Its lazy attributes would lead past the contract."""
    graph = grimp.build_graph("bitlib", cache_dir=None)
    assert graph.find_modules_that_directly_import("bitlib") == set()


def test_the_makefile_lists_its_targets():
    text = (ROOT / "Makefile").read_text()
    listed = re.findall(r"^# make ([\w-]+)", text, re.M)
    phony = re.search(r"^\.PHONY: (.*)$", text, re.M)[1].split()
    defined = re.findall(r"^([a-z-]+):", text, re.M)
    assert listed == phony
    assert sorted(defined) == sorted(phony)


def public_functions(body, prefix):
    for node in body:
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            yield from public_functions(node.body, f"{prefix}.{node.name}")
        elif isinstance(node, ast.FunctionDef) and not re.match("_(?!_)", node.name):
            yield f"{prefix}.{node.name}", node


def test_public_functions_have_types_for_mypy_to_check():
    bare = []
    for path in (ROOT / "bitlib").rglob("*.py"):
        if path.parent.name == "pages":  # which only notebooks call
            continue
        for name, node in public_functions(ast.parse(path.read_text()).body, path.stem):
            arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            arguments += [argument for argument in (node.args.vararg, node.args.kwarg) if argument]
            untyped = [a.arg for a in arguments if not a.annotation and a.arg not in ("self", "cls")]
            if untyped or not (node.returns or node.name.startswith("__")):
                bare.append((name, untyped))
    assert bare == []


def test_github_runs_make_on_every_python_that_the_package_supports():
    (job,) = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())["jobs"].values()
    matrix = job["strategy"]["matrix"]
    makefile = (ROOT / "Makefile").read_text()
    targets = re.search(r"^\.PHONY: (.*)$", makefile, re.M)[1].split()
    assert set(matrix["target"]) <= set(targets)
    halves = re.search(r"^test: (.*)$", makefile, re.M)[1].split()
    assert matrix["target"] == ["check", *halves[1:]]
    assert halves[0] == "lint"  # which `check` begins with
    python = SpecifierSet(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"])
    assert matrix["python"] == [f"3.{minor}" for minor in range(30) if f"3.{minor}" in python]


def test_binder_and_the_dev_container_install_what_is_here():
    """pip takes `-e` from where it is started, the repository, and `-c` from where the file lies."""
    constraints, package = (ROOT / ".binder" / "requirements.txt").read_text().split("\n")[:2]
    assert (ROOT / ".binder" / constraints.removeprefix("-c ")).resolve() == ROOT / "constraints.txt"
    assert package == "-e .[pages]"
    python = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"]
    version = (ROOT / ".binder" / "runtime.txt").read_text().strip().removeprefix("python-")
    assert version in SpecifierSet(python)
    container = json.loads((ROOT / ".devcontainer" / "devcontainer.json").read_text())
    assert re.search(r"python:1-([\d.]+)-", container["image"])[1] in SpecifierSet(python)
    target = container["postCreateCommand"].removeprefix("make ")
    assert f"\n{target}: " in (ROOT / "Makefile").read_text()


def test_a_commit_is_checked_by_the_tools_of_make_lint():
    (repo,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    hooks = {re.search(r"exec (ruff \w+|[\w-]+)", hook["entry"])[1] for hook in repo["hooks"]}
    lint = re.search(r"^lint:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.M)[1]
    assert hooks == set(re.findall(r"\$\(BIN\)/(ruff \w+|[\w-]+)", lint))


def test_the_citation_names_this_version_and_both_papers():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == bitlib.__version__
    assert citation["authors"] == [{"name": "The bitlib contributors"}]
    for reference, arxiv in zip(citation["references"], ("1912.11370", "2106.05237"), strict=True):
        assert reference["url"].endswith(arxiv)
        assert reference["title"] in bitlib.zoo.BIT_CITATION + bitlib.zoo.DISTILLED_CITATION


def test_the_changelog_has_this_version_and_a_place_for_the_next():
    versions = re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.M)
    assert versions[:2] == ["Unreleased", bitlib.__version__]


@pytest.mark.parametrize(
    "path", sorted((ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml")), ids=lambda path: path.stem
)
def test_issue_forms_ask_something_and_require_an_answer(path):
    form = yaml.safe_load(path.read_text())
    assert form["name"]
    assert form["description"]
    assert all(field["attributes"]["label"] for field in form["body"])
    assert any(field.get("validations", {}).get("required") for field in form["body"])


def test_the_drawing_of_the_houses_is_that_of_the_code():
    drawn = architecture.BLOCK.search(architecture.PAGE.read_text())
    assert drawn[0] == architecture.drawing(), "python scripts/architecture.py draws it again"


def test_what_the_architecture_names_is_there():
    page = architecture.PAGE.read_text()
    assert all(
        (ROOT / path).exists() for path in re.findall(r"`((?:bitlib|scripts|tests|notebooks)/[^`]*)`", page)
    )
    assert all((ROOT / "docs" / path).exists() for path in re.findall(r"\]\(([^)]*)\)", page))
