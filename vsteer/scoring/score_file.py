"""One scorer's file in a run: which rows it has still to score, and their scores, saved as they come.

The file is whole at every moment. Saving writes it anew, so it is done every half minute, or less often once
it takes longer: a kill costs less than a minute of scoring. Memory holds one batch of rows and of scores.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from vsteer.files import put_in_place, vacant_path
from vsteer.results.views import readable
from vsteer.scoring.scorers import Scores
from vsteer.store.database import exact, in_memory, quoted
from vsteer.store.files import disk_errors, parquet_writer
from vsteer.store.lock import FolderLock
from vsteer.store.scores import SCORES_FOLDER, schema_of, scores_path
from vsteer.store.seal import seal, with_place
from vsteer.store.sound import faults_of_tables, set_aside_with_warning, sound_shards
from vsteer.store.views import PROMPTS, placed, superseded_sql

Also = Literal["token_ids", "question", "prompt_token_ids", "item_id", "choice_logprobs"]
RowKind = Literal["choice", "open_ended"]
MEMORY = "1GB"
ROWS_AT_ONCE = 2048
SCORES_AT_ONCE = 65536
SAVE_SECONDS = 30.0
# Saving copies what was saved before, and must stay a small part of the work.
SAVE_SHARE = 0.1


@dataclass(frozen=True, slots=True)
class Output:
    """A stored text, or another row, as a scorer sees it: nothing says how it was steered."""

    row_id: str
    finished_at: datetime
    text: str
    # These are there where the scorer asks for them.
    token_ids: tuple[int, ...] = ()
    question: str = ""
    prompt_token_ids: tuple[int, ...] = ()
    item_id: str = ""
    choice_logprobs: tuple[float, ...] = ()


@dataclass
class Scored:
    """What one call of a scorer came to, in texts."""

    path: Path
    scorer_hash: str
    texts: int  # stored texts that can be scored
    standing: int  # had scores before
    scored: int = 0
    failed: int = 0  # have no number, and a note that says why

    @property
    def open(self) -> int:
        return self.texts - self.standing - self.scored - self.failed

    @property
    def faults(self) -> str:
        return f"{self.failed:,} without a number"


class WholeParquet:
    """A Parquet file written in pieces, that takes its name only when it is whole."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self.path = path
        with self._disk():
            self._temporary = vacant_path(path)
            self._file = self._temporary.open("wb")
            self._writer = parquet_writer(self._file, with_place(schema))

    def write(self, table: pa.Table) -> None:
        with self._disk():
            self._writer.write_table(table, row_group_size=max(1, len(table)))

    def finish(self) -> None:
        with self._disk():
            self._writer.close()
            self._file.close()
            seal(self._temporary)
            put_in_place(self._temporary, self.path)

    def abandon(self) -> None:
        with suppress(OSError, pa.ArrowException):
            self._writer.close()
        with suppress(OSError):
            self._file.close()
            self._temporary.unlink(missing_ok=True)

    @contextmanager
    def _disk(self) -> Iterator[None]:
        with disk_errors(f"writing {self.path}"):
            yield


