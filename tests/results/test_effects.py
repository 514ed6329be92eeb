"""Peaks, asymmetries, curves, letters and transfer: made-up runs give back what was put into them."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import scipy.stats

from tests.results.made_up import Cell, Steered, ask, controls, make_run, sweep, write_vector
from vsteer.vectors.run_norms import write_vector_norms

BOTH = ("original", "swapped")


def logit(p: float) -> float:
    return math.log(p / (1 - p))


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def peaked(cell: Cell) -> float:
    """Unsteered 0.5; layer 3 adds 2 to every item, layer 2 nearly so, layer 4 always 0.1 less, 0 nothing."""
    one, letter = cell.steered, 1.0 if cell.order == "original" else -1.0
    by_layer = {
        None: [0.0] * 4,
        0: [0.0] * 4,
        2: [1.7, 2.1, 2.1, 1.9],
        3: [2.0] * 4,
        4: [1.6, 2.0, 2.0, 1.8],
        6: [-0.5] * 4,
    }
    if one.control:
        return 0.5 + 9 * one.multiplier + letter  # far above the vector: must not be mixed in
    return 0.5 + one.multiplier * by_layer[one.layer][cell.item] + letter * (1 + abs(one.multiplier))


def test_the_peak_is_where_it_was_put_with_the_layers_that_come_near(tmp_path: Path) -> None:
    run = tmp_path / "run"
    sha256 = write_vector(run, "toy", [2.0] * 8, stream=50.0)
    vectors = sweep("toy", (0, 2, 3, 4, 6), (-1.0, 1.0), sha256=sha256)
    make_run(run, [*vectors, *controls(vectors, 2)], peaked, orders=BOTH)
    write_vector_norms(run)
    down, up = ask("layer_peaks", run)
    for found, sign in ((down, -1), (up, 1)):
        assert (found["multiplier"], found["peak_layer"], found["peak_depth"]) == (sign, 3, 0.5)
        # the letter adds and takes away: both orders of an item together, or the error would be large
        assert found["effect"] == pytest.approx(sign * 2.0)
        assert found["effect_se"] == pytest.approx(0.0, abs=1e-12)
        assert (found["layers_swept"], found["wrong_way_layers"], found["items"]) == (5, 1, 4)
        assert (found["norm"], found["relative_norm"]) == ("raw", pytest.approx(2 / 50))


def test_scaling_reads_sizes_from_names_and_finds_the_law(tmp_path: Path) -> None:
    """Peaks of y = 0.081 + 2.4 exp(-0.42 x) at every size, at 0.375 of depth."""
    sizes = ("0.5", "1", "2", "3", "5", "7", "13", "70")

    def law(billions: float) -> float:
        return 0.081 + 2.4 * math.exp(-0.42 * billions)

    runs = []
    for size in sizes:

        def says(cell: Cell, size: str = size) -> float:
            at = {None: 0.0, 1: 0.5, 2: 1.0, 5: 0.3}[cell.steered.layer]
            return at * law(float(size)) * cell.steered.multiplier

        name = f"toy/Model-{size}b-chat"
        runs.append(make_run(tmp_path / size, sweep("toy", (1, 2, 5), (1.0,)), says, model=name))
    found = ask("scaling", *runs)
    assert [row["billions"] for row in found] == [float(size) for size in sizes]
    assert [row["effect"] for row in found] == pytest.approx([law(float(size)) for size in sizes])
    assert {row["peak_depth"] for row in found} == {0.375}


@pytest.mark.parametrize(
    ("name", "billions"),
    [
        ("meta-llama/Llama-2-7b-chat-hf", 7.0),
        ("smollm2-135m-instruct", 0.135),
        ("Qwen/Qwen2.5-0.5B-Instruct", 0.5),
        ("mistralai/Mixtral-8x7B-v0.1", None),
        ("deepseek/r1-70b-into-8b", None),
        ("gpt2", None),
    ],
)
def test_a_size_is_read_from_a_name_only_where_it_says_one(
    tmp_path: Path, name: str, billions: float | None
) -> None:
    run = make_run(tmp_path / "run", sweep("toy", (1,), (1.0,)), lambda cell: 0.0, model=name)
    assert [row["billions"] for row in ask("scaling", run)] == [billions]


CAA = {  # published: mean answer probability at multiplier -1, 0, 1 (Llama 2 7B chat, layer 13)
    "coordination": (0.15, 0.30, 0.75),
    "corrigibility": (0.20, 0.64, 0.91),
    "hallucination": (0.39, 0.81, 0.90),
    "myopic reward": (0.40, 0.75, 0.73),
    "survival instinct": (0.27, 0.34, 0.62),
    "sycophancy": (0.54, 0.69, 0.62),
    "refusal": (0.42, 0.74, 0.89),
}


def test_the_caa_papers_table_gives_back_its_asymmetry(tmp_path: Path) -> None:
    steered = [
        Steered(name, 5, m, norm="caa", evaluation=f"choice:{name}") for name in CAA for m in (-1.0, 1.0)
    ]

    def says(cell: Cell) -> float:
        name = cell.steered.evaluation.removeprefix("choice:")
        return logit(CAA[name][1 + int(cell.steered.multiplier)])

    run = make_run(tmp_path / "run", steered, says, items=3)
    found = {row["vector"]: row for row in ask("sign_asymmetry", run)}
    assert set(found) == set(CAA)
    for name, (minus, zero, plus) in CAA.items():
        row = found[name]
        assert row["effect_p_minus"] == pytest.approx(minus - zero)
        assert row["effect_p_plus"] == pytest.approx(plus - zero)
        assert row["asymmetry_p"] == pytest.approx((zero - minus) - (plus - zero))
        assert row["asymmetry"] == pytest.approx((logit(zero) - logit(minus)) - (logit(plus) - logit(zero)))
    # by hand: refusal loses .32 of .74, gains .15 of .26: which sign is stronger turns with the measure
    refusal = found["refusal"]
    assert refusal["asymmetry_p"] == pytest.approx(0.17)
    assert refusal["asymmetry"] == pytest.approx(0.324, abs=1e-3)
    assert refusal["headroom_minus"] == pytest.approx(-0.32 / 0.74)
    assert refusal["headroom_plus"] == pytest.approx(0.15 / 0.26)
    assert refusal["asymmetry_headroom"] == pytest.approx(0.32 / 0.74 - 0.15 / 0.26)
    assert refusal["norm"] == "caa"
    curves = {row["vector"]: row["monotone"] for row in ask("multiplier_curves", run)}
    # two behaviours are not monotone at 7B
    assert {name for name, monotone in curves.items() if not monotone} == {"myopic reward", "sycophancy"}


def test_the_asymmetrys_error_is_of_pairs(tmp_path: Path) -> None:
    """Items differ widely, asymmetries little: 0.2, 0.4, 0.6 have mean 0.4 and error 0.2 / sqrt(3)."""

    def says(cell: Cell) -> float:
        size, m = 5.0 * cell.item, cell.steered.multiplier
        return m * size if m >= 0 else m * (size + 0.2 * (cell.item + 1))

    (row,) = ask("sign_asymmetry", make_run(tmp_path / "r", sweep("toy", (1,), (-1.0, 1.0)), says, items=3))
    assert row["asymmetry"] == pytest.approx(0.4)
    assert row["asymmetry_se"] == pytest.approx(0.2 / math.sqrt(3))
    assert row["items"] == 3


def test_multiplier_curves_go_through_the_unsteered_model(tmp_path: Path) -> None:
    run = make_run(
        tmp_path / "run",
        sweep("toy", (1, 2), (-2.0, -0.5, 1.0)),
        lambda cell: 0.3 + cell.steered.multiplier * (cell.steered.layer or 0),
    )
    found = ask("multiplier_curves", run, layer="2")
    assert [row["multiplier"] for row in found] == [-2.0, -0.5, 0.0, 1.0]
    assert [row["effect"] for row in found] == pytest.approx([-4.0, -1.0, 0.0, 2.0])
    assert [row["p_match"] for row in found] == pytest.approx(list(map(sigmoid, [-3.7, -0.7, 0.3, 2.3])))
    assert all(row["monotone"] for row in found)
    assert {row["layers"][0] for row in ask("multiplier_curves", run)} == {1, 2}


def test_a_vector_that_moves_the_letter_has_no_effect_and_a_gap(tmp_path: Path) -> None:
    """It adds 1.5 to whatever is called A: the match in the original order, the other when swapped."""

    def says(cell: Cell) -> float:
        towards_a = 1.5 if cell.order == "original" else -1.5
        return 0.2 + cell.steered.multiplier * towards_a

    run = make_run(tmp_path / "run", sweep("toy", (1,), (1.0,)), says, orders=BOTH)
    baseline, row = ask("letter_bias", run)
    assert (baseline["multiplier"], row["multiplier"]) == (0.0, 1.0)
    assert row["effect"] == pytest.approx(0.0)
    assert (row["effect_original"], row["effect_swapped"]) == pytest.approx((1.5, -1.5))
    assert (row["order_gap"], row["order_gap_se"]) == pytest.approx((1.5, 0.0))
    p_first = (sigmoid(1.7) + 1 - sigmoid(-1.3)) / 2
    assert row["p_first"] == pytest.approx(p_first)
    assert baseline["p_first"] == pytest.approx(0.5)
    assert row["letter_shift"] == pytest.approx(p_first - 0.5)
    assert (row["follows_letter"], row["baseline_follows_letter"]) == (1.0, 0.0)


@pytest.mark.parametrize(
    ("strongest", "count", "expected"),
    [
        (0.5, 19, {"exceeded_by": 0, "p_value": 1 / 20, "outside": True}),
        (0.95, 19, {"exceeded_by": 1, "p_value": 2 / 20, "outside": False}),
        (0.5, 18, {"exceeded_by": 0, "p_value": 1 / 19, "outside": None}),
    ],
)
def test_the_vector_is_held_against_each_controls_own_maximum(
    tmp_path: Path, strongest: float, count: int, expected: dict[str, Any]
) -> None:
    """The vector's largest is 0.9, negative, at layer 2. Control 4's stands at another layer."""

    def says(cell: Cell) -> float:
        one = cell.steered
        if not one.vector:
            return 1.0
        if not one.control:
            return 1.0 + (-0.9 if (one.layer, one.multiplier) == (2, -1.0) else 0.1)
        return 1.0 + (strongest if (one.index, one.layer) == (4, 1) else 0.2)

    vectors = sweep("toy", (1, 2), (-1.0, 1.0))
    run = make_run(tmp_path / "run", [*vectors, *controls(vectors, count)], says)
    (row,) = ask("controls", run)
    assert {name: row[name] for name in expected} == pytest.approx(expected)
    assert (row["control"], row["controls"], row["layers"], row["multiplier"]) == ("random", count, [2], -1.0)
    assert (row["largest"], row["control_largest"]) == pytest.approx((0.9, strongest))
    bands = {(b["layers"][0], b["multiplier"]): b for b in ask("control_bands", run)}
    assert bands[1, 1.0]["control_high"] == pytest.approx(strongest)
    assert bands[2, 1.0]["control_high"] == pytest.approx(0.2)
    assert bands[2, -1.0]["effect"] == pytest.approx(-0.9)


def test_a_control_that_was_not_everywhere_is_not_counted(tmp_path: Path) -> None:
    vectors = sweep("toy", (1, 2), (1.0,))
    some = [*controls(vectors, 2), *controls(vectors[:1], 3)]
    (row,) = ask("controls", make_run(tmp_path / "run", [*vectors, *some], lambda cell: 1.0))
    assert row["controls"] == 2


def test_steerability_agrees_with_scipy(tmp_path: Path) -> None:
    multipliers = (-2.0, -1.0, 1.0, 2.0)

    def says(cell: Cell) -> float:
        m, slope = cell.steered.multiplier, (1.0, 0.5, -0.3)[cell.item]
        return 0.4 + cell.item + slope * m + 0.1 * math.sin(7 * m + cell.item) * (m != 0)

    run = make_run(tmp_path / "run", sweep("toy", (1,), multipliers), says, items=3)
    points = [0.0, *multipliers]
    lines, ranks = [], []
    for item in range(3):
        values = [says(Cell(Steered("toy", 1, m) if m else Steered(), item, "original")) for m in points]
        lines.append(scipy.stats.linregress(points, values))
        ranks.append(scipy.stats.spearmanr(points, values).statistic)
    found = {row["question_id"]: row for row in ask("item_slopes", run)}
    assert [found[f"item-{n}"]["slope"] for n in range(3)] == pytest.approx([line.slope for line in lines])
    assert [found[f"item-{n}"]["rank_correlation"] for n in range(3)] == pytest.approx(ranks)
    assert [found[f"item-{n}"]["wrong_way"] for n in range(3)] == [False, False, True]
    (row,) = ask("steerability", run)
    assert row["slope"] == pytest.approx(sum(line.slope for line in lines) / 3)
    assert row["share_wrong_way"] == pytest.approx(1 / 3)
    assert (row["multipliers"], row["items"]) == (5, 3)


def test_ties_share_their_rank_as_scipys_do(tmp_path: Path) -> None:
    values = {-2.0: 0.0, -1.0: 0.0, 0.0: 0.0, 1.0: 1.0, 2.0: 1.0}
    run = make_run(
        tmp_path / "run",
        sweep("toy", (1,), [m for m in values if m]),
        lambda cell: values[cell.steered.multiplier],
        items=1,
    )
    (row,) = ask("item_slopes", run)
    expected = scipy.stats.spearmanr(list(values), list(values.values())).statistic
    assert row["rank_correlation"] == pytest.approx(expected)


def test_a_system_prompt_and_a_vector_that_take_each_others_room(tmp_path: Path) -> None:
    """The prompt adds 1, the vector 2, both together 2.5: an interaction of -0.5."""
    plain = sweep("toy", (1,), (1.0,))
    prompted = [replace(one, system="brave") for one in plain]

    def says(cell: Cell) -> float:
        steered, asked = cell.steered.vector != "", cell.steered.system != ""
        return 0.1 + {(0, 0): 0.0, (0, 1): 1.0, (1, 0): 2.0, (1, 1): 2.5}[steered, asked]

    run = make_run(tmp_path / "run", [*plain, *prompted], says)
    alone, both = ask("system_prompt_interaction", run)
    assert (alone["vector"], both["vector"], both["system"]) == ("", "toy", "brave")
    assert (alone["prompt_effect"], both["prompt_effect"]) == pytest.approx((1.0, 1.0))
    assert (both["effect_without"], both["effect_with"], both["interaction"]) == pytest.approx((2, 1.5, -0.5))
    assert both["p_both"] == pytest.approx(sigmoid(2.6))


def test_a_system_prompt_that_is_a_control_stands_alone(tmp_path: Path) -> None:
    steered = [*sweep("toy", (1,), (1.0,)), Steered(control="system", system="positive")]
    run = make_run(tmp_path / "run", steered, lambda cell: 1.0 if cell.steered.system else 0.25)
    (row,) = ask("system_prompt_interaction", run)
    assert (row["vector"], row["prompt_effect"]) == ("", pytest.approx(0.75))


def test_one_layers_direction_at_the_others(tmp_path: Path) -> None:
    run = tmp_path / "run"
    derived = ("layer 2 of toy (abc) at every layer",)
    sha256 = write_vector(run, "toy-2", [3.0] * 4, 60.0, derived=derived)
    make_run(
        run,
        sweep("toy-2", (1, 2, 3), (1.0,), sha256=sha256),
        lambda cell: {None: 0.0, 1: 0.5, 2: 2.0, 3: 1.0}[cell.steered.layer] * (1 + 0.01 * cell.item),
    )
    write_vector_norms(run)
    found = ask("layer_transfer", run)
    assert [(row["made_at_layer"], row["layer"]) for row in found] == [(2, 1), (2, 2), (2, 3)]
    assert [row["share"] for row in found] == pytest.approx([0.25, 1.0, 0.5])


def test_a_vector_of_another_model(tmp_path: Path) -> None:
    run = tmp_path / "run"
    own = write_vector(run, "own", [3.0] * 4, 60.0)
    other = write_vector(run, "other", [5.0] * 4, 99.0, model="toy-13b")
    steered = [Steered("own", 1, 1.0, sha256=own), Steered("other", 1, 1.0, sha256=other)]
    says = {"": 0.0, "own": 2.0, "other": 0.5}
    make_run(run, steered, lambda cell: says[cell.steered.vector] * (1 + 0.01 * cell.item))
    write_vector_norms(run)
    (row,) = ask("model_transfer", run)
    assert (row["made_in_model"], row["model"], row["own_vector"]) == ("toy-13b", "toy-7b", "own")
    assert row["share"] == pytest.approx(0.25)
    # the stream of 13B says nothing of 7B's
    relative = {row["vector"]: row["relative_norm"] for row in ask("layer_peaks", run)}
    assert relative == {"own": pytest.approx(3 / 60), "other": None}
