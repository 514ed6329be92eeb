"""What `make bench` simulates, smaller: coverage and false claims are within what chance allows."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from scipy import stats

from tests.bench.coverage import band_figures, dose_figures, interval_figures, peak_figures, scaling_figures
from vsteer.bench.figures import Figure

pytestmark = pytest.mark.long


def counted(figure: Figure) -> tuple[int, int]:
    """How often, and out of how many: `covers 94.2% of 1000`, `5.6% of 500`."""
    share, _, runs = figure.note.removeprefix("covers ").split()
    return round(float(share.rstrip("%")) / 100 * int(runs)), int(runs)


def chance(figure: Figure, share: float) -> float:
    """The probability of so few or fewer, if that were the share."""
    return float(stats.binom.cdf(*counted(figure), share))


def test_intervals_cover_what_they_say() -> None:
    held = [figure for figure in interval_figures(300, seed=21) if figure.target is not None]
    # There are four settings, two measures, and 50 or 200 items.
    assert len(held) == 16
    for figure in held:
        assert chance(figure, 0.93) > 0.001, figure
        assert chance(figure, 0.97) < 0.999, figure


def test_a_null_vector_is_rarely_outside_the_band() -> None:
    outside, three = band_figures(300, seed=22)
    assert stats.binom.sf(counted(outside)[0] - 1, 300, 0.07) > 0.001, outside
    # A range of three vectors, layer by layer, is no band.
    assert counted(three)[0] > 250


def test_held_out_peaks_cover_and_near_layers_have_the_best() -> None:
    for figure in peak_figures(100, seed=23):
        if figure.target is not None:
            assert chance(figure, figure.target / 100) > 0.001, figure


@pytest.mark.parametrize("figures", [dose_figures, scaling_figures])
def test_slopes_and_parameters_are_covered(figures: Callable[..., Iterator[Figure]]) -> None:
    for figure in figures(100, seed=24):
        if "covered" in figure.name:
            assert chance(figure, 0.93) > 0.001, figure
        else:
            assert stats.binom.sf(counted(figure)[0] - 1, counted(figure)[1], 0.05) > 0.001, figure
