"""The repository itself: its layers are drawn as they are checked, its make targets are listed."""

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
