"""What earlier runs measured: windows of one kind alone, percentiles, and the times that are made of them."""

from __future__ import annotations

import json
from datetime import date
from pathlib import Path

import pytest
from click.testing import CliRunner

from tests.plan.sample import filled, planner, replaced
from tests.run import fake
from vsteer.cli import main
from vsteer.plan.budget import budget
from vsteer.plan.plan import Plan
from vsteer.plan.rates import Meter, Rate, keep, known_rates, one_rate
from vsteer.plan.times import Left, characters, times, total
from vsteer.run.start import run_grid
from vsteer.vectors.recipe import Recipe

DAY = date(2026, 11, 30)


def choice(computed: int) -> dict[str, object]:
    return {
        "kind": "choice",
        "prompt_tokens": 100,
        "cached_tokens": 100 - computed,
        "completion_tokens": 1,
    }


OPEN = {"kind": "open_ended", "prompt_tokens": 50, "cached_tokens": 50, "completion_tokens": 30}
FAILED = {"kind": "open_ended", "prompt_tokens": None, "cached_tokens": None, "completion_tokens": None}


def test_windows_of_one_kind_give_rows_and_tokens_a_second() -> None:
    meter = Meter(now=0.0)
    # two rows a second: 20 computed tokens each, and then a row a second of 30 generated ones
    for half in range(1, 81):
        meter.add(choice(20), now=half / 2)
    for second in range(41, 82):
        meter.add(OPEN, now=float(second))
    rates = meter.rates(DAY)
    expected = {"choice_rows": 2, "choice_tokens": 40, "open_ended_rows": 1, "open_ended_tokens": 30}
    assert {name: (rate.slow, rate.fast) for name, rate in rates.items()} == {
        name: pytest.approx((value, value), rel=0.11) for name, value in expected.items()
    }
    assert {rate.day for rate in rates.values()} == {"2026-11-30"}


def test_slow_and_fast_are_percentiles() -> None:
    meter = Meter(now=0.0)
    now = 0.0
    for speed in range(1, 12):
        for _ in range(5):
            now += 1
            meter.add(choice(speed), now=now)
    rate = meter.rates()["choice_tokens"]
    assert (rate.slow, rate.fast) == pytest.approx((2, 10), abs=0.5)


def test_texts_that_come_back_at_once_are_measured_from_the_last_choice_on() -> None:
    """Sixty texts of 32 tokens in one batch finish together, as those of the quickstart do."""
    meter = Meter(now=0.0)
    for second in range(1, 11):
        meter.add(choice(20), now=float(second))
    for _ in range(60):
        meter.add({**OPEN, "completion_tokens": 32}, now=14.0)
    rates = meter.rates()
    assert rates["open_ended_tokens"].slow == rates["open_ended_tokens"].fast == 60 * 32 / 4
    assert rates["open_ended_rows"].slow == 60 / 4


def test_mixed_or_short_windows_say_nothing() -> None:
    meter = Meter(now=0.0)
    for second in range(60):
        meter.add(choice(20) if second % 2 else OPEN, now=float(second))
    assert meter.rates() == {}
    meter = Meter(now=0.0)
    meter.add(choice(20), now=1.0)
    assert meter.rates() == {}
    meter.add(FAILED, now=12.0)
    assert "open_ended_tokens" not in meter.rates()


@pytest.fixture
def plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Plan:
    made = planner(filled(tmp_path))("evaluations:", "controls: {random_vectors: 1}\nevaluations:")
    monkeypatch.setattr("vsteer.plan.rates._path", lambda: tmp_path / "home" / "rates.json")
    return made


def test_a_plan_knows_the_rates_of_its_own_model_and_engine(plan: Plan, tmp_path: Path) -> None:
    assert known_rates(plan) == {}
    keep(plan, {"start": one_rate(1, 40.0), "nothing": one_rate(0, 1.0)})
    keep(plan, {"choice_rows": Rate(10.0, 20.0, "2026-11-29")})
    found = known_rates(plan)
    assert found.keys() == {"start", "choice_rows"}
    assert (found["choice_rows"].slow, found["choice_rows"].fast) == (10.0, 20.0)
    (tmp_path / "home" / "rates.json").write_text('{"x": 1')
    assert known_rates(plan) == {}


