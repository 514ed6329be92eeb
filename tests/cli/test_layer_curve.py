"""What the table in the terminal claims of a peak: nothing without enough whole and distinct controls."""

from __future__ import annotations

import pytest

from vsteer.cli.layer_curve import Effect, _verdict

VECTOR = [Effect(layer, m, effect, 0.1, 24, "v") for layer, m, effect in ((0, 1.0, 0.2), (1, 1.0, 3.0))]
OUTSIDE = "outside the band of the random vectors"


def control(n: int, largest: float, layers: int = 2, sha256: str = "") -> list[Effect]:
    return [Effect(layer, 1.0, largest, 0.1, 24, sha256 or f"r{n}") for layer in range(layers)]


def test_a_peak_outside_of_nineteen_is_called_so() -> None:
    said = _verdict(VECTOR, {("random", n): control(n, 2.9) for n in range(19)})
    assert "largest effect: +3.00 at layer 1, multiplier +1" in said
    assert "largest of 19 random vectors: 2.90" in said
    assert f"the peak is {OUTSIDE}" in said


@pytest.mark.parametrize("sign", [1, -1])
def test_one_control_as_large_is_enough_to_say_that_nothing_is_shown(sign: int) -> None:
    controls = {("random", n): control(n, 0.1) for n in range(18)} | {("random", 18): control(18, sign * 3.0)}
    assert f"the peak is NOT {OUTSIDE}" in _verdict(VECTOR, controls)


@pytest.mark.parametrize(
    "spoiled",
    [
        {},  # eighteen
        {("random", 18): control(18, 0.1, layers=1)},  # one that lacks a layer's rows
        {("random", 18): control(18, 0.1, sha256="r3")},  # one that is there already
        {("random", 18): control(18, 0.1, sha256="v")},  # the vector itself
    ],
)
def test_with_fewer_no_claim_is_made(spoiled: dict[tuple[str, int], list[Effect]]) -> None:
    said = _verdict(VECTOR, {("random", n): control(n, 0.1) for n in range(18)} | spoiled)
    assert OUTSIDE not in said
    assert "too few to say more: 18 whole and distinct, 19 are needed" in said


def test_without_controls_it_says_that_chance_is_not_known() -> None:
    peak, controls = _verdict(VECTOR, {}).splitlines()
    assert peak == "largest effect: +3.00 at layer 1, multiplier +1"
    assert controls == (
        "no controls to hold it against: what chance gives isn't known "
        "(`controls: {random_vectors: 19}` in the grid adds them)"
    )
