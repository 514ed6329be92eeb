"""The steerings that an engine's table holds, loaded anew when one is wanted that it lacks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from vsteer.engine.table import Capacity
from vsteer.errors import UsageError
from vsteer.operations import OPERATIONS, Operation
from vsteer.protocol import Direction, Engine, Steering, Term
from vsteer.validation import did_you_mean
from vsteer.vectors.derive import content_sha256
from vsteer.vectors.vector import VectorTerm

Steer = VectorTerm | Sequence[VectorTerm] | None
Terms = tuple[Term, ...]


def check_operation(name: str) -> Operation:
    if name not in OPERATIONS:
        known = list(OPERATIONS)
        hint = did_you_mean(name, known, f"the operations are {', '.join(known)}")
        raise UsageError(f"no operation is called {name!r}", hint)
    return OPERATIONS[name]


class LoadedSteerings:
    """What `engine` was given to load so far; the oldest go when the table is full."""

    def __init__(self, engine: Engine, capacity: Capacity) -> None:
        self._engine, self._capacity = engine, capacity
        self._directions: dict[str, dict[int, Direction]] = {}
        self._hashes: dict[str, str] = {}  # the vectors' names in the table, by their contents
        self._loaded: dict[Terms, None] = {}

    def load(self, steer: Steer) -> Terms:
        """The terms of a steering, which the engine can serve from now on."""
        given = list(steer) if isinstance(steer, Sequence) else [] if steer is None else [steer]
        for one in given:
            if not isinstance(one, VectorTerm):
                raise UsageError(
                    f"expected a vector at a layer to steer with, found {type(one).__name__}",
                    "such as steer=vector.at(layer=20, multiplier=1.5)",
                )
        terms = tuple(Term(self._name(one), one.layer, one.multiplier, one.operation) for one in given)
        acting = Steering(terms).acting_terms
        if acting and acting not in self._loaded:
            self._check(acting)
            kept = dict.fromkeys([*self._loaded, acting])
            while not self._fits(kept):
                del kept[next(iter(kept))]
            self._engine.load(self._directions, [Steering(one) for one in kept])
            self._loaded = kept
        return terms

    def _name(self, term: VectorTerm) -> str:
        """What the table calls the vector: its name, with a piece of its hash where two have the same."""
        vector, sha256 = term.vector, content_sha256(term.vector)
        if sha256 not in self._hashes:
            name = f"{vector.name}-{sha256[:12]}" if vector.name in self._directions else vector.name
            self._hashes[sha256] = name
            self._directions[name] = dict(vector.directions)
        return self._hashes[sha256]

    def _check(self, terms: Terms) -> None:
        for term in terms:
            module = check_operation(term.operation).module
            if module is not None and module not in self._capacity.modules:
                raise UsageError(
                    f"the engine was started without the operation {term.operation}",
                    f"start it with operations=[{term.operation!r}]",
                )
        most = max(Counter(term.layer for term in terms if term.is_added).values(), default=0)
        if most > self._capacity.terms:
            raise UsageError(
                f"{most} vectors are added at one layer, and the engine has room for {self._capacity.terms}",
                f"start it with terms={most}",
            )

    def _fits(self, steerings: Iterable[Terms]) -> bool:
        cells = list(steerings)
        rows = {(term.vector, term.layer, term.is_added) for terms in cells for term in terms}
        return len(cells) == 1 or (len(cells) < self._capacity.cells and len(rows) < self._capacity.rows)
