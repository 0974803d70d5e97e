"""What the tests of the running server share: the pack's nodes as the server describes them, and a page of
its user interface."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from latent_physics.devtools.server import ComfyServer, output_files

# Files that a user has after the first start; without them the stock interface itself logs errors.
USER_FILES = {
    "user.css": "",
    "comfy.templates.json": "[]",
    "comfy.settings.json": json.dumps({"Comfy.TutorialCompleted": True, "Comfy.UseNewMenu": "Top"}),
}


def nodes_of_pack(server: ComfyServer) -> dict[str, dict[str, Any]]:
    """Node id -> description of every node that came with the pack. Raises where the pack did not load."""
    nodes = {
        name: info
        for name, info in server.object_info().items()
        if info["python_module"].endswith("some.other-name_7")
    }
    assert nodes, f"the pack did not load: {server.log.read_text()}"
    return nodes


@pytest.fixture(scope="session")
def pack_nodes(server: ComfyServer) -> dict[str, dict[str, Any]]:
    """The pack's nodes in the default ComfyUI, as /object_info lists them."""
    return nodes_of_pack(server)


def frames_of(name: str, payload: bytes) -> np.ndarray:
    """An output file as frames, `T H W 3` in 0..255."""
    if name.endswith((".png", ".jpg", ".webp", ".gif")):
        from PIL import Image, ImageSequence

        with Image.open(io.BytesIO(payload)) as image:
            return np.stack([np.asarray(frame.convert("RGB")) for frame in ImageSequence.Iterator(image)])
    import av

    with av.open(io.BytesIO(payload)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


@pytest.fixture(scope="session")
def run_and_open() -> Callable[[ComfyServer, dict[str, Any]], dict[str, np.ndarray]]:
    """`run_and_open(server, graph)` runs a graph and returns every file it wrote, decoded; fails on one that
    shows nothing."""

    def run(server: ComfyServer, graph: dict[str, Any]) -> dict[str, np.ndarray]:
        entry = server.run(graph)
        opened = {}
        for node, item in output_files(entry):
            frames = frames_of(item["filename"], server.download(item))
            assert frames.std() > 1, f"node {node}: {item['filename']} shows one colour"
            opened[item["filename"]] = frames
        assert opened, "the graph wrote no file"
        return opened

    return run


@pytest.fixture
def page(server: ComfyServer, browser) -> Iterator[Any]:
    """ComfyUI's interface as `open_page` gives it, for one test that clicks."""
    with open_page(server, browser) as page:
        yield page


@pytest.fixture(scope="module")
def shared_page(server: ComfyServer, browser) -> Iterator[Any]:
    """The same for tests that only load graphs one after another: opening it takes longer than all of
    them."""
    with open_page(server, browser) as page:
        yield page


@contextmanager
def open_page(server: ComfyServer, browser) -> Iterator[Any]:
    """ComfyUI's interface, loaded and idle; `page.errors` lists what went wrong since.

    What the pack itself serves counts from the start. Errors of the stock interface while it loads do not: it
    misses files.
    """
    user = server.base / "user" / "default"
    for folder in ("workflows", "subgraphs"):
        (user / folder).mkdir(parents=True, exist_ok=True)
    for name, text in USER_FILES.items():
        (user / name).write_text(text, encoding="utf-8")
    page = browser.new_page(viewport={"width": 1600, "height": 1000})
    page.set_default_timeout(120_000)  # a busy machine, not a broken page
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(f"exception: {error}"))

    def on_console(line: Any) -> None:
        # The interface asks the internet for model files that its own default graph lacks; the server forbids
        # it to.
        if line.type == "error" and "Content Security Policy" not in line.text:
            errors.append(f"{line.text} ({line.location.get('url')})")

    page.on("console", on_console)
    page.goto(server.url)
    page.wait_for_function("window.app && window.app.vueAppReady && window.app.graph")
    page.wait_for_load_state("networkidle")
    errors[:] = [error for error in errors if "/extensions/" in error]
    page.errors = errors
    yield page
    page.close()
