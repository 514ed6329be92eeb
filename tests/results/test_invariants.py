"""What changes no answer: controls, the letters' order, an item without baseline, another run beside it."""

from __future__ import annotations

import functools
import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.results.made_up import Cell, ask, controls, make_run, sweep, write_vector
from vsteer.results.queries import MECHANISM, queries
from vsteer.results.views import connect_runs
from vsteer.store.scores import SCORES_SCHEMA
from vsteer.vectors.run_norms import write_vector_norms

# These are about rows as such, or need the statistics.
OF_ROWS = {"failures", "throughput"}
OF_STATISTICS = {"scaling_fits"}
OF_TWO_RUNS = {"difference"}
OF_CONTROLS = {"controls", "control_bands"}
OF_MECHANISM = {name for name, query in queries().items() if MECHANISM in query.needs}
ASKED = sorted(set(queries()) - OF_ROWS - OF_STATISTICS - OF_TWO_RUNS - OF_MECHANISM)


def luck(*of: object) -> float:
    """A number from -1 to 1."""
    return int(hashlib.md5(repr(of).encode()).hexdigest()[:8], 16) / 2**31 - 1


def everything(
    folder: Path,
    items: int = 5,
    orders: tuple[str, ...] = ("original",),
    strength: float | None = None,
    unpaired: int | None = None,
) -> Path:
    """A run that every query has something to say of, with controls of that strength where it is given.

    What is answered depends on the item and not on its letters; the baseline of item `unpaired` failed.
    """
    own = write_vector(folder, "toy", [2.0, 3.0, 4.0, 5.0], 50.0)
    moved = write_vector(folder, "moved", [3.0] * 4, 50.0, derived=("layer 1 of toy (abc) at every layer",))
    other = write_vector(folder, "other", [1.0] * 4, 50.0, model="toy-13b")
    write_vector_norms(folder)
    vectors = sweep("toy", range(4), (-2.0, -1.0, 1.0, 2.0), sha256=own)
    steered = [
        *vectors,
        *(replace(one, system="brave") for one in vectors),
        *(replace(one, evaluation="choice:mmlu") for one in vectors),
        *sweep("moved", range(4), (1.0,), sha256=moved),
        *sweep("other", range(4), (1.0,), sha256=other),
        *(replace(one, kind="open_ended", evaluation="open:toy") for one in vectors),
        *(controls(vectors, 20) if strength is not None else []),
    ]

    def says(cell: Cell) -> Any:
        one = cell.steered
        if not one.vector and cell.item == unpaired:
            return None
        start = luck(one.evaluation, one.system, cell.item)
        if one.control and one.vector:
            return start + (strength or 0.0) * luck(one.index, one.layer, one.multiplier, cell.item)
        by_layer = luck(one.vector, one.layer, one.system) + 0.3 * luck(one.layer, cell.item, one.evaluation)
        logit = start + (one.multiplier + 0.1 * one.multiplier**2) * by_layer
        logprobs = [-0.1, -0.1 - logit] if logit > 0 else [-0.1 + logit, -0.1]
        # the matching answer is the second where letters are swapped
        return {"logit_diff": logit, "choice_logprobs": logprobs[:: 1 if cell.order == "original" else -1]}

    make_run(folder, steered, says, items=items, orders=orders)
    with connect_runs([folder]) as database:
        texts = database.execute(
            "select row_id, finished_at, layer, multiplier from rows"
            " where kind = 'open_ended' and status = 'ok'"
        ).fetchall()
    scores = [
        {"row_id": row_id, "row_finished_at": at, "value": 5 + luck(layer, multiplier), "note": None}
        | {"name": "perplexity", "scorer": "perplexity", "scorer_hash": "abc"}
        for row_id, at, layer, multiplier in texts
    ]
    refusals = [
        {**score, "value": float(score["value"] > 5), "name": "refusal", "scorer": "refusal"}
        for score in scores
    ]
    (folder / "scores").mkdir()
    for name, values in (("perplexity", scores), ("refusal", refusals)):
        pq.write_table(pa.Table.from_pylist(values, SCORES_SCHEMA), folder / "scores" / f"{name}-abc.parquet")
    return folder


