"""Letters that are asked for behind one token and read behind another: a plan says so, a vector keeps it."""

from pathlib import Path

import pytest
from transformers import AutoTokenizer

from tests.fake_engine import FakeEngine
from tests.plan.sample import filled
from vsteer.grid.spec import as_grid
from vsteer.models import resolve
from vsteer.plan.plan import make_plans
from vsteer.vectors.files import load, save
from vsteer.vectors.members import letter_start
from vsteer.vectors.recipe import make_recipe, model_origin


def notes(folder: Path, model: str, evaluation: dict[str, object], **vector: object) -> list[str]:
    resolve(model)
    grid = {
        "version": 1,
        "name": "starts",
        "model": {"id": model, "dtype": "float32"},
        "vectors": {"v": {"data": "items.json", **vector}},
        "grid": [{"vector": "v", "layers": 1, "multipliers": 1, "positions": "after_user_turn"}],
        "evaluations": [{"data": "items.json", "kind": "choice", **evaluation}],
    }
    (plan,) = make_plans(as_grid(grid, filled(folder)))
    return [note for note in plan.notes if "behind" in note]


def test_a_chatml_model_is_asked_behind_another_token_than_its_vector_is_read(tmp_path: Path) -> None:
    model = "smollm2-135m-instruct"
    (note,) = notes(tmp_path, model, {"caa_compat": True})
    assert "are asked for behind ' (', and those of the vector v are read behind '('" in note
    # the two are different tokens, by the tokenizer alone
    tokenizer = AutoTokenizer.from_pretrained(resolve(model).model)
    header = "<|im_start|>assistant\n"
    ids = [tokenizer(header + start + "A", add_special_tokens=False)["input_ids"] for start in ("(", " (")]
    assert len(ids[0]) == len(ids[1])
    assert [a == b for a, b in zip(*ids, strict=True)] == [True] * (len(ids[0]) - 2) + [False, True]


@pytest.mark.parametrize(
    ("evaluation", "vector"),
    [({}, {}), ({"caa_compat": True}, {"token": "last"}), ({"data": "words.jsonl"}, {})],
)
def test_one_start_or_no_letter_needs_no_note(
    tmp_path: Path, evaluation: dict[str, object], vector: dict[str, object]
) -> None:
    assert notes(tmp_path, "smollm2-135m-instruct", evaluation, **vector) == []


def test_a_model_whose_header_ends_in_a_bracket_has_one_start(tmp_path: Path) -> None:
    """As Llama 2's `[/INST]`: an answer follows behind a space."""
    tokenizer = AutoTokenizer.from_pretrained(resolve("smollm2-135m-instruct").model)
    recipe = make_recipe("items.json", beside=filled(tmp_path))
    assert letter_start(tokenizer, recipe.data, "answer") == "("
    tokenizer.chat_template = "{% for m in messages %}[INST] {{ m.content }} [/INST]{% endfor %}"
    assert letter_start(tokenizer, recipe.data, "answer") == " ("
    assert letter_start(tokenizer, recipe.data, "last") is None


def test_a_vector_keeps_what_its_letters_were_read_behind(tmp_path: Path) -> None:
    source = resolve("tiny-llama")
    engine = FakeEngine(source.model, layers=2, hidden_size=4)
    recipe = make_recipe("items.json", beside=filled(tmp_path))
    with recipe.read(engine, engine.tokenizer, model_origin("tiny-llama", source)) as reading:
        save(reading.vector(), tmp_path / "v.safetensors")
    # tiny-llama has the template of ChatML: a line break ends its header
    assert load(tmp_path / "v.safetensors").origin.answer_start == "("


def test_an_answer_s_own_prefix_is_a_start_too(tmp_path: Path) -> None:
    (note,) = notes(tmp_path, "smollm2-135m-instruct", {"answer_prefix": "My answer: "})
    assert "behind 'My answer: ('" in note
