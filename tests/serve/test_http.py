"""The server as a client sees it, with vLLM and the engine played by a fake: names, limits, marks."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import pytest

from tests.serve.fake import FakeServer, error
from vsteer.errors import UsageError
from vsteer.serve.asked import CURRENT
from vsteer.serve.guard import Guard

CHAT = {"messages": [{"role": "user", "content": "Hello"}]}
KEY = "a-key-of-some-length"


# --- what is answered


@pytest.mark.parametrize(
    ("model", "steering"),
    [
        ("base", "base"),
        ("cheerful", "base+joy@3*1.5:after_prompt"),
        ("base+joy@3*1.50:after_prompt", "base+joy@3*1.5:after_prompt"),
        ("base+joy@1..2+refusal@4*-1", "base+joy@1..2+refusal@4*-1"),
        ("base+ablate(joy@1)", "base+ablate(joy@1)"),
        ("base+joy@3*0", "base+joy@3*0"),
    ],
)
@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
def test_an_answer_says_its_steering_and_its_proof(model: str, steering: str, path: str) -> None:
    server = FakeServer()
    asked = CHAT if "chat" in path else {"prompt": "Hello"}
    answer = server.ask("POST", path, json={"model": model, **asked})
    assert answer.status_code == 200
    assert answer.json()["model"] == model
    acts = steering not in ("base", "base+joy@3*0")
    proof = answer.json()["vsteer"]
    assert (proof["steering"], proof["steered_tokens"]) == (steering, 7 if acts else 0)
    assert (len(proof["fingerprint"]) == 64) == acts
    # vLLM's one model is asked, and nothing of ours reaches it
    assert server.vllm.seen == [{"model": "base", **asked}]
    assert CURRENT.get() is None


def test_an_object_steers_as_the_name_that_it_spells() -> None:
    server = FakeServer()
    terms = [{"vector": "joy", "layers": 3, "multiplier": 1.5}]
    by_object = server.complete(vsteer={"terms": terms, "positions": "after_prompt"}).json()
    by_name = server.complete(model="base+joy@3*1.5:after_prompt").json()
    by_text = server.complete(model="base", vsteer="cheerful").json()
    assert by_object == by_name == {**by_text, "model": by_name["model"]}
    assert by_name["choices"] != server.complete(model="base").json()["choices"]
    assert len(server.table.held) == 1


def test_a_stream_is_marked_where_choices_end_and_once_at_its_end() -> None:
    answer = FakeServer().complete(model="cheerful", stream=True)
    assert answer.headers["content-type"].startswith("text/event-stream")
    events = answer.text.split("\n\n")
    assert events[-3:] == [": alive", "data: [DONE]", ""]
    chunks = [json.loads(event.removeprefix("data: ")) for event in events[:-3]]
    assert {chunk["model"] for chunk in chunks} == {"cheerful"}
    marked = [chunk.get("vsteer", {}).get("steered_tokens") for chunk in chunks]
    assert marked == [None, None, 7, 7]
    whole = FakeServer().complete(model="cheerful").json()["choices"][0]["text"]
    assert "".join(choice["text"] for chunk in chunks for choice in chunk["choices"]) == whole


def test_what_was_not_proven_is_an_error() -> None:
    server = FakeServer(proves=False)
    for model in ("base", "cheerful"):
        assert "not proven" in error(server.complete(model=model))["message"]
        stream = server.complete(model=model, stream=True).text
        chunk, *_ = [event for event in stream.split("\n\n") if "not proven" in event]
        assert "choices" not in json.loads(chunk.removeprefix("data: "))


def test_models_are_those_of_the_file_and_whatever_can_be_spelled() -> None:
    server = FakeServer()
    listed = server.ask("GET", "/v1/models").json()["data"]
    assert [card["id"] for card in listed] == ["base", "cheerful"]
    assert listed[1]["vsteer"]["steering"] == "base+joy@3*1.5:after_prompt"
    card = server.ask("GET", "/v1/models/base+joy%402*0.5").json()
    assert (card["id"], card["root"]) == ("base+joy@2*0.5", "tiny")
    assert server.ask("GET", "/v1/models/chearful").status_code == 404
    # to look is not to load
    assert server.table.held == {}


# --- what is refused


@pytest.mark.parametrize(
    ("model", "hint"),
    [
        ("chearful", "did you mean 'cheerful'?"),
        ("gpt-4", "base, or a steering such as base+joy@3*1.5"),
        ("", "base, or a steering"),
        ("base+jy@3", "did you mean 'joy'?"),
        ("base+joy@9", "it has layers from 0 to 5"),
        ("base+joy", "write base"),
        ("base+joy@3:after_promt", "did you mean 'after_prompt'?"),
        ("base+ablat(joy@3)", "did you mean 'ablate'?"),
        ("base+ablate_everywhere(joy@3)", "ablate"),
        ("base+joy@3+joy@3*2+refusal@3", "at most 2 are"),
        ("x" * 5_000, "base"),
        (None, "such as base"),
        (["base"], "such as base"),
        (3, "such as base"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_an_unknown_name_is_404_with_a_hint_and_reaches_no_model(model: Any, hint: str, stream: bool) -> None:
    server = FakeServer()
    answer = server.complete(model=model, stream=stream)
    assert answer.status_code == 404
    found = error(answer)
    assert (found["type"], found["param"]) == ("NotFoundError", "model")
    assert hint in found["message"]
    assert server.vllm.seen == []
    assert server.table.held == {}


def test_without_a_model_there_is_no_default() -> None:
    server = FakeServer()
    assert server.ask("POST", "/v1/completions", json={"prompt": "x"}).status_code == 404
    assert server.vllm.seen == []


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({"model": "cheerful", "vsteer": {"terms": []}}, "names a steering twice"),
        ({"vsteer": ["base"]}, "expected an object"),
        ({"vsteer": {"terms": [{"vector": "joy", "layers": 1, "file": "/etc/passwd"}]}}, "unknown setting"),
        ({"model": "base", "vllm_xargs": {"vsteer": 1}}, "'vllm_xargs' can't be used"),
        ({"model": "base", "use_beam_search": True}, "can't be used"),
        ({"model": "base", "kv_transfer_params": {}}, "can't be used"),
        ({"model": "base", "prompt_embeds": "gASV"}, "can't be used"),
        ({"model": "base", "chat_template": "{{ 1 }}"}, "can't be used"),
        ({"model": "base", "truncate_prompt_tokens": 4}, "can't be used"),
        ({"model": "base", "n": 1_000}, "at most 256 answers"),
        ({"model": "base", "n": 0}, "at most 256 answers"),
        ({"model": "base", "n": True}, "at most 256 answers"),
        ({"model": "base", "n": 2, "prompt": ["x"] * 129}, "at most 256 answers"),
        ({"model": "base", "prompt": [[1, 2]] * 257}, "at most 256 answers"),
        (
            {"model": "base", "messages": [{"content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
            "only text",
        ),
        ({"model": "base", "messages": [{"content": [{"type": "text", "image_url": {}}]}]}, "only text"),
        ({"model": "base", "messages": [{"content": ["x"]}]}, "only text"),
    ],
)
def test_a_request_that_steering_could_not_vouch_for_is_refused(body: dict[str, Any], says: str) -> None:
    server = FakeServer()
    answer = server.complete(**body)
    assert answer.status_code == 400
    assert says in error(answer)["message"]
    assert server.vllm.seen == []


def test_an_unknown_vector_in_an_object_is_404() -> None:
    answer = FakeServer().complete(vsteer={"terms": [{"vector": "jy", "layers": 1}]})
    assert answer.status_code == 404
    assert "did you mean 'joy'?" in error(answer)["message"]


JSON = {"content-type": "application/json"}


@pytest.mark.parametrize(
    ("content", "headers", "status", "says"),
    [
        (b"", JSON, 400, "no JSON"),
        (b"{", JSON, 400, "no JSON"),
        (b"\xff\xfe", JSON, 400, "no JSON"),
        (b"[" * 9_000, JSON, 400, "nested too deep"),
        (b'{"a":' * 1_900, JSON, 400, "no JSON"),
        (b"1" * 9_000, JSON, 400, "no JSON"),
        (b'{"model": "\\ud800"}', JSON, 400, "surrogate"),
        (b"[]", JSON, 400, "a JSON object"),
        (b'"base"', JSON, 400, "a JSON object"),
        (b"null", JSON, 400, "a JSON object"),
        (b'{"model": "base", "prompt": "' + b"x" * 10_000 + b'"}', JSON, 413, "more than 10,000 bytes"),
        (b'{"model": "base"}', {"content-type": "text/plain"}, 415, "application/json"),
        (b'{"model": "base"}', {}, 415, "application/json"),
        (
            b'{"model": "base"}',
            {"content-type": "application/x-www-form-urlencoded"},
            415,
            "application/json",
        ),
    ],
)
def test_a_hostile_body_is_one_short_error(
    content: bytes, headers: dict[str, str], status: int, says: str
) -> None:
    server = FakeServer()
    answer = server.ask("POST", "/v1/chat/completions", content=content, headers=headers)
    assert answer.status_code == status
    assert says in error(answer)["message"]
    assert server.vllm.seen == []


def test_a_body_without_end_is_cut_off() -> None:
    taken = 0

    async def chunks() -> Any:
        nonlocal taken
        while True:
            taken += 1_000
            yield b"x" * 1_000

    answer = FakeServer().ask("POST", "/v1/completions", content=chunks(), headers=JSON)
    assert answer.status_code == 413
    assert taken <= 12_000


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/"),
        ("GET", "/v1/completions"),
        ("POST", "/v1/models"),
        ("POST", "/v1/responses"),
        ("POST", "/v1/load_lora_adapter"),
        ("POST", "/v1/completions/"),
        ("POST", "/v1/chat/completions/batch"),
        ("POST", "/collective_rpc"),
        ("POST", "/tokenize"),
        ("GET", "/metrics"),
        ("GET", "/openapi.json"),
        ("GET", "/x" * 3_000),
    ],
)
def test_no_other_path_reaches_vllm(method: str, path: str) -> None:
    server = FakeServer()
    answer = server.ask(method, path, **({"json": {"model": "base"}} if method == "POST" else {}))
    assert answer.status_code == 404
    assert "/v1/chat/completions" in error(answer)["message"]
    assert server.vllm.seen == []


def test_a_full_table_refuses_what_is_new_and_serves_what_it_holds() -> None:
    server = FakeServer(room=2)
    for layer in (1, 2):
        assert server.complete(model=f"base+joy@{layer}").status_code == 200
    full = server.complete(model="base+joy@3")
    assert full.status_code == 503
    assert error(full)["type"] == "SteeringTableFull"
    # other positions and a multiplier of 0 need no room
    for model in ("base+joy@1:generated", "base+joy@4*0", "base"):
        assert server.complete(model=model).status_code == 200
    assert len(server.vllm.seen) == 5


def test_health_is_the_canarys_word() -> None:
    server = FakeServer(key=KEY)
    assert server.ask("GET", "/health").status_code == 200
    server.fault = "the canary failed"
    answer = server.ask("GET", "/health")
    assert (answer.status_code, answer.json()["error"]["message"]) == (503, "the canary failed")


# --- who may ask


def test_with_a_key_nothing_is_answered_without_it() -> None:
    server = FakeServer(key=KEY)
    for given in (None, "Bearer wrong-key-of-some-length", f"Basic {KEY}", "Bearer ", KEY, "Bearer \xe9"):
        headers = {"authorization": given} if given else {}
        for method, path in (("GET", "/v1/models"), ("POST", "/v1/completions"), ("GET", "/x")):
            answer = server.ask(method, path, headers=[(k, v.encode("latin-1")) for k, v in headers.items()])
            assert answer.status_code == 401
            assert KEY not in answer.text
    assert server.vllm.seen == []
    right = {"authorization": f"Bearer {KEY}", "host": "far.example"}
    assert server.ask("GET", "/v1/models", headers=right).status_code == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8000", "127.0.0.1.evil.example", "", "[::2]:80"]
)
def test_without_a_key_a_page_of_another_host_gets_nothing(host: str) -> None:
    server = FakeServer()
    assert server.ask("GET", "/v1/models", headers={"host": host}).status_code == 403


@pytest.mark.parametrize("host", ["localhost:8000", "127.0.0.1", "127.0.0.9:1", "[::1]:8000"])
def test_without_a_key_this_machine_is_answered(host: str) -> None:
    assert FakeServer().ask("GET", "/v1/models", headers={"host": host}).status_code == 200


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.3", "example.org"])
def test_beyond_loopback_a_key_is_needed(host: str) -> None:
    with pytest.raises(UsageError, match="VSTEER_API_KEY"):
        Guard.at(host, "", 1)
    assert Guard.at(host, KEY, 1).key == KEY


@pytest.mark.parametrize("key", ["short", "a key with blanks in it", "ключ-ключ-ключ-ключ", "x" * 20 + "\n"])
def test_a_key_is_a_key(key: str) -> None:
    with pytest.raises(UsageError, match="is no key") as raised:
        Guard.at("127.0.0.1", key, 1)
    assert key not in str(raised.value)


# --- what stays


def test_a_client_that_goes_away_leaves_nothing() -> None:
    server = FakeServer()

    async def gone() -> None:
        told = asyncio.Event()
        sent: list[Any] = []
        body = json.dumps({"model": "cheerful", "prompt": "x", "wait": True}).encode()
        messages = [{"type": "http.request", "body": body}]

        async def receive() -> Any:
            if messages:
                return messages.pop()
            await told.wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            sent.append(message)

        scope = {
            "type": "http",
            "path": "/v1/completions",
            "method": "POST",
            "headers": [(b"host", b"localhost"), (b"content-type", b"application/json")],
        }
        task = asyncio.create_task(server.app(scope, receive, send))
        await asyncio.sleep(0.01)
        assert not task.done()
        told.set()
        await task
        assert sent == []

    asyncio.run(gone())
    assert server.vllm.left == 1


def test_many_at_once_get_each_its_own() -> None:
    server = FakeServer()
    models = [f"base+joy@{n % 6}*{1 + n // 6}" for n in range(60)]

    async def ask_all() -> list[httpx.Response]:
        transport = httpx.ASGITransport(server.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            posts = [
                client.post("/v1/completions", json={"model": model, "prompt": "x", "stream": bool(n % 2)})
                for n, model in enumerate(models)
            ]
            return await asyncio.gather(*posts)

    answers = asyncio.run(ask_all())
    assert all(f'"model":"{model}"' in one.text for model, one in zip(models, answers, strict=True))
    texts = {server.complete(model=model, prompt="x").json()["choices"][0]["text"] for model in models}
    assert len(texts) == 60
