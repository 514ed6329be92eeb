"""One Ray cluster for a file's tests: a head without room, and two nodes with a core and four
devices each, which are only counted."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from vsteer.cluster.session import imported_ray

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def nodes() -> Iterator[Any]:
    """Ray's own simulation of several nodes on one machine; this process is connected to it."""
    # what Ray's processes import from, and theirs
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), *([before] if before else [])])
    ray = imported_ray()
    from ray.cluster_utils import Cluster

    settings = {"health_check_period_ms": 500, "health_check_initial_delay_ms": 500}
    folder = tempfile.mkdtemp(prefix="v", dir="/tmp")  # sockets want a short path
    head = {"num_cpus": 0, "include_dashboard": False, "temp_dir": folder, "_system_config": settings}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        for _ in range(2):
            cluster.add_node(num_cpus=1, num_gpus=4)
        ray.init(address=cluster.address, logging_level="warning", log_to_driver=False)
        yield cluster
    finally:
        ray.shutdown()
        cluster.shutdown()
        shutil.rmtree(folder, ignore_errors=True)
        os.environ.pop("PYTHONPATH")
        if before:
            os.environ["PYTHONPATH"] = before
