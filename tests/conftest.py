"""What all tests share: nothing is synced, and which tests a worker of pytest-xdist runs one after another.

Those are a file's, and all that run engines. Starting an engine keeps one core busy, so that two workers on
two cores take little more than half the time.
"""

from __future__ import annotations

import functools
import os
import signal
from collections.abc import Iterator
from typing import Any

# Two workers share two cores, and a second thread of NumPy's would only wait for one that has none. It reads
# this when it is imported.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
# The same for engines, whose threads wait without sleep for the one that has no core.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")

import pytest
import torch

from vsteer.engine import vllm_compat

# Each engine of theirs is started once, for all of them. Beside another engine the program of Model Runner V2
# takes four times as long.
SHARE_ENGINES = {
    f"tests/engine/test_{name}.py"
    for name in (
        "capture",
        "coherence",
        "conditions",
        "divergence",
        "driver",
        "extraction",
        "forks",
        "parity",
        "poisoning",
        "refusal_tokens",
        "v2_runner",
    )
}
# The longest first, so that no worker is left with one of them at the end.
LONGEST = (
    "shared engines",
    "tests/engine/test_families.py",
    "tests/engine/test_run_killed.py",
)


def group_of(nodeid: str) -> str:
    file = nodeid.partition("::")[0]
    return LONGEST[0] if file in SHARE_ENGINES else file


# after pytest has put together what shares an engine
@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    order = {group: place for place, group in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(group_of(item.nodeid), len(order)))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    from xdist.scheduler import LoadScopeScheduling

    scheduler = LoadScopeScheduling(config, log)
    scheduler._split_scope = group_of
    return scheduler


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """The models are so small that more threads only wait for each other, on cores that are taken."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def _heeds_interrupts() -> None:
    """A shell lets what it starts in the background ignore SIGINT, and some tests send it to themselves."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def _no_sync() -> Iterator[None]:
    """Nobody pulls a plug here, and on a busy disk each sync takes its time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda handle: None)
        yield


@pytest.fixture(scope="session", autouse=True)
def _seams_are_read_once() -> Iterator[None]:
    """vLLM's files take a second to parse, and every start of an engine looks into them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vllm_compat, "forms_in", functools.cache(vllm_compat.forms_in))
        yield
