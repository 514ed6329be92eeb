"""Ids: what changes an output changes them, and nothing else does."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tests.plan.sample import filled, planner
from vsteer.identity import identify, row_id, row_ids
from vsteer.models import resolve
from vsteer.plan.configurations import Config
from vsteer.plan.plan import Plan
from vsteer.vectors.files import load, save


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return filled(tmp_path)


@pytest.fixture
def plan(folder: Path) -> Callable[..., Plan]:
    return planner(folder)


def ids(plan: Plan) -> set[str]:
    return {row.row_id for row in plan.rows()}


def row_ids_of(plan: Plan, choose: Callable[[Config], bool]) -> set[str]:
    return {row.row_id for row in plan.rows() if choose(row.config)}


def test_the_ids_of_a_block_are_those_of_its_rows() -> None:
    configs = [identify(n) for n in range(5)]
    for order, sample in (("original", 0), ("swapped", 12)):
        together = row_ids([config.encode() for config in configs], "item", order, sample)
        one_by_one = [row_id(config, "item", order, sample) for config in configs]
        assert together.hex() == "".join(one_by_one)


def test_what_changes_no_output_changes_no_id(plan: Callable[..., Plan], folder: Path) -> None:
    before = ids(plan())
    engine = "engine: {tensor_parallel_size: 4, replicas: 2, max_num_seqs: 8, enforce_eager: true}\nvectors:"
    assert ids(plan("vectors:", engine)) == before
    assert ids(plan("name: try", "name: another")) == before
    assert ids(plan("  v: {", "  w: {", "vector: v", "vector: w")) == before
    # other paths with the same content
    (folder / "sub").mkdir()
    for name in ("items.json", "open.json"):
        (folder / "sub" / name).write_bytes((folder / name).read_bytes())
    moved = plan(
        "{data: items.json",
        "{data: sub/items.json",
        "choice, data: items.json",
        "choice, data: sub/items.json",
    )
    assert ids(moved) == before
    # greedy rows throw no dice
    assert ids(plan("seed: 5", "seed: 6")) == before
    # a folder's path instead of the model's name
    assert ids(plan("id: tiny-llama", f"id: {resolve('tiny-llama').model}")) == before


@pytest.mark.parametrize(
    "pairs",
    [
        ("dtype: float32", "dtype: bfloat16"),
        ("dtype: float32", "dtype: float32, quantization: fp8"),
        ("dtype: float32", "dtype: float32, kv_cache_dtype: fp8"),
        ("choice, data", "choice, system: Be brief., data"),
        ("choice, data", "choice, answer_prefix: ' (', data"),
    ],
)
def test_what_changes_every_choice_changes_all_their_ids(
    plan: Callable[..., Plan], pairs: tuple[str, str]
) -> None:
    before = {row.row_id for row in plan().rows() if row.config.spec.evaluation.row_kind == "choice"}
    after = {row.row_id for row in plan(*pairs).rows() if row.config.spec.evaluation.row_kind == "choice"}
    assert len(after) == len(before)
    assert not before & after


@pytest.mark.parametrize(
    "pairs",
    [
        ("{data: items.json,", "{data: words.jsonl, token: -1,"),
        ("norm: [raw, unit]", "norm: [{residual: 0.1}, {residual: 0.2}]"),
        ("norm: [raw", "method: pca, norm: [raw"),
        ("norm: [raw", "token: last, norm: [raw"),
        ("norm: [raw", "system: Be brief., norm: [raw"),
        ("{data: items.json, norm: [raw, unit]}", "{file: made.safetensors}"),
        ("layers: [1, 4]", "layers: [2, 3]"),
        ("layers: [1, 4]", "layers: [[1, 4]]"),
        ("[-1, 0, 1]", "[-2, 2]"),
        ("[all, after_prompt]", "[after_user_turn, [0, 1]]"),
    ],
)
def test_what_changes_the_steering_changes_all_but_the_baseline(
    plan: Callable[..., Plan], pairs: tuple[str, str]
) -> None:
    before, after = plan(), plan(*pairs)
    assert not row_ids_of(before, lambda c: bool(c.layers)) & row_ids_of(after, lambda c: bool(c.layers))
    baseline = row_ids_of(before, lambda c: not c.layers)
    assert baseline == row_ids_of(after, lambda c: not c.layers)
    assert len(baseline) == 7 + 2


def test_a_vector_s_file_counts_by_its_bytes(plan: Callable[..., Plan], folder: Path) -> None:
    from_file = ("{data: items.json, norm: [raw, unit]}", "{file: made.safetensors}")
    before = ids(plan(*from_file))
    (folder / "again.safetensors").write_bytes((folder / "made.safetensors").read_bytes())
    assert ids(plan(from_file[0], "{file: again.safetensors}")) == before
    made = load(folder / "made.safetensors")
    other = {layer: -direction for layer, direction in made.directions.items()}
    save(replace(made, directions=other), folder / "made.safetensors", overwrite=True)
    assert len(ids(plan(*from_file)) & before) == 7 + 2  # the baselines


def test_data_that_changed_makes_another_vector_and_keeps_the_other_rows(
    plan: Callable[..., Plan], folder: Path
) -> None:
    (folder / "pairs.json").write_bytes((folder / "items.json").read_bytes())
    own = ("{data: items.json,", "{data: pairs.json,")
    before = plan(*own)
    items = json.loads((folder / "items.json").read_text())
    (folder / "items.json").write_text(json.dumps(items[1:]))
    # the file of questions lost one: the rows of the others stay what they were
    fewer = ids(plan(*own))
    assert fewer < ids(before)
    (folder / "pairs.json").write_text(json.dumps(items[1:]))
    assert not row_ids_of(plan(*own), lambda c: bool(c.layers)) & ids(before)


def test_sampling_counts_where_it_is_done(plan: Callable[..., Plan]) -> None:
    sampled = ("max_tokens: 7", "max_tokens: 7, temperature: 0.5, samples: 2")
    before = plan(*sampled)
    written = {row.row_id for row in before.rows() if row.config.spec.evaluation.row_kind == "open_ended"}
    others = ids(before) - written
    reseeded = ids(plan(*sampled, "seed: 5", "seed: 6"))
    assert not reseeded & written
    assert others < reseeded
    cooler = ids(plan("max_tokens: 7", "max_tokens: 7, temperature: 0.4, samples: 2"))
    assert not cooler & written
    # more samples leave the first ones what they were
    assert written < ids(plan("max_tokens: 7", "max_tokens: 7, temperature: 0.5, samples: 3"))
    seeds = {(row.rendered.item_id, row.sample): set[int]() for row in before.rows()}
    for row in before.rows():
        seeds[row.rendered.item_id, row.sample].add(row.seed)
    assert all(len(found) == 1 for found in seeds.values())  # equal across configurations
    assert len(set.union(*seeds.values())) == len(seeds)  # and different everywhere else
    requests = [row.requests()[0] for row in before.rows() if row.row_id in written]
    assert all(request.seed is not None and request.temperature == 0.5 for request in requests)


def test_the_caa_norm_counts_all_vectors_that_ask_for_it(plan: Callable[..., Plan]) -> None:
    caa = ("norm: [raw, unit]", "norm: [raw, caa]")
    other, third = "  w: {data: words.jsonl, norm: caa}\n", "  x: {data: words.jsonl, token: -1, norm: caa}\n"
    two = plan(*caa, "grid:\n", f"{other}grid:\n")
    three = plan(*caa, "grid:\n", f"{other}{third}grid:\n")
    for norm, same in (("raw", True), ("caa", False)):
        rows = [{r.row_id for r in p.rows() if r.config.axes()["norm"] == norm} for p in (two, three)]
        assert (rows[0] == rows[1]) is same
        assert rows[0]
