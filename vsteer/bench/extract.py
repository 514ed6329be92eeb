"""`vsteer bench extract`: a vector's activations through vLLM against a Hugging Face loop, in turn.

Both read every layer's stream at the same token of the same texts; the loop runs one text at a time and keeps
all layers' outputs, as people do. Rounds take different pairs, so that nothing is found in the cache from
the round before.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import replace
from statistics import median

import numpy as np

from vsteer.bench.figures import Figure, median_ratio, rates_in_turn
from vsteer.bench.hugging_face import HuggingFaceProcess
from vsteer.datasets.items import ItemSet
from vsteer.engine.driver import VllmEngine
from vsteer.engine.options import EngineOptions
from vsteer.engine.proof.reference import ReferenceEngine
from vsteer.engine.table import Capacity
from vsteer.errors import UsageError
from vsteer.protocol import Prompt, Request
from vsteer.vectors.extract import extract
from vsteer.vectors.members import members
from vsteer.vectors.recipe import CAPTURES, make_recipe

ROUNDS = 4
TARGET = 3.0
QUICK_PAIRS = 80


def bench_extract(model: str, data: str, quick: bool, on_progress: Callable[[str], None]) -> list[Figure]:
    recipe = make_recipe(data)
    pairs = recipe.data
    if not isinstance(pairs, ItemSet):
        raise UsageError(f"{data} holds unpaired sets", "the benchmark wants contrast pairs")
    items = pairs.items[: QUICK_PAIRS if quick else None]
    parts = [replace(pairs, items=items[round_::ROUNDS]) for round_ in range(ROUNDS)]
    with ExitStack() as engines:
        on_progress("starting vsteer's engine (the first start compiles, about 75 s)")
        options = EngineOptions(max_model_len=1024, kv_cache_gib=2)
        ours = engines.enter_context(
            closing(
                VllmEngine(model, dtype="bfloat16", options=options, capacity=Capacity(captures=CAPTURES))
            )
        )
        on_progress("starting the Hugging Face loop")
        loop = engines.enter_context(closing(HuggingFaceProcess(model, {})))
        on_progress(f"it is faster in {loop.dtype} here; {len(items)} pairs in {ROUNDS} rounds")

        def through_vllm(round_: int) -> float:
            start = time.perf_counter()
            with extract(ours, ours.tokenizer, parts[round_], recipe.token):
                return 2 * len(parts[round_].items) / (time.perf_counter() - start)

        def one_by_one(round_: int) -> float:
            found = members(ours.tokenizer, parts[round_], recipe.token)
            texts = [(member.prompt, member.position) for member in found]
            return len(texts) / loop(_seconds_of, texts)

        # Texts that no round has warm both up.
        _warm_up(ours, loop)
        fast, slow = rates_in_turn(ROUNDS, through_vllm, one_by_one)
    return [
        Figure(
            f"extraction of {len(items)} pairs: over a Hugging Face loop",
            median_ratio(fast, slow),
            TARGET,
            note=f"{median(fast):.1f} and {median(slow):.2f} texts/s",
        )
    ]


def _warm_up(ours: VllmEngine, loop: HuggingFaceProcess) -> None:
    rng = np.random.default_rng(0)
    texts = [
        (Prompt.plain(int(t) for t in rng.integers(0, ours.info.vocab_size, length)), length - 1)
        for length in (100, 150, 200)
    ]
    for _ in ours.run(
        Request(str(n), prompt, capture=(position,)) for n, (prompt, position) in enumerate(texts)
    ):
        pass
    loop(_seconds_of, texts)


def _seconds_of(reference: ReferenceEngine, texts: list[tuple[Prompt, int]]) -> float:
    start = time.perf_counter()
    total = np.zeros((reference.info.layers, reference.info.hidden_size))
    for prompt, position in texts:
        total += reference.streams(prompt.token_ids)[:, position]
    return time.perf_counter() - start
