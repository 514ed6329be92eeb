"""Harnesses as their users have them, against the server: lm-eval's log-likelihoods are Hugging Face's, and
Inspect finds under each name the text that Hugging Face gives.

They are commands in an environment of their own, since they want other packages than vLLM; where PATH has
none, the test is skipped. To have them: pip install inspect_ai openai 'lm_eval[api]' transformers
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.evaluations.lm_eval_oracle import TASKS
from tests.serve.live import Live, live_server
from vsteer import models
from vsteer.engine.proof.parity import make_vectors
from vsteer.engine.proof.reference import ReferenceEngine
from vsteer.models.hugging_face import load_tokenizer
from vsteer.prompts.template import render_chat
from vsteer.protocol import Prompt, Request, Steering
from vsteer.serve.names import parse_name
from vsteer.serve.settings import make_settings
from vsteer.vectors.files import save
from vsteer.vectors.vector import SteeringVector

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.timeout(900)]

STEERED = "base+first@3*1.5"
TOKENS = 6
QUESTIONS = ("Who are you?", "How was the film?", "Is it late?", "One.", "Two?", "And the trip?", "Where?")
INSPECT = """
from inspect_ai import Task, task
from inspect_ai.dataset import json_dataset
from inspect_ai.scorer import exact
from inspect_ai.solver import generate


@task
def same():
    return Task(dataset=json_dataset("asked.jsonl"), solver=generate(), scorer=exact())
"""


def installed(command: str) -> str:
    found = shutil.which(command)
    if found is None:
        pytest.skip(f"there is no {command} in PATH")
    return found


@pytest.fixture(scope="module")
def folder() -> str:
    return models.resolve("tiny-llama").model


@pytest.fixture(scope="module")
def reference(folder: str) -> ReferenceEngine:
    reference = ReferenceEngine(folder)
    reference.load(make_vectors(reference), [parse_name(STEERED)])
    return reference


@pytest.fixture(scope="module")
def live(reference: ReferenceEngine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    files = tmp_path_factory.mktemp("vectors")
    for name, directions in make_vectors(reference).items():
        save(SteeringVector(name, dict(directions)), files / f"{name}.safetensors")
    settings = make_settings(
        "tiny-llama",
        vectors={"first": files / "first.safetensors"},
        engine={"max_model_len": 256, "kv_cache_gib": 0.25, "enforce_eager": True},
        dtype="float32",
    )
    with live_server(settings) as server:
        yield server


def run(*command: str, folder: Path, **variables: str) -> None:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OPENAI_API_KEY": "none", **variables}
    environment.pop("PYTHONPATH", None)
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-2000:]}"


@pytest.mark.parametrize("model", ["base", STEERED])
def test_log_likelihoods_in_lm_eval(
    live: Live, reference: ReferenceEngine, folder: str, tmp_path: Path, model: str
) -> None:
    for file in TASKS.iterdir():
        shutil.copy(file, tmp_path)
    python = Path(installed("lm-eval")).with_name("python")
    options = f"model={model},base_url={live.url}/v1/completions,tokenizer={folder},tokenized_requests=True"
    run(
        *(str(python), "-m", "lm_eval", "--model", "local-completions", "--model_args", options),
        *("--tasks", "facts", "--include_path", ".", "--output_path", "out", "--log_samples"),
        folder=tmp_path,
    )
    (file,) = (tmp_path / "out").rglob("samples_facts_*.jsonl")
    samples = [json.loads(line) for line in file.read_text().splitlines()]
    assert len(samples) >= 10
    tokenizer, steering = load_tokenizer(folder), parse_name(model)
    for sample in samples:
        for argument, answer in zip(arguments(sample), sample["filtered_resps"], strict=True):
            context, choice = argument
            prompt = tokenizer(context)["input_ids"]
            continuation = tokenizer(context + choice)["input_ids"][len(prompt) :]
            expected = log_likelihood(reference, steering, prompt, continuation)
            assert float(answer[0]) == pytest.approx(expected, abs=1e-3)


def arguments(sample: dict[str, Any]) -> list[tuple[str, str]]:
    return [(one["arg_0"], one["arg_1"]) for one in sample["arguments"].values()]


def log_likelihood(
    reference: ReferenceEngine, steering: Steering, prompt: list[int], continuation: list[int]
) -> float:
    request = Request("", Prompt.plain(prompt), steering if steering.terms else None)
    scores = reference.score(request, continuation)
    return float(sum(scores[n, token] for n, token in enumerate(continuation)))


@pytest.mark.parametrize("model", ["base", STEERED])
def test_texts_in_inspect(
    live: Live, reference: ReferenceEngine, folder: str, tmp_path: Path, model: str
) -> None:
    inspect = installed("inspect")
    tokenizer = load_tokenizer(folder)
    texts = {name: greedy(reference, tokenizer, parse_name(name)) for name in ("base", STEERED)}
    assert not set(texts["base"]) & set(texts[STEERED])
    # half a character is shown in two ways
    asked = [
        {"input": question, "target": text}
        for question, text in zip(QUESTIONS, texts[model], strict=True)
        if "\ufffd" not in text
    ]
    assert len(asked) >= 3
    (tmp_path / "asked.jsonl").write_text("".join(json.dumps(one) + "\n" for one in asked))
    (tmp_path / "same.py").write_text(INSPECT)
    for name, accuracy in (("base", float(model == "base")), (STEERED, float(model == STEERED))):
        run(
            *(inspect, "eval", "same.py", "--model", f"openai-api/vsteer/{name}", "--temperature", "0"),
            *("--max-tokens", str(TOKENS), "--display", "none", "--log-format", "json", "--log-dir", name),
            folder=tmp_path,
            VSTEER_BASE_URL=f"{live.url}/v1",
            VSTEER_API_KEY="none",
        )
        (log,) = (tmp_path / name).glob("*.json")
        (score,) = json.loads(log.read_text())["results"]["scores"]
        assert score["metrics"]["mean"]["value"] == accuracy


def greedy(reference: ReferenceEngine, tokenizer: Any, steering: Steering) -> list[str]:
    """The likeliest text to each question, as Hugging Face's model gives it token by token."""
    found = []
    for question in QUESTIONS:
        prompt = render_chat(tokenizer, [{"role": "user", "content": question}])
        request = Request("", prompt, steering if steering.terms else None)
        tokens: list[int] = []
        while len(tokens) < TOKENS:
            scores = reference.score(request, [*tokens, 0])[len(tokens)]
            tokens.append(int(scores.argmax()))
        found.append(tokenizer.decode(tokens, skip_special_tokens=True))
    return found
