"""The files that a grid names, found and read: recipes for vectors, vectors in files, questions.

Whatever is wrong with one of them is reported with the line of the grid that names it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Set
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from vsteer.datasets.builtin import find_file
from vsteer.errors import VsteerError
from vsteer.files import reading_hint
from vsteer.grid.problems import Loc
from vsteer.grid.spec import DataVector, FileVector, Grid
from vsteer.identity import identify
from vsteer.validation import shortened, shown
from vsteer.vectors.derive import for_model
from vsteer.vectors.files import file_sha256, load
from vsteer.vectors.methods import METHODS
from vsteer.vectors.recipe import Recipe, make_recipe
from vsteer.vectors.unrelated import unrelated_recipes


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


@dataclass(frozen=True)
class VectorSource:
    """One entry of `vectors:`: what the vector is made from, and the norms in which it is used."""

    name: str
    made_from: Recipe | VectorFile
    norms: tuple[str, ...]  # for a file "stored": the norm was applied when the file was made
    # what the unrelated vectors beside it are made from, by their numbers
    unrelated: Mapping[int, Recipe] = field(default_factory=dict, compare=False, repr=False)

    @property
    def is_file(self) -> bool:
        return isinstance(self.made_from, VectorFile)

    def describe(self) -> str:
        """One line: `refusal: mean_diff of 204 pairs at the token answer; norm raw, unit`."""
        norms = "" if self.is_file else f"; norm {', '.join(self.norms)}"
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
    grid: Grid, source: VectorSource, used: Set[int], layers: int | None, hidden_size: int | None
) -> None:
    """Refuse a vector's file that does not fit the model, or lacks a layer that is steered with it."""
    at: Loc = ("vectors", source.name, "file")
    assert isinstance(source.made_from, VectorFile)
    with located(grid, at):
        vector = load(source.made_from.path, source.name)
        if layers is not None and hidden_size is not None:
            for_model(vector, layers, hidden_size)
    if missing := sorted(used - set(vector.layers)):
        message = f"{source.name!r} has no direction at layer {missing[0]}, which the grid steers"
        raise grid.error(
            at, message, f"it has the layers {shortened(', '.join(map(str, vector.layers)), 150)}: name these"
        )


def norm_recipe(norm: str, sources: dict[str, VectorSource]) -> Any:
    """A norm as it enters an identity. `caa` is a mean over all behaviours of the grid that have it."""
    if norm != "caa":
        return norm
    return {
        "caa": sorted(identify(source.identity()) for source in sources.values() if "caa" in source.norms)
    }


def _source(grid: Grid, name: str, spec: DataVector | FileVector) -> VectorSource:
    beside = grid.folder
    if isinstance(spec, FileVector):
        at: Loc = ("vectors", name, "file")
        path = find_file(spec.file, beside)
        if path is None:
            raise grid.error(at, f"no vector file {shown(spec.file)}", "paths are relative to the grid")
        with located(grid, at):
            return VectorSource(name, VectorFile(path, file_sha256(path)), ("stored",))
    recipe = make_recipe(
        spec.data,
        negative=spec.negative,
        method=spec.method,
        token=spec.token,
        system=spec.system,
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
