"""The reader: every form, every line number, and one clear error for every kind of bad file."""

import hashlib
import json
from pathlib import Path

import pytest

from vsteer.datasets.choices import answer_label, listed_choices, refers_to_choices, stem
from vsteer.datasets.items import Item, ItemSet, UnpairedSets, swapped
from vsteer.datasets.readers import read_contrast, read_prompts, read_questions
from vsteer.errors import DataError

PUBLIC = Path(__file__).parents[3] / "shared" / "data" / "caa"

TEA = "Tea or coffee?\n\nChoices:\n (A) Tea, please.\n (B) Coffee, please."
FOUR = "Of (1) now\n(2) later\nwhich?\n\nChoices:\n(A) Now\n\n(B) Later\n(C) Both,\nsomehow\n(D) Neither"


def caa(question: str = TEA, matching: str = "(A)", not_matching: str = "(B)") -> dict[str, str]:
    return {
        "question": question,
        "answer_matching_behavior": matching,
        "answer_not_matching_behavior": not_matching,
    }


def write(folder: Path, *values: object, name: str = "data.json") -> Path:
    """A JSON array with one value a line, from line 2 on."""
    path = folder / name
    path.write_text("[\n" + ",\n".join(json.dumps(value) for value in values) + "\n]\n", encoding="utf-8")
    return path


def write_lines(folder: Path, *values: object) -> Path:
    path = folder / "data.jsonl"
    path.write_text("".join(json.dumps(value) + "\n" for value in values), encoding="utf-8")
    return path


def one(path: Path) -> Item:
    (item,) = read_questions(path).items
    return item


def pairs(path: Path) -> ItemSet:
    data = read_contrast(path)
    assert isinstance(data, ItemSet)
    return data


def test_caa_form(tmp_path: Path) -> None:
    path = write(tmp_path, caa(), caa(FOUR, " (D)", "(A) "))
    data = pairs(path)
    assert data.form == "caa"
    assert data.source.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    tea, four = data.items
    assert (tea.positive, tea.negative, tea.line) == ("(A)", "(B)", 2)
    assert [choice.text for choice in tea.choices] == ["Tea, please.", "Coffee, please."]
    assert (four.positive, four.negative, four.others, four.line) == ("(D)", "(A)", (0, 1, 2), 3)
    assert [choice.text for choice in four.choices] == ["Now", "Later", "Both,\nsomehow", "Neither"]
    assert data.by_choices == {2: 1, 4: 1}
    assert data.by_label == {"A": 1, "D": 1}
    assert data.describe() == "2 items (1 with 2 choices, 1 with 4); matching letter A 1, D 1"


@pytest.mark.parametrize(
    ("question", "labels", "asked"),
    [
        ("Yes?\n(A) Yes\n(B) No", "AB", "Yes?"),
        ("Pick.\n\nOptions:\n  (X) One\n  (Y) Two\n  (Z) Three", "XYZ", "Pick."),
        ("How many?\n (1) One\n (2) Two", "12", "How many?"),
        ("I believe in (A), do you?\n (a) yes\n (b) no", "ab", "I believe in (A), do you?"),
        ("Of these:\n(A) hot\n(B) cold\nwhich?\n\nChoices:\n(A) first\n(B) last", "AB", None),
        ("Of these:\n(A) hot\n(B) cold\nwhich?\n(A) first\n(B) last", "AB", None),
        ("No list here (A).", "", "No list here (A)."),
    ],
)
def test_an_items_own_letters(question: str, labels: str, asked: str | None) -> None:
    assert "".join(choice.label for choice in listed_choices(question)) == labels
    assert stem(question) == (asked if asked is not None else "Of these:\n(A) hot\n(B) cold\nwhich?")


def test_answer_letters() -> None:
    spellings = ["(A)", " (A)", "(A) ", "A)", "A.", "A"]
    assert {answer_label(spelling) for spelling in spellings} == {"A"}
    assert [answer_label(words) for words in ("Yes", "a", "(AB)", "")] == [None] * 4


def test_letters_that_are_not_a_and_b(tmp_path: Path) -> None:
    item = one(write(tmp_path, caa("Pick.\n(X) One\n(Y) Two", "(Y)", "(X)")))
    assert (item.positive, item.negative) == ("(Y)", "(X)")


def test_answers_in_words(tmp_path: Path) -> None:
    good, french = read_questions(
        write_lines(
            tmp_path,
            {"prompt": "The food was", "positive": " good", "negative": " bad"},
            {"prompt": "Who are you?", "positive": "Je", "negative": "I"},
        )
    ).items
    assert (good.positive, good.negative, good.lettered) == (" good", " bad", False)
    assert (french.negative, french.line) == ("I", 2)
    assert one(write(tmp_path, caa("Is it raining?", "Yes", "No"))).positive == "Yes"


def test_a_single_line_of_json_lines_is_an_item(tmp_path: Path) -> None:
    path = write_lines(tmp_path, {"prompt": "How was it?", "positive": "Great", "negative": "Awful"})
    assert pairs(path).form == "pairs"


