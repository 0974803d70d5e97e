"""A running ComfyUI as a source of clips: queue, progress, download, and what happens if it dies."""

from __future__ import annotations

import contextlib
import http.client
import json
import mimetypes
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from .errors import EvaluationError
from .websocket import WebSocket

Progress = Callable[[float], None]
"""Told the share of a clip that is done, in [0, 1]."""
VIDEOS = (".mp4", ".webm", ".mov", ".mkv", ".gif", ".webp")
POLL = 2.0
"""Seconds after which the history is asked although no message came."""


class ServerGone(Exception):
    """The server does not answer, or lost the prompt.

    Another server, or the same one later, can make the clip.
    """


class ClipFailed(Exception):
    """The graph raised an exception or wrote no video. The message says which node and why."""


class ComfyUI:
    """One server. Every request raises ServerGone if it does not answer."""

    def __init__(self, url: str, timeout: float = 30.0) -> None:
        """`url`: http://HOST:PORT, a path before ComfyUI's own allowed.

        Raises EvaluationError for anything else.
        """
        parts = urllib.parse.urlsplit(url if "://" in url else f"http://{url}")
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise EvaluationError(f"{url!r} is no address of a server; write http://HOST:PORT.")
        self.url = f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/')}"
        self.name = parts.netloc
        self.timeout = timeout
        self.client = uuid.uuid4().hex
        # A proxy named in the environment must not get requests to this machine.
        local = parts.hostname in ("localhost", "127.0.0.1", "::1")
        self._opener = urllib.request.build_opener(*([urllib.request.ProxyHandler({})] if local else []))

    def request(self, path: str, body: Any = None, headers: Mapping[str, str] | None = None) -> bytes:
        """GET, or POST of `body` (bytes, or anything JSON). Raises urllib's HTTPError for a refusal."""
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        request = urllib.request.Request(
            self.url + path, data=data, headers={"Content-Type": "application/json", **(headers or {})}
        )
        try:
            with self._opener.open(request, timeout=self.timeout) as reply:
                return reply.read()
        except urllib.error.HTTPError:
            raise
        except (OSError, http.client.HTTPException) as error:
            raise ServerGone(f"{self.name} does not answer ({error})") from error

    def json(self, path: str) -> Any:
        """A GET's answer.

        Raises ServerGone for an error status or no JSON: a proxy before a dead server sends those.
        """
        try:
            return json.loads(self.request(path))
        except (ValueError, urllib.error.HTTPError) as error:
            raise ServerGone(f"{self.name} answers {path} with {error}") from error

    def alive(self) -> bool:
        """Whether it answers."""
        try:
            self.json("/system_stats")
        except ServerGone:
            return False
        return True

    def waiting(self) -> set[str]:
        """Ids of the prompts that run or wait."""
        queue = self.json("/queue")
        return {entry[1] for part in ("queue_running", "queue_pending") for entry in queue.get(part, [])}

    def entry(self, prompt_id: str) -> dict[str, Any] | None:
        """History entry of a prompt that ended, well or not; None for others."""
        return self.json(f"/history/{prompt_id}").get(prompt_id)

    def queue(self, graph: Mapping[str, Any], prompt_id: str) -> str:
        """Queues a graph; returns the prompt's id, ours unless the server is old.

        Raises EvaluationError if it is refused.
        """
        body = {"prompt": graph, "client_id": self.client, "prompt_id": prompt_id}
        try:
            return json.loads(self.request("/prompt", body))["prompt_id"]
        except urllib.error.HTTPError as error:
            text = error.read().decode("utf-8", "replace")
            if error.code >= 500:
                raise ServerGone(f"{self.name} answers /prompt with {error}") from error
            raise EvaluationError(f"{self.name} refuses the graph: {_refusal(text)}.") from error
        except (ValueError, KeyError) as error:
            raise ServerGone(f"{self.name} answers /prompt with no prompt id") from error

    def upload(self, picture: Path) -> str:
        """Puts a picture into the server's input folder; returns its name there."""
        border = uuid.uuid4().hex
        kind = mimetypes.guess_type(picture.name)[0] or "application/octet-stream"
        fields = [
            f'--{border}\r\nContent-Disposition: form-data; name="overwrite"\r\n\r\ntrue\r\n',
            f'--{border}\r\nContent-Disposition: form-data; name="image"; filename="{picture.name}"\r\n'
            f"Content-Type: {kind}\r\n\r\n",
        ]
        body = "".join(fields).encode() + picture.read_bytes() + f"\r\n--{border}--\r\n".encode()
        headers = {"Content-Type": f"multipart/form-data; boundary={border}"}
        try:
            reply = json.loads(self.request("/upload/image", body, headers))
        except urllib.error.HTTPError as error:
            raise EvaluationError(f"{self.name} refuses the picture {picture.name} ({error}).") from error
        return f"{reply['subfolder']}/{reply['name']}" if reply.get("subfolder") else reply["name"]

    def wait(self, prompt_id: str, progress: Progress, timeout: float) -> dict[str, Any]:
        """The history entry of a finished prompt.

        Raises ServerGone if the server dies or forgets the prompt, ClipFailed after `timeout` seconds or an
        exception in a node.
        """
        deadline = time.monotonic() + timeout
        shown = _Share(progress)
        with contextlib.closing(self._listen()) as messages:
            while True:
                shown(shown.value)  # a progress that raises ends the waiting
                entry = self.entry(prompt_id)
                if entry is not None:
                    raise_failure(entry)
                    return entry
                # Asked in this order, a prompt that ends between two requests is in one of the answers.
                if prompt_id not in self.waiting() and self.entry(prompt_id) is None:
                    raise ServerGone(f"{self.name} was started anew and lost its queue")
                if time.monotonic() > deadline:
                    raise ClipFailed(f"not done after {timeout:.0f} s")
                if not _follow(messages, prompt_id, shown):
                    time.sleep(0.2)

    def _listen(self) -> WebSocket | _NoMessages:
        """The server's messages; polling alone has to do if a proxy lets no WebSocket through."""
        try:
            return WebSocket(f"{self.url}/ws?clientId={self.client}", self.timeout)
        except (OSError, ConnectionError):
            return _NoMessages()

    def download(self, item: Mapping[str, str], target: Path) -> None:
        """Writes an output file to `target`."""
        query = urllib.parse.urlencode({key: item.get(key, "") for key in ("filename", "subfolder", "type")})
        try:
            target.write_bytes(self.request(f"/view?{query}"))
        except urllib.error.HTTPError as error:
            raise ClipFailed(f"{item['filename']} cannot be downloaded ({error})") from error


