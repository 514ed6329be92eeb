"""Whether letters are asked for behind what they were read behind when the vector was made.

CAA forces ` (` before a letter. ChatML and Llama 3 put no space in front of an answer, so a vector's letters
are read behind `(` there, which is another token with another stream.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Any

from vsteer.datasets.items import Item
from vsteer.errors import VsteerError
from vsteer.evaluations.rendered_prompt import RenderedPrompt
from vsteer.plan.vector_sources import VectorSource
from vsteer.prompts.answers import forced_start
from vsteer.vectors.members import letter_start
from vsteer.vectors.recipe import Recipe


def notes_on_starts(
    tokenizer: Any, name: str, prompts: Iterable[RenderedPrompt], sources: Iterable[VectorSource]
) -> Iterator[str]:
    """A line for each vector whose letters were read behind another start than the evaluation forces."""
    lettered = (one for one in prompts if one.answers and isinstance(one.item, Item) and one.item.lettered)
    first = next(lettered, None)
    if tokenizer is None or first is None:
        return
    asked = forced_start(tokenizer, first.prompt)
    for source in sources:
        recipe, read = source.made_from, None
        # Whatever is wrong with the vector's data is reported when its recipe is checked.
        with suppress(VsteerError):
            if isinstance(recipe, Recipe):
                read = letter_start(tokenizer, recipe.data, recipe.token, recipe.system)
        if read is not None and read != asked:
            yield (
                f"{name}: its letters are asked for behind {asked!r}, and those of the vector "
                f"{source.name} are read behind {read!r}, which is another token in this model"
            )
