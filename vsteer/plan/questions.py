"""An evaluation's questions, read and turned into tokens; whatever is wrong is said with the grid's line."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from vsteer.datasets import items
from vsteer.datasets.builtin import behaviours
from vsteer.errors import ModelError
from vsteer.evaluations.choice import CannotAsk, ChoiceSpec, ask_choice, orders, scored_choices
from vsteer.evaluations.open_ended import OpenEndedSpec, ask_open
from vsteer.evaluations.prompt_spec import Order, PromptSpec, RenderedPrompt
from vsteer.evaluations.refusal_tokens import RefusalTokensSpec, ask_refusal_tokens
from vsteer.grid.problems import Loc
from vsteer.grid.spec import Grid
from vsteer.identity import identify
from vsteer.plan.vector_sources import read_items, read_open
from vsteer.prompts.answers import Tokens, render
from vsteer.prompts.template import template_name
from vsteer.protocol import Prompt

# What a rendering is known by: a template that changed, or that writes the date, makes other tokens of it.
PROBE = "Is this the same template as before?"
# Without a tokenizer: English text has about four characters a token, and a chat template adds some tokens.
CHARACTERS_A_TOKEN, TEMPLATE_TOKENS = 4, 20
_LONGEST_NAME = 40

T = TypeVar("T")
Question = tuple[items.Item | items.Prompt, Order]


@dataclass(frozen=True)
class Questions:
    questions: tuple[Question, ...]
    data_sha256: str
    notes: tuple[str, ...]


def read_questions(grid: Grid, name: str, data: str, place: int) -> Questions:
    """What an evaluation asks, each question once, and again with its choices in the other order."""
    spec = grid.evaluations[place]
    at: Loc = ("evaluations", place, "data", spec.data.index(data))
    asked: list[Question]
    notes = []
    if isinstance(spec, ChoiceSpec):
        held = read_items(grid, at, data)
        chosen = held.unique()[: spec.limit]
        asked = [(other, order) for item in chosen for order, other in orders(item, spec.both_orders)]
        kept = sum(item.lettered for item in chosen) - sum(order == "swapped" for _, order in asked)
        if spec.both_orders and kept:
            notes.append(f"{name}: {kept} items are asked in one order, for their wording refers to it")
        source, repeated = held.source, held.duplicates
    else:
        if isinstance(spec, RefusalTokensSpec) and data in behaviours():
            message = f"{data!r} mixes kinds of questions, and a mean over them would say nothing"
            hint = "name sets of one kind: data: [refusal/harmful, refusal/harmless], or your own files"
            raise grid.error(at, message, hint)
        prompts = read_open(grid, at, data)
        unique = {prompt.item_id: prompt for prompt in reversed(prompts.prompts)}
        asked = [(prompt, "original") for prompt in list(unique.values())[::-1][: spec.limit]]
        source, repeated = prompts.source, prompts.duplicates
    if repeated:
        notes.append(f"{name}: {repeated} questions stand in the data more than once and are asked once")
    return Questions(tuple(asked), source.sha256, tuple(notes))


def ways_to_ask(grid: Grid, place: int) -> list[tuple[PromptSpec, str, str]]:
    """The ways an evaluation asks, each with its system prompt's name and the control that it is, if any.

    First with the evaluation's own system prompts, then with those that are controls.
    """
    spec = grid.evaluations[place]
    if isinstance(spec, ChoiceSpec):
        plain = PromptSpec("choice", None, spec.answer_prefix, spec.caa_compat)
    elif isinstance(spec, RefusalTokensSpec):
        plain = PromptSpec("choice", None, spec.answer_prefix, refusal_tokens=spec.tokens)
    else:
        assert isinstance(spec, OpenEndedSpec)
        sampled = spec.temperature > 0
        plain = PromptSpec(
            "open_ended",
            None,
            spec.answer_prefix,
            max_tokens=spec.max_tokens,
            temperature=spec.temperature,
            top_p=spec.top_p if sampled else 1.0,
            stop=spec.stop,
            seed=grid.seed if sampled else None,
        )
    prompts = grid.controls.system_prompts
    controls = {prompts.positive: "positive", prompts.negative: "negative"}
    systems: dict[str | None, str] = dict.fromkeys(spec.system, "")
    for system in controls:
        if system is not None:
            systems.setdefault(system, "system")
    return [
        (replace(plain, system=system), controls.get(system) or _short_name(system), control)
        if system is not None
        else (plain, "", control)
        for system, control in systems.items()
    ]


def _short_name(system: str) -> str:
    """A system prompt's name in results: its text, or the start of it with a piece of its hash."""
    words = " ".join(system.split())
    return words if len(words) <= _LONGEST_NAME else f"{words[: _LONGEST_NAME - 5]} {identify(system)[:4]}"


