"""What judges answered, and what it cost: scores/judge-answers.sqlite. No question in it is asked again.

Each answer is written as it comes, so that a kill loses none that was paid for. The cost of a question goes
through three states. What it can cost at most is reserved in memory before it is sent. When it is sent it may
be billed, and counts as that much, in the file, so that a kill forgets nothing. With its answer it counts as
what the server reports. The sum of all three never exceeds the budget.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from vsteer.errors import StoreError
from vsteer.store.scores import SCORES_FOLDER

ANSWERS = "judge-answers.sqlite"
TABLES = """
-- It survives a kill without a sync for each question; only a power cut can lose the last answers.
pragma journal_mode = wal;
pragma synchronous = normal;
create table if not exists answers (
    key text primary key, judge text not null, answer text, finish_reason text,
    at text default current_timestamp
);
create table if not exists spent (judge text not null, tokens integer not null, known integer not null);
"""


@dataclass(frozen=True)
class Answer:
    text: str | None  # as the judge gave it, to be read
    finish_reason: str | None

    @property
    def cut_off(self) -> bool:
        return self.finish_reason == "length"


class Answers:
    """One judge's answers and costs, for any thread of the process that holds the lock of scores/."""

    def __init__(self, folder: Path, judge: str, budget: int | None = None) -> None:
        self.path = folder / SCORES_FOLDER / ANSWERS
        self.judge, self.budget = judge, budget
        self._mutex = threading.Lock()
        # By the question's key: the most that it can cost, and its row in the file once it was sent.
        self._most: dict[str, int] = {}
        self._sent: dict[str, int] = {}
        self._reserved = 0
        with self._errors():
            self._database = sqlite3.connect(self.path, check_same_thread=False)
            self._database.executescript(TABLES)
            self._spent = self._sum("judge = ?")

    def get(self, key: str) -> Answer | None:
        with self._errors():
            found = self._database.execute(
                "select answer, finish_reason from answers where key = ?", (key,)
            ).fetchone()
        return Answer(*found) if found else None

    @property
    def spent(self) -> int:
        """Tokens that were spent on this judge in this run's folder, in all sessions, or may have been."""
        return self._spent

    def unsure(self) -> int:
        """Those of the tokens spent that no server reported: the most that it can have been."""
        with self._errors():
            return self._sum("judge = ? and not known")

    def reserve(self, key: str, most: int) -> bool:
        """Set aside what a question can cost at most; false where the budget doesn't allow it."""
        with self._mutex:
            if self.budget is not None and self._spent + self._reserved + most > self.budget:
                return False
            self._most[key] = most
            self._reserved += most
            return True

    def sent(self, key: str) -> None:
        """From now on the question may be billed."""
        with self._errors():
            most = self._most[key]
            with self._database:
                self._sent[key] = self._insert(most, known=False)
            self._reserved -= most
            self._spent += most

    def free(self, key: str) -> None:
        """Nothing of the question is billed."""
        with self._errors():
            most, row = self._end(key)
            if row is not None:
                with self._database:
                    self._database.execute("delete from spent where rowid = ?", (row,))
                self._spent -= most

    def lost(self, key: str) -> None:
        """No answer came, and the question may have been billed: it goes on to count."""
        with self._errors():
            self._end(key)

    def put(self, key: str, answer: Answer, tokens: int | None) -> None:
        """An answer and its cost, both or neither; without `tokens`, the most that it can have cost."""
        with self._errors():
            most, row = self._end(key)
            cost = most if tokens is None else tokens
            with self._database:
                self._database.execute(
                    "insert or replace into answers (key, judge, answer, finish_reason) values (?, ?, ?, ?)",
                    (key, self.judge, answer.text, answer.finish_reason),
                )
                if row is not None:
                    self._database.execute("delete from spent where rowid = ?", (row,))
                self._insert(cost, known=tokens is not None)
            self._spent += cost - (0 if row is None else most)

    def close(self) -> None:
        self._database.close()

    def _end(self, key: str) -> tuple[int, int | None]:
        """What was set aside for a question, and its row in the file, if it was sent."""
        most, row = self._most.pop(key), self._sent.pop(key, None)
        if row is None:
            self._reserved -= most
        return most, row

    def _insert(self, tokens: int, known: bool) -> int:
        made = self._database.execute(
            "insert into spent values (?, ?, ?)", (self.judge, tokens, int(known))
        ).lastrowid
        assert made is not None
        return made

    def _sum(self, which: str) -> int:
        found = self._database.execute(
            f"select coalesce(sum(tokens), 0) from spent where {which}", (self.judge,)
        ).fetchone()
        return int(found[0])

    @contextmanager
    def _errors(self) -> Iterator[None]:
        with self._mutex:
            try:
                yield
            except sqlite3.Error as error:
                raise StoreError(
                    f"{self.path} can't be read or written: {error}",
                    hint="if the file is damaged, move it away, and its answers are asked for again",
                ) from error
