"""Writes every workflow of the pack: `python -m devtools.workflows` from the repository's root.

Each graph becomes workflows/NAME.json (for the template browser) and workflows/api/NAME.json (for scripts and
tests). A running server is asked for each node's inputs and their order. `--thumbnails` instead makes
workflows/NAME.jpg, by running the toy graphs (see thumbnails.py).
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .. import comfyui
from ..server import ComfyServer
from ..shell import BenchError, say
from . import alignment, compare, critics, first, lamo, large, ltx, pila, wan_lamo
from .blueprint import blueprint_form
from .blueprints import BLUEPRINTS
from .format import Graph, api_form, check, overlaps, ui_form

ROOT = Path(__file__).resolve().parents[2]
FOLDER, SUBGRAPHS = ROOT / "workflows", ROOT / "subgraphs"
GRAPHS = tuple(
    build
    for part in (lamo, first, compare, wan_lamo, ltx, large, pila, alignment, critics)
    for build in part.GRAPHS
)


@contextmanager
def running_server() -> Iterator[ComfyServer]:
    """The newest ComfyUI that dev.py put beside the pack, with the pack in it.

    Raises BenchError if there is none.
    """
    installation = comfyui.find(ROOT)
    if installation is None:
        raise BenchError("there is no ComfyUI yet: run `python3 dev.py test` once, or set COMFYUI_PATH.")
    with tempfile.TemporaryDirectory() as folder:
        base = comfyui.base_folder(ROOT, installation, Path(folder))
        server = ComfyServer(
            python=Path(sys.executable), comfyui=installation.path, base=base, log=base / "server.log"
        )
        server.start(timeout=600)
        try:
            yield server
        finally:
            server.stop()


def write(info: dict[str, Any]) -> None:
    """Writes both forms of every graph, and the subgraph blueprints.

    Raises BenchError for a graph that does not fit the server's nodes.
    """
    (FOLDER / "api").mkdir(parents=True, exist_ok=True)
    for build in GRAPHS:
        graph = build()
        for path, text in forms(graph, info).items():
            (FOLDER / path).write_text(text, encoding="utf-8")
        say(f"wrote {graph.name} ({len(graph.nodes()) + 1} nodes)")
    SUBGRAPHS.mkdir(exist_ok=True)
    for build in BLUEPRINTS:
        (SUBGRAPHS / f"{build().name}.json").write_text(blueprint(build(), info), encoding="utf-8")


def forms(graph: Graph, info: dict[str, Any]) -> dict[str, str]:
    """Both files of a graph, by their paths in workflows/.

    Raises BenchError if the graph does not fit the server's nodes, or if its own lie on one another.
    """
    check(graph, info)
    workflow = ui_form(graph, info)
    if covered := overlaps(workflow):
        raise BenchError(f"{graph.name}: nodes {covered} lie on one another.")
    contents = {f"{graph.name}.json": workflow, f"api/{graph.name}.json": api_form(graph, info)}
    return {
        path: json.dumps(content, indent=2, ensure_ascii=False) + "\n" for path, content in contents.items()
    }


def blueprint(graph: Graph, info: dict[str, Any]) -> str:
    """The file of a subgraph blueprint. Raises BenchError as `forms` does."""
    return json.dumps(blueprint_form(graph, info), indent=2, ensure_ascii=False) + "\n"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    sentence = "make the thumbnails instead, of these workflows or of all; samples the toy graphs"
    parser.add_argument("--thumbnails", nargs="*", metavar="NAME", help=sentence)
    options = parser.parse_args(argv)
    try:
        with running_server() as server:
            if options.thumbnails is not None:
                from .thumbnails import make_thumbnails

                make_thumbnails(server, FOLDER, options.thumbnails)
            else:
                write(server.object_info())
    except BenchError as error:
        print(f"workflows: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
