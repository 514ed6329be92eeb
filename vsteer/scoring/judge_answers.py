"""What judges answered, and what it cost: scores/judge-answers.sqlite. No question in it is asked again.

Each answer is written as it comes, so that a kill loses none that was paid for.
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
    """The answers, for the process that holds the lock of scores/ and any of its threads."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / SCORES_FOLDER / ANSWERS
        self._mutex = threading.Lock()
        with self._errors():
            self._database = sqlite3.connect(self.path, check_same_thread=False)
            self._database.executescript(TABLES)

    def get(self, key: str) -> Answer | None:
        with self._errors():
            found = self._database.execute(
                "select answer, finish_reason from answers where key = ?", (key,)
            ).fetchone()
        return Answer(*found) if found else None

    def put(self, key: str, judge: str, answer: Answer, tokens: int, known: bool) -> None:
        """An answer and its cost, both or neither."""
        with self._errors(), self._database:
            self._database.execute(
                "insert or replace into answers (key, judge, answer, finish_reason) values (?, ?, ?, ?)",
                (key, judge, answer.text, answer.finish_reason),
            )
            self._pay(judge, tokens, known)

    def pay(self, judge: str, tokens: int) -> None:
        """Count what a request without an answer may have cost."""
        with self._errors(), self._database:
            self._pay(judge, tokens, False)

    def spent(self, judge: str) -> int:
        """Tokens that were spent on this judge in this run's folder, in all sessions."""
        with self._errors():
            found = self._database.execute(
                "select coalesce(sum(tokens), 0) from spent where judge = ?", (judge,)
            ).fetchone()
        return int(found[0])

    def close(self) -> None:
        self._database.close()

    def _pay(self, judge: str, tokens: int, known: bool) -> None:
        self._database.execute("insert into spent values (?, ?, ?)", (judge, tokens, int(known)))

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
