"""What any test may ask for: where ComfyUI is, a running server of it, a browser. What is missing skips its
tests alone."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from latent_physics.devtools import comfyui
from latent_physics.devtools.server import ComfyServer

ROOT = Path(__file__).resolve().parent.parent
OLDER_RELEASE = "0.24.1"
COMFYUI = comfyui.find(ROOT)
OLDER_COMFYUI = comfyui.find(ROOT, OLDER_RELEASE)
BROWSER = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chrome")

NO_COMFYUI = "needs a ComfyUI: `python3 dev.py test` puts one into .comfyui, or set COMFYUI_PATH to yours"
NO_BROWSER = (
    "needs a Chromium: `apt install chromium` on Debian, or any `chromium` or `google-chrome` on PATH"
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skips what cannot run here, and says how it could; keeps tests that share something expensive on one
    xdist worker."""
    for item in items:
        marks = {mark.name for mark in item.iter_markers()}
        if marks & {"comfy", "server", "browser"} and COMFYUI is None:
            item.add_marker(pytest.mark.skip(reason=NO_COMFYUI))
        elif "browser" in marks and BROWSER is None:
            item.add_marker(pytest.mark.skip(reason=NO_BROWSER))
        # With `--dist loadgroup`: one server for all tests that ask for it, and the module fixtures of a file
        # made once.
        item.add_marker(
            pytest.mark.xdist_group("server" if marks & {"server", "browser"} else item.path.name)
        )


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository's root."""
    return ROOT


@pytest.fixture(scope="session")
def comfyui_path() -> Path:
    """The folder of ComfyUI's main.py. Tests that use it carry `@pytest.mark.comfy`."""
    if COMFYUI is None:
        pytest.skip(NO_COMFYUI)
    return COMFYUI.path


@pytest.fixture(scope="session")
def start_server(tmp_path_factory: pytest.TempPathFactory, comfyui_path: Path):
    """Starts further servers: `start_server(folder name of the pack or None, comfyui=..., nodes={file:
    source})`.

    `nodes` are custom node files put beside the pack. All servers are stopped at the end of the session.
    """
    servers: list[ComfyServer] = []

    def start(
        pack: str | None, *, comfyui_path: Path = comfyui_path, nodes: dict[str, str] | None = None
    ) -> ComfyServer:
        base = tmp_path_factory.mktemp("comfyui")
        folder = base / "custom_nodes"
        folder.mkdir()
        if pack is not None:
            comfyui.link_pack(ROOT, folder / pack)
        for name, source in (nodes or {}).items():
            (folder / name).write_text(source, encoding="utf-8")
        server = ComfyServer(
            python=Path(sys.executable), comfyui=comfyui_path, base=base, log=base / "server.log", threads=1
        )
        servers.append(server)
        server.start()
        return server

    yield start
    for server in servers:
        server.stop()


@pytest.fixture(scope="session")
def server(start_server) -> ComfyServer:
    """A real server with the pack in a folder of another name. Tests that use it carry
    `@pytest.mark.server`."""
    return start_server("some.other-name_7")


@pytest.fixture(scope="session")
def older_server(start_server) -> ComfyServer:
    """The same with an older ComfyUI."""
    if OLDER_COMFYUI is None:
        pytest.skip(f"needs ComfyUI {OLDER_RELEASE}: `python3 dev.py test` puts it into .comfyui")
    return start_server("some.other-name_7", comfyui_path=OLDER_COMFYUI.path)


@pytest.fixture(scope="session")
def browser() -> Iterator[object]:
    """A headless Chromium (playwright's Browser). Tests that use it carry `@pytest.mark.browser`."""
    if BROWSER is None:
        pytest.skip(NO_BROWSER)
    from playwright.sync_api import sync_playwright

    flags = [
        "--no-sandbox",
        "--disable-gpu",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
    ]
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=BROWSER, args=flags)
        yield chromium
        chromium.close()
