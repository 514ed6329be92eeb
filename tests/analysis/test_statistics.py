"""The stored statistics of made-up runs: what is compared with what, what is left out, what is stale."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from scipy import stats

from tests.results.made_up import Cell, Steered, controls, make_run, sweep, write_vector
from tests.run import fake
from vsteer.analysis.scaling import scaling_records
from vsteer.analysis.statistics import bring_up_to_date, write_statistics
from vsteer.cli import main
from vsteer.errors import StoreError
from vsteer.results.statistics_files import TABLES, statistics_are_current, statistics_path
from vsteer.results.views import connect_runs
from vsteer.run.start import run_grid
from vsteer.store.store import open_store
from vsteer.vectors.run_norms import write_vector_norms

ITEMS, ORDERS = 12, ("original", "swapped")
BASELINE = 0.5
# of the mean effect of multiplier 1, layer by layer
CURVE = (0.1, 0.4, 1.5, 1.2, 0.3)


def answer(item: int) -> float:
    """How strongly an item answers; 1 on average over twelve."""
    return 0.75 + 0.5 * item / 11


def answers(cell: Cell) -> float:
    """Negative steering acts twice as strongly; a letter bias that both orders cancel."""
    one = cell.steered
    letter = 0.7 if cell.order == "original" else -0.7
    if not one.vector:
        return BASELINE + letter
    if one.control:
        assert one.index is not None
        return BASELINE + letter + 0.01 * one.index
    assert one.layer is not None
    push = one.multiplier * (2 if one.multiplier < 0 else 1)
    # a little that pulls neighbouring items apart at each layer, and adds up to nothing
    wobble = 0.05 * (1 if (cell.item + one.layer) % 2 else -1)
    return BASELINE + letter + push * CURVE[one.layer] * answer(cell.item) + wobble


def read(folder: Path, table: str, **where: Any) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = pq.read_table(statistics_path(folder, table)).to_pylist()
    return [one for one in found if all(one[name] == value for name, value in where.items())]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One vector at five layers and both signs, 19 random controls and 3 shuffled ones."""
    folder = tmp_path_factory.mktemp("statistics") / "run"
    sha256 = write_vector(folder, "v", [1, 1, 2, 1, 1], 10)
    own = sweep("v", range(5), (-1.0, 1.0), sha256=sha256)
    write_vector_norms(folder)
    make_run(
        folder,
        [*own, *controls(own, 19), *controls(own, 3, "shuffled")],
        answers,
        items=ITEMS,
        orders=ORDERS,
    )
    write_statistics(folder)
    return folder


def test_an_item_is_one_value_whatever_its_letter_orders(run: Path) -> None:
    intervals = read(run, "intervals", measure="logit_diff")
    assert len(intervals) == 10 * (1 + 19 + 3)
    assert {(one["items"], one["rows_left_out"]) for one in intervals} == {(ITEMS, 0)}
    peak = read(run, "peaks", measure="logit_diff", multiplier=1)[0]
    (found,) = [one for one in intervals if one["config_id"] == peak["config_id"]]
    items = np.array([1.5 * answer(n) + 0.05 * (1 if n % 2 else -1) for n in range(ITEMS)])
    assert found["mean"] == pytest.approx(items.mean())
    assert found["se"] == pytest.approx(stats.sem(items))
    assert found["p_value"] == pytest.approx(stats.ttest_1samp(items, 0).pvalue)
    assert items.min() < found["low"] < items.mean() < found["high"] < items.max()
    assert (found["method"], found["seed"]) == ("bca", 0)


def test_intervals_are_of_the_means_that_queries_show(run: Path) -> None:
    with connect_runs([run]) as database:
        database.execute(f"create view intervals as from read_parquet('{statistics_path(run, 'intervals')}')")
        differences = database.execute(
            "select max(abs(i.mean - if(measure = 'logit_diff', e.effect, e.effect_p))), count(*) from"
            " config_effects e join conditions c using (condition) join intervals i"
            " on i.config_id = c.config_id and i.evaluation = c.evaluation"
        ).fetchall()
    assert differences == [(pytest.approx(0, abs=1e-12), 20)]


