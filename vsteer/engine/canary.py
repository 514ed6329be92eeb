"""The proof at start: every layer steers, a batch mate is untouched, no cache block crosses over.

It runs on the engine itself, on the user's own model, before the first row.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from vsteer.engine.request import Prompt, Request, Result, Steering, Term
from vsteer.errors import EngineError

if TYPE_CHECKING:
    from vsteer.engine.driver import VllmEngine

NAME = "canary"
# Far above any stream's norm, so that a layer which steers cannot be mistaken for rounding.
STRENGTH = 1000.0
# How much smaller than the least steered change the mate's must be.
MARGIN = 10.0


def prove_steering(engine: VllmEngine) -> None:
    """Raise unless steering acts at every layer and nowhere else."""
    direction = np.random.default_rng(0).standard_normal(engine.hidden_size).astype(np.float32)
    steerings = [Steering((Term(NAME, layer, STRENGTH),)) for layer in range(engine.layers)]
    engine.load({NAME: dict.fromkeys(range(engine.layers), direction)}, steerings)
    prompt = Prompt.plain(int(t) for t in np.random.default_rng(1).integers(0, engine.vocab_size, 8))
    probes = tuple(range(min(32, engine.vocab_size)))

    def request(name: str, steering: Steering | None) -> Request:
        return Request(name, prompt, steering, logprob_token_ids=probes)

    def distance(a: Result, b: Result) -> float:
        return max(abs(a.logprobs[0][token] - b.logprobs[0][token]) for token in probes)

    alone = next(iter(engine.run([request("alone", None)])))
    names = [f"layer {layer}" for layer in range(engine.layers)]
    batch = [request("mate", None), *map(request, names, steerings)]
    together = {result.id: result for result in engine.run(batch)}
    untouched = distance(together["mate"], alone)
    changes = {name: distance(together[name], alone) for name in names}
    dead = [name for name, change in changes.items() if not change > MARGIN * untouched]
    if not all(np.isfinite(change) for change in (*changes.values(), untouched)) or dead:
        raise EngineError(
            f"the canary failed: the unsteered batch mate moved by {untouched:.2g}, and "
            f"{', '.join(dead) or 'a layer'} by no more than {MARGIN:g} times that when steered",
            hint="this engine does not steer as it should; `vsteer verify` tells more",
        )
    if engine.prefix_caching:
        _prove_cache_identity(engine, steerings)


def _prove_cache_identity(engine: VllmEngine, steerings: list[Steering]) -> None:
    tokens = np.random.default_rng(2).integers(0, engine.vocab_size, 2 * engine.block_size + 1)
    if len(tokens) >= engine.max_model_len:
        return
    prompt = Prompt.plain(int(t) for t in tokens)
    other = Steering(steerings[0].terms, (engine.block_size, 2 * engine.block_size))
    cached = [
        next(iter(engine.run([Request("cache", prompt, steering)]))).cached_tokens
        for steering in (steerings[0], steerings[-1], other, None, steerings[0])
    ]
    shared = 2 * engine.block_size
    # unsteered blocks are found again up to a span's start, and a steering's own blocks as a whole
    if len(steerings) > 1 and cached != [0, 0, 0, engine.block_size, shared]:
        raise EngineError(
            f"the canary failed: prefix-cache hits of {cached} tokens instead of "
            f"{[0, 0, 0, engine.block_size, shared]}: blocks of different steerings are not told apart",
            hint="is the vsteer plugin loaded in vLLM's engine core process (VLLM_PLUGINS)?",
        )
