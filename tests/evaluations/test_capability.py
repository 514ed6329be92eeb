"""Capability: MMLU in both its forms, from the file to the cost of a configuration."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from pathlib import Path

import pytest

from tests.results.made_up import ask
from tests.run import fake
from vsteer.evaluations.choice import ChoiceEvaluation
from vsteer.grid.spec import read_grid
from vsteer.plan.plan import make_plans
from vsteer.results.views import connect_runs
from vsteer.run.start import run_grid

GRID = """\
version: 1
name: try
model: {id: tiny-llama, dtype: float32}
vectors: {v: {data: sentiment, token: last}}
grid: [{vector: v, layers: [1, 4], multipliers: [-1, 1]}]
evaluations:
  - {kind: choice, name: mmlu, data: [caa.json, usual.jsonl], letter_orders: ORDERS}
  - {kind: choice, data: sentiment, limit: 2}
"""
QUESTIONS = 12


def written(folder: Path, orders: str) -> Path:
    """As CAA publishes MMLU, two choices an item, and in the usual form with four."""
    caa = [
        {
            "prompt": f"What is {n} + 1?\n\nChoices:\n(A) {n + 1}\n(B) {n + 2}",
            "correct": "(A)",
            "incorrect": "(B)",
            "correct_full_text": str(n + 1),
            "category": "arithmetic",
        }
        for n in range(QUESTIONS)
    ]
    usual = [
        {
            "question": f"What is {n} - 1?",
            "choices": [str(n + k) for k in (-3, -2, -1, 0)],
            "answer": 2,
            "subject": "arithmetic",
        }
        for n in range(QUESTIONS)
    ]
    (folder / "caa.json").write_text(json.dumps(caa))
    (folder / "usual.jsonl").write_text("\n".join(map(json.dumps, usual)))
    (folder / "grid.yaml").write_text(GRID.replace("ORDERS", orders))
    return folder / "grid.yaml"


def test_both_forms_are_asked_with_all_their_letters(tmp_path: Path) -> None:
    (plan,) = make_plans(read_grid(written(tmp_path, "both")))
    by_name = {block.evaluation: block for block in plan.blocks}
    for name, labels, right in (
        ("mmlu:caa", "AB", ["A", "B"]),
        ("mmlu:usual", "ABCD", ["C", "B"]),
    ):
        block = by_name[name]
        evaluation, prompts = block.spec.evaluation, block.prompts
        assert isinstance(evaluation, ChoiceEvaluation)
        assert len(prompts) == 2 * QUESTIONS
        assert {evaluation.labels(one) for one in prompts} == {tuple(labels)}
        assert {one.item.category for one in prompts} == {"arithmetic"}
        # as it stands, and with its choices in the other order
        assert [labels[evaluation.matching(one)] for one in prompts[:2]] == right
    first = by_name["mmlu:usual"].prompts[0]
    assert first.question == "What is 0 - 1?\n\nChoices:\n(A) -3\n(B) -2\n(C) -1\n(D) 0"


@pytest.mark.parametrize("orders", ["original", "both"])
def test_the_cost_is_what_the_rows_say_by_hand(tmp_path: Path, orders: str) -> None:
    folder = run_grid(written(tmp_path, orders), load=fake.load()).folder
    rows = connect_runs([folder]).execute(
        "select r.evaluation, r.layer, r.multiplier, coalesce(nullif(p.swapped_from, ''), p.item_id),"
        " r.letter_order, choice_logprobs, r.matching from rows r join prompts p using (prompt_id)"
        " where r.status = 'ok' and r.control = '' and r.evaluation like 'mmlu%'"
    )
    right: dict[tuple[str, int | None, float], dict[tuple[str, str], bool]] = defaultdict(dict)
    for evaluation, layer, multiplier, item, order, logprobs, matching in rows.fetchall():
        best = max(range(len(logprobs)), key=logprobs.__getitem__)
        right[evaluation, layer, multiplier][item, order] = best == matching
    found = {
        (row["capability"], *row["layers"], row["multiplier"]): row for row in ask("capability_cost", folder)
    }
    assert len(found) == 2 * 4
    for (evaluation, layer, multiplier), hits in right.items():
        if layer is None:
            continue
        before = right[evaluation, None, 0.0]
        # paired, and an item's two orders are one item
        items = sorted({item for item, order in hits.keys() & before.keys()})
        both = [[key for key in hits.keys() & before.keys() if key[0] == item] for item in items]
        cost = [sum(before[key] - hits[key] for key in keys) / len(keys) for keys in both]
        mean = sum(cost) / len(cost)
        variance = sum((one - mean) ** 2 for one in cost) / (len(cost) - 1)
        row = found[evaluation, layer, multiplier]
        assert row["items"] == len(items)
        assert row["cost"] == pytest.approx(mean, abs=1e-12)
        assert row["cost_se"] == pytest.approx(math.sqrt(variance / len(cost)))
        accuracy = sum(sum(hits[key] for key in keys) / len(keys) for keys in both) / len(both)
        assert row["accuracy"] == pytest.approx(accuracy)
        assert row["baseline_accuracy"] == pytest.approx(accuracy + mean)