def test_the_peak_is_where_it_was_put_and_carries_the_norm(run: Path) -> None:
    peaks = {one["multiplier"]: one for one in read(run, "peaks", measure="logit_diff")}
    assert set(peaks) == {-1, 1}
    for multiplier, effect in ((1, 1.5), (-1, -3.0)):
        one = peaks[multiplier]
        assert (one["layer"], one["depth"], one["layers_swept"]) == (2, 3 / 8, 5)
        assert one["effect"] == pytest.approx(effect)
        assert (one["items"], one["items_left_out"]) == (ITEMS, 0)
        # no half chooses another layer, and what it says held out is the plain mean
        assert (one["heldout_layer"], one["heldout_share"]) == (2, 1)
        assert one["heldout_effect"] == pytest.approx(effect)
        assert one["low"] < effect < one["high"]
        assert one["near_layers"] == [2]
        # length 2 in a stream of 10
        assert (one["norm"], one["relative_norm"]) == ("raw", pytest.approx(0.2))
        assert one["billions"] == 7
        assert "some 90%" in one["why"]


def test_the_band_is_of_the_controls_own_largest(run: Path) -> None:
    (band,) = read(run, "bands", measure="logit_diff", multiplier=1, control="random")
    assert (band["largest"], band["largest_layer"]) == (pytest.approx(1.5), 2)
    assert (band["controls"], band["controls_left_out"], band["exceeded_by"]) == (19, 0, 0)
    # the controls move every item by 0, 0.01, .. 0.18
    assert (band["control_max"], band["control_median"]) == (pytest.approx(0.18), pytest.approx(0.09))
    assert (band["p_value"], band["outside"], band["why"]) == (0.05, True, None)
    (peak,) = read(run, "peaks", measure="logit_diff", multiplier=1)
    assert band["config_id"] == peak["config_id"]
    (few,) = read(run, "bands", measure="logit_diff", multiplier=1, control="shuffled")
    assert (few["controls"], few["outside"], few["exceeded_by"]) == (3, None, 0)
    assert few["why"] == "no claim: 3 whole and distinct controls, and it takes 19"


def test_asymmetries_are_paired(run: Path) -> None:
    found = {one["layers"][0]: one for one in read(run, "asymmetries", measure="logit_diff")}
    assert set(found) == set(range(5))
    for layer, one in found.items():
        # -(-2 c a + w) - (c a + w) = c a - 2 w
        items = np.array(
            [CURVE[layer] * answer(n) - 0.1 * (1 if (n + layer) % 2 else -1) for n in range(ITEMS)]
        )
        assert one["asymmetry"] == pytest.approx(items.mean())
        assert one["se"] == pytest.approx(stats.sem(items))
        assert one["relative_norm"] == pytest.approx(0.2 if layer == 2 else 0.1)
        assert one["low"] < one["asymmetry"] < one["high"]


def test_doses_have_the_unsteered_model_at_zero(run: Path) -> None:
    found = {one["layers"][0]: one for one in read(run, "doses", measure="logit_diff")}
    one = found[2]
    assert one["multipliers"] == [-1, 0, 1]
    assert one["means"] == pytest.approx([BASELINE - 3, BASELINE, BASELINE + 1.5])
    assert (one["isotonic_direction"], one["isotonic_r2"]) == ("rising", 1)
    # least squares through -3, 0, 1.5 at -1, 0, 1
    assert (one["slope"], one["intercept"]) == (pytest.approx(2.25), pytest.approx(BASELINE - 0.5))
    assert one["slope_low"] < 2.25 < one["slope_high"]
    assert one["relative_norms"] == pytest.approx([0.2, 0, 0.2])
    assert (one["fit"], one["residual_df"]) == ("line", 1)
    (logistic,) = [each for each in read(run, "doses", measure="p_match") if each["layers"] == [2]]
    assert logistic["fit"] == "logistic"
    # the mean of both letter orders
    unsteered = np.mean([1 / (1 + math.exp(-BASELINE - 0.7)), 1 / (1 + math.exp(-BASELINE + 0.7))])
    assert logistic["means"][1] == pytest.approx(unsteered)
    assert 0 < logistic["slope_low"] < logistic["slope"] < logistic["slope_high"]


def test_one_model_has_no_scaling_and_says_so(run: Path) -> None:
    found = read(run, "scaling", measure="logit_diff", multiplier=1)
    assert [one["family"] for one in found] == ["exponential", "power", "log_linear"]
    assert {one["preferred"] for one in found} == {None}
    assert all("models of 1 different sizes" in one["why"] for one in found)


