"""An evaluation's questions, read and turned into tokens; whatever is wrong has its place in the grid."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from vsteer.errors import ModelError
from vsteer.evaluations.evaluation import CannotAsk, Evaluation, Questions
from vsteer.evaluations.prompt_spec import PromptSpec
from vsteer.evaluations.rendered_prompt import AnyItem, Order, RenderedPrompt
from vsteer.grid.problems import Loc
from vsteer.grid.spec import Grid
from vsteer.identity import identify
from vsteer.plan.vector_sources import located
from vsteer.prompts.template import render_question, template_name
from vsteer.protocol import Prompt
from vsteer.validation import shortened

# What a rendering is known by: a template that changed, or that writes the date, makes other tokens of it.
PROBE = "Is this the same template as before?"
# Each token of an answer is a request of its own, with all tokens before it.
MOST_ANSWER_TOKENS = 1_000
_LONGEST_NAME = 40

T = TypeVar("T")


def read_questions(grid: Grid, data: str, place: int) -> tuple[Evaluation, Questions]:
    """What an evaluation asks of one of its data sets, and the evaluation as it asks that."""
    evaluation = grid.evaluations[place]
    at: Loc = ("evaluations", place, evaluation.data_setting, evaluation.data_sets.index(data))
    with located(grid, at):
        return evaluation.ask(data, grid.folder)


def prompt_specs(grid: Grid, place: int) -> list[tuple[PromptSpec, str, str]]:
    """The ways in which an evaluation asks, each with its system prompt's name and the control that it is.

    The evaluation's own system prompts come first, then those that are controls.
    """
    evaluation = grid.evaluations[place]
    prompts = grid.controls.system_prompts
    controls = {prompts.positive: "positive", prompts.negative: "negative"}
    systems: dict[str | None, str] = dict.fromkeys(evaluation.system, "")
    for system in controls:
        if system is not None:
            systems.setdefault(system, "system")
    return [
        (
            PromptSpec(evaluation, system, grid.seed),
            "" if system is None else controls.get(system) or _short_name(system),
            control,
        )
        for system, control in systems.items()
    ]


def merged_controls(grid: Grid, place: int) -> int:
    """How many of the controls' system prompts an evaluation has already, as its own or as the other one."""
    prompts = grid.controls.system_prompts
    given = sum(text is not None for text in (prompts.positive, prompts.negative))
    return given - sum(control == "system" for _, _, control in prompt_specs(grid, place))


def _short_name(system: str) -> str:
    """A system prompt's name in results: its text, or the start of it with a piece of its hash."""
    words = " ".join(system.split())
    return words if len(words) <= _LONGEST_NAME else f"{words[: _LONGEST_NAME - 5]} {identify(system)[:4]}"


class PromptRenderer:
    """Turns questions into tokens for one way of asking; without a tokenizer, into about as many tokens."""

    def __init__(self, grid: Grid, place: int, name: str, spec: PromptSpec, tokenizer: Any) -> None:
        self.grid, self.place, self.name, self.spec, self.tokenizer = grid, place, name, spec, tokenizer
        self._shared: dict[int, int] = {}

    def template(self) -> dict[str, str]:
        """The template's part of every identity: its kind, and how it renders a question here."""
        if self.tokenizer is None:
            return {}
        if not self.spec.evaluation.in_template:
            return {"template": "plain"}
        system = self.spec.system
        probe = self._guarded(lambda: render_question(self.tokenizer, PROBE, system))
        if system and probe == self._guarded(lambda: render_question(self.tokenizer, PROBE)):
            raise self.grid.error(
                ("evaluations", self.place),
                "the model's chat template leaves the system prompt out, so it would change nothing",
                "take the system prompt out, or put it into the questions",
            )
        return {"template": template_name(self.tokenizer), "rendering": identify(list(probe.token_ids))}

    def rendered(self, item: AnyItem, order: Order) -> RenderedPrompt:
        evaluation, system = self.spec.evaluation, self.spec.system
        try:
            if self.tokenizer is None:
                made = evaluation.estimate(item, system)
            else:
                made = self._guarded(lambda: evaluation.render(self.tokenizer, item, system))
            longest = max(map(len, made.answers), default=0)
            if longest > MOST_ANSWER_TOKENS:
                message = f"an answer has {longest:,} tokens, and at most {MOST_ANSWER_TOKENS:,} are scored"
                raise CannotAsk(message, "shorten the answer, or ask it as an open question")
        except CannotAsk as error:
            if error.setting:
                at: Loc = ("evaluations", self.place, error.setting)
                raise self.grid.error(at, str(error), error.hint) from None
            message = f"the item on line {item.line} of {shortened(self.name)} can't be asked: {error}"
            at = ("evaluations", self.place, evaluation.data_setting)
            raise self.grid.error(at, message, error.hint) from None
        # the same token is the same object in every prompt: a large plan is an eighth of its size
        tokens = tuple(self._shared.setdefault(token, token) for token in made.prompt.token_ids)
        prompt = Prompt(tokens, made.prompt.template_length, made.prompt.user_turn_length)
        content = [self.name, item.item_id, order, list(tokens), list(map(list, made.answers))]
        prompt_id = "" if self.tokenizer is None else identify(content)
        return RenderedPrompt(self.name, item, order, prompt, prompt_id, made.scored, made.answers)

    def _guarded(self, rendering: Callable[[], T]) -> T:
        try:
            return rendering()
        except ModelError as error:
            raise self.grid.error(("evaluations", self.place, "system"), error.message, error.hint) from None
