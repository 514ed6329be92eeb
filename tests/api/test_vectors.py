"""Extraction in a notebook is the command's: the same recipe, the same numbers."""

from pathlib import Path

import pytest

import vsteer
from tests.api.conftest import Recording
from vsteer.errors import VsteerError
from vsteer.vectors.derive import content_sha256
from vsteer.vectors.files import save


def test_a_vector_is_extracted_by_an_engine_of_its_own_or_one_that_is_open(engines: list[Recording]) -> None:
    vector = vsteer.extract("tiny-llama", "sentiment", token="last")
    assert (vector.name, vector.layers, vector.hidden_size) == ("sentiment", tuple(range(6)), 128)
    assert (vector.origin.model, vector.origin.method, vector.origin.token) == (
        "tiny-llama",
        "mean_diff",
        "last",
    )
    assert engines[0].closed
    with vsteer.Engine("tiny-llama") as engine:
        again = vsteer.extract(engine, "sentiment", token="last", name="other")
        assert not engines[1].closed
    assert content_sha256(again) == content_sha256(vector)
    assert again.name == "other"
    unit = vsteer.extract("tiny-llama", "sentiment", norm="unit")
    assert unit.origin.norm == "unit"


def test_what_is_wrong_is_found_before_the_model_is_loaded(engines: list[Recording], tmp_path: Path) -> None:
    (tmp_path / "bad.jsonl").write_text("{}")
    for data, settings in (
        ("none.jsonl", {}),
        (tmp_path / "bad.jsonl", {}),
        ("sentiment", {"method": "mean_dif"}),
        ("sentiment", {"norm": "caa"}),
        ("sentiment", {"token": "first"}),
    ):
        with pytest.raises(VsteerError):
            vsteer.extract("tiny-llama", data, **settings)
    assert engines == []


def test_a_vector_is_loaded(engines: list[Recording], tmp_path: Path) -> None:
    vector = vsteer.extract("tiny-llama", "sentiment")
    save(vector, tmp_path / "v.safetensors")
    loaded = vsteer.load_vector(tmp_path / "v.safetensors")
    assert content_sha256(loaded) == content_sha256(vector)
    assert vsteer.load_vector(str(tmp_path / "v.safetensors"), "mine").name == "mine"
    with pytest.raises(VsteerError, match="could not read"):
        vsteer.load_vector(tmp_path / "none.safetensors")
