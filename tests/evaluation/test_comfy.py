"""The client of ComfyUI against a small server that misbehaves on demand."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from latent_physics.evaluation.comfy import ClipFailed, ComfyUI, ServerGone, videos_of
from latent_physics.evaluation.errors import EvaluationError
from latent_physics.evaluation.generate import Options, generate
from latent_physics.evaluation.graph import find_inputs
from latent_physics.evaluation.manifest import Manifest
from latent_physics.evaluation.plan import Plan, Prompt
from latent_physics.evaluation.sources import ComfySource
from latent_physics.evaluation.video import write_video
from latent_physics.evaluation.websocket import WebSocket

GRAPH = {
    "1": {"class_type": "CLIPTextEncode", "inputs": {"text": "old", "clip": ["9", 0]}},
    "2": {
        "class_type": "KSampler",
        "inputs": {"seed": 1, "sampler_name": "euler", "positive": ["1", 0], "model": ["9", 0]},
    },
    "3": {"class_type": "SaveVideo", "inputs": {"video": ["2", 0], "filename_prefix": "x"}},
    "9": {"class_type": "LatentPhysicsLoadToyWorld", "inputs": {}},
}


class Fake(ThreadingHTTPServer):
    """Answers like ComfyUI: every queued graph is done at once, with one film, unless a mode says
    otherwise."""

    daemon_threads = True

    def __init__(self, film: bytes) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.film = film
        self.history: dict[str, Any] = {}
        self.posted: list[dict[str, Any]] = []
        self.uploads: list[bytes] = []
        self.mode = ""
        self.messages: list[str] = []
        self.broken_frames = b""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: Fake

    def log_message(self, *arguments: Any) -> None:
        pass

    def reply(self, value: Any, status: int = 200) -> None:
        data = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path == "/ws":
            self.web_socket()
        elif path == "/system_stats":
            self.reply({})
        elif path == "/queue":
            self.reply({"queue_running": [], "queue_pending": []})
        elif path.startswith("/history/"):
            name = path.rpartition("/")[2]
            self.reply({name: self.server.history[name]} if name in self.server.history else {})
        elif path == "/view":
            self.reply(self.server.film)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path == "/upload/image":
            self.server.uploads.append(body)
            self.reply({"name": "first.png", "subfolder": "sub"})
            return
        if self.server.mode == "refuse":
            error = {"message": "Value not in list", "details": "x.safetensors"}
            self.reply({"node_errors": {"9": {"class_type": "UNETLoader", "errors": [error]}}}, 400)
            return
        if self.server.mode == "broken":
            self.reply(b"<html>bad gateway</html>", 502)
            return
        posted = json.loads(body)
        self.server.posted.append(posted)
        outputs = {
            "3": {"images": [{"filename": "a.mp4", "subfolder": "s", "type": "output"}], "animated": [True]}
        }
        entry: dict[str, Any] = {"outputs": outputs, "status": {"messages": []}}
        if self.server.mode == "fail":
            message = {"node_id": "2", "node_type": "KSampler", "exception_message": "out of\nmemory"}
            entry["status"]["messages"] = [["execution_error", message]]
        if self.server.mode == "nothing":
            entry["outputs"] = {}
        if self.server.mode != "lose":
            self.server.history[posted["prompt_id"]] = entry
        self.reply({"prompt_id": posted["prompt_id"], "number": 1, "node_errors": {}})

    def web_socket(self) -> None:
        key = self.headers["Sec-WebSocket-Key"] + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
        accept = base64.b64encode(hashlib.sha1(key.encode()).digest()).decode()
        head = ["HTTP/1.1 101 Switching Protocols", "Upgrade: websocket", "Connection: Upgrade"]
        head = "\r\n".join([*head, f"Sec-WebSocket-Accept: {accept}", "\r\n"])
        self.wfile.write(
            head.encode() + self.server.broken_frames + b"".join(map(text_frame, self.server.messages))
        )
        self.close_connection = True


def text_frame(text: str, last: bool = True, kind: int = 1) -> bytes:
    data = text.encode()
    size = bytes([len(data)]) if len(data) < 126 else bytes([126]) + len(data).to_bytes(2, "big")
    return bytes([(0x80 if last else 0) | kind]) + size + data


@pytest.fixture
def fake(tmp_path: Path) -> Iterator[Fake]:
    write_video(tmp_path / "film.mp4", np.zeros((5, 16, 16, 3), np.uint8), 8.0)
    server = Fake((tmp_path / "film.mp4").read_bytes())
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def plan() -> Plan:
    return Plan(
        benchmark="own",
        prompts=(Prompt(id="1", text="a ball"),),
        arms={"plain": {}},
        graph=GRAPH,
        inputs=find_inputs(GRAPH).as_json(),
        baselines=False,
    )


def test_prompt_seed_and_prefix_arrive_at_the_server(fake: Fake, plan: Plan, tmp_path: Path) -> None:
    generate(plan, Manifest(tmp_path, "own"), [ComfySource(ComfyUI(fake.url), plan)])
    (posted,) = fake.posted
    record = Manifest(tmp_path, "own").records["plain", "1", 1, 0]
    assert posted["prompt"]["1"]["inputs"]["text"] == "a ball"
    assert posted["prompt"]["2"]["inputs"]["seed"] == record.seed
    assert posted["prompt"]["3"]["inputs"]["filename_prefix"].endswith(record.job)
    assert (record.frames, record.fps, record.model) == (5, 8.0, "toy world")


def test_a_prompt_that_the_server_still_knows_is_not_queued_again(
    fake: Fake, plan: Plan, tmp_path: Path
) -> None:
    generate(plan, Manifest(tmp_path / "a", "own"), [ComfySource(ComfyUI(fake.url), plan)])
    generate(plan, Manifest(tmp_path / "b", "own"), [ComfySource(ComfyUI(fake.url), plan)])
    assert len(fake.posted) == 1
    assert len(Manifest(tmp_path / "b", "own").records) == 1


def test_a_prompt_that_failed_before_gets_another_id(fake: Fake, plan: Plan, tmp_path: Path) -> None:
    fake.mode = "fail"
    outcome = generate(
        plan, Manifest(tmp_path, "own"), [ComfySource(ComfyUI(fake.url), plan)], Options(retries=1)
    )
    assert list(outcome.failed.values()) == ["node 2 (KSampler): out of memory"]
    fake.mode = ""
    outcome = generate(plan, Manifest(tmp_path, "own"), [ComfySource(ComfyUI(fake.url), plan)])
    assert not outcome.failed
    assert len({posted["prompt_id"] for posted in fake.posted}) == 3


@pytest.mark.parametrize(
    ("mode", "message"),
    [
        ("refuse", "refuses the graph: node 9 .UNETLoader.: Value not in list: x.safetensors"),
        ("broken", "no longer works"),
    ],
)
def test_a_refusal_is_told_and_a_gateway_counts_as_dead(
    fake: Fake, plan: Plan, tmp_path: Path, mode, message
) -> None:
    fake.mode = mode
    source = ComfySource(ComfyUI(fake.url), plan)
    alive = iter([True])
    source.ready = lambda: next(alive, False)
    with pytest.raises(EvaluationError, match=message):
        generate(plan, Manifest(tmp_path, "own"), [source], Options(patience=0.2))


def test_a_graph_that_saves_nothing_says_which_node(fake: Fake, plan: Plan, tmp_path: Path) -> None:
    fake.mode = "nothing"
    outcome = generate(
        plan, Manifest(tmp_path, "own"), [ComfySource(ComfyUI(fake.url), plan)], Options(retries=0)
    )
    assert "node 3 wrote no video" in next(iter(outcome.failed.values()))


def test_a_server_that_forgot_the_prompt_counts_as_started_anew(fake: Fake) -> None:
    fake.mode = "lose"
    server = ComfyUI(fake.url)
    name = server.queue(GRAPH, "00000000-0000-0000-0000-000000000001")
    with pytest.raises(ServerGone, match="lost its queue"):
        server.wait(name, lambda share: None, 60)


def test_progress_comes_through_the_websocket(fake: Fake) -> None:
    wanted = "00000000-0000-0000-0000-000000000002"
    steps = [{"type": "progress", "data": {"value": n, "max": 4, "prompt_id": wanted}} for n in (1, 2)]
    other = {"type": "progress", "data": {"value": 3, "max": 4, "prompt_id": "another"}}
    fake.messages = ["no json", json.dumps(other), *map(json.dumps, steps)]
    server = ComfyUI(fake.url)
    seen: list[float] = []
    fake.mode = "lose"
    server.queue(GRAPH, wanted)
    waiting = iter([{wanted}, {wanted}, {wanted}])

    def still_waiting() -> set[str]:
        found = next(waiting, None)
        if found is None:
            fake.history[wanted] = {"outputs": {}, "status": {}}
        return found or {wanted}

    server.waiting = still_waiting
    server.wait(wanted, seen.append, 60)
    assert list(dict.fromkeys(seen)) == [0.0, 0.25, 0.5]


def test_a_picture_is_uploaded_once(fake: Fake, tmp_path: Path) -> None:
    picture = tmp_path / "first.png"
    picture.write_bytes(b"\x89PNG picture")
    graph = {**GRAPH, "5": {"class_type": "LoadImage", "inputs": {"image": "old.png"}}}
    graph["2"] = {"class_type": "KSampler", "inputs": {**GRAPH["2"]["inputs"], "latent_image": ["5", 0]}}
    prompts = tuple(Prompt(id=str(n), text=f"ball {n}", image=str(picture)) for n in (1, 2))
    plan = Plan(
        benchmark="own",
        prompts=prompts,
        arms={"plain": {}},
        graph=graph,
        inputs=find_inputs(graph).as_json(),
        baselines=False,
    )
    generate(plan, Manifest(tmp_path / "run", "own"), [ComfySource(ComfyUI(fake.url), plan)])
    assert len(fake.uploads) == 1
    assert b"\x89PNG picture" in fake.uploads[0]
    assert {posted["prompt"]["5"]["inputs"]["image"] for posted in fake.posted} == {"sub/first.png"}


def test_a_websocket_reads_long_split_and_pinged_messages(fake: Fake) -> None:
    long = "x" * 70_000
    big = bytes([0x81, 127]) + len(long).to_bytes(8, "big") + long.encode()
    split = text_frame("one ", last=False) + text_frame("two", kind=0)
    fake.broken_frames = text_frame("ping", kind=9) + bytes([0x82, 2, 0, 1]) + split + big
    socket = WebSocket(f"{fake.url}/ws?clientId=1")
    assert socket.receive(5) == "one two"
    assert socket.receive(5) == long
    with pytest.raises(ConnectionError, match="closed"):
        socket.receive(5)
    socket.close()


def test_a_page_that_is_no_websocket_is_an_error(fake: Fake) -> None:
    with pytest.raises(ConnectionError, match="no WebSocket"):
        WebSocket(f"{fake.url}/system_stats?")


@pytest.mark.parametrize("url", ["ftp://host", "http://", "file:///etc/passwd"])
def test_an_address_that_is_none_is_one_sentence(url: str) -> None:
    with pytest.raises(EvaluationError, match="no address of a server"):
        ComfyUI(url)


def test_a_dead_address_is_gone() -> None:
    server = ComfyUI("127.0.0.1:9")
    assert not server.alive()
    with pytest.raises(ServerGone):
        server.waiting()


def test_only_videos_of_the_chosen_node_count() -> None:
    entry = {
        "outputs": {
            "3": {"gifs": [{"filename": "a.webm"}], "text": ["a"]},
            "4": {"images": [{"filename": "b.mp4"}]},
        }
    }
    assert [item["filename"] for item in videos_of(entry, "3")] == ["a.webm"]


def test_a_clip_that_takes_too_long_fails(fake: Fake) -> None:
    server = ComfyUI(fake.url)
    server.waiting = lambda: {"x"}
    with pytest.raises(ClipFailed, match="not done after"):
        server.wait("x", lambda share: None, 0.0)
