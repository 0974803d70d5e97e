"""Draws docs/images/architecture.svg from the imports themselves: `python -m devtools.architecture`.

A box is a room, an arrow means that a file of the upper room imports one of the lower. An arrow that a path
of other arrows implies is left out. A room stands one floor above the highest room that it uses.
"""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

from .imports import circles, files_used, reachable
from .shell import BenchError

ROOT = Path(__file__).resolve().parents[1]
PICTURE = ROOT / "docs" / "images" / "architecture.svg"
DIVIDED = ("nodes", "training")
"""Top rooms whose folders are rooms of their own."""
LONE = ("console.py",)
"""Files of divided rooms that are rooms by themselves."""
SKIPPED = ("tests", "web", "docs", "locales", "workflows")
COLOURS = {"nodes": "#dbe9f6", "training": "#e3f1dd", "methods": "#fbe8d3", "kernels": "#fbe8d3"}
OTHERS = "#eeeeee"
WIDE, THIN, HIGH, ACROSS, DOWN, MARGIN = 172, 4, 40, 26, 54, 24
"""Width of a box and of a gap for an arrow, height, space between boxes and between floors, margin;
pixels."""
SWEEPS = 6
"""Passes up and down that bring rooms on neighbouring floors near one another."""


def files() -> list[Path]:
    """Python files of every room."""
    folders = [path for path in ROOT.iterdir() if path.is_dir() and path.name not in SKIPPED]
    packages = [folder for folder in folders if (folder / "__init__.py").is_file()]
    return sorted(path for folder in packages for path in folder.rglob("*.py"))


def room_of(path: Path) -> str:
    """The room of a file: its top folder, or the second one in a divided room; "" for the root's own
    files.
    """
    top, *rest = path.relative_to(ROOT).parts
    if not rest:
        return ""
    if top not in DIVIDED:
        return top
    if len(rest) == 1 and rest[0] not in LONE:
        return top if top == "nodes" else ""  # what an artist wires; the door of a divided room is in none
    return f"{top}/{rest[0].removesuffix('.py')}"


def arrows() -> dict[str, set[str]]:
    """Room -> rooms that its files import from."""
    found: dict[str, set[str]] = {}
    for path in files():
        room = room_of(path)
        if not room:
            continue
        used = {room_of(file) for file in files_used(ROOT, path)} - {room, ""}
        found.setdefault(room, set()).update(used)
    return found


def reduced(graph: dict[str, set[str]]) -> dict[str, set[str]]:
    """The arrows that no path of other arrows implies. Raises BenchError for rooms in a circle."""
    if found := circles(graph):
        raise BenchError(f"rooms import one another in a circle: {', '.join(sorted(found[0]))}.")
    reach = reachable(graph)
    return {a: {b for b in used if not any(b in reach[c] for c in used)} for a, used in graph.items()}


def levels(graph: dict[str, set[str]]) -> dict[str, int]:
    """Floor of every room: one above the highest that it uses."""
    found: dict[str, int] = {}

    def level_of(room: str) -> int:
        if room not in found:
            found[room] = 1 + max((level_of(used) for used in graph[room]), default=-1)
        return found[room]

    for room in graph:
        level_of(room)
    return found


def paths(graph: dict[str, set[str]]) -> list[list[str]]:
    """Every arrow as its stations from floor to floor: a room, gaps between others ("a>b>floor"), a room."""
    level = levels(graph)
    return [
        [room, *(f"{room}>{used}>{floor}" for floor in range(level[room] - 1, level[used], -1)), used]
        for room in sorted(graph)
        for used in sorted(graph[room])
    ]


def rows(graph: dict[str, set[str]]) -> list[list[str]]:
    """Rooms and gaps by floor, the lowest first, each about where its neighbours above and below are."""
    floor = levels(graph)
    beside: dict[str, set[str]] = {room: set() for room in graph}
    for path in paths(graph):
        for upper, lower in itertools.pairwise(path):
            floor.setdefault(lower, floor[upper] - 1)
            beside.setdefault(upper, set()).add(lower)
            beside.setdefault(lower, set()).add(upper)
    found = [sorted(name for name in floor if floor[name] == n) for n in range(1 + max(floor.values()))]
    for row in SWEEPS * [*found, *reversed(found)]:
        place = {name: (n + 0.5) / len(line) for line in found for n, name in enumerate(line)}
        middle = {name: [place[other] for other in beside[name]] or [place[name]] for name in row}
        row.sort(key=lambda name: (sum(middle[name]) / len(middle[name]), name))
    return found


def draw(graph: dict[str, set[str]]) -> str:
    """The picture as SVG."""
    found = rows(graph)
    wide = [sum(map(width_of, row)) + ACROSS * (len(row) - 1) for row in found]
    width, height = 2 * MARGIN + max(wide), 2 * MARGIN + len(found) * (HIGH + DOWN) - DOWN
    centre: dict[str, tuple[float, float]] = {}
    for floor, row in enumerate(found):
        left, top = (width - wide[floor]) / 2, height - MARGIN - HIGH - floor * (HIGH + DOWN)
        for name in row:
            centre[name] = (left + width_of(name) / 2, top)
            left += width_of(name) + ACROSS
    lines = [arrow([centre[name] for name in path]) for path in paths(graph)]
    boxes = [box(room, *centre[room]) for room in sorted(graph)]
    head = '<svg xmlns="http://www.w3.org/2000/svg"'
    size = f'viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
    tip = '<path d="M0 0L8 4L0 8z" fill="#777"/>'
    marker = (
        f'<marker id="tip" markerWidth="8" markerHeight="8" refX="8" refY="4" orient="auto">{tip}</marker>'
    )
    font = 'font-family="sans-serif" font-size="15" text-anchor="middle"'
    paper = f'<rect width="{width}" height="{height}" fill="#fff"/>'
    return "\n".join(
        [f"{head} {size} {font}>", f"<defs>{marker}</defs>", paper, *lines, *boxes, "</svg>", ""]
    )


def width_of(name: str) -> int:
    """Width of a room, or of a gap."""
    return THIN if ">" in name else WIDE


def arrow(stations: list[tuple[float, float]]) -> str:
    """A curve from the lower edge of the first box through the gaps to the upper edge of the last."""
    x, y = stations[0]
    path = f"M{x:g} {y + HIGH:g}"
    for (x1, y1), (x2, y2) in itertools.pairwise(stations):
        middle = y1 + HIGH + DOWN / 2
        path += f"C{x1:g} {middle:g} {x2:g} {middle:g} {x2:g} {y2:g}"
        path += f"V{y2 + HIGH:g}" if (x2, y2) != stations[-1] else ""
    return f'<path d="{path}" fill="none" stroke="#777" stroke-width="1.5" marker-end="url(#tip)"/>'


def box(room: str, x: float, y: float) -> str:
    """A room with its name."""
    colour = COLOURS.get(room.split("/")[0], OTHERS)
    frame = f'<rect x="{x - WIDE / 2:g}" y="{y:g}" width="{WIDE}" height="{HIGH}" rx="6"'
    text = f'<text x="{x:g}" y="{y + HIGH / 2 + 5:g}">{room}</text>'
    return f'{frame} fill="{colour}" stroke="#555"/>{text}'


def main() -> int:
    """Writes the picture; returns the exit status."""
    try:
        PICTURE.write_text(draw(reduced(arrows())), encoding="utf-8")
    except BenchError as error:
        print(f"architecture: {error}", file=sys.stderr)
        return 1
    print(PICTURE.relative_to(ROOT))
    return 0


if __name__ == "__main__":
    sys.exit(main())
