"""Multipliers of doses: found once, kept, of the divergence that Hugging Face has, and never another's."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.numpy import save_file

from vsteer.datasets.neutral import BUILTIN
from vsteer.engine.proof.reference import ReferenceEngine
from vsteer.errors import EngineError
from vsteer.grid.problems import GridError
from vsteer.grid.spec import EngineSpec, as_grid, read_grid
from vsteer.models import resolve
from vsteer.plan.budget import budget
from vsteer.plan.doses import WITHIN
from vsteer.plan.plan import Plan, make_plans
from vsteer.protocol import Block, BlockScores, Prompt, Request, Steering, Term, Vectors
from vsteer.results.queries import query
from vsteer.results.views import connect_runs
from vsteer.run.left import left_of
from vsteer.run.start import Outcome, run_grid

GRID = """\
version: 1
name: try
model: {id: tiny-llama, dtype: float32}
vectors: {v: {file: v.safetensors}}
grid: [{vector: v, layers: LAYERS, multipliers: {kl: KL}}]
controls: {random_vectors: 1}
evaluations: [{kind: choice, name: asked, data: sentiment, limit: 2}]
"""
LAYERS, DOSES = (1, 3), (0.01, 0.03)
DIRECTIONS = {layer: np.random.default_rng(layer).normal(size=128).astype(np.float32) for layer in range(6)}
TABLE = "vectors/kl_doses.parquet"


class Blocks(ReferenceEngine):
    """Hugging Face with hooks, which takes blocks; it dies when it has measured so many steerings.

    Divergences are a formula of the multiplier that ends at 8, or with `exact` Hugging Face's own.
    """

    def __init__(self, model: str, dies_after: int | None = None, exact: bool = False) -> None:
        torch.set_num_threads(1)
        super().__init__(model, dtype="float32")
        self.info = replace(self.info, blocks=True)
        self.measured: list[Steering] = []
        self.loaded: list[Steering] = []
        self._dies_after, self._exact = dies_after, exact

    def load(self, vectors: Vectors, steerings: Iterable[Steering]) -> None:
        self.loaded = list(steerings)
        super().load(vectors, self.loaded)

    def run_blocks(self, blocks: Iterable[Block]) -> Iterator[tuple[Block, BlockScores]]:
        for block in blocks:
            if block.divergence:
                if self._dies_after is not None and len(self.measured) >= self._dies_after:
                    raise EngineError("the engine died: by order", hint="a test ordered it")
                self.measured += [one for one in block.steerings if one is not None]
                yield block, self._divergences(block)
            else:
                results = {result.id: result for result in self.run(block.requests())}
                yield block, BlockScores.of(block, results)

    def _divergences(self, block: Block) -> BlockScores:
        ids = block.prompt.token_ids + block.asked[-1][0]
        nothing = np.zeros(len(block.steerings), np.int32)
        steerings = [one for one in block.steerings if one is not None]
        if self._exact:
            kl = divergences(self, ids, steerings)
        else:
            kl = np.repeat([[self._formula(one)] for one in steerings], len(ids), axis=1)
        return BlockScores(np.zeros((len(nothing), len(ids))), nothing, nothing, kl=kl)

    def _formula(self, steering: Steering) -> float:
        (term,) = steering.terms
        length = float(np.linalg.norm(self._vectors[term.vector][term.layer][:64]))
        return -8 * float(np.expm1(-((term.multiplier * length / (10 + term.layer)) ** 2)))


def divergences(engine: ReferenceEngine, ids: tuple[int, ...], steerings: list[Steering]) -> np.ndarray:
    """KL(unsteered, steered) behind each token, in nats: [steering, token]."""
    asked = [Request("x", Prompt.plain(ids[:1]), one) for one in (None, *steerings)]
    unsteered, *steered = engine.score_together(asked, (*ids[1:], 0)).double()
    found = [(unsteered.exp() * (unsteered - one)).sum(-1) for one in steered]
    return torch.stack(found).numpy()


class Runs:
    """A grid that is run with such engines, which are kept."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.engines: list[Blocks] = []
        save_file({f"direction.{n}": row for n, row in DIRECTIONS.items()}, folder / "v.safetensors")
        self.path = folder / "grid.yaml"
        self.write()

    def write(self, kl: object = list(DOSES), layers: object = list(LAYERS), **changed: str) -> None:
        text = GRID.replace("KL", str(kl)).replace("LAYERS", str(layers))
        for before, after in changed.items():
            text = text.replace(before, after)
        self.path.write_text(text)

    def run(self, dies_after: int | None = None, exact: bool = False, **options: Any) -> Outcome:
        def loaded(plan: Plan, spec: EngineSpec, extracts: bool) -> Blocks:
            dies = None if self.engines else dies_after
            self.engines.append(Blocks(str(plan.facts.folder), dies, exact))
            return self.engines[-1]

        self.engines = []
        return run_grid(self.path, load=loaded, **options)

    def ask(self, sql: str) -> list[tuple[Any, ...]]:
        with contextlib.closing(connect_runs([self.folder / "runs" / "try"])) as database:
            found: list[tuple[Any, ...]] = database.execute(sql).fetchall()
            return found

    def table(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = pq.read_table(self.folder / "runs" / "try" / TABLE).to_pylist()
        return found


@pytest.fixture
def runs(tmp_path: Path) -> Runs:
    return Runs(tmp_path)


@pytest.mark.long
def test_the_found_multipliers_have_the_dose(runs: Runs) -> None:
    lines = BUILTIN.read_text().splitlines()[:1]
    (runs.folder / "plain.txt").write_text("\n".join(lines) + "\n")
    runs.write(kl=f"{list(DOSES)}, text: plain.txt")
    runs.run(exact=True)
    engine = ReferenceEngine(resolve("tiny-llama").model)
    texts = [tuple(engine.tokenizer(line)["input_ids"]) for line in lines]
    found = runs.ask(
        "select distinct control, layer, kl, level, multiplier, measured_kl"
        " from conditions where vector <> ''"
    )
    assert {row[:4] for row in found} == {
        (control, layer, kl, sign)
        for control in ("", "random")
        for layer in LAYERS
        for kl in DOSES
        for sign in (-1, 1)
    }
    # so many, since each control has multipliers of its own
    assert len({row[4] for row in found}) == len(found) == 16
    rows = runs.ask("select distinct config_id, multiplier from rows where vector <> ''")
    assert dict(rows) == dict(runs.ask("select config_id, multiplier from configs where vector <> ''"))
    for control, layer, kl, sign, multiplier, measured in found:
        if control:
            continue
        assert multiplier * sign > 0
        steering = Steering((Term("v", layer, multiplier),), "all")
        engine.load({"v": DIRECTIONS}, [steering])
        expected = np.concatenate([divergences(engine, ids, [steering])[0] for ids in texts]).mean()
        assert expected == pytest.approx(kl, rel=WITHIN)
        assert measured == pytest.approx(expected, rel=1e-6)


def test_a_dose_is_found_once(runs: Runs) -> None:
    """A killed search goes on with what is left, and whatever is found stays, with new rows too."""
    runs.write(layers=[1])
    assert runs.run(dies_after=3 * 16 * 8).exit_code == 0
    first, second = runs.engines
    assert first.measured
    assert second.measured
    kept = runs.table()
    assert len(kept) == 8
    assert all(one["multiplier"] for one in kept)
    # the same command: nothing to do, and no engine
    runs.run()
    assert not runs.engines
    runs.write(layers=[1], **{"limit: 2": "limit: 3"})
    runs.run()
    assert not runs.engines[0].measured
    assert runs.table() == kept
    # another layer is searched for itself
    runs.write(layers=[1, 2], **{"limit: 2": "limit: 3"})
    runs.run()
    assert {one.terms[0].layer for one in runs.engines[0].measured} == {2}
    assert runs.table()[: len(kept)] == kept


@pytest.mark.parametrize("damage", ["gone", pytest.param("torn", marks=pytest.mark.long)])
def test_a_lost_table_changes_no_number(runs: Runs, damage: str) -> None:
    runs.write(kl=[0.02], layers=[1])
    folder = runs.run().folder
    before = {one["dose_id"]: one["multiplier"] for one in runs.table()}
    if damage == "gone":
        (folder / TABLE).unlink()
    else:
        (folder / TABLE).write_bytes((folder / TABLE).read_bytes()[:-20])
    runs.write(kl=[0.02], layers=[1], **{"limit: 2": "limit: 3"})
    runs.run()
    assert not runs.engines[0].measured
    assert {one["dose_id"]: one["multiplier"] for one in runs.table()} == before
    assert len(runs.ask("select distinct multiplier from rows where vector <> ''")) == len(before)


def test_a_dose_that_no_multiplier_has_fails_its_rows(runs: Runs) -> None:
    """Nothing is steered by another dose; the message names vector, layer, dose and the largest reached."""
    runs.write(kl=[0.02, 90], layers=[1])
    outcome = runs.run()
    assert outcome.exit_code == 3
    failed = runs.ask("select control, multiplier, error from rows where status = 'error' order by all")
    assert len(failed) == 2 * 2 * 2
    assert {multiplier for _, multiplier, _ in failed} == {None}
    for control, _, error in failed:
        whose = "random control 0 of v" if control else "v"
        assert f" multiplier gives {whose}, add at layer 1, a KL divergence of 90: " in error
        assert "the largest reached is " in error
        assert len(error) <= 600
    assert len({error for control, _, error in failed if not control}) == 2  # one for each sign
    assert runs.ask("select distinct kl from effects") == [(0.02,)]
    # neither the same command nor what else is to be computed looks for it again
    runs.run()
    assert not runs.engines
    runs.run(retry_errors=True)
    assert runs.engines[0].measured
    assert {len(one.terms) for one in runs.engines[0].measured} == {1}
    assert runs.ask("select max(attempt) from rows") == [(2,)]


def test_queries_compare_at_equal_dose(runs: Runs) -> None:
    """A control stands beside its vector at the same dose, whatever the two multipliers are."""
    runs.write(kl=[0.02, 0.05])
    runs.run()
    places = runs.ask(
        "select count(*), count(distinct multiplier), count(distinct kl), count(distinct level)"
        " from conditions where vector <> '' group by place"
    )
    assert places == [(2, 2, 1, 1)] * 8
    curves = runs.ask(
        "select count(distinct layer), any_value(kl) from conditions where vector <> '' group by curve"
    )
    assert sorted(curves) == [(2, 0.02)] * 4 + [(2, 0.05)] * 4
    whole = runs.ask("select bool_and(whole), count(*) from control_effects")
    assert whole == [(True, 8)]
    for name in (
        "controls",
        "control_bands",
        "layer_peaks",
        "multiplier_curves",
        "sign_asymmetry",
        "scaling",
    ):
        relation = f"({query(name).sql.rstrip().rstrip(';')})"
        assert runs.ask(f"select distinct kl from {relation} where kl > 0 order by kl")
    asymmetries = runs.ask(
        f"select layers, kl from ({query('sign_asymmetry').sql.rstrip().rstrip(';')}) order by all"
    )
    assert asymmetries == [([layer], kl) for layer in LAYERS for kl in (0.02, 0.05)]


def test_a_plan_counts_what_is_to_be_found(runs: Runs) -> None:
    (plan,) = make_plans(read_grid(runs.path))
    assert budget(plan).doses == 2 * len(LAYERS) * len(DOSES) * 2
    (left,) = left_of([plan])
    tokens = sum(len(plan.tokenizer(line)["input_ids"]) for line in BUILTIN.read_text().splitlines())
    assert left.dose_tokens == 16 * tokens
    runs.run()
    (left,) = left_of(make_plans(read_grid(runs.path)))
    assert left.dose_tokens == 0


def test_ids_have_the_dose_and_its_text_and_no_number(runs: Runs) -> None:
    (before,) = make_plans(read_grid(runs.path))
    text = runs.folder / "plain.txt"
    text.write_text("One line of text.\nAnd another one.\n")

    def ids(plan: Plan) -> set[str]:
        return {config.config_id for config in plan.configs.values() if config.vector}

    runs.write(kl="[0.01, 0.03], text: plain.txt")
    (other,) = make_plans(read_grid(runs.path))
    assert not ids(before) & ids(other)
    text.write_text("One line of text.\nAnd one more.\n")
    (changed,) = make_plans(read_grid(runs.path))
    assert not ids(changed) & ids(other)
    runs.write(kl="[0.03, 0.07], signs: [1]")
    (fewer,) = make_plans(read_grid(runs.path))
    assert len(ids(fewer) & ids(before)) == 4
    runs.write()
    runs.run()
    written = runs.ask("select distinct config_id from configs where vector <> ''")
    assert {name for (name,) in written} == ids(before)


def test_an_exclusion_names_a_dose(runs: Runs) -> None:
    runs.path.write_text(runs.path.read_text() + "exclude: [{layers: 1, multipliers: {kl: 0.03}}]\n")
    (plan,) = make_plans(read_grid(runs.path))
    assert {(config.layers, config.dose.asked.kl) for config in plan.configs.values() if config.dose} == {
        ((1,), 0.01),
        ((3,), 0.01),
        ((3,), 0.03),
    }


@pytest.mark.parametrize(
    ("dose", "says"),
    [
        ("{kl: 0.2, text: none.txt}", "line 5: no text file 'none.txt'"),
        ("{kl: 0.2, text: many.txt}", "line 5: many.txt: 300 texts, and at most 256 are read"),
        ("{kl: 0.2, text: long.txt}", "line 5: long.txt, line 2: a text of 1,199 characters"),
        ("{kl: -1}", "line 5: -1 is no KL divergence"),
    ],
)
def test_what_is_wrong_has_its_line(runs: Runs, dose: str, says: str) -> None:
    (runs.folder / "many.txt").write_text("\n".join(f"text {n}" for n in range(300)))
    (runs.folder / "long.txt").write_text("short\n" + "abc " * 300)
    runs.path.write_text(runs.path.read_text().replace("{kl: [0.01, 0.03]}", dose))
    with pytest.raises(GridError) as caught:
        make_plans(read_grid(runs.path))
    assert says in str(caught.value)
    assert len(str(caught.value)) <= 600


def test_an_engine_without_forks_is_refused_by_name(runs: Runs) -> None:
    runs.path.write_text(runs.path.read_text() + "engine: {forks: false}\n")
    assert any(
        "doses are found through forks" in note for note in budget(make_plans(read_grid(runs.path))[0]).notes
    )
    with pytest.raises(Exception, match=r"found through forks, which this lacks: `engine: \{forks: false\}`"):
        runs.run()
    assert not runs.engines


@pytest.mark.long
def test_a_clamp_has_doses_and_an_ablation_none(runs: Runs) -> None:
    text = runs.path.read_text()
    runs.path.write_text(text.replace("{vector: v,", "{vector: v, operation: clamp,"))
    runs.run()
    found = runs.ask(
        "select distinct kl, level, multiplier from conditions where control = '' and vector <> ''"
    )
    assert found
    with pytest.raises(GridError, match="the operation ablate has no multipliers"):
        as_grid(
            {
                **read_grid(runs.path).model_dump(mode="json", exclude={"grid", "vectors"}),
                "vectors": {"v": {"file": "v.safetensors"}},
                "grid": [{"vector": "v", "layers": [1], "operation": "ablate", "multipliers": {"kl": 0.2}}],
            },
            runs.folder,
        )
