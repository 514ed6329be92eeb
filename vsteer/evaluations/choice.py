"""Choice questions: the probability of each answer of a multiple-choice item, by its own letters or words.

This is the A/B evaluation of CAA (Rimsky et al. 2024, "Steering Llama 2 via Contrastive Activation
Addition"), and the way in which MMLU is mostly scored. For a lettered answer `(A)` the bracket before the
letter is forced as the model's template wants it, the letter is scored, and the bracket behind it is not. A
lettered item is asked in both orders of its choices, since a model may prefer a letter whatever it means.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import model_validator

from vsteer.datasets.choices import refers_to_choices
from vsteer.datasets.items import Item, swapped
from vsteer.datasets.readers import read_questions
from vsteer.evaluations.evaluation import (
    BEYOND_LIMIT,
    CHARACTERS_A_TOKEN,
    REPEATED,
    CannotAsk,
    DataEvaluation,
    Questions,
)
from vsteer.evaluations.given_answers import Floats, GivenAnswersEvaluation, Scores, scores_of_answers
from vsteer.evaluations.rendered_prompt import AnyItem, Order, RenderedPrompt, Rendering
from vsteer.prompts.answers import AmbiguousAnswers, cut_letters, cut_words, gap
from vsteer.prompts.template import render_question
from vsteer.protocol import Positions, Prompt
from vsteer.validation import shortened, shown, wrong

CAA_PREFIX = " ("
IN_ONE_ORDER = "have swapped letters, and their wording refers to the order"
ORIGINAL_ORDER = "have swapped letters, and the evaluation asks in the original order alone"


class ChoiceEvaluation(DataEvaluation, GivenAnswersEvaluation):
    builtin_part: ClassVar[str] = "questions"

    kind: Literal["choice"]
    letter_orders: Literal["both", "original"] | None = None
    """Whether a lettered item is asked in both orders of its choices. By default `both`, and `original` under
    `caa_compat`."""
    caa_compat: bool = False
    """Follow CAA's recipe: force ` (`, score the two letters that an item names, steer `after_user_turn`."""

    @model_validator(mode="after")
    def _one_prefix(self) -> ChoiceEvaluation:
        if self.caa_compat and self.answer_prefix is not None:
            raise wrong(
                "caa_compat forces ' (' before the answer", "leave one of the two out", "answer_prefix"
            )
        return self

    @property
    def both_orders(self) -> bool:
        return (self.letter_orders or ("original" if self.caa_compat else "both")) == "both"

    @property
    def only_positions(self) -> tuple[Positions, str] | None:
        return ("after_user_turn", "caa_compat") if self.caa_compat else None

    def identity(self, seed: int) -> dict[str, Any]:
        return {"caa_compat": self.caa_compat}

    def questions(self, path: Path) -> Questions:
        found = read_questions(path)
        unique = found.unique()
        chosen = unique[: self.limit]
        asked = [(other, order) for item in chosen for order, other in orders(item, self.both_orders)]
        left_out = {
            REPEATED: _in_all_orders(found.items) - _in_all_orders(unique),
            BEYOND_LIMIT: _in_all_orders(unique) - _in_all_orders(chosen),
            IN_ONE_ORDER if self.both_orders else ORIGINAL_ORDER: _in_all_orders(chosen) - len(asked),
        }
        return Questions.of(asked, found.source, left_out)

    def scored(self, item: Item) -> tuple[int, ...]:
        """The choices that are scored: all, or under `caa_compat` the two that the file names, in order."""
        if not self.caa_compat:
            return tuple(range(len(item.choices)))
        if not item.lettered or item.not_matching is None:
            raise self._cannot_ask("caa_compat scores two letters, and this item doesn't name two")
        return tuple(sorted((item.matching, item.not_matching)))

    def render(self, tokenizer: Any, item: AnyItem, system: str | None) -> Rendering:
        """The prompt up to the first scored token, and the scored tokens of each answer."""
        assert isinstance(item, Item)
        scored = self.scored(item)
        texts = [item.choices[n].answer for n in scored]
        before = self.answer_prefix or gap(tokenizer, item.question, system)
        if self.caa_compat:
            before = CAA_PREFIX[:1]
        if item.lettered or self.answer_prefix is None or before[-1:].isspace():
            texts = [text.strip() for text in texts]  # the space before the answer, if any, is there already
        whole = [render_question(tokenizer, item.question, system, before + text) for text in texts]
        renderings = [prompt.token_ids for prompt in whole]
        try:
            if item.lettered:
                start, answers = cut_letters(renderings)
            else:
                forced = render_question(tokenizer, item.question, system, before)
                start, answers = cut_words(forced.token_ids, renderings)
        except AmbiguousAnswers:
            named = shortened(", ".join(map(shown, texts)), 200)
            raise self._cannot_ask(
                f"in this model's tokens one of its answers begins another: {named}"
            ) from None
        prompt = Prompt(renderings[0][:start], whole[0].template_length, whole[0].user_turn_length)
        if self.caa_compat:
            recipe = render_question(tokenizer, item.question, system, CAA_PREFIX)
            if recipe.token_ids != prompt.token_ids or any(len(tokens) > 1 for tokens in answers):
                raise self._cannot_ask(
                    "this tokenizer joins bracket and letter, so CAA's recipe can't be followed"
                )
        return Rendering(prompt, scored, answers)

    def estimate(self, item: AnyItem, system: str | None) -> Rendering:
        assert isinstance(item, Item)
        scored = self.scored(item)
        lengths = (
            1 if item.lettered else max(1, round(len(item.choices[n].text) / CHARACTERS_A_TOKEN))
            for n in scored
        )
        answers = tuple((n,) * length for n, length in zip(scored, lengths, strict=True))
        return Rendering(self.estimated_prompt(item.question, system), scored, answers)

    def sure_without_tokenizer(self, item: AnyItem) -> bool:
        return isinstance(item, Item) and item.lettered

    def labels(self, rendered: RenderedPrompt) -> tuple[str, ...]:
        """Each scored choice's letter, or its words where it has none."""
        assert isinstance(rendered.item, Item)
        choices = (rendered.item.choices[n] for n in rendered.scored)
        return tuple(choice.label or choice.text for choice in choices)

    def matching(self, rendered: RenderedPrompt) -> int:
        assert isinstance(rendered.item, Item)
        return rendered.scored.index(rendered.item.matching)

    def scores(self, rendered: RenderedPrompt, sums: Floats) -> Scores:
        """Probabilities are the model's own, over all tokens; the total mass shows a broken model."""
        item, match = rendered.item, self.matching(rendered)
        assert isinstance(item, Item)
        against = None if item.not_matching is None else rendered.scored.index(item.not_matching)
        return scores_of_answers(self.labels(rendered), rendered, match, against, sums)

    def _cannot_ask(self, message: str) -> CannotAsk:
        return CannotAsk(message, f"fix the item{', or leave caa_compat out' if self.caa_compat else ''}")


def _in_all_orders(items: Sequence[Item]) -> int:
    """How many questions the items make: a lettered one can be asked in two orders."""
    return sum(1 + item.lettered for item in items)


def orders(item: Item, both: bool) -> list[tuple[Order, Item]]:
    """The item as it stands and, where it means the same then, with its choices in the other order."""
    asked: list[tuple[Order, Item]] = [("original", item)]
    other = swapped(item) if both and not refers_to_choices(item.question) else None
    return [*asked, ("swapped", other)] if other else asked
