"""A judge: a model that gives each stored text a number from 0 to 10 by a rubric, many asked at once.

It is asked at an endpoint (here) or in the local engine (`local_judge.py`); the books are the same.

Every text ends as one of three: scored; a scored failure (the answer came, and can't be read); or open,
because no answer came or the budget is spent, and then the same command asks again. Texts that would be
asked the same words are asked about once. Each answer is stored as it comes (`store/answers.py`)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vsteer.identity import identify
from vsteer.scoring.endpoint import Endpoint, Stopped, Unanswered
from vsteer.scoring.judge_answers import Answer, Answers
from vsteer.scoring.rubrics import Rubric
from vsteer.scoring.score_file import Output, ScoreFile
from vsteer.scoring.scorers import scorer_hash
from vsteer.scoring.verdict import read_verdict

JUDGE = "judge"
# Raise it when the prompt's frame or the reading of answers changes.
VERSION = 1
MAX_TOKENS = 120
# So many questions in a row without an answer, and the endpoint counts as gone.
GIVE_UP_AFTER = 10


@dataclass
class Judged:
    """What one call came to, in texts."""

    path: Path
    scorer_hash: str
    texts: int
    standing: int = 0  # had a verdict before
    scored: int = 0
    unreadable: int = 0  # scored failures
    unanswered: int = 0
    asked: int = 0  # questions that were sent, tries of the same one not counted
    tokens: int = 0  # spent on this judge in this folder, with what went before
    over_budget: bool = False
    gave_up: bool = False
    last_fault: str = ""

    @property
    def open(self) -> int:
        return self.texts - self.standing - self.scored - self.unreadable

    @property
    def faults(self) -> str:
        return f"{self.unreadable:,} unreadable | {self.unanswered:,} unanswered"


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
    """One call of a judge on a run: who waits for which answer, what came, and what it cost."""

    def __init__(
        self,
        file: ScoreFile,
        answers: Answers,
        rubric: Rubric,
        budget: int | None,
        told: Callable[[Judged], None],
    ) -> None:
        self.file, self.answers, self.rubric = file, answers, rubric
        self.budget, self.told = budget, told
        texts, standing = file.counts()
        self.result = Judged(file.path, file.scorer_hash, texts, standing)
        # The texts that wait for each question under way, and what that may cost at most.
        self._waiting: dict[str, list[Output]] = {}
        self._held: dict[str, int] = {}

    @property
    def under_way(self) -> int:
        return len(self._held)

    def question(self, output: Output) -> Question | None:
        """What is to be asked of a text; None where it has its answer, or waits for that of an equal one."""
        prompt = self.rubric.prompt(output.question, output.text)
        key = identify({"judge": self.file.scorer_hash, "prompt": prompt})
        if key in self._waiting:
            self._waiting[key].append(output)
            return None
        if answer := self.answers.get(key):
            self._score(output, answer)
            return None
        return Question(key, prompt)

    def affordable(self, most: int) -> bool:
        return self.budget is None or self.spent() + sum(self._held.values()) + most <= self.budget

    def spent(self) -> int:
        return self.answers.spent(self.file.scorer_hash)

    def asked(self, question: Question, output: Output, most: int) -> None:
        self.result.asked += 1
        self._held[question.key], self._waiting[question.key] = most, [output]

    def keep(self, key: str, answer: Answer, tokens: int, known: bool) -> None:
        """Store an answer before anybody learns of it; from any thread."""
        self.answers.put(key, self.file.scorer_hash, answer, tokens, known)

    def answered(self, key: str, answer: Answer) -> None:
        for output in self._ended(key):
            self._score(output, answer)

    def unanswered(self, key: str, why: str) -> None:
        self.result.unanswered += len(self._ended(key))
        self.result.last_fault = why

    def dropped(self, key: str) -> None:
        """Not asked after all."""
        self._ended(key)

    def _ended(self, key: str) -> list[Output]:
        del self._held[key]
        return self._waiting.pop(key)

    def _score(self, output: Output, answer: Answer) -> None:
        verdict = read_verdict(answer.text, answer.cut_off)
        if verdict.score is None:
            self.result.unreadable += 1
        else:
            self.result.scored += 1
        self.file.add(output, self.rubric.name, verdict.score, verdict.reason)
        self.file.end_row()


@contextmanager
def open_ledger(
    folder: Path,
    rubric: Rubric,
    about: Mapping[str, Any],
    budget: int | None,
    told: Callable[[Judged], None],
) -> Iterator[JudgeLedger]:
    """The books of a judge that `about` identifies; what was scored is kept, whatever ends it."""
    with ScoreFile(folder, JUDGE, scorer_hash(about), about) as file:
        answers = Answers(folder)
        try:
            books = JudgeLedger(file, answers, rubric, budget, told)
            try:
                yield books
            finally:
                books.result.tokens = books.spent()
        finally:
            answers.close()


class PromptRenderer:
    """Questions to an endpoint, so many at once, each in a thread."""

    def __init__(self, books: JudgeLedger, endpoint: Endpoint, concurrency: int) -> None:
        self.books, self.endpoint, self.concurrency = books, endpoint, concurrency
        self.result = books.result
        self._keys: dict[Future[Answer], str] = {}
        self._faults = 0

    def run(self) -> None:
        pool = ThreadPoolExecutor(self.concurrency, "vsteer-judge")
        try:
            for output in self.books.file.unscored("question"):
                self._take(pool, output)
                if self.result.over_budget or self.result.gave_up:
                    break
            while self._keys:
                self._collect()
        finally:
            self.endpoint.stop.set()
            pool.shutdown(wait=True, cancel_futures=True)

    def _take(self, pool: ThreadPoolExecutor, output: Output) -> None:
        question = self.books.question(output)
        if question is None:
            return
        most = self.endpoint.most_tokens(question.prompt)
        while self._keys and (len(self._keys) >= self.concurrency or not self.books.affordable(most)):
            self._collect()
        if self.result.gave_up:
            return
        if not self.books.affordable(most):
            self.result.over_budget = True
            return
        self.books.asked(question, output, most)
        self._keys[pool.submit(self._ask, question)] = question.key

    def _ask(self, question: Question) -> Answer:
        """In a thread of the pool."""
        answer, paid = self.endpoint.ask(question.prompt, self._lost)
        self.books.keep(question.key, answer, paid.tokens, paid.known)
        return answer

    def _lost(self, tokens: int) -> None:
        """A try came to nothing, and may have been paid for; is there enough for another?"""
        books = self.books
        books.answers.pay(books.file.scorer_hash, tokens)
        if books.budget is not None and books.spent() + tokens > books.budget:
            raise Unanswered("the budget is spent on tries without an answer")

    def _collect(self) -> None:
        done, _ = wait(self._keys, return_when=FIRST_COMPLETED)
        for future in done:
            key = self._keys.pop(future)
            try:
                answer = future.result()
            except Unanswered as fault:
                self.books.unanswered(key, str(fault))
                self._faults += 1
                self.result.gave_up |= self._faults >= max(GIVE_UP_AFTER, self.concurrency)
            except Stopped:
                self.books.dropped(key)
            else:
                self._faults = 0
                self.books.answered(key, answer)
        self.books.told(self.result)


def judge_texts(
    folder: Path,
    rubric: Rubric,
    endpoint: Endpoint,
    budget: int | None = None,
    concurrency: int = 8,
    told: Callable[[Judged], None] = lambda judged: None,
) -> Judged:
    """Judge every text of a run that has no verdict of this judge. Answers in the cache cost nothing."""
    about = identity(rubric, endpoint.model, endpoint.max_tokens)
    with open_ledger(folder, rubric, about, budget, told) as books:
        PromptRenderer(books, endpoint, concurrency).run()
    return books.result
