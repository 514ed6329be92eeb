"""Vectors of other behaviours, made in the same way: controls for "any contrast would do this".

A random direction lies outside those in which the stream varies at all; one between kinds of texts doesn't.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

from vsteer.datasets.builtin import CONTRASTS, contrast_path, find_data, is_builtin
from vsteer.datasets.choices import list_choices, listed_choices
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
from vsteer.datasets.readers import read_contrast
from vsteer.vectors.members import check_token
from vsteer.vectors.methods import METHODS, check_method
from vsteer.vectors.recipe import Recipe


def unrelated_recipes(
    recipe: Recipe,
    wanted: int | tuple[str, ...],
    beside: Path,
    located: Callable[[int], AbstractContextManager[object]],
) -> dict[int, Recipe]:
    """The recipes of a vector's unrelated ones by their numbers, without its own data and behaviour.

    `wanted` is how many of the built-in contrasts are taken, or data as a grid names it, each of which is
    read within `located(its number)`.
    """
    found = {}
    for number, (name, path) in enumerate(_data(wanted, beside, located)):
        with located(number):
            other = made_alike(recipe, name, path)
        if not set(other.sha256) & set(recipe.sha256) and _behaviour(name) != _behaviour(recipe.source):
            found[number] = other
    return found


def _data(
    wanted: int | tuple[str, ...], beside: Path, located: Callable[[int], AbstractContextManager[object]]
) -> Iterator[tuple[str, Path]]:
    if isinstance(wanted, int):
        yield from ((name, contrast_path(name)) for name in CONTRASTS[:wanted])
        return
    for number, name in enumerate(wanted):
        with located(number):
            path = find_data(name, "pairs", beside)
        yield name, path


def _behaviour(data: str) -> str:
    """`refusal` for `refusal` and for `refusal/instructions`; any other data stands for itself."""
    return data.partition("/")[0] if is_builtin(data) else data


def made_alike(recipe: Recipe, name: str, path: Path) -> Recipe:
    """The recipe that does with other data what `recipe` does with its own: its method, token and system
    prompt. Pairs are put into the form of its data."""
    data, form = read_contrast(path), ""
    if isinstance(data, ItemSet):
        if not METHODS[recipe.method].paired:
            data, form = answers_apart(data), "answers"
        elif recipe.token == "answer" and _lettered(recipe.data) and not _lettered(data):
            data, form = with_letters(data), "letters"
    source = (data if isinstance(data, ItemSet) else data.positive).source
    check_method(recipe.method, data)
    check_token(recipe.token, data)
    return replace(
        recipe,
        name=f"unrelated-{Path(name).stem}",
        source=name,
        files=(path,),
        sha256=(source.sha256,),
        form=form,
        data=data,
    )


def _lettered(data: ItemSet | UnpairedSets) -> bool:
    return isinstance(data, ItemSet) and all(item.lettered for item in data.items)


def with_letters(pairs: ItemSet) -> ItemSet:
    """The pairs as questions whose answers are letters; as often (A) matches as (B), in no simple pattern."""
    return replace(pairs, items=tuple(_with_letters(item, n) for n, item in enumerate(pairs.items)))


def _with_letters(item: Item, place: int) -> Item:
    if item.lettered:
        return item
    # The parity of a number's bits is balanced over each two in a row and doesn't alternate.
    matching = place.bit_count() % 2
    assert item.not_matching is not None
    texts = [item.choices[item.matching].text, item.choices[item.not_matching].text]
    question = list_choices(item.question, texts[::-1] if matching else texts)
    choices = tuple(Choice(f"({one.label})", one.text, one.label) for one in listed_choices(question))
    return replace(
        item,
        item_id=name_item(question, choices, matching, 1 - matching),
        question=question,
        choices=choices,
        matching=matching,
        not_matching=1 - matching,
    )


def answers_apart(pairs: ItemSet) -> UnpairedSets:
    """The answers as two sets of texts, for a method that takes what a user says and no pairs."""
    sets = []
    for positive in (True, False):
        texts: dict[str, Prompt] = {}
        for item in pairs.items:
            choice = item.choices[item.matching if positive else item.others[0]]
            prompt = Prompt(content_hash([choice.text]), choice.text, item.line)
            texts.setdefault(prompt.item_id, prompt)
        sets.append(PromptSet(pairs.source, tuple(texts.values())))
    return UnpairedSets(*sets)
