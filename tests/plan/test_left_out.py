"""What a plan leaves out or merges: with what it has, it is every combination that the grid writes."""

import json
import random
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner
from rich.console import Console

from tests.plan.sample import GRID, filled, planner
from tests.run import fake
from vsteer.cli import main
from vsteer.evaluations.kinds import KINDS
from vsteer.grid.spec import as_grid, read_grid
from vsteer.models import resolve
from vsteer.plan.budget import budget
from vsteer.plan.left_out import described
from vsteer.plan.plan import Plan, make_plans
from vsteer.run.start import run_grid

CAA = ("choice, data", "choice, caa_compat: true, data")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return filled(tmp_path)


@pytest.fixture
def plan(folder: Path) -> Callable[..., Plan]:
    return planner(folder)


def combinations(grid: dict[str, Any]) -> Iterator[tuple[Any, ...]]:
    """Everything that a grid writes, combined by plain loops; values as written, each once."""

    def listed(value: Any) -> list[Any]:
        return list(dict.fromkeys(map(str, value))) if isinstance(value, list) else [value]

    controls = grid.get("controls", {})
    systems = [text for text in controls.get("system_prompts", {}).values() if text]
    beside = ["itself"] + ["control"] * (
        controls.get("random_vectors", 0) + controls.get("shuffled_labels", 0) + controls.get("unrelated", 0)
    )
    for evaluation in grid["evaluations"]:
        for _ in listed(evaluation["data"]):
            yield from systems
            for system in listed(evaluation.get("system", "none")):
                yield (system, "unsteered")
                for block in grid["grid"]:
                    for vector in listed(block.get("vector", block.get("vectors"))):
                        yield from product(
                            [system],
                            [vector],
                            listed(grid["vectors"][vector].get("norm", "raw")),
                            listed(block["layers"]),
                            listed(block.get("multipliers", "none")),
                            listed(block.get("positions", "all")),
                            listed(block.get("when", {}).get("above", "none")),
                            beside,
                        )


GRIDS: dict[str, dict[str, Any]] = {
    "caa": {"evaluations": [{"kind": "choice", "caa_compat": True, "data": "items.json"}]},
    "everything": {
        "vectors": {
            "v": {"data": "items.json", "norm": ["raw", "unit"]},
            "w": {"data": "words.jsonl", "norm": ["unit", {"residual": 0.1}]},
        },
        "grid": [
            {
                "vectors": ["v", "w"],
                "layers": [1, 4],
                "multipliers": [-1, 0, 1],
                "positions": ["all", "after_user_turn"],
            },
            {
                "vector": "v",
                "layers": [4, 5],
                "multipliers": [1.0, 2, 2, 0],
                "positions": ["all", "after_user_turn"],
                "when": {"vector": "w", "layer": 2, "above": [0, 0.1, 0.2]},
            },
            {"vector": "v", "layers": [0, 1], "operation": "ablate", "positions": ["all", "after_user_turn"]},
        ],
        "controls": {
            "random_vectors": 2,
            "shuffled_labels": 1,
            "unrelated": 2,
            "system_prompts": {"positive": "Yes.", "negative": "No."},
        },
        "evaluations": [
            {"kind": "choice", "data": "items.json", "system": ["Yes.", "So."], "vectors": "v"},
            {"kind": "choice", "name": "caa", "data": "words.json", "caa_compat": True},
            {"kind": "refusal_tokens", "data": "other.json", "tokens": ["I", "N"]},
            {"kind": "open_ended", "data": ["open.json", "other.json"], "max_tokens": 3},
        ],
        "exclude": [
            {"kind": "open_ended", "layers": 4},
            {"vector": "w", "multipliers": -1},
            {"control": "random", "vector": "v", "layers": 1},
        ],
    },
}


def written(folder: Path, **changed: Any) -> dict[str, Any]:
    items = json.loads((folder / "items.json").read_text())
    (folder / "words.json").write_text(
        json.dumps([{**item, "question": "And: " + item["question"]} for item in items])
    )
    (folder / "other.json").write_text(json.dumps(["Where?", "When?"]))
    grid: dict[str, Any] = yaml.safe_load(GRID) | changed
    return grid


@pytest.mark.parametrize("name", GRIDS)
def test_what_is_planned_and_what_is_left_out_are_the_whole_product(folder: Path, name: str) -> None:
    resolve("tiny-llama")
    grid = written(folder, **GRIDS[name])
    if name == "caa":
        grid["grid"][0]["positions"] = ["after_user_turn", "all"]
    (one,) = make_plans(as_grid(grid, folder))
    left_out = sum(part.configurations for part in one.left_out)
    assert left_out > 0
    assert len(one.configs) + left_out == len(list(combinations(grid))) == budget(one).product


