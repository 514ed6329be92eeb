"""freezing.parquet: what is left of a steering's effect under each condition, question by question.

The effect is on the log-odds of the matching answer (questions with given answers), or on whether a text that
is written refuses (prompts). The control is a random vector of the same length under the same conditions.
What was found of each question is kept in the folder, so that an interrupted freezing goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from vsteer.datasets.items import Item, content_hash
from vsteer.evaluations.choice import ChoiceEvaluation
from vsteer.evaluations.evaluation import CannotAsk, Question
from vsteer.evaluations.given_answers import answer_sums, steps
from vsteer.evaluations.open_ended import OpenEndedEvaluation
from vsteer.evaluations.rendered_prompt import RenderedPrompt
from vsteer.mechanism.analysis import Analysis, OnProgress, controls
from vsteer.mechanism.edge_tables import Row
from vsteer.mechanism.freezing import FrozenPasses
from vsteer.mechanism.freezing import Row as Pass
from vsteer.protocol import Prompt
from vsteer.results.queries import query
from vsteer.scoring.scorers import refusal
from vsteer.store.database import exact, in_memory, quoted, records
from vsteer.store.mechanism import write_table


def questions_of(path: Path, limit: int | None) -> Sequence[Question]:
    """A file's questions with given answers."""
    return _choice(limit).questions(path).questions


def prompts_of(path: Path, limit: int | None) -> Sequence[Question]:
    return _open_ended(limit).questions(path).questions


def _choice(limit: int | None) -> ChoiceEvaluation:
    return ChoiceEvaluation.model_validate({"kind": "choice", "data": "questions", "limit": limit})


def _open_ended(limit: int | None) -> OpenEndedEvaluation:
    return OpenEndedEvaluation.model_validate({"kind": "open_ended", "data": "prompts", "limit": limit})


class Freezing:
    def __init__(self, analysis: Analysis, conditions: Sequence[str], system: str | None) -> None:
        self.analysis, self.system = analysis, system
        self.conditions = conditions
        settings = analysis.settings
        self.columns: list[dict[str, Any]] = []
        passes = [Pass(analysis.directions[0], 0.0, "steered")]  # the unsteered model
        for place, control in controls(settings.controls):
            for condition in conditions:
                passes.append(Pass(analysis.directions[place], settings.multiplier, condition))
                self.columns.append({**settings.key, **control, "condition": condition})
        self.passes = FrozenPasses(analysis.model, analysis.graph, passes)

    def log_odds(self, questions: Sequence[Question], on_progress: OnProgress) -> list[Row]:
        """Of the matching answer of each question."""
        evaluation = _choice(None)
        rows: list[Row] = []
        for item, order in questions:
            on_progress()
            try:
                rendering = evaluation.render(self.analysis.model.tokenizer, item, self.system)
            except CannotAsk:
                continue
            assert isinstance(item, Item)
            rendered = RenderedPrompt(
                "", item, order, rendering.prompt, "", rendering.scored, rendering.answers
            )
            asked = ["log_odds", rendered.prompt.token_ids, rendered.answers, evaluation.matching(rendered)]
            found = self._once(asked, partial(self._differences, evaluation, rendered))
            rows += self._rows("log_odds", item.item_id, order, found.tolist())
        return rows

    def texts(self, prompts: Sequence[Question], tokens: int, on_progress: OnProgress) -> list[Row]:
        """What is written to each prompt, and whether it refuses."""
        evaluation, tokenizer = _open_ended(None), self.analysis.model.tokenizer
        rows: list[Row] = []
        for item, order in prompts:
            prompt = evaluation.render(tokenizer, item, self.system).prompt
            asked = ["texts", prompt.token_ids, tokens]
            texts = self._once(asked, partial(self._written, prompt, tokens)).tolist()
            scores = [refusal(text, ())["refusal"][0] for text in texts]
            rows += self._rows("refusal", item.item_id, order, scores, texts)
            on_progress()
        return rows

    def _once(self, asked: list[Any], work: Callable[[], NDArray[Any]]) -> NDArray[Any]:
        """What the work gives, of every pass; it is kept in the folder by what was asked."""
        name = f"freeze-{content_hash([*asked, self.conditions])}"
        there = self.analysis.folder.done(name)
        if there is None or set(there) != {"found"} or len(there["found"]) != len(self.passes.rows):
            there = {"found": work()}
            self.analysis.folder.put_done(name, there)
        return there["found"]

    def _differences(self, evaluation: ChoiceEvaluation, rendered: RenderedPrompt) -> NDArray[Any]:
        model, columns = self.analysis.model, []
        prompt = rendered.prompt
        span = prompt.span(self.analysis.settings.positions)
        for prefix, tokens in steps(rendered.answers).items():
            with torch.no_grad():
                logits = model.logits(self.passes.normed(prompt.token_ids + prefix, span)[1::2, -1])
            columns.append(logits.double().log_softmax(-1)[:, list(tokens)].cpu().numpy())
        sums = answer_sums(rendered.answers, np.concatenate(columns, axis=1))
        return evaluation.scores(rendered, sums).logit_diff

    def _written(self, prompt: Prompt, tokens: int) -> NDArray[Any]:
        span = prompt.span(self.analysis.settings.positions)
        ends = self.analysis.model.whole.generation_config.eos_token_id
        ends = frozenset(ends if isinstance(ends, list) else [] if ends is None else [ends])
        written = self.passes.write(prompt.token_ids, span, tokens, ends)
        decode = self.analysis.model.tokenizer.decode
        return np.array([decode(each, skip_special_tokens=True) for each in written], dtype=np.str_)

    def _rows(
        self,
        measure: str,
        item: str,
        order: str,
        found: Sequence[float | None],
        texts: Sequence[str] | None = None,
    ) -> list[Row]:
        """Of one question; the first pass is the unsteered model's."""
        return [
            {
                **columns,
                "measure": measure,
                "item_id": item,
                "letter_order": order,
                "value": found[n],
                "unsteered": found[0],
                "text": texts[n] if texts else None,
            }
            for n, columns in enumerate(self.columns, 1)
        ]


def costs(folder: Path) -> list[Row]:
    """What `queries/freezing_costs.sql` answers over the folder's own table."""
    with in_memory() as database:
        table = f"read_parquet({quoted(exact(folder / 'freezing.parquet'))})"
        database.execute(f"create temp view freezing as select '' as run, * from {table}")
        return records(database, query("freezing_costs").sql)


def write_freezing(analysis: Analysis, rows: Sequence[Row]) -> None:
    write_table(analysis.folder.path, "freezing", rows)
