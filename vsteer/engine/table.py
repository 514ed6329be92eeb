"""The steering table: what every cell of a grid does at every layer, as a few arrays.

Pure numpy. A cell is a list of terms without its span. `row[layer, cell, slot]` names a direction
in `bank`, `scale[layer, cell, slot]` is its multiplier; cell 0 and bank row 0 are unsteered. The
multipliers of one direction share its row. For an operation with a module of its own,
`placed[module]` has [layer, place, cell] arrays: `row` names the direction, of length 1, that it has there,
and `size` is its multiplier times the vector's length, 0 for an operation without a multiplier. Each cell has
a fingerprint, the hash of what it does, by which prefix-cache blocks and workers know it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from vsteer.errors import EngineError, SteeringFault, UsageError, VectorError
from vsteer.operations import OPERATIONS, PLACES
from vsteer.protocol import Direction, Steering, Term, Vectors


@dataclass(frozen=True)
class Capacity:
    """The table's room on the device. Its shapes are in the compiled graph, so they are fixed at start.

    It is rounded up to powers of two, so that grids of like size share a compiled graph.
    """

    cells: int = 1024
    rows: int = 1024
    terms: int = 1
    # how many tokens of a step can be captured; with 0 the graph has no capture in it
    captures: int = 0
    # what is in the graph beside the add: see operations.graph_modules
    modules: tuple[str, ...] = ()

    @classmethod
    def for_grid(
        cls, cells: int, rows: int, terms: int, captures: int = 0, modules: tuple[str, ...] = ()
    ) -> Capacity:
        """Room for a grid, and never too little for the canary, which has a cell and a row a layer."""

        def up(n: int) -> int:
            return max(1024, 1 << (n - 1).bit_length())

        return cls(up(cells + 1), up(rows + 1), max(1, terms), captures, modules)

    def as_config(self) -> dict[str, Any]:
        return asdict(self)


def direction_sha(direction: Direction) -> str:
    return hashlib.sha256(np.ascontiguousarray(direction, dtype="<f4").tobytes()).hexdigest()


def check_direction(vector: str, layer: int, direction: Direction, hidden_size: int) -> Direction:
    """The direction as float32; an error says what is wrong with it."""
    array = np.asarray(direction, dtype=np.float32)
    if array.ndim != 1 or array.shape[0] != hidden_size:
        shape = "x".join(map(str, array.shape)) or "a scalar"
        raise VectorError(
            f"vector {vector!r} at layer {layer} has width {shape}, but the model's stream is "
            f"{hidden_size} wide",
            hint="was it extracted from another model?",
        )
    bad = int((~np.isfinite(array)).sum())
    if bad:
        raise VectorError(
            f"vector {vector!r} at layer {layer} has {bad} value(s) that are not finite (NaN or infinity)",
            hint="look at how it was made; a vector must be finite at every layer it is used on",
        )
    return array


@dataclass(frozen=True)
class Placed:
    """What cells do by an operation's module, [layers, places, cells]."""

    row: NDArray[np.int32]
    size: NDArray[np.float32]


def placed_keys(module: str) -> tuple[str, str]:
    """Under which names a module's row and size are in a saved table."""
    return f"{module}.row", f"{module}.size"


