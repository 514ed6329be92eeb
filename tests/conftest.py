"""Which tests one worker of pytest-xdist runs, one after another: a file's, and all that run engines.

Starting an engine keeps one core busy, so that two workers on two cores take little more than half the time.
"""

from __future__ import annotations

from typing import Any

import pytest

# Each engine of theirs is started once, for all of them. Beside another engine the program of Model Runner V2
# takes four times as long.
SHARE_ENGINES = {
    f"tests/engine/test_{name}.py"
    for name in (
        "capture",
        "coherence",
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
