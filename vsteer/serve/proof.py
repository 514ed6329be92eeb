"""The server's engine as vsteer's own proofs see it: the canary at start and for /health, and parity.

It runs requests by the very client and table that answer HTTP requests, from a thread beside the loop. What
it loads stays in the table, behind what is there.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Coroutine, Iterable, Iterator
from typing import Any, TypeVar

from vsteer.engine.answers import result_of, sampling_params
from vsteer.engine.proof.canary import prove_layers, prove_steering
from vsteer.engine.table import Capacity
from vsteer.errors import EngineError, SteeringFault
from vsteer.protocol import Engine, EngineInfo, Request, Result, Steering, Vectors
from vsteer.serve.asked import CURRENT, Asked
from vsteer.serve.captures import Captures
from vsteer.serve.client import SteeringClient
from vsteer.serve.served_table import ServedTable

T = TypeVar("T")

# How long the canary's word counts, and how long /health waits for the next one while the engine is busy.
FRESH_SECONDS = 30.0
PATIENCE_SECONDS = 20.0


class ProofEngine(Engine):
    """To be called from another thread than that of `loop`."""

    def __init__(
        self,
        client: SteeringClient,
        table: ServedTable,
        captures: Captures,
        info: EngineInfo,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self.info, self.steps = info, 0
        self._client, self._table, self._captures, self._loop = client, table, captures, loop
        self._numbers = itertools.count(1)

    def load(self, vectors: Vectors, steerings: Iterable[Steering]) -> None:
        self._await(self._load(vectors, list(steerings)))

    def run(self, requests: Iterable[Request]) -> Iterator[Result]:
        yield from self._await(self._run(list(requests)))

    async def _load(self, vectors: Vectors, steerings: list[Steering]) -> None:
        self._table.know(vectors)
        await asyncio.gather(*map(self._table.admit, steerings))

    async def _run(self, requests: list[Request]) -> list[Result]:
        return await asyncio.gather(*map(self._answer, requests))

    async def _answer(self, request: Request) -> Result:
        from vllm.inputs import TokensPrompt

        if why := request.invalid_because(self.info.vocab_size, self.info.max_model_len):
            return Result(request.id, "error", error=why)
        steering = request.steering or Steering(())
        cell, fingerprint = await self._table.admit(steering)
        asked = Asked(request.id, cell, fingerprint, steering.positions, request.prompt)
        # in a task of its own, whose context this is
        CURRENT.set(asked)
        prompt = TokensPrompt(prompt_token_ids=list(request.prompt.token_ids))
        name = f"proof-{next(self._numbers)}"

        async def ask(extra_args: dict[str, Any]) -> Any:
            output: Any = None
            async for one in self._client.generate(prompt, sampling_params(request, extra_args), name):
                output = one
            return output

        captured = None
        if request.capture:
            output, captured = await self._captures.during(request.capture, ask)
        else:
            output = await ask({})
        self.steps += 1
        return result_of(request, output, self._client.get_tokenizer(), asked.steered_tokens, captured)

    def _await(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()


class Health:
    """The canary's word: at start, and again whenever /health asks and the last one is old."""

    def __init__(self, engine: ProofEngine, client: SteeringClient) -> None:
        self._engine, self._client = engine, client
        self._proven_at = -FRESH_SECONDS
        self._proving: asyncio.Task[str] | None = None

    async def prove_all(self, capacity: Capacity) -> None:
        await asyncio.to_thread(prove_steering, self._engine, capacity)
        self._proven_at = time.monotonic()

    async def fault(self) -> str:
        """Why the server is not to be used; empty where it is well."""
        why = self._client.fault
        if not why and not self._client.errored and time.monotonic() - self._proven_at > FRESH_SECONDS:
            if self._proving is None or self._proving.done():
                self._proving = asyncio.create_task(self._prove())
            # a busy engine answers late, and a canary that is late has not failed
            done, _ = await asyncio.wait([self._proving], timeout=PATIENCE_SECONDS)
            why = self._proving.result() if done else ""
        return "the engine is dead" if self._client.errored else why

    async def _prove(self) -> str:
        try:
            await asyncio.to_thread(prove_layers, self._engine)
        except (EngineError, SteeringFault) as fault:
            # from now on no steered request is taken
            self._client.fault = str(fault)
            return self._client.fault
        except Exception as error:
            return f"the canary could not run: {error}"
        self._proven_at = time.monotonic()
        return ""
