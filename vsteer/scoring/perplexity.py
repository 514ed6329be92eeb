"""Coherence: what the unsteered model makes of a text, wherever that text came from.

The perplexity of a text is exp of the mean of -log p(token | the prompt and the tokens before it), over the
very tokens that were generated, the one that ends the answer included, forced after the row's own prompt. A
text that falls apart has a high one; one that repeats itself has a low one.

A model's texts have a score file of their own, named by the model's weights and dtypes. A run writes it as it
ends with a model (`coherence: true` in its grid), `vsteer score --scorer perplexity` for any stored run.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from vsteer.errors import SteeringFault, StoreError
from vsteer.identity import identify
from vsteer.protocol import Engine, Prompt, Request, Result
from vsteer.scoring.score_file import Output, Scored, ScoreFile
from vsteer.scoring.scorers import Scores, scorer_hash

PERPLEXITY = "perplexity"
# Raise it when the request or the reading of its result changes.
VERSION = 1


class CoherenceFile(ScoreFile):
    """The perplexities of one model's texts in a run, of some evaluations or all."""

    def __init__(
        self,
        folder: Path,
        model: str,
        weights: Mapping[str, Any],
        evaluations: Sequence[str] | None = None,
    ) -> None:
        """`model` as rows name it; `weights` with its dtypes, as every configuration's identity has them."""
        # What changes the number: the model by its weights, its dtypes, and how it is asked.
        about = {"scorer": PERPLEXITY, "version": VERSION, "model": dict(weights)}
        super().__init__(folder, PERPLEXITY, scorer_hash(about), about, model=model, evaluations=evaluations)

    def score(
        self,
        engine: Engine,
        on_progress: Callable[[Scored], None] = lambda so_far: None,
        stopping: Callable[[], bool] = lambda: False,
    ) -> Scored:
        """Score every text without a score, through the engine. `stopping` ends the submission.

        Texts of one prompt with the same tokens are computed once: a steering that changes nothing, or whose
        condition doesn't hold, gives the baseline's.
        """
        waiting: dict[str, list[Output]] = {}
        known: dict[str, Scores] = {}

        def requests() -> Iterator[Request]:
            for output in self.unscored("token_ids", "prompt_token_ids"):
                if stopping():
                    return
                if not output.prompt_token_ids:
                    raise StoreError(
                        f"the prompt of row {output.row_id} is not in {self.folder}/prompts.parquet",
                        hint="give the same `vsteer run` again: it writes the prompts anew",
                    )
                if not output.token_ids:
                    self.add(output, _none("the text has no tokens"))
                    continue
                name = identify([output.prompt_token_ids, output.token_ids])
                if name in known:
                    self.add(output, known[name])
                    on_progress(self.result)
                elif name in waiting:
                    waiting[name].append(output)
                else:
                    waiting[name] = [output]
                    yield coherence_request(name, output.prompt_token_ids, output.token_ids)

        for result in engine.run(requests()):
            outputs = waiting.pop(result.id)
            known[result.id] = read_coherence(outputs[0].token_ids, result)
            for output in outputs:
                self.add(output, known[result.id])
                on_progress(self.result)
        return self.result


def coherence_request(name: str, prompt: Sequence[int], text: Sequence[int]) -> Request:
    """The text behind its prompt, unsteered.

    The log-probability of its last token is read as that of the next token, so that a text which filled the
    model's window still fits.
    """
    return Request(
        name,
        Prompt.plain((*prompt, *text[:-1])),
        max_tokens=1,
        logprob_token_ids=(text[-1],),
        prompt_logprobs_from=len(prompt) if len(text) > 1 else None,
    )


def read_coherence(text: Sequence[int], result: Result) -> Scores:
    """perplexity, and over how many tokens; where there is none, a note says why."""
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
