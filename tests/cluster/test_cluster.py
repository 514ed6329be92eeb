"""Several engines on Ray, without a model: every row once, whatever dies."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.cluster.fake import INFO, Orders, added, answer, scores
from vsteer.cluster import cluster as under_test
from vsteer.cluster import dealing
from vsteer.cluster.cluster import Cluster
from vsteer.errors import EngineError, ModelError, SteeringFault, UnsupportedError, UsageError
from vsteer.protocol import Block, BlockScores, Prompt, Request, Steering, Term

VECTORS = {"v": {0: np.ones(4, np.float32), 1: np.array([1, 2, 3, 4], np.float32)}}
STEERINGS = tuple(Steering((Term("v", layer, m),), "all") for layer in (0, 1) for m in (-1.0, 0.5, 2.0))


class Events(list[tuple[str, dict[str, Any]]]):
    def __call__(self, event: str, **fields: Any) -> None:
        self.append((event, fields))

    def named(self, event: str) -> list[dict[str, Any]]:
        return [fields for name, fields in self if name == event]


def started(orders: Orders, most: int = 2, least: int = 1, **options: Any) -> Cluster:
    return Cluster(orders, least=least, most=most, requests=12, **options)


def blocks(count: int, first: int = 0) -> list[Block]:
    asked = (((), (3, 4)), ((3,), (5,)))
    every = (None, *STEERINGS)
    return [Block(f"b{n}", Prompt.plain((n, n + 1)), asked, every) for n in range(first, first + count)]


def requests(prompts: int, configurations: int, prefixes: int = 1) -> list[Request]:
    """Prompt by prompt, as a plan's rows are; a row has `prefixes` requests, each one token longer."""
    rng = np.random.default_rng(0)
    texts = [tuple(map(int, rng.integers(0, 500, 20))) for _ in range(prompts)]
    return [
        Request(f"{p}-{c}.{n}", Prompt.plain((*text, *range(n))), STEERINGS[c % 6], max_tokens=2)
        for p, text in enumerate(texts)
        for c in range(configurations)
        for n in range(prefixes)
    ]


def run_blocks(engine: Cluster, asked: list[Block]) -> dict[str, BlockScores]:
    """All of them, each once, each with the scores that plain Python gives."""
    found: dict[str, BlockScores] = {}
    for block, got in engine.run_blocks(iter(asked)):
        assert block.id not in found
        found[block.id] = got
    assert found.keys() == {block.id for block in asked}
    for block in asked:
        if not found[block.id].errors:
            expected = scores(block, VECTORS)
            assert (found[block.id].logprobs == expected.logprobs).all()
            assert (found[block.id].steered_tokens == expected.steered_tokens).all()
            assert found[block.id].forked
    return found


def run_requests(engine: Cluster, asked: list[Request]) -> None:
    found = list(engine.run(iter(asked)))
    assert len(found) == len(asked)
    expected = {request.id: answer(request, added(request.steering, VECTORS)) for request in asked}
    assert {result.id: result.token_ids for result in found} == expected


def taken(folder: Path) -> dict[str, list[str]]:
    """What each process took, in its order."""
    return {path.name: path.read_text().splitlines() for path in folder.glob("taken-*")}


