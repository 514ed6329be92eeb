"""Perplexity: the requests, the reading of results, and a run that has it for each of its texts."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import duckdb
import pytest
from click.testing import CliRunner

from tests.fake_engine import FakeEngine
from tests.run import fake
from tests.store import makers
from vsteer.cli import main
from vsteer.errors import ModelError, SteeringFault, StoreError
from vsteer.grid.spec import EngineSpec, read_grid
from vsteer.plan.plan import Plan, make_plans
from vsteer.protocol import Engine, EngineInfo, Request, Result, Steering, Vectors
from vsteer.results.views import connect_runs
from vsteer.run import loading
from vsteer.run.start import run_grid
from vsteer.scoring.perplexity import CoherenceFile, coherence_request, read_coherence
from vsteer.scoring.score_file import Scored, ScoreFile
from vsteer.store.store import open_store

GRID = """\
version: 1
name: try
model: {id: tiny-llama, dtype: float32}
vectors: {v: {data: sentiment, token: last}}
grid: [{vector: v, layers: [1, 4], multipliers: [-1, 1]}]
evaluations:
  - {kind: open_ended, name: open, data: sentiment, limit: 4, max_tokens: 5}
  - {kind: open_ended, name: plain, data: sentiment, limit: 3, max_tokens: 4, coherence: false}
  - {kind: choice, data: sentiment, limit: 2}
