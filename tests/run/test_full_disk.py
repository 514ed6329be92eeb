"""Every verb where no file may grow any more, as on a full disk: one message, and nothing is lost."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.run.damage import GRID, answer, command, fault_of

pytestmark = pytest.mark.long

VERBS = ("run", "score", "stats", "report", "export", "shell", "status", "check")
SIZES = (0, 1, 300, 3000, 12_000, 60_000)
AT_THE_END = ("run", "score", "stats", "shell", "export")


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def home(folder: Path) -> Path:
    folder.mkdir()
    (folder / "grid.yaml").write_text(GRID)
    return folder


def test_no_verb_ends_in_a_traceback_and_the_run_is_whole_afterwards(tmp_path: Path) -> None:
    full, whole = home(tmp_path / "full"), home(tmp_path / "whole")
    full_messages = 0
    for size in SIZES:
        for verb in VERBS:
            with files_of_at_most(size):
                said = command(verb, full)
            assert not fault_of(said), (size, verb, said)
            full_messages += "File too large" in said.text
    assert full_messages >= len(SIZES), "nothing was in the way"
    for verb in AT_THE_END:
        found, wanted = command(verb, full), command(verb, whole)
        assert found.code == wanted.code
        if verb in ("shell", "export"):
            assert answer(verb, found) == answer(verb, wanted)
    assert not list((full / "runs" / "try").rglob("*.tmp"))
