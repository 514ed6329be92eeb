"""Models with an adapter in a grid: planned without being made, run, stored, found on another machine."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.lora import make_adapter
from tests.plan.sample import GRID, filled
from tests.run import fake
from vsteer import models
from vsteer.errors import ModelError
from vsteer.grid.problems import GridError
from vsteer.grid.spec import read_grid
from vsteer.models.identity import model_sha256
from vsteer.plan.budget import budget
from vsteer.plan.memory import memory_of
from vsteer.plan.plan import Plan, make_plans
from vsteer.run import loading
from vsteer.run.start import run_grid
from vsteer.vectors.files import load

PLAIN = "model: {id: tiny-llama, dtype: float32}"
ADAPTED = "  - {id: tiny-llama, adapter: lora, dtype: float32}\n"
BOTH = f"model:\n  - {{id: tiny-llama, dtype: float32}}\n{ADAPTED}"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    base = Path(models.resolve("tiny-llama").model)
    monkeypatch.setenv("VSTEER_HOME", str(tmp_path / "home"))
    made = models.home() / "models"
    made.mkdir(parents=True)
    (made / "tiny-llama").symlink_to(base)
    (tmp_path / "grid").mkdir()
    make_adapter(tmp_path / "grid" / "lora", base)
    return filled(tmp_path / "grid")


def planned(folder: Path, model: str) -> tuple[Plan, ...]:
    (folder / "grid.yaml").write_text(GRID.replace(PLAIN, model))
    return make_plans(read_grid(folder / "grid.yaml"))


def test_an_adapter_makes_another_model_and_leaves_the_first_as_it_is(folder: Path) -> None:
    (alone,) = planned(folder, PLAIN)
    plain, adapted = planned(folder, BOTH)
    assert list(plain.configs) == list(alone.configs)
    assert plain.facts == alone.facts
    assert not plain.configs.keys() & adapted.configs.keys()
    assert {record["model"] for record in adapted.config_records()} == {"tiny-llama + lora"}
    assert plain.row_count == adapted.row_count
    # a plan makes nothing, and knows how large it is
    assert adapted.facts.folder is not None
    assert not adapted.facts.folder.exists()
    assert memory_of(adapted) == memory_of(plain)
    assert budget(adapted).rows == budget(plain).rows


def test_an_exclusion_names_the_one_or_the_other(folder: Path) -> None:
    exclude = "\nexclude:\n  - {model: tiny-llama + lora, layers: 1}"
    plain, adapted = planned(folder, BOTH.rstrip() + exclude)
    assert len(plain.configs) == 2 * 17
    assert len(adapted.configs) == 2 * 9


def test_its_rows_and_vectors_say_which_model_it_is(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, adapted = planned(folder, BOTH)
    run = run_grid(folder / "grid.yaml", load=fake.load())
    assert run.planned == plain.row_count + adapted.row_count
    (rows,) = run.folder.glob("rows/*.parquet")
    found = pq.read_table(rows, columns=["model"])["model"].to_pylist()
    assert found.count("tiny-llama") == found.count("tiny-llama + lora") == plain.row_count
    merged = adapted.facts.folder
    assert merged is not None
    sha256 = model_sha256(merged)
    origins = {load(path).origin for path in run.folder.glob("vectors/v-extracted-*.safetensors")}
    assert {(one.model, one.model_sha256) for one in origins} == {
        ("tiny-llama", model_sha256(models.home() / "models" / "tiny-llama")),
        ("tiny-llama + lora", sha256),
    }
    commits = {one["model"]: one["model_commit"] for one in adapted.config_records()}
    assert commits == {"tiny-llama + lora": sha256}
    # the same model, as the run's manifest has it, on a machine that has yet to make it
    (_, _), (stored, _) = loading.stored_models(run.folder)
    assert stored.identity() == adapted.facts.identity()
    assert loading.same_model(stored) == merged
    there = tmp_path / "there"
    (there / "models").mkdir(parents=True)
    (there / "models" / "tiny-llama").symlink_to(models.home() / "models" / "tiny-llama")
    monkeypatch.setenv("VSTEER_HOME", str(there))
    found_there = loading.same_model(replace(stored, folder=Path("/no/such/folder")))
    assert found_there != merged
    assert model_sha256(found_there) == sha256
    # another adapter in the same place is another model
    make_adapter(folder / "lora", models.home() / "models" / "tiny-llama", seed=1)
    with pytest.raises(ModelError, match=r"isn't on .* as the run has it"):
        loading.same_model(stored)


@pytest.mark.parametrize(
    ("written", "named"),
    [
        ("nowhere", "line 6: no adapter at .*nowhere"),
        ("items.json", "line 6: no adapter at"),
        ("[lora]", "line 6: expected a text"),
        ("''", "line 6: expected a text"),
        ('"\\0"', "line 6"),
        ("a" * 5000, "line 6"),
        ("~nobody-of-that-name/lora", "line 6"),
    ],
)
def test_a_wrong_adapter_is_one_message_with_its_line(folder: Path, written: str, named: str) -> None:
    with pytest.raises(GridError, match=named) as error:
        planned(folder, BOTH.replace("adapter: lora", f"adapter: {written}"))
    assert len(str(error.value)) <= 600


def test_one_that_is_no_plain_lora_is_refused_before_anything_is_loaded(folder: Path) -> None:
    config = folder / "lora" / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"use_dora": True}))
    with pytest.raises(GridError, match=r"line 6: .*use_dora: True"):
        planned(folder, BOTH)
    with pytest.raises(GridError, match=r"line 6: .*use_dora: True"):
        planned(folder, BOTH.replace("id: tiny-llama, adapter", "id: org/elsewhere, adapter"))


def test_the_same_adapter_twice_is_one_model(folder: Path) -> None:
    with pytest.raises(GridError, match="stands twice"):
        planned(folder, BOTH + ADAPTED)
    with pytest.raises(GridError, match="is the same model as"):
        planned(folder, BOTH + ADAPTED.replace("adapter: lora", "adapter: ./lora"))
