"""The stream's component along a vector, token by token: against Hugging Face, in a terminal, of a run."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from click.testing import CliRunner, Result

from tests.alone import AS_IN_MAIN
from tests.run import fake
from vsteer import models
from vsteer.cli import project as cli_project
from vsteer.cli.project import project
from vsteer.engine.proof.reference import ReferenceEngine
from vsteer.grid.spec import as_grid
from vsteer.mechanism.projection import Projection, TokenText, scale_of
from vsteer.mechanism.projection import project as projected
from vsteer.mechanism.shades import style
from vsteer.report.page import gathered
from vsteer.results.views import run_names
from vsteer.run.start import run_grid
from vsteer.vectors.derive import random_like
from vsteer.vectors.files import save
from vsteer.vectors.vector import SteeringVector

TEXT = "the rain in it\nis \x1b[31m late"


@pytest.fixture(scope="module")
def reference() -> ReferenceEngine:
    return ReferenceEngine(models.resolve("tiny-llama").model)


@pytest.fixture
def vector(tmp_path: Path) -> SteeringVector:
    rng = np.random.default_rng(4)
    made = SteeringVector("glad", {n: 3 * rng.standard_normal(128).astype(np.float32) for n in range(6)})
    save(made, tmp_path / "glad.safetensors")
    return made


def command(*arguments: str | Path) -> Result:
    return CliRunner().invoke(project, list(map(str, arguments)), **AS_IN_MAIN)


def components(reference: ReferenceEngine, ids: list[int], direction: Any, layer: int) -> Any:
    """Plainly: `hidden_states[L + 1]` is the output of block L."""
    with torch.no_grad():
        hidden = reference.model(torch.tensor([ids]), output_hidden_states=True).hidden_states[layer + 1][0]
    r = torch.tensor(direction, dtype=torch.float64)
    return (hidden.double() @ (r / r.norm())).numpy()


def test_a_component_is_that_of_hugging_face(reference: ReferenceEngine, vector: SteeringVector) -> None:
    ids = reference.tokenizer(TEXT)["input_ids"]
    texts = [TokenText(tuple(ids), len(ids)), TokenText((5, 6, 7), 1)]
    found = list(projected(reference, texts, vector, [4, 1], random_seed=3))
    assert [(len(one.vector), one.layer) for one in found] == [(len(ids), 4), (len(ids), 1), (3, 4), (3, 1)]
    random = random_like(vector, 3)
    for one in found:
        same = list(one.text.token_ids)
        along = components(reference, same, vector.directions[one.layer], one.layer)
        assert one.vector == pytest.approx(along, abs=1e-4)
        assert one.random == pytest.approx(
            components(reference, same, random.directions[one.layer], one.layer), abs=1e-4
        )
    assert "".join(found[0].tokens) == TEXT


def test_a_scale_leaves_the_first_token_out() -> None:
    text = TokenText((1, 2, 3, 4), 4)
    one = Projection(text, 0, ("a",) * 4, np.array([900.0, 1.0, 2.0, 3.0]), np.array([-900.0, 5.0, 5.0, 5.0]))
    scale = scale_of([one])
    assert (scale.mean, scale.random_mean, scale.random_spread) == (2.0, 5.0, 0.0)
    # distances 1, 0, 1, 0, 0, 0
    assert scale.full == 1.0
    assert [scale.shade(value) for value in (900.0, 1.0, 2.0, 2.5)] == [1.0, -1.0, 0.0, 0.5]
    assert scale.shade(4.5, random=True) == -0.5
    assert scale_of([Projection(TokenText((1,), 1), 0, ("a",), np.ones(1), np.ones(1))]).shade(1.0) == 1.0


def test_a_pipe_gets_numbers_and_a_terminal_colours(
    vector: SteeringVector,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file, out = tmp_path / "glad.safetensors", tmp_path / "p.parquet"
    done = command("tiny-llama", file, "--layer", "2", "--text", TEXT, "-o", out)
    assert done.exit_code == 0, done.output
    assert "\x1b" not in done.output
    assert "RANDOM" in done.output
    rows = pq.read_table(out).to_pylist()
    assert "".join(row["token"] for row in rows) == TEXT
    assert {row["layer"] for row in rows} == {2}
    lines = [line.split() for line in done.stdout.splitlines() if line.lstrip().startswith("0 ")]
    assert [float(line[-2]) for line in lines] == pytest.approx([row["projection"] for row in rows], abs=1e-3)
    assert [float(line[-1]) for line in lines] == pytest.approx([row["random"] for row in rows], abs=1e-3)
    # in a terminal the texts' own escapes are shown, and only ours act
    ids = (0, 1, 2)
    one = Projection(TokenText(ids, 3), 2, ("a", "\x1b[31m", "\n"), np.array([0.0, 1.0, -1.0]), np.zeros(3))
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    cli_project._show([one], "glad", 0)
    shown = capsys.readouterr().out
    assert "\\x1b[31m" in shown
    assert "\x1b[31m" not in shown
    assert "\x1b[" in shown


def test_a_colour_is_white_at_the_mean_and_full_at_the_ends() -> None:
    assert style(0.0) == "black on rgb(255,255,255)"
    assert style(1.0) == "white on rgb(15,95,168)"
    assert style(-0.5) == "black on rgb(224,168,132)"


def test_a_prompt_stands_in_the_chat_template(vector: SteeringVector, tmp_path: Path) -> None:
    file, out = tmp_path / "glad.safetensors", tmp_path / "p.parquet"
    arguments = ("--prompt", "Is it?", "--response", "good", "-o", out)
    assert command("tiny-llama", file, "--layer", "0", *arguments).exit_code == 0
    rows = pq.read_table(out).to_pylist()
    assert "".join(row["token"] for row in rows if row["generated"]) == "good"
    assert "<|im_start|>user\nIs it?" in "".join(row["token"] for row in rows if not row["generated"])


def test_a_run_s_texts_come_to_the_report(
    vector: SteeringVector, tmp_path: Path, reference: ReferenceEngine
) -> None:
    grid: dict[str, Any] = {
        "version": 1,
        "name": "try",
        "model": {"id": "tiny-llama", "dtype": "float32"},
        "vectors": {"glad": {"file": "glad.safetensors"}},
        "grid": [{"vector": "glad", "layers": [1, 2], "multipliers": [1]}],
        "evaluations": [{"kind": "open_ended", "data": "sentiment", "limit": 4, "max_tokens": 5}],
    }
    run = run_grid(as_grid(grid, tmp_path), load=fake.load()).folder
    before = gathered([run], run_names([run]))
    assert before["tables"]["projections"]["length"] == 0
    assert f"--run {run}" in before["why"]["projections"]
    arguments = ("tiny-llama", tmp_path / "glad.safetensors", "--layer", "3", "--run", run)
    assert command(*arguments, "--where", "layer = 2", "--limit", "2").exit_code == 0
    stored = pq.read_table(run / "mechanism" / "projections.parquet").to_pylist()
    assert {row["steering"] for row in stored} == {"glad at layer 2 x 1.0"}
    texts = {row["text"]: [one for one in stored if one["text"] == row["text"]] for row in stored}
    prompts = {row["prompt_id"]: row for row in pq.read_table(run / "prompts.parquet").to_pylist()}
    rows = {row["row_id"]: row for row in pq.read_table(run / "rows").to_pylist()}
    assert len(texts) == 2
    for tokens in texts.values():
        row = rows[tokens[0]["row_id"]]
        ids = [*prompts[row["prompt_id"]]["token_ids"], *row["token_ids"]]
        along = components(reference, ids, vector.directions[3], 3)
        assert [one["projection"] for one in tokens] == pytest.approx(along, abs=1e-4)
        assert [one["generated"] for one in tokens] == [n >= len(ids) - 5 for n in range(len(ids))]
    # the report's SQL makes the shades that the terminal does
    assert command(*arguments, "--where", "layer = 2", "--limit", "2").exit_code == 0
    table = gathered([run], run_names([run]))["tables"]["projections"]
    columns = {
        name: found["values"] if "values" in found else [found["different"][n] for n in found["which"]]
        for name, found in table["columns"].items()
    }
    parts = [
        Projection(
            TokenText((), 0), 3, (), np.array([one["projection"] for one in tokens]),
            np.array([one["random"] for one in tokens]),
        )
        for tokens in texts.values()
    ]  # fmt: skip
    scale = scale_of(parts)
    shades = [scale.shade(one["projection"]) for tokens in texts.values() for one in tokens]
    assert columns["shade"] == pytest.approx(shades, abs=2e-3)
    shades = [scale.shade(one["random"], random=True) for tokens in texts.values() for one in tokens]
    assert columns["random_shade"] == pytest.approx(shades, abs=2e-3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "there is no text"),
        (("--text", "a", "--run", "nowhere"), "texts of a run and others"),
        (("--run", "nowhere"), "is not a run's folder"),
        (("--text", "a", "--response", "b"), "more responses than prompts"),
        (("--text", "a", "-o", "glad.safetensors"), "exists"),
        (("--text", "a", "--layer", "9"), "has no direction at layer 9"),
        (("--text", "word " * 3000), "tokens, and the model reads 2048"),
    ],
)
def test_what_is_wrong_is_one_message(
    vector: SteeringVector,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    done = command("tiny-llama", "glad.safetensors", "--layer", "1", *arguments)
    assert message in str(done.exception)
