"""Bounds of a conversation with a server that may be slow, endless or something else: a deadline, a cancel
button, a size."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, TypeVar

POLL = 0.1
"""Seconds between two looks at the cancel button."""
LARGEST_REPLY = 1 << 20
"""Bytes of a reply's body. The longest answer that is read has 20,000 letters."""
START = 256
"""Bytes kept of a reply, to tell what it is."""
Result = TypeVar("Result")


class EndpointError(RuntimeError):
    """The endpoint gave no answer. The message is one clause without secrets."""


def finish_by(
    deadline: float,
    start: Callable[[], Coroutine[Any, Any, Result]],
    cancelled: Callable[[], bool] = lambda: False,
) -> Result:
    """Runs a coroutine in an event loop of its own until `deadline` (of time.monotonic) at the latest.

    Raises EndpointError where it does not finish, or `cancelled` says so; sockets are closed then, and a name
    that is still being looked up is not waited for. Call it from a thread without a running event loop.
    """
    loop = asyncio.new_event_loop()  # asyncio.run would wait for the threads that look up names
    try:
        return loop.run_until_complete(_watched(start(), deadline, cancelled))
    finally:
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()


async def _watched(
    work: Coroutine[Any, Any, Result], deadline: float, cancelled: Callable[[], bool]
) -> Result:
    task = asyncio.ensure_future(work)
    while True:
        left = deadline - time.monotonic()
        await asyncio.wait({task}, timeout=max(0.0, min(POLL, left)))
        if task.done():
            return task.result()
        if left <= 0 or cancelled():
            task.cancel()
            await asyncio.wait({task}, timeout=POLL)
            raise EndpointError("it was cancelled" if left > 0 else "the endpoint gave no answer (Timeout)")


class Reply:
    """Watches one reply as it comes in. `watch` is a response hook of an httpx client."""

    def __init__(self) -> None:
        self.start = b""
        self.size = 0

    async def watch(self, response: Any) -> None:
        """Bounds the body of a response. Raises EndpointError where it is compressed: a small one could
        unfold to gigabytes."""
        if response.headers.get("content-encoding", "identity").lower() != "identity":
            raise EndpointError("the answer was compressed, though that was not asked for")
        self.start, self.size = b"", 0
        response.stream = self._bounded(response.stream)

    def _bounded(self, stream: Any) -> Any:
        reply = self
        # The client checks the type; openai brings httpx or httpx2, whichever its version is made for.
        base = next(kind for kind in type(stream).__mro__ if kind.__name__ == "AsyncByteStream")

        class Bounded(base):  # type: ignore[misc, valid-type]
            async def __aiter__(self) -> AsyncIterator[bytes]:
                async for part in stream:
                    reply.size += len(part)
                    reply.start = (reply.start + part)[:START]
                    if reply.size > LARGEST_REPLY:
                        raise EndpointError(f"the answer was larger than {LARGEST_REPLY >> 20} MiB")
                    yield part

            async def aclose(self) -> None:
                await stream.aclose()

        return Bounded()

    @property
    def is_html(self) -> bool:
        """Whether the body is a web page: a login, or an address that is not the API's."""
        return (
            self.start.lstrip(b"\xef\xbb\xbf \t\r\n")
            .lower()
            .startswith((b"<!doctype html", b"<html", b"<head", b"<body"))
        )
