"""`vsteer bench replicas`: several engines behind one driver, over as many by hand.

Both compute the same work on the same cores, in turn. By hand means that each engine has a process, its cores
and its share of the work to itself, and that nobody deals, waits for another or is told of results.
"""

from __future__ import annotations

import multiprocessing
import os
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, closing
from functools import partial
from typing import TypeVar

from vsteer.bench.figures import Figure, as_lines, median_ratio, rates_in_turn
from vsteer.bench.made_up import ANSWERS, VECTOR, chat_prompts, random_vectors
from vsteer.cluster.cluster import Cluster
from vsteer.engine.driver import VllmEngine
from vsteer.engine.options import EngineOptions
from vsteer.engine.start import is_cpu_build
from vsteer.engine.table import Capacity
from vsteer.errors import UsageError
from vsteer.protocol import Block, Engine, Request, Steering, Term, Vectors

DTYPE = "bfloat16"
MULTIPLIERS = 8  # at each layer
TEXT_TOKENS = 16

T = TypeVar("T", Block, Request)


def bench_replicas(model: str, count: int, quick: bool, on_progress: Callable[[str], None]) -> list[Figure]:
    if not is_cpu_build():
        raise UsageError(
            "this measures engines on processors",
            "on a cluster of GPUs `vsteer status` shows each engine's rows a second",
        )
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < count:
        raise UsageError(f"{count} engines want as many cores, and there are {len(cores)}", "take fewer")
    shares = [cores[n * (len(cores) // count) : (n + 1) * (len(cores) // count)] for n in range(count)]
    rounds = 2 if quick else 3
    options = EngineOptions(max_model_len=512, max_num_seqs=128, kv_cache_gib=0.5, forks=True)
    make = partial(
        VllmEngine,
        model,
        dtype=DTYPE,
        options=options,
        capacity=Capacity.for_grid(cells=1024, rows=128, terms=1),
    )
    with ExitStack() as stack:
        on_progress(f"starting {count} engines on Ray, then {count} by hand")
        together = stack.enter_context(
            closing(Cluster(make, least=count, most=count, requests=2 * options.max_num_seqs + 64))
        )
        info = together.info
        vectors = random_vectors(info)
        steerings = [
            Steering((Term(VECTOR, layer, 0.01 * n),), "after_prompt")
            for n in range(1, MULTIPLIERS + 1)
            for layer in range(info.layers)
        ]
        together.load(vectors, steerings)
        together.wait_for(count)
        alone = [
            ProcessPoolExecutor(
                1,
                multiprocessing.get_context("spawn"),
                initializer=_start,
                initargs=(share, make, vectors, steerings),
            )
            for share in shares
        ]
        for pool in alone:
            stack.callback(_end, pool)
        for pool in alone:
            pool.submit(_by_itself, _count_texts, []).result()  # it is up

        def measured(
            name: str, work: Callable[[int], list[T]], count_rows: Callable[[Engine, list[T]], int]
        ) -> Figure:
            def by_driver(round_: int) -> float:
                return _rate(partial(count_rows, together), work(round_))

            def by_hand(round_: int) -> float:
                return _rate(partial(_shared_out, alone, count_rows), work(round_))

            # a first round warms both up
            rates = [rates[1:] for rates in rates_in_turn(rounds + 1, by_driver, by_hand)]
            figure = _over(f"{name}: {count} replicas over {count} engines by hand", *rates)
            on_progress(as_lines([figure]))
            return figure

        prompts = (2 if quick else 24) * count, (64 if quick else 128) * count
        return [
            measured("questions", partial(_blocks, prompts[0], steerings), _count_blocks),
            measured("texts", partial(_texts, prompts[1], steerings), _count_texts),
        ]


def _over(name: str, dealt: Sequence[float], separate: Sequence[float]) -> Figure:
    ratios = [one / other for one, other in zip(dealt, separate, strict=True)]
    note = (
        f"{statistics.median(dealt):.0f} and {statistics.median(separate):.0f} rows/s; {len(ratios)} rounds, "
    )
    return Figure(
        name, median_ratio(dealt, separate), 0.95, note=note + f"{min(ratios):.3f} to {max(ratios):.3f}"
    )


def _rate(answer: Callable[[list[T]], int], work: list[T]) -> float:
    start = time.perf_counter()
    rows = answer(work)
    return rows / (time.perf_counter() - start)


def _shared_out(
    pools: Sequence[ProcessPoolExecutor], count_rows: Callable[[Engine, list[T]], int], work: list[T]
) -> int:
    parts = [pool.submit(_by_itself, count_rows, work[n :: len(pools)]) for n, pool in enumerate(pools)]
    return sum(part.result() for part in parts)


def _blocks(count: int, steerings: Sequence[Steering], round_: int) -> list[Block]:
    prompts = enumerate(chat_prompts(count, round_))
    return [Block(str(n), prompt, (((), ANSWERS),), tuple(steerings)) for n, prompt in prompts]


def _texts(count: int, steerings: Sequence[Steering], round_: int) -> list[Request]:
    prompts = enumerate(chat_prompts(count, 1000 + round_))
    return [
        Request(str(n), prompt, steerings[n % len(steerings)], max_tokens=TEXT_TOKENS, ignore_eos=True)
        for n, prompt in prompts
    ]


def _count_blocks(engine: Engine, blocks: list[Block]) -> int:
    """How many rows came of them."""
    return sum(len(scores.logprobs) for _, scores in engine.run_blocks(blocks))


def _count_texts(engine: Engine, texts: list[Request]) -> int:
    return sum(1 for _ in engine.run(texts))


_engine: VllmEngine


def _start(
    cores: Sequence[int], make: Callable[[], VllmEngine], vectors: Vectors, steerings: Sequence[Steering]
) -> None:
    """Runs once in the process of an engine by hand."""
    global _engine
    os.sched_setaffinity(0, cores)
    _engine = make()
    _engine.load(vectors, steerings)


def _by_itself(count_rows: Callable[[Engine, list[T]], int], work: list[T]) -> int:
    return count_rows(_engine, work)


def _end(pool: ProcessPoolExecutor) -> None:
    pool.submit(_close).result()
    pool.shutdown()


def _close() -> None:
    _engine.close()
