"""Rows that are steered by a decoder's direction are those of a vector file with the same numbers."""

from __future__ import annotations

from pathlib import Path

import duckdb
import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from tests.run import fake
from vsteer.engine.proof.reference import ReferenceEngine
from vsteer.grid.problems import GridError
from vsteer.grid.spec import EngineSpec, read_grid
from vsteer.plan.plan import Plan, make_plans
from vsteer.plan.vector_sources import DirectionInFile
from vsteer.run.start import run_grid
from vsteer.vectors.files import load, save
from vsteer.vectors.vector import SteeringVector

# tiny-llama has 6 layers and is 128 wide
DECODER = np.random.default_rng(0).normal(size=(300, 128)).astype(np.float32)
GRID = """\
version: 1
name: try
model: {id: tiny-llama, dtype: float32}
vectors:
  cats: {file: sae.npz, key: W_dec, index: 7, layer: 3, norm: [raw, unit]}
  hand: {file: hand.safetensors}
grid:
  - {vector: [cats, hand], layers: [3], multipliers: [1.5]}
  - {vector: [cats, hand], layers: [3], operation: clamp, multipliers: [2]}
  - {vector: [cats, hand], layers: [3], operation: ablate}
controls: {random_vectors: 1}
evaluations: [{kind: choice, name: asked, data: sentiment, limit: 2}]
"""
CATS = "{file: sae.npz, key: W_dec, index: 7, layer: 3, norm: [raw, unit]}"


@pytest.fixture
def written(tmp_path: Path) -> Path:
    np.savez(tmp_path / "sae.npz", W_dec=DECODER, W_enc=DECODER.T, square=DECODER[:128], one=DECODER[7])
    save_file({"decoder.weight": np.ascontiguousarray(DECODER.T)}, tmp_path / "sae.safetensors")
    save(SteeringVector("hand", {3: DECODER[7]}), tmp_path / "hand.safetensors")
    (tmp_path / "sae.pt").write_bytes(b"\x80\x02.")
    (tmp_path / "grid.yaml").write_text(GRID)
    return tmp_path / "grid.yaml"


def planned(written: Path, *pairs: str) -> Plan:
    text = GRID
    for old, new in zip(pairs[::2], pairs[1::2], strict=True):
        assert old in text
        text = text.replace(old, new, 1)
    written.write_text(text)
    (plan,) = make_plans(read_grid(written))
    return plan


def ids(plan: Plan, vector: str = "cats") -> list[str]:
    return [
        name for name, one in plan.configs.items() if one.vector is not None and one.vector.name == vector
    ]


@pytest.mark.long
def test_rows_are_those_of_the_same_numbers_by_hand(written: Path) -> None:
    def loaded(plan: Plan, spec: EngineSpec, extracts: bool) -> ReferenceEngine:
        torch.set_num_threads(1)
        return ReferenceEngine(str(plan.facts.folder), dtype="float32")

    folder = run_grid(written, load=loaded).folder
    rows = f"read_parquet('{folder}/rows/*.parquet') r join read_parquet('{folder}/configs.parquet') c"
    columns = "c.vector, c.norm, c.operation, item_id, letter_order, choice_logprobs"
    found = duckdb.sql(f"select {columns} from {rows} using (config_id) where c.control = ''").fetchall()
    values = {tuple(key): value for *key, value in found}
    baseline = {tuple(key): value for (vector, _, _, *key), value in values.items() if not vector}
    # 2 items; the baseline, raw and unit added and clamped, ablated, and three of the vector by hand
    assert len(values) == 2 * (1 + 4 + 1 + 3)
    for (vector, norm, operation, *key), logprobs in values.items():
        if vector == "cats" and (norm != "unit" or operation == "ablate"):
            assert logprobs == pytest.approx(values["hand", "stored", operation, *key], abs=1e-6)
            assert logprobs != pytest.approx(baseline[tuple(key)], abs=1e-4)
    files = [load(path) for path in (folder / "vectors").glob("cats*.safetensors")]
    stored = {one.origin.norm: one.directions[3] for one in files if one.origin.method == "file"}
    raw, unit = stored["raw"], stored["unit"]
    assert raw.tobytes() == DECODER[7].tobytes()
    assert unit == pytest.approx(DECODER[7] / np.linalg.norm(DECODER[7].astype(np.float64)), rel=1e-6)


def test_what_is_the_same_direction_has_the_same_rows(written: Path) -> None:
    """An id changes with the file, the key and the index, and with nothing that says the same."""
    first = ids(planned(written))
    assert ids(planned(written, CATS, CATS.replace("index: 7", "index: 7, axis: 0"))) == first
    for other in ("index: 8", "key: W_enc, index: 7"):
        changed = CATS.replace("key: W_dec, index: 7", other if "key" in other else f"key: W_dec, {other}")
        assert not set(ids(planned(written, CATS, changed))) & set(first)
    np.savez(written.parent / "sae.npz", W_dec=2 * DECODER)
    assert not set(ids(planned(written))) & set(first)


