"""A chat with a server in the terminal: the steered answer beside the unsteered one, token by token.

Each side goes on with its own answers, so that the steered conversation is steered from its first turn on.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import httpx
import numpy as np
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from vsteer.errors import UsageError
from vsteer.mechanism.shades import Scale, style
from vsteer.serve.app import PROJECTED
from vsteer.serve.dial import HELP, Dial
from vsteer.serve.names import BASE
from vsteer.terminal import harmless
from vsteer.validation import shortened

# An answer may wait for others in the server's queue.
TIMEOUT = httpx.Timeout(10, read=600)
FRAME_SECONDS = 0.08

Read = Callable[[], Awaitable[str | None]]


class _Failed(Exception):
    """In the server's own words."""


@dataclass
class Side:
    """One of the two conversations."""

    messages: list[dict[str, str]] = field(default_factory=list)
    answer: str = ""
    note: str = ""
    # the answer, token by token in colours
    coloured: Text | None = None


async def vectors_of(client: httpx.AsyncClient) -> dict[str, list[int]]:
    """The server's vectors and their layers."""
    try:
        response = await client.get("/v1/models")
        if response.status_code != 200:
            raise UsageError(f"the server refuses: {_reason(response.content)}", "is the key the server's?")
        found: dict[str, list[int]] = response.json()["data"][0]["vsteer"]["vectors"]
    except (httpx.HTTPError, ValueError, LookupError, TypeError) as error:
        raise UsageError(
            f"no `vsteer serve` answers at {str(client.base_url)[:100]}: {str(error)[:100]}", "is it running?"
        ) from None
    return found


def first_dial(vectors: dict[str, list[int]], vector: str, layer: str | None, times: str) -> Dial:
    """What the chat begins with; the middle one of the vector's layers where none is given."""
    layers = vectors.get(vector) or [0]
    dial = Dial(vector, layer or str(layers[len(layers) // 2]), times, known=vectors)
    assert dial.name  # or it raises what can't be read
    return dial


class Chat:
    """`read` waits for the user's next line, and gives None at the end."""

    def __init__(
        self,
        client: httpx.AsyncClient,
        dial: Dial,
        console: Console,
        read: Read,
        *,
        max_tokens: int = 200,
        temperature: float = 0.0,
    ) -> None:
        self.dial = dial
        self._client, self._console, self._read = client, console, read
        self._options = {"max_tokens": max_tokens, "temperature": temperature, "stream": True}
        self._steered, self._unsteered = Side(), Side()

    async def go_on(self) -> None:
        """Until the user ends it."""
        self._say(f"{self.dial.name}   /help lists the commands")
        while (line := await self._read()) is not None:
            words = line.strip()
            if words == "/quit":
                return
            if words == "/help":
                self._say(HELP)
            elif words == "/new":
                self._steered, self._unsteered = Side(), Side()
            elif words.startswith("/"):
                self._turn(words)
            elif words:
                await self._ask(words)

    def _say(self, text: str, style: str = "dim") -> None:
        self._console.print(Text(harmless(text), style=style))

    def _turn(self, command: str) -> None:
        try:
            self.dial = self.dial.turned(command)
        except UsageError as error:
            self._say(f"{error.message}; {error.hint}", "red")
            return
        layer = self.dial.project
        self._say(self.dial.name + ("" if layer is None else f"   coloured by layer {layer}"))

    async def _ask(self, question: str) -> None:
        sides = {BASE: self._unsteered}
        if self.dial.on:
            sides = {self.dial.name: self._steered, **sides}
        for side in sides.values():
            side.messages.append({"role": "user", "content": question})
            side.answer, side.note, side.coloured = "", "", None
        answering = asyncio.gather(*(self._answer(side, name) for name, side in sides.items()))
        with Live(_table(sides), console=self._console, auto_refresh=False) as live:
            while not answering.done():
                await asyncio.wait([answering], timeout=FRAME_SECONDS)
                live.update(_table(sides), refresh=True)
            answering.result()
            if self.dial.project is not None:
                await asyncio.gather(*(self._colour(side, name) for name, side in sides.items()))
                live.update(_table(sides), refresh=True)

    async def _answer(self, side: Side, name: str) -> None:
        body = {"model": name, "messages": side.messages, **self._options}
        try:
            async for chunk in self._chunks(body):
                for choice in chunk.get("choices", ()):
                    side.answer += choice["delta"].get("content") or ""
                if proof := chunk.get("vsteer"):
                    side.note = f"{proof['steered_tokens']} tokens steered  {proof['fingerprint'][:12]}"
        except (httpx.HTTPError, _Failed) as error:
            side.note = shortened(f"error: {error or type(error).__name__}", 300)
            # the next question is not asked behind an open one
            side.messages.pop()
            return
        side.messages.append({"role": "assistant", "content": side.answer})

    async def _colour(self, side: Side, name: str) -> None:
        """Show which tokens of the answer lie how far along the vector."""
        if not side.answer:
            return
        vector, layer = self.dial.vector, self.dial.project
        asked = {"model": name, "messages": side.messages, "vector": vector, "layer": layer}
        try:
            response = await self._client.post(PROJECTED, json=asked)
            if response.status_code != 200:
                raise _Failed(_reason(response.content))
            found = response.json()
        except (httpx.HTTPError, _Failed) as error:
            side.note += shortened(f"\nno projection: {error or type(error).__name__}", 300)
            return
        along, random = np.array(found["projection"]), np.array(found["random"])
        scale = Scale.of(along, random)
        side.coloured = Text()
        for token, value in zip(found["tokens"], along, strict=True):
            side.coloured.append(harmless(token), style=style(scale.shade(float(value))))
        side.note += (
            f"\nalong {vector} behind layer {layer}: mean {scale.mean:.3g}, standard deviation "
            f"{scale.spread:.3g} (along a random vector {scale.random_spread:.3g}); full colours are "
            f"{scale.full:.3g} above the mean, blue, and below it, orange"
        )

    async def _chunks(self, body: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
        async with self._client.stream("POST", "/v1/chat/completions", json=body) as response:
            if response.status_code != 200:
                raise _Failed(_reason(await response.aread()))
            async for line in response.aiter_lines():
                text = line.removeprefix("data: ")
                if text != line and text.startswith("{"):
                    chunk: dict[str, Any] = json.loads(text)
                    if "error" in chunk:
                        raise _Failed(chunk["error"].get("message"))
                    yield chunk


def _table(sides: dict[str, Side]) -> Table:
    table = Table(expand=True)
    for name in sides:
        table.add_column(Text(harmless(name)), ratio=1)
    cells = (
        Group(side.coloured or Text(harmless(side.answer)), Text(harmless(side.note), style="dim"))
        for side in sides.values()
    )
    table.add_row(*cells)
    return table


def _reason(body: bytes) -> str:
    with suppress(ValueError, LookupError, TypeError):
        return str(json.loads(body)["error"]["message"])
    return shortened(body.decode(errors="replace"), 200)
