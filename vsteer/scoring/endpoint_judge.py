"""A judge at an endpoint: many questions asked at once, each in a thread."""

from __future__ import annotations

from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path

from vsteer.scoring.endpoint import Endpoint, Stopped, Unanswered
from vsteer.scoring.judge import Judged, JudgeLedger, OnProgress, Question, identity, open_ledger
from vsteer.scoring.judge_answers import Answer
from vsteer.scoring.rubrics import Rubric
from vsteer.scoring.score_file import Output

# So many questions in a row without an answer, and the endpoint counts as gone.
GIVE_UP_AFTER = 10


def judge_texts(
    folder: Path,
    rubric: Rubric,
    endpoint: Endpoint,
    budget: int | None = None,
    concurrency: int = 8,
    on_progress: OnProgress = lambda judged: None,
) -> Judged:
    """Judge every text of a run that has no verdict of this judge. Answers in the cache cost nothing."""
    about = identity(rubric, endpoint.model, endpoint.max_tokens)
    with open_ledger(folder, rubric, about, budget, on_progress) as ledger:
        _Questions(ledger, endpoint, concurrency).run()
    return ledger.result


class _Questions:
    """The questions under way, each a future."""

    def __init__(self, ledger: JudgeLedger, endpoint: Endpoint, concurrency: int) -> None:
        self.ledger, self.endpoint, self.concurrency = ledger, endpoint, concurrency
        self.result = ledger.result
        self._keys: dict[Future[Answer], str] = {}
        self._faults = 0

    def run(self) -> None:
        pool = ThreadPoolExecutor(self.concurrency, "vsteer-judge")
        try:
            for output in self.ledger.file.unscored("question"):
                self._take(pool, output)
                if self.result.over_budget or self.result.gave_up:
                    break
            while self._keys:
                self._collect()
        finally:
            self.endpoint.stop.set()
            pool.shutdown(wait=True, cancel_futures=True)

    def _take(self, pool: ThreadPoolExecutor, output: Output) -> None:
        question = self.ledger.question(output)
        if question is None:
            return
        most = self.endpoint.most_tokens(question.prompt)
        while self._keys and (len(self._keys) >= self.concurrency or not self.ledger.affordable(most)):
            self._collect()
        if self.result.gave_up:
            return
        if not self.ledger.affordable(most):
            self.result.over_budget = True
            return
        self.ledger.asked(question, output, most)
        self._keys[pool.submit(self._ask, question)] = question.key

    def _ask(self, question: Question) -> Answer:
        """Runs in a thread of the pool."""
        answer, paid = self.endpoint.ask(question.prompt, self._lost)
        self.ledger.keep(question.key, answer, paid.tokens, paid.known)
        return answer

    def _lost(self, tokens: int) -> None:
        if not self.ledger.lost(tokens):
            raise Unanswered("the budget is spent on tries without an answer")

    def _collect(self) -> None:
        done, _ = wait(self._keys, return_when=FIRST_COMPLETED)
        for future in done:
            key = self._keys.pop(future)
            try:
                answer = future.result()
            except Unanswered as fault:
                self.ledger.unanswered(key, str(fault))
                self._faults += 1
                self.result.gave_up |= self._faults >= max(GIVE_UP_AFTER, self.concurrency)
            except Stopped:
                self.ledger.dropped(key)
            else:
                self._faults = 0
                self.ledger.answered(key, answer)
        self.ledger.report()
