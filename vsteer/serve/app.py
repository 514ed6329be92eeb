"""The server as its clients see it: OpenAI's endpoints, in front of vLLM's own application.

What stands here is an ASGI application that knows names, limits and proofs, and neither vLLM nor FastAPI. A
request is read, its steering found and put into the engine's table; then vLLM's application gets it as a
request to the one model that it has. Paths that are not listed never reach vLLM.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

from vsteer.errors import EngineError, SteeringFault, VsteerError
from vsteer.protocol import Prompt, Steering
from vsteer.serve.asked import CURRENT, Asked
from vsteer.serve.catalogue import Catalogue, UnknownName
from vsteer.serve.conversation import check_request
from vsteer.serve.guard import Disconnected, Guard, Message, Receive, Refused, Send
from vsteer.serve.marks import MarkedAnswer
from vsteer.serve.names import BASE, spelled
from vsteer.serve.served_table import TableFull

App = Callable[[Message, Receive, Send], Awaitable[None]]

ANSWERED = ("/v1/completions", "/v1/chat/completions")
PROJECTED = "/v1/vsteer/projections"


@dataclass(frozen=True)
class Served:
    """What the application needs of the engine behind it."""

    # a steering's cell and fingerprint, once the workers hold it
    admit: Callable[[Steering], Awaitable[tuple[int, str]]]
    # why nothing may be asked; empty where all is well
    fault: Callable[[], Awaitable[str]]
    # where a conversation's parts end, for steerings that must know
    layout: Callable[[dict[str, Any], Steering], Prompt | None]
    # what an answer's stream says along a vector, where the engine captures streams
    project: Callable[[Asked, dict[str, Any]], Awaitable[dict[str, Any]]] | None = None


class SteeringApp:
    """`inner` is vLLM's application, whose only model is called `base`."""

    def __init__(self, inner: App, served: Served, catalogue: Catalogue, guard: Guard) -> None:
        self._inner, self._served = inner, served
        self._catalogue, self._guard = catalogue, guard

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._inner(scope, receive, send)
        elif scope["type"] == "http":
            try:
                await self._http(scope, receive, send)
            except Refused as refused:
                await _answer(send, refused.status, refused.body)
            except Disconnected:
                return
        else:
            await send({"type": "websocket.close"})

    async def _http(self, scope: Message, receive: Receive, send: Send) -> None:
        path, method = scope["path"], scope["method"]
        if path == "/health" and method == "GET":
            fault = await self._served.fault()
            body = {"error": {"message": fault, "type": "ServiceUnavailable", "code": 503}} if fault else {}
            await _answer(send, 503 if fault else 200, body)
            return
        self._guard.admit(scope["headers"])
        if path == "/v1/models" and method == "GET":
            await _answer(send, 200, {"object": "list", "data": self._catalogue.models()})
        elif path.startswith("/v1/models/") and method == "GET":
            name = unquote(scope.get("raw_path", path.encode()).decode("ascii", "replace"))
            await _answer(send, 200, self._card(name.removeprefix("/v1/models/")))
        elif path in ANSWERED and method == "POST":
            await self._steered(scope, receive, send)
        elif path == PROJECTED and method == "POST":
            await self._projected(scope, receive, send)
        else:
            hint = f"there is {', '.join(('/health', '/v1/models', *ANSWERED, PROJECTED))}"
            raise Refused(404, "NotFoundError", f"nothing is served at {method} {path[:100]}", hint)

    def _card(self, name: str) -> dict[str, Any]:
        try:
            return self._catalogue.card(name)
        except VsteerError as error:
            raise _refused(error) from None

    async def _projected(self, scope: Message, receive: Receive, send: Send) -> None:
        request = await self._guard.read(scope["headers"], receive)
        if self._served.project is None:
            hint = "start the server with --projections"
            raise Refused(404, "NotFoundError", "the server captures no streams", hint)
        try:
            _, asked = await self._asked(request)
            found = await self._served.project(asked, request)
        except VsteerError as error:
            raise _refused(error) from None
        except SteeringFault as fault:
            raise Refused(500, "InternalServerError", str(fault)) from None
        await _answer(send, 200, {**found, "vsteer": asked.report()})

    async def _asked(self, request: dict[str, Any]) -> tuple[Steering, Asked]:
        check_request(request)
        steering = self._catalogue.asked(request)
        cell, fingerprint = await self._served.admit(steering)
        return steering, Asked(spelled(steering), cell, fingerprint, steering.positions)

    async def _steered(self, scope: Message, receive: Receive, send: Send) -> None:
        request = await self._guard.read(scope["headers"], receive)
        try:
            steering, asked = await self._asked(request)
            asked.prompt = await asyncio.to_thread(self._served.layout, request, steering)
        except VsteerError as error:
            raise _refused(error) from None
        given = request.pop("vsteer", None)
        model = asked.name if given is not None else str(request["model"])
        body = json.dumps({**request, "model": BASE}).encode()
        token = CURRENT.set(asked)
        try:
            headers = [(k, v) for k, v in scope["headers"] if k.lower() in _PASSED]
            headers.append((b"content-length", str(len(body)).encode()))
            await self._inner(
                {**scope, "headers": headers}, _replay(body, receive), MarkedAnswer(send, model, asked)
            )
        finally:
            CURRENT.reset(token)


# vLLM reads priorities, ranks and sessions from others
_PASSED = (b"content-type", b"accept", b"user-agent", b"host")


def _refused(error: VsteerError) -> Refused:
    match error:
        case UnknownName():
            status, kind = 404, "NotFoundError"
        case EngineError():
            status, kind = 503, "SteeringTableFull" if isinstance(error, TableFull) else "ServiceUnavailable"
        case _:
            status, kind = 400, "BadRequestError"
    param = "model" if isinstance(error, UnknownName | TableFull) else None
    return Refused(status, kind, error.message, error.hint, param)


def _replay(body: bytes, receive: Receive) -> Receive:
    """The body that was read, as if it came now; then whatever the client does."""
    waiting = [{"type": "http.request", "body": body, "more_body": False}]

    async def again() -> Message:
        return waiting.pop() if waiting else await receive()

    return again


async def _answer(send: Send, status: int, body: Message) -> None:
    content = json.dumps(body).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(content)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": content})
