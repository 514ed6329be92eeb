"""Vectors extracted through vLLM against those that the reference engine gives, layer by layer."""

from __future__ import annotations

import json
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from tests.engine.conftest import CAPTURING, Setup, on
from vsteer import models
from vsteer.datasets.builtin import data_path
from vsteer.datasets.items import ItemSet, UnpairedSets
from vsteer.datasets.readers import read_contrast
from vsteer.engine.driver import VllmEngine
from vsteer.engine.options import EngineOptions
from vsteer.engine.proof.reference import ReferenceEngine
from vsteer.engine.table import Capacity
from vsteer.errors import DataError
from vsteer.protocol import Engine
from vsteer.vectors.diagnostics import tables as diagnose
from vsteer.vectors.extract import Extraction, extract
from vsteer.vectors.members import Token
from vsteer.vectors.methods import MethodName
from vsteer.vectors.vector import Origin

ROUNDED = [
    Setup(eager, tensor_parallel, dtype="bfloat16") for eager in (True, False) for tensor_parallel in (1, 2)
]
WORDS = ("rain", "salt", "wool", "iron", "milk", "corn", "jazz", "fog")


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> ItemSet:
    """Short lettered questions, since the tiny model has few tokens for a word.

    The answer is three times out of four an A: a random model knows no behaviour, and with balanced letters
    its differences would cancel to the rounding that the tolerance is about.
    """
    path = tmp_path_factory.mktemp("data") / "pairs.json"
    items = [
        {
            "question": f"{a} or {b}?\n\nChoices:\n(A) {a}\n(B) {b}",
            "answer_matching_behavior": "(A)" if index % 4 else "(B)",
            "answer_not_matching_behavior": "(B)" if index % 4 else "(A)",
        }
        for index, (a, b) in enumerate((a, b) for a in WORDS for b in WORDS if a < b)
    ]
    path.write_text(json.dumps(items))
    found = read_contrast(path)
    assert isinstance(found, ItemSet)
    return found


def directions(
    engine: Engine, tokenizer: object, data: ItemSet | UnpairedSets, method: MethodName, token: Token
) -> NDArray[np.float32]:
    """[layer, hidden]"""
    with extract(engine, tokenizer, data, token) as extraction:
        of_layer = extraction.vector("v", method).directions
        return np.stack([of_layer[layer] for layer in range(engine.info.layers)])


def relative_error(found: NDArray[np.float32], expected: NDArray[np.float32]) -> float:
    gap = np.linalg.norm(found - expected, axis=1) / np.linalg.norm(expected, axis=1)
    return float(gap.max())


@on(*CAPTURING)
def test_vectors_are_those_of_the_reference(
    engine: VllmEngine, reference: ReferenceEngine, pairs: ItemSet
) -> None:
    for method, token in (("mean_diff", "answer"), ("mean_diff", "last"), ("pca", -2)):
        found = directions(engine, engine.tokenizer, pairs, method, token)  # type: ignore[arg-type]
        expected = directions(reference, reference.tokenizer, pairs, method, token)  # type: ignore[arg-type]
        error = relative_error(found, expected)
        print(f"{method} at {token}: largest relative error {error:.1e}")
        assert error <= 1e-4


@pytest.fixture(scope="module")
def small_reference() -> ReferenceEngine:
    return ReferenceEngine(models.resolve("smollm2-135m-instruct").model)


def start(dtype: str, eager: bool) -> Iterator[VllmEngine]:
    engine = VllmEngine(
        models.resolve("smollm2-135m-instruct").model,
        dtype=dtype,
        options=EngineOptions(max_model_len=512, kv_cache_gib=0.5, enforce_eager=eager),
        capacity=Capacity(captures=32),
    )
    yield engine
    engine.close()


def first(behaviour: str, count: int) -> ItemSet:
    data = read_contrast(data_path(behaviour, "pairs"))
    assert isinstance(data, ItemSet)
    return ItemSet(data.source, data.form, data.items[:count])


@pytest.mark.engine
def test_vectors_of_a_real_model_in_float32(small_reference: ReferenceEngine) -> None:
    for engine in start("float32", eager=True):
        data = first("refusal", 12)
        found = directions(engine, engine.tokenizer, data, "mean_diff", "answer")
        expected = directions(small_reference, small_reference.tokenizer, data, "mean_diff", "answer")
        print(f"largest relative error {relative_error(found, expected):.1e}")
        assert relative_error(found, expected) <= 1e-4


