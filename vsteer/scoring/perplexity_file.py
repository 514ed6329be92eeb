"""The perplexity of a run's texts under the unsteered model that wrote them, through a loaded engine.

A model's texts have a score file of their own, named by the model's weights and dtypes. A run writes it as it
ends with a model (`coherence: true` in its grid), `vsteer score --scorer perplexity` for any stored run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from vsteer.errors import StoreError
from vsteer.protocol import Request, Result
from vsteer.scoring.perplexity import NO_TOKENS, PERPLEXITY, coherence_request, identity, read_coherence
from vsteer.scoring.score_file import Output, ScoreFile
from vsteer.scoring.scorers import Scores, scorer_hash


class Engine(Protocol):
    def run(self, requests: Iterable[Request]) -> Iterator[Result]: ...


@dataclass
class Coherence:
    """What one call came to, in texts of one model."""

    model: str
    path: Path
    scorer_hash: str
    texts: int
    standing: int  # had a score before
    scored: int = 0
    failed: int = 0  # scored failures: the engine refused, or the model's numbers are none

    @property
    def open(self) -> int:
        return self.texts - self.standing - self.scored - self.failed

    @property
    def faults(self) -> str:
        return f"{self.failed:,} have none"


class CoherenceFile:
    """The perplexities of one model's texts in a run, of some evaluations or all."""

    def __init__(
        self,
        folder: Path,
        model: str,
        weights: Mapping[str, Any],
        evaluations: Sequence[str] | None = None,
    ) -> None:
        """`model` as rows name it; `weights` with its dtypes, as every configuration's identity has them."""
        about = identity(weights)
        self._file = ScoreFile(
            folder, PERPLEXITY, scorer_hash(about), about, model=model, evaluations=evaluations
        )
        texts, standing = self._file.counts()
        self.result = Coherence(model, self._file.path, self._file.scorer_hash, texts, standing)

    def score(
        self,
        engine: Engine,
        told: Callable[[Coherence], None] = lambda found: None,
        stopping: Callable[[], bool] = lambda: False,
    ) -> Coherence:
        """Every text without a score, through the engine. `stopping` ends the submission."""
        waiting: dict[str, Output] = {}

        def requests() -> Iterator[Request]:
            for output in self._file.unscored("token_ids", "prompt_token_ids"):
                if stopping():
                    return
                if not output.prompt_token_ids:
                    raise StoreError(
                        f"the prompt of row {output.row_id} is not in {self._file.folder}/prompts.parquet",
                        hint="give the same `vsteer run` again: it writes the prompts anew",
                    )
                if not output.token_ids:
                    self._keep(output, NO_TOKENS)
                    continue
                waiting[output.row_id] = output
                yield coherence_request(output.row_id, output.prompt_token_ids, output.token_ids)

        for result in engine.run(requests()):
            output = waiting.pop(result.id)
            self._keep(output, read_coherence(output.token_ids, result))
            told(self.result)
        return self.result

    def _keep(self, output: Output, scores: Scores) -> None:
        for name, (value, note) in scores.items():
            self._file.add(output, name, value, note)
        self._file.end_row()
        if scores[PERPLEXITY][0] is None:
            self.result.failed += 1
        else:
            self.result.scored += 1

    def __enter__(self) -> CoherenceFile:
        return self

    def __exit__(self, *raised: Any) -> None:
        self._file.__exit__(*raised)
