"""The terminal's table, `vsteer sql controls`, the statistics and the report agree on every control.

The runs are made up: controls lack rows, repeat a vector, or are too few. What each of the four has to say is
worked out by hand in CASES.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from tests.results.made_up import Cell, Steered, ask, controls, make_run, sweep
from vsteer import cli
from vsteer.analysis.statistics import write_statistics
from vsteer.cli.layer_curve import layer_curves
from vsteer.report.page import gathered
from vsteer.results.statistics_files import statistics_path
from vsteer.results.views import run_names

LAYERS, MULTIPLIERS = (1, 2), (-1.0, 1.0)
OWN = sweep("toy", LAYERS, MULTIPLIERS)
PEAK = 0.9
OUTSIDE = "the peak is outside the band of the random vectors (5% level, for this vector alone)"
INSIDE = "the peak is NOT outside the band of the random vectors: no effect is shown"


def too_few(counted: int) -> str:
    return f"too few random vectors to say more: {counted} whole and distinct, 19 are needed"


def size(one: Steered) -> float:
    """The vector: -0.9 at layer 2 and multiplier -1, 0.1 elsewhere. Control n: (n + 1) / 100 everywhere."""
    if one.control:
        assert one.index is not None
        return (one.index + 1) / 100
    return -PEAK if (one.layer, one.multiplier) == (2, -1.0) else 0.1


def says(cell: Cell) -> Any:
    return 1.0 + (size(cell.steered) if cell.steered.vector else 0.0)


def stored_as(of: Steered, as_: Steered) -> Callable[[Steered], Steered]:
    """Control `of` is stored as the vector of `as_`."""
    return lambda one: replace(one, sha256=as_.sha256) if one.index == of.index and one.control else one


def lacking(*where: tuple[int, int, float, int]) -> Callable[[Cell], Any]:
    """The rows that failed: control, layer, multiplier, item."""

    def with_failures(cell: Cell) -> Any:
        one = cell.steered
        failed = one.control and (one.index, one.layer, one.multiplier, cell.item) in where
        return None if failed else says(cell)

    return with_failures


def strong(index: int, effect: float) -> Callable[[Cell], Any]:
    """One control has this effect at layer 1 and multiplier 1."""

    def with_a_strong_one(cell: Cell) -> Any:
        one = cell.steered
        there = (one.index, one.layer, one.multiplier) == (index, 1, 1.0)
        return 1.0 + effect if one.control and there else says(cell)

    return with_a_strong_one


def without_match(cell: Cell) -> Any:
    """Control 3 once gives the answers that don't match no probability: p_match is there, its logit isn't."""
    one = cell.steered
    if (one.index, one.layer, one.multiplier, cell.item) == (3, 1, 1.0, 0):
        return {"logit_diff": math.inf, "p_match": 1.0}
    return says(cell)


def vector_lacks_a_row(cell: Cell) -> Any:
    """The vector's own row failed where every control has one, and theirs are far too large just there."""
    one = cell.steered
    if (one.layer, one.multiplier, cell.item) == (2, -1.0, 3) and one.vector:
        return 1000.0 if one.control else None
    return says(cell)


@dataclass(frozen=True)
class Expected:
    """Over all layers and multipliers; and for each multiplier's band how many exceed the vector there."""

    counted: int
    left_out: int
    largest: float | None
    median: float | None
    exceeded_by: int
    verdict: str
    # at multiplier -1 the vector's largest is 0.9, at 1 it is 0.1, which controls 9, 10, ... reach
    band_exceeded_by: dict[float, int]

    @property
    def outside(self) -> bool | None:
        return {OUTSIDE: True, INSIDE: False}.get(self.verdict)


@dataclass(frozen=True)
class Case:
    expected: Expected
    count: int = 20
    says: Callable[[Cell], Any] = says
    change: Callable[[Steered], Steered] = lambda one: one
    left_out: Callable[[Cell], bool] = lambda cell: False
    own: Sequence[Steered] = tuple(OWN)


RANDOM = controls(OWN[:1], 20)

