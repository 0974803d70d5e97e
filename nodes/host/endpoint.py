"""An OpenAI-compatible endpoint as a parser's `ask`: address, key, limits, remembered answers."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import folder_paths

from ...methods.labels.llm import SCHEMAS, Ask, clean
from .bounds import EndpointError, Reply, finish_by

SYSTEM_USER = "latent_physics"
KEY_FILE = "llm_keys.json"
KEY_VARIABLE, URL_VARIABLE = "LATENT_PHYSICS_LLM_API_KEY", "LATENT_PHYSICS_LLM_BASE_URL"
OPENAI_ORIGIN = "https://api.openai.com"
NO_KEY = "none"
"""Key for endpoints without one; the client insists on a key."""
LOCAL_URL = "http://127.0.0.1:11434/v1"
CACHED_ANSWERS = 256


def origin(url: str) -> str:
    """scheme://host:port of an address, in lower case. Raises EndpointError for anything but http and
    https."""
    try:
        parts = urlsplit(url.strip())
        port = f":{parts.port}" if parts.port else ""
    except ValueError as error:
        raise EndpointError(f"{clean(url)[:80]!r} is not an address") from error
    odd = parts.username or parts.password or parts.query or parts.fragment
    if parts.scheme not in ("http", "https") or not parts.hostname or odd:
        raise EndpointError(f"the address must look like {LOCAL_URL}")
    return f"{parts.scheme}://{parts.hostname.lower()}{port}"


def is_at(url: str, here: str) -> bool:
    """Whether an address of the user's own is on the server `here`; one that is no address is on none."""
    try:
        return origin(url) == here
    except EndpointError:
        return False


def find_key(base_url: str) -> str | None:
    """The API key for an address, None where there is none.

    A key is tied to the server it is for, because a workflow from elsewhere may bring any address:
    OPENAI_API_KEY goes to api.openai.com alone, LATENT_PHYSICS_LLM_API_KEY to the server that
    LATENT_PHYSICS_LLM_BASE_URL names, and keys in the system user directory (llm_keys.json, never served by
    ComfyUI) to the servers they are listed under.
    """
    here = origin(base_url)
    if here == OPENAI_ORIGIN and os.environ.get("OPENAI_API_KEY"):
        return os.environ["OPENAI_API_KEY"]
    own = os.environ.get(URL_VARIABLE)
    if own and is_at(own, here) and os.environ.get(KEY_VARIABLE):
        return os.environ[KEY_VARIABLE]
    return next((key for url, key in listed_keys().items() if key and is_at(url, here)), None)


def listed_keys() -> dict[str, str]:
    """Address -> key of llm_keys.json in the system user directory; empty where there is no such file or it
    cannot be read."""
    path = Path(folder_paths.get_system_user_directory(SYSTEM_USER)) / KEY_FILE
    try:
        listed = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return (
        {url: key for url, key in listed.items() if isinstance(key, str)} if isinstance(listed, dict) else {}
    )


def require_known(base_url: str) -> None:
    """Raises EndpointError unless prompts may go to an address: this machine, OpenAI, and the servers that
    the user has named in LATENT_PHYSICS_LLM_BASE_URL or llm_keys.json.

    A workflow from elsewhere may bring any address. Without this, running it would send the prompt to a
    stranger, or a request into the local network.
    """
    here, host = origin(base_url), urlsplit(base_url.strip()).hostname
    if host == "localhost" or here == OPENAI_ORIGIN:
        return
    with suppress(ValueError):
        if ip_address(host).is_loopback:
            return
    if not any(is_at(url, here) for url in [os.environ.get(URL_VARIABLE, ""), *listed_keys()]):
        raise EndpointError(
            f"{here} is not on this machine and you have not allowed it: name it in the environment as "
            f"{URL_VARIABLE}, "
            f"or in {KEY_FILE} (see the node's help)"
        )


SENT = {
    "accept",
    "accept-encoding",
    "authorization",
    "connection",
    "content-length",
    "content-type",
    "host",
    "user-agent",
}
"""Headers that any server may see."""


def stripped(base_url: str, key: str) -> Callable[[Any], Awaitable[None]]:
    """A hook of the HTTP client that keeps to SENT and to `key`. The openai package adds what the environment
    says of the user's account (organisation, project, headers of his own, which may hold another key); that
    is OpenAI's business alone."""

    async def strip(request: Any) -> None:
        request.headers["accept-encoding"] = "identity"
        if origin(base_url) == OPENAI_ORIGIN:
            return
        for name in [name for name in request.headers if name.lower() not in SENT]:
            del request.headers[name]
        request.headers["authorization"] = f"Bearer {key}"

    return strip


def without(secret: str | None, text: str) -> str:
    """A text in which no eight successive characters of the secret are left."""
    if not secret or secret == NO_KEY:
        return text
    size = min(8, len(secret))
    pieces = {secret[i : i + size] for i in range(len(secret) - size + 1)}
    hidden = [False] * len(text)
    for i in range(len(text) - size + 1):
        if text[i : i + size] in pieces:
            hidden[i : i + size] = [True] * size
    return "".join("*" if hide else c for c, hide in zip(text, hidden))


