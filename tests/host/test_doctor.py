"""`vsteer doctor`: what would refuse a run, what would slow it, and how to fix either."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from tests.engine.test_seams import EARLY, SAMPLE, patched_copy
from tests.test_imports import vsteer_without_torch
from vsteer.cli import main
from vsteer.grid.spec import read_grid
from vsteer.host.doctor import (
    Examination,
    Finding,
    bound_cores,
    cpu_memory,
    cpu_threads,
    devices,
    differing,
    model_at_hand,
    plugin,
    preloaded,
    space,
    torch_platform,
)
from vsteer.host.machine import Gpu, Machine, _quota, this_machine
from vsteer.models import resolve
from vsteer.plan.plan import make_plans
from vsteer.run.loading import load_vllm

GIB = 2**30
MACHINE = Machine(
    system="Linux x86_64",
    processor="a processor",
    flags=("avx2",),
    cores=4,
    usable_cores=4,
    quota=None,
    load=0.1,
    niceness=0,
    memory=32 * GIB,
    available=31 * GIB,
    gpus=(),
    gpu_error="",
    space={"shared memory": (Path("/dev/shm"), 16 * GIB)},
    libraries={"libtcmalloc": "libtcmalloc_minimal.so.4", "libiomp": "/x/libiomp5.so"},
    environment={},
)
SEVEN = Gpu("NVIDIA H200", "570.1", 140 * GIB, 139 * GIB)


def one(found: list[Finding]) -> Finding:
    (finding,) = found
    return finding


def test_threads_are_those_that_vllm_gets() -> None:
    assert one([*cpu_threads(MACHINE)]).level == "ok"

    def bound(bind: str) -> Finding:
        return one([*cpu_threads(replace(MACHINE, environment={"VLLM_CPU_OMP_THREADS_BIND": bind}))])

    assert bound("0-3").level == "ok"
    few = bound("0-1|1,2")
    assert (few.level, "3 of 4 usable cores" in few.says) == ("warn", True)
    assert bound("nobind").level == "warn"
    assert bound_cores("0-2|7") == {0, 1, 2, 7}
    assert bound_cores("auto") == set()


def test_what_else_uses_the_cores_is_shown() -> None:
    busy = [*cpu_threads(replace(MACHINE, load=2.5, niceness=19, quota=1.5))]
    assert [finding.about for finding in busy if finding.level == "warn"] == ["threads", "priority", "load"]
    assert all(finding.fix for finding in busy if finding.level == "warn")
    assert "taskset -c 0-0" in busy[1].fix
    assert _quota("150000 100000\n") == 1.5
    assert _quota("max 100000") is None
    assert _quota("") is None


def test_memory_for_keys_and_values_is_held_against_what_is_free() -> None:
    assert one([*cpu_memory(MACHINE)]).level == "ok"
    # a run takes 1 GiB by default, whatever else has the rest
    half = one([*cpu_memory(replace(MACHINE, available=20 * GIB))])
    assert (half.level, half.fix) == ("ok", "")
    assert "get 1 GiB, with engine: {kv_cache_gib: 10} in a grid half of it" in half.says

    def asked(space: str) -> Finding:
        return one([*cpu_memory(replace(MACHINE, environment={"VLLM_CPU_KVCACHE_SPACE": space}))])

    assert asked("8").level == "ok"
    assert asked("31").level == "ok"
    assert asked("32").level == "refused"
    assert "whole GiB" in asked("1.5").says


def test_what_vllm_wants_preloaded_comes_with_its_command() -> None:
    bare = one([*preloaded(MACHINE)])
    assert bare.fix == "export LD_PRELOAD=libtcmalloc_minimal.so.4:/x/libiomp5.so"
    without = one([*preloaded(replace(MACHINE, libraries={}, environment={"LD_PRELOAD": "/y/libiomp5.so"}))])
    assert without.says.startswith("libtcmalloc not in LD_PRELOAD")
    assert without.fix.startswith("apt-get install libtcmalloc-minimal4")
    assert without.fix.endswith("export LD_PRELOAD=libtcmalloc_minimal.so.4:/y/libiomp5.so")
    both = {"LD_PRELOAD": "/z/libtcmalloc_minimal.so.4:/z/libiomp5.so"}
    assert one([*preloaded(replace(MACHINE, environment=both))]).level == "ok"
    assert [*preloaded(replace(MACHINE, system="Darwin arm64"))] == []


def test_devices_are_shown_with_their_free_memory() -> None:
    both = replace(MACHINE, gpus=(SEVEN, replace(SEVEN, free=70 * GIB)))
    idle, held = devices(both, "12.9")
    assert (idle.level, held.level) == ("ok", "warn")
    assert "driver 570.1, 139.0 GiB of 140.0 GiB free" in idle.says
    assert "gpu_memory_utilization: 0.50" in held.fix
    assert "leaves it idle" in next(devices(both, "")).says
    broken = [*devices(replace(MACHINE, gpu_error="no driver"), "12.9")]
    assert "nvidia-smi fails: no driver" in broken[0].says


def test_a_disk_that_is_nearly_full_is_a_warning() -> None:
    here = {"shared memory": (Path("/dev/shm"), 64 << 20), "temporary files": (Path("/tmp"), None)}
    small = one([*space(replace(MACHINE, space=here))])
    assert (small.level, "--shm-size" in small.fix) == ("warn", True)


def test_a_plugin_that_vllm_may_not_load_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VLLM_PLUGINS", raising=False)
    assert one([*plugin()]).level == "ok"
    monkeypatch.setenv("VLLM_PLUGINS", "other")
    refused = one([*plugin()])
    assert (refused.level, "VLLM_PLUGINS is 'other'" in refused.says) == ("refused", True)


def test_torch_s_build_is_known_without_importing_it() -> None:
    import torch

    assert torch_platform() == (torch.version.cuda or "")


def test_this_machine_is_read_as_the_system_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    smi = tmp_path / "nvidia-smi"
    smi.write_text("#!/bin/sh\necho 'NVIDIA H200, 570.124.06, 143771, 143012'\n")
    smi.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    machine = this_machine()
    assert machine.gpus == (Gpu("NVIDIA H200", "570.124.06", 143771 * 2**20, 143012 * 2**20),)
    assert machine.usable_cores == len(os.sched_getaffinity(0))
    assert machine.memory <= os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert 0 < machine.available <= machine.memory
    smi.write_text("#!/bin/sh\necho 'NVIDIA-SMI has failed'\nexit 9\n")
    assert this_machine().gpu_error == "NVIDIA-SMI has failed"


def test_a_sound_machine_in_words_and_as_json(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("VLLM_PLUGINS", "VLLM_CPU_KVCACHE_SPACE"):
        monkeypatch.delenv(name, raising=False)
    text = CliRunner().invoke(main, ["doctor"])
    assert text.exit_code == 0
    assert "as vsteer knows them in vLLM" in " ".join(text.output.split())
    assert "a run would start" in text.output
    report = json.loads(CliRunner().invoke(main, ["doctor", "--json"]).output)
    assert report["refused"] is False
    assert report["versions"]["torch"]
    assert {finding["level"] for finding in report["findings"]} <= {"ok", "warn"}


def test_without_vllm_it_says_so(tmp_path: Path) -> None:
    done = vsteer_without_torch("doctor", "--json", VSTEER_HOME=str(tmp_path))
    assert done.returncode == 1, done.stderr
    report = json.loads(done.stdout)
    assert report["refused"] is True
    assert "vllm is not installed" in [finding["says"] for finding in report["findings"]]


GRID = """\
version: 1
name: try
model: {id: tiny-llama, dtype: float32}
vectors: {v: {data: sentiment, token: last}}
grid:
  - {vector: v, layers: [1], multipliers: [1], positions: all}
