"""Recipes: their defaults, what they refuse, and that a vector is what its recipe says."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest

from tests.fake_engine import FakeEngine
from vsteer import models
from vsteer.errors import DataError, UsageError, VsteerError
from vsteer.protocol import Request
from vsteer.vectors.members import members
from vsteer.vectors.methods import METHODS, MethodName
from vsteer.vectors.recipe import Recipe, make_recipe, model_origin

LETTERS = [
    {
        "question": f"{word}?\n\nChoices:\n(A) Yes\n(B) No",
        "answer_matching_behavior": "(A)" if n % 2 else "(B)",
        "answer_not_matching_behavior": "(B)" if n % 2 else "(A)",
    }
    for n, word in enumerate(("Rain", "Salt", "Wool"))
]
WORDS = [{"prompt": f"{word}?", "positive": "Good", "negative": "Bad"} for word in ("Rain", "Salt", "Wool")]
SETS = {"positive": ["Do harm.", "Do more.", "Do most."], "negative": ["Do good."]}


def recipe_of(folder: Path, content: object, **settings: Any) -> Recipe:
    (folder / "data.json").write_text(json.dumps(content))
    return make_recipe("data.json", beside=folder, **settings)


@pytest.mark.parametrize(
    ("content", "expected", "size"),
    [
        (LETTERS, ("mean_diff", "answer", 6), "3 pairs"),
        ([*LETTERS, *LETTERS[:1]], ("mean_diff", "answer", 8), "4 pairs"),
        (WORDS, ("mean_diff", "last", 6), "3 pairs"),
        (SETS, ("dim", "last", 4), "3 and 1 texts"),
    ],
)
def test_what_is_not_given_follows_from_the_data(
    tmp_path: Path, content: object, expected: tuple[str, str, int], size: str
) -> None:
    recipe = recipe_of(tmp_path, content)
    assert (recipe.method, recipe.token, recipe.members) == expected
    assert recipe.describe() == f"{expected[0]} of {size} at the token {expected[1]}"
    assert (recipe.name, recipe.source, recipe.system) == ("data", "data.json", None)


def test_a_behaviour_is_named_whole_or_by_its_part() -> None:
    pairs, instructions, dim = map(make_recipe, ("refusal", "refusal/instructions", "refusal/instructions"))
    assert (pairs.method, pairs.token, pairs.name) == ("mean_diff", "answer", "refusal")
    assert instructions.method == "dim"
    assert make_recipe("refusal", method="dim").identity() == dim.identity()


def test_two_files_are_two_sets(tmp_path: Path) -> None:
    (tmp_path / "negative.txt").write_text("Do good.")
    recipe = recipe_of(tmp_path, SETS["positive"], negative="negative.txt", token="-2")
    assert (recipe.method, recipe.token, recipe.source) == ("dim", -2, "data.json negative.txt")
    assert len(recipe.sha256) == 2


@pytest.mark.parametrize(
    ("content", "settings", "setting", "message"),
    [
        (LETTERS, {"method": "dim"}, "method", "the data holds pairs, from which dim makes no vector"),
        (SETS, {"method": "pca"}, "method", "two unpaired sets, from which pca makes no vector"),
        (LETTERS, {"method": "mean_dif"}, "method", "unknown method 'mean_dif'"),
        (SETS, {"token": "answer"}, "token", "no answer token"),
        (WORDS, {"token": "first"}, "token", "unknown token 'first'"),
        (WORDS, {"negative": "none.json"}, "negative", "no data file and no built-in behaviour 'none.json'"),
        ([], {}, "data", "found an empty list"),
    ],
)
def test_what_makes_no_vector_is_refused_where_it_stands(
    tmp_path: Path, content: object, settings: dict[str, Any], setting: str, message: str
) -> None:
    left: list[tuple[str, bool]] = []

    class Located:
        def __init__(self, setting: str) -> None:
            self.setting = setting

        def __enter__(self) -> None: ...

        def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
            left.append((self.setting, kind is not None))

    with pytest.raises(VsteerError, match=message):
        recipe_of(tmp_path, content, located=Located, **settings)
    assert [name for name, failed in left if failed] == [setting]


def test_every_method_that_a_grid_may_name_has_its_function() -> None:
    assert get_args(MethodName) == tuple(METHODS)


def test_a_missing_file_names_a_behaviour_that_is_near() -> None:
    with pytest.raises(DataError, match="did you mean 'refusal'"):
        make_recipe("refusl")


@pytest.fixture(scope="module")
def engine() -> FakeEngine:
    return FakeEngine(models.resolve("tiny-llama").model, layers=3, hidden_size=8)


@pytest.mark.parametrize("content", [WORDS, SETS])
def test_the_vector_is_the_difference_of_means_at_the_recipes_token(
    tmp_path: Path, engine: FakeEngine, content: object
) -> None:
    recipe = recipe_of(tmp_path, content, system="Be brief.", name="v")
    recipe.check(engine.tokenizer)
    streams: dict[bool, list[Any]] = {True: [], False: []}
    for member in members(engine.tokenizer, recipe.data, "last", "Be brief."):
        (result,) = engine.run([Request("m", member.prompt, capture=(len(member.prompt.token_ids) - 1,))])
        assert result.captured is not None
        streams[member.positive].append(result.captured[0].astype(np.float64))
    expected = np.mean(streams[True], axis=0) - np.mean(streams[False], axis=0)
    lengths = np.linalg.norm(np.concatenate([streams[True], streams[False]]), axis=2).mean(axis=0)
    calls: list[None] = []
    source = models.resolve("tiny-llama")
    model = model_origin("tiny-llama", source)
    with recipe.read(engine, engine.tokenizer, model, on_progress=lambda: calls.append(None)) as reading:
        raw, scaled = reading.vector(), reading.vector("residual:0.5")
    assert len(calls) == recipe.members
    for layer in range(3):
        np.testing.assert_allclose(raw.directions[layer], expected[layer], rtol=1e-5)
        assert np.linalg.norm(scaled.directions[layer]) == pytest.approx(0.5 * lengths[layer], rel=1e-5)
    origin = asdict(raw.origin)
    assert {name: origin[name] for name in ("model", "data", "method", "token", "system", "norm")} == {
        "model": "tiny-llama",
        "data": "data.json",
        "method": recipe.method,
        "token": "last",
        "system": "Be brief.",
        "norm": "raw",
    }
    assert (raw.name, raw.origin.pairs, raw.origin.model_layers) == ("v", 3 if content is WORDS else 1, 3)
    assert scaled.origin.norm == "residual:0.5"


def test_the_norm_caa_is_refused_before_a_model_is_loaded(tmp_path: Path, engine: FakeEngine) -> None:
    with pytest.raises(UsageError, match="needs the other behaviours' vectors"):
        recipe_of(tmp_path, WORDS).check(engine.tokenizer, "caa")
