"""Which tests one worker of pytest-xdist runs, one after another; nothing without it.

Starting an engine keeps one core busy, so that two workers on two cores take little more than half the time.
The engines of tests/engine stay in one worker, so that each is started once and no two are there at a time.
"""

from __future__ import annotations

import pytest

# Their engines have processes of their own, on one core each; they take the longest, so they come early.
BESIDE = ("test_v2_runner.py",)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.pluginmanager.has_plugin("xdist"):
        return
    groups = {item: group_of(item) for item in items}
    order = {"engines": 0, "beside": 1}
    items.sort(key=lambda item: order.get(groups[item], 2))
    for item, group in groups.items():
        item.add_marker(pytest.mark.xdist_group(group))


def group_of(item: pytest.Item) -> str:
    if item.path.name in BESIDE:
        return "beside"
    if item.path.parent.name == "engine":
        return "engines"
    return str(item.path)
