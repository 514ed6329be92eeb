"""How long a run of fifty million rows takes to its first row, from Ctrl-C to its end, and to be checked.

It goes through an engine without a model, in processes of their own, so that each has its own peak of memory.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from vsteer.bench.figures import Figure
from vsteer.models import resolve
from vsteer.vectors.files import save
from vsteer.vectors.vector import SteeringVector

MODEL = "tiny-llama"
ITEM = "Is {n} good?\n\nChoices:\n(A) Yes\n(B) No"
GRID = """\
version: 1
name: big
model: {{id: {model}, dtype: float32}}
vectors: {{v: {{file: v.safetensors}}}}
grid:
  - {{vector: v, layers: all, multipliers: {multipliers}, positions: after_prompt}}
evaluations:
  - {{kind: choice, data: items.jsonl}}
"""
# 6 layers x 415 multipliers and the baseline, for each item in both letter orders: 4,982 rows an item.
MULTIPLIERS, ITEMS = 415, 10_000

PEAK = """
import re, sys, time
from pathlib import Path
def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) / 1024
"""
# Some thousand rows and Ctrl-C.
RUN = f"""{PEAK}
import os, signal
from rich.console import Console
from tests.fake_engine import FastBlockEngine
from tests.run.fake import fake_engine
from vsteer.run.start import run_grid
times = []
class Engine(FastBlockEngine):
    def run_blocks(self, blocks):
        for n, found in enumerate(super().run_blocks(blocks)):
            if n in (0, 40):
                times.append(time.perf_counter())
            if n == 40:
                os.kill(os.getpid(), signal.SIGINT)
            yield found
began = time.perf_counter()
run_grid(sys.argv[1], load=lambda plan, *_: fake_engine(plan, kind=Engine), console=Console(quiet=True))
print(times[0] - began, time.perf_counter() - times[1], peak())
"""
CHECK = f"""{PEAK}
from contextlib import suppress
from vsteer.cli.status import check
began = time.perf_counter()
with suppress(SystemExit):
    check([sys.argv[1], "--json"])
print(time.perf_counter() - began, peak())
"""


def bench_start(items: int = ITEMS) -> list[Figure]:
    """Start, stop, go on and check a run of so many items."""
    with tempfile.TemporaryDirectory(prefix="vsteer-bench-") as name:
        grid = _made_up(Path(name), items)
        # The second start finds rows that stand.
        starts = [_ask(RUN, grid) for _ in range(2)]
        seconds, peak = _ask(CHECK, grid)
    first, stop, memory = map(max, zip(*starts, strict=True))
    note = f"{items * 2 * (6 * MULTIPLIERS + 1):,} rows"
    return [
        Figure("seconds to the first row left of 30", 30 - first, target=0, note=note),
        Figure("seconds from Ctrl-C to the end left of 10", 10 - stop, target=0),
        Figure("MiB of a start left of 1024", 1024 - memory, target=0),
        Figure("seconds of check left of 60", 60 - seconds, target=0),
        Figure("MiB of check left of 1536", 1536 - peak, target=0),
    ]


def _made_up(folder: Path, items: int) -> Path:
    lines = (
        {
            "question": ITEM.format(n=n),
            "answer_matching_behavior": "(A)",
            "answer_not_matching_behavior": "(B)",
        }
        for n in range(items)
    )
    (folder / "items.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    config = json.loads(Path(resolve(MODEL).model, "config.json").read_text())
    noise = np.random.default_rng(0).standard_normal((6, config["hidden_size"])).astype(np.float32)
    save(SteeringVector("v", dict(enumerate(noise))), folder / "v.safetensors")
    grid = folder / "grid.yaml"
    grid.write_text(GRID.format(model=MODEL, multipliers=[n / 64 for n in range(1, MULTIPLIERS + 1)]))
    return grid


def _ask(script: str, grid: Path) -> list[float]:
    printed = subprocess.run(
        [sys.executable, "-c", script, str(grid)], check=True, capture_output=True, text=True
    )
    return list(map(float, printed.stdout.splitlines()[-1].split()))