class ScoreFile:
    """A scorer's scores of a run, which this process alone adds to."""

    def __init__(
        self,
        folder: Path,
        scorer: str,
        scorer_hash: str,
        about: Mapping[str, Any],
        *,
        model: str | None = None,
        evaluations: Sequence[str] | None = None,
        kinds: Sequence[RowKind] = ("open_ended",),
    ) -> None:
        """The scores of all models and evaluations, unless some are named, and of these kinds of rows."""
        self.folder, self.scorer, self.scorer_hash = folder, scorer, scorer_hash
        self.path = scores_path(folder, scorer, scorer_hash)
        self.save_seconds = SAVE_SECONDS
        self._schema = schema_of(scorer_hash, about)
        self._scores: list[tuple[str, datetime, str, float | None, str | None]] = []
        self._writer: WholeParquet | None = None
        self._spent = 0.0  # what the last saving took
        self._saved_at = time.monotonic()
        self._database = scoring_database(folder, kinds)
        self._lock = FolderLock(folder / SCORES_FOLDER)
        try:
            for path, why in faults_of_tables(folder, {self.path: self._schema}).items():
                if why:
                    set_aside_with_warning(folder, path, why, "its texts are scored anew")
            self._drop_stale()
            chosen = [_among("model", None if model is None else [model]), _among("evaluation", evaluations)]
            self._database.execute(
                f"create view wanted as select * from outputs where {' and '.join(chosen)}"
            )
            counts = self._database.execute(
                "select count(*), count(d.row_id) from wanted o"
                " left join done d on d.row_id = o.row_id and d.finished_at = o.finished_at"
            ).fetchall()[0]
            self.result = Scored(self.path, scorer_hash, *counts)
        except BaseException:
            self.release()
            raise

    def unscored(self, *also: Also) -> Iterator[Output]:
        """Every good text without a score, once."""
        names = ("row_id", "finished_at", "text", *also)
        with readable(self.folder):
            reader = (
                self._database.cursor()
                .sql(f"select {', '.join(names)} from wanted anti join done using (row_id, finished_at)")
                .to_arrow_reader(ROWS_AT_ONCE)
            )
            for batch in reader:
                for values in zip(*(batch[name].to_pylist() for name in names), strict=True):
                    yield Output(**dict(zip(names, values, strict=True)))

    def add(self, output: Output, scores: Scores) -> None:
        """Take all scores of a row: they are saved together or not at all."""
        for name, (value, note) in scores.items():
            self._scores.append((output.row_id, output.finished_at, name, value, note))
        if any(value is not None for value, _ in scores.values()):
            self.result.scored += 1
        else:
            self.result.failed += 1
        if len(self._scores) >= SCORES_AT_ONCE:
            self._write()
        if time.monotonic() - self._saved_at > max(self.save_seconds, self._spent / SAVE_SHARE):
            self.save()

    def save(self) -> None:
        self._write()
        if self._writer:
            began = time.monotonic()
            self._writer.finish()
            self._writer = None
            self._spent += time.monotonic() - began
        self._saved_at = time.monotonic()

    def release(self) -> None:
        """Let the folder go, without saving."""
        if self._writer:
            self._writer.abandon()
            self._writer = None
        self._database.close()
        self._lock.release()
        shutil.rmtree(_scratch(self.folder), ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            # What was scored is kept, whatever ended the scoring.
            self.save()
        finally:
            self.release()

    def _write(self) -> None:
        if not self._scores:
            return
        if self._writer is None:
            began = time.monotonic()
            self._writer = WholeParquet(self.path, self._schema)
            for table in self._saved():
                self._writer.write(table)
            self._spent = time.monotonic() - began
        row_ids, times, names, values, notes = zip(*self._scores, strict=True)
        count = len(self._scores)
        columns = (row_ids, times, [self.scorer] * count, [self.scorer_hash] * count, names, values, notes)
        arrays = [pa.array(column, field.type) for column, field in zip(columns, self._schema, strict=True)]
        self._writer.write(pa.Table.from_arrays(arrays, schema=self._schema))
        self._scores.clear()

    def _saved(self) -> Iterator[pa.Table]:
        if not self.path.exists():
            return
        with pq.ParquetFile(self.path, page_checksum_verification=True) as file:
            for batch in file.iter_batches(SCORES_AT_ONCE):
                yield pa.Table.from_batches([batch]).cast(self._schema)

    def _drop_stale(self) -> None:
        """Drop the scores of rows that are gone or were computed again, and note which rows have one."""
        source = f"read_parquet({quoted(exact(self.path))})"
        current = "semi join outputs o on o.row_id = s.row_id and o.finished_at = s.row_finished_at"
        with readable(self.folder):
            if not self.path.exists():
                self._database.execute("create table done as select row_id, finished_at from outputs limit 0")
                return
            self._database.execute(
                "create table done as select distinct s.row_id, s.row_finished_at as finished_at"
                f" from {source} s {current}"
            )
            kept, there = self._database.execute(
                f"select (select count(*) from {source} s {current}), (select count(*) from {source})"
            ).fetchall()[0]
            if kept == there:
                return
            reader = self._database.sql(f"select s.* from {source} s {current}").to_arrow_reader(
                SCORES_AT_ONCE
            )
            writer = WholeParquet(self.path, self._schema)
            try:
                for batch in reader:
                    writer.write(pa.Table.from_batches([batch]).cast(self._schema))
                writer.finish()
            except BaseException:
                writer.abandon()
                raise


def scoring_database(folder: Path, kinds: Sequence[RowKind] = ("open_ended",)) -> duckdb.DuckDBPyConnection:
    """A database with the view `outputs`: each good row of the kinds with its question; in little memory."""
    shards = sound_shards(folder)
    with readable(folder):
        database = in_memory()
        with disk_errors(f"making {folder / SCORES_FOLDER}"):
            (folder / SCORES_FOLDER).mkdir(exist_ok=True)
        database.execute(f"set memory_limit = {quoted(MEMORY)}")
        database.execute(f"set temp_directory = {quoted(str(_scratch(folder)))}")
        database.execute("set preserve_insertion_order = false")
        # Joins as they are written: the optimizer would hash the texts where it guesses that there are few.
        database.execute("set disabled_optimizers = 'join_order,build_side_probe_side'")
        # As compaction does it: the choice of each row's best is made without dragging its text along.
        database.execute(f"create table superseded as {superseded_sql(shards)}")
        database.execute(
            "create view outputs as select r.row_id, r.finished_at, r.model, r.evaluation, r.text,"
            " r.item_id, r.choice_logprobs, r.token_ids, coalesce(p.question, '') as question,"
            " p.token_ids as prompt_token_ids"
            f" from {placed(shards)} r anti join superseded s using (filename, file_row_number) left join"
            " (select prompt_id, any_value(question) as question, any_value(token_ids) as token_ids"
            f" from read_parquet({quoted(exact(folder / PROMPTS))}) group by prompt_id) p"
            f" using (prompt_id) where {_among('r.kind', kinds)} and r.status = 'ok'"
        )
    return database


def _among(column: str, values: Sequence[str] | None) -> str:
    if values is None:
        return "true"
    return f"{column} in ({', '.join(map(quoted, values)) or 'null'})"


def _scratch(folder: Path) -> Path:
    return folder / SCORES_FOLDER / ".scratch"
