"""Figures: what passes, what falls short, and ratios of rounds taken in turn."""

import json
from collections.abc import Callable

import pytest

from vsteer.bench.figures import Figure, as_json, as_table, median_ratio, rates_in_turn


@pytest.mark.parametrize(
    ("figure", "ok"),
    [
        (Figure("reported only", 0.1), True),
        (Figure("at the target", 0.98, 0.98), True),
        (Figure("below it", 0.97, 0.98), False),
        (Figure("accepted", 0.96, 0.98, accepted=0.95), True),
        (Figure("below what is accepted", 0.94, 0.98, accepted=0.95), False),
        (Figure("not a number", float("nan"), 0.98), False),
    ],
)
def test_a_figure_is_ok_from_its_least_value_on(figure: Figure, ok: bool) -> None:
    assert figure.ok is ok


def test_the_median_is_of_the_ratios_round_by_round() -> None:
    # The ratios are 2, 1, 0.5: the machine drifted, and the ratio of medians would be another.
    assert median_ratio([10, 100, 1], [5, 100, 2]) == 1.0


def test_rounds_go_there_and_back() -> None:
    calls: list[str] = []

    def measure(name: str) -> Callable[[int], float]:
        def rate(round_: int) -> float:
            calls.append(f"{name}{round_}")
            return float(round_)

        return rate

    assert rates_in_turn(3, measure("a"), measure("b")) == [[0.0, 1.0, 2.0], [0.0, 1.0, 2.0]]
    assert calls == ["a0", "b0", "b1", "a1", "a2", "b2"]


def test_table_and_json_say_the_same() -> None:
    figures = [Figure("ratio", 0.5, 0.98, note="slow"), Figure("rate", 12.34)]
    assert json.loads(as_json(figures)) == {
        "ratio": {"value": 0.5, "target": 0.98, "ok": False},
        "rate": {"value": 12.34, "target": None, "ok": True},
    }
    lines = as_table(figures).splitlines()
    assert "SHORT" in lines[1]
    assert "SHORT" not in lines[2]