def test_peaks_of_eight_runs_give_the_papers_law_back(tmp_path: Path) -> None:
    peaks = []
    for size in (0.5, 1, 2, 3, 5, 7, 13, 70):
        top = 0.081 + 2.4 * math.exp(-0.42 * size)

        def says(cell: Cell, top: float = top) -> float:
            layer = cell.steered.layer
            return 0.0 if layer is None else top * (1 if layer == 1 else 0.5) * answer(cell.item)

        folder = make_run(
            tmp_path / f"{size}", sweep("v", range(3), (1.0,)), says, items=12, model=f"toy-{size:g}b"
        )
        write_statistics(folder)
        peaks += read(folder, "peaks", measure="logit_diff")
    (found,) = [one for one in scaling_records(peaks) if one["family"] == "exponential"]
    assert (found["offset"], found["scale"], found["rate"]) == pytest.approx((0.081, 2.4, 0.42), rel=1e-3)
    assert (found["preferred"], found["points"], found["residual_df"]) == (True, 8, 5)


@pytest.mark.long
def test_what_is_missing_is_counted_and_a_control_that_is_not_whole_is_no_control(tmp_path: Path) -> None:
    own = sweep("v", range(3), (1.0,))

    def says(cell: Cell) -> float | dict[str, float] | None:
        one = cell.steered
        if one.control and one.index == 0 and (cell.item, one.layer) == (5, 1):
            return None
        if not one.control and one.vector and (cell.item, one.layer) == (3, 0):
            return None
        if not one.control and one.vector and (cell.item, one.layer) == (4, 2):
            # an answer without any probability
            return {"logit_diff": -math.inf, "p_match": 0.0}
        return answers(cell)

    def left_out(cell: Cell) -> bool:
        return not cell.steered.vector and cell.item == 7

    folder = make_run(tmp_path / "run", [*own, *controls(own, 19)], says, items=ITEMS, left_out=left_out)
    write_statistics(folder)
    (peak,) = read(folder, "peaks", measure="logit_diff")
    # items 3 and 4 lack a layer, item 7 a baseline
    assert (peak["items"], peak["items_left_out"]) == (9, 3)
    assert (peak["low"], peak["why"]) == (None, "no interval: fewer than 10 items")
    # a probability of 0 is one
    (by_p,) = read(folder, "peaks", measure="p_match")
    assert (by_p["items"], by_p["items_left_out"]) == (10, 2)
    left = {
        (one["measure"], one["items"], one["rows_left_out"])
        for one in read(folder, "intervals")
        if one["config_id"] in _ids(folder, "control = ''")
    }
    assert left == {("logit_diff", 10, 2), ("logit_diff", 11, 1), ("p_match", 10, 2), ("p_match", 11, 1)}
    (band,) = read(folder, "bands", measure="logit_diff")
    assert (band["controls"], band["controls_left_out"], band["outside"]) == (18, 1, None)
    assert band["items"] == 9


def _ids(folder: Path, where: str) -> set[str]:
    with connect_runs([folder]) as database:
        return {row[0] for row in database.execute(f"select config_id from configs where {where}").fetchall()}


def test_a_layer_without_rows_leaves_the_peak_empty_and_says_why(tmp_path: Path) -> None:
    folder = make_run(
        tmp_path / "run",
        sweep("v", range(3), (1.0,)),
        answers,
        left_out=lambda cell: cell.steered.layer == 1,
    )
    write_statistics(folder)
    for one in read(folder, "peaks"):
        assert (one["items"], one["items_left_out"], one["layer"], one["heldout_effect"]) == (
            0,
            4,
            None,
            None,
        )
        assert one["why"] == "no item has an effect at every layer"
    assert read(folder, "bands") == []
    empty = [one for one in read(folder, "intervals") if one["items"] == 0]
    assert [(one["mean"], one["rows_left_out"], one["why"]) for one in empty] == 2 * [
        (None, 4, "no item has an effect")
    ]


