"""A judge: a model that gives each stored text a number from 0 to 10 by a rubric, many asked at once.

Every text ends as one of three: scored; a scored failure (the answer came, and can't be read); or open,
because no answer came or the budget is spent, and then the same command asks again. Texts that would be
asked the same words are asked about once. Each answer is stored as it comes (`store/answers.py`)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vsteer.evals.endpoint import Endpoint, Stopped, Unanswered
from vsteer.evals.rubrics import Rubric
from vsteer.evals.scorers import scorer_hash
from vsteer.evals.verdict import read_verdict
from vsteer.identity import identify
from vsteer.store.answers import Answer, Answers
from vsteer.store.score_file import Output, ScoreFile

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


class Judging:
    """One call of a judge on a run."""

    def __init__(
        self,
        file: ScoreFile,
        answers: Answers,
        endpoint: Endpoint,
        rubric: Rubric,
        budget: int | None,
        concurrency: int,
        told: Callable[[Judged], None],
    ) -> None:
        self.file, self.answers, self.endpoint, self.rubric = file, answers, endpoint, rubric
        self.budget, self.concurrency, self.told = budget, concurrency, told
        texts, standing = file.counts()
        self.result = Judged(file.path, file.scorer_hash, texts, standing)
        # What the questions under way may cost at most, and the texts that wait for each.
        self._held: dict[Future[Answer], int] = {}
        self._waiting: dict[str, list[Output]] = defaultdict(list)
        self._keys: dict[Future[Answer], str] = {}
        self._faults = 0

    def run(self) -> Judged:
        pool = ThreadPoolExecutor(self.concurrency, "vsteer-judge")
        try:
            for output in self.file.unscored("question"):
                self._take(pool, output)
                if self.result.over_budget or self.result.gave_up:
                    break
            while self._held:
                self._collect()
        finally:
            self.endpoint.stop.set()
            pool.shutdown(wait=True, cancel_futures=True)
            self.result.tokens = self.answers.spent(self.file.scorer_hash)
        return self.result

    def _take(self, pool: ThreadPoolExecutor, output: Output) -> None:
        prompt = self.rubric.prompt(output.question, output.text)
        key = identify({"judge": self.file.scorer_hash, "prompt": prompt})
        if key in self._waiting:
            self._waiting[key].append(output)
            return
        if answer := self.answers.get(key):
            self._score(output, answer)
            return
        most = self.endpoint.most_tokens(prompt)
        while self._held and (len(self._held) >= self.concurrency or not self._affordable(most)):
            self._collect()
        if self.result.gave_up:
            return
        if not self._affordable(most):
            self.result.over_budget = True
            return
        self.result.asked += 1
        future = pool.submit(self._ask, key, prompt)
        self._held[future], self._keys[future] = most, key
        self._waiting[key].append(output)

    def _affordable(self, most: int) -> bool:
        if self.budget is None:
            return True
        return self.answers.spent(self.file.scorer_hash) + sum(self._held.values()) + most <= self.budget

    def _ask(self, key: str, prompt: str) -> Answer:
        """In a thread of the pool: the answer is stored before anybody learns of it."""
        judge = self.file.scorer_hash
        answer, paid = self.endpoint.ask(prompt, self._lost)
        self.answers.put(key, judge, answer, paid.tokens, paid.known)
        return answer

    def _lost(self, tokens: int) -> None:
        """A try came to nothing, and may have been paid for; is there enough for another?"""
        judge = self.file.scorer_hash
        self.answers.pay(judge, tokens)
        if self.budget is not None and self.answers.spent(judge) + tokens > self.budget:
            raise Unanswered("the budget is spent on tries without an answer")

    def _collect(self) -> None:
        done, _ = wait(self._held, return_when=FIRST_COMPLETED)
        for future in done:
            del self._held[future]
            outputs = self._waiting.pop(self._keys.pop(future))
            try:
                answer = future.result()
            except Unanswered as fault:
                self.result.unanswered += len(outputs)
                self.result.last_fault = str(fault)
                self._faults += 1
                self.result.gave_up |= self._faults >= max(GIVE_UP_AFTER, self.concurrency)
            except Stopped:
                pass
            else:
                self._faults = 0
                for output in outputs:
                    self._score(output, answer)
        self.told(self.result)

    def _score(self, output: Output, answer: Answer) -> None:
        verdict = read_verdict(answer.text, answer.cut_off)
        if verdict.score is None:
            self.result.unreadable += 1
        else:
            self.result.scored += 1
        self.file.add(output, self.rubric.name, verdict.score, verdict.reason)
        self.file.end_row()


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
    with ScoreFile(folder, JUDGE, scorer_hash(about), about) as file:
        answers = Answers(folder)
        try:
            return Judging(file, answers, endpoint, rubric, budget, concurrency, told).run()
        finally:
            answers.close()
