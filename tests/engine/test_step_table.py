"""Is every token of every step given its own request's cell, whichever model runner asks?

Random schedules, such as a vLLM scheduler could make, are played to the code that each runner calls. What
it wrote is held against the rule itself: position p of a request is steered iff start <= p < end.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Protocol

import numpy as np
import pytest
import torch
from torch import nn

from vsteer.engine.support import CONFIG_KEY
from vsteer.engine.table import Capacity, SteeringTable
from vsteer.engine.worker.model import SteeredModel
from vsteer.engine.worker.model_state import SteeredModelState
from vsteer.engine.worker.step import EXTRA_ARG, NOT_SEEN, CellSpan, StepTable
from vsteer.engine.worker.worker_table import WorkerTable
from vsteer.errors import SteeringFault
from vsteer.protocol import OPEN_END, Steering, Term

CELLS = 5
BLOCK = 4
HIDDEN = 2


class Plain(nn.Module):
    """The least that can be steered: its forward is no matter here, only what each step writes for it."""

    def __init__(self, *, vllm_config: Any, prefix: str) -> None:
        super().__init__()
        self.model = SimpleNamespace(layers=[nn.Identity()])


class Model(SteeredModel, Plain):
    def __init__(self, max_tokens: int) -> None:
        super().__init__(vllm_config=_config(max_tokens))

    @property
    def table(self) -> WorkerTable:
        assert self.vsteer_table is not None
        return self.vsteer_table


@dataclass
class Request:
    """One request as the scheduler sees it, and by hand what a step table should know of it."""

    id: str
    span: CellSpan | None
    prompt: int
    max_tokens: int
    known: int = 0  # tokens that exist: the prompt and what was generated
    computed: int | None = None  # None while it waits, before its first step and after a preemption
    first: int = NOT_SEEN
    positions: set[int] = field(default_factory=set)

    @property
    def extra_args(self) -> Mapping[str, Any] | None:
        return self.span.as_extra_args() if self.span else None

    def cell(self, position: int) -> int:
        inside = self.span is not None and self.span.start <= position < self.span.end
        return self.span.cell if self.span and inside else 0

    def record(self) -> list[int]:
        return [self.first, max(self.positions) + 1] if self.positions else [NOT_SEEN, 0]


class Runner(Protocol):
    """A runner's calls, in the order in which it makes them within a step."""

    def drop(self, request: Request, preempted: bool) -> None: ...
    def take_in(self, request: Request) -> None: ...
    def step(self, batch: list[Request], computed: list[int], scheduled: list[int]) -> None: ...


