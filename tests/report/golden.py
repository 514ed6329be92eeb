"""Runs whose report has something in every section, and one whose every word is hostile."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from tests.results.made_up import Cell, Steered, controls, make_run, sweep, write_vector
from tests.store import makers
from vsteer.analysis.statistics import write_statistics
from vsteer.store.store import open_store
from vsteer.vectors.run_norms import write_vector_norms

LAYERS, MULTIPLIERS = range(6), (-2.0, -1.0, 1.0, 2.0)
PEAK = 3
# from ten on there are intervals
ITEMS = 10
HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\u2028${alert(3)}'\"`&lt;"


class Ablated(Steered):
    """A direction taken out of the stream, which has no multiplier."""

    def config(self, model: str) -> dict[str, Any]:
        return {**super().config(model), "operation": "ablate", "multiplier": None}


def logit(cell: Cell) -> float:
    """Greatest at layer 3; the negative multiplier acts 1.5 times as much; controls do little."""
    one = cell.steered
    wobble = 0.1 * math.sin(7 * cell.item + (one.layer or 0))
    if one.layer is None:
        return 0.3 * cell.item + wobble
    if one.control:
        return 0.3 * cell.item + 0.1 * math.sin(3 * (one.index or 0) + one.layer + one.multiplier) + wobble
    strength = 1.5 if one.multiplier < 0 else 1.0
    return 0.3 * cell.item + strength * one.multiplier * math.exp(-((one.layer - PEAK) ** 2) / 4) + wobble


def says(cell: Cell) -> Mapping[str, Any] | float:
    mass = {"total_mass": 0.8 - 0.1 * abs(cell.steered.multiplier)}
    if cell.steered.evaluation != "choice:mmlu":
        return {"logit_diff": logit(cell), **mass}
    # two answers are lost at multiplier 2, one at 1
    lost = cell.item < abs(cell.steered.multiplier)
    return {
        "logit_diff": -1.0 if lost else 1.0,
        "choice_logprobs": [-1.5, -0.5] if lost else [-0.5, -1.5],
    } | mass


def golden(folder: Path, model: str = "toy-7b", norms: tuple[str, ...] = ("raw", "unit")) -> Path:
    """A choice, a capability and texts under the same steering, with 19 random vectors and activations."""
    sha256 = write_vector(folder, "warm", [2.0] * len(LAYERS), stream=50.0, model=model)
    steered = []
    for norm in norms:
        mine = sweep("warm", LAYERS, MULTIPLIERS, sha256=sha256, norm=norm)
        steered += mine + (controls(mine, 19) + controls(mine, 3, "shuffled") if norm == "raw" else [])
    for more in ({"evaluation": "choice:mmlu"}, {"evaluation": "open_ended:toy", "kind": "open_ended"}):
        steered += sweep("warm", LAYERS, MULTIPLIERS, sha256=sha256, **more)
    make_run(folder, steered, says, items=ITEMS, model=model)
    write_activations(folder)
    write_perplexity(folder)
    write_vector_norms(folder)
    write_statistics(folder)
    return folder


def write_activations(folder: Path) -> None:
    """What extraction leaves beside a vector."""
    members = [
        {
            "layer": layer,
            "item_id": f"pair-{pair}",
            "positive": positive,
            "letter": "AB"[(pair + positive) % 2],
            "pc1": (1 if positive else -1) * (layer + 1) + math.sin(5 * pair),
            "pc2": math.cos(3 * pair),
        }
        for layer in LAYERS
        for pair in range(10)
        for positive in (True, False)
    ]
    cosines = [
        {"layer": a, "other_layer": b, "cosine": math.cos((a - b) / 3)} for a in LAYERS for b in LAYERS
    ]
    worth = [
        {
            "layer": layer,
            "depth": (layer + 1) / 8,
            "norm": 2.0,
            "stream_norm": 50.0,
            "norm_over_stream": 0.04,
            "pair_agreement": 0.1 * layer,
            "class_separation": float(layer),
            "split_half": 0.9,
            "letter_share": 0.2,
            "rounding": 0.1 / (layer + 1),
        }
        for layer in LAYERS
    ]
    for kind, rows in (("pca", members), ("cosine", cosines), ("layers", worth)):
        path = folder / "vectors" / f"warm-extracted-0123456789ab.{kind}.parquet"
        pq.write_table(pa.Table.from_pylist(rows), path)


def write_perplexity(folder: Path) -> None:
    """Scores of every text, worse the more it is steered."""
    (folder / "scores").mkdir(exist_ok=True)
    duckdb.sql(
        f"""copy (select row_id, finished_at as row_finished_at, 'perplexity' as scorer,
                         '0123456789ab' as scorer_hash, 'perplexity' as name,
                         (10 + 5 * abs(multiplier) + (hash(row_id) % 100) / 100.0)::double as value,
                         null::varchar as note
                  from '{folder}/rows/*.parquet' where kind = 'open_ended')
            to '{folder}/scores/perplexity-0123456789ab.parquet' (format parquet)"""
    )


def hostile(folder: Path) -> Path:
    """Every name, prompt and text of it tries to be more than text. A row failed, and one is missing."""
    configs: list[makers.Record] = []
    rows: list[makers.Record] = []
    evaluation = f"open_ended:{HOSTILE}"
    asked: makers.Record = {
        "kind": "open_ended",
        "evaluation": evaluation,
        "item_id": "item-0",
        "prompt_id": "prompt-0",
    }
    prompt = makers.prompt(
        **asked, question=f"{HOSTILE} What?", choices=None, matching=None, category=HOSTILE
    )
    for number, multiplier in enumerate((0.0, -1.0, 1.0, 2.0)):
        on = multiplier != 0
        axes: makers.Record = {
            "evaluation": evaluation,
            "kind": "open_ended",
            "model": f"toy-7b {HOSTILE}",
            "config_id": f"config {multiplier} {HOSTILE}",
            "vector": f"warm {HOSTILE}" if on else "",
            "vector_sha256": "ab" * 32 if on else "",
            "norm": "raw" if on else "",
            "layers": [2] if on else [],
            "layer": 2 if on else None,
            "depth": 0.5 if on else None,
            "operation": "add" if on else "",
            "multiplier": multiplier,
            "positions": "all" if on else "",
        }
        configs.append(makers.config(**axes, rows=1))
        place = {**axes, "item_id": "item-0", "prompt_id": "prompt-0", "row_id": makers.row_id(number)}
        if multiplier == 1:
            failed = {**makers.error_row(number, **place), "error": HOSTILE, "steered_tokens": None}
            rows.append(failed)
        elif multiplier != 2:
            text = f"{multiplier} {HOSTILE} \x00 \x1b[31m"
            rows.append(makers.text_row(number, **place, text=text, steered_tokens=9 if on else 0))
    with open_store(folder) as store:
        store.write_plan({"name": HOSTILE}, configs, [prompt], len(configs))
        for row in rows:
            store.append(row)
        store.compact()
    return folder
