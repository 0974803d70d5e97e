"""A client of one WebSocket (RFC 6455), reading text messages: all that ComfyUI's progress needs, without a
package for it.
"""

from __future__ import annotations

import base64
import contextlib
import os
import socket
import ssl
import time
from urllib.parse import urlsplit

TEXT, CLOSE, PING, PONG, CONTINUATION = 0x1, 0x8, 0x9, 0xA, 0x0
LARGEST = 64 << 20
"""Bytes of the largest message taken; previews are far below it."""


class WebSocket:
    """A connection to `url` (http or https, with path and query)."""

    def __init__(self, url: str, timeout: float = 10.0) -> None:
        """Connects. Raises ConnectionError or OSError if nobody answers or the answer is no WebSocket's."""
        parts = urlsplit(url)
        port = parts.port or (443 if parts.scheme == "https" else 80)
        self._socket = socket.create_connection((parts.hostname or "", port), timeout)
        self._buffer = bytearray()
        self._message = bytearray()
        self._kind = TEXT
        try:
            if parts.scheme == "https":
                self._socket = ssl.create_default_context().wrap_socket(
                    self._socket, server_hostname=parts.hostname
                )
            self._shake_hands(parts.netloc, f"{parts.path}?{parts.query}")
        except BaseException:
            self._socket.close()
            raise

    def _shake_hands(self, host: str, target: str) -> None:
        key = base64.b64encode(os.urandom(16)).decode()
        lines = [
            f"GET {target} HTTP/1.1",
            f"Host: {host}",
            "Upgrade: websocket",
            "Connection: Upgrade",
            f"Sec-WebSocket-Key: {key}",
            "Sec-WebSocket-Version: 13",
        ]
        self._socket.sendall(("\r\n".join(lines) + "\r\n\r\n").encode())
        while b"\r\n\r\n" not in self._buffer:
            self._read()
        head, _, rest = bytes(self._buffer).partition(b"\r\n\r\n")
        if b" 101 " not in head.split(b"\r\n")[0] + b" ":
            raise ConnectionError(f"no WebSocket answers there: {head[:80].decode('latin-1')}")
        self._buffer = bytearray(rest)

    def receive(self, timeout: float) -> str | None:
        """The next text message; None if none is complete within `timeout` seconds.

        Raises ConnectionError if the server closed.
        """
        deadline = time.monotonic() + timeout
        while True:
            frame = self._take_frame()
            if frame is None:
                left = deadline - time.monotonic()
                if left <= 0:
                    return None
                self._socket.settimeout(left)
                with contextlib.suppress(TimeoutError):
                    self._read()
                continue
            text = self._handle(*frame)
            if text is not None:
                return text

    def _read(self) -> None:
        data = self._socket.recv(1 << 16)
        if not data:
            raise ConnectionError("the server closed the connection.")
        self._buffer += data

    def _take_frame(self) -> tuple[bool, int, bytes] | None:
        """(whether it ends a message, opcode, payload) of a frame that has arrived whole; None otherwise."""
        if len(self._buffer) < 2:
            return None
        size, start = self._buffer[1] & 0x7F, 2
        if size >= 126:
            start += 2 if size == 126 else 8
            if len(self._buffer) < start:
                return None
            size = int.from_bytes(self._buffer[2:start], "big")
        if size > LARGEST:
            raise ConnectionError(f"the server sent a message of {size} bytes.")
        if len(self._buffer) < start + size:
            return None
        last, kind = bool(self._buffer[0] & 0x80), self._buffer[0] & 0x0F
        payload = bytes(self._buffer[start : start + size])
        del self._buffer[: start + size]
        return last, kind, payload

    def _handle(self, last: bool, kind: int, payload: bytes) -> str | None:
        """Text of a message that this frame ends; answers pings on the way."""
        if kind == CLOSE:
            raise ConnectionError("the server closed the connection.")
        if kind == PING:
            self._send(PONG, payload)
            return None
        if kind == PONG:
            return None
        if kind != CONTINUATION:
            self._kind, self._message = kind, bytearray()
        self._message += payload
        if last and self._kind == TEXT:
            return self._message.decode("utf-8", "replace")
        return None

    def _send(self, kind: int, payload: bytes) -> None:
        """A frame of at most 125 bytes, masked as a client's must be."""
        mask = os.urandom(4)
        masked = bytes(byte ^ mask[place % 4] for place, byte in enumerate(payload[:125]))
        self._socket.settimeout(10)
        self._socket.sendall(bytes([0x80 | kind, 0x80 | len(masked)]) + mask + masked)

    def close(self) -> None:
        """Closes the connection; a second call does nothing."""
        with contextlib.suppress(OSError):
            self._socket.close()