def test_capability_forms(tmp_path: Path) -> None:
    published = {"prompt": TEA, "correct": "(B)", "incorrect": "(A)", "category": "drinks", "more": 1}
    data = read_questions(write(tmp_path, published))
    assert (data.items[0].positive, data.items[0].category, data.ignored_fields) == (
        "(B)",
        "drinks",
        ("more",),
    )
    usual = {"question": "2 + 3?", "choices": ["4", "5", "6"]}
    for answer in (1, "B", "(B)", "5"):
        item = one(write(tmp_path, {**usual, "answer": answer}))
        assert item.question == "2 + 3?\n\nChoices:\n(A) 4\n(B) 5\n(C) 6"
        assert (item.positive, item.not_matching) == ("(B)", None)
    with pytest.raises(DataError, match=r"expected contrast pairs, found .* multiple_choice"):
        read_contrast(write(tmp_path, {**usual, "answer": 1}))


def test_items_are_named_by_content(tmp_path: Path) -> None:
    data = pairs(write(tmp_path, caa(), caa(matching=" (A)"), caa(matching="(B)", not_matching="(A)")))
    same, again, other = (item.item_id for item in data.items)
    assert same == again != other
    assert data.duplicates == 1
    assert [item.line for item in data.unique()] == [2, 4]
    assert "1 repeated" in data.describe()


def test_swapping_the_choices(tmp_path: Path) -> None:
    item = one(write(tmp_path, caa(FOUR, "(D)", "(A)")))
    other = swapped(item)
    assert other is not None
    assert other.question.endswith("(A) Neither\n\n(B) Both,\nsomehow\n(C) Later\n(D) Now")
    assert (other.positive, other.negative, other.swapped_from) == ("(A)", "(D)", item.item_id)
    back = swapped(other)
    assert back is not None
    assert (back.question, back.item_id) == (item.question, item.item_id)
    words = write_lines(tmp_path, {"prompt": "How?", "positive": "Well", "negative": "Badly"})
    assert swapped(one(words)) is None


def test_wording_that_leans_on_the_order() -> None:
    assert not refers_to_choices(TEA)
    assert refers_to_choices("Which?\n(A) Red\n(B) None of the above")
    assert refers_to_choices("I trust (A), and you?\n(A) Red\n(B) Blue")
    assert refers_to_choices("Which?\n(A) Red\n(B) Blue\n(C) Option A and B")


def test_unpaired_sets(tmp_path: Path) -> None:
    path = tmp_path / "sets.json"
    path.write_text('{\n"positive": [\n"Steal it.",\n"Break it."\n],\n"negative": ["Mend it."]\n}')
    data = read_contrast(path)
    assert isinstance(data, UnpairedSets)
    assert [(prompt.text, prompt.line) for prompt in data.positive.prompts] == [
        ("Steal it.", 3),
        ("Break it.", 4),
    ]
    assert [prompt.line for prompt in data.negative.prompts] == [6]


def test_unpaired_sets_from_two_files(tmp_path: Path) -> None:
    lines, objects = tmp_path / "bad.txt", tmp_path / "good.jsonl"
    lines.write_text("Steal it.\n\nBreak it.\n")
    objects.write_text('{"instruction": "Mend it."}\n"Paint it."\n')
    data = read_contrast(lines, objects)
    assert isinstance(data, UnpairedSets)
    assert [prompt.line for prompt in data.positive.prompts] == [1, 3]
    assert [prompt.text for prompt in data.negative.prompts] == ["Mend it.", "Paint it."]
    with pytest.raises(DataError, match=r"'Steal it\.' is in both \(line 1 and line 1 of"):
        read_contrast(lines, lines)


def test_open_questions(tmp_path: Path) -> None:
    data = read_prompts(write(tmp_path, {"question": "Why? "}, {"prompt": "How?", "category": "c"}, "Why?"))
    assert [(prompt.text, prompt.line) for prompt in data.prompts] == [("Why?", 2), ("How?", 3), ("Why?", 4)]
    assert data.duplicates == 1


def test_a_byte_order_mark_is_no_content(tmp_path: Path) -> None:
    path = write(tmp_path, caa())
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert len(read_questions(path).items) == 1


BAD_ITEMS = [
    (
        caa(matching="(C)"),
        r'expected "answer_matching_behavior" to be one of the listed choices A, B, found C',
    ),
    (caa(not_matching="(A)"), "expected different answers"),
    (caa(question="Tea?"), r"expected choices for '\(A\)' and '\(B\)'"),
    (caa(question="Tea?\n\nChoices:\n(A) Yes\n(A) No"), "each with a letter of its own"),
    (caa(question="Tea?\n\nChoices:\n(A) Yes"), "expected two or more choices"),
    (caa(question="Tea?\n(A) Yes\n(B)"), r"expected a text beside \(B\)"),
    (caa(question=" "), 'expected a text in "question", found an empty one'),
    (caa(question="\ud800"), "half a surrogate pair"),
    ({**caa(), "question": None}, 'expected "question" to be a text, found nothing'),
    ({"question": "Tea?"}, "expected the field answer_matching_behavior, answer_not_matching_behavior"),
    (["Tea?"], "expected an object, found list"),
]


