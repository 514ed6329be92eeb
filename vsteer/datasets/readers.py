"""Reads contrast data: what a vector is made from, and what it is tested on. Content tells the form.

    read_contrast(path)    pairs (CAA's JSON, JSONL of prompt, positive, negative) or two unpaired sets
    read_questions(path)   questions with choices: the same forms, and MMLU's two
    read_prompts(path)     open questions or instructions, without answers

No item is dropped: one that can't be used is an error that names its line.
"""

import reprlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from vsteer.datasets.choices import answer_label, list_choices, listed_choices
from vsteer.datasets.items import (
    Choice,
    Item,
    ItemSet,
    Prompt,
    PromptSet,
    UnpairedSets,
    content_hash,
    name_item,
)
from vsteer.datasets.records import (
    DataFile,
    Record,
    is_json,
    json_lists,
    json_records,
    open_data,
    text_records,
)
from vsteer.errors import DataError

_PROMPT_FIELDS = ("question", "prompt", "instruction", "text")
_MAX_LISTED = 26


def read_contrast(path: str | Path, negative: str | Path | None = None) -> ItemSet | UnpairedSets:
    """What a vector is made from. Two files, or one object of two lists, are unpaired sets."""
    if negative is not None:
        return _unpaired(read_prompts(path), read_prompts(negative))
    file = open_data(path)
    if (lists := json_lists(file)) is not None:
        if set(lists) != {"positive", "negative"}:
            message = f'expected the lists "positive" and "negative", found {_names(lists)}'
            raise file.error(1, message, "an object of lists holds two unpaired sets of instructions")
        return _unpaired(_prompts(file, lists["positive"]), _prompts(file, lists["negative"]))
    items = _items(file)
    if items.form not in _CONTRAST_FORMS:
        message = f"expected contrast pairs, found questions in the form {items.form}"
        raise file.error(
            items.items[0].line, message, "they test a capability; make vectors from pairs instead"
        )
    return items


def read_questions(path: str | Path) -> ItemSet:
    """Held-out questions with choices; capability questions too."""
    return _items(open_data(path))


def read_prompts(path: str | Path) -> PromptSet:
    """Open questions or instructions: JSON strings, objects with one prompt field, or lines of text."""
    file = open_data(path)
    return _prompts(file, json_records(file) if is_json(file) else text_records(file))


def _items(file: DataFile) -> ItemSet:
    if not is_json(file):
        raise file.error(1, "expected JSON or JSON Lines, found text", f"the forms are: {_FORM_LIST}")
    records = json_records(file)
    if not records:
        raise file.error(1, "expected items, found an empty list", "is it the file you meant?")
    fields = _fields(file, records[0])
    form = next((form for form in _FORMS if form.fields <= fields.keys()), None)
    if form is None:
        hint = f"the forms are: {_FORM_LIST}; questions without answers are read as open questions"
        raise file.error(
            records[0].line, f"expected an item of a known form, found the fields {_names(fields)}", hint
        )
    items, unused = [], set[str]()
    for record in records:
        fields = _fields(file, record)
        if missing := form.fields - fields.keys():
            message = f"expected the field {_names(missing)}, found {_names(fields)}"
            raise file.error(record.line, message, f"every item of this file must have {_names(form.fields)}")
        items.append(form.parse(file, record.line, fields))
        unused |= fields.keys() - form.fields - {"category"}
    return ItemSet(file.source, form.name, tuple(items), tuple(sorted(unused)))


def _caa(file: DataFile, line: int, fields: Mapping[str, object]) -> Item:
    return _answered(
        file, line, fields, "question", "answer_matching_behavior", "answer_not_matching_behavior"
    )


def _caa_capability(file: DataFile, line: int, fields: Mapping[str, object]) -> Item:
    return _answered(file, line, fields, "prompt", "correct", "incorrect")


def _pair(file: DataFile, line: int, fields: Mapping[str, object]) -> Item:
    return _answered(file, line, fields, "prompt", "positive", "negative")