class PromptRenderer:
    """Turns questions into tokens for one way of asking. No tokenizer: into so many tokens as is likely."""

    def __init__(self, grid: Grid, place: int, name: str, ask: PromptSpec, tokenizer: Any) -> None:
        self.grid, self.place, self.name, self.ask, self.tokenizer = grid, place, name, ask, tokenizer
        self._shared: dict[int, int] = {}

    def rendering(self) -> dict[str, str]:
        """The template's part of every identity: its kind, and how it renders a question here."""
        if self.tokenizer is None:
            return {}
        probe = self._guarded(lambda: render(self.tokenizer, PROBE, self.ask.system))
        if self.ask.system and probe == self._guarded(lambda: render(self.tokenizer, PROBE)):
            raise self.grid.error(
                ("evaluations", self.place),
                "the model's chat template leaves the system prompt out, so it would change nothing",
                "take the system prompt out, or put it into the questions",
            )
        return {"template": template_name(self.tokenizer), "rendering": identify(list(probe.token_ids))}

    def asked(self, item: items.Item | items.Prompt, order: Order) -> RenderedPrompt:
        scored: tuple[int, ...] = ()
        answers: tuple[Tokens, ...] = ()
        try:
            if isinstance(item, items.Item):
                prompt, scored, answers = self._choice(item)
            elif self.ask.refusal_tokens:
                prompt, answers = self._refusal_tokens(item)
            elif self.tokenizer is None:
                prompt = self._estimated(item.text)
            else:
                prompt = self._guarded(lambda: ask_open(self.tokenizer, item, self.ask))
        except CannotAsk as error:
            if self.ask.refusal_tokens:
                hint = "name single tokens with which this model begins refusals"
                raise self.grid.error(("evaluations", self.place, "tokens"), str(error), hint) from None
            message = f"the item on line {item.line} of {self.name} can't be asked: {error}"
            hint = "mend the item, or leave caa_compat out" if self.ask.caa_compat else "mend the item"
            raise self.grid.error(("evaluations", self.place, "data"), message, hint) from None
        # the same token is the same object in every prompt: a large plan is an eighth of its size
        tokens = tuple(self._shared.setdefault(token, token) for token in prompt.token_ids)
        prompt = Prompt(tokens, prompt.template_length, prompt.user_turn_length)
        rendered = [self.name, item.item_id, order, list(tokens), list(map(list, answers))]
        prompt_id = "" if self.tokenizer is None else identify(rendered)
        return RenderedPrompt(self.name, self.ask, item, order, prompt, prompt_id, scored, answers)

    def _choice(self, item: items.Item) -> tuple[Prompt, tuple[int, ...], tuple[Tokens, ...]]:
        if self.tokenizer is not None:
            return self._guarded(lambda: ask_choice(self.tokenizer, item, self.ask))
        scored = scored_choices(item, self.ask)
        answers = tuple(_estimated_answer(item, n) for n in scored)
        return self._estimated(item.question), scored, answers

    def _refusal_tokens(self, item: items.Prompt) -> tuple[Prompt, tuple[Tokens, ...]]:
        if self.tokenizer is None:
            return self._estimated(item.text), tuple((n,) for n in range(len(self.ask.refusal_tokens)))
        return self._guarded(lambda: ask_refusal_tokens(self.tokenizer, item, self.ask))

    def _guarded(self, rendering: Callable[[], T]) -> T:
        try:
            return rendering()
        except ModelError as error:
            raise self.grid.error(("evaluations", self.place, "system"), error.message, error.hint) from None

    def _estimated(self, text: str) -> Prompt:
        said = (self.ask.system or "") + text + (self.ask.answer_prefix or "")
        return Prompt.plain([0] * (TEMPLATE_TOKENS + len(said) // CHARACTERS_A_TOKEN))


def _estimated_answer(item: items.Item, choice: int) -> Tokens:
    if item.lettered:
        return (choice,)
    return (choice,) * max(1, round(len(item.choices[choice].text) / CHARACTERS_A_TOKEN))
