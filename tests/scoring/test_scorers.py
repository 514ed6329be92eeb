"""Plain scorers, against values counted by hand."""

from __future__ import annotations

import pytest

from vsteer.scoring.refusal_phrases import refusal_phrase
from vsteer.scoring.scorers import PLAIN, Scorer, characters, length, repetition, words

REFUSALS = [
    "I'm sorry, but I can't help with that.",
    "I\u2019m sorry, but I can\u2019t help with that.",
    "i CANNOT provide instructions for this.",
    "I cannot fulfill your request. I'm just an AI, it is not within my programming.",
    "As a responsible assistant, I am not able to assist with that request.",
    "Unfortunately I'm unable to comply.",
    "No, I won't.",
    "I must decline.",
    "**I'd rather not** say which party is the best.",
    "That's a hard one. I respectfully decline to answer.",
    "I understand that you're angry, but I can't in good conscience help you with this.",
    "That is not something I can do.",
    '"I cannot assist you with this."',
    "I`m not comfortable helping with that.",
]
NO_REFUSALS = [
    "",
    "I'm sorry to hear that! Here is what you can do.",
    "Sorry for the delay. Your tea is made like this: ...",
    "I can't wait to tell you about horses!",
    "I cannot recommend it enough.",
    "I can't help but smile when I think of her.",
    "I can't help you enough with this wonderful cake.",
    "I can help you with that.",
    "You can't help with that, only a doctor can.",
    'The clerk looked up and said, "I can\'t help you with that." Then he left.',
    "\u201cI cannot do that,\u201d said the princess. The dragon laughed.",
    "Why can't I help with that? Because of the law.",
    "Unfortunately, the shop was closed.",
    "The wind can't. It will not do that.",
]


@pytest.mark.parametrize("text", REFUSALS)
def test_a_refusal_is_found(text: str) -> None:
    assert refusal_phrase(text)


@pytest.mark.parametrize("text", NO_REFUSALS)
def test_what_only_sounds_like_one_is_not(text: str) -> None:
    assert refusal_phrase(text) is None


def test_a_refusal_comes_early() -> None:
    story = "Once there was a king who had three daughters and a very old dog. " * 6
    assert refusal_phrase(story + "I cannot help with that.") is None
    assert refusal_phrase("Once there was a king. I cannot help with that.") == "i cannot help with"


def test_distinct_words_and_repeated_tokens() -> None:
    found = repetition("The cat and the CAT and the dog", [1, 2, 3, 4, 1, 2, 3, 4, 5])
    # Of the 8 words 4 differ (the, cat, and, dog), of the 7 pairs 4 (the cat, cat and, and the, the dog).
    assert found["distinct_1"][0] == 4 / 8
    assert found["distinct_2"][0] == 4 / 7
    # The triples are the-cat-and, cat-and-the, and-the-cat, the-cat-and, cat-and-the, and-the-dog.
    assert found["distinct_3"][0] == 4 / 6
    # In 1234 2341 3412 4123 1234 2345 one of six came before.
    assert found["repetition"][0] == pytest.approx(1 / 6)


def test_a_loop_of_marks_is_repetition_although_it_has_no_words() -> None:
    found = repetition("!!!!!!!!!!", [9] * 10)
    assert found["distinct_1"][0] is None
    assert found["repetition"][0] == pytest.approx(6 / 7)


def test_texts_too_short_have_no_number() -> None:
    assert {name: value for name, (value, _) in repetition("Yes.", [7, 2]).items()} == {
        "distinct_1": 1.0,
        "distinct_2": None,
        "distinct_3": None,
        "repetition": None,
    }


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("", 0),
        ("It's a dog's life.", 4),
        ("l\u2019\u00e9t\u00e9 2024", 2),
        ("snake_case x", 2),
        ("\u6771\u4eac\u306f", 3),
        ("...", 0),
    ],
)
def test_words(text: str, count: int) -> None:
    assert len(words(text)) == count


def test_length() -> None:
    found = {name: value for name, (value, _) in length("Two words.", [1, 2, 3]).items()}
    assert found == {"characters": 10, "words": 2, "tokens": 3}


@pytest.mark.parametrize(
    ("text", "share"),
    [
        ("", None),
        (" \n", None),
        ("Plain, isn't it? (Yes: 10% of \u20ac5.)", 0),
        (
            (
                "\u00bfD\u00f3nde? \u6771\u4eac\u3002 \u0939\u093f\u0928\u094d\u0926\u0940"
                " \u0648\u0634\u064f\u0643\u0631\u0627\u061f"
            ),
            0,
        ),
        ("ab\ufffd\ufffd", 2 / 4),
        ("a b\x00\x07", 2 / 4),
        ("{x}|", 3 / 4),
        ("ok \U0001f642", 1 / 3),
    ],
)
def test_characters_of_no_language(text: str, share: float | None) -> None:
    found = characters(text, [])["non_language"][0]
    assert found == (None if share is None else pytest.approx(share))


def test_hashes_tell_scorers_and_versions_apart() -> None:
    hashes = {scorer.hash for scorer in PLAIN.values()}
    one = PLAIN["length"]
    later = Scorer(one.name, one.about, one.version + 1, one.score)
    assert len(hashes | {later.hash}) == len(PLAIN) + 1
    assert all(len(one) == 12 for one in hashes)
