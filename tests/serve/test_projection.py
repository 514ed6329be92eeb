"""What a real server says of an answer's stream along a vector, against Hugging Face with hooks."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest

from tests.serve.live import Live, live_server
from vsteer import models
from vsteer.engine.proof.parity import make_vectors
from vsteer.engine.proof.reference import ReferenceEngine
from vsteer.prompts.template import render_chat
from vsteer.protocol import Request, Steering
from vsteer.serve import projection
from vsteer.serve.names import parse_name
from vsteer.serve.settings import make_settings
from vsteer.vectors.files import save
from vsteer.vectors.vector import SteeringVector

pytestmark = pytest.mark.engine

OPTIONS: dict[str, Any] = {"max_model_len": 256, "kv_cache_gib": 0.25, "enforce_eager": True}
QUESTION = [{"role": "user", "content": "How was it?"}]
ANSWER = "It was cold, and then the sun came out."
LAYER = 4


@pytest.fixture(scope="module")
def reference() -> ReferenceEngine:
    return ReferenceEngine(models.resolve("tiny-llama").model)


@pytest.fixture(scope="module")
def vectors(reference: ReferenceEngine) -> dict[str, dict[int, Any]]:
    return {name: dict(found) for name, found in make_vectors(reference).items()}


@pytest.fixture(scope="module")
def live(vectors: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """Passes capture five tokens each, so that an answer takes several."""
    files = {name: tmp_path_factory.mktemp("vectors") / f"{name}.safetensors" for name in ("first", "second")}
    for name, file in files.items():
        save(SteeringVector(name, vectors[name]), file)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(projection, "SLOTS", 5)
        settings = make_settings(
            "tiny-llama", vectors=files, engine=OPTIONS, projections=True, dtype="float32"
        )
        with live_server(settings) as server:
            yield server


def ask(live: Live, **changed: Any) -> httpx.Response:
    messages = [*QUESTION, {"role": "assistant", "content": ANSWER}]
    body = {"model": "base", "messages": messages, "vector": "second", "layer": LAYER, **changed}
    return httpx.post(f"{live.url}/v1/vsteer/projections", json=body, timeout=60)


@pytest.mark.parametrize(
    "model", ["base", "base+first@3*2:after_prompt", "base+first@1..4*-1", "base+second@4*-2"]
)
def test_projections_are_those_of_hugging_face(
    live: Live, reference: ReferenceEngine, vectors: Any, model: str
) -> None:
    found = ask(live, model=model).json()
    assert "".join(found["tokens"]) == ANSWER
    prompt = render_chat(reference.tokenizer, QUESTION, ANSWER)
    steering = parse_name(model)
    reference.load(vectors, [steering])
    start, end = prompt.span(steering.positions)
    steered = Steering(steering.terms, (start, end)) if steering.terms else None
    stream = reference.streams(prompt.token_ids, Request("same", prompt, steered))[LAYER]
    r = vectors["second"][LAYER].astype(np.float64)
    along = stream[prompt.template_length :].astype(np.float64) @ (r / np.linalg.norm(r))
    assert len(along) > 10
    assert found["projection"] == pytest.approx(along.tolist(), abs=1e-3)
    # a vector of the same length says less than a component of its own would: it is another direction
    assert found["random"] != pytest.approx(found["projection"], abs=1e-2)
    assert found["vsteer"]["steering"] == model
    assert (found["vsteer"]["steered_tokens"] > 0) == (model != "base")


def test_clients_at_once_wait_for_each_other_and_nothing_stays(live: Live) -> None:
    async def crowd() -> list[list[float]]:
        async with httpx.AsyncClient(base_url=live.url, timeout=60) as client:
            body = {"model": "base", "messages": [*QUESTION, {"role": "assistant", "content": ANSWER}]}
            asked = [
                client.post("/v1/vsteer/projections", json={**body, "vector": "first", "layer": n % 6})
                for n in range(12)
            ]
            return [answer.json()["projection"] for answer in await asyncio.gather(*asked)]

    found = asyncio.run(crowd())
    for n in range(6):
        assert found[n] == pytest.approx(found[n + 6], abs=1e-3)
    assert live.ask("vsteer_captured", list(range(1, 200)))[0]["positions"] == [[]] * 199


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"vector": "secnd"}, "did you mean 'second'"),
        ({"vector": 3}, "the vectors are first, second"),
        ({"layer": 99}, "no layer 99"),
        ({"layer": "4"}, "no layer '4'"),
        ({"messages": []}, "expected a list of messages"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, "nothing but the start of an answer"),
        ({"messages": [*QUESTION, {"role": "assistant", "content": "so " * 300}]}, "the server reads 256"),
        ({"messages": [*QUESTION, {"role": "assistant", "content": ""}]}, "has no answer"),
        ({"model": "base+first@99"}, "no layer 99"),
    ],
)
def test_what_cannot_be_projected_is_refused(live: Live, changed: dict[str, Any], says: str) -> None:
    answer = ask(live, **changed)
    assert answer.status_code in (400, 404)
    assert says in answer.json()["error"]["message"]
