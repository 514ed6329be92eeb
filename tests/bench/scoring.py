"""What the plain scorers take on stored texts: seconds and memory, each run in a process of its own."""

from __future__ import annotations

import multiprocessing
import tempfile
import time
from pathlib import Path

from tests.bench.store import TOKENS, made_rows
from vsteer.bench.figures import Figure
from vsteer.bench.memory import most_held
from vsteer.scoring.scorers import PLAIN
from vsteer.scoring.stored_texts import score_texts
from vsteer.store.store import open_store

ROWS, SECONDS, MIB = 100_000, 60.0, 100.0
# Memory is compared with that of so many times fewer rows.
FEWER = 5


def bench_scoring(rows: int = ROWS) -> list[Figure]:
    """All plain scorers over `rows` texts, against the seconds that so many may take."""
    with tempfile.TemporaryDirectory(prefix="vsteer-bench-") as folder:
        (_, few), (seconds, many) = (
            _scored(Path(folder) / str(count), count) for count in (rows // FEWER, rows)
        )
    most = SECONDS * rows / ROWS
    return [
        Figure(
            f"{rows:,} texts, seconds left of {most:g}",
            most - seconds,
            target=0,
            note=f"{', '.join(PLAIN)}: {seconds:.1f} s; texts of {TOKENS} tokens",
        ),
        Figure(
            f"memory left of {MIB:g} MiB that it may grow by",
            MIB - (many - few),
            target=0,
            note=f"{many:.0f} MiB in all with {rows:,} texts, {few:.0f} with {rows // FEWER:,}",
        ),
    ]


def _scored(folder: Path, rows: int) -> tuple[float, float]:
    with open_store(folder) as store:
        store.write_plan({"name": "bench"}, [], [], rows)
        for row in made_rows("open_ended", rows):
            store.append(row)
        store.compact()
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_score, (folder, rows))


def _score(folder: Path, rows: int) -> tuple[float, float]:
    """Seconds, and the process's largest memory in MiB."""
    began = time.perf_counter()
    for scorer in PLAIN.values():
        done = score_texts(folder, scorer)
        assert (done.scored, done.open) == (rows, 0)
    return time.perf_counter() - began, most_held() / 2**20
