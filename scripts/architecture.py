"""Draw the houses of the package into docs/architecture.md, from the contract of imports and the code.

python scripts/architecture.py
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import grimp

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "architecture.md"
BLOCK = re.compile(r"```text\n.*?```", re.S)


def layers() -> list[list[str]]:
    """The houses, a list for each floor, the top first."""
    (contract,) = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    return [floor.split(" | ") for floor in contract["layers"]]


def drawing() -> str:
    """A line for each house: its floor, and what it imports of the floors below."""
    floors = layers()
    order = [house for floor in floors for house in floor]
    graph = grimp.build_graph("bitlib", exclude_type_checking_imports=True, cache_dir=None)
    for house in order:
        graph.squash_module(f"bitlib.{house}")
    lines = ["floor  house       imports"]
    for number, floor in zip(range(len(floors), 0, -1), floors, strict=True):
        for house in floor:
            imported = graph.find_modules_directly_imported_by(f"bitlib.{house}") - {f"bitlib.{house}"}
            below = sorted((module.partition(".")[2] for module in imported), key=order.index)
            name = house + "/" * (ROOT / "bitlib" / house).is_dir()
            lines.append(f"{number:>5}  {name:<11} {' '.join(below)}".rstrip())
    return "```text\n" + "\n".join(lines) + "\n```"


if __name__ == "__main__":
    PAGE.write_text(BLOCK.sub(lambda _: drawing(), PAGE.read_text(), count=1))
