"""The stored statistics as queries show them: known peaks, asymmetries, doses, the papers' law come back."""

from __future__ import annotations

import json
import math
import re
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pytest
import scipy.stats
from click.testing import CliRunner

from tests.results.made_up import Cell, Steered, ask, controls, make_run, sweep, write_vector
from tests.store import makers
from vsteer import cli
from vsteer.analysis.statistics import write_statistics
from vsteer.operations import OPERATIONS
from vsteer.results.views import connect_runs, statements, without_statistics
from vsteer.store.store import open_store
from vsteer.vectors.run_norms import write_vector_norms

ITEMS = 32


def spread(item: int) -> float:
    """From -1 to 1 over the items, 0 on average."""
    return 2 * item / (ITEMS - 1) - 1


def with_statistics(
    folder: Path, steered: Sequence[Steered], says: Callable[[Cell], Any], **more: Any
) -> Path:
    make_run(folder, steered, says, **{"items": ITEMS, **more})
    write_statistics(folder)
    return folder


def peaked(cell: Cell) -> float:
    """Layer 3 adds 2 on average, layer 2 as much, give or take; 4 always 0.5 less. Controls: 0.1."""
    one, item = cell.steered, cell.item
    if not one.vector:
        return 0.5
    if one.control:
        return 0.5 + 0.1 * math.sin((one.index or 0) + item)
    by_layer = {1: 0.2, 2: 2 + spread((item * 7) % ITEMS), 3: 2.0, 4: 1.5}[one.layer or 0]
    return 0.5 + one.multiplier * (by_layer + 0.3 * spread(item))


def test_a_peak_has_its_held_out_effect_near_layers_and_band(tmp_path: Path) -> None:
    run = tmp_path / "run"
    sha256 = write_vector(run, "toy", [2.0] * 8, 50.0)
    write_vector_norms(run)
    vectors = sweep("toy", (1, 2, 3, 4), (-1.0, 1.0), sha256=sha256)
    both = [
        *controls(vectors, 19),
        *controls(vectors, 18, "shuffled"),
        *controls(vectors, 20, "unrelated"),
    ]
    with_statistics(run, [*vectors, *both], peaked)
    found = ask("layer_peaks", run)
    assert [row["multiplier"] for row in found] == [-1.0, 1.0]
    for row, sign in zip(found, (-1, 1), strict=True):
        assert row["near_layers"] == [2, 3]
        assert row["heldout_layer"] in (2, 3)
        # of two layers of equal effect halves choose the luckier one: the other half says no more than 2
        assert 1.8 <= sign * row["heldout_effect"] <= 2.0
        assert row["heldout_low"] < sign * 2 < row["heldout_high"]
        outside = (row["outside_random"], row["outside_shuffled"], row["outside_unrelated"])
        assert outside == (True, None, True)
        assert (row["norm"], row["relative_norm"]) == ("raw", pytest.approx(0.04))
        assert row["why"] is None
    for row in ask("controls", run):
        of_kind = None if row["control"] == "shuffled" else True
        assert (row["outside"], row["outside_there"]) == (of_kind, of_kind)
        assert row["p_value_there"] == pytest.approx(1 / (1 + row["controls"]))


def test_a_control_with_a_failed_row_is_not_whole(tmp_path: Path) -> None:
    """19 random vectors of which one failed on an item: no claim, in either verdict."""
    vectors = sweep("toy", (1, 3), (1.0,))

    def says(cell: Cell) -> float | None:
        return None if (cell.steered.index, cell.steered.layer, cell.item) == (4, 1, 2) else peaked(cell)

    run = with_statistics(tmp_path / "run", [*vectors, *controls(vectors, 19)], says)
    (row,) = ask("controls", run)
    assert (row["controls"], row["controls_left_out"], row["outside"], row["outside_there"]) == (
        18,
        1,
        None,
        None,
    )
    (peak,) = ask("layer_peaks", run)
    assert peak["outside_random"] is None


def test_the_asymmetrys_interval_is_scipys(tmp_path: Path) -> None:
    def says(cell: Cell) -> float:
        m, skewed = cell.steered.multiplier, math.exp(spread(cell.item))
        return 0.2 + (m * skewed if m > 0 else 1.5 * m * skewed**2)

    run = with_statistics(tmp_path / "run", sweep("toy", (1,), (-1.0, 1.0)), says)
    (row,) = ask("sign_asymmetry", run)
    values = np.array([1.5 * math.exp(spread(n)) ** 2 - math.exp(spread(n)) for n in range(ITEMS)])
    expected = scipy.stats.bootstrap(
        (values,), np.mean, n_resamples=50_000, method="BCa", rng=1
    ).confidence_interval
    width = expected.high - expected.low
    assert row["asymmetry"] == pytest.approx(values.mean())
    assert row["asymmetry_low"] == pytest.approx(expected.low, abs=0.05 * width)
    assert row["asymmetry_high"] == pytest.approx(expected.high, abs=0.05 * width)
    assert row["asymmetry_p_low"] < row["asymmetry_p"] < row["asymmetry_p_high"]
    assert row["why"] is None


