"""The table that grows: a worker that was given it piece by piece holds what it would as a whole, each
steering has its own cell whoever asks at once, and it is full where its room ends."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from vsteer.engine.table import Capacity, SteeringTable
from vsteer.engine.worker.worker_table import WorkerTable
from vsteer.errors import EngineError, SteeringFault, UsageError
from vsteer.operations import graph_modules
from vsteer.protocol import EngineInfo, Steering, Term
from vsteer.serve.served_table import ServedTable, TableFull

LAYERS, WIDTH = 3, 4
INFO = EngineInfo("fake", "float32", "llama", LAYERS, WIDTH, vocab_size=9, max_model_len=9)
CAPACITY = Capacity(cells=12, rows=40, terms=2, modules=graph_modules(["ablate"]))
RNG = np.random.default_rng(0)
VECTORS = {
    name: {layer: RNG.standard_normal(WIDTH).astype(np.float32) for layer in range(LAYERS)}
    for name in ("joy", "fear")
}
STEERINGS = [
    Steering((Term("joy", 0, 1.5),)),
    Steering((Term("fear", 2, -1.0), Term("joy", 2, 0.5))),
    Steering((Term("joy", 1, 1.0, "ablate"),)),
    Steering((Term("joy", 0, 2.0),)),
    Steering((Term("fear", 0), Term("fear", 1), Term("joy", 1, 1.0, "ablate"))),
    Steering((Term("joy", 2, 1.0, "ablate_everywhere"),)),
]


class Norm(nn.Module):
    def forward(self, hidden: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        return hidden + residual


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.post_attention_layernorm = Norm()


def worker() -> WorkerTable:
    layers = {index: Layer() for index in range(LAYERS)}
    return WorkerTable(layers, CAPACITY, WIDTH, 8, torch.device("cpu"))


def buffers(table: WorkerTable) -> dict[str, torch.Tensor]:
    found = {"bank": table._bank, "acts": torch.from_numpy(table.acts)}
    found["joins"] = torch.from_numpy(table.first_layers)
    for layer, steering in table._layers.items():
        found |= {f"row {layer}": steering.row, f"scale {layer}": steering.scale}
    for module, of_layer in table._placed.items():
        found |= {f"{module} {layer}": placed.row for layer, placed in of_layer.items()}
    return found


class Workers:
    """Two ranks, which answer as vLLM's collective_rpc does."""

    def __init__(self) -> None:
        self.ranks, self.calls = [worker(), worker()], 0

    async def rpc(self, method: str, path: str, sha256: str) -> list[Any]:
        assert method == "vsteer_extend_table"
        self.calls += 1
        await asyncio.sleep(0.01)
        return [rank.extend(Path(path), sha256) for rank in self.ranks]


def served(workers: Workers, capacity: Capacity = CAPACITY) -> ServedTable:
    table = ServedTable(workers.rpc, INFO, capacity)
    table.know(VECTORS)
    return table


def test_piece_by_piece_it_is_the_table_that_was_built_as_a_whole(tmp_path: Path) -> None:
    workers = Workers()
    table = served(workers)

    async def admitted() -> list[tuple[int, str]]:
        return [await table.admit(steering) for steering in STEERINGS]

    cells = asyncio.run(admitted())
    whole = SteeringTable.build(VECTORS, STEERINGS, LAYERS, WIDTH, CAPACITY)
    whole.save(tmp_path / "whole")
    other = worker()
    other.load(tmp_path / "whole")
    assert workers.calls == len(STEERINGS)
    for rank in workers.ranks:
        grown, loaded = buffers(rank), buffers(other)
        assert grown.keys() == loaded.keys()
        for name, values in grown.items():
            assert torch.equal(values, loaded[name]), name
        assert rank.step_table.fingerprints == list(whole.fingerprints)
    assert cells == [(whole.cell_of(one), whole.fingerprints[whole.cell_of(one)]) for one in STEERINGS]
    # a reloaded table is another one, and what comes after belongs to it
    other.load(tmp_path / "whole")
    assert buffers(other).keys() == grown.keys()


def test_what_is_in_use_stays_while_it_grows() -> None:
    workers = Workers()
    table = served(workers)

    async def grow() -> None:
        cell, fingerprint = await table.admit(STEERINGS[0])
        rank = workers.ranks[0]
        args = {"vsteer": {"key": 1, "cell": cell, "fingerprint": fingerprint, "start": 0, "end": 5}}
        rank.add_request("r", args)
        before = {name: values.clone() for name, values in buffers(rank).items()}
        await asyncio.gather(*map(table.admit, STEERINGS))
        after = buffers(rank)
        for layer in range(LAYERS):
            for name in (f"row {layer}", f"scale {layer}"):
                assert torch.equal(before[name][: cell + 1], after[name][: cell + 1])
        out = np.zeros(8, np.int32)
        rank.step_table.fill(out, ["r"], np.array([0]), np.array([8]))
        assert out.tolist() == [cell] * 5 + [0] * 3
        assert rank.step_table.collect([1]) == [[0, 8]]

    asyncio.run(grow())


