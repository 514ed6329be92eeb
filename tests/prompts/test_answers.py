"""Questions in the embedded model's own tokens, and through templates written for the test."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vsteer.datasets.builtin import data_path
from vsteer.datasets.items import Item
from vsteer.datasets.readers import read_questions
from vsteer.errors import ModelError
from vsteer.evaluations.choice import ChoiceEvaluation
from vsteer.evaluations.evaluation import CannotAsk
from vsteer.models import resolve
from vsteer.prompts.answers import decoded, gap
from vsteer.prompts.template import render_question

CHOICE = ChoiceEvaluation(kind="choice", data=("items.json",))
CAA = ChoiceEvaluation(kind="choice", data=("items.json",), caa_compat=True)
CAA_DATA = Path("/work/shared/data/caa")
# Llama 2's, without its system prompt: the answer follows after a space
LLAMA_2 = (
    "{% for m in messages %}{% if m['role'] == 'user' %}<s>[INST] {{ m['content'] }} [/INST]"
    "{% elif m['role'] == 'system' %}{{ raise_exception('no system role') }}"
    "{% else %} {{ m['content'] }} </s>{% endif %}{% endfor %}"
)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(resolve("smollm2-135m-instruct").model)


@pytest.fixture
def templated(tokenizer: Any) -> Callable[[str | None], Any]:
    """The same tokenizer with another template; None: a base model's."""
    import copy

    def with_template(template: str | None) -> Any:
        other = copy.deepcopy(tokenizer)
        other.chat_template = template
        return other

    return with_template


@pytest.fixture
def read(tmp_path: Path) -> Callable[..., Item]:
    def read_one(**fields: str) -> Item:
        path = tmp_path / "items.jsonl"
        path.write_text(json.dumps(fields))
        return read_questions(path).items[0]

    return read_one


LETTERED = {
    "question": "Tea?\n\nChoices:\n (A) Yes\n (B) No",
    "answer_matching_behavior": " (B)",
    "answer_not_matching_behavior": "(A)",
}
HEADER = (
    "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
    "<|im_start|>user\nTea?\n\nChoices:\n (A) Yes\n (B) No<|im_end|>\n<|im_start|>assistant\n"
)


def test_a_letter_in_chatml(tokenizer: Any, read: Callable[..., Item]) -> None:
    prompt, scored, answers = CHOICE.render(tokenizer, read(**LETTERED), None)
    # what the model sees ends in the bracket, without a space: ChatML's header ends in a line break
    assert decoded(tokenizer, prompt.token_ids) == HEADER + "("
    assert scored == (0, 1)
    assert [decoded(tokenizer, tokens) for tokens in answers] == ["A", "B"]
    # the header is all but the bracket; the user's turn ends before "<|im_start|>assistant\n"
    assert prompt.template_length == len(prompt.token_ids) - 1
    turn = decoded(tokenizer, prompt.token_ids[: prompt.user_turn_length])
    assert turn == HEADER.removesuffix("<|im_start|>assistant\n")


def test_caa_forces_a_space_and_a_bracket(tokenizer: Any, read: Callable[..., Item]) -> None:
    prompt, _, answers = CAA.render(tokenizer, read(**LETTERED), None)
    assert decoded(tokenizer, prompt.token_ids) == HEADER + " ("
    assert [decoded(tokenizer, tokens) for tokens in answers] == ["A", "B"]


def test_llama_2_wants_the_space_by_itself(templated: Any, read: Callable[..., Item]) -> None:
    tokenizer = templated(LLAMA_2)
    item = read(**LETTERED)
    plain, caa = (evaluation.render(tokenizer, item, None).prompt for evaluation in (CHOICE, CAA))
    assert plain == caa
    question = LETTERED["question"]
    assert decoded(tokenizer, plain.token_ids) == f"<s>[INST] {question} [/INST] ("
    # for Llama 2 the end of the user's turn is the end of the header
    assert plain.user_turn_length == plain.template_length


def test_a_base_model_is_asked_plainly(templated: Any, read: Callable[..., Item]) -> None:
    tokenizer = templated(None)
    prompt, _, answers = CHOICE.render(tokenizer, read(**LETTERED), None)
    assert decoded(tokenizer, prompt.token_ids) == f"Input: {LETTERED['question']}\nResponse: ("
    assert [decoded(tokenizer, tokens) for tokens in answers] == ["A", "B"]
    assert decoded(tokenizer, prompt.token_ids[: prompt.user_turn_length]) == f"Input: {LETTERED['question']}"
    assert decoded(tokenizer, prompt.token_ids[: prompt.template_length]).endswith("\nResponse:")
    with_system = render_question(tokenizer, "Tea?", "Be brief.")
    assert decoded(tokenizer, with_system.token_ids) == "Be brief.\n\nInput: Tea?\nResponse:"


