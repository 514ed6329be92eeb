"""Coherence: what the unsteered model makes of a text, wherever that text came from.

The perplexity of a text is exp of the mean of -log p(token | the prompt and the tokens before it), over the
very tokens that were generated, the one that ends the answer included, forced after the row's own prompt. A
text that falls apart has a high one; one that repeats itself has a low one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from vsteer.errors import SteeringFault
from vsteer.protocol import Prompt, Request, Result
from vsteer.scoring.scorers import Scores

PERPLEXITY = "perplexity"
# Raise it when what is asked or how it is read changes.
VERSION = 1


def identity(model: Mapping[str, Any]) -> dict[str, Any]:
    """What changes the number: the model by its weights, its dtypes, and how we ask."""
    return {"scorer": PERPLEXITY, "version": VERSION, "model": dict(model)}


def coherence_request(name: str, prompt: Sequence[int], text: Sequence[int]) -> Request:
    """The text behind its prompt, unsteered.

    Its last token is asked about as the next one, so that a text which filled the model's window still fits.
    """
    return Request(
        name,
        Prompt.plain((*prompt, *text[:-1])),
        max_tokens=1,
        logprob_token_ids=(text[-1],),
        prompt_logprobs_from=len(prompt) if len(text) > 1 else None,
    )


def read_coherence(text: Sequence[int], result: Result) -> Scores:
    """perplexity, and over how many tokens; with a word on why there is none."""
    if result.status != "ok":
        return _none(f"the engine failed: {result.error}")
    if len(result.prompt_logprobs) != len(text) - 1 or not result.logprobs:
        raise SteeringFault(f"request {result.id!r} came back without log-probabilities of every token")
    logprobs = [*result.prompt_logprobs, result.logprobs[0][text[-1]]]
    loss = -math.fsum(logprobs) / len(logprobs)
    if math.isnan(loss):
        return _none("the model's log-probabilities are not numbers (NaN)")
    tokens = (float(len(text)), None)
    try:
        return {PERPLEXITY: (math.exp(loss), None), "tokens": tokens}
    except OverflowError:
        return {PERPLEXITY: (math.inf, "too large for a number"), "tokens": tokens}


def _none(why: str) -> Scores:
    return {PERPLEXITY: (None, why), "tokens": (None, why)}


NO_TOKENS = _none("the text has no tokens")
