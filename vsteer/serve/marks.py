"""An answer of vLLM's server on its way to the client: it gets the name that was asked for, and the proof.

A whole answer gets it as `vsteer`; a stream gets it with each choice that ends, and with the final usage. An
answer that the proof does not cover becomes an error.
"""

from __future__ import annotations

import json
from typing import Any

from vsteer.serve.asked import Asked
from vsteer.serve.guard import Message, Send

_UNPROVEN = "the answer was not proven to be steered as its name says"


class MarkedAnswer:
    """Takes what an ASGI application sends, and sends it on."""

    def __init__(self, send: Send, model: str, asked: Asked) -> None:
        self._send, self._model, self._asked = send, model, asked
        self._start: Message = {}
        self._held = b""
        self._streams = False
        self._ended = 0  # choices of a stream

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._start = message
            kind = next((v for k, v in message["headers"] if k.lower() == b"content-type"), b"")
            self._streams = message["status"] == 200 and kind.startswith(b"text/event-stream")
            if self._streams:
                await self._send(message)
            return
        if message["type"] != "http.response.body":
            await self._send(message)
            return
        self._held += message.get("body", b"")
        more = message.get("more_body", False)
        if self._streams:
            *events, self._held = self._held.split(b"\n\n")
            marked = b"".join(self._event(event) + b"\n\n" for event in events)
            rest = b"" if more else self._held
            await self._send({**message, "body": marked + rest})
        elif not more:
            await self._whole()

    async def _whole(self) -> None:
        status, body = self._start["status"], self._held
        if status == 200:
            status, answer = self._marked_whole(json.loads(body))
            body = _json(answer)
        headers = [(k, v) for k, v in self._start["headers"] if k.lower() != b"content-length"]
        headers.append((b"content-length", str(len(body)).encode()))
        await self._send({**self._start, "status": status, "headers": headers})
        await self._send({"type": "http.response.body", "body": body})

    def _marked_whole(self, answer: Any) -> tuple[int, Any]:
        if not isinstance(answer, dict) or self._asked.proven != len(answer.get("choices", ())):
            return 500, _error()
        return 200, {**answer, "model": self._model, "vsteer": self._asked.report()}

    def _event(self, event: bytes) -> bytes:
        kind, _, text = event.partition(b": ")
        if kind != b"data" or not text.startswith(b"{"):
            return event
        chunk = json.loads(text)
        if "choices" not in chunk:
            return event
        chunk["model"] = self._model
        ended = sum(choice.get("finish_reason") is not None for choice in chunk["choices"])
        self._ended += ended
        if ended or not chunk["choices"]:
            if self._ended > self._asked.proven:
                return b"data: " + _json(_error())
            chunk["vsteer"] = self._asked.report()
        return b"data: " + _json(chunk)


def _error() -> Message:
    return {"error": {"message": _UNPROVEN, "type": "InternalServerError", "param": None, "code": 500}}


def _json(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