def test_a_time_has_a_part_for_everything_that_a_run_does(plan: Plan) -> None:
    size = budget(plan)
    choices, texts = size.blocks
    rows = tuple(block.rows for block in size.blocks)
    recipe = plan.sources["v"].made_from
    assert isinstance(recipe, Recipe)
    # four items: each question twice, behind it answers of three characters
    questions = [item.question for item in recipe.data.items]  # type: ignore[union-attr]
    assert characters(recipe) == sum(2 * len(question) + 6 for question in questions)
    rates = {
        "start": Rate(1 / 40, 1 / 40, "2026-11-30"),
        "characters": Rate(100.0, 100.0, "2026-11-28"),
        "choice_rows": Rate(50.0, 100.0, "2026-11-30"),
        "choice_tokens": Rate(1000.0, 2000.0, "2026-11-30"),
        "open_ended_rows": Rate(1.0, 2.0, "2026-11-30"),
        "open_ended_tokens": Rate(5.0, 10.0, "2026-11-30"),
        "coherence_tokens": Rate(500.0, 500.0, "2026-11-30"),
        "statistics_rows": Rate(1000.0, 1000.0, "2026-11-30"),
    }
    parts = {part.name: part for part in times(plan, size, rates, Left(rows, (recipe,)))}
    assert parts["engine start"].seconds == pytest.approx((40, 40))
    assert parts["extraction"].seconds == pytest.approx((characters(recipe) / 100,) * 2)
    assert parts["extraction"].day == "2026-11-28"
    by_rows, by_tokens = choices.rows / 50, choices.computed_tokens / 1000
    assert parts["choices"].seconds == pytest.approx((min(by_rows, by_tokens) / 2, max(by_rows, by_tokens)))
    # seven tokens a text: 1.4 s by tokens and 1 s by rows at the slowest
    assert parts["texts"].seconds == pytest.approx((texts.rows / 2, 1.4 * texts.rows))
    assert parts["perplexities"].seconds == pytest.approx((size.coherence_tokens / 500,) * 2)
    assert parts["statistics"].seconds == pytest.approx((size.rows / 1000,) * 2)
    whole = total(list(parts.values()))
    assert whole is not None
    assert whole[1] == pytest.approx(sum(part.seconds[1] for part in parts.values() if part.seconds))
    # half of the texts stand, no choice is left, and the vector is there
    half = {part.name: part for part in times(plan, size, rates, Left((0, texts.rows // 2)))}
    assert half.keys() == {"engine start", "texts", "perplexities", "statistics"}
    assert half["texts"].seconds == pytest.approx((texts.rows // 2 / 2, 1.4 * (texts.rows // 2)))
    assert times(plan, size, rates, Left((0, 0))) == []
    assert {part.seconds for part in times(plan, size, {}, Left(rows))} == {None}


def test_the_command_says_what_stands_and_what_is_not_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = filled(tmp_path) / "grid.yaml"
    plan = planner(tmp_path)("[raw, unit]", "raw")
    run_grid(path, load=fake.load())
    monkeypatch.setattr("vsteer.plan.rates._path", lambda: tmp_path / "home" / "rates.json")

    def shown() -> str:
        return CliRunner().invoke(main, ["plan", str(path)]).output

    assert "time            nothing is left to compute\n" in shown()
    assert f"rows            {plan.row_count}, of which {plan.row_count} stand\n" in shown()
    # the second block's rows are new
    path.write_text(replaced("[raw, unit]", "raw", "max_tokens: 7", "max_tokens: 8"))
    texts = plan.blocks[1].rows
    assert f"of which {plan.row_count - texts} stand\n" in shown()
    rates = {
        "start": Rate(1 / 40, 1 / 40, "2026-11-29"),
        "open_ended_rows": Rate(texts / 300, texts / 150, "2026-11-30"),
    }
    monkeypatch.setattr("vsteer.plan.rates.known_rates", lambda plan: rates)
    lines = [
        "time            at least 3.2 min to 5.7 min",
        "  measured      here, on 2026-11-29 to 2026-11-30",
        "  engine start  40 s",
        "  texts         2.5 min to 5.0 min",
        "  perplexities  unknown: not measured here yet",
        "  statistics    unknown: not measured here yet",
    ]
    assert "\n".join(lines) in shown()
    monkeypatch.setattr("vsteer.plan.rates.known_rates", lambda plan: {})
    made = json.loads(CliRunner().invoke(main, ["plan", str(path), "--json"]).output)["models"][0]
    assert (made["seconds"], made["standing"]) == (None, plan.row_count - texts)
    assert [part["name"] for part in made["time"]] == ["engine start", "texts", "perplexities", "statistics"]
