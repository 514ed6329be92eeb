"""Log-probabilities that are scored come from a float32 unembedding of the 16-bit stream."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from vsteer import models
from vsteer.datasets.builtin import data_path
from vsteer.datasets.readers import read_questions
from vsteer.engine.driver import VllmEngine
from vsteer.engine.options import EngineOptions
from vsteer.engine.proof.reference import ReferenceEngine
from vsteer.engine.table import Capacity
from vsteer.prompts.template import render_question
from vsteer.protocol import Block, Prompt, Request, Steering, Term

LETTERS = ("A", "B")
FORKS = 40


@pytest.fixture(params=["this CPU's", "any CPU's"])
def product(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """By MKL where it is, and as it is done without."""
    from vsteer.engine.worker import float32_product, unembedding

    if request.param == "any CPU's":
        monkeypatch.setattr(unembedding, "bfloat16_product", lambda: None)
    elif float32_product.bfloat16_product() is None:
        pytest.skip("this CPU or this torch has no product of its own")
    return str(request.param)


@pytest.mark.engine
@pytest.mark.usefixtures("product")
def test_a_product_of_16_bit_matrices_keeps_the_sums_as_they_come() -> None:
    from vsteer.engine.worker.unembedding import Float32Unembedding

    generator = torch.Generator().manual_seed(1)
    for dtype in (torch.bfloat16, torch.float16):
        x, weight = (torch.randn(n, 576, generator=generator).to(dtype) for n in (7, 1024))
        layer = SimpleNamespace(weight=weight, float32_weight=weight.float())
        found = Float32Unembedding().apply(layer, x)
        exact = x.double() @ weight.double().T
        assert found.dtype == torch.float32
        assert float((found - exact).abs().max()) <= 1e-4
        assert torch.backends.mkldnn.matmul.fp32_precision != "bf16"  # type: ignore[attr-defined]


@pytest.mark.engine
@pytest.mark.usefixtures("product")
def test_a_product_takes_the_last_ones_place_only_where_that_is_asked_for() -> None:
    from vsteer.engine.worker.unembedding import Float32Unembedding

    generator = torch.Generator().manual_seed(2)
    weight = torch.randn(1024, 576, generator=generator).bfloat16()
    layer = SimpleNamespace(weight=weight, float32_weight=weight.float())
    method = Float32Unembedding()
    xs = [torch.randn(rows, 576, generator=generator).bfloat16() for rows in (5, 9, 7)]
    kept = [method.apply(layer, x) for x in xs]
    with method.reusing():
        for x, alone in zip(xs, kept, strict=True):
            assert (method.apply(layer, x) == alone).all()
        place = method.apply(layer, xs[2]).data_ptr()
        assert method.apply(layer, xs[0]).data_ptr() == place
    assert method.apply(layer, xs[0]).data_ptr() != place
    exact = [x.double() @ weight.double().T for x in xs]
    assert all(float((one - of).abs().max()) <= 1e-4 for one, of in zip(kept, exact, strict=True))


@pytest.mark.engine
def test_a_product_reads_nothing_that_is_no_matrix_of_its_kind() -> None:
    from vsteer.engine.worker.float32_product import bfloat16_product

    product = bfloat16_product()
    if product is None:
        pytest.skip("this CPU or this torch has no product of its own")
    x, weight, out = torch.ones(3, 8).bfloat16(), torch.ones(5, 8).bfloat16(), torch.empty(3, 5)
    product(x, weight, out)
    assert (out == 8).all()
    for given in (
        (x.float(), weight, out),
        (x, weight.half(), out),
        (x, weight, out.bfloat16()),
        (x, weight[:, :4], out),
        (x, weight, torch.empty(3, 4)),
        (x, torch.ones(8, 5).bfloat16().t(), out),
    ):
        with pytest.raises(ValueError, match="no product"):
            product(*given)


@pytest.mark.engine
def test_scores_are_finer_than_16_bits_and_nearer_to_float32() -> None:
    """SmolLM2's difference of two letters in bfloat16, against Hugging Face in float32 and in bfloat16, by
    requests and by forks that are steered by next to nothing, more than are unembedded at once."""
    folder = models.resolve("smollm2-135m-instruct").model
    exact, rounded = (ReferenceEngine(folder, dtype=dtype) for dtype in ("float32", "bfloat16"))
    tokenizer = exact.tokenizer
    letters = [tokenizer.encode(letter, add_special_tokens=False)[0] for letter in LETTERS]
    items = read_questions(data_path("refusal", "questions")).unique()[:32]
    prompts = [render_question(tokenizer, item.question, None, "(") for item in items]
    expected, stock = (differences(engine, prompts, letters) for engine in (exact, rounded))
    engine = VllmEngine(
        folder,
        dtype="bfloat16",
        options=EngineOptions(max_model_len=512, kv_cache_gib=0.5, enforce_eager=True, forks=True),
        capacity=Capacity.for_grid(cells=FORKS, rows=64, terms=1),
    )
    nothing = {layer: np.ones(engine.info.hidden_size, np.float32) for layer in range(engine.info.layers)}
    steerings = tuple(
        Steering((Term("nothing", n % engine.info.layers, 1e-9 * (1 + n)),), "last_prompt_token")
        for n in range(FORKS)
    )
    try:
        asked = [
            Request(str(n), prompt, None, max_tokens=1, logprob_token_ids=tuple(letters))
            for n, prompt in enumerate(prompts)
        ]
        results = {int(result.id): result for result in engine.run(asked)}
        engine.load({"nothing": nothing}, steerings)
        blocks = [
            Block(str(n), prompt, (((), tuple(letters)),), steerings) for n, prompt in enumerate(prompts)
        ]
        of_forks = {int(block.id): scores for block, scores in engine.run_blocks(blocks)}
    finally:
        engine.close()
    logprobs = [results[n].logprobs[0] for n in range(len(prompts))]
    found = np.array([of_row[letters[0]] - of_row[letters[1]] for of_row in logprobs])
    ours, theirs = (np.sqrt(np.mean((values - expected) ** 2)) for values in (found, stock))
    print(f"root mean square error {ours:.4f}, Hugging Face's bfloat16 {theirs:.4f}")
    assert ours < theirs
    assert on_grid(stock) == 1
    assert on_grid(found) <= 0.2
    assert all(scores.forked for scores in of_forks.values())
    forked = np.stack([of_forks[n].logprobs[:, 0] - of_forks[n].logprobs[:, 1] for n in range(len(prompts))])
    errors = np.sqrt(np.mean((forked - expected[:, None]) ** 2, axis=0))
    print(f"forks: {errors.min():.4f} to {errors.max():.4f}")
    assert (errors < theirs).all()
    assert on_grid(forked) <= 0.2


def differences(engine: ReferenceEngine, prompts: list[Prompt], letters: list[int]) -> NDArray[np.float64]:
    rows = [engine.score(Request("", prompt, None), letters[:1])[0, letters] for prompt in prompts]
    return np.array([float(a - b) for a, b in rows])


def on_grid(values: NDArray[np.float64], step: float = 1 / 16) -> float:
    """Which part of the values are multiples of a step, to the rounding of a log-softmax in float32."""
    return float(np.mean(np.abs(values / step - np.round(values / step)) < 1e-3))
