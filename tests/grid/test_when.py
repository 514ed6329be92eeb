"""`when` in a grid: what it takes, and each wrong value as one message with its line and a hint."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from tests.plan.sample import filled, planner, refused
from vsteer.cli import main
from vsteer.grid.spec import as_grid
from vsteer.plan.plan import Plan

BLOCK = "positions: [all, after_prompt]\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return filled(tmp_path)


@pytest.fixture
def plan(folder: Path) -> Callable[..., Plan]:
    return planner(folder)


def when(text: str) -> tuple[str, str]:
    return BLOCK, f"{BLOCK}    when: {text}\n"


REFUSED = [
    ("{layer: 1, above: 0}", "the setting 'vector' is missing"),
    ("{vector: v, above: 0}", "the setting 'layer' is missing"),
    ("{vector: v, layer: 1}", "expected above or below, one of them"),
    ("{vector: v, layer: 1, above: 0, below: 0.1}", "expected above or below, one of them"),
    ("{vector: w, layer: 1, above: 0}", "no vector is called 'w'"),
    ("{vector: v, layer: 6, above: 0}", "layer 6 does not exist: the model has layers 0 to 5"),
    ("{vector: v, layer: -1, above: 0}", "found -1"),
    ("{vector: v, layer: 1, token: first, above: 0}", "'first'"),
    ("{vector: v, layer: 1, above: 1.5}", "no cosine is compared with 1.5"),
    ("{vector: v, layer: 1, above: [0.1, x]}", "expected a number, found 'x'"),
    ("{vector: v, layer: 1, below: []}", "found an empty list"),
    ("{vector: v, layer: 1, abvoe: 0}", "unknown setting 'abvoe'"),
    ("harm", "'harm'"),
]


@pytest.mark.parametrize(("text", "message"), REFUSED)
def test_what_is_wrong_is_one_message_with_its_line(folder: Path, text: str, message: str) -> None:
    said = refused(folder, *when(text))
    assert said.startswith("grid.yaml, line 12: "), said
    assert message in said
    assert "\nhint: " in said
    assert len(said) <= 600


def test_a_direction_that_is_not_of_the_layer_s_stream_is_refused(folder: Path) -> None:
    np.savez(folder / "sae.npz", W=np.ones((3, 128), np.float32))
    vectors = "vectors:\n  behind: {file: sae.npz, key: W, index: 1, layer: 2, where: attention}\n"
    said = refused(folder, "vectors:\n", vectors, *when("{vector: behind, layer: 2, above: 0}"))
    assert "belongs behind a layer's attention" in said
    other = vectors.replace(", where: attention", "")
    said = refused(folder, "vectors:\n", other, *when("{vector: behind, layer: 3, above: 0}"))
    assert "'behind' has no direction at layer 3, which the grid steers or compares" in said
    assert "steers with" not in said


def test_a_grid_without_a_condition_keeps_its_ids(plan: Callable[..., Plan]) -> None:
    before = plan()
    both = plan(BLOCK, f"{BLOCK}  - {{vector: v, layers: 1, multipliers: 1, {CONDITION}}}\n")
    assert set(before.configs) <= set(both.configs)
    # two thresholds for two norms in two evaluations
    assert len(both.configs) == len(before.configs) + 8


CONDITION = "when: {vector: v, layer: 2, above: [0, 0.1]}"


def test_whatever_decides_is_in_the_id(plan: Callable[..., Plan]) -> None:
    texts = [
        "{vector: v, layer: 2, above: 0.1}",
        "{vector: v, layer: 2, above: 0.2}",
        "{vector: v, layer: 2, below: 0.1}",
        "{vector: v, layer: 3, above: 0.1}",
        "{vector: v, layer: 2, token: last, above: 0.1}",
        "{vector: made, layer: 2, above: 0.1}",
    ]
    made = ("vectors:\n", "vectors:\n  made: {file: made.safetensors}\n")
    seen: dict[str, str] = dict.fromkeys(plan(*made).configs, "none")
    for text in texts:
        steered = {id_ for id_, one in plan(*made, *when(text)).configs.items() if one.vector is not None}
        assert len(steered) == 32
        assert not steered & set(seen), text
        seen |= dict.fromkeys(steered, text)
    # written otherwise it is the same: the default token, and a list of one
    same = plan(*made, *when("{vector: v, layer: 2, token: mean, above: [0.1]}"))
    assert {seen[id_] for id_, one in same.configs.items() if one.vector is not None} == {texts[0]}


def test_the_plan_shows_what_is_compared(plan: Callable[..., Plan], folder: Path) -> None:
    plan(*when("{vector: v, layer: 2, token: last, below: [0, 0.1]}"))
    path = str(folder / "grid.yaml")
    shown = CliRunner().invoke(main, ["plan", path]).output
    assert "\nwhen v at layer 2, last below 0.0, 0.1\n" in shown
    assert "Where its condition doesn't hold, a row is the baseline's" in " ".join(shown.split())
    (model,) = json.loads(CliRunner().invoke(main, ["plan", path, "--json"]).output)["models"]
    assert model["conditions"] == ["v at layer 2, last below 0.0, 0.1"]


def test_thresholds_are_as_many_configurations(plan: Callable[..., Plan]) -> None:
    one = plan(*when("{vector: v, layer: 2, above: [0, 0.1, 0.1, 0.2]}"))
    labels = {config.axes()["positions"] for config in one.configs.values() if config.vector}
    spans = ("all", "after_prompt")
    assert labels == {f"{n} when v at layer 2, mean above {t}" for n in spans for t in (0.0, 0.1, 0.2)}
    records = [record for record in one.config_records() if record["vector"]]
    assert {record["when_threshold"] for record in records} == {0.0, 0.1, 0.2}
    assert {
        (record["when_vector"], record["when_layer"], record["when_token"], record["when_side"])
        for record in records
    } == {("v", 2, "mean", "above")}
    written = as_grid(
        {
            "version": 1,
            "name": "x",
            "model": "tiny-llama",
            "vectors": {"v": {"data": "sentiment"}},
            "grid": [
                {
                    "vector": "v",
                    "layers": 1,
                    "multipliers": 1,
                    "when": {"vector": "v", "layer": 2, "below": -0.5},
                }
            ],
            "evaluations": [{"kind": "choice", "data": "sentiment"}],
        }
    )
    assert written.grid[0].when is not None
    assert (written.grid[0].when.side, written.grid[0].when.thresholds) == ("below", (-0.5,))
