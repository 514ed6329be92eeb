"""What earlier runs measured: windows of one kind alone, percentiles, and what is said of too little."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.plan.sample import filled, planner
from vsteer.plan.rates import Meter, keep, known_rates


def choice(computed: int) -> dict[str, object]:
    return {
        "kind": "choice",
        "prompt_tokens": 100,
        "cached_tokens": 100 - computed,
        "completion_tokens": 1,
    }


OPEN = {"kind": "open_ended", "prompt_tokens": 50, "cached_tokens": 50, "completion_tokens": 30}
FAILED = {"kind": "open_ended", "prompt_tokens": None, "cached_tokens": None, "completion_tokens": None}


def test_windows_of_one_kind_give_tokens_a_second() -> None:
    meter = Meter()
    # a row a second: 20 computed tokens each, and then 30 generated ones
    for second in range(41):
        meter.add(choice(20), now=float(second))
    for second in range(41, 82):
        meter.add(OPEN, now=float(second))
    rates = meter.rates()
    assert rates["prompt"] == pytest.approx((20, 20))
    assert rates["output"] == pytest.approx((30, 30))


def test_slow_and_fast_are_percentiles() -> None:
    meter = Meter()
    now = 0.0
    for speed in range(1, 12):
        for _ in range(6 if speed == 1 else 5):
            meter.add(choice(speed), now=now)
            now += 1
    slow, fast = meter.rates()["prompt"]
    assert (slow, fast) == pytest.approx((2, 10), abs=0.5)


def test_mixed_or_few_windows_say_nothing() -> None:
    meter = Meter()
    for second in range(60):
        meter.add(choice(20) if second % 2 else OPEN, now=float(second))
    assert meter.rates() == {}
    meter = Meter()
    for second in range(11):
        meter.add(choice(20), now=float(second))
    assert meter.rates() == {}
    meter.add(FAILED, now=12.0)


def test_a_plan_knows_the_rates_of_its_own_model_and_engine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan_of = planner(filled(tmp_path))
    plan = plan_of()
    monkeypatch.setenv("VSTEER_HOME", str(tmp_path / "home"))
    assert known_rates(plan) is None
    meter = Meter()
    for second in range(41):
        meter.add(choice(20), now=float(second))
    keep(plan, meter)
    # it also generates, and nothing was measured of that
    assert known_rates(plan) is None
    for second in range(41, 82):
        meter.add(OPEN, now=float(second))
    keep(plan, meter)
    found = known_rates(plan)
    assert found is not None
    assert found.prompt == pytest.approx((20, 20))
    assert found.output == pytest.approx((30, 30))
    assert known_rates(plan_of("dtype: float32", "dtype: bfloat16")) is None
