"""A request as vLLM takes it, and what vLLM gives back as a result, with the proof that it was steered."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vsteer.engine.worker.step import NOT_SEEN, CellSpan
from vsteer.errors import SteeringFault
from vsteer.protocol import Request, Result, expected_steered_tokens


def sampling_params(request: Request, extra_args: Mapping[str, Any]) -> Any:
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    return SamplingParams(
        temperature=request.temperature,
        top_p=request.top_p,
        seed=request.seed,
        max_tokens=request.max_tokens,
        stop=list(request.stop),
        ignore_eos=request.ignore_eos,
        logprob_token_ids=list(request.logprob_token_ids) or None,
        logprobs=None if request.logprob_token_ids else 0,
        # vLLM then computes the whole prompt: no cached block is read
        prompt_logprobs=None if request.prompt_logprobs_from is None else 0,
        detokenize=bool(request.stop),
        output_kind=RequestOutputKind.FINAL_ONLY,
        extra_args=dict(extra_args) or None,
    )


def merged_records(keys: Sequence[int], answers: Iterable[Sequence[Sequence[int]]]) -> dict[int, list[int]]:
    """What the workers recorded of each key: the first position and the one after the last.

    A rank of a pipeline may be a step behind, so only the least is certain.
    """
    records: dict[int, list[int]] = {}
    for answer in answers:
        for key, (first, done) in zip(keys, answer, strict=True):
            least = records.setdefault(key, [first, done])
            least[1] = min(least[1], done)
    return records


def proven_steered_tokens(
    name: str, span: CellSpan, prompt_tokens: int, completion_tokens: int, record: Sequence[int]
) -> int:
    """How many processed positions lay in the span. Raises unless the workers steered to the last of them."""
    steered = expected_steered_tokens((span.start, span.end), prompt_tokens, completion_tokens)
    first, done = record
    if steered and (first == NOT_SEEN or done < span.start + steered):
        raise SteeringFault(
            f"request {name!r} should have been steered to position {span.start + steered}, "
            f"but its cells were written to {done} only"
        )
    return steered


def result_of(
    request: Request, output: Any, tokenizer: Any, steered_tokens: int, captured: NDArray[np.float32] | None
) -> Result:
    """A request that vLLM finished."""
    completion = output.outputs[0]
    token_ids = tuple(completion.token_ids)
    return Result(
        request.id,
        "ok",
        token_ids=token_ids,
        text=completion.text if request.stop else tokenizer.decode(list(token_ids), skip_special_tokens=True),
        finish_reason=completion.finish_reason,
        logprobs=_logprobs(completion.logprobs),
        prompt_logprobs=_prompt_logprobs(request, output.prompt_logprobs),
        prompt_tokens=len(request.prompt.token_ids),
        cached_tokens=output.num_cached_tokens or 0,
        steered_tokens=steered_tokens,
        captured=captured,
    )


def _logprobs(logprobs: Any) -> tuple[dict[int, float], ...]:
    return tuple(
        {token: float(entry.logprob) for token, entry in position.items()} for position in logprobs or ()
    )


def _prompt_logprobs(request: Request, logprobs: Any) -> tuple[float, ...]:
    first, ids = request.prompt_logprobs_from, request.prompt.token_ids
    if first is None:
        return ()
    if logprobs is None or len(logprobs) != len(ids):
        raise SteeringFault(
            f"request {request.id!r} came back with log-probabilities of {len(logprobs or ())} prompt tokens "
            f"instead of {len(ids)}"
        )
    return tuple(
        float(position[token].logprob) for token, position in zip(ids[first:], logprobs[first:], strict=True)
    )
