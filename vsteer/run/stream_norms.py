"""How long a model's stream is, measured in a run for vectors from files that don't know.

An extraction measures the stream at the tokens that it reads. A file of someone else's says nothing of it, so
the run measures it before its first row: unsteered, at the last token of some of its own prompts. Beside it,
the vector's length has a meaning (`relative_norm`); no row depends on it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np

from vsteer.identity import identify
from vsteer.plan.plan import Plan
from vsteer.plan.vector_sources import VectorFile
from vsteer.protocol import Engine, Prompt, Request
from vsteer.vectors.run_norms import FOLDER, Stream, knows_stream, read_stream, write_stream

# So many prompts give the mean to some percent, and cost less than a second of most runs.
MOST = 64


class StreamNorms:
    """The stream of one plan's model, as its run's folder has it or still lacks it."""

    def __init__(self, plan: Plan, run_folder: Path) -> None:
        self.plan = plan
        self.path = run_folder / FOLDER / f"stream-{identify(plan.facts.identity())[:12]}.json"

    @property
    def wanted(self) -> bool:
        """Whether some vector comes from a file that says nothing of this model's stream."""
        facts, weights = self.plan.facts, self.plan.facts.weights or {}
        files = {use.source.name: use.source.made_from for use in self.plan.vectors.values()}
        return read_stream(self.path) is None and any(
            not knows_stream(file.load(name, facts.hidden_size), facts.name, *weights.values())
            for name, file in files.items()
            if isinstance(file, VectorFile)
        )

    @property
    def prompts(self) -> list[Prompt]:
        """Some of the plan's prompts, evenly over all of its evaluations."""
        every = {one.prompt_id: one.prompt for block in self.plan.blocks for one in block.prompts}
        among, count = list(every.values()), min(MOST, len(every))
        return [among[n * len(among) // count] for n in range(count)]

    def measure(self, engine: Engine, on_progress: Callable[[], None]) -> None:
        """Where no prompt can be run, nothing is written, and the rows will say why."""
        requests = [
            Request(str(n), prompt, capture=(len(prompt.token_ids) - 1,))
            for n, prompt in enumerate(self.prompts)
        ]
        lengths = []
        for result in engine.run(requests):
            if result.captured is not None:
                lengths.append(np.linalg.norm(result.captured[0].astype(np.float64), axis=-1))
            on_progress()
        if lengths:
            means = [math.fsum(layer) / len(lengths) for layer in np.stack(lengths, axis=1).tolist()]
            facts, weights = self.plan.facts, self.plan.facts.weights or {}
            write_stream(
                self.path,
                Stream(
                    model=facts.name,
                    revision=weights.get("commit", ""),
                    sha256=weights.get("sha256", ""),
                    prompts=len(lengths),
                    norms=dict(enumerate(means)),
                ),
            )
