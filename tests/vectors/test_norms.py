"""Norms, against numbers worked out by hand."""

import math
from fractions import Fraction

import numpy as np
import pytest

from tests.vectors.sample import same_bits, vector
from vsteer.errors import UsageError, VectorError
from vsteer.vectors.norms import length, parse_norm, with_norm
from vsteer.vectors.vector import Origin, SteeringVector

# Lengths 5 and 13.
ONE = vector({0: [3, -4], 1: [5, 12]}, "one", {0: 100.0, 1: 50.0})
# Lengths 10 and 1.
TWO = vector({0: [6, 8], 1: [0, -1]}, "two")
# Lengths 3 and 4, and a layer that the others lack.
THREE = vector({0: [0, 3], 1: [4, 0], 2: [1, 1]}, "three")


def rows(v: SteeringVector) -> dict[int, list[float]]:
    return {layer: row.tolist() for layer, row in v.directions.items()}


def close(v: SteeringVector, expected: dict[int, list[float]]) -> bool:
    assert v.layers == tuple(expected)
    return all(np.allclose(v.directions[layer], row, rtol=1e-7) for layer, row in expected.items())


def normed(norm: str) -> SteeringVector:
    return vector({0: [3, 4]}, "v", {0: 10.0}, Origin(norm=norm))


def test_length() -> None:
    assert length(np.array([3, -4], np.float32)) == 5
    assert length(np.zeros(3, np.float32)) == 0


def test_length_is_the_exact_sum_correctly_rounded() -> None:
    """By rational numbers; neither order nor vector units of a machine can change it."""
    values = np.random.default_rng(1).standard_normal(4096).astype(np.float32)
    square = sum(Fraction(float(value)) ** 2 for value in values)
    assert length(values) == pytest.approx(math.sqrt(square), rel=1e-15)
    assert length(values) == length(values[::-1])


def test_raw_is_what_it_is() -> None:
    assert with_norm(ONE, "raw") is ONE


def test_unit() -> None:
    unit = with_norm(ONE, "unit")
    assert close(unit, {0: [0.6, -0.8], 1: [5 / 13, 12 / 13]})
    assert (unit.origin.norm, unit.stream_norms) == ("unit", ONE.stream_norms)
    assert rows(ONE) == {0: [3, -4], 1: [5, 12]}


def test_deviation() -> None:
    """Lengths 5 and 13 become what the stream spreads along them."""
    spread = vector({0: [3, -4], 1: [5, 12]}, "spread", deviations={0: 2.0, 1: 26.0})
    made = with_norm(spread, "deviation")
    assert close(made, {0: [1.2, -1.6], 1: [10, 24]})
    assert (made.origin.norm, made.deviations) == ("deviation", spread.deviations)
    for unknown in ({}, {0: 2.0}, {0: 2.0, 1: 0.0}):
        with pytest.raises(VectorError, match="how far the stream spreads along it at layer"):
            with_norm(vector({0: [3, -4], 1: [5, 12]}, deviations=unknown), "deviation")


def test_residual() -> None:
    """A tenth of 100 and of 50."""
    tenth = with_norm(ONE, "residual:0.1")
    assert close(tenth, {0: [6, -8], 1: [25 / 13, 60 / 13]})
    assert tenth.origin.norm == "residual:0.1"


def test_caa() -> None:
    """The mean lengths are (5 + 10 + 3) / 3 = 6 and (13 + 1 + 4) / 3 = 6."""
    one = with_norm(ONE, "caa", [TWO, THREE])
    assert close(one, {0: [3.6, -4.8], 1: [30 / 13, 72 / 13]})
    assert close(with_norm(TWO, "caa", [ONE, THREE]), {0: [3.6, 4.8], 1: [0, -6]})
    assert (one.origin.norm, one.origin.derived) == ("caa", ("caa norm over one, two, three",))


@pytest.mark.parametrize("norm", ["unit", "caa", "residual:0.3", "derived", ""])
def test_unit_and_residual_need_only_where_it_points(norm: str) -> None:
    assert close(with_norm(normed(norm), "unit"), {0: [0.6, 0.8]})
    assert close(with_norm(normed(norm), "residual:0.5"), {0: [3, 4]})


@pytest.mark.parametrize("norm", ["unit", "caa", "residual:0.3", "derived"])
def test_raw_cannot_be_got_back(norm: str) -> None:
    with pytest.raises(VectorError, match=f"has the norm {norm}, and its raw lengths are gone"):
        with_norm(normed(norm), "raw")


@pytest.mark.parametrize("norm", ["unit", "caa", "residual:0.3", "derived", ""])
def test_caa_wants_raw_lengths_of_all(norm: str) -> None:
    raw, other = normed("raw"), normed(norm)
    for first, second in ((raw, other), (other, raw)):
        with pytest.raises(VectorError, match=f"has the norm {norm or 'unknown'}"):
            with_norm(first, "caa", [second])


def test_an_unknown_norm_is_raw_on_the_users_word() -> None:
    taken = with_norm(normed(""), "raw")
    assert same_bits(taken, normed(""))
    assert (taken.origin.norm, taken.origin.derived) == ("raw", ("taken to be raw",))


def test_caa_over_one_vector_is_no_norm() -> None:
    with pytest.raises(UsageError, match="there is only one"):
        with_norm(ONE, "caa")


def test_others_belong_to_caa_only() -> None:
    with pytest.raises(UsageError, match="have no part in the norm unit"):
        with_norm(ONE, "unit", [TWO])


def test_caa_wants_every_layer_of_all() -> None:
    with pytest.raises(VectorError, match="'one' has no direction for layer 2, which 'three' has"):
        with_norm(THREE, "caa", [ONE])


def test_caa_is_of_one_model() -> None:
    with pytest.raises(VectorError, match="is 2 wide and 'v' is 3"):
        with_norm(ONE, "caa", [vector({0: [1, 2, 3], 1: [1, 2, 3]}, "v")])
    a = vector({0: [1, 2]}, "a", origin=Origin(model_sha256="aa"))
    b = vector({0: [1, 2]}, "b", origin=Origin(model_sha256="bb"))
    with pytest.raises(VectorError, match="come from different models"):
        with_norm(a, "caa", [b])


@pytest.mark.parametrize("norm", ["unit", "residual:0.1", "caa"])
def test_a_zero_direction_is_named_by_its_layer(norm: str) -> None:
    v = vector({0: [1, 1], 7: [0, 0]}, "v", {0: 1.0, 7: 1.0})
    with pytest.raises(VectorError, match="'v' is zero at layer 7"):
        with_norm(v, norm, [v] if norm == "caa" else [])


def test_residual_wants_stream_norms() -> None:
    with pytest.raises(VectorError, match="how long the stream is at layer 0") as error:
        with_norm(TWO, "residual:0.1")
    assert error.value.hint
    with pytest.raises(VectorError, match="how long the stream is at layer 1"):
        with_norm(vector({0: [1], 1: [1]}, stream_norms={0: 2.0}), "residual:0.1")


@pytest.mark.parametrize("text", [".1", "0.10", "1e-1"])
def test_a_fraction_is_written_one_way(text: str) -> None:
    assert with_norm(ONE, f"residual:{text}").origin.norm == "residual:0.1"


WRONG = "l2 Unit raw:1 unit: residual residual: residual:x residual:0 residual:-1 residual:nan derived"


@pytest.mark.parametrize("norm", ["", *WRONG.split()])
def test_unknown_norms(norm: str) -> None:
    with pytest.raises(UsageError):
        parse_norm(norm)