class _Share:
    """A progress that remembers what it said last."""

    def __init__(self, progress: Progress) -> None:
        self.value, self._progress = 0.0, progress

    def __call__(self, value: float) -> None:
        self.value = value
        self._progress(value)


class _NoMessages:
    """Stands for a WebSocket that could not be opened."""

    def receive(self, timeout: float) -> None:
        time.sleep(min(timeout, 0.5))

    def close(self) -> None:
        pass


def _follow(messages: WebSocket | _NoMessages, prompt_id: str, progress: Progress) -> bool:
    """Passes progress on until the prompt ends or `POLL` seconds pass. False if the connection is gone."""
    deadline = time.monotonic() + POLL
    while (left := deadline - time.monotonic()) > 0:
        try:
            text = messages.receive(left)
        except (OSError, ConnectionError):
            messages.close()
            return False
        if text is None:
            return True
        kind, data = _message(text)
        if data.get("prompt_id") != prompt_id:
            continue
        if kind == "progress" and data.get("max"):
            progress(float(data["value"]) / float(data["max"]))
        if kind in ("execution_success", "execution_error", "execution_interrupted"):
            return True
        if kind == "executing" and data.get("node") is None:
            return True
    return True


def _message(text: str) -> tuple[str, dict[str, Any]]:
    try:
        message = json.loads(text)
        data = message.get("data")
        return str(message.get("type")), data if isinstance(data, dict) else {}
    except (ValueError, AttributeError):
        return "", {}


def _refusal(text: str) -> str:
    """Objections of /prompt to a graph, in one line."""
    try:
        reply = json.loads(text)
        details = [
            f"node {node} ({entry.get('class_type')}): {error.get('message')}: {error.get('details')}"
            for node, entry in reply.get("node_errors", {}).items()
            for error in entry.get("errors", [])
        ]
        return "; ".join(details) or str(reply["error"].get("message", reply["error"]))
    except (ValueError, KeyError, AttributeError):
        return text[:200] or "no reason given"


def raise_failure(entry: Mapping[str, Any]) -> None:
    """Raises ClipFailed for a prompt that ended in an exception or was interrupted."""
    for name, message in entry.get("status", {}).get("messages", []):
        if name == "execution_error":
            text = " ".join(str(message.get("exception_message")).split())
            raise ClipFailed(f"node {message.get('node_id')} ({message.get('node_type')}): {text}")
        if name == "execution_interrupted":
            raise ClipFailed("interrupted on the server")


def videos_of(entry: Mapping[str, Any], node: str) -> Iterator[Mapping[str, str]]:
    """Video files that a node of a finished prompt wrote."""
    for items in entry.get("outputs", {}).get(node, {}).values():
        for item in items if isinstance(items, list) else []:
            if isinstance(item, Mapping) and str(item.get("filename", "")).lower().endswith(VIDEOS):
                yield item
