"""Stored rows -> scores: the one loop between a scorer and a run's folder. Nothing is generated."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from vsteer.scoring.score_file import ScoreFile
from vsteer.scoring.scorers import Scorer

REPORT_EVERY = 1000


@dataclass(frozen=True)
class Scored:
    """What one call of a scorer came to."""

    scorer: str
    scorer_hash: str
    path: Path
    texts: int  # stored texts that can be scored
    standing: int  # of them, those that had scores before
    new: int  # those that were scored now

    @property
    def open(self) -> int:
        return self.texts - self.standing - self.new


def score_texts(
    folder: Path, scorer: Scorer, told: Callable[[int, int], None] = lambda done, of: None
) -> Scored:
    """Score every text of a run that has no score of this scorer."""
    with ScoreFile(folder, scorer.name, scorer.hash, scorer.identity) as file:
        texts, standing = file.counts()
        new = 0
        for output in file.unscored(*(("token_ids",) if scorer.needs_tokens else ())):
            for name, (value, note) in scorer.score(output.text, output.token_ids).items():
                file.add(output, name, value, note)
            file.end_row()
            new += 1
            if new % REPORT_EVERY == 0:
                told(standing + new, texts)
    return Scored(scorer.name, scorer.hash, file.path, texts, standing, new)
