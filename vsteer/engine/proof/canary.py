"""The proof at start: every layer steers, a batch mate is untouched, no cache block crosses over, every
operation in the graph does what it should to what was added, and what is captured is the stream of its layer
and token.

It runs on the engine itself, on the user's own model, before the first row.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from vsteer.engine.table import Capacity
from vsteer.errors import EngineError
from vsteer.operations import OPERATIONS, Operation
from vsteer.protocol import Direction, Engine, Prompt, Request, Result, Steering, Term

NAME = "canary"
# Far above any stream's norm, so that a layer which steers cannot be mistaken for rounding.
STRENGTH = 1000.0
# The first tokens of the vocabulary, whose log-probabilities are compared.
PROBES = 32
# How many times smaller the mate's change must be than the least steered one.
MARGIN = 10.0
# How much smaller than what steering changes the distance of a fork to its request must be: rounding alone.
FORK_MARGIN = 3.0
# What was added must be captured to this share of its length: bfloat16 rounds to some thousandths.
CAPTURE_TOLERANCE = 0.05


def prove_steering(engine: Engine, capacity: Capacity) -> None:
    """Raise unless steering acts at every layer and nowhere else."""
    batch, together, changes = prove_layers(engine)
    directions, steerings = _everywhere(engine)
    if engine.info.forks:
        _prove_forks(engine, batch, together, changes)
    for operation in OPERATIONS.values():
        if operation.module in capacity.modules:
            _prove_operation(engine, operation, batch[0].prompt, directions, list(changes.values()))
    engine.load({NAME: directions}, steerings)
    if engine.info.cache_block:
        _prove_cache_identity(engine, steerings)
    if capacity.captures > 1:
        _prove_capture(engine, batch[0].prompt, steerings, STRENGTH * directions[0])


def prove_layers(engine: Engine) -> tuple[list[Request], dict[str, Result], dict[str, float]]:
    """Raise unless steering acts at every layer and an unsteered batch mate is untouched. The requests, their
    results, and how far each layer's steering moved them."""
    directions, steerings = _everywhere(engine)
    engine.load({NAME: directions}, steerings)
    prompt = Prompt.plain(int(t) for t in np.random.default_rng(1).integers(0, engine.info.vocab_size, 8))
    probes = _probes(engine)

    def request(name: str, steering: Steering | None) -> Request:
        return Request(name, prompt, steering, logprob_token_ids=probes)

    alone = next(iter(engine.run([request("alone", None)])))
    names = [f"layer {layer}" for layer in range(engine.info.layers)]
    batch = [request("mate", None), *map(request, names, steerings)]
    together = {result.id: result for result in engine.run(batch)}
    untouched = _distance(together["mate"], alone)
    changes = {name: _distance(together[name], alone) for name in names}
    dead = [name for name, change in changes.items() if not change > MARGIN * untouched]
    if not all(np.isfinite(change) for change in (*changes.values(), untouched)) or dead:
        raise EngineError(
            f"the canary failed: the unsteered batch mate moved by {untouched:.2g}, and "
            f"{', '.join(dead) or 'a layer'} by no more than {MARGIN:g} times that when steered",
            hint="this engine does not steer as it should; `vsteer verify` shows more",
        )
    return batch, together, changes


def _everywhere(engine: Engine) -> tuple[dict[int, Direction], list[Steering]]:
    """One direction for all layers, and a steering for each."""
    direction = np.random.default_rng(0).standard_normal(engine.info.hidden_size).astype(np.float32)
    steerings = [Steering((Term(NAME, layer, STRENGTH),)) for layer in range(engine.info.layers)]
    return dict.fromkeys(range(engine.info.layers), direction), steerings


def _prove_forks(
    engine: Engine, batch: Sequence[Request], together: Mapping[str, Result], changes: Mapping[str, float]
) -> None:
    """Forks of two prompts in one batch, an unsteered one of each among them, do what the requests did."""
    tokens = batch[0].prompt.token_ids
    other = Request("other", Prompt.plain(tokens[::-1]), logprob_token_ids=_probes(engine))
    apart = next(iter(engine.run([other])))
    forks = [dataclasses.replace(request, answer_tokens=0) for request in (*batch, other)]
    found = {result.id: result for result in engine.run(forks)}
    least = min(changes.values())
    wrong = [
        name
        for name, result in {**together, "other": apart}.items()
        if not _distance(found[name], result) * FORK_MARGIN < changes.get(name, least)
    ]
    if wrong:
        raise EngineError(
            f"the canary failed: the forks {', '.join(wrong)} do not do what the same requests do",
            hint="`engine: {forks: false}` computes every question as a request",
        )


