"""Bounds of the conversation with an endpoint: a deadline, a cancel button, a size, whatever the server
does."""

from __future__ import annotations

import asyncio
import gzip
import inspect
import json
import socketserver
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

pytest.importorskip("comfy", reason="needs ComfyUI: run dev.py once, or set COMFYUI_PATH")

import comfy.model_management
from latent_physics.methods.labels.llm import AnswerError, read_description, read_labels, report
from latent_physics.methods.labels.rules import PromptLabels, is_english, parse_by_rules, rule_labels
from latent_physics.nodes import prompt as prompts
from latent_physics.nodes.host import bounds
from latent_physics.nodes.host.endpoint import Endpoint, EndpointError

pytestmark = pytest.mark.comfy

PROMPT = "boiling water in an open pot"
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
ANSWER = '{"labels": ["Fluid"], "description": "Water boils."}'


@pytest.fixture(autouse=True)
def no_answers():
    Endpoint.answers.clear()


@contextmanager
def server(talk: Callable[[Callable[[bytes], None], int], None]) -> Iterator[str]:
    """A server on a socket: `talk(send, number)` answers request `number` as badly as it likes. Yields the
    address."""
    count = [0]

    class Handler(socketserver.StreamRequestHandler):
        def handle(self):
            while True:
                length = 0
                while (line := self.rfile.readline().strip().lower()) != b"":
                    if line.startswith(b"content-length:"):
                        length = int(line.split(b":")[1])
                    if not line:
                        return
                if not length or not self.rfile.read(length):
                    return
                count[0] += 1
                try:
                    talk(self.send, count[0])
                except OSError:
                    return

        def send(self, data: bytes) -> None:
            self.wfile.write(data)
            self.wfile.flush()

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads, allow_reuse_address, block_on_close = True, True, False

    with Server(("127.0.0.1", 0), Handler) as listening:
        threading.Thread(target=listening.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield f"http://127.0.0.1:{listening.server_address[1]}/v1"
        listening.shutdown()


def completion(text: str | None) -> bytes:
    choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}
    body = json.dumps(
        {"id": "1", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice]}
    ).encode()
    return HEAD + f"Content-Length: {len(body)}\r\n\r\n".encode() + body


def ask(url: str, timeout: float, retries: int = 10, **more) -> tuple[prompts.PromptLabels, float]:
    start = time.monotonic()
    parsed = prompts.parse(
        PROMPT, prompts.ENDPOINT, base_url=url, model="m", timeout=timeout, retries=retries, **more
    )
    return parsed, time.monotonic() - start


def drips(send: Callable[[bytes], None], number: int) -> None:
    send(HEAD + b"Content-Length: 100000\r\n\r\n")
    for _ in range(600):
        send(b" ")
        time.sleep(0.05)


def never_answers(send: Callable[[bytes], None], number: int) -> None:
    time.sleep(30)


def fails(send: Callable[[bytes], None], number: int) -> None:
    body = b'{"error": {"message": "busy"}}'
    send(b"HTTP/1.1 503 Busy\r\nRetry-After: 60\r\nContent-Type: application/json\r\n")
    send(f"Content-Length: {len(body)}\r\n\r\n".encode() + body)


@pytest.mark.parametrize("talk", [drips, never_answers, fails])
def test_one_deadline_holds_for_all_questions_and_retries(talk):
    """Two questions, ten retries each, a byte every now and then: 30 seconds to minutes, if nobody watched
    the clock."""
    with server(talk) as url:
        parsed, seconds = ask(url, timeout=1.0)
    assert parsed.labels == rule_labels(PROMPT)
    assert "Timeout" in parsed.note
    assert seconds < 15


@pytest.mark.parametrize("talk", [drips, never_answers, fails])
def test_cancelling_ends_the_conversation(talk):
    asked = time.monotonic()
    with server(talk) as url:
        parsed, seconds = ask(url, timeout=600.0, cancelled=lambda: time.monotonic() - asked > 1.0)
    assert "it was cancelled" in parsed.note
    assert seconds < 20


def test_the_node_is_asynchronous_and_takes_the_cancel_button():
    assert inspect.iscoroutinefunction(prompts.PhysicsPromptParser.execute)

    async def both(url: str) -> int:
        node = asyncio.ensure_future(
            prompts.PhysicsPromptParser.execute(
                prompt=PROMPT, method=prompts.ENDPOINT, rewrite=True, base_url=url, model="m", timeout=600.0
            )
        )
        ticks = 0
        while not node.done():
            await asyncio.sleep(0.05)
            ticks += 1
            if ticks == 20:
                comfy.model_management.interrupt_current_processing(True)
        with pytest.raises(comfy.model_management.InterruptProcessingException):
            await node
        return ticks

    try:
        with server(never_answers) as url:
            assert asyncio.run(both(url)) >= 20, "the event loop was blocked"
    finally:
        comfy.model_management.interrupt_current_processing(False)


