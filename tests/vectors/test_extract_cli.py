"""`vsteer vectors extract` beside a run and a notebook: one recipe, and so one vector, without vLLM."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result

import vsteer
from tests.alone import AS_IN_MAIN
from tests.fake_engine import FakeEngine
from tests.run import fake
from vsteer import models
from vsteer.api import engine as api_engine
from vsteer.cli.extract import extract
from vsteer.errors import UsageError
from vsteer.run import loading
from vsteer.run.start import run_grid
from vsteer.vectors.derive import content_sha256
from vsteer.vectors.files import load

GRID = """\
version: 1
name: try
model: {id: tiny-llama, dtype: float32}
vectors: {v: {data: refusal, system: Be brief.}}
grid: [{vector: v, layers: [1], multipliers: [1]}]
evaluations: [{kind: choice, data: refusal, limit: 1}]
"""


@pytest.fixture
def engines(monkeypatch: pytest.MonkeyPatch) -> list[FakeEngine]:
    """The engines that were loaded."""
    loaded: list[FakeEngine] = []

    def load_named(folder: Path, *_: Any) -> FakeEngine:
        loaded.append(FakeEngine(folder, layers=6, hidden_size=128))
        return loaded[-1]

    models.resolve("tiny-llama")
    monkeypatch.setattr(loading, "load_named", load_named)
    monkeypatch.setattr(api_engine, "load_named", load_named)
    return loaded


def command(*arguments: str | Path) -> Result:
    return CliRunner().invoke(extract, ["tiny-llama", *map(str, arguments)], **AS_IN_MAIN)


def test_a_run_the_command_and_a_notebook_make_one_vector(tmp_path: Path, engines: list[FakeEngine]) -> None:
    out = tmp_path / "v.safetensors"
    done = command("refusal", "--system", "Be brief.", "-o", out)
    assert done.exit_code == 0, done.output
    assert engines[0].closed
    ours = load(out)
    (tmp_path / "grid.yaml").write_text(GRID)
    folder = run_grid(tmp_path / "grid.yaml", load=fake.load()).folder / "vectors"
    (path,) = folder.glob("v-extracted-*.safetensors")
    of_run = load(path)
    of_notebook = vsteer.extract("tiny-llama", "refusal", system="Be brief.")
    assert content_sha256(ours) == content_sha256(of_run) == content_sha256(of_notebook)
    assert ours.origin == of_run.origin == of_notebook.origin
    assert ours.stream_norms == of_run.stream_norms == of_notebook.stream_norms
    assert (ours.origin.data, ours.origin.method, ours.origin.token) == ("refusal", "mean_diff", "answer")
    for table in ("layers", "pca", "cosine"):
        beside = out.with_suffix(f".{table}.parquet")
        assert str(beside) in done.output
        assert pq.read_table(beside).equals(pq.read_table(path.with_suffix(f".{table}.parquet")))


@pytest.mark.parametrize(
    "arguments",
    [
        ("refusal", "--method", "mean_dif"),
        ("refusal", "--norm", "caa"),
        ("refusal", "--token", "first"),
        ("refusal", "-o", "v.gguf"),
        ("refusal", "-o", "there.safetensors"),
    ],
)
def test_what_is_wrong_is_found_before_the_model_is_loaded(
    tmp_path: Path, engines: list[FakeEngine], monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there.layers.parquet").write_text("an older vector's")
    done = command(*arguments)
    assert isinstance(done.exception, UsageError), done.output
    assert engines == []
    assert [path.name for path in tmp_path.iterdir()] == ["there.layers.parquet"]


def test_force_replaces_a_vector_and_its_tables(tmp_path: Path, engines: list[FakeEngine]) -> None:
    out = tmp_path / "v.safetensors"
    assert command("sentiment", "-o", out).exit_code == 0
    assert command("refusal", "-o", out, "--force", "--norm", "unit").exit_code == 0
    assert (load(out).name, load(out).origin.data, load(out).origin.norm) == ("refusal", "refusal", "unit")
    assert pq.read_table(out.with_suffix(".layers.parquet"))["norm"].to_pylist() == pytest.approx([1.0] * 6)