@dataclass(frozen=True)
class SteeringTable:
    bank: NDArray[np.float32]  # [rows, hidden]
    row: NDArray[np.int32]  # [layers, cells, terms]
    scale: NDArray[np.float32]  # [layers, cells, terms]
    placed: Mapping[str, Placed]  # of each module that is used
    fingerprints: tuple[str, ...]  # one a cell; "" for the unsteered cell 0
    cells: Mapping[tuple[Term, ...], int]  # the acting terms -> their cell

    @classmethod
    def build(
        cls,
        vectors: Vectors,
        steerings: Iterable[Steering],
        layers: int,
        hidden_size: int,
        capacity: Capacity,
    ) -> SteeringTable:
        cells: dict[tuple[Term, ...], int] = {}
        for steering in steerings:
            terms = steering.acting_terms
            if terms and terms not in cells:
                cells[terms] = len(cells) + 1
        rows: dict[tuple[str, int, bool], int] = {}
        bank = [np.zeros(hidden_size, np.float32)]
        shas: dict[tuple[str, int], str] = {}
        for term in dict.fromkeys(term for terms in cells for term in terms):
            of_layer = (term.vector, term.layer)
            _check_term(term, vectors, layers)
            if OPERATIONS[term.operation].needs_direction:
                _check_not_zero(*of_layer, vectors[term.vector][term.layer])
            if (*of_layer, term.is_added) not in rows:
                direction = check_direction(*of_layer, vectors[term.vector][term.layer], hidden_size)
                rows[*of_layer, term.is_added] = len(bank)
                bank.append(direction if term.is_added else _unit(direction))
                shas[of_layer] = direction_sha(direction)
        slots = max((_most_terms_on_a_layer(terms) for terms in cells), default=1)
        for what, needed, room in (
            ("cells", len(cells) + 1, capacity.cells),
            ("vector rows", len(bank), capacity.rows),
            ("terms a layer", slots, capacity.terms),
        ):
            if needed > room:
                raise EngineError(
                    f"the steering table is full: {needed} {what} are needed and there is room for {room}",
                    hint="start the engine with a larger Capacity; Capacity.for_grid computes one",
                )
        placed: dict[str, Placed] = {}
        for operation in {OPERATIONS[term.operation] for terms in cells for term in terms}:
            if operation.module and operation.module not in capacity.modules:
                raise EngineError(
                    f"the engine was started without {operation.noun}, and a steering needs it",
                    hint=f"start it with Capacity(modules=graph_modules([{operation.name!r}]))",
                )
            if operation.module:
                shape = (layers, len(PLACES), len(cells) + 1)
                placed[operation.module] = Placed(np.zeros(shape, np.int32), np.zeros(shape, np.float32))
        row = np.zeros((layers, len(cells) + 1, capacity.terms), np.int32)
        scale = np.zeros((layers, len(cells) + 1, capacity.terms), np.float32)
        fingerprints = [""]
        for terms, cell in cells.items():
            used: dict[int, int] = {}
            taken: dict[str, NDArray[np.bool_]] = {}
            for term in terms:
                of_term = rows[term.vector, term.layer, term.is_added]
                operation = OPERATIONS[term.operation]
                if module := operation.module:
                    places = _places_of(term, taken.setdefault(module, np.zeros((layers, len(PLACES)), bool)))
                    placed[module].row[:, :, cell][places] = of_term
                    if operation.has_multiplier:
                        length = np.linalg.norm(vectors[term.vector][term.layer].astype(np.float64))
                        placed[module].size[:, :, cell][places] = term.multiplier * length
                    continue
                slot = used.get(term.layer, 0)
                used[term.layer] = slot + 1
                row[term.layer, cell, slot] = of_term
                scale[term.layer, cell, slot] = term.multiplier
            fingerprints.append(_fingerprint(terms, shas))
        return cls(np.stack(bank), row, scale, placed, tuple(fingerprints), cells)

    def cell_of(self, steering: Steering) -> int:
        """The cell that does what `steering` asks for; 0 where it asks for nothing."""
        terms = steering.acting_terms
        if not terms:
            return 0
        if terms not in self.cells:
            raise SteeringFault(f"a request asks for a steering that load() was not given: {terms}")
        return self.cells[terms]

    def save(self, path: Path, held: SteeringTable | None = None) -> None:
        """Write what a worker needs, as safetensors: no pickled code ever travels.

        Where the workers hold a table already, `held`, it is what this one, which must begin with it, has
        beyond it.
        """
        rows, cells = (len(held.bank), len(held.fingerprints)) if held else (0, 0)
        if held and not (
            self.fingerprints[:cells] == held.fingerprints and np.array_equal(self.bank[:rows], held.bank)
        ):
            raise SteeringFault("a steering table that grows must begin with what the workers hold")
        hexes = b"".join(bytes.fromhex(print_ or "00" * 32) for print_ in self.fingerprints[cells:])
        arrays: dict[str, NDArray[Any]] = {
            "bank": self.bank[rows:],
            "row": self.row[:, cells:],
            "scale": self.scale[:, cells:],
            **{
                key: array[:, :, cells:]
                for module, of_module in self.placed.items()
                for key, array in zip(placed_keys(module), (of_module.row, of_module.size), strict=True)
            },
            "fingerprint": np.frombuffer(hexes, np.uint8).reshape(-1, 32),
        }
        save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, path)