def test_a_doses_line_and_curve_come_back(tmp_path: Path) -> None:
    """p = sigmoid(0.3 + 1.5 m) at layer 1, on every item; at layer 2 the logit turns back at the ends."""
    by_multiplier = {-2.0: -2.0, -1.0: -2.5, 1.0: 2.5, 2.0: 2.0}

    def says(cell: Cell) -> float:
        m = cell.steered.multiplier
        return 0.3 + (by_multiplier[m] if cell.steered.layer == 2 else 1.5 * m)

    run = with_statistics(tmp_path / "run", sweep("toy", (1, 2), by_multiplier), says)
    for row in ask("multiplier_curves", run, layer="1"):
        assert (row["slope"], row["line_r2"], row["isotonic_r2"]) == pytest.approx((1.5, 1.0, 1.0))
        assert (row["p_slope"], row["p_midpoint"]) == pytest.approx((1.5, -0.2), rel=1e-5)
        assert row["monotone"]
    # by hand: the two at either end turn back and are pooled to 2.25; the mean of all is 0
    share = 1 - 4 * 0.25**2 / (2 * 2.0**2 + 2 * 2.5**2)
    for row in ask("multiplier_curves", run, layer="2"):
        assert not row["monotone"]
        assert row["isotonic_r2"] == pytest.approx(share)


def test_an_interval_of_a_multiplier_holds_what_was_put_in(tmp_path: Path) -> None:
    run = with_statistics(
        tmp_path / "run",
        sweep("toy", (1,), (1.0, 2.0)),
        lambda cell: cell.steered.multiplier * (1 + spread(cell.item)),
    )
    unsteered, *steered = ask("multiplier_curves", run)
    assert (unsteered["effect_low"], unsteered["effect_high"]) == (None, None)
    for row in steered:
        half = 1.96 * row["effect_se"]
        assert row["effect_low"] == pytest.approx(row["multiplier"] - half, abs=0.15 * half)
        assert row["effect_high"] == pytest.approx(row["multiplier"] + half, abs=0.15 * half)
        assert row["effect_p_low"] < row["effect_p"] < row["effect_p_high"]


def law(billions: float) -> float:
    """The papers'."""
    return 0.081 + 2.4 * math.exp(-0.42 * billions)


def sizes_run(folder: Path, size: str) -> Path:
    """A model of that size whose peak, at layer 2, is the law's on average."""

    def says(cell: Cell) -> float:
        one = cell.steered
        if not one.vector:
            return 0.0
        return {1: 0.4, 2: 1.0, 5: 0.3}[one.layer or 0] * law(float(size)) * (1 + 0.3 * spread(cell.item))

    return with_statistics(folder, sweep("toy", (1, 2, 5), (1.0,)), says, model=f"toy/Model-{size}b-chat")


@pytest.fixture
def eight(tmp_path: Path) -> list[Path]:
    return [sizes_run(tmp_path / size, size) for size in ("0.5", "1", "2", "3", "5", "7", "13", "70")]


def test_the_papers_law_over_eight_sizes_is_found(eight: list[Path]) -> None:
    points = ask("scaling", *eight)
    assert [row["heldout_effect"] for row in points] == pytest.approx(
        [law(row["billions"]) for row in points]
    )
    assert {row["exponential"] for row in points} == {"0.081 +2.4 exp(-0.42 x) (5 df)"}
    assert {row["preferred"] for row in points} == {"exponential"}
    fits = {row["family"]: row for row in ask("scaling_fits", *eight) if row["measure"] == "logit_diff"}
    found = fits["exponential"]
    assert (found["offset"], found["scale"], found["rate"]) == pytest.approx((0.081, 2.4, 0.42), rel=1e-3)
    assert (found["residual_df"], found["preferred"], found["points"]) == (5, True, 8)
    assert (fits["power"]["preferred"], fits["log_linear"]["preferred"]) == (False, False)
    assert found["billions"] == [0.5, 1, 2, 3, 5, 7, 13, 70]
    assert found["run"] is None
    assert set(found["depths"]) == {0.375}