class V1Runner:
    """V1 says nothing of arrivals, and keeps a preempted request in its mapping."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.requests: dict[str, Any] = {}
        self.resumed: set[str] = set()

    def drop(self, request: Request, preempted: bool) -> None:
        if not preempted:
            self.requests.pop(request.id, None)

    def take_in(self, request: Request) -> None:
        params = SimpleNamespace(extra_args=request.extra_args)
        if request.id in self.requests:
            self.resumed.add(request.id)
        self.requests.setdefault(request.id, SimpleNamespace(sampling_params=params))

    def step(self, batch: list[Request], computed: list[int], scheduled: list[int]) -> None:
        ids = [request.id for request in batch]
        numbers = np.array(computed, np.int32), np.array(scheduled)
        self.model.table.fill_v1_step(ids, self.requests, *numbers, self.resumed)
        self.resumed = set()


class V2Runner:
    """V2 removes a request when it is preempted, and adds it again with its generated tokens as prefill."""

    def __init__(self, model: Model) -> None:
        self.state = SteeredModelState.__new__(SteeredModelState)
        self.state.model = model
        self.state.rope_state = self.state.prompt_embeds_state = None
        self.states = SimpleNamespace(req_id_to_index={})

    def drop(self, request: Request, preempted: bool) -> None:
        # also of requests that never arrived: they were aborted while they waited
        self.state.remove_request(request.id)
        self.states.req_id_to_index.pop(request.id, None)

    def take_in(self, request: Request) -> None:
        self.states.req_id_to_index[request.id] = 0
        data = SimpleNamespace(
            req_id=request.id,
            sampling_params=SimpleNamespace(extra_args=request.extra_args),
            prefill_token_ids=[0] * request.known,
        )
        self.state.add_request(0, data)

    def step(self, batch: list[Request], computed: list[int], scheduled: list[int]) -> None:
        self._run(["made up for a warm-up"], [0], [1])
        self._run([request.id for request in batch], computed, scheduled)

    def _run(self, ids: list[str], computed: list[int], scheduled: list[int]) -> None:
        batch = SimpleNamespace(
            req_ids=ids,
            num_computed_tokens_np=np.array(computed, np.int32),
            num_scheduled_tokens=np.array(scheduled, np.int32),
        )
        self.state.prepare_inputs(batch, self.states)


class Schedule:
    """A scheduler at random: chunks, cache hits, preemptions, aborts, and one step ahead of what is known."""

    def __init__(self, seed: int, model: Model, runner: Runner, prints: tuple[str, ...]) -> None:
        self.rng = np.random.default_rng(seed)
        self.model, self.runner, self.prints = model, runner, prints
        self.budget = len(model.table.token_cell) - 3  # some padding behind every step
        self.made = 0
        self.alive: list[Request] = []
        # ended, in the runner until the next step at least; with a step ahead they are scheduled once more
        self.ahead: list[Request] = []
        self.gone: list[Request] = []
        self.uncollected: list[Request] = []

    def make(self) -> None:
        self.made += 1
        prompt = int(self.rng.integers(1, 30))
        start = int(self.rng.integers(0, prompt + 4))
        end = OPEN_END if self.chance(0.4) else start + int(self.rng.integers(1, 12))
        cell = int(self.rng.integers(0, CELLS + 1))
        span = CellSpan(self.made, cell, self.prints[cell], start, end) if cell else None
        self.alive.append(Request(f"r{self.made}", span, prompt, int(self.rng.integers(1, 8)), known=prompt))

    def step(self) -> None:
        gone, self.gone = self.gone, []
        for request in gone:
            self.runner.drop(request, preempted=False)
        for request in self.alive:
            if request.computed is not None and self.chance(0.1):
                request.computed = None
                self.runner.drop(request, preempted=True)
        batch: list[Request] = []
        computed: list[int] = []
        scheduled: list[int] = []
        room = self.budget
        ahead, self.ahead = self.ahead, []
        for request in [*ahead, *self.alive]:
            if room == 0 or (request in self.alive and self.chance(0.2)):
                continue
            if request.computed is None:
                request.computed = self.cache_hit(request)
                self.runner.take_in(request)
            most = 1 if request in ahead else request.known - request.computed
            tokens = min(room, int(self.rng.integers(1, most + 1)))
            room -= tokens
            batch.append(request)
            computed.append(request.computed)
            scheduled.append(tokens)
        self.gone += ahead
        if not batch:
            return
        order = self.rng.permutation(len(batch))
        batch = [batch[i] for i in order]
        computed, scheduled = [computed[i] for i in order], [scheduled[i] for i in order]
        self.runner.step(batch, computed, scheduled)
        self.check(batch, computed, scheduled)
        for request, lo, tokens in zip(batch, computed, scheduled, strict=True):
            self.advance(request, lo, tokens)

    def cache_hit(self, request: Request) -> int:
        """Whole blocks from the cache, when it is back also such as others have computed meanwhile."""
        return BLOCK * int(self.rng.integers(0, (request.known - 1) // BLOCK + 1))

    def check(self, batch: list[Request], computed: list[int], scheduled: list[int]) -> None:
        expected = [
            request.cell(position)
            for request, lo, tokens in zip(batch, computed, scheduled, strict=True)
            for position in range(lo, lo + tokens)
        ]
        expected += [0] * (len(self.model.table.token_cell) - len(expected))
        assert self.model.table.token_cell.tolist() == expected

    def advance(self, request: Request, lo: int, tokens: int) -> None:
        if not request.positions:
            request.first = lo
        request.positions.update(range(lo, lo + tokens))
        if request not in self.alive:
            return
        request.computed = lo + tokens
        request.known += request.computed == request.known
        if request.known == request.prompt + request.max_tokens or self.chance(0.02):
            self.end(request)

    def end(self, request: Request) -> None:
        self.alive.remove(request)
        self.uncollected.append(request)
        scheduled_ahead = request.computed is not None and self.chance(0.5)
        (self.ahead if scheduled_ahead else self.gone).append(request)

    def collect(self) -> None:
        """What the driver asks for, at any time after it has seen a request's last output."""
        asked = [request for request in self.uncollected if self.chance(0.6)]
        self.uncollected = [request for request in self.uncollected if request not in asked]
        steered = [request for request in asked if request.span]
        found = self.model.table.step_table.collect([request.span.key for request in steered if request.span])
        assert found == [request.record() for request in steered]

    def chance(self, of: float) -> bool:
        return bool(self.rng.random() < of)


