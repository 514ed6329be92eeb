"""vLLM's application and the engine's table, played by a few lines behind the server's own HTTP layer."""

from __future__ import annotations

import asyncio
import hashlib
import json
from typing import Any

import httpx
import numpy as np

from vsteer.protocol import Prompt, Steering, Term
from vsteer.serve.app import Served, SteeringApp
from vsteer.serve.asked import CURRENT, Asked
from vsteer.serve.catalogue import Catalogue
from vsteer.serve.guard import Guard
from vsteer.serve.served_table import TableFull

LAYERS = 6
VECTORS = {name: {n: np.ones(4, np.float32) for n in range(LAYERS)} for name in ("joy", "refusal")}
NAMES = {"cheerful": Steering((Term("joy", 3, 1.5),), "after_prompt")}


class FakeVllm:
    """Answers each prompt with three words that depend on it and on the steering."""

    def __init__(self, *, proves: bool = True) -> None:
        self.proves = proves
        self.seen: list[dict[str, Any]] = []
        self.left = 0  # requests whose client went away
        self.words: list[str] = []  # in place of its own

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        body = json.loads((await receive())["body"])
        asked = CURRENT.get()
        assert asked is not None
        assert body["model"] == "base"
        self.seen.append(body)
        hashed = hashlib.sha256(f"{body.get('prompt')}{body.get('messages')}{asked.fingerprint}".encode())
        words = self.words or [f" {hashed.hexdigest()[n : n + 4]}" for n in range(0, 12, 4)]
        if body.get("wait"):
            message = await receive()
            assert message["type"] == "http.disconnect"
            self.left += 1
            return
        if self.proves:
            asked.proven += 1
            asked.steered_tokens += 7 if asked.cell else 0
        if not body.get("stream"):
            answer = {"model": "base", "choices": [{"text": "".join(words), "finish_reason": "length"}]}
            await _send(send, b"application/json", json.dumps(answer).encode())
            return
        chunks: list[dict[str, Any]] = []
        for n, word in enumerate(words):
            choice = {"text": word, "delta": {"content": word}, "finish_reason": None if n < 2 else "length"}
            chunks.append({"model": "base", "choices": [choice]})
        chunks.append({"model": "base", "choices": [], "usage": {"total_tokens": 9}})
        text = b"".join(b"data: %s\n\n" % json.dumps(chunk).encode() for chunk in chunks)
        text += b": alive\n\ndata: [DONE]\n\n"
        # cut where no event ends
        await _send(send, b"text/event-stream; charset=utf-8", text[:40], text[40:77], text[77:])


async def _send(send: Any, kind: bytes, *parts: bytes) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"Content-Type", kind)]})
    for n, part in enumerate(parts, 1):
        await send({"type": "http.response.body", "body": part, "more_body": n < len(parts)})


class FakeTable:
    def __init__(self, room: int = 100) -> None:
        self.room, self.held = room, dict[tuple[Term, ...], int]()

    async def admit(self, steering: Steering) -> tuple[int, str]:
        terms = steering.acting_terms
        if not terms:
            return 0, ""
        if terms not in self.held and len(self.held) == self.room:
            raise TableFull("full", "restart")
        cell = self.held.setdefault(terms, len(self.held) + 1)
        return cell, hashlib.sha256(repr(terms).encode()).hexdigest()


class FakeServer:
    def __init__(
        self,
        *,
        room: int = 100,
        key: str = "",
        most_bytes: int = 10_000,
        proves: bool = True,
        projects: bool = False,
    ) -> None:
        self.vllm, self.table, self.fault = FakeVllm(proves=proves), FakeTable(room), ""
        self.layouts: list[Steering] = []
        self.projected: list[tuple[str, dict[str, Any]]] = []
        catalogue = Catalogue("tiny", VECTORS, NAMES, ("add", "ablate"), terms=2)
        served = Served(self.table.admit, self._fault, self._layout, self._project if projects else None)
        self.app = SteeringApp(self.vllm, served, catalogue, Guard(key, most_bytes))

    async def _fault(self) -> str:
        return self.fault

    async def _project(self, asked: Asked, request: dict[str, Any]) -> dict[str, Any]:
        self.projected.append((asked.name, request))
        words = ["good", " \x1b[31m", " bad"]
        return {"tokens": words, "projection": [3.0, 2.0, 1.0], "random": [0.0, 0.5, 1.0]}

    def _layout(self, request: Any, steering: Steering) -> Prompt | None:
        self.layouts.append(steering)
        return None

    def ask(self, method: str, path: str, **options: Any) -> httpx.Response:
        async def asked() -> httpx.Response:
            transport = httpx.ASGITransport(self.app)
            async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8000") as client:
                return await client.request(method, path, **options)

        return asyncio.run(asked())

    def complete(self, **body: Any) -> httpx.Response:
        return self.ask("POST", "/v1/completions", json={"prompt": "Hello", **body})


def error(response: httpx.Response) -> dict[str, Any]:
    """The error of an answer, in the shape that OpenAI's clients read."""
    found: dict[str, Any] = response.json()["error"]
    assert found.keys() == {"message", "type", "param", "code"}
    assert found["code"] == response.status_code
    assert len(found["message"]) <= 600
    return found