def test_the_papers_three_sizes_leave_no_degree_of_freedom(tmp_path: Path) -> None:
    runs = [sizes_run(tmp_path / size, size) for size in ("7", "13", "70")]
    for row in ask("scaling", *runs):
        assert row["exponential"] == "0.081 +2.4 exp(-0.42 x) (0 df)"
        assert row["preferred"] is None
        assert "exponential: no residual degrees of freedom: 3 parameters for 3 models" in row["fit_why"]
    (found,) = [
        row
        for row in ask("scaling_fits", *runs)
        if (row["family"], row["measure"]) == ("exponential", "logit_diff")
    ]
    assert (found["residual_df"], found["rate_low"], found["rate_high"], found["aicc"]) == (
        0,
        None,
        None,
        None,
    )


def test_duckdb_alone_prints_the_fits_over_runs(eight: list[Path]) -> None:
    folders = list(map(str, eight))
    printed = shlex.split(CliRunner().invoke(cli.main, ["sql", "scaling_fits", *folders, "--print"]).stdout)
    *made, last = statements(printed[3])
    with duckdb.connect() as database:
        for statement in made:
            database.execute(statement)
        alone = database.execute(f"select family, curve from ({last})").fetchall()
    asked = CliRunner().invoke(cli.main, ["sql", "scaling_fits", *folders, "--format", "json"]).stdout
    assert alone == [(row["family"], row["curve"]) for row in json.loads(asked)]
    assert ("exponential", "0.081 +2.4 exp(-0.42 x)") in alone


def test_a_single_runs_fits_are_its_own(tmp_path: Path) -> None:
    run = sizes_run(tmp_path / "run", "7")
    (row,) = ask("scaling", run)
    assert (row["exponential"], row["preferred"]) == (None, None)
    assert "models of 1 different sizes" in row["fit_why"]


def test_statistics_of_other_rows_are_not_used_and_warned_of(tmp_path: Path) -> None:
    run = with_statistics(tmp_path / "run", sweep("toy", (1, 3), (1.0,)), peaked)
    assert without_statistics([run]) == {}
    assert ask("layer_peaks", run)[0]["near_layers"] == [3]
    with open_store(run) as store:
        store.append(makers.row(7))
    found = ask("layer_peaks", run)
    assert all(row["near_layers"] is None for row in found)
    assert {row["why"] for row in found} == {"no statistics of this run as it stands: vsteer stats RUN"}
    done = CliRunner().invoke(cli.main, ["sql", "layer_peaks", str(run)])
    warned = [line for line in done.stderr.splitlines() if "statistics" in line]
    assert len(warned) == 1
    assert "were not made of the run as it stands" in warned[0]
    assert f"vsteer stats {run} makes them" in warned[0]
    # a query that doesn't read them warns of nothing
    for name in ("letter_bias", "refusal_rates"):
        assert CliRunner().invoke(cli.main, ["sql", name, str(run)]).stderr == ""


def test_a_run_without_statistics_has_their_columns(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", sweep("toy", (1,), (1.0,)), lambda cell: 1.0)
    assert without_statistics([run]) == {run: "are not there"}
    with connect_runs([run]) as database:
        for table in ("intervals", "peaks", "bands", "asymmetries", "doses", "scaling"):
            names = [column[0] for column in database.execute(f"from {table}").description]
            assert re.match("run evaluation .*measure", " ".join(names))


class Clamped(Steered):
    def config(self, model: str) -> dict[str, Any]:
        return {**super().config(model), "operation": "clamp"}


def test_no_multiplier_of_a_clamp_is_the_unsteered_model(tmp_path: Path) -> None:
    """Clamped to m, an item has the logit difference 2 + m and its own wobble; unsteered it has 0.5.

    A line through the two clamps has the slope 1, with the unsteered one at 0 it would have another residual.
    """
    clamped = [Clamped("toy", 1, multiplier) for multiplier in (-1.0, 1.0)]

    def says(cell: Cell) -> float:
        return 2 + cell.steered.multiplier + spread(cell.item) if cell.steered.vector else 0.5

    run = with_statistics(tmp_path / "run", clamped, says)
    assert [(row["multiplier"], row["logit_diff"]) for row in ask("multiplier_curves", run)] == [
        (-1.0, pytest.approx(1.0)),
        (1.0, pytest.approx(3.0)),
    ]
    (row,) = ask("steerability", run)
    assert (row["multipliers"], row["slope"], row["residual"]) == (
        2,
        pytest.approx(1.0),
        pytest.approx(0.0, abs=1e-6),
    )
    with connect_runs([run]) as database:
        (dose,) = database.execute(
            "select multipliers, means from doses where measure = 'logit_diff'"
        ).fetchall()
        names = ", ".join(f"('{name}')" for name in OPERATIONS)
        acts = database.execute(f"select n, not unsteered_at_zero(n) from (values {names}) o(n)").fetchall()
    assert dose == ([-1.0, 1.0], [pytest.approx(1.0), pytest.approx(3.0)])
    assert dict(acts) == {name: operation.acts_at_zero for name, operation in OPERATIONS.items()}