CASES = {
    "whole": Case(Expected(20, 0, 0.20, 0.105, 0, OUTSIDE, {-1: 0, 1: 11})),
    # 1 to 20 hundredths without the 5, and 95: the tenth and the eleventh are 11 and 12
    "one exceeds": Case(Expected(20, 0, 0.95, 0.115, 1, INSIDE, {-1: 0, 1: 12}), says=strong(4, -0.95)),
    "eighteen": Case(Expected(18, 0, 0.18, 0.095, 0, too_few(18), {-1: 0, 1: 9}), count=18),
    "none": Case(
        Expected(0, 1, None, None, 0, too_few(0), {-1: 0, 1: 0}), count=1, says=lacking((0, 1, 1.0, 0))
    ),
    # control 0 and the strongest, 19, lack a row each: 2 to 19 hundredths are left, their median is 0.105
    "two lack a row": Case(
        Expected(18, 2, 0.19, 0.105, 0, too_few(18), {-1: 0, 1: 10}),
        says=lacking((0, 2, 1.0, 3), (19, 1, -1.0, 0)),
    ),
    "one lacks a row": Case(
        Expected(19, 1, 0.20, 0.11, 0, OUTSIDE, {-1: 0, 1: 11}), says=lacking((0, 2, 1.0, 3))
    ),
    # what is left out doesn't count in either direction
    "a strong one lacks a row": Case(
        Expected(19, 1, 0.20, 0.11, 0, OUTSIDE, {-1: 0, 1: 11}),
        says=lambda cell: lacking((0, 2, 1.0, 3))(cell) and strong(0, 5.0)(cell),
    ),
    "one was never run at a layer": Case(
        Expected(19, 1, 0.19, 0.10, 0, OUTSIDE, {-1: 0, 1: 10}),
        left_out=lambda cell: cell.steered.index == 19 and cell.steered.layer == 2,
    ),
    "one has no row at all": Case(
        Expected(19, 1, 0.19, 0.10, 0, OUTSIDE, {-1: 0, 1: 10}),
        left_out=lambda cell: cell.steered.index == 19,
    ),
    "one repeats another": Case(
        Expected(19, 1, 0.19, 0.10, 0, OUTSIDE, {-1: 0, 1: 10}), change=stored_as(RANDOM[19], RANDOM[2])
    ),
    # the first of two alike is not whole, so the second counts
    "one repeats one that is not whole": Case(
        Expected(19, 1, 0.20, 0.11, 0, OUTSIDE, {-1: 0, 1: 11}),
        change=stored_as(RANDOM[19], RANDOM[0]),
        says=lacking((0, 2, 1.0, 3)),
    ),
    "one is the vector itself": Case(
        Expected(19, 1, 0.19, 0.10, 0, OUTSIDE, {-1: 0, 1: 10}), change=stored_as(RANDOM[19], OWN[0])
    ),
    "two repeat others": Case(
        Expected(18, 2, 0.18, 0.095, 0, too_few(18), {-1: 0, 1: 9}),
        change=lambda one: stored_as(RANDOM[19], RANDOM[2])(stored_as(RANDOM[18], OWN[0])(one)),
    ),
    "one has an effect by one measure only": Case(
        Expected(19, 1, 0.20, 0.11, 0, OUTSIDE, {-1: 0, 1: 11}), says=without_match
    ),
    # controls are compared on the vector's rows alone
    "the vector lacks a row": Case(
        Expected(20, 0, 0.20, 0.105, 0, OUTSIDE, {-1: 0, 1: 11}), says=vector_lacks_a_row
    ),
}


# What `make test` has of them; the others take long.
SHORT = {
    "whole", "one exceeds", "eighteen", "two lack a row", "one repeats one that is not whole",
    "the vector lacks a row",
}  # fmt: skip


@pytest.fixture(
    scope="module",
    params=[name if name in SHORT else pytest.param(name, marks=pytest.mark.long) for name in CASES],
)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Expected]:
    case = CASES[request.param]
    folder = tmp_path_factory.mktemp("controls") / "run"
    steered = [case.change(one) for one in (*case.own, *controls(case.own, case.count))]
    make_run(folder, steered, case.says, left_out=case.left_out)
    write_statistics(folder)
    return folder, case.expected


def of_sql(folder: Path) -> dict[str, Any]:
    done = CliRunner().invoke(cli.main, ["sql", "controls", str(folder), "--format", "json"])
    (row,) = json.loads(done.stdout)
    return dict(row)


def test_sql_controls(made: tuple[Path, Expected]) -> None:
    folder, expected = made
    row = of_sql(folder)
    assert (row["largest"], row["layers"], row["multiplier"]) == (pytest.approx(PEAK), [2], -1)
    assert (row["control"], row["controls"], row["controls_left_out"]) == (
        "random",
        expected.counted,
        expected.left_out,
    )
    assert row["control_largest"] == pytest.approx(expected.largest)
    assert row["control_median"] == pytest.approx(expected.median)
    assert (row["exceeded_by"], row["outside"]) == (expected.exceeded_by, expected.outside)
    assert row["verdict"] == expected.verdict
    p_value = (1 + expected.exceeded_by) / (1 + expected.counted) if expected.counted else None
    assert row["p_value"] == pytest.approx(p_value)


