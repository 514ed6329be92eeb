"""Perplexities through the vLLM engine, against plain transformers on the same tokens."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.engine.conftest import BATCHED_TOKENS, BLOCK, MAX_MODEL_LEN, ONE, on
from tests.engine.test_v2_runner import run
from vsteer import models
from vsteer.engine.driver import VllmEngine
from vsteer.engine.proof.parity import make_vectors
from vsteer.engine.proof.reference import ReferenceEngine
from vsteer.protocol import OPEN_END, Prompt, Request, Steering, Term
from vsteer.scoring.perplexity import coherence_request, read_coherence

RELATIVE = 1e-4
STRONG = Steering((Term("first", 2, 2.0),), "after_prompt")
WEAK = Steering((Term("second", 4, -1.0),), "all")
# tokens of the prompt and of the text: within a block, over blocks, over chunks, one alone, up to the window
LENGTHS = [(5, 8), (5, 1), (12, 2), (40, 30), (70, 100), (130, 20), (MAX_MODEL_LEN - 40, 40)]


def perplexities(
    engine: VllmEngine, written: list[tuple[Prompt, tuple[int, ...]]], steering: Steering | None = None
) -> list[float]:
    requests = [
        replace(
            coherence_request(str(n), prompt.token_ids, text),
            steering=steering and replace(steering, positions=(len(prompt.token_ids) - 1, OPEN_END)),
        )
        for n, (prompt, text) in enumerate(written)
    ]
    by_id = {result.id: result for result in engine.run(requests)}
    found = [read_coherence(text, by_id[str(n)]) for n, (_, text) in enumerate(written)]
    assert [scores["tokens"][0] for scores in found] == [len(text) for _, text in written]
    values = [scores["perplexity"][0] for scores in found]
    assert all(value is not None for value in values)
    return [value for value in values if value is not None]


def by_transformers(written: list[tuple[Prompt, tuple[int, ...]]]) -> list[float]:
    folder = models.resolve("tiny-llama").model
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    expected = []
    for prompt, text in written:
        with torch.no_grad():
            logits = model(torch.tensor([[*prompt.token_ids, *text]])).logits[0].double()
        before = logits[len(prompt.token_ids) - 1 : -1].log_softmax(-1)
        chosen = before[torch.arange(len(text)), torch.tensor(text)]
        expected.append(math.exp(-float(chosen.mean())))
    return expected


@on(ONE)
def test_perplexities_equal_transformers(engine: VllmEngine, reference: ReferenceEngine) -> None:
    vectors = make_vectors(reference)
    for each in (engine, reference):
        each.load(vectors, [STRONG, WEAK])
    assert max(prompt for prompt, _ in LENGTHS) > 2 * BATCHED_TOKENS > BLOCK
    rng = np.random.default_rng(0)
    asked = [
        Request(
            f"{length} {tokens} {steering}",
            Prompt.plain(int(token) for token in rng.integers(3, 259, length)),
            steering,
            tokens,
            ignore_eos=True,
        )
        for length, tokens in LENGTHS
        for steering in (None, STRONG, WEAK)
    ]
    # these also leave their blocks in the prefix cache, steered and unsteered
    texts = {result.id: result.token_ids for result in engine.run(asked)}
    written = [(request.prompt, texts[request.id]) for request in asked]

    expected = by_transformers(written)
    found = perplexities(engine, written)
    off = max(abs(a / b - 1) for a, b in zip(found, expected, strict=True))
    print(f"{len(found)} texts, perplexity {min(found):.1f} to {max(found):.1f}, off by {off:.1e}")
    assert off < RELATIVE
    # from a cache that now holds every one of them
    again = perplexities(engine, written)
    assert again == pytest.approx(expected, rel=RELATIVE)

    # the steered model says something else of its own text, so that asking it by mistake can't pass
    slips = perplexities(engine, written, STRONG)
    assert min(abs(a / b - 1) for a, b in zip(slips, expected, strict=True)) > 50 * RELATIVE
    ours = [request.steering == STRONG for request in asked]
    assert all(slip < plain for slip, plain, own in zip(slips, expected, ours, strict=True) if own)
    assert perplexities(engine, written) == pytest.approx(expected, rel=RELATIVE)


@pytest.mark.engine
@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU runs Model Runner V2 above")
def test_perplexities_on_model_runner_v2() -> None:
    """Under Triton's interpreter: see test_v2_runner.py."""
    lengths = [(5, 6), (5, 1), (12, 2), (40, 10), (90, 20), (100, 28)]
    said = run("v2_coherence_main", models.resolve("tiny-llama").model, json.dumps(lengths))
    assert said["v2_runner"] is True
    written = [(Prompt.plain(prompt), tuple(text)) for prompt, text, _ in said["written"]]
    assert [(len(prompt.token_ids), len(text)) for prompt, text in written] == lengths
    found = [perplexity for *_, perplexity in said["written"]]
    assert found == pytest.approx(by_transformers(written), rel=RELATIVE)
