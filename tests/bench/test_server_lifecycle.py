"""The server's start, death and errors, against small stand-ins for ComfyUI's main.py."""

from __future__ import annotations

import socket
import sys
import textwrap
from pathlib import Path

import pytest
from latent_physics.devtools.server import (
    ComfyServer,
    PromptRejected,
    claim_port,
    output_files,
    raise_failure,
    was_interrupted,
)
from latent_physics.devtools.shell import BenchError

ANSWERS = """
    import http.server, json, sys
    port = int(sys.argv[sys.argv.index("--port") + 1])
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            if self.path == "/die":
                print("RuntimeError: out of memory", flush=True)
                import os
                os._exit(7)
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"{}")
        def do_POST(self):
            self.send_response(400)
            self.end_headers()
            error = {"message": "Value not in list", "details": "vae_name: 'a.safetensors' not in []"}
            reply = {"error": {}, "node_errors": {"3": {"class_type": "VAELoader", "errors": [error]}}}
            self.wfile.write(json.dumps(reply).encode())
        def log_message(self, *args):
            pass
    http.server.HTTPServer(("127.0.0.1", port), Handler).serve_forever()
"""


def stand_in(folder: Path, source: str, port: int = 0) -> ComfyServer:
    (folder / "comfyui").mkdir()
    (folder / "comfyui" / "main.py").write_text(textwrap.dedent(source))
    log = folder / "logs" / "server.log"
    return ComfyServer(
        python=Path(sys.executable), comfyui=folder / "comfyui", base=folder / "base", log=log, port=port
    )


def test_server_that_dies_at_start_says_why_and_where_its_log_is(tmp_path: Path) -> None:
    server = stand_in(tmp_path, "print('ModuleNotFoundError: No module named av'); raise SystemExit(3)")
    with pytest.raises(
        BenchError,
        match=r"died \(exit status 3\): ModuleNotFoundError: No module named av\. Log: .*server\.log",
    ):
        server.start()


def test_server_that_never_answers_is_stopped(tmp_path: Path) -> None:
    server = stand_in(tmp_path, "import time; time.sleep(60)")
    with pytest.raises(BenchError, match=r"did not answer on http://127\.0\.0\.1:\d+ within 1 s\. Log: "):
        server.start(timeout=1)
    assert server.process.poll() is not None


def test_server_that_dies_later_is_named_by_the_next_request(tmp_path: Path) -> None:
    with stand_in(tmp_path, ANSWERS) as server:
        assert server.object_info() == {}
        with pytest.raises(BenchError):
            server.request("/die")
        server.process.wait(10)
        with pytest.raises(BenchError, match=r"died \(exit status 7\): RuntimeError: out of memory"):
            server.wait("some-prompt")


def test_refused_graph_names_node_and_value(tmp_path: Path) -> None:
    with (
        stand_in(tmp_path, ANSWERS) as server,
        pytest.raises(PromptRejected, match=r"node 3 \(VAELoader\): .*'a\.safetensors'"),
    ):
        server.queue({})


def test_graph_of_which_only_a_part_would_run_is_refused(tmp_path: Path) -> None:
    """ComfyUI answers 200 where at least one output passes its checks, and leaves the others out."""
    accepts = ANSWERS.replace("send_response(400)", "send_response(200)").replace(
        '"error": {}', '"prompt_id": "1"'
    )
    with stand_in(tmp_path, accepts) as server:
        with pytest.raises(PromptRejected, match="VAELoader"):
            server.queue({})
        assert server.queue({}, partly=True) == "1"


def test_prompt_that_never_ends_is_given_up(tmp_path: Path) -> None:
    with stand_in(tmp_path, ANSWERS) as server, pytest.raises(BenchError, match="was not done within 0 s"):
        server.wait("some-prompt", timeout=0.3)


def test_stop_ends_the_process_and_may_be_repeated(tmp_path: Path) -> None:
    with stand_in(tmp_path, ANSWERS) as server:
        assert server.process.poll() is None
    assert server.process.poll() is not None
    server.stop()


def test_taken_port_is_named() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(BenchError, match=f"port {port} is taken .*--port"):
            claim_port(port)
    assert claim_port(port) == port
    assert claim_port(0) > 0
    for port in (-1, 70000):
        with pytest.raises(BenchError, match=f"there is no port {port}: choose one from 1 to 65535"):
            claim_port(port)


def test_requests_do_not_go_through_a_proxy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    with stand_in(tmp_path, ANSWERS) as server:
        assert server.object_info() == {}


def test_history_entries_are_read() -> None:
    failed = {
        "node_type": "LaMoGuidance",
        "node_id": "4",
        "exception_type": "ValueError",
        "exception_message": "lag is 40.\n",
    }
    with pytest.raises(
        BenchError, match=r"LaMoGuidance \(node 4\) failed: ValueError: lag is 40\. Log: server\.log"
    ):
        raise_failure(
            {"status": {"messages": [["execution_start", {}], ["execution_error", failed]]}},
            Path("server.log"),
        )
    assert was_interrupted({"status": {"messages": [["execution_interrupted", {}]]}})
    assert not was_interrupted({"status": {"messages": [["execution_success", {}]]}})
    image = {"filename": "a.webp", "subfolder": "", "type": "output"}
    entry = {"outputs": {"9": {"images": [image], "animated": [True]}, "10": {"text": ["0.5"]}}}
    assert list(output_files(entry)) == [("9", image)]