@pytest.mark.parametrize(("bad", "message"), BAD_ITEMS)
def test_a_bad_item_is_an_error_with_its_line(tmp_path: Path, bad: object, message: str) -> None:
    path = write(tmp_path, caa(), bad)
    with pytest.raises(DataError, match=rf"data\.json, line 3: .*{message}") as error:
        read_contrast(path)
    assert error.value.hint


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "line 1: expected data, found an empty file"),
        ("[]", "line 1: expected items, found an empty list"),
        ("tea\ncoffee\n", "line 1: expected JSON or JSON Lines, found text"),
        ('[\n{"question": "Tea?"\n', "line 3: not valid JSON"),
        ('[\n{"question": "Tea?"}\n{"question": "Coffee?"}]', "line 3: not valid JSON: expected , or ]"),
        ('[\n{"question": "Tea?"}', "line 2: not valid JSON: .*the file ends"),
        ('{"prompt": "a", "positive": "b", "negative": "c"}\n{"prompt": ', "line 2: not valid JSON"),
        ('[{"question": "Tea?"}]\n[]', "line 2: expected the file to end"),
        ('[{"question": "Tea?"}]', "line 1: expected an item of a known form, found the fields question"),
        (
            '[{"question": "a",\n"question": "b"}]',
            'line 1: not usable JSON: the field "question" stands twice',
        ),
        ('{"positive": ["a"], "other": ["b"]}', 'expected the lists "positive" and "negative"'),
        ('{"positive": ["a"], "negative": []}', "expected prompts, found an empty list"),
        ('{"positive": ["a"], "negative": ["a"]}', "expected two different sets, 'a' is in both"),
        ('{"positive": ["a"],\n"positive": ["b"]}', 'line 2: expected one list "positive", found two'),
        ('{"positive": ["a"]\n"negative": ["b"]}', "line 2: not valid JSON: expected , or }"),
        ("[" * 100_000, "line 1: not usable JSON"),
    ],
)
def test_a_bad_file_is_one_clear_error(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "data.json"
    path.write_text(text)
    with pytest.raises(DataError, match=message):
        read_contrast(path)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="No such file"):
        read_contrast(tmp_path / "missing.json")
    latin = tmp_path / "latin.json"
    latin.write_bytes(b'[\n{"question": "caf\xe9"}]')
    with pytest.raises(DataError, match=r"line 2: expected UTF-8 text, found byte 0xe9"):
        read_contrast(latin)


@pytest.mark.parametrize("answer", [3, -1, True, None, "D", "blue", 1.0])
def test_an_answer_that_is_no_choice(tmp_path: Path, answer: object) -> None:
    with pytest.raises(DataError, match=r'line 2: expected "answer" to be an index from 0 to 1'):
        read_questions(write(tmp_path, {"question": "Tea?", "choices": ["yes", "no"], "answer": answer}))


def test_answered_items_are_not_asked_open_ended(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="expected an open question, found an item with answers"):
        read_prompts(write(tmp_path, caa()))


@pytest.mark.skipif(not PUBLIC.is_dir(), reason="the public data is not part of the repository")
@pytest.mark.parametrize(
    ("file", "by_choices"),
    [
        ("generate/hallucination/generate_dataset.json", {2: 1000}),
        ("generate/refusal/generate_dataset.json", {2: 408}),
        (
            "generate/survival-instinct/generate_dataset.json",
            {2: 664, 3: 176, 4: 37, 5: 17, 6: 2, 7: 5, 8: 2},
        ),
        ("generate/sycophancy/generate_dataset.json", {2: 1000}),
        ("test/hallucination/test_dataset_ab.json", {2: 50}),
        ("test/refusal/test_dataset_ab.json", {2: 50}),
        ("test/survival-instinct/test_dataset_ab.json", {2: 42, 3: 6, 5: 2}),
        ("test/sycophancy/test_dataset_ab.json", {2: 50}),
        ("test/mmlu/mmlu.json", {2: 570}),
    ],
)
def test_public_data_is_read_as_it_is(file: str, by_choices: dict[int, int]) -> None:
    path = PUBLIC / file
    data = read_questions(path)
    assert data.by_choices == by_choices
    assert len(data.items) == len(json.loads(path.read_text()))
    lines = path.read_text().split("\n")
    for item in data.items:
        assert item.lettered
        assert lines[item.line - 1].strip() == "{"
        other = swapped(item)
        assert other is not None
        back = swapped(other)
        assert back is not None
        assert (back.question, back.item_id) == (item.question, item.item_id)


@pytest.mark.skipif(not PUBLIC.is_dir(), reason="the public data is not part of the repository")
def test_public_open_questions() -> None:
    counts = {
        path.parent.name: len(read_prompts(path).prompts) for path in PUBLIC.glob("test/*/*_open_ended.json")
    }
    assert counts == {"hallucination": 50, "refusal": 50, "survival-instinct": 50, "sycophancy": 53}
