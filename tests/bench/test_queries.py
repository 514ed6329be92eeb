"""The queries' benchmark makes a run as the store would have written it, and measures each query on it."""

from pathlib import Path

import pytest

from tests.bench.queries import LAYERS, MULTIPLIERS, SYSTEMS, VECTORS, bench_live, bench_queries, make_run
from vsteer.results.queries import MECHANISM, queries
from vsteer.results.views import connect_runs
from vsteer.store import shards as sh

pytestmark = pytest.mark.long


def test_the_made_up_run_is_one_of_the_stores(tmp_path: Path) -> None:
    run = tmp_path / "run"
    steered = VECTORS * LAYERS * len(MULTIPLIERS) * 3 * len(SYSTEMS)
    # Three items in two letter orders come nearest to so many, beside one vector's for MMLU and one text.
    beside = LAYERS * len(MULTIPLIERS) + 1
    assert make_run(run, 40_000) == 3 * 2 * (steered + len(SYSTEMS)) + (3 + 1) * beside
    (shard,) = sh.list_shards(run / "rows")
    assert sh.is_compact([shard])
    assert sh.fault_of(shard, whole=False) is None
    with connect_runs([run]) as database:
        peaks = database.execute(
            "select layer from config_effects where multiplier = 1 and system = ''"
            " and evaluation = 'choice:refusal'"
            " qualify row_number() over (partition by curve order by effect desc) = 1"
        ).fetchall()
    # They are around the layer where they were put: what was added to each row is a tenth of the effect.
    assert peaks
    assert all(abs(layer - 16) <= 4 for (layer,) in peaks)


def test_every_query_is_measured_and_has_something_to_answer() -> None:
    figures = {figure.name: figure for figure in bench_queries(80_000)}
    answered = {name: figures[f"{name} seconds left of 2"].note for name in queries()}
    # these want a second run or model, rows that a model computed, and a harness's scores
    nothing = {
        "difference",
        "rounding",
        "lm_eval",
        *(name for name, of in queries().items() if MECHANISM in of.needs),
    }
    assert {name for name, note in answered.items() if " 0 rows" in note} <= nothing


def test_a_live_run_is_measured_beside_a_compacted_one() -> None:
    times, memory = bench_live(40_000)
    assert "compacted" in times.note
    assert memory.ok
