"""Which rows a run planned when it was last started, from the tables beside them.

So a run can be checked by its folder alone, without its grid, its data or its model.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from vsteer.errors import StoreError
from vsteer.store.planned import Planned, PlannedPart
from vsteer.store.sound import require_run
from vsteer.store.views import CONFIGS, PROMPTS


def stored_plan(folder: Path) -> Planned:
    require_run(folder)
    try:
        configs = pq.read_table(
            folder / CONFIGS, columns=["config_id", "evaluation", "system", "vector", "rows"]
        )
        prompts = pq.read_table(folder / PROMPTS, columns=["item_id", "letter_order", "evaluation", "system"])
    except (pa.ArrowException, OSError, ValueError) as error:
        raise StoreError(
            f"the plan of {folder} can't be read: {str(error).splitlines()[0][:120]}",
            hint="check the run by its grid: vsteer check GRID",
        ) from None
    # Several models are asked the same questions, each in tokens of its own.
    asked: dict[tuple[str, str], dict[tuple[str, str], None]] = defaultdict(dict)
    for prompt in prompts.to_pylist():
        asked[prompt["evaluation"], prompt["system"]][prompt["item_id"], prompt["letter_order"]] = None
    parts: list[PlannedPart] = []
    ids: list[str] = []
    for config in configs.to_pylist():
        if not config["vector"] or not parts:
            # The unsteered configuration stands first, and says how the others' questions are asked.
            questions, ids = list(asked[config["evaluation"], config["system"]]), []
            parts.append(
                PlannedPart(config["config_id"], ids, questions, config["rows"] // max(1, len(questions)))
            )
        ids.append(config["config_id"])
    return Planned(parts)