def _answered(
    file: DataFile, line: int, fields: Mapping[str, object], question_field: str, positive: str, negative: str
) -> Item:
    """An item that names two answers: letters of the choices listed in the question, or plain words."""
    question = _text(file, line, fields, question_field).strip()
    answers = [_text(file, line, fields, positive), _text(file, line, fields, negative)]
    labels = [answer_label(answer) for answer in answers]
    listed = listed_choices(question)
    # A bare "A" is a letter only beside listed choices: without them it is a word like any other.
    if listed and None not in labels:
        names = [choice.label for choice in listed]
        if len(names) < 2 or len(set(names)) < len(names):
            message = f"expected two or more choices, each with a letter of its own, found {_names(names)}"
            raise file.error(
                line, message, f'list them at the end of "{question_field}", each on its own line'
            )
        choices = tuple(Choice(f"({choice.label})", choice.text, choice.label) for choice in listed)
        if empty := [choice.label for choice in choices if not choice.text]:
            raise file.error(line, f"expected a text beside ({empty[0]}), found none", "write the choice out")
        for label, name in zip(labels, (positive, negative), strict=True):
            if label not in names:
                message = f'expected "{name}" to be one of the listed choices {_names(names)}, found {label}'
                raise file.error(line, message, "fix the letter, or the list at the end of the question")
        matching, not_matching = names.index(str(labels[0])), names.index(str(labels[1]))
    elif any(answer.strip().startswith("(") and label for answer, label in zip(answers, labels, strict=True)):
        first, second = map(reprlib.repr, answers)
        message = f'expected choices for {first} and {second} in "{question_field}"'
        raise file.error(line, message, "list them at its end, each on its own line: (A) ...")
    else:
        choices, matching, not_matching = tuple(Choice(answer, answer.strip()) for answer in answers), 0, 1
    if choices[matching].answer == choices[not_matching].answer:
        both = reprlib.repr(answers[0])
        message = f'expected different answers in "{positive}" and "{negative}", both are {both}'
        raise file.error(line, message, "a pair that doesn't differ says nothing")
    return _item(file, line, question, choices, matching, not_matching, fields)


def _multiple_choice(file: DataFile, line: int, fields: Mapping[str, object]) -> Item:
    """`{question, choices, answer}`: the answer as an index, a letter, or the text of a choice."""
    texts, answer = fields["choices"], fields["answer"]
    if not isinstance(texts, list) or not all(isinstance(text, str) and text.strip() for text in texts):
        raise file.error(line, 'expected "choices" to be a list of texts', 'such as ["2", "3", "5"]')
    if not 2 <= len(texts) <= _MAX_LISTED:
        raise file.error(line, f"expected 2 to {_MAX_LISTED} choices, found {len(texts)}", "fix this item")
    texts = [text.strip() for text in texts]
    _check_unicode(file, line, '"choices"', "".join(texts))
    question = list_choices(_text(file, line, fields, "question"), texts)
    choices = tuple(Choice(f"({c.label})", c.text, c.label) for c in listed_choices(question))
    if [choice.text for choice in choices] != texts:
        message = "expected choices that can be listed, one text looks like a list of choices itself"
        raise file.error(line, message, "no line of a choice may start with a letter in brackets")
    labels = [choice.label for choice in choices]
    if isinstance(answer, int) and not isinstance(answer, bool):
        matching = answer if 0 <= answer < len(texts) else None
    elif isinstance(answer, str) and texts.count(answer.strip()) == 1:
        matching = texts.index(answer.strip())
    else:
        label = answer_label(answer) if isinstance(answer, str) else None
        matching = labels.index(label) if label in labels else None
    if matching is None:
        message = (
            f'expected "answer" to be an index from 0 to {len(texts) - 1}, a letter or one choice\'s text'
        )
        raise file.error(line, f"{message}, found {reprlib.repr(answer)}", "fix this item")
    return _item(file, line, question, choices, matching, None, fields)


def _item(
    file: DataFile,
    line: int,
    question: str,
    choices: tuple[Choice, ...],
    matching: int,
    not_matching: int | None,
    fields: Mapping[str, object],
) -> Item:
    category = _category(file, line, fields.get("category", fields.get("subject")))
    name = name_item(question, choices, matching, not_matching)
    return Item(name, question, choices, matching, not_matching, line, category)


def _category(file: DataFile, line: int, value: object) -> str:
    if isinstance(value, list | dict):
        raise file.error(line, f'expected "category" to be a text, found {reprlib.repr(value)}', "give one")
    category = str(value or "")
    _check_unicode(file, line, '"category"', category)
    return category


