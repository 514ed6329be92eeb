"""What results call an evaluation: its own name, or its kind with the name of its data.

A file is called by its stem, behind as many of its folders as it takes to be the only one of that name. Names
depend on the whole grid, so a run keeps those that its first start gave (`first`), whatever is added later.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from vsteer.datasets.builtin import is_builtin
from vsteer.evaluations.evaluation import Evaluation

Named = tuple[str, str, int]


def named_evaluations(evaluations: Sequence[Evaluation], first: Mapping[str, str]) -> list[Named]:
    """Every evaluation of every data set: its name, its data, and its place in the list."""
    every = [
        (evaluation, data, n) for n, evaluation in enumerate(evaluations) for data in evaluation.data_sets
    ]
    kept = [first.get(full_name(evaluation, data)) for evaluation, data, _ in every]
    folders = [0] * len(every)
    while True:
        names = [
            old or _name(evaluation, data, count)
            for old, count, (evaluation, data, _) in zip(kept, folders, every, strict=True)
        ]
        counts = Counter(names)
        longer = [
            n
            for n, (_, data, _) in enumerate(every)
            if counts[names[n]] > 1 and not kept[n] and folders[n] < len(Path(data).parts) - 1
        ]
        if not longer:
            return [(name, data, n) for name, (_, data, n) in zip(names, every, strict=True)]
        for n in longer:
            folders[n] += 1


def full_name(evaluation: Evaluation, data: str) -> str:
    """An evaluation of a grid by its kind or name, and its data as the grid has it."""
    return f"{evaluation.name or evaluation.kind}:{data}"


def _name(evaluation: Evaluation, data: str, folders: int) -> str:
    if evaluation.name and len(evaluation.data_sets) == 1:
        return evaluation.name
    called = data if is_builtin(data) else "/".join(Path(data).with_suffix("").parts[-1 - folders :])
    return f"{evaluation.name or evaluation.kind}:{called}"
