"""A judge: a model that gives each stored text a number from 0 to 10 by a rubric.

It is asked at an endpoint (`endpoint_judge.py`) or in the local engine (`local_judge.py`); the ledger of
questions, answers and costs is the same.

Every text ends as one of three: scored; a scored failure (the answer came, and can't be read); or open,
because no answer came or the budget is spent, and then the same command asks again. Texts that make the same
question are asked about once. Each answer is stored as it comes (`judge_answers.py`)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vsteer.identity import identify
from vsteer.scoring.judge_answers import Answer, Answers
from vsteer.scoring.rubrics import Rubric
from vsteer.scoring.score_file import Output, Scored, ScoreFile
from vsteer.scoring.scorers import scorer_hash
from vsteer.scoring.verdict import read_verdict

JUDGE = "judge"
# Raise it when the prompt's frame or the reading of answers changes.
VERSION = 1
MAX_TOKENS = 120


@dataclass
class Judged(Scored):
    """What one call of a judge came to; its failures are answers that can't be read."""

    unanswered: int = 0
    asked: int = 0  # questions that were sent; tries of the same one count once
    tokens: int = 0  # spent on this judge in this folder, earlier calls included
    unsure: int = 0  # of them, those that no server reported: requests that may have been billed
    over_budget: bool = False
    gave_up: bool = False
    last_fault: str = ""

    @property
    def faults(self) -> str:
        return f"{self.failed:,} unreadable | {self.unanswered:,} unanswered"


OnProgress = Callable[[Judged], None]


def identity(rubric: Rubric, model: str, max_tokens: int) -> dict[str, Any]:
    return {
        "scorer": JUDGE,
        "version": VERSION,
        "rubric": rubric.name,
        "rubric_text": rubric.text,
        "frame": Rubric("", "").prompt("", ""),
        "model": model,
        "max_tokens": max_tokens,
        "temperature": 0,
    }


@dataclass(frozen=True, slots=True)
class Question:
    key: str  # in the cache of answers
    prompt: str


class JudgeLedger:
    """One call of a judge on a run: which texts wait for which answer, and what came."""

    def __init__(
        self,
        file: ScoreFile,
        answers: Answers,
        rubric: Rubric,
        on_progress: OnProgress,
    ) -> None:
        self.file, self.answers, self.rubric = file, answers, rubric
        self._on_progress = on_progress
        counts = file.result
        self.result = Judged(counts.path, counts.scorer_hash, counts.texts, counts.standing)
        file.result = self.result
        # The texts that wait for each question under way.
        self._waiting: dict[str, list[Output]] = {}

    @property
    def under_way(self) -> int:
        return len(self._waiting)

    def question(self, output: Output) -> Question | None:
        """What to ask about a text; None where it has its answer, or waits for that of an equal one."""
        prompt = self.rubric.prompt(output.question, output.text)
        key = identify({"judge": self.file.scorer_hash, "prompt": prompt})
        if key in self._waiting:
            self._waiting[key].append(output)
            return None
        if answer := self.answers.get(key):
            self._score(output, answer)
            return None
        return Question(key, prompt)

    def asked(self, question: Question, output: Output) -> None:
        self.result.asked += 1
        self._waiting[question.key] = [output]

    def answered(self, key: str, answer: Answer) -> None:
        for output in self._waiting.pop(key):
            self._score(output, answer)

    def unanswered(self, key: str, why: str) -> None:
        self.result.unanswered += len(self._waiting.pop(key))
        self.result.last_fault = why

    def report(self) -> None:
        self._on_progress(self.result)

    def _score(self, output: Output, answer: Answer) -> None:
        verdict = read_verdict(answer.text, answer.cut_off)
        self.file.add(output, {self.rubric.name: (verdict.score, verdict.reason)})


@contextmanager
def open_ledger(
    folder: Path,
    rubric: Rubric,
    about: Mapping[str, Any],
    budget: int | None,
    on_progress: OnProgress,
) -> Iterator[JudgeLedger]:
    """The ledger of a judge that `about` identifies; what was scored is kept, whatever ends it."""
    with (
        ScoreFile(folder, JUDGE, scorer_hash(about), about) as file,
        closing(Answers(folder, file.scorer_hash, budget)) as answers,
    ):
        ledger = JudgeLedger(file, answers, rubric, on_progress)
        try:
            yield ledger
        finally:
            ledger.result.tokens, ledger.result.unsure = answers.spent, answers.unsure()