def test_several_layers_at_once_and_an_ablation_have_intervals_and_no_peak(tmp_path: Path) -> None:
    class Both(Steered):
        def config(self, model: str) -> dict[str, Any]:
            ablates = self.layer == 1
            axes = {"layers": [0, 1], "layer": None, "depth": None}
            return {
                **super().config(model),
                **({"operation": "ablate", "multiplier": None} if ablates else axes),
            }

    folder = make_run(
        tmp_path / "run", [Both("v", 0, 1.0), Both("v", 0, -1.0), Both("v", 1, 1.0)], answers, items=12
    )
    write_statistics(folder)
    assert len(read(folder, "intervals", measure="p_match")) == 3
    # the ablation's, which takes away
    (peak,) = read(folder, "peaks", measure="logit_diff")
    assert (peak["multiplier"], peak["operation"], peak["layer"]) == (None, "ablate", 1)
    (one,) = read(folder, "asymmetries", measure="logit_diff")
    assert one["layers"] == [0, 1]
    (dose,) = read(folder, "doses", measure="logit_diff")
    assert dose["layers"] == [0, 1]


def test_a_run_without_choices_has_empty_tables(tmp_path: Path) -> None:
    own = [Steered("v", 1, 1.0, kind="open_ended", evaluation="open_ended:toy")]
    folder = make_run(tmp_path / "run", own, lambda cell: 0.0)
    assert set(write_statistics(folder).rows.values()) == {0}
    assert [pq.read_table(statistics_path(folder, name)).schema.names for name in TABLES] == [
        [column.name for column in columns] for columns in TABLES.values()
    ]
    assert statistics_are_current(folder)


def test_statistics_of_other_rows_are_not_current(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", sweep("v", range(2), (1.0,)), answers)
    assert not statistics_are_current(folder)
    write_statistics(folder)
    assert statistics_are_current(folder)
    with open_store(folder) as store:
        # going on with a run that is whole changes nothing
        store.compact()
    assert statistics_are_current(folder)
    peaks = statistics_path(folder, "peaks")
    whole = peaks.read_bytes()
    peaks.write_bytes(whole[: len(whole) // 2])
    assert not statistics_are_current(folder)
    peaks.unlink()
    assert not statistics_are_current(folder)
    write_statistics(folder)
    (shard,) = (folder / "rows").glob("*.parquet")
    shard.rename(shard.with_name("compact-000009-00000000.parquet"))
    assert not statistics_are_current(folder)


def test_the_same_rows_give_the_same_statistics(run: Path, tmp_path: Path) -> None:
    before = {name: pq.read_table(statistics_path(run, name)).to_pylist() for name in TABLES}
    write_statistics(run)
    after = {name: pq.read_table(statistics_path(run, name)).to_pylist() for name in TABLES}
    for name in TABLES:
        assert len(before[name]) == len(after[name])
        for one, other in zip(before[name], after[name], strict=True):
            numbers = {key: value for key, value in one.items() if isinstance(value, float)}
            assert {key: other[key] for key in numbers} == pytest.approx(numbers, abs=1e-12)
            assert all(other[key] == value for key, value in one.items() if isinstance(value, (str, int)))


def test_stats_writes_them(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", sweep("v", range(2), (1.0,)), answers)
    done = CliRunner().invoke(main, ["stats", str(folder)])
    assert done.exit_code == 0, done.output
    assert "4 intervals, 2 peaks, 0 bands" in done.output
    assert statistics_are_current(folder)
    as_json = CliRunner().invoke(main, ["stats", str(folder), "--json"])
    assert json.loads(as_json.output)["rows"]["peaks"] == 2


GRID = """\
version: 1
name: try
model: {id: tiny-llama, dtype: float32}
vectors: {v: {data: sentiment, token: last}}
grid: [{vector: v, layers: all, multipliers: [-1, 1], positions: [all]}]
evaluations: [{kind: choice, data: sentiment, limit: 6}]
"""


def test_a_run_ends_with_its_statistics(tmp_path: Path) -> None:
    (tmp_path / "grid.yaml").write_text(GRID)
    folder = run_grid(tmp_path / "grid.yaml", derive=bring_up_to_date, load=fake.load()).folder
    assert statistics_are_current(folder)
    assert len(read(folder, "peaks")) == 4


def test_a_run_is_not_lost_where_they_fail(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", sweep("v", range(2), (1.0,)), answers)
    (shard,) = (folder / "rows").glob("*.parquet")
    shard.write_bytes(b"PAR1")
    fault = bring_up_to_date(folder)
    assert fault is not None
    assert fault.startswith("warning: the rows are whole, but have no statistics")
    assert f"`vsteer stats {folder}` tries again" in fault
    assert not statistics_are_current(folder)


def test_what_is_no_run_is_left_alone(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="not a run's folder"):
        write_statistics(tmp_path)
    assert list(tmp_path.iterdir()) == []