@on(slow=ROUNDED)
def test_vectors_in_bfloat16(engine: VllmEngine, reference: ReferenceEngine, pairs: ItemSet) -> None:
    found = cosines(
        directions(engine, engine.tokenizer, pairs, "mean_diff", "answer"),
        directions(reference, reference.tokenizer, pairs, "mean_diff", "answer"),
    )
    print(f"least cosine {found.min():.5f}")
    assert (found >= 0.999).all()


@pytest.mark.engine
@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_vectors_of_a_real_model_in_bfloat16(small_reference: ReferenceEngine) -> None:
    """As near to the float32 reference as 0.999, and where Hugging Face's own bfloat16 isn't, as near as it.

    It is where the vector is small beside the stream that it is the difference of: with balanced letters the
    first layers know the letter and nothing of the behaviour, and what is left is rounding. Every vector that
    is further off is said to be so by its own table.
    """
    rounded = ReferenceEngine(models.resolve("smollm2-135m-instruct").model, dtype="bfloat16")
    for engine in start("bfloat16", eager=False):
        instructions = read_contrast(data_path("refusal", "instructions"))
        cases: list[tuple[ItemSet | UnpairedSets, MethodName, Token, int]] = [
            (first("refusal", 100), "mean_diff", "answer", 30),
            (first("sentiment", 60), "mean_diff", "last", 30),
            (first("refusal", 100), "mean_diff", "last", 0),
            (instructions, "dim", "last", 0),
        ]
        for data, method, token, near_enough in cases:
            with extract(engine, engine.tokenizer, data, token) as extraction:
                vector = extraction.vector("v", method, Origin(dtype=engine.info.dtype))
                said = np.array([row["rounding"] for row in diagnose.layer_table(extraction, vector)])
            found = np.stack([vector.directions[layer] for layer in range(engine.info.layers)])
            with extract(small_reference, small_reference.tokenizer, data, token) as extraction:
                of_layer = extraction.vector("v", method).directions
                exact, once = (
                    np.stack([of_layer[n] for n in range(engine.info.layers)]),
                    rounded_once(extraction),
                )
            theirs = directions(rounded, rounded.tokenizer, data, method, token)
            ours, limit = cosines(found, exact), np.minimum(0.999, cosines(theirs, exact))
            error = np.sqrt(2 * (1 - ours))
            print(
                f"{method} at {token}: least cosine {ours.min():.5f} (layer {ours.argmin()}), Hugging Face's "
                f"own {limit.min():.5f}; {(ours >= 0.999).sum()} of {len(ours)} layers reach 0.999, "
                f"{(cosines(once, exact) >= 0.999).sum()} of float32's streams that are rounded once; "
                f"the error is {(error / said).min():.2f} to {(error / said).max():.2f} times what is said"
            )
            assert (ours >= 0.999).sum() >= near_enough
            # both round at random: one may be a little further off, and what is all rounding points anywhere
            assert ((1 - ours <= 1.5 * (1 - limit)) | (said > 0.5)).all()
            assert (error <= 2 * said).all()
            # and nothing is called rounding that isn't
            assert (error >= said / 3).all()


def rounded_once(extraction: Extraction) -> NDArray[np.float32]:
    """What exact streams give that are rounded to bfloat16 once, at the very end."""
    found = []
    for layer in range(extraction.layers):
        streams = np.concatenate([values for _, values in extraction.activations.chunks(layer)])
        found.append(extraction.contrast @ torch.from_numpy(streams).to(torch.bfloat16).double().numpy())
    return np.stack(found).astype(np.float32)


def cosines(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float32]:
    found: NDArray[np.float32] = (a * b).sum(axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    return found


def test_a_text_that_is_too_long_ends_the_extraction_and_is_named(pairs: ItemSet) -> None:
    shorter = ReferenceEngine(models.resolve("tiny-llama").model, max_model_len=40)
    with pytest.raises(DataError, match=rf"item {pairs.items[0].item_id} .* too long"):
        extract(shorter, shorter.tokenizer, pairs, "answer")
