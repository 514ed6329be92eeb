"""A run's folder with everything in it that a run leaves, and vsteer's commands on damaged copies of it.

`python -m tests.run.damage bits 1000` flips so many bits, each in a copy of its own, and prints what came of
them; `python -m tests.run.damage commands 500` damages whole files.
"""

from __future__ import annotations

import csv
import json
import logging
import os
import random
import re
import shutil
import sys
import tempfile
import time
import traceback
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from unittest import mock

import pyarrow as pa
import pyarrow.parquet as pq
from click.testing import CliRunner

from tests.run import fake
from vsteer import cli
from vsteer.bench.memory import most_held
from vsteer.grid.spec import EngineSpec
from vsteer.plan.plan import Plan
from vsteer.protocol import Engine
from vsteer.store import shards as sh
from vsteer.store.journal import Journal
from vsteer.store.schema import ROWS_SCHEMA

GRID = """\
version: 1
name: try
model: {id: tiny-llama, dtype: float32}
vectors: {v: {data: sentiment, token: last}}
grid: [{vector: v, layers: [1, 4], multipliers: [-1, 1]}]
controls: {random_vectors: 1, shuffled_labels: 1}
evaluations:
  - {kind: choice, data: sentiment, limit: 8}
  - {kind: open_ended, name: open, data: sentiment, limit: 3, max_tokens: 4, coherence: true}
"""
LONGEST_MESSAGE = 600
# What differs between two runs of one grid.
TIMES = re.compile(r"\d{4}-\d\d-\d\d[T ][\d:.]+(Z|\+00:00)?|\d+(\.\d+)? s\b|process \d+")


@dataclass(frozen=True)
class Said:
    """What a command came to: its exit code, all that it printed, and the file that it wrote."""

    code: int
    text: str
    wrote: str = ""
    raised: str = ""  # the traceback, where it ended in one


