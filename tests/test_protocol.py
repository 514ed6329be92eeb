"""What a request means: the span of every position word on prompts laid out by hand, and by a tokenizer."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import AutoTokenizer

from vsteer import models
from vsteer.errors import ModelError, UsageError
from vsteer.prompts.template import render_chat, render_question
from vsteer.protocol import (
    OPEN_END,
    POSITION_WORDS,
    Positions,
    Prompt,
    Request,
    Steering,
    Term,
    expected_steered_tokens,
)

# A ChatML prompt with the start of its answer forced, one token a piece:
#   0 <|im_start|>  1 user  2 \n  3 Hello  4 there  5 <|im_end|>  6 \n
#   7 <|im_start|>  8 assistant  9 \n  10 My  11 answer
CHATML = Prompt(tuple(range(50, 62)), template_length=10, user_turn_length=7)
PLAIN = Prompt.plain(range(50, 55))


@pytest.mark.parametrize(
    ("prompt", "positions", "span"),
    [
        (CHATML, "all", (0, OPEN_END)),
        (CHATML, "after_prompt", (9, OPEN_END)),
        (CHATML, "after_user_turn", (6, OPEN_END)),
        (CHATML, "last_prompt_token", (11, 12)),
        (CHATML, "generated", (12, OPEN_END)),
        (CHATML, (3, 5), (3, 5)),
        (CHATML, (0, 10**12), (0, OPEN_END)),
        (PLAIN, "all", (0, OPEN_END)),
        (PLAIN, "after_prompt", (4, OPEN_END)),
        (PLAIN, "after_user_turn", (4, OPEN_END)),
        (PLAIN, "last_prompt_token", (4, 5)),
        (PLAIN, "generated", (5, OPEN_END)),
        (PLAIN, (40, 41), (40, 41)),
    ],
)
def test_spans(prompt: Prompt, positions: Positions, span: tuple[int, int]) -> None:
    assert prompt.span(positions) == span


def test_every_word_has_a_span() -> None:
    assert {prompt.span(word)[0] >= 0 for word in POSITION_WORDS for prompt in (CHATML, PLAIN)} == {True}


@pytest.mark.parametrize("span", [(5, 5), (6, 5), (-1, 5)])
def test_a_span_that_is_none(span: tuple[int, int]) -> None:
    with pytest.raises(UsageError, match="is not a span") as error:
        CHATML.span(span)
    assert "0 <= start < end" in error.value.hint


@pytest.mark.parametrize(
    ("word", "near"), [("after_promt", "after_prompt"), ("generate", "generated"), ("xyz", None)]
)
def test_an_unknown_word(word: str, near: str | None) -> None:
    with pytest.raises(UsageError, match=f"unknown positions '{word}'") as error:
        CHATML.span(word)
    assert ("did you mean" in error.value.hint) == (near is not None)
    assert near is None or f"did you mean {near!r}?" in error.value.hint
    assert all(known in error.value.hint for known in POSITION_WORDS)


# 12 prompt tokens and 4 new ones: positions 0 to 14 are processed
@pytest.mark.parametrize(
    ("positions", "steered"),
    [
        ("all", 15),
        ("after_prompt", 6),
        ("after_user_turn", 9),
        ("last_prompt_token", 1),
        ("generated", 3),
        ((3, 5), 2),
        ((14, 15), 1),
        ((15, 16), 0),
        ((10, 99), 5),
    ],
)
def test_steered_tokens_of_a_span(positions: Positions, steered: int) -> None:
    assert expected_steered_tokens(CHATML.span(positions), 12, 4) == steered


def test_generated_steers_nothing_where_one_token_is_made() -> None:
    assert expected_steered_tokens(CHATML.span("generated"), 12, 1) == 0


def test_terms_that_act() -> None:
    terms = (Term("a", 1, 0.0), Term("b", 1, -1.0), Term("a", 1, -0.0), Term("a", 0, 1e-9))
    assert Steering(terms).acting_terms == (terms[1], terms[3])


@pytest.mark.parametrize(
    ("request_", "reason"),
    [
        (Request("a", PLAIN, max_tokens=5), None),
        (
            Request("a", PLAIN, max_tokens=6),
            "too long: 5 prompt tokens + 6 to generate exceed max_model_len 10",
        ),
        (Request("a", PLAIN, max_tokens=0), "max_tokens is 0; at least 1 is needed"),
        (Request("a", Prompt.plain(())), "the prompt is empty"),
        (Request("a", Prompt.plain((1, 100))), "token id 100 is outside the vocabulary of 100"),
        (Request("a", Prompt.plain((1, -1))), "token id -1 is outside the vocabulary of 100"),
        (
            Request("a", PLAIN, logprob_token_ids=(5, 200)),
            "token id 200 is outside the vocabulary of 100",
        ),
    ],
)
def test_why_a_request_is_invalid(request_: Request, reason: str | None) -> None:
    assert request_.invalid_because(vocab_size=100, max_model_len=10) == reason


# --- through a tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(models.resolve("tiny-llama").model)


def pieces(tokenizer: Any, prompt: Prompt, start: int, end: int | None = None) -> str:
    text: str = tokenizer.decode(prompt.token_ids[start:end])
    return text


def test_a_chat_prompt(tokenizer: Any) -> None:
    prompt = render_question(tokenizer, "is it so?", system="be kind")
    turn = "<|im_start|>system\nbe kind<|im_end|>\n<|im_start|>user\nis it so?<|im_end|>\n"
    assert pieces(tokenizer, prompt, 0) == turn + "<|im_start|>assistant\n"
    assert pieces(tokenizer, prompt, 0, prompt.user_turn_length) == turn
    assert prompt.template_length == len(prompt.token_ids)
    # the words by what they are steered from
    assert pieces(tokenizer, prompt, prompt.span("after_user_turn")[0]) == "\n<|im_start|>assistant\n"
    assert pieces(tokenizer, prompt, prompt.span("after_prompt")[0]) == "\n"
    assert pieces(tokenizer, prompt, *prompt.span("last_prompt_token")) == "\n"
    assert pieces(tokenizer, prompt, prompt.span("generated")[0]) == ""


def test_a_forced_answer_prefix(tokenizer: Any) -> None:
    bare, forced = (
        render_question(tokenizer, "is it so?"),
        render_question(tokenizer, "is it so?", answer_prefix="no, it is"),
    )
    assert forced.token_ids[: len(bare.token_ids)] == bare.token_ids
    assert forced.template_length == bare.template_length == len(bare.token_ids)
    assert forced.user_turn_length == bare.user_turn_length
    assert pieces(tokenizer, forced, forced.span("after_prompt")[0]) == "\nno, it is"
    assert pieces(tokenizer, forced, forced.span("after_user_turn")[0]).endswith("assistant\nno, it is")
    # the last token, the prefix included
    last = forced.span("last_prompt_token")
    assert last == (len(forced.token_ids) - 1, len(forced.token_ids))
    assert pieces(tokenizer, forced, *last) in ("s", "is")


def test_a_prefix_that_merges_with_the_header_belongs_to_the_prefix() -> None:
    # "t" ends this template's header, and the tokenizer knows "ta"
    merging = AutoTokenizer.from_pretrained(models.resolve("tiny-llama").model)
    merging.chat_template = (
        "{% for message in messages %}Q{{ message['content'] }}{% endfor %}"
        "{% if add_generation_prompt %}At{% endif %}"
    )
    bare, forced = render_question(merging, "xyz"), render_question(merging, "xyz", answer_prefix="a")
    assert pieces(merging, bare, -2) == "At"
    assert pieces(merging, forced, -1) == "ta"
    assert bare.template_length == len(bare.token_ids)
    assert forced.template_length == len(forced.token_ids) - 1
    assert pieces(merging, forced, forced.span("after_prompt")[0]) == "Ata"


def test_a_conversation(tokenizer: Any) -> None:
    messages = [
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "two"},
        {"role": "user", "content": "three"},
    ]
    prompt = render_chat(tokenizer, messages)
    assert pieces(tokenizer, prompt, prompt.user_turn_length) == "<|im_start|>assistant\n"


def test_a_tokenizer_without_a_chat_template() -> None:
    base = AutoTokenizer.from_pretrained(models.resolve("tiny-llama").model)
    base.chat_template = None
    prompt = render_question(base, "is it so?", system="Be brief.", answer_prefix=" Yes")
    assert base.decode(prompt.token_ids) == "Be brief.\n\nInput: is it so?\nResponse: Yes"
    assert pieces(base, prompt, prompt.template_length) == " Yes"
    assert pieces(base, prompt, prompt.user_turn_length) == "\nResponse: Yes"
    with pytest.raises(ModelError, match="no chat template") as error:
        render_chat(base, [{"role": "user", "content": "is it so?"}])
    assert "plain text" in error.value.hint


def test_a_template_that_rewrites_the_turn() -> None:
    odd = AutoTokenizer.from_pretrained(models.resolve("tiny-llama").model)
    odd.chat_template = "{% if add_generation_prompt %}>{% endif %}{{ messages[0]['content'] }}"
    with pytest.raises(ModelError, match="changes the user's turn"):
        render_question(odd, "is it so?")


class EndsEveryText:
    """A base model's tokenizer that begins and ends every text by itself, a token a character."""

    def __call__(self, text: str, **_: object) -> dict[str, list[object]]:
        ids = [1, *map(ord, text), 2]
        offsets = [(0, 0), *((n, n + 1) for n in range(len(text))), (0, 0)]
        return {"input_ids": list(ids), "offset_mapping": list(offsets)}


def test_a_text_that_the_tokenizer_ends_is_left_open_for_the_answer() -> None:
    prompt = render_question(EndsEveryText(), "Rain?", answer_prefix=" Yes")
    text = "Input: Rain?\nResponse: Yes"
    assert prompt.token_ids == (1, *map(ord, text))
    # the token at the front belongs to the template
    assert prompt.template_length == 1 + len("Input: Rain?\nResponse:")
    assert prompt.user_turn_length == 1 + len("Input: Rain?")
