"""The files that a grid names, found and read: recipes for vectors, vectors in files, questions.

Whatever is wrong with one of them is reported with the line of the grid that names it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Set
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from vsteer.datasets.builtin import find_file
from vsteer.errors import VsteerError
from vsteer.files import reading_hint
from vsteer.grid.axes import Group
from vsteer.grid.problems import Loc
from vsteer.grid.spec import DataVector, FileDirection, FileVector, Grid
from vsteer.identity import identify
from vsteer.models.identity import large_file_sha256
from vsteer.validation import shortened, shown
from vsteer.vectors.derive import for_model
from vsteer.vectors.files import file_sha256, load
from vsteer.vectors.files.one_direction import find_tensor, load_direction
from vsteer.vectors.methods import METHODS
from vsteer.vectors.recipe import Recipe, make_recipe
from vsteer.vectors.unrelated import unrelated_recipes
from vsteer.vectors.vector import SteeringVector, check_place

# The norms of a file that is taken as it is: one was applied when the file was made.
STORED = ("stored",)
Located = Callable[[str], AbstractContextManager[object]]


@dataclass(frozen=True)
class VectorFile:
    """A vector that is taken as it is stored in a file."""

    path: Path
    file_sha256: str

    @property
    def sha256(self) -> tuple[str, ...]:
        return (self.file_sha256,)

    def identity(self) -> dict[str, Any]:
        return {"file": self.file_sha256}

    def describe(self) -> str:
        return f"{self.path.name}, as it is stored"

    def hashed(self) -> str:
        """What the file's hash is now."""
        return file_sha256(self.path)

    def load(self, name: str, width: int | None, located: Located = nullcontext) -> SteeringVector:
        """The vector; `width` is the model's, where it is known."""
        with located("file"):
            return load(self.path, name)


@dataclass(frozen=True)
class DirectionInFile(VectorFile):
    """One direction of a file that holds many."""

    key: str
    index: int | None
    axis: int | None
    layer: int
    where: str
    square: bool  # whether the model's width can't tell rows from columns

    def identity(self) -> dict[str, Any]:
        # Where the width decides, an axis that is written beside it changes nothing.
        axis = {"axis": self.axis} if self.square else {}
        return {
            "file": self.file_sha256,
            "key": self.key,
            "index": self.index or 0,
            "layer": self.layer,
            "where": self.where,
        } | axis

    def describe(self) -> str:
        index = "" if self.index is None else f" {self.index}"
        behind = "the attention of layer" if self.where == "attention" else "layer"
        return f"{shortened(self.key)}{index} of {self.path.name}, behind {behind} {self.layer}"

    def hashed(self) -> str:
        return large_file_sha256(self.path)

    def load(self, name: str, width: int | None, located: Located = nullcontext) -> SteeringVector:
        return load_direction(
            self.path,
            self.key,
            self.layer,
            index=self.index,
            axis=self.axis,
            where=self.where,
            width=width,
            name=name,
            sha256=self.file_sha256,
            located=located,
        )


@dataclass(frozen=True)
class VectorSource:
    """One entry of `vectors:`: what the vector is made from, and the norms in which it is used."""

    name: str
    made_from: Recipe | VectorFile
    norms: tuple[str, ...]  # STORED for a vector's file
    # what the unrelated vectors beside it are made from, by their numbers
    unrelated: Mapping[int, Recipe] = field(default_factory=dict, compare=False, repr=False)

    @property
    def is_file(self) -> bool:
        return isinstance(self.made_from, VectorFile)

    def describe(self) -> str:
        """One line: `refusal: mean_diff of 204 pairs at the token answer; norm raw, unit`."""
        norms = "" if self.norms == STORED else f"; norm {', '.join(self.norms)}"
        return f"{self.name}: {self.made_from.describe()}{norms}"

    def identity(self) -> dict[str, Any]:
        """What decides the vector's numbers before its norm, the model aside."""
        return self.made_from.identity()


