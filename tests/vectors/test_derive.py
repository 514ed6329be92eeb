"""Vectors made of vectors, against numbers worked out by hand, and random ones against their statistics."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.vectors.sample import same_bits, vector
from vsteer.errors import UsageError, VectorError
from vsteer.vectors.derive import (
    content_sha256,
    for_model,
    mention,
    one_layer,
    orthogonal_to,
    random_like,
    sparsified,
    sum_of,
)
from vsteer.vectors.norms import length
from vsteer.vectors.vector import Origin, SteeringVector

ROOT = Path(__file__).parents[2]
RAW = vector({0: [3, 4, 0], 5: [0, -2, 1]}, "v", {0: 10.0, 5: 20.0}, Origin("m", method="pca", pairs=8))


def rows(v: SteeringVector) -> dict[int, list[float]]:
    return {layer: row.tolist() for layer, row in v.directions.items()}


def wide(width: int = 4096) -> SteeringVector:
    noise = np.random.default_rng(0).standard_normal((3, width)).astype(np.float32)
    return SteeringVector("wide", {layer: row * (layer + 1) for layer, row in enumerate(noise)})


def normed(norm: str) -> SteeringVector:
    return vector({0: [3, 4, 0], 5: [0, -2, 1]}, "v", {0: 10.0, 5: 20.0}, Origin(norm=norm))


def test_random_has_the_length_of_each_layer() -> None:
    v = wide()
    random = random_like(v, 7)
    for layer in v.layers:
        # By numpy, in float64: apart by no more than float32's rounding of 4096 values.
        ours, theirs = (np.linalg.norm(x.directions[layer].astype(np.float64)) for x in (random, v))
        assert ours == pytest.approx(theirs, rel=1e-7)
        assert random.directions[layer].dtype == np.float32


def test_random_directions_are_independent() -> None:
    """In 4096 dimensions the cosine of two random directions has a standard deviation of 1/64."""
    v = wide()
    drawn = [random_like(v, seed).directions[layer] for seed in range(6) for layer in v.layers]
    unit = np.stack([row / np.linalg.norm(row) for row in (*drawn, *v.directions.values())])
    cosines = (unit @ unit.T)[np.triu_indices(len(unit), 1)]
    assert np.abs(cosines).max() < 5 / 64
    assert np.std(cosines) == pytest.approx(1 / 64, rel=0.2)


def test_random_components_are_normal() -> None:
    values = np.concatenate(list(random_like(wide(), 3).directions.values()))
    scaled = np.concatenate([row / np.std(row) for row in np.split(values, 3)])
    assert abs(scaled.mean()) < 0.05
    assert np.mean(np.abs(scaled) < 1) == pytest.approx(0.6827, abs=0.02)
    assert np.mean(np.abs(scaled) < 2) == pytest.approx(0.9545, abs=0.01)


def test_the_same_seed_gives_the_same_bytes_in_another_process() -> None:
    code = (
        "from tests.vectors.test_derive import wide\n"
        "from vsteer.vectors.derive import content_sha256, random_like\n"
        "print(content_sha256(random_like(wide(64), 2**40 + 1)))"
    )
    hashes = {
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
        ).stdout
        for _ in range(2)
    }
    assert hashes == {content_sha256(random_like(wide(64), 2**40 + 1)) + "\n"}


def test_random_is_numpys_frozen_generator_scaled() -> None:
    """Bit for bit what RandomState gives for (seed's low and high word, layer), at the vector's length."""
    noise = np.random.RandomState([5, 1, 2]).standard_normal(3).astype(np.float32).astype(np.float64)
    expected = (noise * (5.0 / np.sqrt(np.sum(noise**2)))).astype(np.float32)
    drawn = random_like(vector({2: [3, 4, 0]}), 2**32 + 5)
    assert np.allclose(drawn.directions[2], expected, rtol=2e-7)


def test_a_layers_random_direction_does_not_hang_on_the_other_layers() -> None:
    both = random_like(RAW, 1)
    alone = random_like(vector({5: [0, -2, 1]}), 1)
    assert np.array_equal(both.directions[5], alone.directions[5])


def test_random_of_a_zero_layer_is_zero() -> None:
    assert rows(random_like(vector({1: [0, 0]}), 1)) == {1: [0, 0]}


def test_random_says_so() -> None:
    random = random_like(RAW, 3)
    assert (random.name, random.origin.method, random.origin.norm) == ("v-random-3", "random", "raw")
    assert random.origin.derived == (f"random, seed 3, lengths of v ({content_sha256(RAW)[:12]})",)
    assert random.stream_norms == RAW.stream_norms


@pytest.mark.parametrize("seed", [-1, 2**63])
def test_seeds_out_of_range(seed: int) -> None:
    with pytest.raises(UsageError, match="out of range"):
        random_like(RAW, seed)


def test_one_layer_for_every_layer() -> None:
    assert rows(one_layer(RAW, 5)) == {0: [0, -2, 1], 5: [0, -2, 1]}
    spread = one_layer(RAW, 0, range(4, 6))
    assert rows(spread) == {4: [3, 4, 0], 5: [3, 4, 0]}
    # The stream at layer 5 is as long as it was; at layer 4 it was never measured.
    assert dict(spread.stream_norms) == {5: 20.0}
    assert spread.origin.derived == (f"layer 0 of {mention(RAW)} at every layer",)
    with pytest.raises(VectorError, match="no direction for layer 3"):
        one_layer(RAW, 3)


@pytest.mark.parametrize(
    ("norm", "after"),
    [("raw", "raw"), ("unit", "unit"), ("", ""), ("caa", "derived"), ("residual:0.1", "derived")],
)
def test_the_norm_of_one_layer_elsewhere(norm: str, after: str) -> None:
    """It is as long as it was; but that is neither the other layers' caa mean nor a tenth of their stream."""
    assert one_layer(normed(norm), 0).origin.norm == after


def test_another_models_vector() -> None:
    moved = for_model(RAW, layers=6, hidden_size=3)
    assert same_bits(moved, RAW)
    assert (moved.origin.model_layers, dict(moved.stream_norms)) == (6, {})
    assert moved.origin.derived == ("from m to a model of 6 layers",)
    assert for_model(normed("residual:0.1"), 6, 3).origin.norm == "derived"
    with pytest.raises(VectorError, match="is 3 wide, but the model's stream is 4 wide"):
        for_model(RAW, 6, 4)
    with pytest.raises(VectorError, match="has layer 5, but the model has only layers 0 to 4"):
        for_model(RAW, 5, 3)


def test_orthogonal() -> None:
    """[3, 4, 0] without its part along [0, 2, 0] is [3, 0, 0]; at layer 5 there is little left but the 1."""
    rest = orthogonal_to(RAW, vector({0: [0, 2, 0], 5: [0, -1, 0], 9: [1, 1, 1]}, "w"))
    assert rows(rest) == {0: [3, 0, 0], 5: [0, 0, 1]}
    assert rest.origin.derived[0].startswith("orthogonal to w (")
    assert rest.stream_norms == RAW.stream_norms


def test_orthogonal_in_many_dimensions() -> None:
    v, other = wide(), random_like(wide(), 1)
    rest = orthogonal_to(v, other)
    for layer in v.layers:
        a, b, c = (x.directions[layer].astype(np.float64) for x in (rest, other, v))
        assert abs(a @ b) < 1e-7 * np.linalg.norm(a) * np.linalg.norm(b)
        # What was taken away lies along `other`.
        assert (c - a) @ b / np.linalg.norm(c - a) / np.linalg.norm(b) == pytest.approx(
            np.sign(c @ b), abs=1e-6
        )


def test_nothing_is_orthogonal_to_what_is_parallel_or_zero() -> None:
    v = wide()
    scaled = SteeringVector("s", {layer: row * np.float32(0.1) for layer, row in v.directions.items()})
    with pytest.raises(VectorError, match="are parallel at layer 0"):
        orthogonal_to(v, scaled)
    with pytest.raises(VectorError, match="'z' is zero at layer 0"):
        orthogonal_to(RAW, vector({0: [0, 0, 0], 5: [1, 0, 0]}, "z"))


def test_sum() -> None:
    other = vector({0: [1, 1, 1], 5: [0, 2, 0]}, "w", {0: 10.0, 5: 20.0}, Origin("m", method="dim", pairs=8))
    total = sum_of([RAW, other])
    assert rows(total) == {0: [4, 5, 1], 5: [0, 0, 1]}
    assert rows(sum_of([RAW, other], [2, -0.5])) == {0: [5.5, 7.5, -0.5], 5: [0, -5, 2]}
    # What both say alike is true of the sum, and nothing else.
    assert (total.name, total.origin.model, total.origin.pairs) == ("v+w", "m", 8)
    assert (total.origin.method, total.origin.norm) == ("sum", "raw")
    assert total.origin.derived == (f"sum of 1 * {mention(RAW)}, 1 * {mention(other)}",)
    assert total.stream_norms == RAW.stream_norms
    assert dict(sum_of([RAW, vector(rows(RAW), "w", {0: 11.0, 5: 20.0})]).stream_norms) == {}


def test_sums_that_make_no_sense() -> None:
    with pytest.raises(UsageError, match="nothing to add up"):
        sum_of([])
    with pytest.raises(UsageError, match="can't have the weights"):
        sum_of([RAW], [1, 2])
    with pytest.raises(UsageError, match="can't have the weights"):
        sum_of([RAW], [float("nan")])


def test_sparsified() -> None:
    v = vector({2: [1, -5, 0.5, 3, -3, 2]})
    assert rows(sparsified(v, 1 / 3)) == {2: [0, -5, 0, 3, 0, 0]}
    assert rows(sparsified(v, 0.5)) == {2: [0, -5, 0, 3, -3, 0]}
    assert rows(sparsified(v, 0.001)) == {2: [0, -5, 0, 0, 0, 0]}
    assert rows(sparsified(v, 1)) == rows(v)
    assert sparsified(v, 0.5).origin.derived == ("sparsified to 3 of 6 dimensions by magnitude",)


@pytest.mark.parametrize("fraction", [0, -0.1, 1.01, float("nan")])
def test_no_fraction(fraction: float) -> None:
    with pytest.raises(UsageError, match="no fraction of the dimensions"):
        sparsified(RAW, fraction)


@pytest.mark.parametrize("derive", [orthogonal_to, lambda a, b: sum_of([a, b])])
def test_two_vectors_must_fit(derive: object) -> None:
    assert callable(derive)
    with pytest.raises(VectorError, match="'v' is 3 wide and 'w' is 2"):
        derive(RAW, vector({0: [1, 2], 5: [1, 2]}, "w"))
    with pytest.raises(VectorError, match="'w' has no direction for layer 5"):
        derive(RAW, vector({0: [1, 2, 3]}, "w"))


@pytest.mark.parametrize(
    ("norm", "after"), [("raw", "raw"), ("", ""), ("unit", "derived"), ("caa", "derived")]
)
def test_a_changed_length_loses_its_norm_unless_raw(norm: str, after: str) -> None:
    v, other = normed(norm), vector({0: [0, 2, 0], 5: [0, -1, 0]}, "w", origin=Origin(norm=norm))
    for changed in (orthogonal_to(v, other), sum_of([v, other]), sparsified(v, 0.5)):
        assert changed.origin.norm == after
    assert sum_of([v, normed("derived")]).origin.norm == "derived"


def test_steps_are_kept_in_order() -> None:
    twice = sparsified(one_layer(RAW, 0), 0.5)
    assert [step.split()[0] for step in twice.origin.derived] == ["layer", "sparsified"]
    assert rows(RAW) == {0: [3, 4, 0], 5: [0, -2, 1]}


def test_the_content_hash_is_of_layers_and_numbers() -> None:
    same = vector(rows(RAW), "other name")
    assert content_sha256(RAW) == content_sha256(same)
    assert content_sha256(RAW) != content_sha256(vector({1: [3, 4, 0], 5: [0, -2, 1]}))
    assert length(RAW.directions[0]) == 5
