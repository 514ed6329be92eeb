"""Captures on the driver's side: requests that may be under way together, and streams joined from ranks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from vsteer.engine.captures import CaptureAdmission, joined_streams
from vsteer.engine.worker.capture import CaptureSpec
from vsteer.errors import SteeringFault
from vsteer.protocol import EngineInfo, Prompt, Request

INFO = EngineInfo("vllm", "float32", "llama", layers=3, hidden_size=2, vocab_size=9, max_model_len=9)


def capturing(count: int) -> Request:
    return Request(str(count), Prompt.plain(range(9)), capture=tuple(range(count)))


def test_no_more_positions_are_under_way_than_there_are_slots() -> None:
    admission = CaptureAdmission(4)
    assert admission.refusal(capturing(4)) is None
    assert admission.refusal(capturing(5)) == "5 positions to capture, the engine has room for 4"
    admission.begin(capturing(3))
    assert [admission.has_room(capturing(count)) for count in (0, 1, 2)] == [True, True, False]
    admission.end(capturing(3))
    assert admission.has_room(capturing(4))
    assert not admission.must_collect([capturing(1), capturing(2)])
    assert admission.must_collect([capturing(1), capturing(3)])
    assert not CaptureAdmission(0).must_collect([capturing(0)])


def answer(layers: list[int], rows: list[Any], positions: tuple[tuple[int, ...], ...]) -> dict[str, Any]:
    return {"layers": layers, "positions": positions, "streams": np.array(rows, np.float32).tobytes()}


def test_the_streams_of_two_ranks_are_joined_layer_by_layer() -> None:
    specs = [CaptureSpec(7, (0, 4)), CaptureSpec(8, (2,))]
    positions = ((0, 4), (2,))
    # rows are the positions in turn; within one its layers, two numbers each
    lower = answer([0, 1], [[[1, 2], [3, 4]], [[5, 6], [7, 8]], [[9, 10], [11, 12]]], positions)
    upper = answer([2], [[[13, 14]], [[15, 16]], [[17, 18]]], positions)
    found = joined_streams(specs, [lower, upper, {"layers": []}], INFO)
    assert found[7].tolist() == [[[1, 2], [3, 4], [13, 14]], [[5, 6], [7, 8], [15, 16]]]
    assert found[8].tolist() == [[[9, 10], [11, 12], [17, 18]]]
    with pytest.raises(SteeringFault, match="no worker captured some of the layers"):
        joined_streams(specs, [lower], INFO)
    with pytest.raises(SteeringFault, match=r"captured the positions \(0, 3\) instead of \(0, 4\)"):
        joined_streams(specs, [answer([2], [[[0, 0]]] * 3, ((0, 3), (2,))), upper], INFO)
