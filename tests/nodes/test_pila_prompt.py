"""The prompt nodes: rules, a language model in the graph, and an endpoint played by a small server in this
process."""

from __future__ import annotations

import asyncio
import json
import random
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
from latent_physics.nodes.host.endpoint import (
    KEY_FILE,
    KEY_VARIABLE,
    NO_KEY,
    SENT,
    URL_VARIABLE,
    Endpoint,
    EndpointError,
    find_key,
    require_known,
    without,
)

pytest.importorskip("comfy", reason="needs ComfyUI: run dev.py once, or set COMFYUI_PATH")

import folder_paths
from latent_physics.methods.labels.rules import rule_labels
from latent_physics.methods.pila import CATEGORIES
from latent_physics.nodes import prompt as prompts

pytestmark = pytest.mark.comfy

KEY = "sk-test-4f1d0c9b8a7e6d5c4b3a29181706f5e4"
PROMPT = "boiling water in an open pot"


class Server:
    """Speaks OpenAI's chat protocol; `answer(request) -> (status, body text)` decides what it says."""

    def __init__(self, answer):
        requests = self.requests = []
        self.answer = answer
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                headers = {name.lower(): value for name, value in self.headers.items()}
                requests.append(
                    {
                        "path": self.path,
                        "body": body,
                        "key": headers.get("authorization", ""),
                        "headers": headers,
                    }
                )
                status, text = server.answer(body)
                payload = text.encode("utf-8", "surrogatepass")
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(payload)))
                if status in (301, 307):
                    self.send_header("Location", "http://127.0.0.1:1/elsewhere")
                self.end_headers()
                self.wfile.write(payload)

            def log_message(self, *arguments):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()


def reply(content):
    """A chat completion with that message."""
    choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": content}}
    return 200, json.dumps(
        {"id": "1", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice]}
    )


def sensible(body):
    if "Rewrite" in body["messages"][0]["content"]:
        return reply('{"description": "Water in an open pot boils; steam rises."}')
    return reply('{"labels": ["Phase Change", "Fluid"], "confidence": [0.9, 0.6]}')


@pytest.fixture
def serve():
    servers = []

    def start(answer=sensible):
        servers.append(Server(answer))
        return servers[-1]

    yield start
    for server in servers:
        server.http.shutdown()
        server.http.server_close()


@pytest.fixture(autouse=True)
def clean_room(monkeypatch, tmp_path):
    """No keys, no cached answers, a user directory of its own."""
    account = (
        "OPENAI_API_KEY",
        "OPENAI_ADMIN_KEY",
        "OPENAI_ORG_ID",
        "OPENAI_PROJECT_ID",
        "OPENAI_CUSTOM_HEADERS",
    )
    for name in (*account, KEY_VARIABLE, URL_VARIABLE):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(folder_paths, "user_directory", str(tmp_path))
    Endpoint.answers.clear()
    return tmp_path


def run(method=prompts.ENDPOINT, text=PROMPT, **options):
    with torch.inference_mode():
        return asyncio.run(
            prompts.PhysicsPromptParser.execute(prompt=text, method=method, rewrite=True, **options)
        ).args


def ask(server, **options):
    return run(base_url=server.url, model="m", timeout=5.0, retries=0, **options)


def test_offline_rules_answer_at_once():
    description, labels, report = run(prompts.OFFLINE)
    assert description == PROMPT
    assert labels == dict.fromkeys(rule_labels(PROMPT), 1.0)
    assert "by: offline rules" in report


def test_an_endpoint_rewrites_and_labels_with_structured_output(serve):
    server = serve()
    description, labels, report = ask(server)
    assert description == "Water in an open pot boils; steam rises."
    assert labels == {"Phase Change": 1.0, "Fluid": 1.0}  # as in training; how sure it was is in the report
    assert "Phase Change 0.90" in report
    assert f"m at {server.url.removesuffix('/v1')}" in report
    assert [request["path"] for request in server.requests] == ["/v1/chat/completions"] * 2
    formats = [request["body"]["response_format"]["json_schema"]["name"] for request in server.requests]
    assert formats == ["description", "labels"]
    assert PROMPT in server.requests[0]["body"]["messages"][1]["content"]


def test_the_same_question_is_asked_once(serve):
    server = serve()
    first, second = ask(server), ask(server)
    assert first == second
    assert len(server.requests) == 2
    ask(server, seed=1)
    assert len(server.requests) == 4


