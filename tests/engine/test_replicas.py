"""Several engines behind one, with engines that run no model: every request has one result, whatever dies."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.engine.fake_replica import Make, answer
from tests.engine.test_orphans import descendants, parents
from tests.run import fake
from tests.run.test_start import rows_of, written
from vsteer.engine import replicas as under_test
from vsteer.engine.device_slices import BIND, DeviceSlice, cpu_slices, device_slices, find_slices
from vsteer.engine.options import EngineOptions
from vsteer.engine.replicas import RESTARTS, Replicas
from vsteer.errors import EngineError, SteeringFault, UnsupportedError, UsageError
from vsteer.grid.spec import EngineSpec
from vsteer.plan.plan import Plan
from vsteer.protocol import Prompt, Request, Steering, Term
from vsteer.run.start import run_grid

WINDOW = 24


class Events(list[tuple[str, dict[str, Any]]]):
    def __call__(self, event: str, **fields: Any) -> None:
        self.append((event, fields))

    def named(self, event: str) -> list[dict[str, Any]]:
        return [fields for name, fields in self if name == event]


pytestmark = pytest.mark.long


def started(make: Make, replicas: int = 2, window: int = WINDOW, **options: Any) -> Replicas:
    return Replicas(make, [DeviceSlice()] * replicas, window=window, **options)


def grid(prompts: int, configurations: int, prefixes: int = 1) -> list[Request]:
    """Prompt by prompt, as a plan's rows are; a row has `prefixes` requests, each one token longer."""
    rng = np.random.default_rng(0)
    texts = [tuple(map(int, rng.integers(0, 500, 20))) for _ in range(prompts)]
    return [
        Request(f"{p}-{c}.{n}", Prompt.plain((*text, *range(n))), max_tokens=2)
        for p, text in enumerate(texts)
        for c in range(configurations)
        for n in range(prefixes)
    ]


def taken(folder: Path) -> dict[str, list[str]]:
    """What each process took, in its order."""
    lines = {path.name: path.read_text().splitlines() for path in folder.glob("taken-*")}
    return {name: [line for line in all_of if not line.startswith("left")] for name, all_of in lines.items()}


def assert_each_once(requests: list[Request], results: dict[str, tuple[int, ...]], count: int) -> None:
    assert count == len(requests)
    assert results == {request.id: answer(request) for request in requests}


def run_all(engine: Replicas, requests: list[Request]) -> None:
    found = list(engine.run(iter(requests)))
    assert_each_once(requests, {result.id: result.token_ids for result in found}, len(found))


def test_every_request_has_one_result_and_a_prompt_stays_on_one_replica(tmp_path: Path) -> None:
    engine = started(Make(tmp_path), replicas=3)
    try:
        assert (engine.info.kind, engine.info.layers, engine.info.max_model_len) == ("stand-in", 2, 512)
        requests = grid(prompts=40, configurations=11, prefixes=3)
        run_all(engine, requests)
        assert engine.steps == len(requests)
        assert engine.under_way() == []
        run_all(engine, requests)  # and again through the same processes
    finally:
        engine.close()
    by_process = [{line.split("-")[0] for line in lines} for lines in taken(tmp_path).values()]
    assert len(by_process) == 3
    # each of the two runs may have given a prompt to another replica
    assert all(sum(str(p) in prompts for prompts in by_process) <= 2 for p in range(40))
    assert all(len(prompts) >= 5 for prompts in by_process)


def test_prompts_are_dealt_whole(tmp_path: Path) -> None:
    engine = started(Make(tmp_path), replicas=3, window=10)
    try:
        run_all(engine, grid(prompts=30, configurations=8, prefixes=2))
    finally:
        engine.close()
    homes: dict[str, set[str]] = {}
    for process, lines in taken(tmp_path).items():
        for line in lines:
            homes.setdefault(line.split("-")[0], set()).add(process)
    assert len(homes) == 30
    assert all(len(processes) == 1 for processes in homes.values())
    assert len(set.union(*homes.values())) == 3


def test_a_prompt_too_large_to_wait_for_is_shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(under_test, "LONGEST_WAIT", 30)
    engine = started(Make(tmp_path, pace=0.01))
    try:
        run_all(engine, grid(prompts=1, configurations=500))
    finally:
        engine.close()
    assert all(len(lines) > 100 for lines in taken(tmp_path).values())


