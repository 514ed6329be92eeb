"""A vector from elsewhere has its length beside the stream of the run's model, as an extracted one has."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.numpy import save_file
from transformers import AutoModelForCausalLM

from tests.run import fake
from vsteer.engine.proof.reference import ReferenceEngine
from vsteer.grid.spec import EngineSpec, read_grid
from vsteer.models import resolve
from vsteer.plan.plan import Plan, make_plans
from vsteer.results.views import connect_runs
from vsteer.run.start import run_grid
from vsteer.run.stream_norms import MOST, StreamNorms
from vsteer.vectors.files import load, save
from vsteer.vectors.vector import Origin, SteeringVector

GRID = """\
version: 1
name: try
model: {id: tiny-llama, dtype: float32}
vectors: {v: {file: v.safetensors}}
grid: [{vector: v, layers: [1, 3], multipliers: [-2, 4]}]
controls: {random_vectors: 1}
evaluations: [{kind: choice, name: asked, data: sentiment, limit: 6}]
"""
DIRECTIONS = {layer: np.random.default_rng(layer).normal(size=128).astype(np.float32) for layer in range(6)}


def written(folder: Path) -> Path:
    save_file({f"direction.{layer}": row for layer, row in DIRECTIONS.items()}, folder / "v.safetensors")
    path = folder / "grid.yaml"
    path.write_text(GRID)
    return path


def relative_norms(folder: Path) -> dict[tuple[int, float], float]:
    with contextlib.closing(connect_runs([folder])) as database:
        sql = "select distinct layer, multiplier, relative_norm from conditions where vector <> ''"
        rows = database.execute(sql).fetchall()
    # the random control, of the same length, has the same
    return {(layer, multiplier): value for layer, multiplier, value in rows}


def test_the_length_is_relative_to_hugging_faces_stream(tmp_path: Path) -> None:
    asked: list[bool] = []

    def loaded(plan: Plan, spec: EngineSpec, extracts: bool) -> ReferenceEngine:
        torch.set_num_threads(1)
        asked.append(extracts)
        return ReferenceEngine(str(plan.facts.folder), dtype="float32")

    folder = run_grid(written(tmp_path), load=loaded).folder
    assert asked == [True]  # the engine needs room to capture
    model: Any = AutoModelForCausalLM.from_pretrained(resolve("tiny-llama").model, dtype=torch.float32)
    prompts = pq.read_table(folder / "prompts.parquet")["token_ids"].to_pylist()
    with torch.no_grad():
        streams = [model(torch.tensor([ids]), output_hidden_states=True).hidden_states for ids in prompts]
    expected = {}
    for layer in (1, 3):
        stream = np.mean([hidden[layer + 1][0, -1].norm().item() for hidden in streams])
        for multiplier in (-2.0, 4.0):
            length = np.linalg.norm(DIRECTIONS[layer].astype(np.float64))
            expected[layer, multiplier] = abs(multiplier) * length / stream
    assert relative_norms(folder) == pytest.approx(expected, rel=1e-4)


def test_a_run_measures_once_and_a_damaged_note_is_made_anew(tmp_path: Path) -> None:
    grid = written(tmp_path)
    folder = run_grid(grid, load=fake.load()).folder
    first = relative_norms(folder)
    assert len(first) == 4
    assert all(first.values())
    (note,) = (folder / "vectors").glob("stream-*.json")
    assert json.loads(note.read_text())["prompts"] == 6
    (plan,) = make_plans(read_grid(grid))
    assert not StreamNorms(plan, folder).wanted
    note.write_text("{")
    assert StreamNorms(plan, folder).wanted
    # a further evaluation is work to do, and measures again
    grid.write_text(GRID.replace("limit: 6", "limit: 7"))
    run_grid(grid, load=fake.load())
    assert json.loads(note.read_text())["prompts"] == 7
    assert all(relative_norms(folder).values())


def test_a_vector_that_knows_this_models_stream_is_left_as_it_is(tmp_path: Path) -> None:
    grid = written(tmp_path)
    made = SteeringVector("v", DIRECTIONS, dict.fromkeys(range(6), 50.0), Origin(model="tiny-llama"))
    save(made, tmp_path / "v.safetensors", overwrite=True)
    folder = run_grid(grid, load=fake.load()).folder
    assert not list((folder / "vectors").glob("stream-*"))
    length = np.linalg.norm(load(tmp_path / "v.safetensors").directions[3].astype(np.float64))
    assert relative_norms(folder)[3, 4.0] == pytest.approx(4 * length / 50)


def test_many_prompts_are_sampled_evenly(tmp_path: Path) -> None:
    grid = written(tmp_path)
    grid.write_text(GRID.replace(", limit: 6", ""))
    (plan,) = make_plans(read_grid(grid))
    every = [one.prompt for one in plan.blocks[0].prompts]
    sample = StreamNorms(plan, tmp_path).prompts
    assert len(sample) == min(MOST, len(every))
    places = [every.index(prompt) for prompt in sample]
    assert places == sorted(set(places))