"""


def answer(*prompt: float, last: float, **changes: Any) -> Result:
    return replace(Result("r", "ok", logprobs=({9: last},), prompt_logprobs=prompt), **changes)


def test_every_token_of_the_text_is_asked_about_and_none_of_the_prompt() -> None:
    request = coherence_request("r", (1, 2, 3), (7, 8, 9))
    assert request.prompt.token_ids == (1, 2, 3, 7, 8)
    assert (request.prompt_logprobs_from, request.logprob_token_ids, request.max_tokens) == (3, (9,), 1)
    assert request.steering is None
    # The window is as long as the text itself needed.
    assert request.invalid_because(10, 6) is None
    alone = coherence_request("r", (1, 2, 3), (9,))
    assert (alone.prompt.token_ids, alone.prompt_logprobs_from) == ((1, 2, 3), None)


def test_perplexity_is_the_inverse_geometric_mean_of_the_probabilities() -> None:
    # 1/2, 1/4, 1/8: their product is 1/64, and the cube root of 64 is 4
    halves = answer(math.log(1 / 2), math.log(1 / 4), last=math.log(1 / 8))
    found = read_coherence((7, 8, 9), halves)
    assert found["perplexity"][0] == pytest.approx(4, rel=1e-12)
    assert found["tokens"] == (3.0, None)
    certain = read_coherence((9,), answer(last=0.0))
    assert certain["perplexity"][0] == 1


def test_what_is_no_number_is_reported() -> None:
    value, note = read_coherence((7, 9), answer(math.nan, last=-1.0))["perplexity"]
    assert value is None
    assert note is not None
    assert "NaN" in note
    assert read_coherence((7, 9), answer(-math.inf, last=-1.0))["perplexity"][0] == math.inf
    assert read_coherence((7, 9), answer(-2000.0, last=-1.0))["perplexity"][0] == math.inf
    value, note = read_coherence((7, 9), Result("r", "error", error="too long"))["perplexity"]
    assert (value, note) == (None, "the engine failed: too long")
    with pytest.raises(SteeringFault):
        read_coherence((7, 8, 9), answer(-1.0, last=-1.0))


class Counting(Engine):
    """An engine for which the token t has the probability 1 / (t + 1), and that keeps what it was asked."""

    info = EngineInfo("fake", "float32", "llama", layers=1, hidden_size=1, vocab_size=99, max_model_len=99)
    steps = 0

    def __init__(self, dies_after: int | None = None) -> None:
        self.asked: list[Request] = []
        self._dies_after = dies_after

    def load(self, vectors: Vectors, steerings: Iterable[Steering]) -> None:
        raise AssertionError("perplexity is unsteered")

    def run(self, requests: Iterable[Request]) -> Iterator[Result]:
        for request in requests:
            if len(self.asked) == self._dies_after:
                raise KeyboardInterrupt
            self.asked.append(request)
            ids, first = request.prompt.token_ids, request.prompt_logprobs_from
            yield Result(
                request.id,
                "ok",
                logprobs=({token: -math.log(token + 1) for token in request.logprob_token_ids},),
                prompt_logprobs=() if first is None else tuple(-math.log(t + 1) for t in ids[first:]),
            )


WEIGHTS = {"sha256": "ab", "dtype": "float32"}


def made_run(folder: Path, texts: int = 6, **changes: Any) -> Path:
    with open_store(folder) as store:
        prompts = [makers.prompt(n, token_ids=[1, 2, 3 + n], kind="open_ended") for n in range(4)]
        store.write_plan({"name": "t"}, map(makers.config, range(14)), prompts, 60)
        for n in range(texts):
            store.append(makers.text_row(n, token_ids=[n + 1, 2 * n + 3], completion_tokens=2, **changes))
        store.append(makers.row(50))  # a choice
        store.append(makers.text_row(51, model="another"))
    return folder


def score(run: Path, engine: Counting, weights: dict[str, str] = WEIGHTS, **which: Any) -> Scored:
    with CoherenceFile(run, "tiny-llama", weights, **which) as file:
        return file.score(engine)


def perplexities(run: Path) -> dict[str, float]:
    found = (
        connect_runs([run]).execute("select row_id, value from scores where name = 'perplexity'").fetchall()
    )
    assert len(found) == len(dict(found))
    return dict(found)


def test_the_texts_of_a_model_are_asked_behind_their_own_prompts(tmp_path: Path) -> None:
    run, engine = made_run(tmp_path / "run"), Counting()
    done = score(run, engine)
    assert (done.texts, done.scored, done.failed, done.open) == (6, 6, 0, 0)
    # Each is the geometric mean of n + 2 and 2n + 4.
    assert perplexities(run) == pytest.approx(
        {makers.row_id(n): math.sqrt((n + 2) * (2 * n + 4)) for n in range(6)}
    )
    assert {request.prompt.token_ids[:3] for request in engine.asked} == {(1, 2, 3)}
    assert all(request.steering is None for request in engine.asked)
    again = Counting()
    assert score(run, again).standing == 6
    assert not again.asked


def test_other_weights_have_a_file_of_their_own(tmp_path: Path) -> None:
    run = made_run(tmp_path / "run")
    score(run, Counting())
    assert score(run, Counting(), {**WEIGHTS, "dtype": "bfloat16"}).scored == 6
    assert len(list(run.glob("scores/perplexity-*.parquet"))) == 2


def test_a_scoring_that_is_cut_short_goes_on_and_asks_nothing_twice(tmp_path: Path) -> None:
    run, first, second = made_run(tmp_path / "run"), Counting(dies_after=4), Counting()
    with pytest.raises(KeyboardInterrupt):
        score(run, first)
    assert len(perplexities(run)) == 4
    done = score(run, second)
    assert (done.standing, done.scored) == (4, 2)
    assert not {r.id for r in first.asked} & {r.id for r in second.asked}


def test_scores_of_other_evaluations_are_left_alone(tmp_path: Path) -> None:
    run = made_run(tmp_path / "run")
    score(run, Counting())
    assert score(run, Counting(), evaluations=["none"]).texts == 0
    assert len(perplexities(run)) == 6


def test_a_text_whose_prompt_is_gone_is_reported(tmp_path: Path) -> None:
    run = made_run(tmp_path / "run", prompt_id="nowhere")
    with pytest.raises(StoreError, match=r"is not in .*prompts\.parquet"):
        score(run, Counting())


# --- within a run


@pytest.fixture
def grid(tmp_path: Path) -> Path:
    (tmp_path / "grid.yaml").write_text(GRID)
    return tmp_path / "grid.yaml"


def test_a_run_has_the_perplexity_of_every_text_that_wants_one(grid: Path) -> None:
    outcome = run_grid(grid, load=fake.load())
    folder = outcome.folder
    database = connect_runs([folder])
    good = database.execute("select row_id from rows where status = 'ok' and evaluation = 'open'").fetchall()
    scored = database.execute(
        "select row_id, value, note from scores where name = 'perplexity' and scorer = 'perplexity'"
    ).fetchall()
    assert len(good) > 15
    assert sorted(row_id for row_id, *_ in scored) == sorted(row_id for (row_id,) in good)
    # The fake engine refuses one in fifty.
    assert all(note == "the engine failed: too long: by order" or value > 1 for _, value, note in scored)
    assert sum(value is not None for _, value, _ in scored) > 0.8 * len(good)
    before = scores_file(folder).stat().st_mtime_ns

    def no_engine(*_: object) -> FakeEngine:
        raise AssertionError("an engine was started for nothing")

    assert run_grid(grid, load=no_engine).good == outcome.good
    assert scores_file(folder).stat().st_mtime_ns == before


def test_a_run_whose_rows_stand_gets_the_perplexities_it_lacks(grid: Path) -> None:
    folder = run_grid(grid, load=fake.load()).folder
    rows = duckdb.sql(f"select row_id, finished_at from '{folder}/rows/*.parquet' order by 1").fetchall()
    wanted = connect_runs([folder]).execute("select row_id, name, value from scores order by all").fetchall()
    scores_file(folder).unlink()
    started: list[Plan] = []

    def load(plan: Plan, spec: EngineSpec, extracts: bool) -> FakeEngine:
        started.append(plan)
        return fake.fake_engine(plan)

    run_grid(grid, load=load)
    assert len(started) == 1
    assert (
        connect_runs([folder]).execute("select row_id, name, value from scores order by all").fetchall()
        == wanted
    )
    assert (
        duckdb.sql(f"select row_id, finished_at from '{folder}/rows/*.parquet' order by 1").fetchall() == rows
    )


def test_a_run_goes_on_without_them_while_another_scores(
    grid: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = run_grid(grid, load=fake.load()).folder
    scores_file(folder).unlink()
    (plan,) = make_plans(read_grid(grid))
    with ScoreFile(folder, "length", "0", {}):
        again = run_grid(grid, load=fake.load(), retry_errors=True)
    assert again.good == plan.row_count - again.errors
    assert not list(folder.glob("scores/perplexity-*"))


def scores_file(folder: Path) -> Path:
    (file,) = folder.glob("scores/perplexity-*.parquet")
    return file


# --- of a stored run


def vsteer_score(*arguments: str) -> Any:
    return CliRunner().invoke(main, ["score", *arguments])


def test_the_command_scores_a_stored_run_and_shares_its_file(
    grid: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = run_grid(grid, load=fake.load()).folder
    (plan,) = make_plans(read_grid(grid))
    asked: list[str] = []

    def load(facts: Any, spec: EngineSpec) -> Counting:
        assert loading.same_model(facts) == plan.facts.folder
        assert facts.identity() == plan.facts.identity()
        assert spec == plan.grid.engine
        asked.append(facts.name)
        return Counting()

    monkeypatch.setattr(loading, "load_stored", load)
    file = scores_file(folder)
    done = vsteer_score(str(folder), "--scorer", "perplexity", "--json")
    assert done.exit_code == 0, done.output
    (entry,) = json.loads(done.stdout)
    assert entry["file"] == str(file)
    # What the run scored stands, and the evaluation that wanted none is scored too.
    texts = connect_runs([folder]).execute(
        "select count(*) filter (evaluation = 'open'), count(*) filter (evaluation = 'plain') from rows"
        " where kind = 'open_ended' and status = 'ok'"
    )
    assert texts.fetchall() == [(entry["standing"], entry["scored"])]
    assert asked == ["tiny-llama"]
    again = vsteer_score(str(folder), "--scorer", "perplexity")
    assert again.stdout.startswith(f"perplexity under tiny-llama: 0 of {entry['texts']} texts scored")
    assert asked == ["tiny-llama"]


def test_another_model_in_the_same_place_is_refused(grid: Path) -> None:
    folder = run_grid(grid, load=fake.load()).folder
    ((facts, _),) = loading.stored_models(folder)
    with pytest.raises(ModelError, match="as the run has it"):
        loading.same_model(replace(facts, weights={"sha256": "0" * 64}))
    with pytest.raises(ModelError, match="as the run has it"):
        loading.same_model(replace(facts, folder=None, weights={"hub": "nobody/nothing", "commit": "0" * 40}))


def test_a_manifest_that_does_not_say_how_models_ran_is_reported(tmp_path: Path) -> None:
    done = vsteer_score(str(made_run(tmp_path / "run")), "--scorer", "perplexity")
    assert done.exit_code == 1
    assert "doesn't say how its models were loaded" in done.stderr