def read_table_file(path: Path) -> tuple[dict[str, NDArray[Any]], list[str], str]:
    """A saved table's arrays, its fingerprints, and the hash of the file."""
    arrays = load_file(path)
    prints = [line.tobytes().hex() if line.any() else "" for line in arrays.pop("fingerprint")]
    return arrays, prints, hashlib.sha256(path.read_bytes()).hexdigest()


def _places_of(term: Term, taken: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Where in a cell's [layers, places] a term acts, which its module has `taken` then.

    If two directions were ablated at one place, neither would be gone; and a module has room for one.
    """
    operation = OPERATIONS[term.operation]
    places = np.zeros_like(taken)
    layers = slice(None) if operation.every_layer else slice(term.layer, term.layer + 1)
    places[layers, [PLACES.index(place) for place in operation.places]] = True
    if (places & taken).any():
        raise UsageError(
            f"two directions are at one place of layer {term.layer}, for {operation.noun}",
            hint="leave one of them out, or give each a layer of its own",
        )
    taken |= places
    return places


def _check_not_zero(vector: str, layer: int, direction: Direction) -> None:
    if not direction.any():
        raise VectorError(
            f"vector {vector!r} at layer {layer} is zero, so it has no direction",
            hint="leave the layer out",
        )


def _unit(direction: Direction) -> Direction:
    """A zero one stays zero, of which no multiple adds anything."""
    length = float(np.linalg.norm(direction.astype(np.float64))) or 1.0
    return (direction.astype(np.float64) / length).astype(np.float32)


def _check_term(term: Term, vectors: Vectors, layers: int) -> None:
    operation = OPERATIONS.get(term.operation)
    if operation is None:
        raise UsageError(f"unknown operation {term.operation!r}", hint=f"what works: {', '.join(OPERATIONS)}")
    if not operation.has_multiplier and term.multiplier != 1:
        raise UsageError(
            f"the operation {term.operation!r} has no multiplier, and this one has {term.multiplier}",
            hint="leave it out",
        )
    if not abs(term.multiplier) <= float(np.finfo(np.float32).max):
        raise UsageError(
            f"the multiplier {term.multiplier} is not a finite float32 number",
            hint="give a plain number; papers use -2 to 2",
        )
    if term.vector not in vectors:
        raise VectorError(
            f"no vector is named {term.vector!r}", hint=f"known: {', '.join(vectors) or 'none'}"
        )
    if not 0 <= term.layer < layers:
        raise UsageError(
            f"layer {term.layer} does not exist",
            hint=f"the model has layers 0 to {layers - 1}; layer L is the output of decoder block L",
        )
    if term.layer not in vectors[term.vector]:
        have = sorted(vectors[term.vector])
        raise VectorError(
            f"vector {term.vector!r} has no direction for layer {term.layer}",
            hint=f"it has layers {have[0]} to {have[-1]}" if have else "it has no layers at all",
        )


def _most_terms_on_a_layer(terms: tuple[Term, ...]) -> int:
    layers = [term.layer for term in terms if term.is_added]
    return max((layers.count(layer) for layer in set(layers)), default=1)


def _fingerprint(terms: tuple[Term, ...], shas: Mapping[tuple[str, int], str]) -> str:
    """The hash of vector bytes, layers, operations and multipliers, in order.

    The multiplier counts as the float32 that the device multiplies by.
    """
    digest = hashlib.sha256(b"vsteer-cell-1")
    for term in terms:
        multiplier = float(np.float32(term.multiplier)).hex()
        digest.update(f"|{term.layer}:{term.operation}:{multiplier}:{shas[term.vector, term.layer]}".encode())
    return digest.hexdigest()
