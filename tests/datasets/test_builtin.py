"""The shipped data: large enough, balanced, its splits apart, and told apart by nothing but the behaviour."""

import re
from itertools import combinations, pairwise, product

import pytest

from vsteer.datasets.builtin import CONTRASTS, behaviours, contrast_path, data_path, parts
from vsteer.datasets.choices import stem
from vsteer.datasets.items import ItemSet, UnpairedSets
from vsteer.datasets.readers import read_contrast, read_prompts, read_questions
from vsteer.errors import DataError

LEAST = {"refusal": (200, 60, 40), "sentiment": (100, 60, 30), "language": (100, 60, 30)}
ITEM_FILES = [(behaviour, part) for behaviour in LEAST for part in ("pairs", "questions")]
LETTERED = [("refusal", "pairs"), ("refusal", "questions")]
HELD_OUT = ("harmful", "harmless")


def items(behaviour: str, part: str) -> ItemSet:
    return read_questions(data_path(behaviour, part))


def unpaired(*parts: str) -> UnpairedSets:
    data = read_contrast(*(data_path("refusal", part) for part in parts))
    assert isinstance(data, UnpairedSets)
    return data


def questions(behaviour: str, part: str) -> list[str]:
    """What a file asks, without the choices."""
    if part == "instructions":
        sets = unpaired(part)
        return [prompt.text for prompt in (*sets.positive.prompts, *sets.negative.prompts)]
    if part in ("open", *HELD_OUT):
        return [prompt.text for prompt in read_prompts(data_path(behaviour, part)).prompts]
    return [stem(item.question) for item in items(behaviour, part).items]


def words(text: str) -> list[str]:
    return re.findall(r"[\w']+", text.casefold())


def mean_length(texts: list[str]) -> float:
    return sum(map(len, texts)) / len(texts)


def test_every_behaviour_is_complete() -> None:
    assert set(behaviours()) == set(LEAST)
    for behaviour, least in LEAST.items():
        counts = [len(questions(behaviour, part)) for part in ("pairs", "questions", "open")]
        assert all(count >= n for count, n in zip(counts, least, strict=True)), (behaviour, counts)
        assert isinstance(read_contrast(data_path(behaviour, "pairs")), ItemSet)
        assert "CC0-1.0" in data_path(behaviour, "pairs").with_name("README.md").read_text()


@pytest.mark.parametrize(("parts", "least"), [(["instructions"], 100), (HELD_OUT, 30)])
def test_instructions(parts: list[str], least: int) -> None:
    sets = unpaired(*parts)
    texts = [[prompt.text for prompt in half.prompts] for half in (sets.positive, sets.negative)]
    assert all(len(half) >= least for half in texts)
    assert mean_length(texts[0]) == pytest.approx(mean_length(texts[1]), rel=0.15)


@pytest.mark.parametrize(("behaviour", "part"), LETTERED)
def test_letters_are_balanced_and_follow_no_pattern(behaviour: str, part: str) -> None:
    letters = [item.positive for item in items(behaviour, part).items]
    assert abs(letters.count("(A)") - letters.count("(B)")) <= 1
    # A letter that alternates, or that follows its place in the file, could stand in for the behaviour.
    changes = sum(one != other for one, other in pairwise(letters)) / (len(letters) - 1)
    assert 0.35 < changes < 0.65
    half = letters[: len(letters) // 2]
    assert 0.35 < half.count("(A)") / len(half) < 0.65


@pytest.mark.parametrize(("behaviour", "part"), LETTERED)
def test_letters_do_not_follow_the_opening_word(behaviour: str, part: str) -> None:
    """The first word of a question tells its kind ("How can I ...", "What's your ...") well enough."""
    by_opening: dict[str, list[str]] = {}
    for item in items(behaviour, part).items:
        by_opening.setdefault(words(item.question)[0], []).append(item.positive)
    for opening, letters in by_opening.items():
        if len(letters) >= 12:
            assert 0.25 <= letters.count("(A)") / len(letters) <= 0.75, opening


@pytest.mark.parametrize(("behaviour", "part"), ITEM_FILES)
def test_answers_do_not_differ_in_length(behaviour: str, part: str) -> None:
    data = items(behaviour, part).items
    positive = [item.choices[item.matching].text for item in data]
    negative = [item.choices[item.others[0]].text for item in data]
    if part == "questions" and behaviour != "refusal":
        assert all(len(words(text)) == 1 for text in (*positive, *negative))
    else:
        assert mean_length(positive) == pytest.approx(mean_length(negative), rel=0.15)


@pytest.mark.parametrize("behaviour", LEAST)
def test_no_question_stands_twice(behaviour: str) -> None:
    for part in parts(behaviour):
        asked = [" ".join(words(question)) for question in questions(behaviour, part)]
        assert len(asked) == len(set(asked)), part


@pytest.mark.parametrize("behaviour", LEAST)
def test_no_question_is_in_two_splits(behaviour: str) -> None:
    asked = {part: [set(words(text)) for text in questions(behaviour, part)] for part in parts(behaviour)}
    for one, other in combinations(asked, 2):
        for a, b in product(asked[one], asked[other]):
            assert len(a & b) / len(a | b) < 0.8, (one, other, a, b)


@pytest.mark.parametrize("name", CONTRASTS)
def test_contrasts_are_told_apart_by_nothing_but_what_they_contrast(name: str) -> None:
    data = read_contrast(contrast_path(name))
    assert isinstance(data, ItemSet)
    assert (len(data.items), data.duplicates) == (12, 0)
    positive, negative = ([getattr(item, side) for item in data.items] for side in ("positive", "negative"))
    assert mean_length(positive) == pytest.approx(mean_length(negative), rel=0.2)
    assert len({*positive, *negative}) == 24


def test_every_contrast_is_listed() -> None:
    files = contrast_path("winter").parent.glob("*.jsonl")
    assert sorted(CONTRASTS) == sorted(file.stem for file in files)


def test_a_name_that_is_not_there() -> None:
    with pytest.raises(DataError, match="no built-in behaviour is called 'joy'") as error:
        data_path("joy", "pairs")
    assert "refusal" in error.value.hint
    with pytest.raises(DataError, match="has no 'instructions'"):
        data_path("sentiment", "instructions")
