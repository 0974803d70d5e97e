"""Every function and test that docs/papers.md names exists, and no paper is left out."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "papers.md").read_text(encoding="utf-8")
ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in PAGE.splitlines()
    if line.startswith("| ")
]
ROWS = [row for row in ROWS if row[1] != "says"]
PAPERS = ("LaMo", "TSA", "MoAlign", "PILA", "LDO")


def defined(file: Path) -> set[str]:
    """Functions, classes and their methods of a file, as they are named in the page."""
    names = set()
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        if isinstance(node, ast.ClassDef):
            names |= {f"{node.name}.{part.name}" for part in node.body if isinstance(part, ast.FunctionDef)}
    return names


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row[2]} ({row[0]})".replace("`", ""))
def test_function_and_test_of_an_equation_exist(row: list[str]) -> None:
    equation, says, function, test = row
    assert equation
    assert says
    for cell in (function, test):
        path, name = re.fullmatch(r"`([\w/]+\.py)::([\w.]+)`", cell).groups()
        assert (ROOT / path).is_file(), path
        assert name in defined(ROOT / path), f"{path} has no {name}"
    assert test.startswith("`tests/")
    assert not function.startswith("`tests/")


def test_every_paper_has_its_table() -> None:
    heads = re.findall(r"^## (\w+)", PAGE, flags=re.M)
    assert heads == list(PAPERS)
    numbers = {paper: set() for paper in PAPERS}
    for part in PAGE.split("\n## ")[1:]:
        cells = re.findall(r"^\| ([\d, -]+)[,\w ]* \|", part, flags=re.M)
        for first, last in re.findall(r"(\d+)(?:-(\d+))?", " ".join(cells)):
            numbers[part.split(" ")[0]] |= set(range(int(first), int(last or first) + 1))
    assert {paper: sorted(found) for paper, found in numbers.items()} == {
        "LaMo": list(range(1, 15)),
        "TSA": list(range(6, 15)),
        "MoAlign": list(range(1, 10)),
        "PILA": list(range(1, 25)),
        "LDO": [],
    }
