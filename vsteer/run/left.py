"""What is left to be done of a grid's plans, by the folder of their run and without disturbing it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from vsteer.plan.plan import Plan
from vsteer.plan.times import Left
from vsteer.run.folder import run_folder
from vsteer.run.kl_doses import KlDoses
from vsteer.run.vectors import RunVectors
from vsteer.store.planned import Planned, read_standing
from vsteer.store.shards import OLD_ROWS_FOLDER, ROWS_FOLDER
from vsteer.store.sound import steadily, verified
from vsteer.vectors.recipe import Recipe


def left_of(plans: Sequence[Plan]) -> list[Left]:
    """For each plan. Rows that failed stand too: only `--retry-errors` tries them again."""
    folder = run_folder(plans[0].grid)
    if any(plan.pending for plan in plans) or not any(
        (folder / name).is_dir() for name in (ROWS_FOLDER, OLD_ROWS_FOLDER)
    ):
        return [Left(tuple(block.rows for block in plan.blocks), *_before_rows(plan)) for plan in plans]
    planned = Planned(part for plan in plans for part in plan.parts())
    standing = steadily(
        folder,
        lambda rows: read_standing(
            [shard for shard, why in verified(folder, rows).items() if not why], planned
        ),
    )
    stands = standing.good.copy()
    stands[standing.failed] = True
    found, start = [], 0
    for plan in plans:
        rows = []
        for block in plan.blocks:
            rows.append(block.rows - int(np.count_nonzero(stands[start : start + block.rows])))
            start += block.rows
        found.append(Left(tuple(rows), *_before_rows(plan)))
    return found


def _before_rows(plan: Plan) -> tuple[tuple[Recipe, ...], int]:
    """What is still to be extracted, and the tokens on which doses are to be found."""
    folder = run_folder(plan.grid)
    doses = KlDoses(plan, folder)
    return tuple(RunVectors(plan, folder).to_extract), len(doses.to_find) * doses.tokens