def test_a_square_decoder_is_read_by_its_axis(written: Path) -> None:
    square = CATS.replace("W_dec", "square")
    rows = planned(written, CATS, square.replace("layer", "axis: 0, layer"))
    columns = planned(written, CATS, square.replace("layer", "axis: 1, layer"))
    assert not set(ids(rows)) & set(ids(columns))
    found = [plan.sources["cats"].made_from for plan in (rows, columns)]
    for made_from, expected in zip(found, (DECODER[7], DECODER[:128, 7]), strict=True):
        assert isinstance(made_from, DirectionInFile)
        assert made_from.load("cats", 128).directions[3].tolist() == expected.tolist()


def test_a_decoder_behind_the_attention(written: Path) -> None:
    mid = CATS.replace("layer: 3", "layer: 3, where: attention")
    block = "{vector: [cats, hand], layers: [3], multipliers: [1.5]}"
    there = ("{vector: [cats, hand], layers: [3], where: attention, multipliers: [1.5]}", "vector: [hand]")
    both = "vector: [cats, hand]"
    plan = planned(
        written, CATS, mid, block, there[0], both, "vector: [cats]", both, there[1], both, there[1]
    )
    assert {config.operation for config in plan.configs.values() if config.vector} >= {"add_attention"}


REFUSED = [
    ((CATS, CATS.replace("key: W_dec, ", "")), 5, "the setting 'key' is missing"),
    ((CATS, CATS.replace(", layer: 3", "")), 5, "the setting 'layer' is missing"),
    ((CATS, CATS.replace("W_dec", "W_dek")), 5, "no tensor 'W_dek'"),
    ((CATS, CATS.replace("index: 7", "index: 300")), 5, "'W_dec' (300 x 128) has no direction 300"),
    ((CATS, CATS.replace("index: 7, ", "")), 5, "'W_dec' (300 x 128) has 300 directions"),
    ((CATS, CATS.replace("index: 7", "index: -1")), 5, "index should be greater than or equal to 0"),
    ((CATS, CATS.replace("index: 7", "index: 7, axis: 1")), 5, "are 300 wide, and the model's stream is 128"),
    ((CATS, CATS.replace("index: 7", "index: 7, axis: 2")), 5, "axis should be 0 or 1, found 2"),
    ((CATS, CATS.replace("W_dec", "square")), 5, "may be its rows or its columns"),
    ((CATS, CATS.replace("layer: 3", "layer: 9")), 5, "the model has only layers 0 to 5"),
    ((CATS, CATS.replace("layer: 3", "layer: 2")), 5, "'cats' has no direction at layer 3"),
    ((CATS, CATS.replace("sae.npz", "sae.pt")), 5, "is a pickle"),
    ((CATS, CATS.replace("sae.npz", "none.npz")), 5, "no vector file 'none.npz'"),
    ((CATS, CATS.replace("sae.npz", "grid.yaml")), 5, "neither a safetensors file nor an .npz archive"),
    ((CATS, CATS.replace("unit", "deviation")), 5, "the norm deviation is measured over contrast data"),
    ((CATS, CATS.replace("unit", "{residual: 0.1}")), 5, "the norm residual:0.1 is measured over"),
    ((CATS, CATS.replace("layer: 3", "layer: 3, where: attention")), 8, "where add does not act"),
    (
        ("layers: [3], multipliers: [1.5]", "layers: [3], multipliers: [1.5], where: attention"),
        8,
        "'cats' is",
    ),
    ((CATS, CATS.replace("layer: 3", "layer: 3, where: mlp")), 5, "where should be 'layer' or 'attention'"),
    (("{file: hand.safetensors}", CATS.replace(", norm: [raw, unit]", "")), 6, "one vector under two names"),
    (("{random_vectors: 1}", "{shuffled_labels: 1}"), 11, "shuffled labels need the data of 'cats'"),
]


@pytest.mark.parametrize(("pairs", "line", "words"), REFUSED)
def test_what_is_wrong_is_one_message_with_its_line(
    written: Path, pairs: tuple[str, ...], line: int, words: str
) -> None:
    with pytest.raises(GridError) as raised:
        planned(written, *pairs)
    assert f"grid.yaml, line {line}: " in raised.value.message
    assert words in raised.value.message
    assert raised.value.hint
    assert len(str(raised.value)) <= 600


def test_a_run_measures_the_stream_beside_it(written: Path) -> None:
    folder = run_grid(written, load=fake.load()).folder
    assert list((folder / "vectors").glob("stream-*.json"))


def test_a_model_that_is_not_at_hand_is_planned(written: Path) -> None:
    away = ("{id: tiny-llama, dtype: float32}", "{id: nobody/none, layers: 6}")
    assert planned(written, *away).pending
    with pytest.raises(GridError, match="no direction at layer 3"):
        planned(written, *away, CATS, CATS.replace("layer: 3", "layer: 2"))
