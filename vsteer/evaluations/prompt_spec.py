"""How an evaluation asks (`PromptSpec`), and one question in tokens (`RenderedPrompt`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from vsteer.datasets import items
from vsteer.prompts.answers import Tokens
from vsteer.protocol import Prompt

Kind = Literal["choice", "open_ended"]
Order = Literal["original", "swapped"]
# What stands against a model's refusal tokens.
OTHER_TOKEN = "any other token"


@dataclass(frozen=True, slots=True)
class PromptSpec:
    """Everything about the asking that changes an output, the same for all items of an evaluation."""

    kind: Kind
    system: str | None = None
    answer_prefix: str | None = None  # None: what the model's template wants
    caa_compat: bool = False
    refusal_tokens: tuple[str, ...] = ()  # the choice is between these and any other first token
    max_tokens: int = 1
    temperature: float = 0.0
    top_p: float = 1.0
    stop: tuple[str, ...] = ()
    seed: int | None = None  # the run's, where it samples

    def identity(self) -> dict[str, Any]:
        said: dict[str, Any] = {"kind": self.kind, "system": self.system, "answer_prefix": self.answer_prefix}
        if self.refusal_tokens:
            return said | {"refusal_tokens": list(self.refusal_tokens)}
        if self.kind == "choice":
            return said | {"caa_compat": self.caa_compat}
        said |= {"max_tokens": self.max_tokens, "temperature": self.temperature, "stop": list(self.stop)}
        # Greedy decoding throws no dice.
        return said | ({"top_p": self.top_p, "seed": self.seed} if self.temperature > 0 else {})


@dataclass(frozen=True, slots=True)
class RenderedPrompt:
    """One question in tokens: the prompt, and for choices the scored tokens of each answer.

    A swapped item goes by a name of its own, and says whose choices changed places.
    """

    evaluation: str
    ask: PromptSpec
    item: items.Item | items.Prompt
    order: Order
    prompt: Prompt
    prompt_id: str  # of its tokens and what is scored; empty while the model isn't at hand
    # the item's choices that are scored, by their place in it, and their tokens; of refusal tokens each
    scored: tuple[int, ...] = ()
    answers: tuple[Tokens, ...] = ()

    @property
    def item_id(self) -> str:
        return self.item.item_id

    @property
    def labels(self) -> tuple[str, ...]:
        """Of each scored choice its letter, or its words where it has none."""
        if self.ask.refusal_tokens:
            return " or ".join(self.ask.refusal_tokens), OTHER_TOKEN
        if not isinstance(self.item, items.Item):
            return ()
        return tuple(self.item.choices[n].label or self.item.choices[n].text for n in self.scored)

    @property
    def matching(self) -> int | None:
        """Which of the labels matches the behaviour; None of a text."""
        if self.ask.refusal_tokens:
            return 0
        return self.scored.index(self.item.matching) if isinstance(self.item, items.Item) else None

    @property
    def question(self) -> str:
        return self.item.question if isinstance(self.item, items.Item) else self.item.text

    @property
    def forced_tokens(self) -> int:
        """How many tokens of an answer stand in the longest of its requests: all but the last one."""
        return max((len(tokens) - 1 for tokens in self.answers), default=0)