def endless(send: Callable[[bytes], None], number: int) -> None:
    send(HEAD + b"Transfer-Encoding: chunked\r\n\r\n")
    while True:
        send(b"10000\r\n" + b" " * 0x10000 + b"\r\n")


def bomb(send: Callable[[bytes], None], number: int) -> None:
    body = gzip.compress(b" " * (64 << 20))
    send(HEAD + f"Content-Encoding: gzip\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)


def page(send: Callable[[bytes], None], number: int) -> None:
    body = b"\n<!DOCTYPE html><html><body>Please sign in.</body></html>"
    kind = b"application/json" if number % 2 else b"text/html"
    send(
        b"HTTP/1.1 200 OK\r\nContent-Type: "
        + kind
        + f"\r\nContent-Length: {len(body)}\r\n\r\n".encode()
        + body
    )


@pytest.mark.parametrize(
    ("talk", "words"),
    [(endless, "larger than 1 MiB"), (bomb, "was compressed"), (page, "an HTML page, not JSON")],
)
def test_replies_that_are_none_are_called_what_they_are(talk, words):
    with server(talk) as url:
        parsed, _ = ask(url, timeout=30.0, retries=0)
    assert parsed.labels == rule_labels(PROMPT)
    assert parsed.note.count(words) == 2


def test_a_reply_just_small_enough_is_read():
    with server(lambda send, number: send(completion(ANSWER + " " * (bounds.LARGEST_REPLY - 1000)))) as url:
        parsed, _ = ask(url, timeout=60.0, retries=0)
    assert parsed.labels == {"Fluid": 1.0}


def test_an_answer_is_read_behind_its_thoughts():
    with server(
        lambda send, number: send(completion('<think>{"labels": ["Optical"]}?\nNo.</think>\n' + ANSWER))
    ) as url:
        parsed, _ = ask(url, timeout=60.0, retries=0)
    assert parsed.labels == {"Fluid": 1.0}
    assert parsed.description == "Water boils."


@pytest.mark.parametrize(
    "answer",
    [
        '<think>Perhaps {"labels": ["Optical"]}.</think>{"labels": ["Fluid"]}',
        'Perhaps {"labels": ["Optical"]}.</think>{"labels": ["Fluid"]}',
        "<thinking>" + "{" * 100 + "long " * 8000 + '</thinking>```json\n{"labels": ["Fluid"]}\n```',
        '<Think>a</Think><think>b {"labels": ["Thermal"]}</think> {"labels": ["Fluid"]} <think>done',
    ],
)
def test_drafts_among_the_thoughts_are_no_answer(answer):
    assert read_labels(answer) == {"Fluid": 1.0}


def test_an_answer_cut_off_in_its_thoughts_says_so():
    with pytest.raises(AnswerError, match="cut off before the model had finished thinking"):
        read_description('<think>I could say {"description": "no"}')


def test_answers_of_one_deadline_share_it():
    endpoint = Endpoint("http://127.0.0.1:1/v1", "m", timeout=0.0)
    with pytest.raises(EndpointError, match="Timeout"):
        endpoint.ask("a", "b", 0.0, "labels")


def test_nothing_is_left_running_behind_a_deadline():
    async def slow() -> str:
        await asyncio.sleep(60)
        return ""

    before, start = set(threading.enumerate()), time.monotonic()
    with pytest.raises(EndpointError, match="Timeout"):
        bounds.finish_by(time.monotonic() + 0.2, slow)
    assert time.monotonic() - start < 10
    assert set(threading.enumerate()) <= before  # others' may have ended


@pytest.mark.parametrize(
    ("prompt", "english"),
    [
        ("a ball falls", True),
        ("red cat", True),
        ("it's a knight's armour, 4k", True),
        ("a caf\u00e9 at night", True),
        ("", True),
        ("\u6c34\u304c\u6cb8\u9a30\u3059\u308b", False),
        (
            "\u0432\u043e\u0434\u0430 \u043a\u0438\u043f\u0438\u0442 "
            "\u0432 \u043a\u0430\u0441\u0442\u0440\u044e\u043b\u0435",
            False,
        ),
        ("Ein Ball f\u00e4llt auf den Boden", False),
        ("Una pelota cae al suelo", False),
        ("une tasse de th\u00e9 sur la table", False),
        ("uma bola cai no ch\u00e3o com for\u00e7a", False),
    ],
)
def test_prompts_in_other_languages_are_known(prompt, english):
    assert is_english(prompt) == english


def test_the_report_does_not_call_a_prompt_it_cannot_read_unphysical():
    assert "could not be read: not English" in report(parse_by_rules("Ein Stein liegt auf der Wiese"))
    assert "nothing physical dominates" in report(parse_by_rules("a portrait of a woman"))
    assert "nothing physical dominates" in report(
        PromptLabels("Ein Stein liegt auf der Wiese", {}, "m at http://host")
    )
