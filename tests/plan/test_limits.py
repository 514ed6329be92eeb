"""Grids that come to too much: what can be counted is not made, and what is too much is said at once."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from itertools import product
from pathlib import Path

import pytest

from tests.plan.sample import filled, planner, refused
from vsteer.plan.budget import budget
from vsteer.plan.plan import Plan

EXCLUDE = "evaluations:", "exclude: [{}]\nevaluations:"
# 10,000 of them
FINE = "multipliers: {from: 0.001, to: 10, step: 0.001}"
AXES = "layers: [1, 4]\n    multipliers: [-1, 0, 1]"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return filled(tmp_path_factory.mktemp("limits"))


@pytest.fixture(scope="module")
def plan(folder: Path) -> Callable[..., Plan]:
    found = planner(folder)
    found()
    return found


def excluding(*entries: str) -> tuple[str, str]:
    return EXCLUDE[0], EXCLUDE[1].format(", ".join(entries))


def quickly(attempt: Callable[[], object]) -> None:
    began = time.process_time()
    attempt()
    assert time.process_time() - began < 10


def test_samples_are_counted_not_made(plan: Callable[..., Plan]) -> None:
    """Each figure of a million samples is that of one and of two, drawn out in a straight line."""

    def counts(samples: int) -> list[int]:
        made = plan("max_tokens: 7", f"max_tokens: 7, temperature: 1, samples: {samples}")
        block = budget(made).blocks[1]
        return [block.rows, block.requests, block.prompt_tokens, block.computed_tokens, block.output_tokens]

    began = time.process_time()
    one, two, million = counts(1), counts(2), counts(1_000_000)
    assert million == [a + (b - a) * 999_999 for a, b in zip(one, two, strict=True)]
    # two open questions, and 2 norms x 2 layers x 2 multipliers x 2 positions beside the baseline
    assert million[0] == 1_000_000 * 2 * (1 + 2**4)
    assert time.process_time() - began < 10


@pytest.mark.parametrize(
    ("pairs", "line", "message"),
    [
        (
            (AXES, f"layers: all\n    {FINE}", "[raw, unit]", "[raw, unit, {residual: 0.1}]"),
            7,
            "360,000 configurations of choice:items, and at most 200,000 are planned",
        ),
        (
            (
                *(AXES, f"layers: all\n    {FINE}"),
                *("[raw, unit]", f"[{', '.join(f'{{residual: {n + 1}}}' for n in range(834))}]"),
                *excluding("{vector: v}"),
            ),
            8,
            # 834 norms x 6 layers x 10,000 multipliers x 2 positions, for each of two evaluations
            ("the grid lists 200,160,000 configurations, and at most 5,000,000 are looked through; "
            "this block lists 100,080,000 for an evaluation"),
        ),
        (
            ("evaluations:", "controls: {random_vectors: 1000, shuffled_labels: 1000}\nevaluations:", AXES,
             "layers: all\n    multipliers: {from: 1, to: 9}"),
            7,
            "432,216 configurations of choice:items",
        ),
        (
            (
                *("max_tokens: 7", "max_tokens: 7, temperature: 1, samples: 1000000"),
                *(AXES, "layers: all\n    multipliers: {from: 0.1, to: 5, step: 0.1}"),
            ),
            14,
            # 2 norms x 6 layers x 50 multipliers x 2 positions beside the baseline
            "and at most 1,000,000,000 are planned; open_ended:open has 1,201 configurations, 2 prompts",
        ),
    ],
    ids=range(4),
)  # fmt: skip
def test_what_is_too_much_is_said_before_it_is_made(
    folder: Path, plan: Callable[..., Plan], pairs: tuple[str, ...], line: int, message: str
) -> None:
    def attempt() -> None:
        refusal = refused(folder, *pairs)
        assert f"grid.yaml, line {line}: " in refusal
        assert message in refusal
        assert len(refusal) <= 600

    quickly(attempt)


def test_an_exclusion_of_a_million_is_planned(plan: Callable[..., Plan]) -> None:
    axes = AXES, f"layers: all\n    {FINE}"
    norms = "[raw, unit]", "[raw, unit, caa]}\n  w: {data: words.jsonl, norm: caa"
    quickly(lambda: plan(*axes, *norms, *excluding("{vector: v}")))
    left = "{multipliers: {from: 0.001, to: 9.999, step: 0.001}}"
    assert len(plan(*axes, *excluding(left)).blocks[0].configs) == 1 + 2 * 6 * 2
    # two exclusions for each of two evaluations, the first of which takes what both name
    both = plan(*axes, *excluding(left, "{layers: 1}"))
    assert both.excluded == (2 * 2 * 6 * 9_999 * 2, 2 * 2 * 1 * 1 * 2)


def test_exclusions_leave_what_plain_loops_leave(plan: Callable[..., Plan]) -> None:
    layers, multipliers, places = [0, 1, 2, 5], [-2.0, -1.0, 0.5, 3.0], ["all", "after_prompt", (0, 2)]
    made = plan(
        *(AXES, f"layers: {layers}\n    multipliers: {multipliers}"),
        *("[all, after_prompt]", "[all, after_prompt, [0, 2]]"),
        *excluding(
            "{norm: unit, layers: [1, 2], positions: all}",
            "{multipliers: [-2, 3], positions: [[0, 2], all], kind: choice}",
            "{evaluation: 'open_ended:open', layers: {depth: [0.5, 1]}}",
            "{multipliers: 0.5, layers: 0, norm: raw}",
        ),
    )
    counts = [0, 0, 0, 0]
    for block, kind in zip(made.blocks, ("choice", "open_ended"), strict=True):
        want = []
        for norm, layer, m, where in product(["raw", "unit"], layers, multipliers, places):
            entries = [
                norm == "unit" and layer in (1, 2) and where == "all",
                m in (-2, 3) and where in ((0, 2), "all") and kind == "choice",
                kind == "open_ended" and layer >= 2,  # the third of six layers ends at half the depth
                m == 0.5 and layer == 0 and norm == "raw",
            ]
            if any(entries):
                counts[entries.index(True)] += 1
            else:
                want.append((norm, layer, m, where))
        found = [
            (config.vector.norm, config.layers[0], config.multiplier, config.positions)
            for config in block.configs
            if config.vector
        ]
        assert found == want
    assert made.excluded == tuple(counts)
    assert all(counts)


def test_thousands_of_positions_are_compared_once_each(plan: Callable[..., Plan]) -> None:
    places = [[0, n + 1] for n in range(500)]
    began = time.process_time()
    made = plan("[all, after_prompt]", json.dumps(places), "layers: [1, 4]", "layers: 1")
    assert time.process_time() - began < 10
    shortest = min(len(rendered.prompt.token_ids) for rendered in made.blocks[0].prompts)
    # a question's tokens end somewhere, and spans that end behind the longest are one
    longest = max(len(rendered.prompt.token_ids) for rendered in made.blocks[0].prompts)
    assert shortest <= longest < 500
    alike = [note for note in made.notes if note.startswith("choice:items: positions")]
    assert len(alike) == 500 - longest
    assert f"positions (0, {longest}) and (0, {longest + 1}) steer the same tokens" in alike[0]


def test_an_answer_of_a_hundred_kilobytes_is_refused(folder: Path, plan: Callable[..., Plan]) -> None:
    """Each of its tokens would be a request with all tokens before it: gigabytes, and the square beyond."""
    words = {
        "question": "Tea?",
        "answer_matching_behavior": "yes " * 25_000,
        "answer_not_matching_behavior": "No",
    }
    (folder / "long.jsonl").write_text(json.dumps(words))

    def attempt() -> None:
        refusal = refused(folder, "choice, data: items.json", "choice, data: long.jsonl")
        assert "line 13: the item on line 1 of choice:long can't be asked: an answer has " in refusal
        assert "and at most 1,000 are scored\nhint: shorten the answer" in refusal

    quickly(attempt)