def _config(max_tokens: int) -> Any:
    """As much of vLLM's configuration as a steered model reads."""
    return SimpleNamespace(
        additional_config={CONFIG_KEY: {"capacity": Capacity(CELLS + 1, 8).as_config()}},
        # the test itself is the runner, so V1's seam stays out of vllm
        use_v2_model_runner=True,
        model_config=SimpleNamespace(
            get_hidden_size=lambda: HIDDEN,
            enable_prompt_embeds=False,
            enforce_eager=True,
            dtype=torch.float32,
        ),
        scheduler_config=SimpleNamespace(max_num_batched_tokens=max_tokens),
        parallel_config=SimpleNamespace(data_parallel_size=1, pipeline_parallel_size=1),
        cache_config=SimpleNamespace(),
        speculative_config=None,
        lora_config=None,
        kv_transfer_config=None,
    )


def _table() -> SteeringTable:
    direction = np.ones(HIDDEN, np.float32)
    steerings = [Steering((Term("v", 0, float(cell)),)) for cell in range(1, CELLS + 1)]
    return SteeringTable.build({"v": {0: direction}}, steerings, 1, HIDDEN, Capacity(CELLS + 1, 8))


@pytest.mark.parametrize("runner", [V1Runner, V2Runner])
@pytest.mark.parametrize(
    ("seed", "crowd", "steps"), [*((seed, 6, 150) for seed in range(20)), (100, 400, 40), (101, 400, 40)]
)
def test_every_token_gets_its_own_requests_cell(
    runner: type[V1Runner] | type[V2Runner], seed: int, crowd: int, steps: int, tmp_path: Path
) -> None:
    table = _table()
    table.save(tmp_path / "table.safetensors")
    model = Model(max_tokens=4 * crowd)
    model.table.load(tmp_path / "table.safetensors")
    schedule = Schedule(seed, model, runner(model), table.fingerprints)
    for _ in range(steps):
        while len(schedule.alive) < crowd and schedule.chance(0.7 if crowd < 10 else 0.99):
            schedule.make()
        schedule.step()
        if schedule.alive and schedule.chance(0.05):
            schedule.end(schedule.alive[0])  # aborted, perhaps before any step has seen it
        schedule.collect()
    while schedule.alive or schedule.ahead or schedule.gone or schedule.uncollected:
        schedule.step()
        schedule.collect()
    assert schedule.made > 2 * crowd  # so that slots were used again
    filled = model.table.step_table
    assert filled.open_keys == 0
    # no slot is lost, and whoever has left is forgotten in the end
    assert 1 + len(filled._free) + len(filled._leaving) == len(filled._cell)
    assert len(filled) <= crowd
    model.table.load(tmp_path / "table.safetensors")


def test_no_table_is_replaced_under_a_steered_request(tmp_path: Path) -> None:
    table = _table()
    table.save(tmp_path / "table.safetensors")
    model = Model(max_tokens=8)
    model.table.load(tmp_path / "table.safetensors")
    model.table.step_table.add("r", CellSpan(1, 2, table.fingerprints[2], 0, 5).as_extra_args())
    with pytest.raises(SteeringFault, match="under way"):
        model.table.load(tmp_path / "table.safetensors")
    model.table.step_table.collect([1])
    assert torch.equal(model.model.layers[0].steering.scale[:, 0], torch.arange(CELLS + 1.0))
    assert model.table.load(tmp_path / "table.safetensors")["layers"] == [0]


PRINTS = ("", "a" * 64, "b" * 64)
SOUND = CellSpan(1, 2, PRINTS[2], 3, 9).as_extra_args()[EXTRA_ARG]


