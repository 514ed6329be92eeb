"""The queries over mechanism/ give the numbers worked out from its tables in plain Python."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.results.made_up import Cell, Steered, ask, controls, make_run, sweep
from vsteer.report.figures import every_figure
from vsteer.report.page import gathered
from vsteer.results.views import run_names
from vsteer.store.mechanism import write_table

KEY = {"model": "toy-7b", "vector": "warm", "injected_layer": 1, "multiplier": 1.0}
OWN: dict[str, Any] = {"control": "", "control_index": None}
RANDOM = [{"control": "random", "control_index": n} for n in (0, 1)]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_run(tmp_path_factory.mktemp("runs") / "run", sweep("warm", (1,), (1.0,)), lambda cell: 1.0)
    there = folder / "mechanism" / "warm-1"
    there.mkdir(parents=True)
    write_table(there, "edges", list(edges()))
    write_table(there, "nodes", list(nodes()))
    write_table(there, "circuits", list(circuits()))
    write_table(there, "freezing", list(freezing()))
    return folder


def edges() -> Any:
    # writer, reader, the vector's score, the controls', the exact effect
    found = [
        ("injected", "value", 3.0, (0.5, -0.5), 3.5),
        ("injected", "value", -1.0, (0.5, 0.5), -1.5),
        ("injected", "value", 2.0, (0.0, 0.0), 1.0),
        ("head", "unembedding", 4.0, (1.0, 1.0), None),
    ]
    for n, (writer, reader, score, others, effect) in enumerate(found):
        for control, value in ((OWN, score), *zip(RANDOM, others, strict=True)):
            yield {
                **KEY, **control, "writer": writer, "writer_layer": 1, "writer_head": None, "reader": reader,
                "reader_layer": n, "score": value, "score_in_steered": None, "score_in_unsteered": None,
                "effect": effect if control == OWN else None,
            }  # fmt: skip


def nodes() -> Any:
    for head, (score, others) in enumerate([(2.0, (0.1, 0.3)), (-5.0, (0.5, -0.7))]):
        for control, value in ((OWN, score), *zip(RANDOM, others, strict=True)):
            yield {**KEY, **control, "writer": "head", "writer_layer": 2, "writer_head": head, "score": value,
                   "to_unembedding": value / 2}  # fmt: skip


def circuits() -> Any:
    for control, size, edges, logprob in (
        (OWN, 10, 12, 0.5), (OWN, 20, 20, 0.9), (OWN, 40, 41, 1.1),
        (RANDOM[0], 20, 20, 0.1), (RANDOM[1], 20, 20, 0.3),
    ):  # fmt: skip
        yield {**KEY, **control, "size": size, "edges": edges, "share": edges / 100, "texts": 2,
               "positions": 9, "same_token": 0.5, "kl_from_steered": 0.6, "kl_to_steered": 0.7,
               "logprob": logprob}  # fmt: skip


def freezing() -> Any:
    # condition, control: value on each of two questions, whose unsteered values are 1 and 2
    for control, condition, values in (
        (OWN, "steered", (3.0, 6.0)), (OWN, "values", (1.5, 3.5)), (RANDOM[0], "steered", (1.0, 2.5)),
        (RANDOM[0], "values", (1.0, 2.0)),
    ):  # fmt: skip
        for n, value in enumerate(values):
            yield {**KEY, **control, "condition": condition, "measure": "log_odds", "item_id": str(n),
                   "letter_order": "original", "value": value, "unsteered": 1.0 + n,
                   "text": None}  # fmt: skip


def test_edges_by_kind(run: Path) -> None:
    found = {(row["writer"], row["reader"]): row for row in ask("edges_by_kind", run)}
    value, end = found["injected", "value"], found["head", "unembedding"]
    assert (value["edges"], value["total"], value["magnitude"], value["share"]) == (3, 4.0, 6.0, 0.6)
    # the controls' magnitudes are 1 of 2 each
    assert (value["random_share"], value["random_magnitude"], value["controls"]) == (0.5, 1.0, 2)
    # scores rank 3, -1, 2 and effects 3.5, -1.5, 1 alike
    assert (value["patched"], value["exact"]) == (3, pytest.approx(1.0))
    assert (end["share"], end["random_share"], end["patched"], end["exact"]) == (0.4, 0.5, 0, None)


def test_node_scores(run: Path) -> None:
    first, second = ask("node_scores", run)
    assert (first["head"], first["score"], first["random"], first["random_largest"]) == (
        1,
        -5.0,
        pytest.approx(-0.1),
        0.7,
    )
    assert (second["head"], second["score"], second["to_unembedding"]) == (0, 2.0, 1.0)
    assert second["random"] == pytest.approx(0.2)


def test_circuit_faithfulness(run: Path) -> None:
    rows = ask("circuit_faithfulness", run)
    assert [(row["edges"], row["enough"], row["random"], row["edges_needed"]) for row in rows] == [
        (12, False, None, 20),
        (20, True, pytest.approx(0.2), 20),
        (41, True, None, 20),
    ]
    rows = ask("circuit_faithfulness", run, enough="0.65", measure="kl_to_steered")
    assert [row["edges_needed"] for row in rows] == [12, 12, 12]


def test_freezing_costs(run: Path) -> None:
    rows = {row["condition"]: row for row in ask("freezing_costs", run)}
    # effects 2 and 4 whole, 0.5 and 1.5 with the values frozen
    assert (rows["steered"]["effect"], rows["steered"]["cost"]) == (3.0, 0.0)
    assert (rows["values"]["effect"], rows["values"]["cost"]) == (1.0, pytest.approx(2 / 3))
    assert rows["values"]["se"] == pytest.approx(0.5)
    assert (rows["values"]["random_effect"], rows["values"]["random_steered"]) == (0.0, 0.25)


def sparse_logit(cell: Cell) -> float:
    """2 for the whole vector, 1 for the sparse one, and 0.5 for random ones, above an unsteered 0."""
    if not cell.steered.vector:
        return 0.0
    if cell.steered.control:
        return 0.5
    return 2.0 if cell.steered.vector == "warm" else 1.0


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with sparse vectors, and the table of them beside it."""
    whole = sweep("warm", (1,), (1.0,))
    sparse = [Steered("warm-effect-1", 1, 1.0, sha256="cd" * 32)]
    steered = [*whole, *controls(whole, 2), *sparse]
    folder = make_run(tmp_path_factory.mktemp("runs") / "swept", steered, sparse_logit)
    there = folder / "mechanism" / "warm-1"
    there.mkdir(parents=True)
    row = {"sparse": "warm-effect-1", "file": "", "method": "effect", "ratio": 1.0, "seed": None,
           "dimensions": 5, "share": 0.05, "cosine": 0.5}  # fmt: skip
    write_table(there, "sparsity", [{**KEY, **row}])
    return folder


def test_sparsity_curves(swept: Path) -> None:
    (row,) = ask("sparsity_curves", swept)
    assert (row["effect"], row["whole_effect"], row["kept"]) == (1.0, 2.0, 0.5)
    assert (row["random_effect"], row["controls"], row["dimensions"], row["share"]) == (0.5, 2, 5, 0.05)


@pytest.mark.long
def test_the_report_draws_them(run: Path, swept: Path) -> None:
    found: dict[str, Any] = {}
    for folder in (run, swept):
        for one in every_figure(gathered([folder], run_names([folder]))):
            found[one["file"].split("-")[0]] = one["spec"]
    assert {"head_scores", "faithfulness", "sparsity"} <= set(found)
    points = {
        name: next(each["values"] for each in found[name]["data"] if each["name"] == "rows")
        for name in ("head_scores", "faithfulness", "sparsity")
    }
    assert {(each["layer"], each["head"], each["score"]) for each in points["head_scores"]} == {
        (2, "0", 2.0),
        (2, "1", -5.0),
    }
    assert [each["y"] for each in points["faithfulness"]] == [0.5, 0.9, 1.1, pytest.approx(0.2)]
    assert [(each["method"], each["y"]) for each in points["sparsity"]] == [("effect", 0.5)]
