"""The table in the terminal: its rows and columns, and what it claims of a peak without any control."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.results.made_up import Cell, Steered, controls, make_run, sweep
from vsteer.cli.layer_curve import layer_curves


def effect(cell: Cell) -> dict[str, float]:
    """Unsteered 0.5; layer n adds n x the multiplier; a control the hundredth part of its number."""
    one = cell.steered
    added = (one.index or 0) / 100 if one.control else one.multiplier * (one.layer or 0)
    return {"logit_diff": 0.5 + added, "total_mass": 0.6 - 0.1 * abs(one.multiplier)}


def test_effects_by_layer_with_the_range_of_the_controls(tmp_path: Path) -> None:
    own = sweep("toy", (1, 3), (-1.0, 2.0))
    run = make_run(tmp_path / "run", [*own, *controls(own, 19)], effect, orders=("original", "swapped"))
    assert layer_curves(run).splitlines() == [
        "choice:toy: effect of toy (norm raw) at all in toy-7b",
        "log p(matching) - log p(not matching), mean of 8 prompts, less the unsteered +0.50 of 8",
        "MASS: the probability of all answers together, the least of a row (unsteered 0.600)",
        "LAYER     -1     +2   MASS        CONTROLS",
        "    1  -1.00  +2.00  0.400  +0.00 to +0.18",
        "    3  -3.00  +6.00  0.400  +0.00 to +0.18",
        "largest effect: +6.00 at layer 3, multiplier +2",
        "largest of 19 random vectors: 0.18",
        "the peak is outside the band of the random vectors (5% level, for this vector alone)",
    ]


def test_without_controls_it_says_that_chance_is_not_known(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", sweep("toy", (0, 1), (3.0,)), effect)
    *_, peak, controls = layer_curves(run).splitlines()
    assert peak == "largest effect: +3.00 at layer 1, multiplier +3"
    assert controls == (
        "no controls to compare it with: what chance gives isn't known "
        "(`controls: {random_vectors: 19, unrelated: 19}` adds them)"
    )


def test_several_layers_at_once_are_a_row_of_their_own(tmp_path: Path) -> None:
    """The verdict looks at them too."""

    class Both(Steered):
        def config(self, model: str) -> dict[str, Any]:
            return {**super().config(model), "layers": [1, 3], "layer": None, "depth": None}

    own = sweep("toy", (1,), (1.0,))
    run = make_run(tmp_path / "run", [*own, Both("toy", 4, 1.0)], effect)
    table = layer_curves(run).splitlines()
    assert table[4:6] == ["    1  +1.00  0.500", "  1+3  +4.00  0.500"]
    assert table[6] == "largest effect: +4.00 at layer 1+3, multiplier +1"
