"""A judge in the local engine: the same questions, ledger and reading of answers as at an endpoint."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

from vsteer.prompts.template import render_question
from vsteer.protocol import Engine, Request, Result
from vsteer.scoring.judge import MAX_TOKENS, Judged, JudgeLedger, OnProgress, identity, open_ledger
from vsteer.scoring.judge_answers import Answer
from vsteer.scoring.rubrics import Rubric


def judge_locally(
    folder: Path,
    rubric: Rubric,
    model: str,
    weights: Mapping[str, Any],
    tokenizer: Any,
    load: Callable[[], Engine],
    budget: int | None = None,
    on_progress: OnProgress = lambda judged: None,
) -> Judged:
    """Judge every text of a run that has no verdict of this model, which is loaded once there is a question.

    `weights` says which model it really is, dtype included: verdicts of two never mix.
    """
    about = identity(rubric, model, MAX_TOKENS) | {"engine": "local", "weights": dict(weights)}
    with open_ledger(folder, rubric, about, budget, on_progress) as ledger:
        _Questions(ledger, tokenizer).run(load)
    return ledger.result


class _Questions:
    """The questions as requests of an engine, as many at once as the budget allows."""

    def __init__(self, ledger: JudgeLedger, tokenizer: Any) -> None:
        self.ledger, self.answers, self.tokenizer = ledger, ledger.answers, tokenizer
        self._outputs = ledger.file.unscored("question")

    def run(self, load: Callable[[], Engine]) -> None:
        engine: Engine | None = None
        # A round ends where the budget may be too small for what is under way: that then costs less.
        while first := next(requests := self._requests(), None):
            engine = engine or load()
            for result in engine.run(chain([first], requests)):
                self._take(result)

    def _requests(self) -> Iterator[Request]:
        for output in self._outputs:
            question = self.ledger.question(output)
            if question is None:
                continue
            prompt = render_question(self.tokenizer, question.prompt)
            most = len(prompt.token_ids) + MAX_TOKENS
            if not self.answers.reserve(question.key, most):
                self._outputs = chain([output], self._outputs)
                self.ledger.result.over_budget = not self.ledger.under_way
                return
            self.ledger.asked(question, output)
            yield Request(question.key, prompt, max_tokens=MAX_TOKENS)

    def _take(self, result: Result) -> None:
        if result.status != "ok":
            self.answers.free(result.id)
            self.ledger.unanswered(result.id, f"the local engine: {result.error}")
        else:
            answer = Answer(result.text, result.finish_reason)
            # Prompt and answer are paid for, as at an endpoint.
            self.answers.put(result.id, answer, result.prompt_tokens + len(result.token_ids))
            self.ledger.answered(result.id, answer)
        self.ledger.report()