def make(home: Path) -> Path:
    """A grid and its run: a compacted shard, two others, a journal, and rows that are still to be done."""
    (home / "grid.yaml").write_text(GRID)
    assert command("run", home).code == 3, "the fake engine fails some rows"
    folder = home / "runs" / "try"
    (whole,) = sh.list_shards(folder / "rows")
    rows = pq.read_table(whole).cast(ROWS_SCHEMA)
    rows = rows.take(sorted(range(len(rows)), key=lambda n: rows["row_id"][n].as_py()))
    places = [0, len(rows) // 2, 5 * len(rows) // 8, 6 * len(rows) // 8, 7 * len(rows) // 8]
    parts = [rows.slice(start, end - start) for start, end in pairwise(places)]
    whole.unlink()
    for number, part in enumerate(parts[:3], start=1):
        content = sh.shard_content(part)
        name = sh.shard_name("part" if number > 1 else "compact", number, zlib.crc32(content))
        (folder / "rows" / name).write_bytes(content)
    journal = Journal(folder)
    for half in (parts[3].slice(0, len(parts[3]) // 2), parts[3].slice(len(parts[3]) // 2)):
        journal.add(4, half)
    for verb in ("score", "stats", "sql", "report", "status"):
        assert not (done := command(verb, home)).raised, done.raised
    return home


def files_of(home: Path) -> list[Path]:
    """Every file of the run, by its path within `home`."""
    return sorted(path.relative_to(home) for path in (home / "runs" / "try").rglob("*") if path.is_file())


ARGUMENTS: dict[str, tuple[str, ...]] = {
    "sql": ("sql", "layer_peaks", "RUN"),
    "shell": ("sql", "RUN"),
    "report": ("report", "RUN", "-o", "OUT/report.html"),
    "show": ("show", "RUN", "--prompt", "My uncle sings every Sunday", "--layer", "4"),
    "export": ("export", "RUN", "-o", "OUT/rows.csv"),
    "check": ("check", "GRID"),
    "status": ("status", "RUN"),
    "score": ("score", "RUN"),
    "stats": ("stats", "RUN"),
    "run": ("run", "GRID", "--retry-errors"),
}
TYPED = """\
select name, count(*), round(sum(value), 6) from scores group by name order by name;
select * from intervals order by all;
select * from norms order by all;
select r.row_id, c.vector_sha256, p.question, r.text, r.logit_diff from rows r
join configs c using (config_id) join prompts p using (prompt_id) order by all;
"""
# The columns of a row that differ when it is computed again.
BY_TURN = ("started_at", "finished_at", "run_session", "attempt")
WRITES = {"report": "report.html", "export": "rows.csv"}


def command(verb: str, home: Path) -> Said:
    """One of vsteer's commands on the run in `home`, in this process, its engine the fake one."""
    folder, heard = home / "runs" / "try", Heard()
    with tempfile.TemporaryDirectory() as out, mock.patch("vsteer.run.start.load_vllm", _load):
        places = {"RUN": str(folder), "GRID": str(home / "grid.yaml"), "OUT": out}
        arguments = [re.sub("^(RUN|GRID|OUT)", lambda m: places[m[0]], one) for one in ARGUMENTS[verb]]
        logging.getLogger("vsteer").addHandler(heard)
        try:
            done = CliRunner().invoke(cli.main, arguments, input=TYPED if verb == "shell" else "")
        finally:
            logging.getLogger("vsteer").removeHandler(heard)
        file = Path(out) / WRITES.get(verb, "none")
        wrote = file.read_text() if file.is_file() else ""
    raised = ""
    if done.exception and not isinstance(done.exception, SystemExit):
        raised = "".join(traceback.format_exception(done.exception))
    text = "\n".join([done.output, *heard.lines]).replace(str(home), "HOME").replace(out, "OUT")
    return Said(done.exit_code, text, wrote, raised)


def _load(plan: Plan, spec: EngineSpec, extracts: bool, **_: object) -> Engine:
    return fake.fake_engine(plan)


class Heard(logging.Handler):
    """The warnings, which outside of a test's process are on standard error."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def message_of(said: Said) -> str | None:
    """The error that a command ended with, from `error:` to the end of its hint."""
    found = re.search(r"^error: .*", said.text, re.MULTILINE | re.DOTALL)
    return found[0] if found else None


def fault_of(said: Said) -> str:
    """How a command misbehaves, whatever is damaged; empty where it doesn't."""
    if said.raised:
        return f"a traceback: {said.raised.splitlines()[-1][:200]}"
    if (message := message_of(said)) is not None and said.code:
        if "\nhint: " not in message:
            return f"no hint: {message[:200]}"
        if len(message) > LONGEST_MESSAGE:
            return f"{len(message)} characters: {message[:200]}"
    return ""


def answer(verb: str, said: Said) -> str:
    """What a user takes from the command, without times, and without how often a row was tried when."""
    if verb == "export":
        lines = said.wrote.splitlines()
        head = lines[0].split(",") if lines else []
        dropped = {n for n, name in enumerate(head) if name in BY_TURN}
        kept = [[c for n, c in enumerate(row) if n not in dropped] for row in csv.reader(lines)]
        return json.dumps(sorted(kept))
    if verb == "report":
        # its tables are compressed
        return f"{said.code}"
    return f"{said.code}\n" + TIMES.sub("TIME", said.text)


# What is tried on a copy with a flipped bit, in turn. Each copy goes one of these ways, some more often.
READS = ("sql", "shell", "show", "export", "check", "status")
WAYS = {
    READS: 6,
    ("report", "shell"): 1,
    ("stats", "score", "shell", "export"): 3,
    ("run", "score", "shell", "export", "show"): 6,
    (*READS, "stats", "run", "score", "shell", "export", "show"): 1,
}


@contextmanager
def copy_of(home: Path) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir=home.parent) as place:
        yield Path(shutil.copytree(home, Path(place) / "home"))


@dataclass
class Flipped:
    """What came of one flipped bit."""

    file: str
    bit: int
    way: tuple[str, ...]
    named_by: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    @property
    def outcome(self) -> str:
        if self.faults:
            return "WRONG"
        return "found" if self.named_by else "harmless"


class Flips:
    """Bits chosen evenly over the files of one run, each flipped in a copy of its own."""

    def __init__(self, home: Path, seed: int, ways: Mapping[tuple[str, ...], int] = WAYS) -> None:
        self.home, self.bits, self.ways = home, random.Random(seed), ways
        self.files = [file for file in files_of(home) if (home / file).stat().st_size]
        self._answers: dict[tuple[str, ...], list[str]] = {}

    def flip(self) -> Flipped:
        file = self.bits.choice(self.files)
        content = bytearray((self.home / file).read_bytes())
        bit, (way,) = (
            self.bits.randrange(8 * len(content)),
            self.bits.choices(list(self.ways), list(self.ways.values())),
        )
        content[bit // 8] ^= 1 << bit % 8
        found = Flipped(str(file), bit, way)
        with copy_of(self.home) as copy:
            (copy / file).write_bytes(content)
            self._try(copy, file, found)
        return found

    def _sound(self, way: tuple[str, ...]) -> list[str]:
        """What the commands of a way answer where nothing is damaged."""
        if way not in self._answers:
            with copy_of(self.home) as copy:
                self._answers[way] = [answer(verb, command(verb, copy)) for verb in way]
        return self._answers[way]

    def _try(self, copy: Path, file: Path, found: Flipped) -> None:
        ran = False
        for verb, sound in zip(found.way, self._sound(found.way), strict=True):
            said = command(verb, copy)
            if fault := fault_of(said):
                found.faults.append(f"{verb}: {fault}")
            if named(file, said):
                found.named_by.append(verb)
            ran |= verb == "run"
            if answer(verb, said) == sound or verb in ("run", "score", "stats"):
                continue
            found.changed.append(verb)
            if not found.named_by:
                found.faults.append(f"{verb}: another answer, and nothing is said")
            elif ran:
                found.faults.append(f"{verb}: another answer after a run")


WORDS = ("aside", "damaged", "left out", "can't be read", "unreadable", "checksum")


def named(file: Path, said: Said) -> bool:
    """Whether the command says of the file that something is wrong with it."""
    return any(file.name in line and any(word in line for word in WORDS) for line in said.text.splitlines())


def foreign(path: Path) -> None:
    pq.write_table(pa.table({"slope": [1.0, 2.0], "row_id": [1, 2]}), path)


def replaced_by(content: bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(content)


def in_place(make: Callable[[Path], object]) -> Callable[[Path], object]:
    def put(path: Path) -> None:
        path.unlink()
        make(path)

    return put


DAMAGES: dict[str, Callable[[Path], object]] = {
    "emptied": replaced_by(b""),
    "halved": lambda path: os.truncate(path, path.stat().st_size // 2),
    "without its end": lambda path: os.truncate(path, max(0, path.stat().st_size - 9)),
    "longer": lambda path: path.write_bytes(path.read_bytes() * 2),
    "noise": lambda path: path.write_bytes(random.Random(1).randbytes(path.stat().st_size)),
    "zeros": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "text": replaced_by(b"nothing of vsteer's\n" * 20),
    "another table": foreign,
    "an empty object": replaced_by(b"{}"),
    "a list": replaced_by(b"[]\n"),
    "deep": replaced_by(b"[" * 200_000 + b"\n"),
    "odd values": replaced_by(
        b'{"schema_version": 1, "rows": -1, "day": 7, "models": 3, "grid": [], "event": "stop",'
        b' "session": "x",'
        b' "pid": [], "host": null, "since": 1, "at": {}, "manifest.json": [1]}\n'
    ),
    "half a surrogate": replaced_by(
        b'{"schema_version": 1, "rows": 1, "day": "\\ud800", "event": "\\ud800"}\n'
    ),
    "gone": lambda path: path.unlink(),
    "a folder": in_place(lambda path: path.mkdir()),
    "a dangling link": in_place(lambda path: path.symlink_to("/nowhere/at/all")),
    "a pipe": in_place(os.mkfifo),
}


def damaged(home: Path, seed: int, count: int) -> Iterator[tuple[str, str, str, str, float]]:
    """Commands on so many damaged copies: file, damage, command, how it misbehaved if it did, and the seconds
    of processors that it took."""
    chance, files = random.Random(seed), files_of(home)
    for _ in range(count):
        file, verb = chance.choice(files), chance.choice(list(ARGUMENTS))
        damage = chance.choice(list(DAMAGES))
        with copy_of(home) as copy:
            DAMAGES[damage](copy / file)
            began = time.process_time()
            said = command(verb, copy)
            yield str(file), damage, verb, fault_of(said), time.process_time() - began


def main(what: str, count: int, seed: int = 0) -> None:
    """Print what misbehaves, and a table of outcomes: all, or those before Ctrl-C."""
    os.fsync = lambda handle: None  # type: ignore[assignment]
    outcomes: Counter[tuple[str, str]] = Counter()
    longest = 0.0
    with tempfile.TemporaryDirectory() as place, suppress(KeyboardInterrupt):
        home = Path(place) / "made" / "home"
        home.mkdir(parents=True)
        make(home)
        if what == "commands":
            for file, damage, verb, fault, seconds in damaged(home, seed, count):
                outcomes[damage, "WRONG" if fault else "well"] += 1
                longest = max(longest, seconds)
                if fault:
                    print(file, damage, verb, fault, flush=True)
        else:
            flips = Flips(home, seed)
            for _ in range(count):
                began, found = time.process_time(), flips.flip()
                outcomes[kind_of(found.file), found.outcome] += 1
                longest = max(longest, time.process_time() - began)
                if found.faults:
                    print(found, flush=True)
    for (kind, outcome), number in sorted(outcomes.items()):
        print(f"{number:5}  {outcome:8}  {kind}")
    most = most_held() / 1e9
    print(f"{outcomes.total()} in all; the longest took {longest:.1f} s; most memory {most:.2f} GB")


def kind_of(file: str) -> str:
    return re.sub(r"[0-9a-f]{8,}|\d+", "N", file.removeprefix("runs/try/"))


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
