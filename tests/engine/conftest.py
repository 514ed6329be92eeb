"""The engines that the tests of the V1 runner share: one at a time, each started once a session.

pytest groups tests by a session-wide parameter, across files, so every test that asks for the same
setup runs on the same engine before the next one is started.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import pytest
import torch

from tests.tiny_families import folder_of
from vsteer import models
from vsteer.engine.driver import VllmEngine
from vsteer.engine.options import EngineOptions
from vsteer.engine.proof.reference import ReferenceEngine
from vsteer.engine.table import Capacity
from vsteer.operations import OPERATIONS, graph_modules

# The smallest on a CPU; prefixes are shared in whole blocks.
BLOCK = 32
MAX_MODEL_LEN = 256
CAPTURES = 24
# Prompts longer than this are prefilled in chunks.
BATCHED_TOKENS = 64
# So many blocks of 32 tokens, less the one that vLLM keeps, are filled by a dozen running requests, so that
# growing ones preempt each other.
KV_BLOCKS = 20
WITH_MODULES = [name for name, operation in OPERATIONS.items() if operation.module]


@dataclass(frozen=True)
class Setup:
    """A way to run the engine under which steering must come out the same."""

    eager: bool = True
    tensor_parallel: int = 1
    caching: bool = True
    model: str = "tiny-llama"
    max_num_seqs: int = 64
    batched_tokens: int = BATCHED_TOKENS
    kv_blocks: int = KV_BLOCKS
    captures: bool = True
    ablates: bool = False
    forks: bool = True
    dtype: str = "float32"

    def __str__(self) -> str:
        return (
            f"{'eager' if self.eager else 'compiled'}-tp{self.tensor_parallel}-"
            f"{'cache' if self.caching else 'no_cache'}{'' if self.captures else '-no_capture'}"
            f"{'-ablates' if self.ablates else ''}"
            f"{'' if self.dtype == 'float32' else f'-{self.dtype}'}"
        )

    def start(self) -> VllmEngine:
        return VllmEngine(
            folder_of(self.model),
            dtype=self.dtype,
            options=EngineOptions(
                max_model_len=MAX_MODEL_LEN,
                max_num_seqs=self.max_num_seqs,
                max_num_batched_tokens=self.batched_tokens,
                kv_cache_gib=0.25,
                tensor_parallel_size=self.tensor_parallel,
                enforce_eager=self.eager,
                prefix_caching=self.caching,
                block_size=BLOCK,
                forks=self.forks,
                vllm={"num_gpu_blocks_override": self.kv_blocks},
            ),
            capacity=Capacity(
                terms=3,
                captures=CAPTURES if self.captures else 0,
                modules=graph_modules(WITH_MODULES if self.ablates else ()),
            ),
        )


# The one engine of `make test`: all that an engine can be asked for, with room for many prefixes and still
# too little for the requests that run at once.
ONE = Setup(ablates=True, kv_blocks=32)
# Every way to run an engine in `make test-engine`, those that capture first. The fifth has the graph of most
# runs.
CAPTURING = (
    ONE,
    Setup(tensor_parallel=2),
    Setup(eager=False, ablates=True),
    Setup(eager=False, tensor_parallel=2),
)
MATRIX = (*CAPTURING, Setup(eager=False, captures=False), Setup(eager=False, caching=False, captures=False))


def on(*setups: Setup, slow: Iterable[Setup] = (), ids: Callable[[Setup], str] = str) -> pytest.MarkDecorator:
    """Run a test on the engines of these setups; those of `slow` in `make test-all` alone."""
    mark = pytest.mark
    marks = {setup: [mark.engine, mark.one_engine] if setup == ONE else [mark.engine] for setup in setups}
    marks |= {setup: [mark.engine, mark.slow] for setup in slow if setup not in marks}
    parameters = [pytest.param(setup, marks=of_setup) for setup, of_setup in marks.items()]
    return pytest.mark.parametrize("engine", parameters, indirect=True, ids=ids)


@pytest.fixture(scope="session")
def engine(request: pytest.FixtureRequest) -> Iterator[VllmEngine]:
    """A running engine of the Setup that the test's parameter names."""
    engine = request.param.start()
    yield engine
    engine.close()


@pytest.fixture(scope="session")
def reference() -> ReferenceEngine:
    """The oracle on tiny-llama."""
    # so small a model gains nothing from more threads, and loses much where the engine's workers spin on them
    torch.set_num_threads(1)
    return ReferenceEngine(models.resolve("tiny-llama").model)
