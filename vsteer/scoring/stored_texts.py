"""The one loop between a plain scorer and the texts of a run's folder. Nothing is generated."""

from __future__ import annotations

from pathlib import Path

from vsteer.scoring.score_file import Scored, ScoreFile
from vsteer.scoring.scorers import Scorer


def score_texts(folder: Path, scorer: Scorer) -> Scored:
    """Score every text of a run that has no score of this scorer."""
    with ScoreFile(folder, scorer.name, scorer.hash, scorer.identity) as file:
        for output in file.unscored(*(("token_ids",) if scorer.needs_tokens else ())):
            file.add(output, scorer.score(output.text, output.token_ids))
    return file.result