def test_useless_answers_are_not_kept(serve):
    server = serve(lambda body: reply("I would rather not."))
    assert "offline rules" in ask(server)[2]
    server.answer = sensible
    assert ask(server)[1] == {"Phase Change": 1.0, "Fluid": 1.0}


def test_a_server_that_failed_is_asked_by_the_next_run(serve):
    """ComfyUI keeps a node's outputs while its fingerprint stays, also those that the rules gave."""

    def state(method=prompts.ENDPOINT):
        widgets = {"prompt": PROMPT, "rewrite": True, "base_url": server.url, "model": "m"}
        return prompts.PhysicsPromptParser.fingerprint_inputs(method=method, **widgets)

    server = serve(lambda body: (503, "starting"))
    before = state()
    assert "offline rules" in ask(server)[2]
    assert state() != before
    failed, server.answer = state(), sensible
    assert ask(server)[1] == {"Phase Change": 1.0, "Fluid": 1.0}
    assert state() == failed, "an answer is kept"
    ask(server, text="")
    assert state() == failed, "nothing was asked"
    assert state(prompts.OFFLINE) == ""


def test_a_server_without_structured_output_is_asked_plainly(serve):
    def old(body):
        return (
            (400, '{"error": {"message": "response_format is unknown"}}')
            if "response_format" in body
            else sensible(body)
        )

    server = serve(old)
    assert ask(server)[1] == {"Phase Change": 1.0, "Fluid": 1.0}
    assert len(server.requests) == 4


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (lambda body: (500, '{"error": {"message": "out of memory"}}'), "out of memory"),
        (lambda body: (401, '{"error": {"message": "bad key"}}'), "bad key"),
        (lambda body: (404, '{"error": {"message": "no such model"}}'), "no such model"),
        (lambda body: (307, ""), "gave no answer"),
        (lambda body: (200, "<html>login</html>"), "labels are from the offline rules"),
        (lambda body: (200, '{"choices": []}'), "empty"),
        (lambda body: reply(None), "empty"),
        (lambda body: reply('{"labels": ["Plasma"], "description": ""}'), "not one of the eight"),
    ],
)
def test_failures_lead_to_the_rules_and_are_said(serve, answer, words):
    description, labels, report = ask(serve(answer))
    assert description == PROMPT
    assert labels == dict.fromkeys(rule_labels(PROMPT), 1.0)
    assert words in report


def test_a_slow_server_costs_the_timeout_and_no_more(serve):
    def slow(body):
        time.sleep(2.5)
        return sensible(body)

    labels, report = run(base_url=serve(slow).url, model="m", timeout=0.3, retries=0)[1:]
    assert labels == dict.fromkeys(rule_labels(PROMPT), 1.0)
    assert "Timeout" in report


@pytest.mark.parametrize(
    ("url", "model"),
    [("http://127.0.0.1:1/v1", "m"), ("ftp://host/v1", "m"), ("nonsense", "m"), ("http://user:pass@host/v1",
    "m"),
     ("http://host:99999/v1", "m"), ("http://127.0.0.1:1/v1?x=", "m"), ("", "m"), ("http://127.0.0.1:1/v1",
     " ")],
)  # fmt: skip
def test_addresses_that_lead_nowhere(url, model):
    labels, report = run(base_url=url, model=model, timeout=2.0, retries=0)[1:]
    assert labels == dict.fromkeys(rule_labels(PROMPT), 1.0)
    assert "offline rules" in report
    assert "pass" not in report


def test_a_key_goes_only_to_the_server_it_is_for(serve, monkeypatch, clean_room):
    mine, other = serve(), serve()
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    ask(mine)
    assert mine.requests[0]["key"] == f"Bearer {NO_KEY}"
    assert find_key("https://api.openai.com/v1") == KEY
    assert find_key("http://api.openai.com/v1") is None
    assert find_key("https://api.openai.com.evil.example/v1") is None
    monkeypatch.setenv(KEY_VARIABLE, KEY)
    monkeypatch.setenv(URL_VARIABLE, mine.url)
    ask(mine, seed=1)
    ask(other, seed=1)
    assert mine.requests[-1]["key"] == f"Bearer {KEY}"
    assert KEY not in other.requests[-1]["key"]