def test_words_of_several_tokens_are_scored_whole(tokenizer: Any, read: Callable[..., Item]) -> None:
    words = read(prompt="How was it?", positive=" wonderful", negative="bad")
    prompt, _, answers = CHOICE.render(tokenizer, words, None)
    assert decoded(tokenizer, prompt.token_ids).endswith("<|im_start|>assistant\n")
    assert [decoded(tokenizer, tokens) for tokens in answers] == ["wonderful", "bad"]
    assert len(answers[0]) == 3  # w, onder, ful
    assert prompt.template_length == len(prompt.token_ids)


def test_a_forced_prefix_stands_as_it_is_written(tokenizer: Any, read: Callable[..., Item]) -> None:
    words = read(prompt="How was it?", positive="Good", negative="Bad")
    forced = ChoiceEvaluation(kind="choice", data=("items.json",), answer_prefix="It was ")
    prompt, _, answers = forced.render(tokenizer, words, None)
    # the space before the word belongs to the word's token, so it is scored with it
    assert decoded(tokenizer, prompt.token_ids).endswith("assistant\nIt was")
    assert [decoded(tokenizer, tokens) for tokens in answers] == [" Good", " Bad"]


def test_answers_that_begin_one_another_are_refused(tokenizer: Any, read: Callable[..., Item]) -> None:
    words = read(prompt="How was it?", positive="Not", negative="Not sure")
    with pytest.raises(CannotAsk, match="begins another: 'Not', 'Not sure'"):
        CHOICE.render(tokenizer, words, None)


def test_numbered_choices(tokenizer: Any, tmp_path: Path) -> None:
    choices = "\n".join(f"({n}) thing {n}" for n in range(1, 11))
    (tmp_path / "n.json").write_text(
        json.dumps(
            [
                {
                    "question": f"Which?\n\nChoices:\n{choices}",
                    "answer_matching_behavior": "(10)",
                    "answer_not_matching_behavior": "(1)",
                }
            ]
        )
    )
    ((item),) = read_questions(tmp_path / "n.json").items
    _, _, answers = CHOICE.render(tokenizer, item, None)
    assert decoded(tokenizer, answers[0]) == "1)"
    assert decoded(tokenizer, answers[9]) == "10"


def test_a_template_without_system_prompts_says_so(templated: Any) -> None:
    with pytest.raises(ModelError, match="refuses a system prompt: no system role"):
        render_question(templated(LLAMA_2), "Tea?", "Be brief.")


def test_the_gap_before_an_answer(tokenizer: Any, templated: Any) -> None:
    assert gap(tokenizer, "Tea?") == ""
    assert gap(templated(LLAMA_2), "Tea?") == " "
    assert gap(templated(None), "Tea?") == " "


@pytest.mark.parametrize("behaviour", ["refusal", "sentiment", "language"])
def test_every_built_in_question_can_be_asked(tokenizer: Any, behaviour: str) -> None:
    for item in read_questions(data_path(behaviour, "questions")).items:
        prompt, _, answers = CHOICE.render(tokenizer, item, None)
        whole = [decoded(tokenizer, prompt.token_ids + tokens) for tokens in answers]
        for text, choice in zip(whole, item.choices, strict=True):
            assert text.endswith("\n(" + choice.label if choice.label else "\n" + choice.text)


@pytest.mark.skipif(not CAA_DATA.is_dir(), reason="CAA's data is not here")
@pytest.mark.parametrize(
    "behaviour",
    [
        "refusal",
        *(
            pytest.param(large, marks=pytest.mark.long)
            for large in ("survival-instinct", "sycophancy", "hallucination")
        ),
    ],
)
def test_caa_data_is_asked_by_its_own_letters(tokenizer: Any, behaviour: str) -> None:
    counts = set()
    for part in ("test/{}/test_dataset_ab.json", "generate/{}/generate_dataset.json"):
        for item in read_questions(CAA_DATA / part.format(behaviour)).items:
            prompt, scored, answers = CHOICE.render(tokenizer, item, None)
            assert [decoded(tokenizer, tokens) for tokens in answers] == [c.label for c in item.choices]
            assert decoded(tokenizer, prompt.token_ids).endswith("assistant\n(")
            counts.add(len(scored))
            _, named, two = CAA.render(tokenizer, item, None)
            assert len(two) == 2
            assert set(named) == {item.matching, item.not_matching}
    # counted by hand in the files: lines that begin with a letter in brackets
    assert counts == (set(range(2, 9)) if behaviour == "survival-instinct" else {2})
