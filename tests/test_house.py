"""The repository itself: its layers are drawn as they are checked, its make targets are listed, its public
functions have types.
"""

import ast
import re
import tomllib
from pathlib import Path

import grimp

ROOT = Path(__file__).parent.parent


def test_the_picture_of_the_layers_is_the_contract_that_the_lint_checks():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    (contract,) = settings["contracts"]
    picture = re.search(r"```text\n(pages .*?)```", (ROOT / "CONTRIBUTING.md").read_text(), re.S)[1]
    drawn = [re.split(r"\s{2,}", line)[0].split(" · ") for line in picture.splitlines()]
    assert drawn == [layer.split(" | ") for layer in contract["layers"]]


def test_the_package_is_imported_as_a_whole_by_the_plan_alone():
    """Its lazy attributes lead past the contract."""
    graph = grimp.build_graph("bitlib", cache_dir=None)
    assert graph.find_modules_that_directly_import("bitlib") == {"bitlib.hyperrule"}


def test_the_makefile_lists_its_targets():
    text = (ROOT / "Makefile").read_text()
    listed = re.findall(r"^# make (\w+)", text, re.M)
    phony = re.search(r"^\.PHONY: (.*)$", text, re.M)[1].split()
    defined = re.findall(r"^([a-z]+):", text, re.M)
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
    for path in (ROOT / "bitlib").glob("*.py"):
        if path.stem in ("pages", "plots"):  # which only notebooks call
            continue
        for name, node in public_functions(ast.parse(path.read_text()).body, path.stem):
            arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            arguments += [argument for argument in (node.args.vararg, node.args.kwarg) if argument]
            untyped = [a.arg for a in arguments if not a.annotation and a.arg not in ("self", "cls")]
            if untyped or not (node.returns or node.name.startswith("__")):
                bare.append((name, untyped))
    assert bare == []