def vector_sources(grid: Grid) -> dict[str, VectorSource]:
    sources = {name: _source(grid, name, spec) for name, spec in grid.vectors.items()}
    made: dict[str, str] = {}
    for name, source in sources.items():
        first = made.setdefault(identify(source.identity()), name)
        if first != name:
            place = grid.at(("vectors", first))
            message = f"{name!r} is made as {first!r} {place}: one vector under two names"
            hint = "keep one and give it the norms of both: norm: [raw, unit]; `exclude` takes a norm too"
            raise grid.error(("vectors", name), message, hint)
    averaged = [name for name, source in sources.items() if "caa" in source.norms]
    if len(averaged) == 1:
        message = (
            f"the norm caa is the mean length over several behaviours, and {averaged[0]!r} alone asks for it"
        )
        hint = "give other behaviours the norm caa too, or take it out"
        raise grid.error(("vectors", averaged[0], "norm"), message, hint)
    for name, source in sources.items():
        _check_heads(grid, name, source)
    if grid.controls.shuffled_labels:
        _check_shuffled_labels(grid, sources)
    if grid.controls.unrelated:
        return {name: _with_unrelated(grid, source) for name, source in sources.items()}
    return sources


def _with_unrelated(grid: Grid, source: VectorSource) -> VectorSource:
    at: Loc = ("controls", "unrelated")
    if isinstance(source.made_from, VectorFile):
        message = f"unrelated vectors are made as {source.name!r} is, and that is a file"
        raise grid.error(at, message, "use random_vectors alone, or give its data")
    if source.made_from.heads is not None:
        message = f"unrelated vectors would have other heads than {source.name!r}, at other layers"
        raise grid.error(at, message, "use random_vectors, or method: mean_diff")
    wanted = grid.controls.unrelated
    found = unrelated_recipes(
        source.made_from,
        wanted,
        grid.folder,
        lambda number: located(grid, at if isinstance(wanted, int) else (*at, number)),
    )
    if not found:
        message = f"nothing stands here but the data of {source.name!r} itself"
        raise grid.error(at, message, "name data of other behaviours, or a number of built-in ones")
    return replace(source, unrelated=found)


def _check_heads(grid: Grid, name: str, source: VectorSource) -> None:
    """A vector of heads acts behind the attention, at all of its layers together, as long as it was made."""
    if not isinstance(source.made_from, Recipe) or source.made_from.heads is None:
        return
    for norm in source.norms:
        with located(grid, ("vectors", name, "norm")):
            source.made_from.check_norm(norm)
    for n, axis in enumerate(grid.grid):
        if name in axis.names and not axis.layers.all_together:
            message = f"{name!r} acts at all layers that have one of its heads, together"
            raise grid.error(("grid", n, "layers"), message, "write layers: {together: all}")
    check_places(grid, name, "attention")


def _check_shuffled_labels(grid: Grid, sources: Mapping[str, VectorSource]) -> None:
    """Each vector must have labels to shuffle, and shuffling them must say what chance alone gives."""
    at: Loc = ("controls", "shuffled_labels")
    for name, source in sources.items():
        if isinstance(source.made_from, VectorFile):
            message = f"shuffled labels need the data of {name!r}, which is a file"
            raise grid.error(at, message, "use random_vectors alone, or give its data")
        if why := METHODS[source.made_from.method].unshuffled:
            message = f"shuffled labels say nothing about {name!r}: {why}"
            raise grid.error(at, message, "use random_vectors alone, or method: mean_diff")