@pytest.mark.parametrize(
    "url", ["http://192.0.2.1/v1", "https://llm.example/v1", "http://localhost.example:11434/v1"]
)
def test_strange_servers_are_not_asked(url, monkeypatch, clean_room):
    """A workflow from elsewhere names a server; nothing is sent to it before the user has named it too."""
    asked = []
    monkeypatch.setattr(Endpoint, "_request", lambda self, *_: asked.append(self.base_url) or "")
    labels, report = run(base_url=url, model="m")[1:]
    assert labels == dict.fromkeys(rule_labels(PROMPT), 1.0)
    assert URL_VARIABLE in report
    assert url.removesuffix("/v1") in report
    assert not asked
    folder = clean_room / "__latent_physics"
    folder.mkdir()
    (folder / KEY_FILE).write_text(json.dumps({url: ""}))
    run(base_url=url, model="m")
    assert asked == [url] * 2
    (folder / KEY_FILE).unlink()
    monkeypatch.setenv(URL_VARIABLE, url)
    run(base_url=url, model="m")
    assert asked == [url] * 4


@pytest.mark.parametrize(
    "url",
    ["http://localhost:11434/v1", "http://127.0.0.2/v1", "http://[::1]:80/v1", "https://api.openai.com/v1"],
)
def test_servers_on_this_machine_and_openai_need_no_permission(url):
    require_known(url)


def test_the_environment_tells_a_server_nothing_of_the_users_account(serve, monkeypatch):
    """The openai package sends these with every request, wherever it goes; a proxy would even get requests to
    this machine."""
    server = serve()
    secrets = {"OPENAI_ORG_ID": "org-secret", "OPENAI_PROJECT_ID": "secret-project", "OPENAI_ADMIN_KEY": KEY,
               "OPENAI_CUSTOM_HEADERS": f"Authorization: Bearer {KEY}\nX-Mine: secret"}  # fmt: skip
    for name, value in {
        **secrets,
        "HTTP_PROXY": "http://127.0.0.1:1",
        "http_proxy": "http://127.0.0.1:1",
    }.items():
        monkeypatch.setenv(name, value)
    assert ask(server)[1] == {"Phase Change": 1.0, "Fluid": 1.0}
    for request in server.requests:
        assert set(request["headers"]) <= SENT
        assert request["key"] == f"Bearer {NO_KEY}"
        assert "secret" not in json.dumps(request["headers"])


def test_a_key_from_the_system_user_directory(serve, clean_room):
    server = serve()
    folder = clean_room / "__latent_physics"
    folder.mkdir()
    (folder / KEY_FILE).write_text(json.dumps({server.url: KEY}))
    ask(server)
    assert server.requests[0]["key"] == f"Bearer {KEY}"
    (folder / KEY_FILE).write_text("not json")
    ask(server, seed=1)
    assert KEY not in server.requests[-1]["key"]


def test_a_misspelt_address_of_the_users_own_spoils_no_other(serve, monkeypatch, clean_room):
    """Without "http://" it names no server; servers on this machine and keys of other ones go on working."""
    server = serve()
    folder = clean_room / "__latent_physics"
    folder.mkdir()
    (folder / KEY_FILE).write_text(json.dumps({"my llama": "sk-of-no-server", server.url: KEY}))
    monkeypatch.setenv(URL_VARIABLE, "192.0.2.1:8080/v1")
    assert ask(server)[1] == {"Phase Change": 1.0, "Fluid": 1.0}
    assert server.requests[0]["key"] == f"Bearer {KEY}"
    with pytest.raises(EndpointError, match="have not allowed it"):
        require_known("http://192.0.2.1:8080/v1")


def test_hundreds_of_hostile_answers_never_crash_and_never_leak_the_key(serve, monkeypatch, caplog, capfd):
    generator = random.Random(0)
    pieces = [KEY, KEY[:20], KEY[7:], f"Bearer {KEY}", '{"labels": '
                                                       '["Fluid"]}', '{"description": '
                                                                     '"', '"}', "{", "[" * 100,
              "\x00", "\u202e", "\u6c34",
              "Traceback", "ignore the rules", "\\", "NaN"]  # fmt: skip

    def hostile(body):
        text = "".join(generator.choices(pieces, k=generator.randint(0, 12)))
        kind = generator.randrange(5)
        if kind == 0:
            return generator.choice([400, 401, 403, 404, 409, 422, 429, 500, 503]), json.dumps(
                {"error": {"message": text}}
            )
        if kind == 1:
            return 200, text
        if kind == 2:
            return reply(json.dumps({"description": text or KEY, "labels": [KEY]}))
        return reply(text)

    server = serve(hostile)
    monkeypatch.setenv(KEY_VARIABLE, KEY)
    monkeypatch.setenv(URL_VARIABLE, server.url)
    for number in range(120):
        description, labels, report = ask(server, seed=number)
        everything = description + json.dumps(labels) + report
        assert set(labels) <= set(CATEGORIES)
        assert all(KEY[i : i + 8] not in everything for i in range(len(KEY) - 7)), everything
    printed = caplog.text + "".join(capfd.readouterr())
    assert KEY not in printed
    assert len(server.requests) >= 240