def test_any_grid_is_accounted_for(folder: Path) -> None:
    resolve("tiny-llama")
    draw = random.Random(0)
    whole = GRIDS["everything"]

    def some(values: list[Any]) -> list[Any]:
        return draw.sample(values, draw.randint(1, len(values)))

    for _ in range(12):
        blocks = [
            {
                "vectors": some(["v", "w"]),
                "layers": some([0, 1, 2]),
                "multipliers": some([-1, 0, 0.5, 1]),
                "positions": [*some(["all", "after_prompt", [0, 3]]), "after_user_turn"],
            }
            for _ in range(draw.randint(1, 3))
        ]
        grid = written(folder, vectors=whole["vectors"], grid=blocks, evaluations=some(whole["evaluations"]))
        grid["controls"] = {"random_vectors": draw.randint(0, 2), "system_prompts": {"positive": "Yes."}}
        (one,) = make_plans(as_grid(grid, folder))
        assert budget(one).product == len(list(combinations(grid)))


def test_the_positions_that_caa_leaves_out_are_said(folder: Path, plan: Callable[..., Plan]) -> None:
    """2 norms, 2 layers, 3 multipliers, 2 positions: 24, of which 4 are multiplier 0 at one position."""
    one = plan(
        *CAA,
        "  - {kind: open_ended, data: open.json, max_tokens: 7}\n",
        "",
        "[all, after_prompt]",
        "[after_user_turn, all]",
    )
    assert len(one.configs) == 9
    lines = [
        "12 left out: caa_compat steers after_user_turn alone (choice:items)",
        "4 merged: multiplier 0 is the unsteered baseline (choice:items)",
    ]
    assert list(described(one.left_out)) == lines
    shown = CliRunner().invoke(main, ["plan", str(folder / "grid.yaml")]).output
    assert "configurations  9 (1 unsteered, 0 controls) of 25\n" in shown
    assert all(line in " ".join(shown.split()) for line in lines)
    spoken = json.loads(CliRunner().invoke(main, ["plan", str(folder / "grid.yaml"), "--json"]).output)
    assert spoken["models"][0]["product"] == 25
    assert sum(part["configurations"] for part in spoken["models"][0]["left_out"]) == 16


def test_a_run_says_it_at_its_start(folder: Path, plan: Callable[..., Plan]) -> None:
    plan()
    console = Console(file=(folder / "said").open("w"), width=200)
    run_grid(folder / "grid.yaml", load=fake.load(), console=console)
    said = (folder / "said").read_text()
    assert "16 merged: multiplier 0 is the unsteered baseline (choice:items and 1 more)" in said
    assert "not asked: 1 of 3 questions, which stand in the data again and are asked once" in said


def test_positions_that_are_the_same_tokens_are_said(plan: Callable[..., Plan]) -> None:
    # one token is scored, and no prefix is forced behind the header; a text of seven tokens goes on
    last = "[all, after_prompt, last_prompt_token]"
    one = plan(
        "[all, after_prompt]",
        last,
        "choice, data: items.json",
        "choice, data: items.json, limit: 1, answer_prefix: x",
    )
    alike = [note for note in one.notes if "same tokens" in note]
    assert alike == []
    one = plan(
        "[all, after_prompt]",
        last,
        "{kind: choice, data: items.json}",
        "{kind: refusal_tokens, data: open.json, tokens: [I, N]}",
    )
    (alike_note,) = [note for note in one.notes if "same tokens" in note]
    assert alike_note.startswith("refusal_tokens:open: positions after_prompt and last_prompt_token steer")


def test_a_value_that_stands_twice_and_a_vector_that_nothing_uses_are_said(folder: Path) -> None:
    resolve("tiny-llama")
    text = GRID.replace("[-1, 0, 1]", "[-1, 1, 1.0]").replace(
        "grid:\n", "  w: {file: made.safetensors}\ngrid:\n"
    )
    (folder / "grid.yaml").write_text(text)
    (one,) = make_plans(read_grid(folder / "grid.yaml"))
    assert one.notes[:2] == (
        "line 11: multipliers repeats 1 of its values, and each counts once",
        "line 7: no block of the grid steers with the vector 'w'",
    )


@pytest.mark.parametrize(
    "settings", ["limit: 2", "limit: 2, letter_orders: original", "letter_orders: original"]
)
def test_every_question_of_a_file_is_asked_or_counted(folder: Path, settings: str) -> None:
    items = json.loads((folder / "items.json").read_text())
    (folder / "items.json").write_text(json.dumps([*items, items[0]]))
    found = (
        KINDS["choice"]
        .model_validate({"kind": "choice", "data": "items.json", **yaml.safe_load(f"{{{settings}}}")})
        .questions(folder / "items.json")
    )
    # five lettered items, each in two orders
    assert len(found.questions) + sum(found.left_out.values()) == 10
