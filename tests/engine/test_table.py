"""The steering table: rows, scales and fingerprints against values worked out by hand."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest

from vsteer.engine.table import Capacity, SteeringTable, direction_sha, read_table_file
from vsteer.errors import EngineError, SteeringFault, UsageError, VectorError
from vsteer.operations import OPERATIONS, graph_modules
from vsteer.protocol import Direction, Steering, Term, Vectors

LAYERS, WIDTH = 3, 4
ROOM = Capacity(cells=8, rows=8, terms=2)
ABLATION = "vsteer.engine.worker.modules:SetComponent"
ROOM_TO_ABLATE = Capacity(cells=8, rows=8, terms=2, modules=(ABLATION,))


def direction(*values: float) -> Direction:
    return np.array(values, np.float32)


VECTORS: Vectors = {
    "joy": {0: direction(1, 0, 0, 0), 1: direction(0, 1, 0, 0), 2: direction(0, 0, 1, 0)},
    "calm": {1: direction(0, 0, 0, 2)},
}


def add(vector: str, layer: int, multiplier: float) -> Term:
    return Term(vector, layer, multiplier)


def build(*steerings: Steering, vectors: Vectors = VECTORS, capacity: Capacity = ROOM) -> SteeringTable:
    return SteeringTable.build(vectors, steerings, LAYERS, WIDTH, capacity)


def fingerprint(*terms: Term, vectors: Vectors = VECTORS) -> str:
    return build(Steering(terms), vectors=vectors).fingerprints[1]


def test_a_table_by_hand() -> None:
    one = Steering((add("joy", 1, 2.0),))
    minus = Steering((add("joy", 1, -0.5),))
    both = Steering((add("joy", 1, 1.0), add("calm", 1, 3.0), add("joy", 2, 4.0)))
    table = build(one, minus, both)

    assert [table.cell_of(steering) for steering in (one, minus, both)] == [1, 2, 3]
    # row 0 is no vector; the multipliers of one direction share its row
    np.testing.assert_array_equal(table.bank, [[0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 2], [0, 0, 1, 0]])
    no = [0, 0]
    np.testing.assert_array_equal(
        table.row, [[no, no, no, no], [no, [1, 0], [1, 0], [1, 2]], [no, no, no, [3, 0]]]
    )
    np.testing.assert_array_equal(
        table.scale, [[no, no, no, no], [no, [2, 0], [-0.5, 0], [1, 3]], [no, no, no, [4, 0]]]
    )
    assert table.fingerprints[0] == ""
    assert len(set(table.fingerprints)) == 4
    assert [str(a.dtype) for a in (table.bank, table.row, table.scale)] == ["float32", "int32", "float32"]


def test_a_cell_is_a_steering_without_its_span() -> None:
    terms = (add("joy", 1, 2.0),)
    table = build(*(Steering(terms, positions) for positions in ("all", "generated", (3, 5))))
    assert len(table.fingerprints) == 2
    assert table.cell_of(Steering(terms, (7, 8))) == 1


def test_a_multiplier_of_0_is_no_term() -> None:
    table = build(
        Steering((add("joy", 1, 0.0),)), Steering((add("joy", 0, 0.0), add("joy", 1, 2.0))), Steering(())
    )
    assert table.fingerprints == ("", fingerprint(add("joy", 1, 2.0)))
    assert table.cell_of(Steering((add("unheard of", 99, -0.0),))) == 0
    assert table.cell_of(Steering((add("joy", 1, 2.0),))) == 1


def test_an_empty_table() -> None:
    table = build()
    assert (table.bank.shape, table.row.shape, table.fingerprints) == ((1, WIDTH), (LAYERS, 1, 2), ("",))


def test_fingerprints_differ_by_whatever_changes_an_output() -> None:
    joy, calm = add("joy", 1, 2.0), add("calm", 1, 2.0)
    moved = {"joy": {**VECTORS["joy"], 1: direction(0, 1 + 2**-23, 0, 0)}, "calm": VECTORS["calm"]}
    prints = [
        fingerprint(joy),
        fingerprint(joy, vectors=moved),
        fingerprint(calm),
        fingerprint(add("joy", 0, 2.0)),
        fingerprint(add("joy", 1, -2.0)),
        fingerprint(add("joy", 1, 2.0 + 2**-22)),
        fingerprint(joy, calm),
        fingerprint(calm, joy),
        fingerprint(joy, joy),
    ]
    assert all(len(print_) == 64 for print_ in prints)
    assert all(a != b for a, b in itertools.combinations(prints, 2))


def test_fingerprints_are_the_same_for_the_same_output() -> None:
    joy = add("joy", 1, 2.0)
    renamed = {"bliss": {1: np.array([0, 1, 0, 0], np.float64)}}
    assert fingerprint(add("bliss", 1, 2.0), vectors=renamed) == fingerprint(joy)  # type: ignore[arg-type]
    # the device multiplies by a float32
    assert fingerprint(add("joy", 1, 0.1)) == fingerprint(add("joy", 1, float(np.float32(0.1))))
    assert fingerprint(joy, add("calm", 1, 0.0)) == fingerprint(joy)
    # where the cell lies in the table does not matter
    later = build(Steering((add("joy", 0, 1.0),)), Steering((joy,)))
    assert later.fingerprints[2] == fingerprint(joy)


def test_the_layer_is_in_the_fingerprint_of_equal_directions() -> None:
    same = direction(1, 2, 3, 4)
    vectors = {"flat": {0: same, 1: same}}
    assert fingerprint(add("flat", 0, 1.0), vectors=vectors) != fingerprint(
        add("flat", 1, 1.0), vectors=vectors
    )


def test_direction_sha_is_of_the_bytes_as_little_endian_float32() -> None:
    assert direction_sha(direction(1, 2)) == direction_sha(np.array([1, 2], ">f4"))
    assert direction_sha(direction(1, 2)) != direction_sha(direction(2, 1))
    # a view with gaps has the values that it shows
    assert direction_sha(direction(1, 9, 2, 9)[::2]) == direction_sha(direction(1, 2))


def test_a_saved_table_is_what_a_worker_reads(tmp_path: Path) -> None:
    ablates = Steering((Term("joy", 1, operation="ablate"),))
    adds = Steering((add("joy", 1, 2.0),)), Steering((add("calm", 1, 1.0), add("joy", 2, 1.0)))
    table = build(*adds, ablates, capacity=ROOM_TO_ABLATE)
    path = tmp_path / "table.safetensors"
    table.save(path)
    arrays, prints, sha = read_table_file(path)
    assert arrays.keys() == {"bank", "row", "scale", f"{ABLATION}.row", f"{ABLATION}.size"}
    for name in ("bank", "row", "scale"):
        np.testing.assert_array_equal(arrays[name], getattr(table, name))
    np.testing.assert_array_equal(arrays[f"{ABLATION}.row"], table.placed[ABLATION].row)
    np.testing.assert_array_equal(arrays[f"{ABLATION}.size"], table.placed[ABLATION].size)
    assert tuple(prints) == table.fingerprints
    again = tmp_path / "again.safetensors"
    table.save(again)
    assert read_table_file(again)[2] == sha
    build(Steering((add("joy", 1, 2.5),))).save(again)
    assert read_table_file(again)[2] != sha


@pytest.mark.parametrize(
    ("capacity", "message"),
    [
        (Capacity(cells=3, rows=8, terms=2), "4 cells are needed and there is room for 3"),
        (Capacity(cells=8, rows=3, terms=2), "4 vector rows are needed and there is room for 3"),
        (Capacity(cells=8, rows=8, terms=1), "2 terms a layer are needed and there is room for 1"),
    ],
    ids=["cells", "rows", "terms"],
)
def test_a_full_table(capacity: Capacity, message: str) -> None:
    steerings = [
        Steering((add("joy", 1, 2.0),)),
        Steering((add("joy", 1, -0.5),)),
        Steering((add("joy", 1, 1.0), add("calm", 1, 3.0), add("joy", 2, 4.0))),
    ]
    build(*steerings, capacity=Capacity(cells=4, rows=4, terms=2))
    with pytest.raises(EngineError) as error:
        build(*steerings, capacity=capacity)
    assert error.value.message == f"the steering table is full: {message}"
    assert "larger Capacity" in error.value.hint


def test_ablations_by_hand() -> None:
    at_a_layer = Steering((Term("calm", 1, operation="ablate"), add("calm", 1, 3.0)))
    everywhere = Steering((Term("joy", 2, operation="ablate_everywhere"),))
    table = build(at_a_layer, everywhere, capacity=ROOM_TO_ABLATE)

    # an ablated direction has length 1, and is another row than the one that is added
    np.testing.assert_array_equal(table.bank, [[0, 0, 0, 0], [0, 0, 0, 1], [0, 0, 0, 2], [0, 0, 1, 0]])
    # [layer, (embedding, attention, layer), cell]
    behind_layer_1 = [[0, 0, 3], [0, 0, 3], [0, 1, 3]]
    placed = table.placed[ABLATION]
    np.testing.assert_array_equal(placed.row, [[[0, 0, 3]] * 3, behind_layer_1, [[0, 0, 3]] * 3])
    assert not placed.size.any()
    np.testing.assert_array_equal(table.row[1], [[0, 0], [2, 0], [0, 0]])
    np.testing.assert_array_equal(table.scale[1], [[0, 0], [3, 0], [0, 0]])


def test_clamps_and_what_is_added_behind_the_attention_by_hand() -> None:
    """calm is 2 long at layer 1 and joy 1 at layer 2: a size is the multiplier times that."""
    clamp = Steering((Term("calm", 1, -1.5, "clamp"), Term("joy", 2, 0.0, "clamp")))
    behind = Steering((Term("calm", 1, 4.0, "add_attention"), Term("calm", 1, operation="ablate_everywhere")))
    modules = graph_modules(["clamp", "add_attention"])
    table = build(clamp, behind, capacity=Capacity(cells=8, rows=8, terms=1, modules=modules))
    np.testing.assert_array_equal(table.bank, [[0, 0, 0, 0], [0, 0, 0, 1], [0, 0, 1, 0]])
    component = table.placed[ABLATION]
    assert component.row[:, :, 1].tolist() == [[0, 0, 0], [0, 0, 1], [0, 0, 2]]
    assert component.size[:, :, 1].tolist() == [[0, 0, 0], [0, 0, -3.0], [0, 0, 0]]
    assert component.row[:, :, 2].tolist() == [[1] * 3] * 3
    assert not component.size[:, :, 2].any()
    added = table.placed["vsteer.engine.worker.modules:AddBehindAttention"]
    assert added.row[:, :, 2].tolist() == [[0, 0, 0], [0, 1, 0], [0, 0, 0]]
    assert added.size[:, :, 2].tolist() == [[0, 0, 0], [0, 8.0, 0], [0, 0, 0]]
    assert not added.row[:, :, 1].any()
    assert not table.scale.any()


def test_a_clamp_to_zero_is_a_steering_and_adding_nothing_is_none() -> None:
    assert Steering((Term("joy", 1, 0.0, "clamp"),)).acting_terms
    assert not Steering((Term("joy", 1, 0.0, "add_attention"), add("joy", 1, 0.0))).acting_terms


def test_a_zero_direction_can_be_added_beside_others_and_set_by_nothing() -> None:
    vectors: Vectors = {"heads": {0: direction(0, 0, 0, 0), 1: direction(0, 3, 0, 4)}}
    terms = tuple(Term("heads", layer, 2.0, "add_attention") for layer in (0, 1))
    room = Capacity(cells=8, rows=8, terms=2, modules=graph_modules(OPERATIONS))
    table = build(Steering(terms), vectors=vectors, capacity=room)
    added = table.placed["vsteer.engine.worker.modules:AddBehindAttention"]
    sizes, rows = added.size[:, 1, 1], table.bank[added.row[:, 1, 1]]
    np.testing.assert_array_equal(sizes, [0, 10, 0])
    np.testing.assert_allclose(sizes[:, None] * rows, [[0] * 4, [0, 6, 0, 8], [0] * 4], rtol=1e-6)
    clamped = Term("heads", 0, 2.0, "clamp")
    with pytest.raises(VectorError, match="'heads' at layer 0 is zero"):
        build(Steering(terms), Steering((clamped,)), vectors=vectors, capacity=room)


def test_every_operation_is_a_cell_of_its_own() -> None:
    terms = [Term("joy", 1, 1.0, operation) for operation in OPERATIONS]
    room = Capacity(cells=8, rows=8, terms=2, modules=graph_modules(OPERATIONS))
    table = build(*(Steering((term,)) for term in terms), capacity=room)
    assert len(set(table.fingerprints)) == 1 + len(OPERATIONS)


def test_a_direction_that_is_ablated_alone_takes_no_slot() -> None:
    both = Steering((Term("joy", 1, operation="ablate"), add("calm", 1, 1.0)))
    build(both, capacity=Capacity(cells=8, rows=8, terms=1, modules=(ABLATION,)))


def test_ablations_that_cannot_be() -> None:
    two = (Term("joy", 1, operation="ablate"), Term("calm", 1, operation="ablate_everywhere"))
    with pytest.raises(UsageError, match="two directions are at one place of layer 1, for ablation"):
        build(Steering(two), capacity=ROOM_TO_ABLATE)
    clamped = (Term("joy", 1, operation="ablate"), Term("calm", 1, 2.0, "clamp"))
    with pytest.raises(UsageError, match="two directions are at one place of layer 1, for clamping"):
        build(Steering(clamped), capacity=ROOM_TO_ABLATE)
    with pytest.raises(EngineError, match="started without ablation"):
        build(Steering(two[:1]))


def test_a_cell_that_was_not_loaded() -> None:
    with pytest.raises(SteeringFault, match="load\\(\\) was not given"):
        build(Steering((add("joy", 1, 2.0),))).cell_of(Steering((add("joy", 1, 2.5),)))


@pytest.mark.parametrize(
    ("term", "error", "message", "hint"),
    [
        (add("joy", 3, 1.0), UsageError, "layer 3 does not exist", "layers 0 to 2"),
        (add("joy", -1, 1.0), UsageError, "layer -1 does not exist", "layers 0 to 2"),
        (add("anger", 1, 1.0), VectorError, "no vector is named 'anger'", "joy, calm"),
        (add("calm", 0, 1.0), VectorError, "'calm' has no direction for layer 0", "layers 1 to 1"),
        (add("empty", 0, 1.0), VectorError, "'empty' has no direction for layer 0", "no layers at all"),
        (add("wide", 0, 1.0), VectorError, "has width 5, but the model's stream is 4", "another model"),
        (add("square", 0, 1.0), VectorError, "has width 2x2", "another model"),
        (add("scalar", 0, 1.0), VectorError, "has width a scalar", "another model"),
        (add("holed", 0, 1.0), VectorError, "has 2 value(s) that are not finite", "finite"),
        (add("joy", 1, float("nan")), UsageError, "multiplier nan is not a finite", "plain number"),
        (add("joy", 1, float("-inf")), UsageError, "multiplier -inf is not a finite", "plain number"),
        (add("joy", 1, 1e39), UsageError, "multiplier 1e+39 is not a finite", "plain number"),
        (Term("joy", 1, 1.0, "erase"), UsageError, "unknown operation 'erase'", "ablate"),
        (Term("joy", 1, 2.0, "ablate"), UsageError, "no multiplier, and this one has 2.0", "leave it out"),
        (Term("nothing", 0, operation="ablate"), VectorError, "'nothing' at layer 0 is zero", "leave"),
    ],
    ids=lambda value: (
        "-".join((value.vector, str(value.layer), str(value.multiplier))) if isinstance(value, Term) else ""
    ),
)
def test_a_bad_term(term: Term, error: type[Exception], message: str, hint: str) -> None:
    vectors = {
        **VECTORS,
        "empty": {},
        "nothing": {0: np.zeros(4, np.float32)},
        "wide": {0: np.zeros(5, np.float32)},
        "square": {0: np.zeros((2, 2), np.float32)},
        "scalar": {0: np.float32(1)},
        "holed": {0: direction(1, np.nan, np.inf, 0)},
    }
    with pytest.raises(error) as refusal:
        build(Steering((term,)), vectors=vectors)  # type: ignore[arg-type]
    assert message in refusal.value.message  # type: ignore[attr-defined]
    assert hint in refusal.value.hint  # type: ignore[attr-defined]


def test_an_unused_bad_vector_does_no_harm() -> None:
    build(Steering((add("joy", 1, 1.0),)), vectors={**VECTORS, "wide": {0: np.zeros(5, np.float32)}})