def test_requests_are_taken_as_results_come(tmp_path: Path) -> None:
    engine = started(Make(tmp_path, pace=0.002), replicas=2)
    given = came = most = 0

    def counted() -> Iterator[Request]:
        nonlocal given, most
        for request in grid(prompts=150, configurations=4):
            given += 1
            most = max(most, given - came)
            yield request

    try:
        for _ in engine.run(counted()):
            came += 1
            assert len(engine.under_way()) <= 2 * WINDOW + 4
    finally:
        engine.close()
    assert came == 600
    # two windows, and what is left of a prompt when the window is full
    assert most <= 2 * WINDOW + 4


def test_captured_streams_and_steering_come_through(tmp_path: Path) -> None:
    engine = started(Make(tmp_path))
    try:
        vectors = {"v": {1: np.array([1, 2, 3, 4], np.float32)}}
        steering = Steering((Term("v", 1, 0.5),))
        engine.load(vectors, [steering])
        plain = grid(prompts=30, configurations=1)
        requests = [
            Request(one.id, one.prompt, steering, max_tokens=2, capture=(0, len(one.prompt.token_ids) - 1))
            for one in plain
        ]
        by_id = {one.id: one for one in requests}
        found = {result.id: result for result in engine.run(requests)}
        assert found.keys() == by_id.keys()
        for id_, result in found.items():
            assert result.token_ids == answer(by_id[id_], added=5.0)  # half of 1 + 2 + 3 + 4
            assert result.captured is not None
            assert result.captured.shape == (2, 2, 4)
            assert (result.captured == sum(by_id[id_].prompt.token_ids)).all()
    finally:
        engine.close()


def pids(engine: Replicas) -> list[int]:
    return [replica.process.pid for replica in engine._replicas if replica.alive]


@pytest.mark.parametrize("seed", range(4))
def test_killed_at_random_every_request_still_has_one_result(tmp_path: Path, seed: int) -> None:
    """Seven kills each: both replicas three times, and once more one of the two."""
    rng = np.random.default_rng(seed)
    events = Events()
    engine = started(Make(tmp_path, pace=0.003), on_event=events)
    over = threading.Event()
    kills = 0

    def kill() -> None:
        nonlocal kills
        victims = [0, 1] * RESTARTS
        rng.shuffle(victims)
        for victim in [*victims, int(rng.integers(2))]:
            if over.wait(float(rng.uniform(0.05, 0.6))):
                return
            while engine._replicas[victim].state not in ("up", "starting", "loading"):
                if over.wait(0.05):
                    return
            process = engine._replicas[victim].process
            while process is engine._replicas[victim].process and not over.is_set():
                if process.is_alive():
                    os.kill(process.pid, signal.SIGKILL)
                    kills += 1
                    while process is engine._replicas[victim].process and engine._replicas[victim].alive:
                        time.sleep(0.01)
                break

    vectors = {"v": {0: np.ones(4, np.float32)}}
    steering = Steering((Term("v", 0, 2.0),))
    engine.load(vectors, [steering])
    killer = threading.Thread(target=kill)

    def endless() -> Iterator[Request]:
        """Requests until nothing is left to kill, then a few more."""
        for n, one in enumerate(grid(prompts=3000, configurations=20)):
            asked[one.id] = Request(one.id, one.prompt, steering, max_tokens=2)
            yield asked[one.id]
            if n > 1000 and not killer.is_alive():
                return

    asked: dict[str, Request] = {}
    killer.start()
    found: dict[str, tuple[int, ...]] = {}
    try:
        for result in engine.run(endless()):
            assert result.id not in found
            found[result.id] = result.token_ids
    finally:
        over.set()
        killer.join()
        engine.close()
    # a replica that was started again has the vectors too: 2 times 4 ones
    assert found == {id_: answer(one, added=8.0) for id_, one in asked.items()}
    died = events.named("replica_died")
    print(f"{kills} kills, {len(found)} requests, {sum(one['given_back'] for one in died)} given back")
    assert kills == len(died) == 7
    assert [one["restart"] for one in died].count(None) == 1
    assert len(events.named("replica_start")) >= 2


def test_one_that_dies_at_start_is_started_again(tmp_path: Path) -> None:
    events = Events()
    engine = started(Make(tmp_path, dies_first=2), on_event=events, one_first=True)
    try:
        assert len(pids(engine)) == 2
        run_all(engine, grid(prompts=10, configurations=3))
    finally:
        engine.close()
    assert [one["exit_codes"][-1] for one in events.named("replica_died")] == [5, 5]
    assert sorted(one["replica"] for one in events.named("replica_start")) == [0, 1]


