"""A ComfyUI server as a context manager, and the few requests that tests and the demo make."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from .shell import BenchError, last_line, read_tail

# The server is on this machine: a proxy named in the environment must not get these requests.
OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class PromptRejected(BenchError):
    """The server refused a graph; `reply` is its answer with `error` and `node_errors`."""

    def __init__(self, reply: dict[str, Any]) -> None:
        self.reply = reply
        details = [
            f"node {node} ({entry.get('class_type')}): {error.get('message')}: {error.get('details')}"
            for node, entry in reply.get("node_errors", {}).items()
            for error in entry.get("errors", [])
        ]
        super().__init__(
            "ComfyUI refused the graph: " + ("; ".join(details) or str(reply.get("error"))) + "."
        )


class ComfyServer:
    """Starts `main.py` of a ComfyUI on the CPU and stops it again; `with ComfyServer(...) as server:`."""

    def __init__(
        self,
        *,
        python: Path,
        comfyui: Path,
        base: Path,
        log: Path,
        port: int = 0,
        arguments: Sequence[str] = ("--cpu",),
        threads: int | None = None,
    ) -> None:
        """
        Args:
            python: interpreter of the environment that ComfyUI runs in.
            comfyui: folder of main.py.
            base: base directory: custom_nodes, models, input, output, temp and user lie below. Its input
                folder gets the example picture that ComfyUI comes with.
            log: file for the server's output.
            port: 0 takes a free one.
            arguments: further command line arguments of ComfyUI.
            threads: how many cores torch may use; None leaves that to torch.
        """
        self.python, self.comfyui, self.base, self.log = python, comfyui, base, log
        self.port, self.arguments, self.threads = port, list(arguments), threads
        self.process: subprocess.Popen[bytes] | None = None
        self.client_id = uuid.uuid4().hex

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> ComfyServer:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self, timeout: float = 300) -> None:
        """Returns once the server answers.

        Raises BenchError: port taken, server died, no answer within `timeout` seconds.
        """
        self.port = claim_port(self.port)
        for folder in ("custom_nodes", "input", "output", "temp", "user"):
            (self.base / folder).mkdir(parents=True, exist_ok=True)
        example = self.comfyui / "input" / "example.png"
        if example.is_file() and not (self.base / "input" / example.name).exists():
            shutil.copyfile(example, self.base / "input" / example.name)
        command = [
            self.python,
            "main.py",
            "--listen",
            "127.0.0.1",
            "--port",
            self.port,
            "--base-directory",
            self.base,
        ]
        command += [
            "--disable-api-nodes",
            "--disable-auto-launch",
            "--database-url",
            "sqlite:///:memory:",
            *self.arguments,
        ]
        models = self.base / "extra_model_paths.yaml"
        if models.is_file():
            command += ["--extra-model-paths-config", models]
        env = {**os.environ, "PYTHONUNBUFFERED": "1", "NO_COLOR": "1"}
        if self.threads is not None:
            env["OMP_NUM_THREADS"] = str(self.threads)
        self.log.parent.mkdir(parents=True, exist_ok=True)
        # A process group of its own: Ctrl-C in the terminal reaches this program alone, which then stops the
        # server.
        group = (
            {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP}
            if os.name == "nt"
            else {"start_new_session": True}
        )
        with open(self.log, "wb") as log:
            try:
                self.process = subprocess.Popen(
                    [str(part) for part in command],
                    cwd=self.comfyui,
                    env=env,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    **group,
                )
            except OSError as error:
                raise BenchError(f"ComfyUI could not be started with {self.python}: {error}.") from error
        try:
            self.wait_until_ready(timeout)
        except BaseException:
            self.stop()
            raise

    def wait_until_ready(self, timeout: float) -> None:
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            self.require_alive()
            with contextlib.suppress(OSError):
                self.get("/system_stats", timeout=5)
                return
            time.sleep(0.2)
        raise BenchError(f"ComfyUI did not answer on {self.url} within {timeout:.0f} s. Log: {self.log}")

    def require_alive(self) -> None:
        """Raises BenchError if the process has ended."""
        status = None if self.process is None else self.process.poll()
        if self.process is None or status is not None:
            words = last_line(read_tail(self.log))
            raise BenchError(f"the ComfyUI server died (exit status {status}): {words}. Log: {self.log}")

    def stop(self) -> None:
        """Ends the server, by force after ten seconds. Does nothing if it is not running."""
        if self.process is None or self.process.poll() is not None:
            return
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    # Requests. Every method raises BenchError with a sentence where the server has died.

    def get(self, path: str, timeout: float = 60) -> bytes:
        with OPENER.open(self.url + path, timeout=timeout) as reply:
            return reply.read()

    def get_json(self, path: str) -> Any:
        return json.loads(self.request(path))

    def request(self, path: str, body: Any = None) -> bytes:
        """GET, or POST of a JSON body.

        Raises BenchError for a dead server, urllib's HTTPError for an error status.
        """
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            self.url + path, data=data, headers={"Content-Type": "application/json"}
        )
        try:
            with OPENER.open(request, timeout=60) as reply:
                return reply.read()
        except urllib.error.HTTPError:
            raise
        except (OSError, http.client.HTTPException) as error:
            with contextlib.suppress(
                subprocess.TimeoutExpired
            ):  # its connections close before the process has ended
                self.process and self.process.wait(1)
            self.require_alive()
            raise BenchError(f"ComfyUI did not answer {path}: {error}. Log: {self.log}") from error

    def object_info(self) -> dict[str, Any]:
        """Every node the server knows: its inputs, outputs and texts."""
        return self.get_json("/object_info")

    def with_defaults(self, graph: dict[str, Any]) -> dict[str, Any]:
        """The graph with every widget that it leaves out at its default, as the interface would send it.
        Raises BenchError for a node that the server does not know."""
        known = self.object_info()
        complete = {}
        for node, entry in graph.items():
            if entry["class_type"] not in known:
                raise BenchError(
                    f"ComfyUI has no node {entry['class_type']}: did its pack load? Log: {self.log}"
                )
            specs = known[entry["class_type"]]["input"].get("required", {})
            defaults = {name: default_of(spec) for name, spec in specs.items() if name not in entry["inputs"]}
            present = {name: value for name, value in defaults.items() if value is not None}
            complete[node] = {**entry, "inputs": {**present, **entry["inputs"]}}
        return complete

    def queue(self, graph: dict[str, Any], partly: bool = False) -> str:
        """Queues a graph in API format; returns the prompt's id.

        ComfyUI runs the outputs that it has no complaint about, and leaves out the others. Raises
        PromptRejected if the graph does not validate: the whole of it, or, with `partly`, no output.
        """
        try:
            reply = json.loads(self.request("/prompt", {"prompt": graph, "client_id": self.client_id}))
        except urllib.error.HTTPError as error:
            try:
                reply = json.loads(error.read())
            except ValueError:  # a server that broke answers with a page
                raise BenchError(f"ComfyUI answered /prompt with {error}. Log: {self.log}") from error
            raise PromptRejected(reply) from error
        if reply.get("node_errors") and not partly:
            raise PromptRejected(reply)
        return reply["prompt_id"]

    def wait(self, prompt_id: str, timeout: float = 600) -> dict[str, Any]:
        """The history entry of a finished prompt, interrupted or not.

        Raises BenchError if it failed or took longer.
        """
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            entry = self.get_json(f"/history/{prompt_id}").get(prompt_id)
            if entry is not None:
                raise_failure(entry, self.log)
                return entry
            self.require_alive()
            time.sleep(0.1)
        raise BenchError(f"the prompt {prompt_id} was not done within {timeout:.0f} s. Log: {self.log}")

    def run(self, graph: dict[str, Any], timeout: float = 600, partly: bool = False) -> dict[str, Any]:
        """Queues a graph and waits for it; returns its history entry. partly: as in `queue`."""
        return self.wait(self.queue(graph, partly), timeout)

    def interrupt(self) -> None:
        """Stops the prompt that is running."""
        self.request("/interrupt", {})

    def free(self) -> None:
        """Unloads the models and empties the cache of node outputs."""
        self.request("/free", {"unload_models": True, "free_memory": True})

    def download(self, item: dict[str, str]) -> bytes:
        """The contents of one output file as `output_files` lists them."""
        query = urllib.parse.urlencode({key: item.get(key, "") for key in ("filename", "subfolder", "type")})
        return self.request(f"/view?{query}")

    def path_of(self, item: dict[str, str]) -> Path:
        """Where an output file lies on this machine."""
        return self.base / item["type"] / item.get("subfolder", "") / item["filename"]


def default_of(spec: list[Any]) -> Any:
    """Value of a widget when its node is added: its default, a menu's first entry; None for a socket."""
    kind, options = spec[0], spec[1] if len(spec) > 1 else {}
    menu = kind if isinstance(kind, list) else options.get("options")
    return options.get("default", menu[0] if menu else None)


