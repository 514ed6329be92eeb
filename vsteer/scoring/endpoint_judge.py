"""A judge at an endpoint: many questions at once, and what is done about one without an answer.

A try that may have been billed is repeated less often than one that costs nothing. An endpoint that has not
answered yet is asked one question at a time, so that one that is gone, or hangs, costs as little as it can.
"""

from __future__ import annotations

import asyncio
import math
import random
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import suppress
from pathlib import Path

from vsteer.scoring.background import Background
from vsteer.scoring.endpoint import LONGEST_WAIT, Endpoint, Reply
from vsteer.scoring.judge import Judged, JudgeLedger, OnProgress, Question, identity, open_ledger
from vsteer.scoring.judge_answers import Answer
from vsteer.scoring.rubrics import Rubric
from vsteer.scoring.score_file import Output

# How often a question is tried. A try that was sent and perhaps billed, though no answer came, is a lost one.
TRIES = 6
LOST_TRIES = 3
FIRST_WAIT = 1.0
# So many questions in a row without an answer, and the endpoint counts as gone.
GIVE_UP_AFTER = 10
# The same before its first answer; one question is enough where it can't be reached at all.
GIVE_UP_UNPROVEN = 3


class Unanswered(Exception):
    """No answer to this question, after all tries; the next scoring asks again."""


def judge_texts(
    folder: Path,
    rubric: Rubric,
    endpoint: Endpoint,
    budget: int | None = None,
    concurrency: int = 8,
    on_progress: OnProgress = lambda judged: None,
    first_wait: float = FIRST_WAIT,
) -> Judged:
    """Judge every text of a run that has no verdict of this judge. Answers in the cache cost nothing."""
    about = identity(rubric, endpoint.model, endpoint.max_tokens)
    with open_ledger(folder, rubric, about, budget, on_progress) as ledger:
        _Questions(ledger, endpoint, concurrency, first_wait).run()
    return ledger.result


class _Questions:
    """The questions under way, each a future here and a task in the background."""

    def __init__(self, ledger: JudgeLedger, endpoint: Endpoint, concurrency: int, first_wait: float) -> None:
        self.ledger, self.endpoint, self.answers = ledger, endpoint, ledger.answers
        self.concurrency, self.first_wait = concurrency, first_wait
        self.result = ledger.result
        self._keys: dict[Future[Answer], str] = {}
        self._health = _Health(concurrency)

    def run(self) -> None:
        with Background(self.endpoint.close) as background:
            for output in self.ledger.file.unscored("question"):
                self._take(background, output)
                if self.result.over_budget or self._health.gone.is_set():
                    break
            while self._keys:
                self._collect()
        self.result.gave_up = self._health.gone.is_set()

    def _take(self, background: Background, output: Output) -> None:
        question = self.ledger.question(output)
        if question is None:
            return
        while len(self._keys) >= self._health.at_once or not self._reserve(question):
            if not self._keys:
                self.result.over_budget = True
                return
            self._collect()
        if self._health.gone.is_set():
            self.answers.free(question.key)
            return
        self.ledger.asked(question, output)
        self._keys[background.start(self._ask(question))] = question.key

    def _reserve(self, question: Question) -> bool:
        return self.answers.reserve(question.key, self.endpoint.most_tokens(question.prompt))

    async def _ask(self, question: Question) -> Answer:
        """Ask until there is an answer, or until no further try may help. What it costs is reserved."""
        key = question.key
        lost = 0
        for number in range(1, TRIES + 1):
            reply = await self.endpoint.ask(question.prompt, lambda: self.answers.sent(key))
            if reply.answer:
                self.answers.put(key, reply.answer, reply.tokens)
                self._health.answered()
                return reply.answer
            if reply.billed:
                self.answers.lost(key)
                lost += 1
                self._health.lost()
            else:
                self.answers.free(key)
            ended = not reply.again or number == TRIES or lost == self._health.lost_tries
            if ended or await self._health.gone_within(self._pause(number, reply)):
                break
            if not self._reserve(question):
                raise Unanswered(f"{reply.fault}; the budget allows no further try")
        self._health.unanswered(reply)
        raise Unanswered(reply.fault)

    def _pause(self, number: int, reply: Reply) -> float:
        doubled = min(LONGEST_WAIT, math.ldexp(self.first_wait, number - 1))
        return max(reply.wait, doubled * random.uniform(0.5, 1))

    def _collect(self) -> None:
        done, _ = wait(self._keys, return_when=FIRST_COMPLETED)
        for future in done:
            key = self._keys.pop(future)
            try:
                answer = future.result()
            except Unanswered as fault:
                self.ledger.unanswered(key, str(fault))
            else:
                self.ledger.answered(key, answer)
        self.ledger.report()


class _Health:
    """What the endpoint did so far, and what follows from it. It is changed in the background alone."""

    def __init__(self, concurrency: int) -> None:
        self._concurrency = concurrency
        self._proven = False  # it has answered in this call
        self._unanswered = 0  # questions in a row
        self._lost = 0  # tries in a row
        self.gone = asyncio.Event()

    @property
    def at_once(self) -> int:
        return self._concurrency if self._proven else 1

    @property
    def lost_tries(self) -> int:
        return LOST_TRIES if self._proven else 1

    def answered(self) -> None:
        self._proven, self._unanswered, self._lost = True, 0, 0

    def lost(self) -> None:
        self._lost += 1
        if self._lost >= max(2 * LOST_TRIES, 2 * self._concurrency):
            self.gone.set()

    def unanswered(self, reply: Reply) -> None:
        self._unanswered += 1
        most = max(GIVE_UP_AFTER, self._concurrency)
        # A question that is refused for its own sake says nothing of the others.
        if not self._proven and reply.again:
            most = GIVE_UP_UNPROVEN if reply.sent else 1
        if self._unanswered >= most:
            self.gone.set()

    async def gone_within(self, seconds: float) -> bool:
        with suppress(TimeoutError):
            await asyncio.wait_for(self.gone.wait(), seconds)
        return self.gone.is_set()
