"""Who imports whom, read from the source: the files behind every import of the pack, and the circles among
them.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TypeVar

NAMES = ("latent_physics", "devtools", "benchmarks")
"""First parts of absolute imports that mean a file of ours: the pack's name, and what runs from the
repository's root."""
Item = TypeVar("Item")


def files_used(root: Path, path: Path) -> set[Path]:
    """The files below `root` that a file imports, anywhere in it, except under `if TYPE_CHECKING`."""
    tree = ast.parse(path.read_text(encoding="utf-8"), filename=str(path))
    guarded = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        for statement in node.body
        for inner in ast.walk(statement)
    }
    return {file for node in ast.walk(tree) if id(node) not in guarded for file in targets(root, path, node)}


def targets(root: Path, path: Path, node: ast.AST) -> Iterator[Path]:
    """The files behind one statement, if it is an import: modules, or the packages that hand a name on."""
    if isinstance(node, ast.Import):
        wanted = [(alias.name.split("."), "") for alias in node.names if alias.name.split(".")[0] in NAMES]
    elif isinstance(node, ast.ImportFrom):
        package = list(path.relative_to(root).parts[:-1])
        base = package[: len(package) - node.level + 1] if node.level else []
        parts = [*base, *(node.module.split(".") if node.module else [])]
        wanted = [(parts, alias.name) for alias in node.names if node.level or parts[0] in NAMES]
    else:
        return
    for parts, name in wanted:
        folder = root.joinpath(*(part for part in parts if part != "latent_physics"))
        choices = [folder / f"{name}.py", folder / name / "__init__.py"] if name else []
        choices += [folder.parent / f"{folder.name}.py", folder / "__init__.py"]
        yield from [file for file in choices if file.is_file()][:1]


def reachable(graph: Mapping[Item, set[Item]]) -> dict[Item, set[Item]]:
    """For every node, the nodes that its arrows lead to, however far."""
    found: dict[Item, set[Item]] = {}
    for start in graph:
        waiting, found[start] = list(graph[start]), set()
        while waiting:
            node = waiting.pop()
            if node not in found[start]:
                found[start].add(node)
                waiting += graph.get(node, ())
    return found


def circles(graph: Mapping[Item, set[Item]]) -> list[set[Item]]:
    """Groups of nodes each of which can be reached from each other one."""
    reach = reachable(graph)
    groups = {frozenset(b for b in reach[a] if a in reach.get(b, ())) for a in graph if a in reach[a]}
    return [set(group) for group in groups]