def wait_until(holds: Callable[[], object], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.mark.long
@pytest.mark.usefixtures("nodes")
class TestTwoNodes:
    def test_blocks_and_requests_have_one_result_each(self, tmp_path: Path) -> None:
        """In turn, through the same processes, with the table that each of them has loaded."""
        events = Events()
        engine = started(Orders(tmp_path, pace=0.002), least=2, on_event=events)
        try:
            assert engine.info == INFO
            engine.load(VECTORS, STEERINGS)
            engine.wait_for(2)
            run_blocks(engine, blocks(300))
            run_requests(engine, requests(prompts=30, configurations=7, prefixes=2))
            run_blocks(engine, blocks(40, first=1000))
            assert engine.steps == 300 + 420 + 40
            assert engine.under_way() == []
            captured = [Request("c", Prompt.plain((5, 6)), capture=(0, 1))]
            (result,) = engine.run(captured)
            assert result.captured is not None
            assert (result.captured == np.full((2, 2, 4), 11)).all()
        finally:
            engine.close()
        assert len({one["node"] for one in events.named("replica_start")}) == 2
        shares = [len(lines) for lines in taken(tmp_path).values()]
        assert len(shares) == 2
        assert min(shares) > 0.3 * sum(shares)

    def test_one_that_comes_late_takes_over_what_is_not_begun(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The first has all of the work before the second is up."""
        monkeypatch.setattr(dealing, "BLOCKS", 1000)
        for what in ("blocks", "requests"):
            folder, events = tmp_path / what, Events()
            folder.mkdir()
            engine = started(Orders(folder, pace=0.04), on_event=events)
            try:
                engine.load(VECTORS, STEERINGS)
                if what == "blocks":
                    run_blocks(engine, blocks(700))
                else:
                    run_requests(engine, requests(prompts=350, configurations=2))
            finally:
                engine.close()
            shares = [len(lines) for lines in taken(folder).values()]
            assert len(shares) == 2
            assert sum(shares) == 700
            assert min(shares) >= 20

    def test_leaving_early_drops_what_is_under_way(self, tmp_path: Path) -> None:
        engine = started(Orders(tmp_path, pace=0.01), most=1)
        try:
            engine.load(VECTORS, STEERINGS)
            for _ in range(2):
                results = engine.run(requests(prompts=100, configurations=10))
                assert len([next(results) for _ in range(7)]) == 7
                results.close()  # type: ignore[attr-defined]
                assert engine.under_way() == []
                began = time.monotonic()
                run_blocks(engine, blocks(5))
                assert time.monotonic() - began < 5
        finally:
            engine.close()
        assert sum(map(len, taken(tmp_path).values())) < 500

    def test_what_an_engine_dies_of_fails_and_nothing_else(self, tmp_path: Path) -> None:
        events = Events()
        engine = started(Orders(tmp_path, pace=0.005), on_event=events)
        poison = Block("die", Prompt.plain((1,)), (((), (1,)),), STEERINGS)
        try:
            engine.load(VECTORS, STEERINGS)
            found = run_blocks(engine, [*blocks(40), poison, *blocks(40, first=100)])
        finally:
            engine.close()
        assert [name for name, got in found.items() if got.errors] == ["die"]
        assert found["die"].errors.keys() == set(range(6))
        assert found["die"].errors[0].startswith("3 engines died of it: its process died")
        assert len(events.named("replica_died")) == 3

    def test_our_own_faults_stay_loud(self, tmp_path: Path) -> None:
        engine = started(Orders(tmp_path), most=1)
        try:
            with pytest.raises(SteeringFault, match="as asked") as caught:
                list(engine.run([Request("raise SteeringFault", Prompt.plain([1]), max_tokens=2)]))
        finally:
            engine.close()
        # with the traceback of the process that raised it
        assert "cluster/fake.py" in "".join(caught.value.__notes__)

    def test_what_is_ended_from_outside_fails(self, tmp_path: Path) -> None:
        engine = started(Orders(tmp_path, pace=0.02), most=1)
        engine.load(VECTORS, STEERINGS)
        threading.Timer(0.3, engine.kill).start()
        try:
            with pytest.raises(EngineError, match="were ended"):
                list(engine.run(requests(prompts=1000, configurations=2)))
        finally:
            engine.close()

    def test_an_engine_of_more_than_a_node_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(UnsupportedError, match="needs 2 cores on one node, and the largest node has 1"):
            started(Orders(tmp_path), ranks=2)
        with pytest.raises(UsageError, match="3 replicas need 3 cores, and there are 2 on 3 nodes"):
            started(Orders(tmp_path), least=3, most=3)

    def test_the_ranks_of_an_engine_have_devices_of_one_node(self, tmp_path: Path) -> None:
        """Two nodes of four devices hold four engines of two, and two of three."""
        for ranks, engines in ((2, 4), (3, 2)):
            folder = tmp_path / str(ranks)
            folder.mkdir()
            events = Events()
            engine = started(Orders(folder), least=engines, most=8, ranks=ranks, gpu=True, on_event=events)
            try:
                end = time.monotonic() + 120
                while len(events.named("replica_start")) < engines:
                    assert time.monotonic() < end, (ranks, [one.state for one in engine.members])
                    list(engine._receive())
            finally:
                engine.close()
            homes: dict[str, list[set[str]]] = {}
            for one in events.named("replica_start"):
                devices = (folder / f"devices-{one['pid']}").read_text().split(",")
                assert len(set(devices)) == len(devices) == ranks
                homes.setdefault(one["node"], []).append(set(devices))
            assert len(homes) == 2
            assert all(len(set.union(*of_node)) == sum(map(len, of_node)) for of_node in homes.values())
        with pytest.raises(UsageError, match="3 replicas of 3 ranks need 9 devices, and there are 8"):
            started(Orders(tmp_path), least=3, most=3, ranks=3, gpu=True)

    @pytest.mark.parametrize("other", ["lacks_model_first", "other_vllm_first"])
    def test_an_engine_that_differs_is_refused_by_name(self, tmp_path: Path, other: str) -> None:
        """The run goes on with the other one, and with that which takes its place."""
        events = Events()
        orders = Orders(tmp_path)
        setattr(orders, other, 1)
        engine = started(orders, most=3, on_event=events)
        try:
            engine.load(VECTORS, STEERINGS)
            engine.wait_for(2)
            run_blocks(engine, blocks(20))
        finally:
            engine.close()
        (refused,) = events.named("replica_died")
        assert refused["restart"] is None
        assert ("model isn't here" if other == "lacks_model_first" else "vllm is 0.1 on") in refused["error"]

    def test_a_model_that_nobody_has_ends_the_run(self, tmp_path: Path) -> None:
        with pytest.raises(ModelError, match="isn't here"):
            started(Orders(tmp_path, lacks_model_first=99))

    @pytest.mark.parametrize("orders", [{"unsupported": True}, {"fault": True}])
    def test_an_error_at_start_comes_through_as_itself(self, tmp_path: Path, orders: Any) -> None:
        kind = UnsupportedError if orders.get("unsupported") else SteeringFault
        with pytest.raises(kind):
            started(Orders(tmp_path, **orders))


@pytest.mark.long
@pytest.mark.usefixtures("nodes")
class TestDeaths:
    def test_one_that_dies_at_start_is_started_again(self, tmp_path: Path) -> None:
        events = Events()
        engine = started(Orders(tmp_path, dies_first=2), on_event=events)
        try:
            engine.load(VECTORS, STEERINGS)
            run_blocks(engine, blocks(10))
        finally:
            engine.close()
        assert len(events.named("replica_died")) == 2

    def test_none_that_stays_up_is_an_engine_error(self, tmp_path: Path) -> None:
        """Others that wait for room are not tried one after the other."""
        events = Events()
        with pytest.raises(EngineError, match=r"no engine stays up.*its process died"):
            started(Orders(tmp_path, dies_first=99), most=20, on_event=events)
        assert len(events.named("replica_died")) == 2 * under_test.QUICK_DEATHS

    def test_one_that_hangs_is_ended_and_its_work_done_elsewhere(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(under_test, "STALL_SECONDS", 3.0)
        events = Events()
        engine = started(Orders(tmp_path, pace=0.01), on_event=events)
        try:
            engine.load(VECTORS, STEERINGS)
            engine.wait_for(2)
            victim = engine.members[1].where
            assert victim is not None
            threading.Timer(0.5, os.kill, (victim.pid, signal.SIGSTOP)).start()
            run_blocks(engine, blocks(300))
        finally:
            engine.close()
        assert [one["error"] for one in events.named("replica_died")] == ["it hangs"]

    @pytest.mark.parametrize("seed", range(2))
    def test_killed_at_random_every_block_still_has_one_result(self, tmp_path: Path, seed: int) -> None:
        """Ten kills of either; one that died is started again and loads the table."""
        rng = np.random.default_rng(seed)
        events = Events()
        engine = started(Orders(tmp_path, pace=0.003), on_event=events)
        over, asked, killed = threading.Event(), list[Block](), list[int]()
        kills = 0

        def kill() -> None:
            nonlocal kills
            while kills < 10 and not over.wait(float(rng.uniform(0.1, 1.0))):
                places = [one.where for one in engine.members if one.state == "up" and one.answered]
                up = [place.pid for place in places if place and place.pid not in killed]
                if up:
                    killed.append(up[rng.integers(len(up))])
                    os.kill(killed[-1], signal.SIGKILL)
                    kills += 1

        killer = threading.Thread(target=kill)

        def endless() -> Iterator[Block]:
            """Blocks until nothing is left to kill, then a few more."""
            for block in blocks(100_000):
                if len(asked) > 500 and not killer.is_alive():
                    return
                asked.append(block)
                yield block

        found = dict[str, BlockScores]()
        try:
            engine.load(VECTORS, STEERINGS)
            killer.start()
            for block, got in engine.run_blocks(endless()):
                assert block.id not in found
                found[block.id] = got
        finally:
            over.set()
            killer.join()
            engine.close()
        assert found.keys() == {block.id for block in asked}
        for block in asked:
            assert (found[block.id].logprobs == scores(block, VECTORS).logprobs).all()
        died = events.named("replica_died")
        print(f"{kills} kills, {len(asked)} blocks, {sum(one['given_back'] for one in died)} given back")
        assert kills == len(died) == 10

    def test_nodes_that_leave_and_come(self, tmp_path: Path, nodes: Any) -> None:
        """One of two nodes goes, and another comes: blocks under way are done again, and it takes part."""
        events = Events()
        engine = started(Orders(tmp_path, pace=0.01), most=4, on_event=events)
        found = dict[str, BlockScores]()
        asked = list[Block]()

        def endless() -> Iterator[Block]:
            """Blocks until the third engine has been up for a while."""
            late = 0
            for block in blocks(100_000):
                late += len(events.named("replica_start")) == 3
                if late > 300:
                    return
                asked.append(block)
                yield block

        try:
            engine.load(VECTORS, STEERINGS)
            engine.wait_for(2)
            for n, (block, got) in enumerate(engine.run_blocks(endless())):
                assert block.id not in found
                found[block.id] = got
                if n == 100:
                    nodes.remove_node(next(iter(nodes.worker_nodes)), allow_graceful=False)
                if n == 200:
                    nodes.add_node(num_cpus=1)
        finally:
            engine.close()
        assert found.keys() == {block.id for block in asked}
        # one of the four was waiting for room, and the dead one joins those
        (died,) = events.named("replica_died")
        assert "is gone" in died["error"]
        assert len(events.named("replica_start")) == 3
        assert len(taken(tmp_path)) == 3

    def test_a_broken_connection_waits_for_its_reason(self, tmp_path: Path, nodes: Any) -> None:
        """A process dies whose node can't say so any more: its death is the node's, not its own."""
        events = Events()
        engine = started(Orders(tmp_path, pace=0.01), most=3, on_event=events)
        states = set[str]()

        def watched() -> Iterator[Block]:
            """Blocks until the death is known, then a few more."""
            late = 0
            for block in blocks(100_000):
                states.update(member.state for member in engine.members)
                late += bool(events.named("replica_died"))
                if late > 50:
                    return
                yield block

        try:
            engine.load(VECTORS, STEERINGS)
            engine.wait_for(2)
            victim = engine.members[0].where
            assert victim is not None
            (node,) = [one for one in nodes.worker_nodes if one.node_id == victim.node]
            (raylet,) = node.all_processes["raylet"]
            for n, _ in enumerate(engine.run_blocks(watched())):
                if n == 100:
                    raylet.process.send_signal(signal.SIGSTOP)
                    os.kill(victim.pid, signal.SIGKILL)
                if "unreachable" in states:
                    raylet.process.kill()
        finally:
            engine.close()
            nodes.remove_node(node, allow_graceful=False)
        assert "unreachable" in states
        (died,) = events.named("replica_died")
        assert died["error"] == f"the node {died['host']} is gone"
        assert engine._quick_deaths == 0
