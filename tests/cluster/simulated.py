"""Ray's own simulation of several nodes on one machine; the process that asks for it is connected to it."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

from vsteer.cluster.session import imported_ray

ROOT = Path(__file__).parents[2]


@contextmanager
def simulated_nodes(count: int, devices: int, settings: Mapping[str, Any] | None = None) -> Iterator[Any]:
    """A head without room, and nodes with a core and devices each, which are only counted."""
    ray = imported_ray()
    from ray.cluster_utils import Cluster

    # sockets want a short path
    with tempfile.TemporaryDirectory(prefix="v", dir="/tmp", ignore_cleanup_errors=True) as folder:
        # where Ray notes the address of a cluster; it expects the folder to be there
        Path(folder, "ray").mkdir()
        # what Ray's processes import from, and theirs
        paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        with mock.patch.dict(os.environ, PYTHONPATH=paths, RAY_TMPDIR=folder):
            nodes = Cluster(
                initialize_head=True,
                head_node_args={
                    "num_cpus": 0,
                    "include_dashboard": False,
                    "temp_dir": folder,
                    "_system_config": dict(settings or {}),
                },
            )
            try:
                for _ in range(count):
                    nodes.add_node(num_cpus=1, num_gpus=devices)
                ray.init(address=nodes.address, logging_level="warning", log_to_driver=False)
                yield nodes
            finally:
                ray.shutdown()
                nodes.shutdown()