def test_the_terminals_table(made: tuple[Path, Expected]) -> None:
    folder, expected = made
    lines = layer_curves(folder).splitlines()
    claims = lines[lines.index(f"largest effect: {-PEAK:+.2f} at layer 2, multiplier -1") + 1 :]
    wanted = []
    if expected.counted:
        wanted.append(f"largest of {expected.counted} random vectors: {expected.largest:.2f}")
    if expected.left_out:
        wanted.append(
            f"{expected.left_out} of the {expected.counted + expected.left_out} random vectors don't count: "
            "they lack rows, or repeat another vector"
        )
    assert claims == [*wanted, expected.verdict]


def test_the_statistics_hold_the_vector_against_the_same_controls(made: tuple[Path, Expected]) -> None:
    folder, expected = made
    bands = pq.read_table(statistics_path(folder, "bands")).to_pylist()
    assert len(bands) == 4  # two multipliers, two measures
    for band in bands:
        assert (band["controls"], band["controls_left_out"]) == (expected.counted, expected.left_out)
        assert (band["outside"] is None) == (expected.counted < 19)
    for band in bands:
        if band["measure"] == "logit_diff":
            assert band["exceeded_by"] == expected.band_exceeded_by[band["multiplier"]]
            assert abs(band["largest"]) == pytest.approx(PEAK if band["multiplier"] < 0 else 0.1)
            if expected.counted >= 19:
                assert band["outside"] == (band["exceeded_by"] == 0)
            else:
                too_few = f"no claim: {expected.counted} whole and distinct controls, and it takes 19"
                assert band["why"] == too_few


def test_the_report_and_its_band(made: tuple[Path, Expected]) -> None:
    folder, expected = made
    tables = gathered([folder], run_names([folder]))["tables"]

    def column(table: str, name: str) -> list[Any]:
        coded = tables[table]["columns"][name]
        return coded["values"] if "values" in coded else [coded["different"][n] for n in coded["which"]]

    assert column("controls", "verdict") == [expected.verdict]
    assert column("controls", "controls") == [expected.counted]
    assert column("controls", "controls_left_out") == [expected.left_out]
    assert column("controls", "control_largest") == [pytest.approx(expected.largest)]
    # what is drawn behind the curve is of the same controls
    assert set(column("control_bands", "controls")) == ({expected.counted} if expected.counted else set())
    drawn = [
        *column("control_bands", "control_high"),
        *(-low for low in column("control_bands", "control_low")),
    ]
    assert max(drawn, default=None) == pytest.approx(expected.largest)


def test_peaks_show_the_bands_of_the_statistics(made: tuple[Path, Expected]) -> None:
    folder, expected = made
    for peak in ask("layer_peaks", folder):
        exceeded = expected.band_exceeded_by[peak["multiplier"]]
        assert peak["outside_random"] == (exceeded == 0 if expected.counted >= 19 else None)


# The vector's largest is 0.9. For each kind how many controls there are, and what they do; and whose verdict
# is the one to quote.
HEADLINES = {
    "one kind": ({"random": (19, 0.2)}, "random"),
    "an unrelated one does as much": ({"random": (19, 0.2), "unrelated": (19, 0.95)}, "unrelated"),
    "too few before outside": ({"random": (19, 0.2), "shuffled": (3, 0.1)}, "shuffled"),
    "not outside before too few": ({"random": (19, 1.0), "unrelated": (2, 2.0)}, "random"),
    # p is 1/25 and 1/20
    "the larger p of two that are outside": ({"random": (24, 0.2), "unrelated": (19, 0.2)}, "unrelated"),
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.long if n > 1 else ()) for n, name in enumerate(HEADLINES)]
)
def test_the_strictest_verdict_is_the_headline(name: str, tmp_path: Path) -> None:
    kinds, strictest = HEADLINES[name]
    steered = [one for kind, (count, _) in kinds.items() for one in controls(OWN, count, kind)]

    def kinds_say(cell: Cell) -> float:
        control = cell.steered.control
        return 1.0 + kinds[control][1] if control else float(says(cell))

    folder = make_run(tmp_path / "run", [*OWN, *steered], kinds_say, items=2)
    rows = ask("controls", folder)
    assert {row["control"]: row["headline"] for row in rows} == {kind: kind == strictest for kind in kinds}
    verdicts = {row["control"]: row["verdict"] for row in rows}
    assert all(f" {kind} vectors" in verdicts[kind] for kind in kinds)
    lines = layer_curves(folder).splitlines()
    claims = lines[lines.index(f"largest effect: {-PEAK:+.2f} at layer 2, multiplier -1") + 1 :]
    said = [line for line in claims if not line.startswith("largest of")]
    if len(kinds) > 1:
        assert said.pop(0) == f"by the strictest control: {verdicts.pop(strictest)}"
    assert sorted(said) == sorted(verdicts.values())
