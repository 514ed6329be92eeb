"""What 16 bits round of an effect is measured, kept, and put beside the effects."""

from __future__ import annotations

import contextlib
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from vsteer.cli.layer_curve import layer_curves
from vsteer.engine.proof.reference import ReferenceEngine
from vsteer.grid.spec import EngineSpec
from vsteer.plan.model_facts import ModelFacts
from vsteer.plan.plan import Plan
from vsteer.results.queries import query
from vsteer.results.views import connect_runs
from vsteer.run.start import run_grid
from vsteer.store.rounding import read_rounding, write_rounding
from vsteer.vectors.files import save
from vsteer.vectors.vector import SteeringVector

GRID = """\
version: 1
name: {dtype}
model: {{id: tiny-llama, dtype: {dtype}}}
vectors: {{v: {{file: v.safetensors}}}}
grid: [{{vector: v, layers: [1, 3], multipliers: [-2, 2]}}]
evaluations: [{{kind: choice, name: asked, data: sentiment, limit: 6}}]
"""
EFFECT = """
select p.prompt_id, c.layer, c.multiplier, r.logit_diff - b.logit_diff as effect, r.config_id
from rows r join conditions c using (config_id) join prompts p using (prompt_id)
join rows b on b.config_id = c.baseline_id and b.prompt_id = r.prompt_id
where c.vector <> ''
"""


def through_hugging_face(plan: Plan, spec: EngineSpec, extracts: bool) -> ReferenceEngine:
    # two threads on a busy machine wait for each other most of the time
    torch.set_num_threads(1)
    engine = ReferenceEngine(str(plan.facts.folder), dtype=plan.facts.dtype)
    # a run measures only what vLLM computed
    engine.info = replace(engine.info, kind="vllm")
    return engine


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same grid in both dtypes, all of it by Hugging Face."""
    folder = tmp_path_factory.mktemp("runs")
    generator = np.random.default_rng(1)
    directions = {layer: generator.normal(size=128).astype(np.float32) for layer in range(6)}
    save(SteeringVector("v", directions), folder / "v.safetensors")
    found = {}
    for dtype in ("bfloat16", "float32"):
        grid = folder / f"{dtype}.yaml"
        grid.write_text(GRID.format(dtype=dtype))
        found[dtype] = run_grid(grid, load=through_hugging_face).folder
    return found


def effects(folder: Path) -> dict[tuple[str, int, float], tuple[float, str]]:
    with contextlib.closing(connect_runs([folder])) as database:
        return {tuple(row[:3]): (row[3], row[4]) for row in database.execute(EFFECT).fetchall()}


@pytest.mark.long
def test_the_measured_effects_are_those_of_a_run_in_float32(runs: dict[str, Path]) -> None:
    rounded, exact = effects(runs["bfloat16"]), effects(runs["float32"])
    place = {(prompt, config): at for at, (_, config) in rounded.items() for prompt in [at[0]]}
    records = read_rounding(runs["bfloat16"])
    assert len(records) == len(rounded) == 24
    for record in records:
        at = place[record["prompt_id"], record["config_id"]]
        assert record["effect"] == rounded[at][0]
        assert record["effect_float32"] == pytest.approx(exact[at][0], abs=1e-6)
    assert any(record["effect"] != record["effect_float32"] for record in records)
    assert read_rounding(runs["float32"]) == []


@pytest.mark.long
def test_effects_below_it_are_counted_and_warned_of(runs: dict[str, Path]) -> None:
    (folder,) = [runs["bfloat16"]]
    records = read_rounding(folder)
    means: dict[str, list[float]] = {}
    for effect, config in effects(folder).values():
        means.setdefault(config, []).append(effect)
    sizes = sorted(abs(sum(of_one) / len(of_one)) for of_one in means.values())
    # an error in the middle of the effects' sizes, now with one sign and now with the other
    error = (sizes[1] + sizes[2]) / 2
    made_up = [
        {**record, "effect_float32": record["effect"] + (error if n % 2 else -error)}
        for n, record in enumerate(records)
    ]
    write_rounding(folder, made_up)
    with contextlib.closing(connect_runs([folder])) as database:
        found = database.sql(query("rounding").sql)
        (row,) = [dict(zip(found.columns, values, strict=True)) for values in found.fetchall()]
    assert (row["measured"], row["below"], row["configurations"]) == (24, 2, 4)
    assert math.isclose(row["rounding"], error)
    assert math.isclose(row["mean_rounding"], 0, abs_tol=1e-9)
    assert math.isclose(row["largest"], sizes[-1])
    assert row["verdict"] == "2 of 4 effects lie below what bfloat16 rounds"
    assert f"warning: 2 of 4 effects lie below {error:.2f}" in layer_curves(folder)


def test_the_float32_unembedding_is_part_of_what_a_16_bit_row_is() -> None:
    facts = make_facts("float32")
    assert facts.output_identity() == facts.identity()
    for dtype in ("bfloat16", "float16"):
        facts = make_facts(dtype)
        assert facts.output_identity() == {**facts.identity(), "unembedding": "float32"}


def make_facts(dtype: str) -> ModelFacts:
    return ModelFacts(
        name="m",
        folder=None,
        revision=None,
        weights={"sha256": "0"},
        layers=6,
        hidden_size=64,
        max_model_len=256,
        dtype=dtype,
        quantization=None,
        kv_cache_dtype="auto",
    )