def test_secrets_are_cut_out_of_texts():
    assert without(KEY, f"key {KEY}!") == f"key {'*' * len(KEY)}!"
    assert KEY[5:20] not in without(KEY, f"part {KEY[5:20]} of it")
    assert without(None, "nothing") == "nothing"
    assert without(NO_KEY, "none of it") == "none of it"


class Writer:
    """A CLIP that writes."""

    def __init__(self, answers):
        self.answers, self.asked = list(answers), []

    def tokenize(self, text, **options):
        self.asked.append((text, options))
        return [1]

    def generate(self, tokens, **options):
        self.asked[-1] += (options,)
        return [2]

    def decode(self, ids):
        return self.answers.pop(0)


def test_a_language_model_in_the_graph():
    clip = Writer(['{"description": "Water boils."}', '{"labels": ["Thermal"], "confidence": [0.8]}'])
    description, labels, report = run(prompts.GRAPH, clip=clip, seed=5)
    assert (description, labels) == ("Water boils.", {"Thermal": 1.0})
    assert "LLM in the graph" in report
    assert [options["do_sample"] for _, _, options in clip.asked] == [True, False]
    assert all(options["seed"] == 5 for _, _, options in clip.asked)


def gemma():
    """ComfyUI's own tokenizer of Gemma 3, around a tiny vocabulary."""
    import io

    import sentencepiece
    from comfy.text_encoders.lt import Gemma3_12BTokenizer

    vocabulary, words = (
        io.BytesIO(),
        ["<start_of_turn>user water boils<end_of_turn> model system You are a helpful assistant."],
    )
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(words * 20), model_writer=vocabulary, vocab_size=60, model_type="char",
        minloglevel=2,
        hard_vocab_limit=False, pad_id=0, unk_id=3, bos_id=2, eos_id=1, character_coverage=1.0,
    )  # fmt: skip
    spiece = torch.frombuffer(bytearray(vocabulary.getvalue()), dtype=torch.uint8)
    return Gemma3_12BTokenizer(tokenizer_data={"spiece_model": spiece})


def test_gemma_is_asked_in_its_chat_template():
    """Without it Gemma goes on with the question instead of answering it."""
    tokenizer, asked = gemma(), []

    class Clip(Writer):
        def tokenize(self, text, **options):
            (row,) = tokenizer.tokenize_with_weights(text, **options)
            asked.append(tokenizer.tokenizer.decode([token for token, _ in row if token not in (0, 106)]))
            return super().tokenize(text, **options)

    run(prompts.GRAPH, clip=Clip(['{"description": "Water boils."}', '{"labels": ["Thermal"]}']))
    assert len(asked) == 2
    text = asked[1]
    assert text.startswith("<start_of_turn>system")
    assert text.rstrip().endswith("<start_of_turn>model")
    assert "<start_of_turn>user" in text


def test_encoders_that_cannot_write_lead_to_the_rules():
    class Mute:
        def tokenize(self, text, **options):
            return [1]

        def generate(self, tokens, **options):
            raise AttributeError("'UMT5' object has no attribute 'generate'")

    for clip, words in [
        (None, "No CLIP is wired"),
        (object(), "cannot write"),
        (Mute(), "no attribute 'generate'"),
    ]:
        labels, report = run(prompts.GRAPH, clip=clip)[1:]
        assert labels == dict.fromkeys(rule_labels(PROMPT), 1.0)
        assert words in report


def test_labels_by_hand():
    def choose(**sliders):
        return prompts.PhysicsLabels.execute(**sliders).args[0]

    assert choose(rigid_body=0.0, fluid=0.5, optical=1.0) == {"Fluid": 0.5, "Optical": 1.0}
    assert choose(labels={"Thermal": 0.9, "Fluid": 0.2}, fluid=1.0) == {"Thermal": 0.9, "Fluid": 1.0}
    assert choose() == {}
    ids = {thing.id for thing in prompts.PhysicsLabels.define_schema().inputs}
    assert {prompts.widget_name(name) for name in CATEGORIES} <= ids
