"""An engine that dies under the driver, played by a fake of vLLM's client: one error, no waiting."""

from __future__ import annotations

import itertools
import time
from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

import pytest
from vllm.v1.engine.exceptions import EngineDeadError

from vsteer.engine.captures import CaptureAdmission
from vsteer.engine.death_watch import DeathWatch
from vsteer.engine.driver import VllmEngine
from vsteer.engine.forks import BlockCollector, ForkCollector
from vsteer.engine.table import Capacity
from vsteer.errors import EngineError
from vsteer.protocol import EngineInfo, Prompt, Request, Steering, Term

STEERED = Steering((Term("v", 0, 1.0),))


class DyingClient:
    """vLLM's LLMEngine with a dead core: every call raises EngineDeadError."""

    def __init__(self) -> None:
        process = SimpleNamespace(exitcode=-9, kill=lambda: None)
        manager = SimpleNamespace(processes=[process])
        self.waiting: Future[Any] = Future()
        self.engine_core = SimpleNamespace(
            resources=SimpleNamespace(engine_manager=manager),
            utility_results={1: self.waiting},
            shutdown=lambda: None,
        )

    def add_request(self, name: str, *_: object) -> str:
        return name

    def step(self) -> list[Any]:
        raise EngineDeadError

    def collective_rpc(self, *_: object, **__: object) -> list[Any]:
        raise EngineDeadError

    def abort_request(self, *_: object, **__: object) -> None:
        raise EngineDeadError


def engine() -> VllmEngine:
    made: Any = VllmEngine.__new__(VllmEngine)
    made._llm = DyingClient()
    made._forks, made._blocks = ForkCollector(0), BlockCollector(0)
    made._in_flight, made._numbers, made._captures = {}, itertools.count(1), CaptureAdmission(4)
    made._watch = DeathWatch(made._llm.engine_core)
    made.steps = 0
    made.capacity, made._max_in_flight = Capacity(captures=4), 8
    made.info = EngineInfo(
        "vllm", "float32", "llama", layers=1, hidden_size=2, vocab_size=100, max_model_len=100
    )
    made._table = SimpleNamespace(cell_of=lambda steering: 1, fingerprints=["", "0" * 64])
    found: VllmEngine = made
    return found


@pytest.mark.parametrize("steering", [None, STEERED])
@pytest.mark.parametrize("capture", [(), (1,)])
def test_whatever_is_under_way_its_death_is_an_engine_error(
    steering: Steering | None, capture: tuple[int, ...]
) -> None:
    dying = engine()
    with pytest.raises(EngineError, match=r"the engine died \(exit codes \[-9\]\)"):
        list(dying.run([Request("r", Prompt.plain(range(9)), steering, capture=capture)]))
    assert dying.under_way() == []


@pytest.mark.parametrize(
    ("message", "kind"),
    [
        # what vLLM's core says of a call under way when one of its workers was killed
        ("Call to collective_rpc method failed: cancelled", EngineError),
        (
            "Call to collective_rpc method failed: Worker failed with error 'the call was cancelled'",
            RuntimeError,
        ),
    ],
)
def test_a_workers_death_is_an_engine_error_and_its_fault_is_not(message: str, kind: type) -> None:
    watch = DeathWatch(DyingClient().engine_core)
    with pytest.raises(kind), watch.alive():
        raise RuntimeError(message)
    watch.close()


def test_what_waits_for_a_dead_engine_is_failed() -> None:
    client = DyingClient()
    began = time.monotonic()
    watch = DeathWatch(client.engine_core)
    with pytest.raises(EngineDeadError):
        client.waiting.result(timeout=60)
    assert time.monotonic() - began < 30
    watch.close()
    watch._thread.join(timeout=30)
    assert not watch._thread.is_alive()
