"""A judge in the local engine: the same questions, books and reading of answers as at an endpoint."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

from vsteer.prompts.answers import render
from vsteer.protocol import Engine, Request, Result
from vsteer.scoring.judge import MAX_TOKENS, Judged, JudgeLedger, identity, open_ledger
from vsteer.scoring.judge_answers import Answer
from vsteer.scoring.rubrics import Rubric
from vsteer.scoring.score_file import Output


def judge_locally(
    folder: Path,
    rubric: Rubric,
    model: str,
    weights: Mapping[str, Any],
    tokenizer: Any,
    load: Callable[[], Engine],
    budget: int | None = None,
    told: Callable[[Judged], None] = lambda judged: None,
) -> Judged:
    """Judge every text of a run that has no verdict of this model, which is loaded once there is a question.

    `weights` says which model it really is, dtype included: verdicts of two never mix.
    """
    about = identity(rubric, model, MAX_TOKENS) | {"engine": "local", "weights": dict(weights)}
    with open_ledger(folder, rubric, about, budget, told) as books:
        _Asking(books, tokenizer).run(load)
    return books.result


class _Asking:
    def __init__(self, books: JudgeLedger, tokenizer: Any) -> None:
        self.books, self.tokenizer = books, tokenizer
        self._outputs = books.file.unscored("question")

    def run(self, load: Callable[[], Engine]) -> None:
        engine: Engine | None = None
        # A round ends where the budget may be too small for what is under way: that then comes to less.
        while first := next(requests := self._requests(), None):
            engine = engine or load()
            for result in engine.run(chain([first], requests)):
                self._take(result)

    def _requests(self) -> Iterator[Request]:
        for output in self._outputs:
            question = self.books.question(output)
            if question is None:
                continue
            prompt = render(self.tokenizer, question.prompt)
            most = len(prompt.token_ids) + MAX_TOKENS
            if not self.books.affordable(most):
                self._put_back(output)
                self.books.result.over_budget = not self.books.under_way
                return
            self.books.asked(question, output, most)
            yield Request(question.key, prompt, max_tokens=MAX_TOKENS)

    def _put_back(self, output: Output) -> None:
        self._outputs = chain([output], self._outputs)

    def _take(self, result: Result) -> None:
        if result.status != "ok":
            self.books.unanswered(result.id, f"the local engine: {result.error}")
        else:
            answer = Answer(result.text, result.finish_reason)
            # prompt and answer, as an endpoint counts them
            self.books.keep(result.id, answer, result.prompt_tokens + len(result.token_ids), True)
            self.books.answered(result.id, answer)
        self.books.told(self.books.result)
