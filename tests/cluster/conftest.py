"""One simulated Ray cluster for a file's tests: two nodes with a core and four devices each."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.cluster.simulated import simulated_nodes


@pytest.fixture(scope="module")
def nodes() -> Iterator[Any]:
    # a node's death is to be noticed soon
    settings = {"health_check_period_ms": 500, "health_check_initial_delay_ms": 500}
    with simulated_nodes(2, devices=4, settings=settings) as nodes:
        yield nodes