def _prompts(file: DataFile, records: Sequence[Record]) -> PromptSet:
    if not records:
        raise file.error(1, "expected prompts, found an empty list", "is it the file you meant?")
    return PromptSet(file.source, tuple(_prompt(file, record) for record in records))


def _prompt(file: DataFile, record: Record) -> Prompt:
    if isinstance(record.value, str):
        text, category = record.value, ""
        _check_text(file, record.line, "the prompt", text)
    else:
        fields = _fields(file, record)
        if form := next((form for form in _FORMS if form.fields <= fields.keys()), None):
            message = f"expected an open question, found an item with answers ({form.name})"
            raise file.error(record.line, message, "read this file as choice questions")
        present = [name for name in _PROMPT_FIELDS if name in fields]
        if len(present) != 1:
            message = f"expected one of the fields {_names(_PROMPT_FIELDS)}, found {_names(fields)}"
            raise file.error(record.line, message, 'such as {"question": "Is it raining?"}')
        text = _text(file, record.line, fields, present[0])
        category = _category(file, record.line, fields.get("category"))
    return Prompt(content_hash([text.strip()]), text.strip(), record.line, category)


def _unpaired(positive: PromptSet, negative: PromptSet) -> UnpairedSets:
    known = {prompt.item_id: prompt for prompt in positive.prompts}
    for prompt in negative.prompts:
        if prompt.item_id in known:
            message = f"expected two different sets, {prompt.text[:60]!r} is in both (line {prompt.line}"
            other = f"and line {known[prompt.item_id].line} of {positive.source.path})"
            raise DataError(f"{negative.source.path}: {message} {other}", "take it out of one of them")
    return UnpairedSets(positive, negative)


def _fields(file: DataFile, record: Record) -> dict[str, object]:
    if not isinstance(record.value, dict):
        kind = type(record.value).__name__
        raise file.error(
            record.line, f"expected an object, found {kind}", 'an item is written {"question": ...}'
        )
    return record.value


def _text(file: DataFile, line: int, fields: Mapping[str, object], name: str) -> str:
    value = fields[name]
    if not isinstance(value, str):
        found = "nothing" if value is None else f"{type(value).__name__} {reprlib.repr(value)}"
        raise file.error(line, f'expected "{name}" to be a text, found {found[:80]}', "put it in quotes")
    _check_text(file, line, f'"{name}"', value)
    return value


def _check_text(file: DataFile, line: int, name: str, value: str) -> None:
    if not value.strip():
        raise file.error(
            line, f"expected a text in {name}, found an empty one", "fill it in, or take the item out"
        )
    _check_unicode(file, line, name, value)


def _check_unicode(file: DataFile, line: int, name: str, value: str) -> None:
    try:
        value.encode()
    except UnicodeEncodeError:
        raise file.error(
            line, f"expected Unicode text in {name}, found half a surrogate pair", "fix this item"
        ) from None


def _names(names: Mapping[str, object] | Sequence[str] | set[str] | frozenset[str]) -> str:
    in_order = sorted(names) if isinstance(names, set | frozenset) else list(names)
    shown = ", ".join(name[:40] for name in in_order[:8]) or "none"
    shown = shown.encode(errors="replace").decode()  # a field's name may hold half a surrogate pair
    return shown if len(in_order) <= 8 else f"{shown} and {len(in_order) - 8:,} more"


@dataclass(frozen=True, slots=True)
class _Form:
    name: str
    fields: frozenset[str]
    parse: Callable[[DataFile, int, Mapping[str, object]], Item]


_FORMS = (
    _Form("caa", frozenset({"question", "answer_matching_behavior", "answer_not_matching_behavior"}), _caa),
    _Form("pairs", frozenset({"prompt", "positive", "negative"}), _pair),
    _Form("caa_capability", frozenset({"prompt", "correct", "incorrect"}), _caa_capability),
    _Form("multiple_choice", frozenset({"question", "choices", "answer"}), _multiple_choice),
)
_CONTRAST_FORMS = ("caa", "pairs")
_FORM_LIST = "; ".join("{" + ", ".join(sorted(form.fields)) + "}" for form in _FORMS)