@pytest.mark.parametrize(
    "change",
    [
        {"cell": 3},  # none such in the table
        {"cell": 1},  # another steering's
        {"cell": 0},
        {"cell": -1},
        {"cell": True},
        {"cell": 2.0},
        {"cell": "2"},
        {"cell": None},
        {"key": 1.0},
        {"key": None},
        {"start": -1},
        {"start": False},
        {"start": 3.0},
        {"start": 9},  # an empty span
        {"end": 2},
        {"end": None},
        {"end": float("inf")},
        {"fingerprint": PRINTS[1]},
        {"fingerprint": ""},
        {"fingerprint": PRINTS[2][:-1]},
        {"fingerprint": None},
        {"fingerprint": PRINTS[2].encode()},
        {"positions": "all"},  # a key that is not ours
    ],
)
def test_a_request_that_is_not_as_it_should_be_is_refused(change: dict[str, Any]) -> None:
    table = StepTable(PRINTS)
    with pytest.raises(SteeringFault):
        table.add("r", {EXTRA_ARG: {**SOUND, **change}})
    assert table.open_keys == 0
    assert "r" not in table


@pytest.mark.parametrize("missing", SOUND)
def test_a_request_that_says_too_little_is_refused(missing: str) -> None:
    with pytest.raises(SteeringFault, match="malformed"):
        StepTable(PRINTS).add("r", {EXTRA_ARG: {name: SOUND[name] for name in SOUND if name != missing}})


@pytest.mark.parametrize("spec", [{}, [], "", 0, False, "all", [1, 2, PRINTS[2], 3, 9]])
def test_what_is_no_steering_at_all_is_refused(spec: object) -> None:
    with pytest.raises(SteeringFault, match="malformed"):
        StepTable(PRINTS).add("r", {EXTRA_ARG: spec})


@pytest.mark.parametrize("extra_args", [None, {}, {"another's": 1}, {EXTRA_ARG: None}])
def test_a_request_without_steering_is_unsteered(extra_args: dict[str, Any] | None) -> None:
    table = StepTable(PRINTS)
    table.add("r", extra_args)
    out = np.full(4, 7, np.int32)
    assert table.fill(out, ["r"], np.array([0]), np.array([3])) == 3
    assert out.tolist() == [0, 0, 0, 0]
    assert table.open_keys == 0


def test_skipped_positions_are_a_fault() -> None:
    table = StepTable(PRINTS)
    table.add("r", {EXTRA_ARG: SOUND})
    out = np.zeros(8, np.int32)
    table.fill(out, ["r"], np.array([2]), np.array([4]))  # two from the cache: no skip, it is the first step
    assert out.tolist() == [0, 2, 2, 2, 0, 0, 0, 0]
    table.fill(out, ["r"], np.array([6]), np.array([1]))
    with pytest.raises(SteeringFault, match="skipped"):
        table.fill(out, ["r"], np.array([8]), np.array([1]))


def test_a_request_that_is_back_may_pass_over_cached_blocks_once() -> None:
    table = StepTable(PRINTS)
    table.add("r", {EXTRA_ARG: SOUND})
    out = np.zeros(8, np.int32)
    table.fill(out, ["r"], np.array([0]), np.array([2]))
    table.resume("r")
    table.fill(out, ["r"], np.array([4]), np.array([2]))
    assert out.tolist() == [2, 2, 0, 0, 0, 0, 0, 0]
    with pytest.raises(SteeringFault, match="skipped"):
        table.fill(out, ["r"], np.array([8]), np.array([1]))


def test_a_step_with_an_unknown_request_is_a_fault() -> None:
    table = StepTable(PRINTS)
    table.add("r", {EXTRA_ARG: SOUND})
    with pytest.raises(KeyError):
        table.fill(np.zeros(8, np.int32), ["r", "another"], np.array([0, 0]), np.array([1, 1]))


def test_a_key_that_no_step_has_seen_says_so() -> None:
    table = StepTable(PRINTS)
    table.add("waiting", {EXTRA_ARG: SOUND})
    assert table.collect([1, 77]) == [[NOT_SEEN, 0], [NOT_SEEN, 0]]
