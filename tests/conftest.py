"""Which tests one worker of pytest-xdist runs, one after another; nothing without it.

Starting an engine keeps one core busy, so that two workers on two cores take little more than half the time.
What shares an engine stays in one worker, so that each engine is started once.
"""

from __future__ import annotations

import pytest

SHARED = "shared engines"
# The longest first, so that no worker is left with one of them at the end.
FIRST = (SHARED, "test_v2_runner.py", "test_families.py", "test_run_killed.py")
# has engines that no other file asks for
OWN = "test_families.py"


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.pluginmanager.has_plugin("xdist"):
        return
    groups = {item: group_of(item) for item in items}
    order = {group: place for place, group in enumerate(FIRST)}
    items.sort(key=lambda item: order.get(groups[item].rpartition("/")[2], len(FIRST)))
    for item, group in groups.items():
        item.add_marker(pytest.mark.xdist_group(group))


def group_of(item: pytest.Item) -> str:
    shares = "engine" in getattr(item, "fixturenames", ()) and item.path.name != OWN
    return SHARED if shares else str(item.path)