def check_file(
    grid: Grid, source: VectorSource, used: Set[Group], layers: int | None, hidden_size: int | None
) -> None:
    """Refuse a vector's file that does not fit the model, its place, or lacks a layer that is steered.

    Each of `used` are layers that are steered at once.
    """
    made_from = source.made_from
    assert isinstance(made_from, VectorFile)
    at: Loc = ("vectors", source.name, "file")
    found: tuple[int, ...]
    zero: set[int] = set()
    if isinstance(made_from, DirectionInFile):
        at = ("vectors", source.name, "layer")
        found, where = (made_from.layer,), made_from.where
    # the model's width decides which side of a matrix is a direction
    if hidden_size is not None or not isinstance(made_from, DirectionInFile):
        vector = made_from.load(
            source.name, hidden_size, lambda setting: located(grid, ("vectors", source.name, setting))
        )
        found, where = vector.layers, vector.origin.where
        zero = {layer for layer, direction in vector.directions.items() if not direction.any()}
        with located(grid, at):
            if layers is not None and hidden_size is not None:
                for_model(vector, layers, hidden_size)
    check_places(grid, source.name, where)
    if missing := sorted({layer for group in used for layer in group} - set(found)):
        message = f"{source.name!r} has no direction at layer {missing[0]}, which the grid steers or compares"
        raise grid.error(
            at, message, f"it has the layers {shortened(', '.join(map(str, found)), 150)}: name these"
        )
    if idle := sorted(group for group in used if zero.issuperset(group)):
        message = f"{source.name!r} is zero at layer {', '.join(map(str, idle[0]))}, where it steers nothing"
        raise grid.error(at, shortened(message, 200), "leave these layers out")


def check_places(grid: Grid, vector: str, where: str) -> None:
    """Refuse a block that acts, or compares the stream, elsewhere than where the vector's directions are."""
    for n, axis in enumerate(grid.grid):
        if axis.when is not None and axis.when.vector == vector and where == "attention":
            message = f"{vector!r} belongs behind a layer's attention, where no stream is compared"
            raise grid.error(("grid", n, "when", "vector"), message, "take a vector of the layer's stream")
        if vector in axis.names:
            setting = "where" if "where" in axis.model_fields_set else "operation"
            with located(grid, ("grid", n, setting)):
                check_place(vector, where, axis.does)


def norm_recipe(norm: str, sources: dict[str, VectorSource]) -> Any:
    """A norm as it enters an identity. `caa` is a mean over all behaviours of the grid that have it."""
    if norm != "caa":
        return norm
    return {
        "caa": sorted(identify(source.identity()) for source in sources.values() if "caa" in source.norms)
    }


def _source(grid: Grid, name: str, spec: DataVector | FileVector | FileDirection) -> VectorSource:
    beside = grid.folder
    if not isinstance(spec, DataVector):
        at: Loc = ("vectors", name, "file")
        path = find_file(spec.file, beside)
        if path is None:
            raise grid.error(at, f"no vector file {shown(spec.file)}", "paths are relative to the grid")
        with located(grid, at):
            if isinstance(spec, FileVector):
                return VectorSource(name, VectorFile(path, file_sha256(path)), STORED)
            sha256 = large_file_sha256(path)
        tensor = find_tensor(path, spec.key, lambda setting: located(grid, ("vectors", name, setting)))
        parts = (spec.key, spec.index, spec.axis, spec.layer, spec.where, tensor.square)
        return VectorSource(name, DirectionInFile(path, sha256, *parts), spec.norm)
    recipe = make_recipe(
        spec.data,
        negative=spec.negative,
        method=spec.method,
        token=spec.token,
        system=spec.system,
        heads=spec.heads,
        name=name,
        beside=beside,
        located=lambda setting: located(grid, ("vectors", name, setting)),
    )
    return VectorSource(name, recipe, spec.norm)


@contextmanager
def located(grid: Grid, loc: Loc) -> Iterator[None]:
    """Put the grid's line to whatever is wrong."""
    try:
        yield
    except VsteerError as error:
        raise grid.error(loc, error.message, error.hint) from None
    except OSError as error:
        why = shortened(error.strerror or str(error))
        hint = reading_hint(error, "name a file that can be read")
        raise grid.error(loc, f"can't read the file: {why}", hint) from None
