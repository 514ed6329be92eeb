"""What the compiler fuses keeps its order, with the table's size at which torch 2.13 alone loses it: layers
then read memory that nothing wrote, and the engine does not start."""

from __future__ import annotations

import pytest

from vsteer import models
from vsteer.engine.driver import VllmEngine
from vsteer.engine.options import EngineOptions
from vsteer.engine.proof.parity import compare, make_requests, make_vectors
from vsteer.engine.proof.reference import ReferenceEngine
from vsteer.engine.table import Capacity


@pytest.mark.engine
def test_several_vectors_at_a_layer_in_a_compiled_graph(reference: ReferenceEngine) -> None:
    engine = VllmEngine(
        models.resolve("tiny-llama").model,
        dtype="float32",
        options=EngineOptions(max_model_len=256, kv_cache_gib=0.25),
        capacity=Capacity(cells=1031, rows=61, terms=4),
    )
    try:
        requests = make_requests(40, engine.info.layers, engine.info.vocab_size)
        found = compare(engine, reference, requests, make_vectors(reference))
    finally:
        engine.close()
    assert found.failures == []
    assert found.steered_rows >= 30
