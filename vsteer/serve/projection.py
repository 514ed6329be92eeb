"""The stream's component along a vector at every token of an answer, as the answer's own steering makes it.

The conversation is read again with its answer begun by the whole of it, under the steering's name, and the
stream behind one layer is captured at the answer's tokens. A random vector of the same length stands beside
it.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Mapping
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vsteer.errors import SteeringFault, UsageError
from vsteer.protocol import Direction, EngineInfo, Prompt, Vectors
from vsteer.serve.asked import CURRENT, Asked
from vsteer.serve.captures import Captures
from vsteer.serve.client import SteeringClient
from vsteer.serve.conversation import begun
from vsteer.validation import did_you_mean, shown
from vsteer.vectors.derive import random_like
from vsteer.vectors.norms import length
from vsteer.vectors.vector import SteeringVector

# The tokens that one pass captures. Longer answers take several passes.
SLOTS = 128
RANDOM_SEED = 0


class Projector:
    def __init__(
        self, client: SteeringClient, captures: Captures, info: EngineInfo, vectors: Vectors, tokenizer: Any
    ) -> None:
        self._client, self._captures, self._info = client, captures, info
        self._vectors, self._tokenizer = vectors, tokenizer
        self._numbers = itertools.count(1)
        self._random = cache(self._random_direction)

    async def project(self, asked: Asked, request: Mapping[str, Any]) -> dict[str, Any]:
        name, layer = self._place(request)
        prompt = await asyncio.to_thread(begun, self._tokenizer, request.get("messages"))
        ids, most = prompt.token_ids, self._info.max_model_len
        if len(ids) >= most:
            raise UsageError(
                f"the conversation has {len(ids)} tokens, and the server reads {most}", "begin a new one"
            )
        answer = range(prompt.template_length, len(ids))
        if not answer:
            raise UsageError("the conversation has no answer", "its last message is the answer")
        asked.prompt = prompt
        parts = [answer[n : n + SLOTS] for n in range(0, len(answer), SLOTS)]
        stream = np.concatenate([(await self._captured(asked, prompt, part))[:, layer] for part in parts])
        return {
            "object": "vsteer.projection",
            "vector": name,
            "layer": layer,
            "tokens": [self._tokenizer.decode([ids[n]]) for n in answer],
            "projection": _along(stream, self._vectors[name][layer]),
            "random": _along(stream, self._random(name, layer)),
        }

    def _place(self, request: Mapping[str, Any]) -> tuple[str, int]:
        name, layer = request.get("vector"), request.get("layer")
        if not isinstance(name, str) or name not in self._vectors:
            known = f"the vectors are {', '.join(list(self._vectors)[:10]) or 'none'}"
            hint = did_you_mean(name, self._vectors, known) if isinstance(name, str) else known
            raise UsageError(f"no vector is called {shown(name)}", hint)
        layers = self._vectors[name]
        if type(layer) is not int or layer not in layers:
            raise UsageError(
                f"the vector {name} has no layer {shown(layer)}",
                f"it has layers from {min(layers)} to {max(layers)}",
            )
        return name, layer

    async def _captured(self, asked: Asked, prompt: Prompt, positions: range) -> NDArray[np.float32]:
        """The streams at the positions, [position, layer, hidden]."""
        from vllm import SamplingParams
        from vllm.inputs import TokensPrompt

        tokens = TokensPrompt(prompt_token_ids=list(prompt.token_ids))
        name = f"projection-{next(self._numbers)}"

        async def ask(extra_args: dict[str, Any]) -> None:
            params = SamplingParams(max_tokens=1, detokenize=False, extra_args=extra_args)
            token, proven = CURRENT.set(asked), asked.proven
            try:
                async for _ in self._client.generate(tokens, params, name):
                    pass
            finally:
                CURRENT.reset(token)
            if asked.proven != proven + 1:
                raise SteeringFault("a pass was not proven to be steered as its name says")

        return (await self._captures.during(positions, ask))[1]

    def _random_direction(self, name: str, layer: int) -> Direction:
        vector = SteeringVector(name, {layer: self._vectors[name][layer]})
        return random_like(vector, RANDOM_SEED).directions[layer]


def _along(stream: NDArray[np.float32], direction: Direction) -> list[float]:
    found = stream.astype(np.float64) @ direction.astype(np.float64) / length(direction)
    return [float(value) for value in found]
