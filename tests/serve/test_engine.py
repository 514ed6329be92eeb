"""The real server: each answer is that of the engine's own run, however it is asked for, crowded or not.

One engine computes what is expected and ends, then another serves. Where both could be wrong, Hugging Face is
the oracle. The last tests break the server.
"""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import json
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from openai import AsyncOpenAI, NotFoundError, OpenAI

from tests.serve.live import Live, live_server
from vsteer import models
from vsteer.engine.driver import VllmEngine
from vsteer.engine.options import EngineOptions
from vsteer.engine.proof.parity import TOLERANCE, compare, make_requests, make_vectors
from vsteer.engine.proof.reference import ReferenceEngine
from vsteer.engine.table import Capacity
from vsteer.models.hugging_face import load_tokenizer
from vsteer.operations import graph_modules
from vsteer.prompts.template import render_chat
from vsteer.protocol import Prompt, Request, Result, Steering
from vsteer.serve.names import parse_name
from vsteer.serve.settings import Settings, make_settings
from vsteer.vectors.files import save
from vsteer.vectors.vector import SteeringVector

pytestmark = pytest.mark.engine

MAX_MODEL_LEN, BLOCK, KV_BLOCKS = 256, 32, 40
STEERINGS, TOKENS = 200, 8
KEY = "nobody-asks-for-it"
# As many blocks as a dozen of the longer requests fill, so that those of a crowd preempt each other.
OPTIONS: dict[str, Any] = {
    "max_model_len": MAX_MODEL_LEN,
    "max_num_seqs": 32,
    "max_num_batched_tokens": 64,
    "kv_cache_gib": 0.25,
    "enforce_eager": True,
    "block_size": BLOCK,
    "vllm": {"num_gpu_blocks_override": KV_BLOCKS},
}
SENTENCE = "the cat sat on a mat and told me that it was late, so we all went home again. "
# from a letter to some 60 tokens, so that prompts share what they begin with
TEXTS = [SENTENCE * (n // 20) + SENTENCE[: 1 + 4 * (n % 20)] for n in range(63)]
POSITIONS = ("", ":after_prompt", ":generated", ":last_prompt_token", ":[2,5)", ":[4,40)")
MODELS = [
    "base",
    *(
        f"base+{vector}@{layer}*{times}{where}"
        for layer, vector, times, where in itertools.islice(
            itertools.product(range(6), ("first", "second"), (0.5, -0.5, 1, 1.5), POSITIONS), 0, None, 3
        )
    ),
    "base+first@2..4*0.3+second@3*-0.5",
    "base+ablate(first@3)",
    "base+first@1*0",
]
CHATS: dict[str, list[dict[str, Any]]] = {
    ":after_user_turn": [{"role": "user", "content": "Who are you?"}],
    ":after_prompt": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Who?"}],
    "": [
        {"role": "user", "content": "One."},
        {"role": "assistant", "content": "Two."},
        {"role": "user", "content": [{"type": "text", "text": "Three?"}]},
    ],
}
BEGUN = "I am"
LONG = "base+second@2*1.5:after_prompt"


def asked(steering: Steering, prompt: Prompt, name: str, **options: Any) -> Request:
    spanned = Steering(steering.terms, prompt.span(steering.positions)) if steering.terms else None
    return Request(name, prompt, spanned, **{"max_tokens": TOKENS, "ignore_eos": True, **options})


@dataclasses.dataclass
class Expected:
    """What the engine's own run gives, and the fingerprints of its table."""

    results: dict[str, Result]
    fingerprints: dict[str, str]


@pytest.fixture(scope="module")
def folder() -> str:
    return models.resolve("tiny-llama").model


@pytest.fixture(scope="module")
def reference(folder: str) -> ReferenceEngine:
    return ReferenceEngine(folder)


@pytest.fixture(scope="module")
def vectors(reference: ReferenceEngine) -> dict[str, dict[int, Any]]:
    return {name: dict(found) for name, found in make_vectors(reference).items()}


@pytest.fixture(scope="module")
def expected(folder: str, vectors: Any) -> Expected:
    tokenizer = load_tokenizer(folder)
    requests = []
    for n, model in enumerate(MODELS):
        prompt = Prompt.plain(tokenizer(TEXTS[n % len(TEXTS)])["input_ids"])
        requests.append(asked(parse_name(model), prompt, f"{n}"))
        scored = dataclasses.replace(requests[-1], id=f"{n} echo", prompt_logprobs_from=1)
        requests += [scored] if n % 7 == 1 and len(prompt.token_ids) > 1 else []
    for where, messages in CHATS.items():
        plain = [{"role": m["role"], "content": text_of(m["content"])} for m in messages]
        steering = parse_name(f"base+first@3{where}")
        requests.append(asked(steering, render_chat(tokenizer, plain), f"chat{where}"))
        requests.append(asked(steering, render_chat(tokenizer, plain, BEGUN), f"begun{where}"))
    prompt = Prompt.plain(tokenizer(TEXTS[9])["input_ids"])
    requests.append(asked(parse_name(LONG), prompt, "long", max_tokens=150))
    for n in range(3):
        options = {"seed": 5 + n, "temperature": 1.0}
        requests.append(asked(parse_name(MODELS[3]), prompt, f"drawn {n}", **options))
    engine = VllmEngine(
        folder,
        dtype="float32",
        options=EngineOptions(**OPTIONS),
        capacity=Capacity(terms=4, modules=graph_modules(["ablate"])),
    )
    try:
        steerings = [request.steering for request in requests if request.steering]
        engine.load(vectors, steerings)
        results = {result.id: result for result in engine.run(requests)}
        table = engine._table
        assert table is not None
        prints = {model: table.fingerprints[table.cell_of(parse_name(model))] for model in MODELS}
    finally:
        engine.close()
    assert all(result.status == "ok" for result in results.values())
    return Expected(results, prints)


def text_of(content: Any) -> str:
    return content if isinstance(content, str) else str(content[0]["text"])


@pytest.fixture(scope="module")
def live(vectors: Any, expected: Expected, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """Started when `expected` is there and its engine has ended."""
    files = tmp_path_factory.mktemp("vectors")
    for name in ("first", "second"):
        save(SteeringVector(name, vectors[name]), files / f"{name}.safetensors")
    with live_server(settings_for(files)) as server:
        yield server


def settings_for(files: Path) -> Settings:
    return make_settings(
        "tiny-llama",
        vectors={name: files / f"{name}.safetensors" for name in ("first", "second")},
        engine=OPTIONS,
        operations=("ablate",),
        max_steerings=STEERINGS,
        dtype="float32",
    )


def post(live: Live, path: str = "/v1/completions", **body: Any) -> httpx.Response:
    given = {"max_tokens": TOKENS, "temperature": 0, "ignore_eos": True, "return_token_ids": True, **body}
    return httpx.post(f"{live.url}{path}", json=given, timeout=60)


def check(answer: dict[str, Any], result: Result, tokens: Sequence[int], text: str) -> None:
    assert tuple(tokens) == result.token_ids
    # a character whose last byte never came is shown by the one and not by the other
    assert text.rstrip("\ufffd") == result.text.rstrip("\ufffd")
    assert answer["vsteer"]["steered_tokens"] == result.steered_tokens


# --- what is answered


def test_each_answer_is_the_engines_own_whole_and_streamed(live: Live, expected: Expected) -> None:
    for n, model in list(enumerate(MODELS))[::3]:
        result = expected.results[f"{n}"]
        answer = post(live, model=model, prompt=TEXTS[n % len(TEXTS)]).json()
        check(answer, result, answer["choices"][0]["token_ids"], answer["choices"][0]["text"])
        assert answer["model"] == model
        assert answer["vsteer"]["fingerprint"] == expected.fingerprints[model]
        assert answer["usage"]["completion_tokens"] == TOKENS
        chunks = streamed(post(live, model=model, prompt=TEXTS[n % len(TEXTS)], stream=True))
        choices = [choice for chunk in chunks for choice in chunk["choices"]]
        tokens = [token for choice in choices for token in choice["token_ids"]]
        check(chunks[-1], result, tokens, "".join(choice["text"] for choice in choices))
        assert {chunk["model"] for chunk in chunks} == {model}


def streamed(response: httpx.Response) -> list[dict[str, Any]]:
    assert response.status_code == 200
    events = response.text.split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    return [json.loads(event.removeprefix("data: ")) for event in events[:-2]]


def test_the_openai_client_sixty_four_at_once_streamed_and_whole(live: Live, expected: Expected) -> None:
    """In a memory that holds a dozen of them, with prompts that share what they begin with."""

    async def ask_all() -> list[tuple[int, list[int], int]]:
        client = AsyncOpenAI(base_url=f"{live.url}/v1", api_key=KEY, max_retries=0)
        order = np.random.default_rng(3).integers(0, len(MODELS), 64)
        return await asyncio.gather(*(one(client, int(n), k % 2 == 0) for k, n in enumerate(order)))

    async def one(client: AsyncOpenAI, n: int, stream: bool) -> tuple[int, list[int], int]:
        more = {"extra_body": {"ignore_eos": True, "return_token_ids": True}}
        options: dict[str, Any] = {
            "model": MODELS[n],
            "prompt": TEXTS[n % len(TEXTS)],
            "max_tokens": TOKENS,
            **more,
        }
        if not stream:
            answer = await client.completions.create(temperature=0, **options)
            return n, answer.choices[0].model_extra["token_ids"], proof(answer)
        tokens: list[int] = []
        steered = -1
        async for chunk in await client.completions.create(temperature=0, stream=True, **options):
            tokens += chunk.choices[0].model_extra["token_ids"]
            steered = proof(chunk) if chunk.choices[0].finish_reason else steered
        return n, tokens, steered

    def proof(answer: Any) -> int:
        return int(answer.model_extra["vsteer"]["steered_tokens"])

    for n, tokens, steered in asyncio.run(ask_all()):
        assert tuple(tokens) == expected.results[f"{n}"].token_ids
        assert steered == expected.results[f"{n}"].steered_tokens


def test_conversations_are_steered_where_their_parts_end(live: Live, expected: Expected) -> None:
    for where, messages in CHATS.items():
        model = f"base+first@3{where}"
        begun = [*messages, {"role": "assistant", "content": BEGUN}]
        more = {"continue_final_message": True, "add_generation_prompt": False}
        bodies: dict[str, dict[str, Any]] = {"chat": {"messages": messages}}
        bodies["begun"] = {"messages": begun, **more}
        for name, body in bodies.items():
            result = expected.results[f"{name}{where}"]
            answer = post(live, "/v1/chat/completions", model=model, **body).json()
            assert answer["choices"][0]["token_ids"] == list(result.token_ids)
            assert answer["vsteer"]["steered_tokens"] == result.steered_tokens
            chunks = streamed(post(live, "/v1/chat/completions", model=model, stream=True, **body))
            deltas = [choice["delta"].get("content") or "" for chunk in chunks for choice in chunk["choices"]]
            assert "".join(deltas) == answer["choices"][0]["message"]["content"]
            assert chunks[-1]["vsteer"] == answer["vsteer"]


def test_log_probabilities_of_the_prompt_are_steered(live: Live, expected: Expected) -> None:
    """As harnesses ask for them: the prompt is echoed, and nothing is read from the cache."""
    for n, model in list(enumerate(MODELS))[1::7]:
        result = expected.results.get(f"{n} echo")
        if result is None:
            continue
        answer = post(live, model=model, prompt=TEXTS[n % len(TEXTS)], echo=True, logprobs=1).json()
        logprobs = answer["choices"][0]["logprobs"]["token_logprobs"]
        assert logprobs[1:-TOKENS] == pytest.approx(list(result.prompt_logprobs), abs=TOLERANCE)
        assert answer["vsteer"]["steered_tokens"] == result.steered_tokens


def test_several_answers_are_seeded_as_vllm_does_and_each_is_proven(live: Live, expected: Expected) -> None:
    drawn = [expected.results[f"drawn {n}"] for n in range(3)]
    body: dict[str, Any] = {"model": MODELS[3], "prompt": TEXTS[9], "n": 3, "seed": 5, "temperature": 1}
    answer = post(live, **body).json()
    assert [choice["text"] for choice in answer["choices"]] == [result.text for result in drawn]
    assert answer["vsteer"]["steered_tokens"] == sum(result.steered_tokens for result in drawn)
    chunks = streamed(post(live, stream=True, **body))
    texts = ["", "", ""]
    for choice in (choice for chunk in chunks for choice in chunk["choices"]):
        texts[choice["index"]] += choice["text"]
    assert texts == [result.text for result in drawn]
    assert chunks[-1]["vsteer"] == answer["vsteer"]
    # several prompts, each with its own span
    answer = post(live, model=MODELS[3], prompt=[TEXTS[3], TEXTS[3]]).json()
    result = expected.results["3"]
    assert [choice["text"] for choice in answer["choices"]] == [result.text] * 2
    assert answer["vsteer"]["steered_tokens"] == 2 * result.steered_tokens


def test_the_server_agrees_with_hugging_face(live: Live, reference: ReferenceEngine, vectors: Any) -> None:
    """Mixed requests through the server's own client and table, which grows for them; slips would show."""
    proof = live.server.proof
    requests = make_requests(30, proof.info.layers, proof.info.vocab_size, prompt_tokens=(6, 60))
    found = compare(proof, reference, requests, vectors)
    assert found.failures == []
    assert found.cached_tokens > 0


# --- what is refused, and what stays


def test_an_unknown_name_is_not_found(live: Live) -> None:
    client = OpenAI(base_url=f"{live.url}/v1", api_key=KEY, max_retries=0)
    with pytest.raises(NotFoundError, match="did you mean 'first'"):
        client.completions.create(model="base+frst@2", prompt="x")
    assert client.models.retrieve("base+first@2*1").id == "base+first@2*1"
    assert [card.id for card in client.models.list()] == ["base"]


def test_what_vllm_refuses_is_its_error_and_fails_alone(live: Live) -> None:
    for body in (
        {"prompt": "so " * 300},
        {"prompt": [999_999]},
        {"prompt": "x", "temperature": -1},
        {"prompt": "x", "max_tokens": "many"},
        {"prompt": None},
    ):
        answer = post(live, model=MODELS[1], **body)
        assert 400 <= answer.status_code < 500
        assert "error" in answer.json()
    answer = post(live, "/v1/chat/completions", model=MODELS[1], messages=[{"role": "user"}] * 2)
    assert answer.status_code in (200, 400)


def test_a_conversation_whose_parts_cannot_be_found_is_refused(live: Live) -> None:
    chat = CHATS[":after_user_turn"]
    for more in (
        {"add_generation_prompt": False},
        {"chat_template_kwargs": {"add_generation_prompt": False}},
    ):
        answer = post(
            live, "/v1/chat/completions", model="base+first@3:after_user_turn", messages=chat, **more
        )
        assert answer.status_code == 400


def test_the_table_grows_under_a_request_that_is_under_way_until_it_is_full(
    live: Live, expected: Expected
) -> None:
    table = live.server.table
    assert post(live, model=LONG, prompt="x", max_tokens=1).status_code == 200
    room = table._capacity.cells - 1 - len(table._cells())
    assert 10 < room < STEERINGS

    async def crowd() -> tuple[str, list[int]]:
        async with httpx.AsyncClient(timeout=120) as client:
            body = {"temperature": 0, "ignore_eos": True}
            long = {"model": LONG, "prompt": TEXTS[9], "max_tokens": 150, **body}
            first = asyncio.create_task(client.post(f"{live.url}/v1/completions", json=long))
            await asyncio.sleep(0.1)
            posts = [
                client.post(
                    f"{live.url}/v1/completions",
                    json={"model": f"base+first@3*{1 + n / 1000}", "prompt": "so", "max_tokens": 1, **body},
                )
                for n in range(1, room + 5)
            ]
            answers = await asyncio.gather(*posts)
            return (await first).json()["choices"][0]["text"], [one.status_code for one in answers]

    text, codes = asyncio.run(crowd())
    assert text == expected.results["long"].text
    assert codes.count(200) == room
    assert codes.count(503) == 4
    # and those that it holds go on
    assert post(live, model=MODELS[1], prompt=TEXTS[1]).status_code == 200


def test_broken_off_requests_leave_nothing_and_disturb_nobody(live: Live, expected: Expected) -> None:
    async def broken() -> str:
        async with httpx.AsyncClient(timeout=60) as client:
            long = {
                "model": LONG,
                "prompt": TEXTS[9],
                "max_tokens": 150,
                "temperature": 0,
                "ignore_eos": True,
            }
            kept = asyncio.create_task(client.post(f"{live.url}/v1/completions", json=long))
            await asyncio.gather(*(give_up(client, long, n) for n in range(40)))
            return str((await kept).json()["choices"][0]["text"])

    async def give_up(client: httpx.AsyncClient, body: dict[str, Any], n: int) -> None:
        url = f"{live.url}/v1/completions"
        if n % 2:
            with pytest.raises(httpx.TimeoutException):
                await client.post(url, json=body, timeout=0.05 + n / 100)
            return
        async with client.stream("POST", url, json={**body, "stream": True, "n": 1 + n % 4}) as response:
            async for _ in response.aiter_bytes():
                break

    assert asyncio.run(broken()) == expected.results["long"].text
    wait_until_idle(live)


def wait_until_idle(live: Live) -> None:
    """No request is left in vLLM, and no record with a worker: only then is a table taken as a whole."""
    deadline = time.monotonic() + 30
    while live.server.client.get_num_unfinished_requests() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert live.server.client.get_num_unfinished_requests() == 0
    # a step is needed for a runner to forget
    assert post(live, model="base", prompt="x").status_code == 200
    reload_table(live)


def reload_table(live: Live, **changed: Any) -> None:
    """The same table as a whole, which no worker takes while it has a record of a request."""
    table = live.server.table
    assert table._held is not None
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "table.safetensors")
        dataclasses.replace(table._held, **changed).save(path)
        answers = live.ask("vsteer_load_table", str(path))
    table._sha256 = answers[0]["sha256"]


@pytest.mark.slow
def test_a_thousand_at_random_cancelled_streamed_and_retried_are_each_their_own_run(
    live: Live, expected: Expected
) -> None:
    rng = np.random.default_rng(11)
    # most come again after they were broken off
    patience = [float(rng.uniform(0.01, 2)) if rng.random() < 0.3 else 120 for _ in range(1_000)]
    chosen = [int(n) for n in rng.integers(0, len(MODELS), 1_000)]
    broken = 0

    async def ask_all() -> None:
        limits = httpx.Limits(max_connections=100)
        async with httpx.AsyncClient(base_url=live.url, limits=limits, timeout=None) as client:
            await asyncio.gather(*(one(client, n, k) for k, n in enumerate(chosen)))

    async def one(client: httpx.AsyncClient, n: int, k: int) -> None:
        nonlocal broken
        body = {"model": MODELS[n], "prompt": TEXTS[n % len(TEXTS)], "stream": k % 2 == 0}
        body |= {"max_tokens": TOKENS, "temperature": 0, "ignore_eos": True, "return_token_ids": True}
        try:
            async with asyncio.timeout(patience[k]):
                response = await client.post("/v1/completions", json=body)
        except TimeoutError:
            broken += 1
            response = await client.post("/v1/completions", json=body)
        chunks = streamed(response) if body["stream"] else [response.json()]
        tokens = [token for chunk in chunks for choice in chunk["choices"] for token in choice["token_ids"]]
        assert tuple(tokens) == expected.results[f"{n}"].token_ids
        assert chunks[-1]["vsteer"]["steered_tokens"] == expected.results[f"{n}"].steered_tokens
        assert chunks[-1]["vsteer"]["fingerprint"] == expected.fingerprints[MODELS[n]]

    asyncio.run(ask_all())
    assert len(set(chosen)) == len(MODELS)
    assert broken > 100
    wait_until_idle(live)


# --- a server that breaks


def test_a_record_that_is_short_is_an_error_and_ends_steering(
    live: Live, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if a runner had not written the cells of the last token."""
    client = live.server.client
    collect = client._records.collect

    async def short(key: int) -> list[int]:
        first, done = await collect(key)
        return [first, done - 1]

    with monkeypatch.context() as patch:
        patch.setattr(client._records, "collect", short)
        answer = post(live, model=MODELS[1], prompt=TEXTS[1])
        assert answer.status_code == 500
        assert "choices" not in answer.json()
    assert "its cells were written to" in client.fault
    assert post(live, model=MODELS[1], prompt=TEXTS[1]).status_code == 500
    health = httpx.get(f"{live.url}/health")
    assert (health.status_code, client.fault in health.json()["error"]["message"]) == (503, True)
    # what is not steered can't be wrong about it
    assert post(live, model="base", prompt=TEXTS[1]).status_code == 200
    client.fault = ""
    assert httpx.get(f"{live.url}/health").status_code == 200


def test_health_fails_when_a_layer_has_stopped_to_steer(live: Live) -> None:
    table = live.server.table
    assert table._held is not None
    # the cells are there, with their fingerprints, and do nothing at layer 4
    scale = table._held.scale.copy()
    scale[4] = 0
    assert httpx.get(f"{live.url}/health").status_code == 200
    reload_table(live, scale=scale)
    live.server.health._proven_at = -1e9
    answer = httpx.get(f"{live.url}/health", timeout=60)
    assert answer.status_code == 503
    assert "the canary failed" in answer.json()["error"]["message"]
    assert "layer 4" in answer.json()["error"]["message"]
    assert post(live, model=MODELS[1], prompt=TEXTS[1]).status_code == 500
    reload_table(live)
    live.server.client.fault = ""
    assert httpx.get(f"{live.url}/health", timeout=60).status_code == 200


def test_a_killed_worker_gives_errors_and_no_wrong_answer(live: Live, expected: Expected) -> None:
    async def killed() -> list[httpx.Response]:
        async with httpx.AsyncClient(timeout=60) as client:
            body = {"prompt": TEXTS[9], "max_tokens": 150, "temperature": 0, "ignore_eos": True}
            posts = [
                asyncio.create_task(
                    client.post(f"{live.url}/v1/completions", json={"model": model, "stream": stream, **body})
                )
                for model in (LONG, "base")
                for stream in (False, True)
            ]
            await asyncio.sleep(0.3)
            for process in live.server.client.engine_core.resources.engine_manager.processes:
                process.kill()
            return await asyncio.gather(*posts)

    for n, answer in enumerate(asyncio.run(killed())):
        if n % 2:
            assert '"error"' in answer.text
            assert '"finish_reason":"' not in answer.text
        else:
            assert answer.status_code == 500
            assert "choices" not in answer.json()
    assert httpx.get(f"{live.url}/health", timeout=60).status_code == 503
    for model in ("base", LONG, "base+first@1*1.25"):
        answer = post(live, model=model, prompt="x")
        assert answer.status_code in (500, 503)
        assert "choices" not in answer.json()
