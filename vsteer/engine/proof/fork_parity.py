"""Parity of forks: the suite's rows along their texts, each token asked as a fork behind those before it.

A fork reads one position, at which many a slip far from it shows nothing. Along a text it must show.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence

from vsteer.engine.proof.parity import TOLERANCE, Parity, alike, compare_row, loaded, moved
from vsteer.engine.proof.reference import ReferenceEngine
from vsteer.protocol import Engine, Prompt, Request, Vectors


def compare_forks(
    engine: Engine,
    reference: ReferenceEngine,
    requests: Sequence[Request],
    vectors: Vectors,
    exact: Callable[[], ReferenceEngine] | None = None,
) -> Parity:
    """Let `engine` write each text and ask for it again token by token; hold that to the reference.

    `exact` is what `compare` takes.
    """
    steerings = [request.steering for request in requests if request.steering]
    engine.load(vectors, steerings)
    texts = {result.id: result.token_ids for result in engine.run(requests)}
    places = [(request, count) for request in requests for count in range(len(texts[request.id]))]
    asked = [_forced(request, texts[request.id][:count]) for request, count in places]
    forks = {result.id: result for result in engine.run(asked)}
    reference.load({**vectors, **moved(vectors, 1), **moved(vectors, -1), **alike(vectors)}, steerings)
    found = Parity()
    in_float64 = functools.cache(lambda: loaded(exact, vectors, steerings)) if exact else None
    found.failures += [
        f"{id_}: it was not computed as a fork" for id_, one in forks.items() if not one.forked
    ]
    for request in requests:
        of_text = [forks[f"{request.id}.{count}"] for count in range(len(texts[request.id]))]
        joined = dataclasses.replace(
            of_text[-1],
            id=request.id,
            token_ids=texts[request.id],
            logprobs=tuple(of_token.logprobs[0] for of_token in of_text),
        )
        compare_row(request, joined, reference, TOLERANCE, True, found, in_float64)
    return found


def _forced(request: Request, answer: tuple[int, ...]) -> Request:
    """What comes behind the prompt and this much of its text, asked as a fork."""
    prompt, steering = request.prompt, request.steering
    if steering is not None:
        steering = dataclasses.replace(steering, positions=prompt.span(steering.positions))
    return dataclasses.replace(
        request,
        id=f"{request.id}.{len(answer)}",
        prompt=Prompt(prompt.token_ids + answer, prompt.template_length, prompt.user_turn_length),
        steering=steering,
        capture=(),
        max_tokens=1,
        answer_tokens=len(answer),
    )