class Endpoint:
    """Any server that speaks OpenAI's chat protocol: Ollama, llama.cpp, LM Studio, vLLM, OpenAI."""

    answers: OrderedDict[str, str] = OrderedDict()
    """Answers already given, by question; shared, so that a prompt is asked once per session."""

    def __init__(
        self,
        base_url: str,
        model: str,
        timeout: float = 30.0,
        retries: int = 2,
        seed: int = 0,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> None:
        """`timeout`: seconds from now on for all questions together, however often they are asked again.

        Raises EndpointError for an address that cannot be one or is not the user's (see require_known), and a
        missing model name.
        """
        require_known(base_url)
        try:
            import openai  # noqa: F401 - before the clock starts: it takes seconds
        except ImportError as error:
            raise EndpointError("the openai package is not installed: pip install openai") from error
        if not model.strip():
            raise EndpointError("no model name was given")
        self.base_url, self.model, self.timeout, self.retries, self.seed = (
            base_url.strip(),
            model.strip(),
            timeout,
            retries,
            seed,
        )
        self.key = find_key(base_url)
        self.deadline, self.cancelled = time.monotonic() + timeout, cancelled

    def ask(self, system: str, user: str, temperature: float, schema: str) -> str:
        """One answer, from the cache where the same was asked before. Raises EndpointError, whose text holds
        no key.

        Call it from a thread without a running event loop.
        """
        question = json.dumps([self.base_url, self.model, self.seed, system, user, temperature, schema])
        name = hashlib.sha256(question.encode()).hexdigest()
        if name not in self.answers:
            answer = without(self.key, self._request(system, user, temperature, schema))
            self.answers[name] = answer
            while len(self.answers) > CACHED_ANSWERS:
                self.answers.popitem(last=False)
        return self.answers[name]

    def forget(self, broken: str) -> None:
        """Drops an answer that turned out to be useless, so that the next run asks again."""
        for name in [name for name, answer in self.answers.items() if answer == broken]:
            del self.answers[name]

    def _request(self, system: str, user: str, temperature: float, schema: str) -> str:
        reply = Reply()
        try:
            return finish_by(
                self.deadline,
                lambda: self._converse(reply, system, user, temperature, schema),
                self.cancelled,
            )
        except EndpointError as error:
            raise EndpointError(clean(without(self.key, str(error)))) from None
        except Exception as error:
            own = next((cause for cause in causes(error) if isinstance(cause, EndpointError)), None)
            if reply.is_html:
                own = EndpointError(
                    f"the answer was an HTML page, not JSON; the address must look like {LOCAL_URL}"
                )
            detail = clean(without(self.key, str(error)))[:200]
            raise own or EndpointError(
                f"the endpoint gave no answer ({type(error).__name__}: {detail})"
            ) from None

    async def _converse(self, reply: Reply, system: str, user: str, temperature: float, schema: str) -> str:
        import openai

        # A redirect could carry prompt and key elsewhere; a proxy could read what is not encrypted, and knows
        # no local server.
        http = openai.DefaultAsyncHttpxClient(
            follow_redirects=False,
            trust_env=self.base_url.lower().startswith("https:"),
            timeout=self.timeout,
            event_hooks={"request": [stripped(self.base_url, self.key or NO_KEY)], "response": [reply.watch]},
        )
        async with openai.AsyncOpenAI(
            base_url=self.base_url,
            api_key=self.key or NO_KEY,
            timeout=self.timeout,
            max_retries=self.retries,
            http_client=http,
        ) as client:
            structured = {
                "type": "json_schema",
                "json_schema": {"name": schema, "strict": True, "schema": SCHEMAS[schema]},
            }
            arguments = {
                "model": self.model,
                "messages": [{"role": "system", "content": system}, {"role": "user", "content": user}],
                "temperature": temperature,
                "seed": self.seed,
            }
            try:
                completion = await client.chat.completions.create(response_format=structured, **arguments)
            except (
                openai.BadRequestError,
                openai.UnprocessableEntityError,
            ):  # a server without structured output
                completion = await client.chat.completions.create(**arguments)
            answer = completion.choices[0].message.content if completion.choices else None
        if not isinstance(answer, str):
            raise EndpointError("the answer was empty")
        return answer


def causes(error: BaseException) -> Iterator[BaseException]:
    """An error and those that led to it."""
    found: BaseException | None = error
    while found is not None:
        yield found
        found = found.__cause__ or found.__context__


def remembering(endpoint: Endpoint) -> Ask:
    """`endpoint.ask`, forgetting answers that cannot be read."""
    from ...methods.labels.llm import AnswerError, read_description, read_labels

    readers: dict[str, Callable[[str], object]] = {"description": read_description, "labels": read_labels}

    def ask(system: str, user: str, temperature: float, schema: str) -> str:
        answer = endpoint.ask(system, user, temperature, schema)
        try:
            readers[schema](answer)
        except AnswerError:
            endpoint.forget(answer)
            raise
        return answer

    return ask


def graph_ask(clip: Any, seed: int, max_length: int = 512) -> Ask:
    """Asks a language model that was loaded as CLIP (Qwen, Gemma, ...)."""

    def ask(system: str, user: str, temperature: float, schema: str) -> str:
        # Without its chat template Gemma continues the text instead of answering it; Qwen has its own by
        # default.
        tokens = clip.tokenize(f"{system}\n\n{user}", min_length=1, thinking=False, skip_template=False)
        sampled = temperature > 0
        ids = clip.generate(
            tokens,
            do_sample=sampled,
            max_length=max_length,
            temperature=max(temperature, 0.01),
            seed=seed,
            repetition_penalty=1.0,
        )
        return clip.decode(ids)

    return ask