def output_files(entry: dict[str, Any]) -> Iterator[tuple[str, dict[str, str]]]:
    """Node id and file (filename, subfolder, type) of everything a prompt wrote: images, videos, previews."""
    for node, outputs in entry.get("outputs", {}).items():
        for items in outputs.values():
            for item in items if isinstance(items, list) else []:
                if isinstance(item, dict) and "filename" in item:
                    yield node, item


def was_interrupted(entry: dict[str, Any]) -> bool:
    return any(name == "execution_interrupted" for name, _ in entry.get("status", {}).get("messages", []))


def raise_failure(entry: dict[str, Any], log: Path) -> None:
    """Raises BenchError with the node and its message if a prompt ended in an exception."""
    for name, message in entry.get("status", {}).get("messages", []):
        if name == "execution_error":
            node = f"{message.get('node_type')} (node {message.get('node_id')})"
            text = str(message.get("exception_message")).strip()
            raise BenchError(f"{node} failed: {message.get('exception_type')}: {text} Log: {log}")


def claim_port(port: int) -> int:
    """`port` if it is free, any free one for 0. Raises BenchError if it is taken."""
    with socket.socket() as probe:
        if os.name != "nt":  # there it means that two programs may share a port
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OverflowError as error:
            raise BenchError(f"there is no port {port}: choose one from 1 to 65535 with --port.") from error
        except OSError as error:
            raise BenchError(
                f"port {port} is taken ({error.strerror}): choose another one with --port."
            ) from error
        return probe.getsockname()[1]
