"""Whether the statistics keep what they promise, on simulated runs whose truth is known.

A run's items have a baseline, a bias to one letter and an answer to being steered, each their own; both
letter orders see the same item, and an item's value is the mean of the two. How skewed the answers are
follows the quickstart, where the skewness of a configuration's items goes to 1.4 for logit differences and
2.5 for probabilities: here to 2 for logit differences, with and without room. What falls short has
no target: a heavy tail (skewness 6), which 200 items cover too little, and fewer than 50 items.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from vsteer.analysis.curves import EXPONENTIAL, fit
from vsteer.analysis.doses import fit_line, fit_logistic
from vsteer.analysis.intervals import Numbers, mean_intervals
from vsteer.analysis.peaks import band, best_layer, held_out, near_best
from vsteer.analysis.scaling import compare
from vsteer.bench.figures import Figure
from vsteer.results.statistics_files import ENOUGH_CONTROLS

LEAST, MOST = 0.93, 0.97
LAYERS = 30
# How alike neighbouring layers are.
ALIKE = 0.9
MANY = 4_000_000
SIZES = np.array([0.5, 1, 2, 3, 5, 7, 13, 70])
# The papers' law of the peak effect, sizes in billions.
LAW = {"offset": 0.081, "scale": 2.4, "rate": 0.42}


@dataclass(frozen=True)
class Setting:
    """How items answer to being steered."""

    name: str
    baseline: float  # mean logit difference, unsteered
    effect: float  # mean change of it
    # each item's share of that change, of mean 1
    draw: Callable[[np.random.Generator, tuple[int, int]], Numbers]


SETTINGS = (
    Setting("symmetric", 1.0, 0.8, lambda rng, shape: rng.normal(1, 1, shape)),
    Setting("one-sided", 1.0, 0.8, lambda rng, shape: rng.gamma(2, 1 / 2, shape)),
    Setting("skewed", 1.0, 1.5, lambda rng, shape: rng.gamma(1, 1, shape)),
    Setting("ceiling", 2.5, 1.5, lambda rng, shape: rng.gamma(1, 1, shape)),
)
HEAVY = Setting("heavy tail", 1.0, 0.8, lambda rng, shape: rng.lognormal(-0.5, 1, shape))


def bench_statistics(
    runs: int = 1000, null_runs: int = 500, on_progress: Callable[[str], None] = lambda line: None
) -> list[Figure]:
    figures: list[Figure] = []
    parts = (
        interval_figures(runs),
        band_figures(null_runs),
        peak_figures(null_runs),
        dose_figures(null_runs),
        scaling_figures(null_runs),
    )
    for part in parts:
        for figure in part:
            figures.append(figure)
            on_progress(f"{figure.name}: {figure.note}")
    return figures


def interval_figures(runs: int, seed: int = 1) -> Iterator[Figure]:
    """Intervals of the mean effect of one configuration."""
    rng = np.random.default_rng(seed)
    for setting in (*SETTINGS, HEAVY):
        truth = truths(setting, rng)
        for items in (10, 24, 50, 200):
            effects = item_effects(setting, runs, items, rng)
            for measure, values in effects.items():
                found = mean_intervals(values)
                covers = (found.low <= truth[measure]) & (truth[measure] <= found.high)
                held = setting is not HEAVY and items >= 50
                yield _within(f"{measure} {setting.name}, {items} items", covers, held)


def truths(setting: Setting, rng: np.random.Generator) -> dict[str, float]:
    """The mean effects over all items there could be."""
    parts = [item_effects(setting, 1, MANY // 10, rng) for _ in range(10)]
    return {
        # This one is known without drawing.
        "logit_diff": setting.effect,
        "p_match": float(np.mean([part["p_match"].mean() for part in parts])),
    }


def item_effects(setting: Setting, runs: int, items: int, rng: np.random.Generator) -> dict[str, Numbers]:
    """Arrays [run, item] for each measure, the mean over both letter orders."""
    shape = (runs, items)
    baseline = rng.normal(setting.baseline, 1.5, shape)
    letter = rng.normal(0.4, 0.6, shape)
    change = setting.effect * setting.draw(rng, shape)
    effects = {"logit_diff": np.zeros(shape), "p_match": np.zeros(shape)}
    for order in (1, -1):
        own = change + rng.normal(0, 0.3, shape)
        unsteered = baseline + order * letter
        effects["logit_diff"] += own / 2
        effects["p_match"] += (expit(unsteered + own) - expit(unsteered)) / 2
    return effects


def band_figures(runs: int, seed: int = 2, items: int = 50) -> Iterator[Figure]:
    """How often a vector that is one of the random ones is called outside their band."""
    rng = np.random.default_rng(seed)
    outside, beyond_three = np.zeros(runs, bool), np.zeros(runs, bool)
    for run in range(runs):
        # All are held against one baseline, whose noise is in each of them.
        shared = along_layers(rng, 1, items)
        own = along_layers(rng, 1 + ENOUGH_CONTROLS, 1) * 0.3 + along_layers(rng, 1 + ENOUGH_CONTROLS, items)
        effects = own + shared
        found = band(effects[0], effects[1:])
        outside[run] = bool(found.outside)
        means = effects.mean(2)
        beyond_three[run] = ((means[0] > means[1:4].max(0)) | (means[0] < means[1:4].min(0))).any()
    yield _at_most(f"null vector outside the band of {ENOUGH_CONTROLS}", outside, 0.07)
    yield _reported("null vector somewhere outside three vectors' range", beyond_three)


def along_layers(rng: np.random.Generator, vectors: int, items: int) -> Numbers:
    """[vector, layer, item], of variance 1, neighbouring layers alike."""
    values = rng.normal(size=(vectors, LAYERS, items))
    for layer in range(1, LAYERS):
        values[:, layer] = ALIKE * values[:, layer - 1] + np.sqrt(1 - ALIKE**2) * values[:, layer]
    return values


def peak_figures(runs: int, seed: int = 3) -> Iterator[Figure]:
    """Held-out peaks of a curve with one peak, with a plateau, and with nothing."""
    rng = np.random.default_rng(seed)
    layers = np.arange(LAYERS)
    shapes = {
        "peak": 0.6 * np.exp(-(((layers - 12) / 5) ** 2)),
        "plateau": 0.6 * ((layers > 10) & (layers < 20)),
        "nothing": np.zeros(LAYERS),
    }
    for name, means in shapes.items():
        for items in (50, 200):
            covers, has_best, naive = np.zeros(runs, bool), np.zeros(runs, bool), np.zeros(runs, bool)
            for run in range(runs):
                answers = rng.gamma(2, 1 / 2, items)
                values = np.outer(means, answers) + along_layers(rng, 1, items)[0]
                found = held_out(values)
                low, high = found.interval()
                covers[run] = low <= found.chosen @ means <= high
                best = best_layer(values)
                at_best = mean_intervals(values[[best]])
                naive[run] = at_best.low[0] <= means[best] <= at_best.high[0]
                has_best[run] = near_best(values)[np.argmax(means)]
            yield _at_least(f"held-out peak covered, {name}, {items} items", covers, LEAST)
            yield _at_least(f"best layer among near_layers, {name}, {items} items", has_best, 0.95)
            yield _reported(f"peak on its own items covered, {name}, {items} items", naive)


def dose_figures(runs: int, seed: int = 4, items: int = 50) -> Iterator[Figure]:
    """Intervals of the slopes over multipliers."""
    rng = np.random.default_rng(seed)
    multipliers = np.array([-2.0, -1, 0, 1, 2])

    def drawn(count: int) -> Numbers:
        slopes, baseline = rng.gamma(2, 1 / 2, count), rng.normal(1, 1.5, count)
        return (
            baseline[:, None] + np.outer(slopes, multipliers) + rng.normal(0, 0.3, (count, len(multipliers)))
        )

    everyone = fit_logistic(multipliers, expit(drawn(MANY // 10)))
    assert everyone is not None
    line, logistic = np.zeros(runs, bool), np.zeros(runs, bool)
    for run in range(runs):
        logits = drawn(items)
        straight, curved = fit_line(multipliers, logits).interval, fit_logistic(multipliers, expit(logits))
        line[run] = straight.low[0] <= 1 <= straight.high[0]
        logistic[run] = (
            curved is not None and curved.interval.low[0] <= everyone.slope <= curved.interval.high[0]
        )
    yield _reported(f"slope of the line covered, {items} items", line)
    yield _reported(f"slope of the logistic curve covered, {items} items", logistic)


def scaling_figures(runs: int, seed: int = 5, noise: float = 0.1) -> Iterator[Figure]:
    """Intervals of the papers' law over eight sizes, and families preferred wrongly."""
    rng = np.random.default_rng(seed)
    law = LAW["offset"] + LAW["scale"] * np.exp(-LAW["rate"] * SIZES)
    covers = {name: np.zeros(runs, bool) for name in LAW}
    for run in range(runs):
        curve = fit(EXPONENTIAL, SIZES, law + rng.normal(0, noise, len(SIZES)))
        assert curve is not None
        for name, value in LAW.items():
            low, high = curve.intervals[name]
            covers[name][run] = (low is None or low <= value) and (high is None or value <= high)
    for name, found in covers.items():
        yield _reported(f"{name} of the law covered, 8 sizes", found)
    other = {
        "exponential": law,
        "power": 1.5 * SIZES**-0.6,
        "log_linear": 1.5 - 0.3 * np.log(SIZES),
    }
    for name, values in other.items():
        wrong = np.zeros(max(1, runs // 5), bool)
        for run in range(len(wrong)):
            compared = compare(SIZES, values + rng.normal(0, 2 * noise, len(SIZES)))
            wrong[run] = any(one.preferred and one.family.name != name for one in compared)
        yield _at_most(f"another family preferred where it is {name}, 8 sizes", wrong, 0.05)


def _within(name: str, covers: NDArray[np.bool_], held: bool) -> Figure:
    share = float(covers.mean())
    note = f"covers {share:.1%} of {len(covers)}"
    if not held:
        return Figure(f"{name}: %", 100 * share, note=note)
    inside = 100 * min(share - LEAST, MOST - share)
    return Figure(f"{name}: % inside {LEAST:.0%} to {MOST:.0%}", inside, target=0, note=note)


def _at_most(name: str, happened: NDArray[np.bool_], most: float) -> Figure:
    share = float(happened.mean())
    note = f"{share:.1%} of {len(happened)}"
    return Figure(f"{name}: % below {most:.0%}", 100 * (most - share), target=0, note=note)


def _at_least(name: str, happened: NDArray[np.bool_], least: float) -> Figure:
    share = float(happened.mean())
    return Figure(f"{name}: %", 100 * share, target=100 * least, note=f"{share:.1%} of {len(happened)}")


def _reported(name: str, happened: NDArray[np.bool_]) -> Figure:
    share = float(happened.mean())
    return Figure(f"{name}: %", 100 * share, note=f"{share:.1%} of {len(happened)}")
