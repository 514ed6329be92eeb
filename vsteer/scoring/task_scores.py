"""What an evaluation's own scoring says of its stored rows: the metrics of lm-eval's tasks.

They are worked out from the row as it is stored, so that they can be made anew at any time, and stand beside
the rows like every other score. A run writes them as it ends with a model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from vsteer.scoring.score_file import Scored, ScoreFile
from vsteer.scoring.scorers import Scores, scorer_hash


class TaskScores(ScoreFile):
    """The scores of one evaluation, of all models. `about` is what its scoring is made of."""

    def __init__(self, folder: Path, evaluation: str, about: Mapping[str, Any]) -> None:
        super().__init__(
            folder,
            about["scorer"],
            scorer_hash({**about, "evaluation": evaluation}),
            about,
            evaluations=[evaluation],
            kinds=("choice", "open_ended"),
        )

    def score(self, score: Callable[[str, str, Sequence[float]], Scores]) -> Scored:
        """Score every row without a score, by its item, its text and its log-probabilities."""
        for output in self.unscored("item_id", "choice_logprobs"):
            self.add(output, score(output.item_id, output.text or "", output.choice_logprobs or ()))
        return self.result
