"""freezing.parquet: what is left of a steering's effect under each condition, question by question.

The effect is on the log-odds of the matching answer (questions with given answers), or on whether a text that
is written refuses (prompts). The control is a random vector of the same length under the same conditions.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vsteer.datasets.items import Item
from vsteer.evaluations.choice import ChoiceEvaluation
from vsteer.evaluations.evaluation import CannotAsk
from vsteer.evaluations.given_answers import answer_sums, steps
from vsteer.evaluations.open_ended import OpenEndedEvaluation
from vsteer.evaluations.rendered_prompt import RenderedPrompt
from vsteer.mechanism.analysis import Analysis, OnProgress, controls
from vsteer.mechanism.edge_tables import Row
from vsteer.mechanism.freezing import FrozenPasses
from vsteer.mechanism.freezing import Row as Pass
from vsteer.scoring.scorers import refusal
from vsteer.store.mechanism import write_table


class Freezing:
    def __init__(self, analysis: Analysis, conditions: Sequence[str], system: str | None) -> None:
        self.analysis, self.system = analysis, system
        settings = analysis.settings
        self.columns: list[dict[str, Any]] = []
        passes = [Pass(analysis.directions[0], 0.0, "steered")]  # the unsteered model
        for place, control in controls(settings.controls):
            for condition in conditions:
                passes.append(Pass(analysis.directions[place], settings.multiplier, condition))
                self.columns.append({**settings.key, **control, "condition": condition})
        self.passes = FrozenPasses(analysis.model, analysis.graph, passes)

    def log_odds(self, path: Path, limit: int | None, on_progress: OnProgress) -> list[Row]:
        """Of the matching answer of each question of a file."""
        evaluation = ChoiceEvaluation.model_validate({"kind": "choice", "data": "questions", "limit": limit})
        rows: list[Row] = []
        for item, order in evaluation.questions(path).questions:
            try:
                rendering = evaluation.render(self.analysis.model.tokenizer, item, self.system)
            except CannotAsk:
                continue
            assert isinstance(item, Item)
            rendered = RenderedPrompt(
                "", item, order, rendering.prompt, "", rendering.scored, rendering.answers
            )
            sums = answer_sums(rendering.answers, self._logprobs(rendered))
            found = evaluation.scores(rendered, sums).logit_diff.tolist()
            rows += [
                {
                    **columns,
                    "measure": "log_odds",
                    "item_id": item.item_id,
                    "letter_order": order,
                    "value": value,
                    "unsteered": found[0],
                    "text": None,
                }
                for columns, value in zip(self.columns, found[1:], strict=True)
            ]
            on_progress()
        return rows

    def _logprobs(self, rendered: RenderedPrompt) -> Any:
        """Log-probabilities of the answers' tokens for each pass, in the order of `steps`."""
        model, columns = self.analysis.model, []
        prompt = rendered.prompt
        span = prompt.span(self.analysis.settings.positions)
        for prefix, tokens in steps(rendered.answers).items():
            with torch.no_grad():
                logits = model.logits(self.passes.normed(prompt.token_ids + prefix, span)[1::2, -1])
            columns.append(logits.double().log_softmax(-1)[:, list(tokens)].cpu().numpy())
        return np.concatenate(columns, axis=1)

    def texts(self, path: Path, limit: int | None, tokens: int, on_progress: OnProgress) -> list[Row]:
        """What is written to each prompt of a file, and whether it refuses."""
        evaluation = OpenEndedEvaluation.model_validate(
            {"kind": "open_ended", "data": "prompts", "limit": limit}
        )
        tokenizer = self.analysis.model.tokenizer
        rows: list[Row] = []
        for item, _ in evaluation.questions(path).questions:
            prompt = evaluation.render(tokenizer, item, self.system).prompt
            span = prompt.span(self.analysis.settings.positions)
            written = self.passes.write(prompt.token_ids, span, tokens, self._ends())
            texts = [tokenizer.decode(each, skip_special_tokens=True) for each in written]
            scores = [refusal(text, ())["refusal"][0] for text in texts]
            rows += [
                {
                    **columns,
                    "measure": "refusal",
                    "item_id": item.item_id,
                    "letter_order": "original",
                    "value": score,
                    "unsteered": scores[0],
                    "text": text,
                }
                for columns, score, text in zip(self.columns, scores[1:], texts[1:], strict=True)
            ]
            on_progress()
        return rows

    def _ends(self) -> frozenset[int]:
        ends = self.analysis.model.whole.generation_config.eos_token_id
        return frozenset(ends if isinstance(ends, list) else [] if ends is None else [ends])


def write_freezing(analysis: Analysis, rows: Sequence[Row]) -> None:
    write_table(analysis.folder.path, "freezing", rows)
