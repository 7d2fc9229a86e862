"""Draw the houses of the package into docs/architecture.md, from the contract of imports and the code.

python scripts/architecture.py
"""

from __future__ import annotations

import ast
import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "architecture.md"
BLOCK = re.compile(r"```text\n.*?```", re.S)


def layers() -> list[list[str]]:
    """The houses, a list for each floor, the top first."""
    contract = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"][0]
    return [floor.split(" | ") for floor in contract["layers"]]


def rooms(house: str) -> list[Path]:
    """The files of a house, which is a module or a folder."""
    folder = ROOT / "bitlib" / house
    return sorted(folder.glob("*.py")) if folder.is_dir() else [folder.with_suffix(".py")]


def imported(house: str, houses: set[str]) -> set[str]:
    """The other houses that a house imports, inside functions too."""
    found = set()
    for path in rooms(house):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module == "bitlib":
                found |= {name.name for name in node.names}
            elif isinstance(node, ast.ImportFrom) and str(node.module).startswith("bitlib."):
                found.add(node.module.split(".")[1])
    return found & houses - {house}


def drawing() -> str:
    """A line for each house: its floor, and what it imports of the floors below."""
    floors = layers()
    order = [house for floor in floors for house in floor]
    lines = ["floor  house       imports"]
    for number, floor in zip(range(len(floors), 0, -1), floors, strict=True):
        for house in floor:
            below = sorted(imported(house, set(order)), key=order.index)
            name = house + "/" * (ROOT / "bitlib" / house).is_dir()
            lines.append(f"{number:>5}  {name:<11} {' '.join(below)}".rstrip())
    return "```text\n" + "\n".join(lines) + "\n```"


if __name__ == "__main__":
    PAGE.write_text(BLOCK.sub(lambda _: drawing(), PAGE.read_text(), count=1))