evaluations:
  - {kind: choice, data: sentiment, limit: 1}
"""


@pytest.mark.long
def test_a_run_on_a_patched_seam_is_refused_with_the_doctor_s_words(tmp_path: Path) -> None:
    copy = patched_copy(tmp_path / "patched", SAMPLE, "def remove_request(self, req_id: str) -> None:", EARLY)
    grid = tmp_path / "grid.yaml"
    grid.write_text(GRID)

    def vsteer(*arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "PYTHONPATH": str(copy), **more}
        environment.pop("VLLM_PLUGINS", None)
        return subprocess.run(
            [sys.executable, "-m", "vsteer", *arguments],
            capture_output=True,
            text=True,
            check=False,
            env=environment,
        )

    doctor = vsteer("doctor", "--json")
    assert doctor.returncode == 1
    (refused,) = [f for f in json.loads(doctor.stdout)["findings"] if f["level"] == "refused"]
    assert (
        f"{SAMPLE}, which vsteer/engine/worker/model_state.py leans on, has another content"
        in refused["says"]
    )
    run = vsteer("run", str(grid))
    assert run.returncode == 1
    assert f"error: {refused['says']}\nhint: {refused['fix']}" in run.stderr
    assert "Traceback" not in run.stderr
    passed = vsteer("doctor", "--json", VSTEER_UNKNOWN_SEAMS="1")
    assert passed.returncode == 0
    (warned,) = [f for f in json.loads(passed.stdout)["findings"] if f["about"] == "seams"]
    assert warned["level"] == "warn"
    assert refused["says"] in warned["says"]


def test_what_is_let_pass_is_an_event_of_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "grid.yaml").write_text(GRID)
    grid = read_grid(tmp_path / "grid.yaml")
    (plan,) = make_plans(grid)
    monkeypatch.setattr("vsteer.engine.vllm_compat.unknown_seams", lambda: ["a seam"])
    monkeypatch.setattr("vsteer.engine.driver.VllmEngine", lambda *_, **__: "an engine")
    events: list[tuple[str, object]] = []

    def start() -> object:
        return load_vllm(plan, grid.engine, False, lambda event, **fields: events.append((event, fields)))

    assert start() == "an engine"
    assert events == []
    monkeypatch.setenv("VSTEER_UNKNOWN_SEAMS", "1")
    assert start() == "an engine"
    assert events == [("unknown_seams", {"seams": ["a seam"]})]


def test_a_model_is_at_hand_or_there_is_a_way_to_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VSTEER_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    named = one(list(model_at_hand("tiny-llama")))
    assert (named.level, "is made here at the first start, 5 MiB" in named.says) == ("ok", True)
    made = resolve("tiny-llama").model
    assert one(list(model_at_hand("tiny-llama"))).says == f"tiny-llama is in {made}"
    assert one(list(model_at_hand(made))).says == f"{made} is in {made}"
    assert one(list(model_at_hand("nobody-has/this"))).level == "warn"
    assert one(list(model_at_hand(str(tmp_path)))).level == "refused"


def test_nodes_must_have_the_same_versions() -> None:
    """The order of packages in each is no difference, nor is another version of one that does not count."""
    some = {"vsteer": "1", "torch": "2", "duckdb": "1"}
    examined = {
        "a": Examination(some, ()),
        "b": Examination({"duckdb": "2", "torch": "2", "vsteer": "1"}, ()),
    }
    assert list(differing(examined)) == []
    examined["c"] = Examination({**some, "torch": "2.1"}, ())
    assert one(list(differing(examined))).says == "torch differs: 2 on a, b; 2.1 on c"
    del examined["c"].versions["torch"]
    assert one(list(differing(examined))).says == "torch differs: 2 on a, b; none on c"
