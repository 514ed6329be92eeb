"""Every node of a cluster is looked at, and one that does not answer is named."""

from __future__ import annotations

import json
import os
from typing import Any

import pytest
from click.testing import CliRunner

from vsteer.cli import main
from vsteer.cluster.nodes import on_every_node

pytestmark = pytest.mark.long


def answer(number: int) -> int:
    """Fails in every second process."""
    if os.getpid() % 2:
        return number
    raise ValueError(f"not here: {number}")


def test_a_function_is_called_on_every_node(nodes: Any) -> None:
    found = on_every_node(nodes.address, answer, 7)
    assert sorted((one.gpus, one.cores) for one in found) == [(0, 0), (4, 1), (4, 1)]
    for one in found:
        assert one.answer == 7 or (one.answer is None and "not here: 7" in one.error)


def test_doctor_looks_at_every_node(nodes: Any) -> None:
    done = CliRunner().invoke(main, ["doctor", "--ray", nodes.address, "--model", "tiny-llama"])
    assert done.exit_code == 0, done.output
    assert done.output.count("GPUs and") == 3
    assert "a run would start on 3 nodes with 8 GPUs" in done.output
    report = json.loads(CliRunner().invoke(main, ["doctor", "--ray", nodes.address, "--json"]).stdout)
    assert [node["refused"] for node in report["nodes"]] == [False] * 3
