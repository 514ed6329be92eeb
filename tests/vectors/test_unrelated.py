"""Unrelated vectors: other data in the form of a vector's own, and the directions that a run makes of it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.fake_engine import FakeEngine
from tests.run import fake
from vsteer.datasets.builtin import CONTRASTS, contrast_path
from vsteer.datasets.items import ItemSet, UnpairedSets
from vsteer.grid.spec import as_grid
from vsteer.plan.plan import make_plans
from vsteer.protocol import Prompt, Request
from vsteer.run.start import run_grid
from vsteer.vectors.files import load
from vsteer.vectors.recipe import make_recipe
from vsteer.vectors.unrelated import made_alike

PAIRS = [{"prompt": f"Question {n}?", "positive": f"Splendid {n}", "negative": "Terrible"} for n in range(4)]


def lines_of(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("name", CONTRASTS)
def test_beside_lettered_data_the_answers_become_choices(name: str) -> None:
    """As CAA writes them, each of the two letters matching half of the pairs and in no simple pattern."""
    made = made_alike(make_recipe("refusal"), name, contrast_path(name))
    assert isinstance(made.data, ItemSet)
    assert (made.method, made.token) == ("mean_diff", "answer")
    for item, line in zip(made.data.items, lines_of(contrast_path(name)), strict=True):
        texts = {"(A)": line["positive"], "(B)": line["negative"]}
        if item.positive == "(B)":
            texts = {"(A)": line["negative"], "(B)": line["positive"]}
        listed = "\n".join(f"{letter} {text}" for letter, text in texts.items())
        assert item.question == f"{line['prompt']}\n\nChoices:\n{listed}"
        assert {item.positive, item.negative} == {"(A)", "(B)"}
    letters = [item.positive for item in made.data.items]
    assert Counter(letters) == {"(A)": 6, "(B)": 6}
    assert any(a == b for a, b in pairwise(letters))


def test_beside_unpaired_sets_the_answers_become_two_sets() -> None:
    made = made_alike(make_recipe("refusal", method="dim"), "sea", contrast_path("sea"))
    assert isinstance(made.data, UnpairedSets)
    lines = lines_of(contrast_path("sea"))
    assert [prompt.text for prompt in made.data.positive.prompts] == [line["positive"] for line in lines]
    assert [prompt.text for prompt in made.data.negative.prompts] == [line["negative"] for line in lines]


def test_forms_are_told_apart_and_plain_pairs_are_what_they_always_were() -> None:
    """A recipe's identity is what it was before there were forms, where the pairs stay as they are."""
    (plain, letters, answers) = (
        made_alike(make_recipe(data, method=method, token=token), "sea", contrast_path("sea")).identity()
        for data, method, token in (
            ("sentiment", "mean_diff", "last"),
            ("refusal", "mean_diff", "answer"),
            ("refusal", "dim", "last"),
        )
    )
    assert plain == make_recipe(str(contrast_path("sea"))).identity()
    assert "form" not in plain
    assert (letters["form"], answers["form"]) == ("letters", "answers")


def grid_of(folder: Path, **controls: Any) -> dict[str, Any]:
    (folder / "pairs.jsonl").write_text("\n".join(map(json.dumps, PAIRS)))
    (folder / "other.jsonl").write_text("\n".join(map(json.dumps, PAIRS[:2])))
    return {
        "version": 1,
        "name": "try",
        "model": {"id": "tiny-llama", "dtype": "float32"},
        "vectors": {"v": {"data": "pairs.jsonl", "token": "last", "norm": ["raw", {"residual": 0.1}]}},
        "grid": [{"vector": "v", "layers": [0, 3], "multipliers": 1}],
        "controls": controls,
        "evaluations": [{"kind": "choice", "data": "sentiment", "limit": 2}],
    }


def difference(engine: FakeEngine, texts: Sequence[dict[str, str]]) -> Any:
    """The mean difference at the last token, text by text through the same engine."""
    sums = {"positive": 0.0, "negative": 0.0}
    for line in texts:
        for side in sums:
            chat = [{"role": "user", "content": line["prompt"]}]
            header = engine.tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
            ids = engine.tokenizer(header + line[side], add_special_tokens=False)["input_ids"]
            (result,) = engine.run([Request("m", Prompt.plain(ids), capture=(len(ids) - 1,))])
            assert result.captured is not None
            sums[side] = sums[side] + result.captured[0].astype(np.float64)
    return (sums["positive"] - sums["negative"]) / len(texts)


def test_a_run_makes_them_at_the_vectors_length(tmp_path: Path) -> None:
    outcome = run_grid(as_grid(grid_of(tmp_path, unrelated=2), tmp_path), load=fake.load())
    folder = outcome.folder / "vectors"
    (plan,) = make_plans(as_grid(grid_of(tmp_path, unrelated=2), tmp_path))
    engine = fake.fake_engine(plan)
    for norm in ("raw", "residual-0.1"):
        (own,) = folder.glob(f"v-{norm}-[0-9a-f]*.safetensors")
        for number, name in enumerate(CONTRASTS[:2]):
            (made,) = folder.glob(f"v-{norm}-unrelated-{number}-*.safetensors")
            expected = difference(engine, lines_of(contrast_path(name)))
            for layer, direction in load(own).directions.items():
                found = load(made).directions[layer].astype(np.float64)
                length = np.linalg.norm(direction)
                assert np.linalg.norm(found) == pytest.approx(length, rel=1e-5)
                unit = expected[layer] / np.linalg.norm(expected[layer])
                np.testing.assert_allclose(found / length, unit, atol=1e-5)
    # controls have no diagnostics of their own, so that the report shows the vector's alone
    assert not list(folder.glob("unrelated-*.parquet"))
    assert len(list(folder.glob("unrelated-*-extracted-*.safetensors"))) == 2


def test_the_same_command_extracts_nothing_twice(tmp_path: Path) -> None:
    grid = grid_of(tmp_path, unrelated=["other.jsonl", "language"], random_vectors=1)
    first = run_grid(as_grid(grid, tmp_path), load=fake.load())
    made = {path.name: path.stat().st_mtime_ns for path in (first.folder / "vectors").glob("*.safetensors")}
    # the raw vector and two others; of each norm the vector, a random one and two unrelated ones
    assert len(made) == 1 + 2 + 2 * (1 + 1 + 2)
    grid["grid"][0]["multipliers"] = [1, 2]
    run_grid(as_grid(grid, tmp_path), load=fake.load())
    after = {path.name: path.stat().st_mtime_ns for path in (first.folder / "vectors").glob("*.safetensors")}
    assert after == made