def _distance(a: Result, b: Result) -> float:
    """The largest gap of the probes' log-probabilities, which both have; the chosen token may differ."""
    return max(abs(a.logprobs[0][token] - b.logprobs[0][token]) for token in a.logprobs[0] if token < PROBES)


def _prove_operation(
    engine: Engine,
    operation: Operation,
    prompt: Prompt,
    directions: Mapping[int, Direction],
    changes: Sequence[float],
) -> None:
    """The two lists of terms of the operation's canary must do the same, at every layer.

    `changes` says how much the added vector moves alone, layer by layer. Forks of the same must do what the
    requests do.
    """
    assert operation.canary is not None
    pairs = [
        tuple(
            Steering(tuple(_term(layer, name, times) for name, times in terms)) for terms in operation.canary
        )
        for layer in range(engine.info.layers)
    ]
    engine.load({NAME: directions}, itertools.chain(*pairs))
    requests = [
        Request(f"{layer} {side}", prompt, steering, logprob_token_ids=_probes(engine))
        for layer, pair in enumerate(pairs)
        for side, steering in enumerate(pair)
    ]
    found = {result.id: result for result in engine.run(requests)}
    wrong = [
        str(layer)
        for layer, change in enumerate(changes)
        if not _distance(found[f"{layer} 0"], found[f"{layer} 1"]) * MARGIN < change
    ]
    if engine.info.forks and not wrong:
        forks = engine.run(dataclasses.replace(request, answer_tokens=0) for request in requests)
        wrong = [
            f"{result.id} of a fork"
            for result in forks
            if not _distance(result, found[result.id]) * FORK_MARGIN < min(changes)
        ]
    if wrong:
        raise EngineError(
            f"the canary failed: {operation.name} at layers {', '.join(wrong)} does something else than it "
            "should",
            hint=f"this engine's {operation.noun} is wrong; `vsteer verify` shows more",
        )


def _term(layer: int, operation: str, times: float | None) -> Term:
    return Term(NAME, layer, 1.0 if times is None else times * STRENGTH, operation)


def _probes(engine: Engine) -> tuple[int, ...]:
    return tuple(range(min(PROBES, engine.info.vocab_size)))


def _prove_capture(
    engine: Engine, prompt: Prompt, steerings: list[Steering], added: NDArray[np.float32]
) -> None:
    """What is added to one token at one layer must be captured there, and not before, neither in depth nor
    in the prompt."""
    last = len(prompt.token_ids) - 1
    requests = [Request("alone", prompt, capture=(last - 1, last))] + [
        Request(str(layer), prompt, Steering(steering.terms, (last, last + 1)), capture=(last - 1, last))
        for layer, steering in enumerate(steerings)
    ]
    streams = {result.id: result.captured for result in engine.run(requests)}
    plain = streams["alone"]
    wrong = []
    for layer in range(engine.info.layers):
        steered = streams[str(layer)]
        if steered is None or plain is None:
            raise EngineError("the canary failed: nothing was captured", hint="`vsteer verify` shows more")
        moved = steered - plain
        elsewhere = np.concatenate([moved[0], moved[1, :layer]])
        least = float(np.linalg.norm(added))
        if not (
            np.linalg.norm(moved[1, layer] - added) < CAPTURE_TOLERANCE * least
            and np.linalg.norm(elsewhere, axis=1).max() < CAPTURE_TOLERANCE * least
        ):
            wrong.append(layer)
    if wrong:
        raise EngineError(
            f"the canary failed: what is captured at layers {wrong} is not the stream there",
            hint="this engine does not capture as it should; `vsteer verify` shows more",
        )


def _prove_cache_identity(engine: Engine, steerings: list[Steering]) -> None:
    tokens = np.random.default_rng(2).integers(0, engine.info.vocab_size, 2 * engine.info.cache_block + 1)
    if len(tokens) >= engine.info.max_model_len:
        return
    prompt = Prompt.plain(int(t) for t in tokens)
    other = Steering(steerings[0].terms, (engine.info.cache_block, 2 * engine.info.cache_block))
    cached = [
        next(iter(engine.run([Request("cache", prompt, steering)]))).cached_tokens
        for steering in (steerings[0], steerings[-1], other, None, steerings[0])
    ]
    shared = 2 * engine.info.cache_block
    # unsteered blocks are found again up to a span's start, and a steering's own blocks as a whole
    if len(steerings) > 1 and cached != [0, 0, 0, engine.info.cache_block, shared]:
        raise EngineError(
            f"the canary failed: prefix-cache hits of {cached} tokens instead of "
            f"{[0, 0, 0, engine.info.cache_block, shared]}: blocks of different steerings are not told apart",
            hint="is the vsteer plugin loaded in vLLM's engine core process (VLLM_PLUGINS)?",
        )
