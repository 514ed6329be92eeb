"""vLLM's engine client, which every answer of its server comes from, with the steering of the request.

vLLM's handlers know nothing of it: they call `generate` with a prompt's tokens and how to sample. A call for
which no steering was asked, not even `base`, is refused, so no path through vLLM's server can be unsteered by
oversight. An answer is finished when the workers' record shows that its span was steered to the last
position.
"""

from __future__ import annotations

import asyncio
import copy
import itertools
from collections.abc import AsyncGenerator, Awaitable
from contextlib import aclosing
from typing import Any, TypeVar

from vsteer.engine.answers import proven_steered_tokens
from vsteer.engine.worker.step import CellSpan
from vsteer.errors import SteeringFault
from vsteer.protocol import Prompt
from vsteer.serve.asked import CURRENT, Asked
from vsteer.serve.records import Records

T = TypeVar("T")

# How often a call is looked after whose engine may have died: such an engine answers nothing.
WATCHED_SECONDS = 0.5


class SteeringClient:
    """`inner` is vLLM's AsyncLLM, which answers whatever is asked of it beside `generate`."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner
        self._numbers = itertools.count(1)
        self._records = Records(self.rpc)
        # why no steered request is taken any more
        self.fault = ""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    async def rpc(self, method: str, *args: Any) -> list[Any]:
        """The answer of every worker."""
        call: Awaitable[list[Any]] = self._inner.collective_rpc(method, args=args)
        return await self._while_alive(call)

    def generate(
        self, prompt: Any, sampling_params: Any, request_id: str, **options: Any
    ) -> AsyncGenerator[Any, None]:
        asked = CURRENT.get()
        if asked is None:
            raise SteeringFault("a request reached the engine for which no steering was asked, not even base")
        if not asked.cell:
            return self._unsteered(asked, prompt, sampling_params, request_id, options)
        if self.fault:
            raise SteeringFault(self.fault)
        each = []
        for n in range(sampling_params.n):
            span = self._span(asked, prompt)
            params = sampling_params.clone()
            params.extra_args = {**(params.extra_args or {}), **span.as_extra_args()}
            if sampling_params.n > 1:
                # as vLLM seeds several answers
                params.n, params.seed = 1, None if params.seed is None else params.seed + n
            name = request_id if sampling_params.n == 1 else f"{request_id}-{n}"
            each.append(self._steered(asked, span, prompt, params, name, options))
        return each[0] if len(each) == 1 else self._several(each, sampling_params)

    async def _unsteered(
        self, asked: Asked, prompt: Any, params: Any, request_id: str, options: dict[str, Any]
    ) -> AsyncGenerator[Any, None]:
        async with aclosing(self._inner.generate(prompt, params, request_id, **options)) as outputs:
            async for output in outputs:
                asked.proven += sum(one.finish_reason is not None for one in output.outputs)
                yield output

    async def _steered(
        self, asked: Asked, span: CellSpan, prompt: Any, params: Any, request_id: str, options: dict[str, Any]
    ) -> AsyncGenerator[Any, None]:
        """One answer, with a record of its own; its last part waits for the record."""
        tokens = prompt["prompt_token_ids"]
        generated, collected = 0, False
        try:
            async with aclosing(self._inner.generate(prompt, params, request_id, **options)) as outputs:
                async for output in outputs:
                    if not generated and list(output.prompt_token_ids) != list(tokens):
                        raise SteeringFault(f"request {request_id!r} was run on other tokens than were given")
                    (completion,) = output.outputs
                    count = len(completion.token_ids)
                    generated = generated + count if params.output_kind.name == "DELTA" else count
                    if output.finished:
                        if completion.finish_reason in ("abort", "error"):
                            raise SteeringFault(f"vLLM ended {request_id!r}: {completion.finish_reason}")
                        record = await self._records.collect(span.key)
                        collected = True
                        asked.steered_tokens += self._proven(request_id, span, len(tokens), generated, record)
                        asked.proven += 1
                    yield output
        finally:
            # after vLLM was told to abort it, which goes the same way
            if not collected:
                self._records.forget(span.key)

    async def _several(self, each: list[AsyncGenerator[Any, None]], params: Any) -> AsyncGenerator[Any, None]:
        """Several answers to one prompt, as vLLM gives them for one request."""
        from vllm.utils.async_utils import merge_async_iterators

        last: dict[int, Any] = {}
        async with aclosing(merge_async_iterators(*each)) as outputs:
            async for n, output in outputs:
                output.outputs[0].index = n
                if output.finished:
                    last[n] = output
                    output.finished = len(last) == len(each)
                if params.output_kind.name == "DELTA":
                    yield output
        if params.output_kind.name != "DELTA":
            whole = copy.copy(last[0])
            whole.outputs, whole.finished = [last[n].outputs[0] for n in sorted(last)], True
            yield whole

    def _span(self, asked: Asked, prompt: Any) -> CellSpan:
        """Where among the prompt's tokens, and behind them, the request is steered."""
        from vllm.exceptions import VLLMValidationError

        tokens = tuple(prompt["prompt_token_ids"])
        layout = asked.prompt or Prompt.plain(tokens)
        if layout.token_ids != tokens:
            raise VLLMValidationError(
                f"the positions {asked.positions} can't be found in this conversation: its tokens are not "
                "those of its parts"
            )
        start, end = layout.span(asked.positions)
        return CellSpan(next(self._numbers), asked.cell, asked.fingerprint, start, end)

    def _proven(self, name: str, span: CellSpan, prompt: int, completion: int, record: list[int]) -> int:
        try:
            return proven_steered_tokens(name, span, prompt, completion, record)
        except SteeringFault as fault:
            self.fault = str(fault)
            raise

    async def _while_alive(self, call: Awaitable[T]) -> T:
        task = asyncio.ensure_future(call)
        try:
            while not (await asyncio.wait([task], timeout=WATCHED_SECONDS))[0]:
                if self._inner.errored:
                    raise self._inner.dead_error
            return task.result()
        finally:
            task.cancel()