def test_whoever_asks_at_once_is_added_together_and_each_once() -> None:
    workers = Workers()
    table = served(workers)

    async def ask_all() -> list[tuple[int, str]]:
        return await asyncio.gather(*(table.admit(STEERINGS[n % 6]) for n in range(60)))

    cells = asyncio.run(ask_all())
    assert len(set(cells)) == 6
    assert [cells[n] for n in range(60)] == [cells[n % 6] for n in range(60)]
    # the first that came, and all others while it was added
    assert workers.calls <= 2


def test_a_client_that_goes_away_leaves_no_half_of_an_addition() -> None:
    workers = Workers()
    table = served(workers)

    async def go_away() -> None:
        asking = asyncio.create_task(table.admit(STEERINGS[0]))
        await asyncio.sleep(0.002)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        assert await table.admit(STEERINGS[1]) != await table.admit(STEERINGS[0])

    asyncio.run(go_away())


def test_it_is_full_where_its_room_ends() -> None:
    workers = Workers()
    table = served(workers)
    steerings = [Steering((Term("joy", 0, 1 + n / 8),)) for n in range(20)]

    async def fill() -> list[Any]:
        return await asyncio.gather(*map(table.admit, steerings), return_exceptions=True)

    found = asyncio.run(fill())
    assert sum(isinstance(one, TableFull) for one in found) == 20 - (CAPACITY.cells - 1)
    held = [one for one in found if not isinstance(one, Exception)]
    assert sorted(cell for cell, _ in held) == list(range(1, CAPACITY.cells))

    async def again() -> tuple[int, str]:
        with pytest.raises(TableFull, match="--max-steerings"):
            await table.admit(Steering((Term("fear", 1),)))
        # what it holds, under other positions too, and what is none, need no room
        assert await table.admit(Steering((Term("fear", 1, 0.0),))) == (0, "")
        return await table.admit(Steering(steerings[0].terms, "generated"))

    assert asyncio.run(again()) == held[0]


def test_what_is_wrong_with_one_steering_hits_no_other() -> None:
    table = served(Workers())
    twice = Steering((Term("joy", 1, 1.0, "ablate"), Term("fear", 1, 1.0, "ablate")))

    async def ask() -> list[Any]:
        return await asyncio.gather(*map(table.admit, (twice, STEERINGS[0])), return_exceptions=True)

    wrong, right = asyncio.run(ask())
    assert isinstance(wrong, UsageError)
    assert right[0] == 1


def test_a_worker_takes_no_addition_to_another_table(tmp_path: Path) -> None:
    table = SteeringTable.build(VECTORS, STEERINGS[:1], LAYERS, WIDTH, CAPACITY)
    table.save(tmp_path / "table")
    rank = worker()
    rank.load(tmp_path / "table")
    before = {name: values.clone() for name, values in buffers(rank).items()}
    with pytest.raises(SteeringFault, match="belongs to another one"):
        rank.extend(tmp_path / "table", "0" * 64)
    assert all(torch.equal(values, before[name]) for name, values in buffers(rank).items())
    other = SteeringTable.build(VECTORS, STEERINGS[1:2], LAYERS, WIDTH, CAPACITY)
    with pytest.raises(SteeringFault, match="must begin with what the workers hold"):
        other.save(tmp_path / "other", table)


def test_workers_that_disagree_are_found_out() -> None:
    workers = Workers()
    table = served(workers)

    async def disagree() -> None:
        await table.admit(STEERINGS[0])

        async def one_differs(*args: Any) -> list[Any]:
            answers = await workers.rpc(*args)
            return [answers[0], {**answers[1], "sha256": "other"}]

        table._rpc = one_differs
        with pytest.raises(SteeringFault, match="different steering tables"):
            await table.admit(STEERINGS[1])

    asyncio.run(disagree())


def test_an_engine_that_fails_is_its_error_and_not_a_full_table() -> None:
    table = served(Workers())

    async def fails(*_: Any) -> list[Any]:
        await asyncio.sleep(0.01)
        raise EngineError("the engine died", "start it again")

    async def ask() -> list[Any]:
        table._rpc = fails
        return await asyncio.gather(*map(table.admit, STEERINGS[:3]), return_exceptions=True)

    for one in asyncio.run(ask()):
        assert isinstance(one, EngineError)
        assert not isinstance(one, TableFull)
