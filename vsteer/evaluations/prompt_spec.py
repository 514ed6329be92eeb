"""How the questions of an evaluation are asked: the evaluation under one of its system prompts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from vsteer.evaluations.evaluation import Evaluation


@dataclass(frozen=True, slots=True)
class PromptSpec:
    """Everything about the asking that changes an output, the same for all items of an evaluation."""

    evaluation: Evaluation
    system: str | None = None
    seed: int = 0  # the run's

    def identity(self) -> dict[str, Any]:
        return {
            "kind": self.evaluation.row_kind,
            "system": self.system,
            "answer_prefix": self.evaluation.answer_prefix,
            **self.evaluation.identity(self.seed),
        }
