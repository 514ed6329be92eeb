"""The files that a grid names: a built-in behaviour or a path beside the grid, found, hashed and read.

Whatever is wrong with one of them is said with the line of the grid that names it.
"""

from __future__ import annotations

from collections.abc import Callable, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from vsteer.datasets.builtin import behaviours, data_path, parts
from vsteer.datasets.items import ItemSet, PromptSet, UnpairedSets
from vsteer.datasets.readers import read_contrast, read_prompts, read_questions
from vsteer.errors import VsteerError
from vsteer.grid.problems import Loc
from vsteer.grid.spec import DataVector, FileVector, Grid
from vsteer.identity import identify
from vsteer.validation import did_you_mean
from vsteer.vectors.derive import for_model
from vsteer.vectors.files import file_sha256, load

T = TypeVar("T")


@dataclass(frozen=True)
class VectorSource:
    """One entry of `vectors:` with its defaults filled in: what the vector is made from, or its file."""

    name: str
    files: tuple[Path, ...]  # the vector's file, or one or two data files
    sha256: tuple[str, ...]
    norms: tuple[str, ...]  # of a file "stored": it was applied when the file was made
    method: str = ""  # empty for a file
    token: str = ""  # answer, last, or an offset such as -2
    system: str | None = None
    size: str = ""  # as in: 204 pairs

    @property
    def is_file(self) -> bool:
        return not self.method

    def describe(self) -> str:
        """One line: `refusal: mean_diff of 204 pairs at the token answer; norm raw, unit`."""
        if self.is_file:
            return f"{self.name}: {self.files[0].name}, as it is stored"
        made = f"{self.name}: {self.method} of {self.size} at the token {self.token}"
        return f"{made}; norm {', '.join(self.norms)}"

    def recipe(self) -> dict[str, Any]:
        """What decides the vector's numbers before its norm, the model aside."""
        if self.is_file:
            return {"file": self.sha256[0]}
        return {
            "data": list(self.sha256),
            "method": self.method,
            "token": self.token,
            "system": self.system,
        }


def vector_sources(grid: Grid) -> dict[str, VectorSource]:
    sources = {name: _source(grid, name, spec) for name, spec in grid.vectors.items()}
    made: dict[str, str] = {}
    for name, source in sources.items():
        first = made.setdefault(identify(source.recipe()), name)
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
        raise grid.error(
            ("vectors", averaged[0], "norm"),
            message,
            "give other behaviours the norm caa too, or take it out",
        )
    return sources


def check_file(
    grid: Grid, source: VectorSource, used: Set[int], layers: int | None, hidden_size: int | None
) -> None:
    """Refuse a vector's file that does not fit the model, or lacks a layer that is steered with it."""
    at: Loc = ("vectors", source.name, "file")
    vector = _reading(grid, at, lambda: load(source.files[0], source.name))
    if layers is not None and hidden_size is not None:
        _reading(grid, at, lambda: for_model(vector, layers, hidden_size))
    if missing := sorted(used - set(vector.layers)):
        message = f"{source.name!r} has no direction at layer {missing[0]}, which the grid steers"
        raise grid.error(at, message, f"it has the layers {', '.join(map(str, vector.layers))}: name these")


def norm_recipe(norm: str, sources: dict[str, VectorSource]) -> Any:
    """A norm as it enters an identity. `caa` is a mean over behaviours: all of the grid's that ask for it."""
    if norm != "caa":
        return norm
    return {"caa": sorted(identify(source.recipe()) for source in sources.values() if "caa" in source.norms)}


def read_items(grid: Grid, loc: Loc, data: str) -> ItemSet:
    path = find_data(grid, loc, data, "questions")
    return _reading(grid, loc, lambda: read_questions(path))


def read_open(grid: Grid, loc: Loc, data: str) -> PromptSet:
    path = find_data(grid, loc, data, "open")
    return _reading(grid, loc, lambda: read_prompts(path))


def find_data(grid: Grid, loc: Loc, data: str, part: str) -> Path:
    """A built-in behaviour (`refusal`, or one part of it, `refusal/instructions`), or a file by its path.

    A behaviour wins over a file of the same name, which is written `./refusal`.
    """
    behaviour, _, named = data.partition("/")
    if behaviour in behaviours() and (not named or named in parts(behaviour)):
        return _reading(grid, loc, lambda: data_path(behaviour, named or part))
    hint = f"paths are relative to the grid; the behaviours are {', '.join(behaviours())}"
    hint = did_you_mean(data, list(behaviours()), hint)
    return _find_file(grid, loc, data, "no data file and no built-in behaviour", hint)


def _find_file(grid: Grid, loc: Loc, name: str, message: str, hint: str) -> Path:
    try:
        path = grid.folder / Path(name).expanduser()
        there = path.is_file()
    except (OSError, RuntimeError, ValueError):  # a path that no system could have
        there = False
    if not there:
        raise grid.error(loc, f"{message} {name[:200]!r}", hint)
    return path


def _source(grid: Grid, name: str, spec: DataVector | FileVector) -> VectorSource:
    at: Loc = ("vectors", name)
    if isinstance(spec, FileVector):
        path = _find_file(grid, (*at, "file"), spec.file, "no vector file", "paths are relative to the grid")
        sha = _reading(grid, (*at, "file"), lambda: file_sha256(path))
        return VectorSource(name, (path,), (sha,), ("stored",))
    part = "instructions" if spec.method == "dim" and spec.data in behaviours() else "pairs"
    files = [find_data(grid, (*at, "data"), spec.data, part)]
    if spec.negative is not None:
        files.append(find_data(grid, (*at, "negative"), spec.negative, part))
    data = _reading(grid, (*at, "data"), lambda: read_contrast(*files))
    unpaired = isinstance(data, UnpairedSets)
    method = spec.method or ("dim" if unpaired else "mean_diff")
    if unpaired != (method == "dim"):
        held = "two unpaired sets" if unpaired else "pairs"
        hint = "dim is for two unpaired sets, mean_diff and pca are for pairs"
        raise grid.error((*at, "method"), f"the data holds {held}, of which {method} makes no vector", hint)
    # CAA takes the stream at the answer's letter; words and instructions are taken at their last token.
    lettered = isinstance(data, ItemSet) and all(item.lettered for item in data.items)
    token = str(spec.token or ("answer" if lettered else "last"))
    if unpaired and token == "answer":
        raise grid.error((*at, "token"), "unpaired data has no answers", "set token: last, or an offset")
    if isinstance(data, UnpairedSets):
        sources = [data.positive.source, data.negative.source]
        size = f"{len(data.positive.prompts)} and {len(data.negative.prompts)} texts"
    else:
        sources, size = [data.source], f"{len(data.items)} pairs"
    hashes = tuple(dict.fromkeys(source.sha256 for source in sources))
    return VectorSource(name, tuple(files), hashes, spec.norm, method, token, spec.system, size)


def _reading(grid: Grid, loc: Loc, read: Callable[[], T]) -> T:
    try:
        return read()
    except VsteerError as error:
        raise grid.error(loc, error.message, error.hint) from None
    except OSError as error:
        raise grid.error(loc, f"can't read the file: {error}", "name a file that can be read") from None