def plain(value: Any) -> Any:
    """Without what the order of adding up does to a float's last digits."""
    if isinstance(value, float):
        return float(f"{value:.8g}") if abs(value) > 1e-12 else 0.0
    return [plain(each) for each in value] if isinstance(value, list) else value


# The same runs are asked the same again and again.
asked = functools.cache(ask)


def answers(name: str, *folders: Path, without: tuple[str, ...] = ()) -> list[dict[str, Any]]:
    return [
        {column: plain(value) for column, value in row.items() if column not in without}
        for row in asked(name, *folders)
    ]


@pytest.fixture(scope="module")
def as_it_is(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return everything(tmp_path_factory.mktemp("plain") / "run")


@pytest.fixture(scope="module")
def with_controls(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return everything(tmp_path_factory.mktemp("controls") / "run", strength=40.0)


@pytest.fixture(scope="module")
def both_orders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return everything(tmp_path_factory.mktemp("orders") / "run", orders=("original", "swapped"))


@pytest.fixture(scope="module")
def one_item_unpaired(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return everything(tmp_path_factory.mktemp("unpaired") / "run", items=6, unpaired=5)


@pytest.mark.parametrize("name", sorted(set(ASKED) - OF_CONTROLS))
def test_controls_change_no_figure_of_the_vectors(name: str, as_it_is: Path, with_controls: Path) -> None:
    expected = answers(name, as_it_is)
    # no model computed these rows, so nothing was measured of rounding or prompts; and they are no task's
    assert expected or name in ("condition_rates", "letter_bias", "lm_eval", "rounding")
    assert answers(name, with_controls) == expected


@pytest.mark.parametrize("name", sorted(set(ASKED) - OF_CONTROLS - {"letter_bias", "refusal_rates"}))
def test_an_item_in_both_letter_orders_is_one_item(name: str, as_it_is: Path, both_orders: Path) -> None:
    # a text's row counts as one, whatever its letters
    rows = ("texts", "score_se")
    assert answers(name, both_orders, without=rows) == answers(name, as_it_is, without=rows)


@pytest.mark.parametrize("name", sorted(set(ASKED) - OF_CONTROLS - {"letter_bias"}))
def test_an_item_whose_baseline_failed_is_in_no_figure(
    name: str, as_it_is: Path, one_item_unpaired: Path
) -> None:
    # the steered text of that item was written, and scored
    rows = ("texts", "score_se")
    assert answers(name, one_item_unpaired, without=rows) == answers(name, as_it_is, without=rows)


def test_the_rows_of_an_item_whose_baseline_failed_are_named(one_item_unpaired: Path) -> None:
    found = {(row["evaluation"], row["problem"]): row["rows"] for row in ask("failures", one_item_unpaired)}
    # 4 layers and 4 multipliers, choice:toy under two system prompts, and two vectors more at 4 layers
    assert found == {
        ("choice:mmlu", "error"): 1,
        ("choice:mmlu", "nothing to compare with"): 16,
        ("choice:toy", "error"): 2,
        ("choice:toy", "nothing to compare with"): 2 * 16 + 2 * 4,
        ("open:toy", "error"): 1,
    }


@pytest.mark.parametrize("name", sorted(set(ASKED) - {"model_transfer"}))
def test_a_run_says_beside_another_what_it_says_alone(
    name: str, with_controls: Path, both_orders: Path
) -> None:
    """A transfer is compared with own vectors of any run; everything else stays in its run."""
    together = asked(name, with_controls, both_orders)
    for run in (with_controls, both_orders):
        alone = answers(name, run, without=("run",))
        of_it = [row for row in together if row["run"] == str(run)]
        assert [{column: plain(row[column]) for column in row if column != "run"} for row in of_it] == alone
