"""Rows say which way they were computed, and one engine that computes in both ways is one engine."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import duckdb

from tests.fake_engine import FakeEngine
from tests.run import fake
from vsteer.grid.spec import EngineSpec, read_grid
from vsteer.plan.plan import Plan, make_plans
from vsteer.protocol import Request, Result
from vsteer.run.start import run_grid
from vsteer.store.check import check
from vsteer.store.planned import Planned

GRID = """\
version: 1
name: try
model: {id: tiny-llama, dtype: float32}
vectors: {v: {data: sentiment, token: last}}
grid: [{vector: v, layers: [1], multipliers: [-1, 1]}]
evaluations:
  - {kind: choice, name: asked, data: sentiment, limit: 4}
  - {kind: open_ended, name: open, data: sentiment, limit: 2, max_tokens: 3}
"""


class ForkingEngine(FakeEngine):
    """Every other question with given answers is a fork."""

    def run(self, requests: Iterable[Request]) -> Iterator[Result]:
        asked: dict[str, Request] = {}

        def noted() -> Iterator[Request]:
            for request in requests:
                asked[request.id] = request
                yield request

        for result in super().run(noted()):
            request = asked[result.id]
            yield replace(
                result, forked=request.answer_tokens is not None and int(request.id[0], 16) % 2 == 0
            )


def loaded(plan: Plan, spec: EngineSpec, extracts: bool) -> FakeEngine:
    return fake.fake_engine(plan, kind=ForkingEngine)


def test_rows_say_which_way_they_were_computed(tmp_path: Path) -> None:
    grid = tmp_path / "grid.yaml"
    grid.write_text(GRID)
    folder = run_grid(grid, load=loaded).folder
    rows = duckdb.sql(f"select row_id, kind, engine from read_parquet('{folder}/rows/*.parquet')").fetchall()
    assert {kind for _, kind, _ in rows} == {"choice", "open_ended"}
    for row_id, kind, engine in rows:
        forked = kind == "choice" and int(row_id[0], 16) % 2 == 0
        assert engine == ("stand-in forks" if forked else "stand-in")
    assert {engine for _, _, engine in rows} == {"stand-in", "stand-in forks"}
    planned = Planned(part for plan in make_plans(read_grid(grid)) for part in plan.parts())
    assert "mixed_engines" not in {finding.what for finding in check(folder, planned)}