def test_none_that_starts_is_an_engine_error(tmp_path: Path) -> None:
    events = Events()
    with pytest.raises(EngineError, match="exit code 5"):
        started(Make(tmp_path, dies_first=99), on_event=events)
    assert len(events.named("replica_died")) == 2 * (1 + RESTARTS)


def test_an_error_at_start_comes_through_as_itself(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError) as caught:
        started(Make(tmp_path, unsupported=True))
    assert (caught.value.message, caught.value.hint) == ("this model is not known", "take another")


def test_an_engine_that_always_dies_of_a_request_ends_the_run(tmp_path: Path) -> None:
    events = Events()
    engine = started(Make(tmp_path), on_event=events)
    poison = Request("raise EngineError", Prompt.plain([1]), max_tokens=2)
    came: list[str] = []
    try:
        with pytest.raises(EngineError, match=r"none of 2 replicas is left.*asked to"):
            came += (result.id for result in engine.run([*grid(prompts=5, configurations=3), poison]))
    finally:
        engine.close()
    assert len(came) == len(set(came)) <= 15
    died = events.named("replica_died")
    assert len(died) == 2 * (1 + RESTARTS)
    assert {one["error"] for one in died} == {"the engine died: asked to"}


def test_a_process_that_ends_by_itself_is_reported_with_its_code(tmp_path: Path) -> None:
    events = Events()
    engine = started(Make(tmp_path), on_event=events)
    try:
        with pytest.raises(EngineError, match="exit code 7"):
            list(engine.run([Request("die", Prompt.plain([1]), max_tokens=2)]))
    finally:
        engine.close()
    assert engine.exit_codes() == [7] * 2 * (1 + RESTARTS)


def test_our_own_faults_stay_loud(tmp_path: Path) -> None:
    engine = started(Make(tmp_path))
    try:
        with pytest.raises(SteeringFault, match="as asked") as caught:
            list(engine.run([Request("raise SteeringFault", Prompt.plain([1]), max_tokens=2)]))
    finally:
        engine.close()
    # with the traceback of the process that raised it
    assert "fake_replica.py" in "".join(caught.value.__notes__)


def test_a_name_under_way_twice_is_refused(tmp_path: Path) -> None:
    engine = started(Make(tmp_path, pace=0.05))
    try:
        one = grid(prompts=1, configurations=1)[0]
        with pytest.raises(SteeringFault, match="both named"):
            list(engine.run([one, one]))
    finally:
        engine.close()


def test_leaving_early_drops_what_is_under_way(tmp_path: Path) -> None:
    engine = started(Make(tmp_path, pace=0.01))
    try:
        for _ in range(3):
            results = engine.run(iter(grid(prompts=100, configurations=10)))
            first = [next(results) for _ in range(7)]
            assert len(first) == 7
            results.close()  # type: ignore[attr-defined]
            assert engine.under_way() == []
            # the same names again, with other answers
            others = [
                Request(one.id, Prompt.plain([7, *one.prompt.token_ids]), max_tokens=2)
                for one in grid(prompts=10, configurations=10)
            ]
            run_all(engine, others)
    finally:
        engine.close()
    assert sum(map(len, taken(tmp_path).values())) < 3 * (100 + 400)


def test_what_is_killed_from_outside_fails_and_leaves_nothing(tmp_path: Path) -> None:
    engine = started(Make(tmp_path, pace=0.02))
    all_pids = pids(engine)
    threading.Timer(0.3, engine.kill).start()
    try:
        with pytest.raises(EngineError):
            list(engine.run(grid(prompts=1000, configurations=2)))
        assert set(engine.exit_codes()) == {-signal.SIGKILL}
    finally:
        engine.close()
    assert not set(all_pids) & parents().keys()


def test_one_that_hangs_is_ended_and_its_work_done_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(under_test, "STALL_SECONDS", 3.0)
    events = Events()
    engine = started(Make(tmp_path, pace=0.01), on_event=events)
    requests = grid(prompts=20, configurations=10)
    found = []
    try:
        for n, result in enumerate(engine.run(requests)):
            if n == 20:
                os.kill(engine._replicas[1].process.pid, signal.SIGSTOP)
            found.append(result)
    finally:
        engine.close()
    assert_each_once(requests, {result.id: result.token_ids for result in found}, len(found))
    assert [(one["replica"], one["error"]) for one in events.named("replica_died")] == [(1, "it hangs")]


