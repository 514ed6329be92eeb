"""Lines through an item's logit differences, against values worked out by hand, and from a run's rows."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.store import makers
from vsteer.analysis.steerability import fit_lines, write_steerability
from vsteer.store.store import open_store
from vsteer.store.views import connect


def test_lines_by_hand() -> None:
    x = np.array([[-1.0, 0.0, 1.0, 2.0]] * 3)
    y = np.array([[1.0, 2.0, 4.0, 5.0], [3.0, 1.0, 1.0, -1.0], [2.0, 2.0, 2.0, 2.0]])
    found = fit_lines(x, y)
    # x - mean: -1.5 -0.5 0.5 1.5, squares 5. y - mean: -2 -1 1 2: products 3 + 0.5 + 0.5 + 3 = 7
    # and 2 0 0 -2: products -3 - 3 = -6
    assert found.slope == pytest.approx([7 / 5, -6 / 5, 0])
    # residuals 0.1 -0.3 0.3 -0.1: squares 0.2; and 0.2 -0.6 0.6 -0.2: squares 0.8; two degrees of freedom
    assert found.residual_sd == pytest.approx([math.sqrt(0.1), math.sqrt(0.4), 0])
    # ranks 1 2 3 4; and 4 2.5 2.5 1 against 1 2 3 4: -4.5 / sqrt(5 * 4.5)
    assert found.rank_correlation[:2] == pytest.approx([1, -4.5 / math.sqrt(22.5)])
    assert math.isnan(found.rank_correlation[2])


def test_two_points_have_a_slope_and_no_residual_and_one_has_nothing() -> None:
    two = fit_lines(np.array([[0.0, 2.0]]), np.array([[1.0, 4.0]]))
    assert (two.slope[0], two.rank_correlation[0]) == (1.5, 1)
    assert math.isnan(two.residual_sd[0])
    assert math.isnan(fit_lines(np.array([[0.0]]), np.array([[1.0]])).slope[0])


# logit differences of (item, letter order, layer) by multiplier; None: the row failed
ITEMS: dict[tuple[str, str, int], dict[float, float | None]] = {
    ("a", "original", 0): {-1: 1.0, 1: 3.0},
    ("a", "original", 1): {-1: 4.0, 1: 0.0},
    ("a-swapped", "swapped", 0): {-1: 2.0, 1: None},
    ("b", "original", 0): {-1: -math.inf, 1: 5.0},
}
BASELINES = {("a", "original"): 2.0, ("a-swapped", "swapped"): 1.0, ("b", "original"): 1.0}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The rows of ITEMS, a configuration each layer and multiplier, made by hand."""
    configs: dict[str, Any] = {}
    rows: list[dict[str, Any]] = []

    def add(item: str, order: str, layer: int | None, multiplier: float, value: float | None) -> None:
        steered = layer is not None
        axes: dict[str, Any] = {
            "config_id": f"{layer}|{multiplier}",
            "vector": "v" if steered else "",
            "vector_sha256": "ab" * 32 if steered else "",
            "norm": "raw" if steered else "",
            "layers": [layer] if steered else [],
            "layer": layer,
            "depth": 0.5 if steered else None,
            "operation": "add" if steered else "",
            "multiplier": float(multiplier),
            "positions": "all" if steered else "",
        }
        configs[axes["config_id"]] = makers.config(0, **axes)
        make = makers.row if value is not None else makers.error_row
        asked: dict[str, Any] = {"item_id": item, "prompt_id": f"prompt-{item}", "letter_order": order}
        if value is not None:
            asked |= {"logit_diff": value, "steered_tokens": 5 if steered else 0, "total_mass": 0.5}
        rows.append(make(len(rows), **axes, **asked))

    for (item, order), value in BASELINES.items():
        add(item, order, None, 0, value)
    for (item, order, layer), values in ITEMS.items():
        for multiplier, found in values.items():
            add(item, order, layer, multiplier, found)
    prompts = [
        makers.prompt(0, prompt_id="prompt-a", item_id="a"),
        makers.prompt(
            1, prompt_id="prompt-a-swapped", item_id="a-swapped", letter_order="swapped", swapped_from="a"
        ),
        makers.prompt(2, prompt_id="prompt-b", item_id="b"),
    ]  # fmt: skip
    with open_store(tmp_path / "run") as store:
        store.write_plan({"name": "t"}, configs.values(), prompts, len(rows))
        for row in rows:
            store.append(row)
    return tmp_path / "run"


def test_a_line_an_item_letter_order_and_family(run: Path) -> None:
    _, lines = write_steerability(run)
    assert lines == len(ITEMS)
    columns = (
        "multipliers, points, left_out, baseline, slope, rank_correlation, residual_sd, wrong_way, least_mass"
    )
    query = (
        f"select item_id, original_item_id, letter_order, layer, {columns} from steerability order by 1, 4"
    )
    found = {(row[0], row[2], row[3]): row for row in connect(run).execute(query).fetchall()}
    assert found["a", "original", 0][4:] == ([-1, 0, 1], 3, 0, 2, 1, 1, 0, 0, 0.5)
    # 4 2 0: falling
    assert found["a", "original", 1][4:] == ([-1, 0, 1], 3, 0, 2, -2, -1, 0, 1, 0.5)
    # the failed row is left out, and two points leave no residual
    assert found["a-swapped", "swapped", 0][1:] == ("a", "swapped", 0, [-1, 0], 2, 1, 1, -1, -1, None, 1, 0.5)
    # an infinite difference is left out
    assert found["b", "original", 0][4:] == ([0, 1], 2, 1, 1, 4, 1, None, 0, 0.5)


def test_writing_it_again_replaces_it(run: Path) -> None:
    first = write_steerability(run)
    assert write_steerability(run) == first
    assert connect(run).execute("select count(*) from steerability").fetchall() == [(len(ITEMS),)]
