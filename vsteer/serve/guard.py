"""Who may ask the server, and how much: the key, the host that a browser names, and the size of a body."""

from __future__ import annotations

import hmac
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any

from vsteer.errors import UsageError
from vsteer.files import parse_json

# as ASGI has them
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Headers = Iterable[tuple[bytes, bytes]]

KEY_VARIABLE = "VSTEER_API_KEY"
SHORTEST_KEY = 16


class Refused(Exception):
    """An HTTP answer in place of what was asked for, in the shape of OpenAI's errors."""

    def __init__(
        self, status: int, kind: str, message: str, hint: str = "", param: str | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        text = f"{message}. Hint: {hint}" if hint else message
        self.body = {"error": {"message": text, "type": kind, "param": param, "code": status}}


def is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


@dataclass(frozen=True)
class Guard:
    key: str = ""
    most_bytes: int = 4 * 2**20

    @classmethod
    def at(cls, host: str, key: str, most_bytes: int) -> Guard:
        """For a server on `host`: whoever listens beyond this machine needs a key."""
        if not key and not is_loopback(host):
            raise UsageError(
                f"a server on {host[:60]} can be reached from other machines, and there is no key",
                f"set {KEY_VARIABLE} to one, or listen on 127.0.0.1",
            )
        if key and (len(key) < SHORTEST_KEY or not key.isascii() or not key.isprintable() or " " in key):
            raise UsageError(
                f"the key in {KEY_VARIABLE} is no key",
                f"at least {SHORTEST_KEY} letters, digits or signs, such as `openssl rand -hex 24` gives",
            )
        return cls(key, most_bytes)

    def admit(self, headers: Headers) -> None:
        """Raise unless the request has the key; without a key, unless it was meant for this very machine."""
        found = {name.lower(): value for name, value in headers}
        if self.key:
            scheme, _, given = found.get(b"authorization", b"").partition(b" ")
            if scheme.lower() == b"bearer" and hmac.compare_digest(given.strip(), self.key.encode()):
                return
            raise Refused(
                401, "AuthenticationError", "the key is missing or wrong", "Authorization: Bearer KEY"
            )
        # a page in a browser could otherwise have its own name lead here
        host = found.get(b"host", b"").decode("latin-1")
        name = host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
        if not is_loopback(name):
            raise Refused(403, "PermissionError", "the server answers this machine alone", "ask 127.0.0.1")

    async def read(self, headers: Headers, receive: Receive) -> dict[str, Any]:
        """The body of a request, a JSON object within the limits."""
        found = {name.lower(): value for name, value in headers}
        if found.get(b"content-type", b"").partition(b";")[0].strip().lower() != b"application/json":
            raise Refused(415, "BadRequestError", "expected a body of the content type application/json")
        parts, size, more = [], 0, True
        while more:
            message = await receive()
            if message["type"] != "http.request":
                raise Disconnected
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            if size > self.most_bytes:
                raise Refused(413, "BadRequestError", f"a body of more than {self.most_bytes:,} bytes")
            more = message.get("more_body", False)
        try:
            value = parse_json(b"".join(parts))
        except ValueError as error:
            raise Refused(400, "BadRequestError", f"the body is no JSON: {str(error)[:200]}") from None
        if not isinstance(value, dict):
            raise Refused(400, "BadRequestError", "expected a JSON object as body")
        return value


class Disconnected(Exception):
    """The client went away before it had asked."""
