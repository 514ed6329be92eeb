"""A file that may not be read is refused as such, not as missing or broken, and nothing is made anew."""

from __future__ import annotations

import contextlib
import ctypes
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from tests.plan.sample import GRID, filled
from tests.store.makers import row, text_row, write_plan
from vsteer.cli import main
from vsteer.errors import StoreError
from vsteer.files import UNREADABLE
from vsteer.models import resolve
from vsteer.scoring.scorers import PLAIN
from vsteer.scoring.stored_texts import score_texts
from vsteer.store.lock import LOCK
from vsteer.store.sound import NOTE
from vsteer.store.store import open_store
from vsteer.vectors.files import save
from vsteer.vectors.vector import SteeringVector

CAPABILITY_VERSION = 0x20080522
OVERRIDE_PERMISSIONS = 1 << 1 | 1 << 2  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A grid with its data, model and vector, and a run."""
    folder = tmp_path_factory.mktemp("made")
    filled(folder)
    shutil.copytree(resolve("tiny-llama").model, folder / "model")
    (folder / "grid.yaml").write_text(GRID.replace("tiny-llama", "./model"))
    (folder / "made.yaml").write_text(
        GRID.replace("{data: items.json, norm: [raw, unit]}", "{file: v.safetensors}")
    )
    width = json.loads((folder / "model" / "config.json").read_text())["hidden_size"]
    directions = {layer: np.ones(width, np.float32) for layer in range(6)}
    save(SteeringVector("v", directions), folder / "v.safetensors")
    (folder / "rubric.txt").write_text("0 is bad, 10 is good.")
    with open_store(folder / "run", shard_rows=10) as store:
        write_plan(store, 30)
        for number in range(30):
            store.append(text_row(number) if number < 10 else row(number))
    score_texts(folder / "run", PLAIN["length"])
    return folder


@contextlib.contextmanager
def without_privilege() -> Iterator[None]:
    """Root may read what nobody else may; this thread, and what it starts, do without that for a while."""
    header = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION, 0)
    sets = (ctypes.c_uint32 * 6)()  # effective, permitted and inheritable ones, twice 32 of each
    libc = ctypes.CDLL(None)
    assert libc.capget(header, sets) == 0
    effective = sets[0]
    sets[0] = effective & ~OVERRIDE_PERMISSIONS
    assert libc.capset(header, sets) == 0
    try:
        yield
    finally:
        sets[0] = effective
        assert libc.capset(header, sets) == 0


def first(pattern: str) -> Callable[[Path], Path]:
    return lambda folder: sorted(folder.glob(pattern))[0]


@pytest.mark.parametrize(
    ("which", "arguments"),
    [
        ("grid.yaml", "plan grid.yaml"),
        ("items.json", "plan grid.yaml"),
        ("model/config.json", "plan grid.yaml"),
        ("model/model.safetensors", "plan grid.yaml"),
        ("model/tokenizer.json", "plan grid.yaml"),
        ("model", "plan grid.yaml"),
        ("model", "verify ./model"),
        ("model/config.json", "verify ./model"),
        ("v.safetensors", "plan made.yaml"),
        ("v.safetensors", "vectors inspect v.safetensors"),
        ("items.json", "vectors extract tiny-llama items.json"),
        ("rubric.txt", "score run --scorer judge --rubric rubric.txt --judge-model ./model"),
        ("model/model.safetensors", "score run --scorer judge --rubric refusal --judge-model ./model"),
        ("run", "status run"),
        ("run/manifest.json", "status run"),
        ("run/rows", "status run"),
        ("run/rows/*-00000001-*.parquet", "status run"),
        ("run/rows/*-00000001-*.parquet", "export run -o rows.csv"),
        ("run/rows/*-00000001-*.parquet", "sql layer_peaks run"),
        ("run/events.jsonl", "status run"),
        ("run/scores/length-*.parquet", "sql layer_peaks run"),
        ("run/prompts.parquet", "sql layer_peaks run"),
    ],
)
def test_the_hint_is_to_make_it_readable(
    made: Path, monkeypatch: pytest.MonkeyPatch, which: str, arguments: str
) -> None:
    monkeypatch.chdir(made)
    resolve("tiny-llama")
    path = first(which)(made)
    before = path.stat().st_mode
    everything = contents(made)
    path.chmod(0)
    try:
        with without_privilege():
            done = CliRunner().invoke(main, arguments.split())
    finally:
        path.chmod(before)
    assert isinstance(done.exception, SystemExit), done.exc_info
    assert done.exit_code in (1, 2)
    assert done.stderr.splitlines()[-1] == f"hint: {UNREADABLE}"
    assert "ermission denied" in done.stderr
    assert len(done.stderr) < 600
    assert contents(made) == everything


@pytest.mark.parametrize("which", ["run/rows/*-00000001-*.parquet", "run/manifest.json"])
def test_a_run_that_goes_on_puts_nothing_aside(made: Path, which: str) -> None:
    path = first(which)(made)
    everything = contents(made)
    path.chmod(0)
    try:
        with without_privilege(), pytest.raises(StoreError) as refused, open_store(made / "run"):
            pass
    finally:
        path.chmod(0o644)
    assert refused.value.hint == UNREADABLE
    assert contents(made) == everything


def contents(made: Path) -> dict[Path, int]:
    """The run's files and their sizes, without the note of which were found sound."""
    files = (made / "run").rglob("*")
    return {each: each.stat().st_size for each in files if each.name not in (NOTE, LOCK)}