def test_a_run_through_replicas_has_the_rows_of_one_engine(tmp_path: Path) -> None:
    """From a grid to a store, one of the two killed on the way."""
    made: list[Replicas] = []
    events = Events()

    def load(plan: Plan, spec: EngineSpec, extracts: bool) -> Replicas:
        make = partial(fake.fake_engine, plan, pace=0.02)
        made.append(Replicas(make, [DeviceSlice()] * 2, window=200, on_event=events))
        return made[0]

    def kill() -> None:
        while not (made and made[0]._table and made[0].steps > 500):
            time.sleep(0.01)
        os.kill(pids(made[0])[1], signal.SIGKILL)

    (tmp_path / "two").mkdir()
    (tmp_path / "one").mkdir()
    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    two = run_grid(written(tmp_path / "two"), load=load).folder
    killer.join()
    one = run_grid(written(tmp_path / "one"), load=fake.load()).folder
    same = "row_id, status, error, text, choice_logprobs, logit_diff, vector_sha256, engine, attempt"
    assert rows_of(two, same) == rows_of(one, same)
    assert len(events.named("replica_died")) == 1
    assert not pids(made[0])


PARENT = """
import signal, sys
from pathlib import Path
from tests.engine.fake_replica import Make
from tests.engine.test_replicas import grid, started

if __name__ == "__main__":
    # a shell lets what it starts in the background ignore SIGINT, and tests may run there
    signal.signal(signal.SIGINT, signal.default_int_handler)
    engine = started(Make(Path(sys.argv[1]), pace=0.01))
    for n, _ in enumerate(engine.run(grid(prompts=2000, configurations=5))):
        if n == 5:
            print("started", flush=True)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_parent_that_ends_leaves_no_child_behind(tmp_path: Path, number: int) -> None:
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    parent = subprocess.Popen(
        [sys.executable, str(script), str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    assert parent.stdout is not None
    assert parent.stdout.readline() == b"started\n"
    children = descendants(parent.pid)
    assert len(children) >= 2
    # a terminal sends it to the whole group of the parent
    os.killpg(parent.pid, number)
    parent.wait(timeout=30)
    deadline = time.monotonic() + 10
    while (left := children & parents().keys()) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not left
    if number == signal.SIGINT:
        # only the parent prints a traceback
        assert parent.communicate()[1].count(b"KeyboardInterrupt") == 1


def test_devices_are_shared_out_in_slices() -> None:
    eight = [str(n) for n in range(8)]
    found = device_slices(4, 2, eight, "CUDA_VISIBLE_DEVICES")
    assert [one.environment["CUDA_VISIBLE_DEVICES"] for one in found] == ["0,1", "2,3", "4,5", "6,7"]
    # a replica gets no more devices than it has ranks
    found = device_slices(2, 1, ["GPU-a", "GPU-b", "GPU-c", "GPU-d"], "CUDA_VISIBLE_DEVICES")
    assert [one.environment["CUDA_VISIBLE_DEVICES"] for one in found] == ["GPU-a", "GPU-c"]
    with pytest.raises(UsageError, match="3 replicas of 4 ranks need 12 devices, and there are 8"):
        device_slices(3, 4, eight, "CUDA_VISIBLE_DEVICES")


def test_cores_are_shared_out_in_slices() -> None:
    assert [one.cores for one in cpu_slices(2, 1, [4, 5, 8, 9], "auto")] == [(4, 5), (8, 9)]
    assert [one.cores for one in cpu_slices(2, 1, [], "auto")] == [(), ()]
    found = cpu_slices(2, 2, [0, 1], "0-3|4-7|8-11|12-15")
    assert [dict(one.environment) for one in found] == [{BIND: "0-3|4-7"}, {BIND: "8-11|12-15"}]
    assert {one.cores for one in found} == {()}
    with pytest.raises(UsageError, match="2 replicas need 2 cores, and there are 1"):
        cpu_slices(2, 1, [3], "auto")
    with pytest.raises(UsageError, match="core lists"):
        cpu_slices(2, 1, [0, 1], "0-1")


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="one core cannot be shared out")
def test_a_child_stays_on_its_cores(tmp_path: Path) -> None:
    slices = find_slices(2, EngineOptions())
    engine = Replicas(Make(tmp_path), slices, window=WINDOW)
    try:
        first, second = (os.sched_getaffinity(pid) for pid in pids(engine))
        assert not first & second
        assert first | second <= os.sched_getaffinity(0)
    finally:
        engine.close()
