"""Does the vLLM engine do what the reference engine does? Mixed requests, teacher-forced, row by row.

Each steered row must agree with the reference, and must differ from what the reference gives for its
likely slips (unsteered, one layer off, one position off), so that no slip can hide within a tolerance.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from vsteer.engine.proof.reference import ReferenceEngine
from vsteer.operations import OPERATIONS
from vsteer.protocol import (
    OPEN_END,
    Engine,
    Positions,
    Prompt,
    Request,
    Result,
    Steering,
    Term,
    Vectors,
    expected_steered_tokens,
)

TOLERANCE = 1e-4
# How many times float32's own rounding of a row, which Hugging Face's float64 shows, an engine may be apart:
# two implementations round alike.
ROUNDING_FACTOR = 3.0
# A greedy choice may differ where the reference's best two are this close.
NEAR_TIE = 1e-3
# A slip must be at least this many tolerances from the row.
SLIP_FACTOR = 100.0
# The largest gap of a component of a captured stream, as a share of the stream's length.
CAPTURE_TOLERANCE = 1e-4
# What an operation with a module of its own changes may be a small part of the stream, so that one token more
# or less shows less.
PLACED_SLIP_FACTOR = 20.0
MULTIPLIERS = (-2.0, -1.0, -0.5, 0.7, 1.0, 2.0)
VECTOR_NAMES = ("first", "second", "third")
POSITION_CHOICES = (
    "all",
    "after_prompt",
    "after_user_turn",
    "generated",
    "last_prompt_token",
    "span",
)


@dataclass
class Parity:
    """What a comparison found; `failures` holds a line for every row that is wrong."""

    rows: int = 0
    steered_rows: int = 0
    cached_tokens: int = 0
    largest_difference: float = 0.0
    # rows on which float32 itself rounds more than the tolerance
    rounding_rows: int = 0
    least_slip: float = float("inf")
    captured: int = 0
    # as a share of the stream's length
    largest_capture_difference: float = 0.0
    failures: list[str] = field(default_factory=list)


def make_vectors(reference: ReferenceEngine, relative: float = 0.5, seed: int = 0) -> Vectors:
    """Random directions, another one at every layer, each `relative` times as long as the stream there.

    Much longer ones would drown what a slip changes, much shorter ones would change too little. The
    median, since many models make their first token some hundred times longer than the others.
    """
    rng = np.random.default_rng(seed)
    probe = [int(token) for token in rng.integers(0, reference.info.vocab_size, 64)]
    lengths = relative * np.median(np.linalg.norm(reference.streams(probe), axis=2), axis=1)
    vectors: dict[str, dict[int, NDArray[np.float32]]] = {}
    for name in VECTOR_NAMES:
        raw = rng.standard_normal((reference.info.layers, reference.info.hidden_size))
        raw *= (lengths / np.linalg.norm(raw, axis=1))[:, None]
        vectors[name] = dict(enumerate(raw.astype(np.float32)))
    return vectors


def make_requests(
    count: int,
    layers: int,
    vocab_size: int,
    *,
    seed: int = 0,
    prompt_tokens: tuple[int, int] = (6, 80),
    max_tokens: tuple[int, int] = (4, 8),
    captures: bool = False,
    operations: Sequence[str] = (),
) -> list[Request]:
    """Requests over shared and distinct prompts, every kind of positions, one to three terms; each
    tenth is unsteered, every other one of these by a multiplier of 0. With `captures` two of seven
    capture the stream, at a place on the way and at the prompt's end. Each of `operations`, which have
    modules of their own, is done alone by as many of the steered ones as only add; if it acts elsewhere than
    behind its layer, by as many again beside what they add."""
    rng = np.random.default_rng(seed)
    shared = tuple(int(t) for t in rng.integers(0, vocab_size, prompt_tokens[1]))
    probes = tuple(int(t) for t in rng.choice(vocab_size, 32, replace=False))
    requests = []
    for index in range(count):
        length = int(rng.integers(*prompt_tokens))
        fresh = tuple(int(t) for t in rng.integers(0, vocab_size, length))
        kept = int(rng.integers(0, length)) if rng.random() < 0.5 else 0
        template = length - int(rng.integers(0, 3))
        prompt = Prompt(shared[:kept] + fresh[kept:], template, template - int(rng.integers(0, 3)))
        steering: Steering | None = _steering(rng, index, layers, prompt, operations)
        if index % 10 == 9:
            steering = Steering((Term(VECTOR_NAMES[0], 0, 0.0),)) if index % 20 == 9 else None
        requests.append(
            Request(
                f"row {index}",
                prompt,
                steering,
                max_tokens=int(rng.integers(*max_tokens)),
                ignore_eos=True,
                logprob_token_ids=probes,
                capture=(length // 2, length - 1) if captures and index % 7 < 2 else (),
            )
        )
    return requests


def _steering(
    rng: np.random.Generator, index: int, layers: int, prompt: Prompt, operations: Sequence[str]
) -> Steering:
    # different vectors, so that no two terms of one layer cancel each other
    names = rng.permutation(VECTOR_NAMES)[: int(rng.choice([1, 1, 2, 3]))]
    terms = [Term(str(name), int(rng.integers(layers)), float(rng.choice(MULTIPLIERS))) for name in names]
    if len(terms) == 3:
        terms[1] = dataclasses.replace(terms[1], layer=terms[0].layer)
    length = len(prompt.token_ids)
    word = POSITION_CHOICES[index % len(POSITION_CHOICES)]
    positions: Positions = word
    if word == "span":
        start = int(rng.integers(1, length))
        positions = (start, start + int(rng.integers(1, length)))
    # What one token does early in a prompt is read out through the blocks behind it. The upper layers leave
    # few of them, and in many models token 0 is an attention sink that nothing moves any more.
    if word == "all":
        terms = [dataclasses.replace(term, layer=term.layer // 3) for term in terms]
    elif all(term.layer >= 2 * layers // 3 for term in terms):
        positions = ("last_prompt_token", "generated")[index % 2]
    steering = Steering(tuple(terms), positions)
    kinds: list[tuple[bool, str] | None] = [None]
    for operation in operations:
        # behind its layer alone it may take away what is added there, and then no slip shows
        kinds += [(True, operation)] if OPERATIONS[operation].places != ("layer",) else []
        kinds.append((False, operation))
    kind = kinds[index % len(kinds)]
    return _with_operation(steering, *kind, layers) if kind else steering


def _with_operation(steering: Steering, beside: bool, operation: str, layers: int) -> Steering:
    """The steering that does an operation with the third vector, alone or beside what is added: at one half
    of the layers, or at every one if the operation is such."""
    first = steering.terms[0]
    everywhere = OPERATIONS[operation].every_layer
    at = [first.layer] if everywhere else range(first.layer % 2, layers, 2)
    multiplier = first.multiplier if OPERATIONS[operation].has_multiplier else 1.0
    terms = tuple(Term(VECTOR_NAMES[2], layer, multiplier, operation) for layer in at)
    if beside:
        return Steering((*steering.terms, *terms), steering.positions)
    # one token early in a prompt that lacks one direction is hardly seen behind the prompt
    early = not everywhere and isinstance(steering.positions, tuple)
    return Steering(terms, "after_prompt" if early else steering.positions)


def compare(
    engine: Engine,
    reference: ReferenceEngine,
    requests: Sequence[Request],
    vectors: Vectors,
    tolerance: float = TOLERANCE,
    slips: bool = True,
    exact: Callable[[], ReferenceEngine] | None = None,
) -> Parity:
    """Run `requests` through `engine` in one batch and hold every row against the reference.

    `exact` makes a reference in float64. Where a row is apart by more than the tolerance, it says how much of
    that is float32's own: the reference's distance from it, which the row's may exceed ROUNDING_FACTOR times.
    """
    steerings = [request.steering for request in requests if request.steering]
    engine.load(vectors, steerings)
    slipped = {**moved(vectors, 1), **moved(vectors, -1), **alike(vectors)}
    reference.load({**vectors, **slipped}, steerings)
    found = Parity()
    in_float64 = functools.cache(lambda: loaded(exact, vectors, steerings)) if exact else None
    by_id = {request.id: request for request in requests}
    seen = set()
    for result in engine.run(requests):
        seen.add(result.id)
        compare_row(by_id[result.id], result, reference, tolerance, slips, found, in_float64)
    found.failures += [f"{id_}: no result" for id_ in by_id.keys() - seen]
    return found


def compare_row(
    request: Request,
    result: Result,
    reference: ReferenceEngine,
    tolerance: float,
    slips: bool,
    found: Parity,
    in_float64: Callable[[], ReferenceEngine] | None = None,
) -> None:
    """Hold one result against the reference, teacher-forced, and add what is found to `found`."""

    def fail(what: str) -> None:
        found.failures.append(f"{request.id} ({request.steering}): {what}")

    found.rows += 1
    found.cached_tokens += result.cached_tokens
    if result.status != "ok":
        fail(f"failed: {result.error}")
        return
    asked = set(request.logprob_token_ids)
    if len(result.logprobs) != len(result.token_ids) or not all(asked <= at.keys() for at in result.logprobs):
        fail("log-probabilities are missing")
        return
    if request.capture:
        _compare_captured(request, result, reference, found, fail)
    forced = reference.score(request, result.token_ids)
    difference = _distance(result, forced)
    found.largest_difference = max(found.largest_difference, difference)
    allowed = tolerance
    if not difference <= tolerance and in_float64 is not None:
        rounding = float((in_float64().score(request, result.token_ids) - forced)[:, list(asked)].abs().max())
        allowed = max(tolerance, ROUNDING_FACTOR * rounding)
        found.rounding_rows += rounding > tolerance / ROUNDING_FACTOR
    if not difference <= allowed:
        fail(f"log-probabilities are {difference:.2e} apart")
    for position, token in enumerate(result.token_ids):
        best = forced[position].topk(2)
        clear = float(best.values[0] - best.values[1]) > NEAR_TIE
        if clear and int(best.indices[0]) != token:
            fail(f"token {position} is {token}, the reference's is {int(best.indices[0])}")
    steering = request.steering
    if steering is None or not steering.acting_terms:
        if result.steered_tokens:
            fail(f"unsteered, but {result.steered_tokens} tokens are recorded as steered")
        return
    found.steered_rows += 1
    span = request.prompt.span(steering.positions)
    expected = expected_steered_tokens(span, len(request.prompt.token_ids), len(result.token_ids))
    if result.steered_tokens != expected:
        fail(f"{result.steered_tokens} tokens are recorded as steered, {expected} lie in the span")
    if not slips:
        return
    named = dict(_slips(request, reference.info.layers))
    scores = reference.score_together(list(named.values()), result.token_ids)
    for name, score in zip(named, scores, strict=True):
        shown = _distance(result, score)
        found.least_slip = min(found.least_slip, shown)
        adds = any(term.is_added for term in steering.acting_terms)
        factor = SLIP_FACTOR if adds else PLACED_SLIP_FACTOR
        if not shown >= factor * tolerance:
            fail(f"{name} would differ by {shown:.2e} only")


def loaded(
    exact: Callable[[], ReferenceEngine], vectors: Vectors, steerings: Sequence[Steering]
) -> ReferenceEngine:
    reference = exact()
    reference.load(vectors, steerings)
    return reference


def _compare_captured(
    request: Request,
    result: Result,
    reference: ReferenceEngine,
    found: Parity,
    fail: Callable[[str], None],
) -> None:
    expected = reference.streams(request.prompt.token_ids, request)[:, list(request.capture)].swapaxes(0, 1)
    if result.captured is None or result.captured.shape != expected.shape:
        fail("its stream was not captured")
        return
    gap = np.abs(result.captured - expected).max(axis=2) / np.linalg.norm(expected, axis=2)
    found.captured += len(request.capture)
    found.largest_capture_difference = max(found.largest_capture_difference, float(gap.max()))
    if not gap.max() <= CAPTURE_TOLERANCE:
        fail(f"the captured stream is {gap.max():.2e} of its length apart")


def _slips(request: Request, layers: int) -> Iterator[tuple[str, Request]]:
    """The request as a slip would have served it."""
    steering = request.steering
    assert steering is not None
    yield "unsteered", dataclasses.replace(request, steering=None)
    everywhere = any(OPERATIONS[term.operation].every_layer for term in steering.terms)
    for by in (1, -1):
        # the layer of a direction that is used at every layer is no place
        if not everywhere and all(0 <= term.layer + by < layers for term in steering.terms):
            terms = tuple(
                dataclasses.replace(term, layer=term.layer + by, vector=_moved_name(term.vector, by))
                for term in steering.terms
            )
            yield f"layer {by:+d}", dataclasses.replace(request, steering=Steering(terms, steering.positions))
    if everywhere:
        terms = tuple(dict.fromkeys(itertools.chain(*(_at_layers_only(t, layers) for t in steering.terms))))
        yield "at layers only", dataclasses.replace(request, steering=Steering(terms, steering.positions))
    if behind_attention := [term for term in steering.terms if term.operation == "add_attention"]:
        terms = tuple(
            dataclasses.replace(term, operation="add") if term in behind_attention else term
            for term in steering.terms
        )
        yield "behind the layer", dataclasses.replace(request, steering=Steering(terms, steering.positions))
    start, end = request.prompt.span(steering.positions)
    for by in (1, -1):
        moved_end = end if end == OPEN_END else end + by
        if start + by >= 0:
            moved = Steering(steering.terms, (start + by, moved_end))
            yield f"start {by:+d}", dataclasses.replace(request, steering=moved)


def _moved_name(vector: str, by: int) -> str:
    return f"{vector} one layer {-by:+d}"


def moved(vectors: Vectors, by: int) -> Vectors:
    """The same directions, each under the neighbouring layer."""
    return {
        _moved_name(name, by): {layer + by: direction for layer, direction in of_layer.items()}
        for name, of_layer in vectors.items()
    }


def _at_layers_only(term: Term, layers: int) -> tuple[Term, ...]:
    """An operation at every layer without the embedding and what stands behind the attention."""
    operation = OPERATIONS[term.operation]
    if not operation.every_layer:
        return (term,)
    (sibling,) = (
        name
        for name, other in OPERATIONS.items()
        if other.module == operation.module and not other.has_multiplier and not other.every_layer
    )
    return tuple(Term(_alike_name(term.vector, term.layer), n, operation=sibling) for n in range(layers))


def _alike_name(vector: str, layer: int) -> str:
    return f"{vector} of layer {layer}"


def alike(vectors: Vectors) -> Vectors:
    """The direction of each layer, under every layer."""
    return {
        _alike_name(name, layer): dict.fromkeys(of_layer, direction)
        for name, of_layer in vectors.items()
        for layer, direction in of_layer.items()
    }


def _distance(result: Result, forced: torch.Tensor) -> float:
    """The largest gap between a result's log-probabilities and the reference's, over all positions."""
    gaps = [
        np.fromiter(of_token.values(), np.float64) - row[list(of_token)]
        for of_token, row in zip(result.logprobs, forced.cpu().numpy(), strict=True)
    ]
    return float(np.abs(np.concatenate(gaps)).max())
