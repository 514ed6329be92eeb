"""One question in a model's tokens, with the tokens of the answers that are scored."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

from vsteer.datasets import items
from vsteer.prompts.answers import Tokens
from vsteer.protocol import Prompt

AnyItem = items.Item | items.Prompt
Order = Literal["original", "swapped"]


class Rendering(NamedTuple):
    """What an evaluation makes of an item."""

    prompt: Prompt
    scored: tuple[int, ...] = ()  # the item's choices that are scored, by their place in it
    answers: tuple[Tokens, ...] = ()  # the tokens of each given answer


@dataclass(frozen=True, slots=True)
class RenderedPrompt:
    """One question of an evaluation. A swapped item has its own id, and says which item it was made from."""

    evaluation: str
    item: AnyItem
    order: Order
    prompt: Prompt
    prompt_id: str  # the hash of its tokens and of what is scored; empty while the model isn't at hand
    scored: tuple[int, ...] = ()
    answers: tuple[Tokens, ...] = ()

    @property
    def item_id(self) -> str:
        return self.item.item_id

    @property
    def question(self) -> str:
        return self.item.question if isinstance(self.item, items.Item) else self.item.text
