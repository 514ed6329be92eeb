"""What a server is started with, from the command line and the steering file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from vsteer.engine.options import EngineOptions
from vsteer.engine.proof.canary import NAME as CANARY
from vsteer.engine.table import Capacity, SteeringTable, check_direction
from vsteer.errors import UsageError
from vsteer.grid.problems import Source
from vsteer.models.hugging_face import load_config
from vsteer.operations import OPERATIONS, graph_modules
from vsteer.run.loading import fetched
from vsteer.serve import projection
from vsteer.serve.catalogue import Catalogue
from vsteer.serve.guard import Guard
from vsteer.serve.steering_file import SteeringFile, read_steering_file
from vsteer.validation import did_you_mean, shown
from vsteer.vectors.files import load


@dataclass(frozen=True)
class Settings:
    folder: Path
    catalogue: Catalogue
    options: EngineOptions
    guard: Guard
    dtype: str
    capacity: Capacity


def make_settings(
    model: str,
    revision: str | None = None,
    *,
    file: Path | None = None,
    vectors: Mapping[str, Path] | None = None,
    engine: Mapping[str, Any] | None = None,
    operations: Sequence[str] = (),
    terms: int = 4,
    max_steerings: int = 1000,
    projections: bool = False,
    dtype: str = "auto",
    guard: Guard | None = None,
) -> Settings:
    """What is wrong with any of it is found here, before the model is loaded."""
    written, files = read_steering_file(file) if file else (SteeringFile(), {})
    own = _checked({"vectors": {name: str(path) for name, path in (vectors or {}).items()}})
    files |= {name: Path(path) for name, path in own.vectors.items()}
    for operation in operations:
        if operation not in OPERATIONS:
            known = f"known: {', '.join(OPERATIONS)}"
            raise UsageError(
                f"no operation is called {shown(operation)}", did_you_mean(operation, OPERATIONS, known)
            )
    if CANARY in files:
        raise UsageError(f"a vector can't be called {CANARY}", "the proof at start uses this name")
    named, loaded = written.steerings, {name: load(path, name) for name, path in files.items()}
    used = {term.operation for steering in named.values() for term in steering.terms}
    catalogue = Catalogue(
        model,
        {name: vector.directions for name, vector in loaded.items()},
        named,
        tuple(name for name in OPERATIONS if name in {"add", *operations, *used}),
        terms,
        {name: vector.origin.where for name, vector in loaded.items()},
    )
    for steering in named.values():
        catalogue.check(steering)
    given = {**written.engine.model_dump(exclude_unset=True), **(engine or {})}
    options: EngineOptions = _checked({"engine": given}).engine
    if written.engine.replicas.most > 1:
        raise UsageError("a server is one engine", "leave replicas out; start a server for each")
    folder = fetched(model, revision)
    capacity = _capacity(folder, catalogue, max_steerings, projection.SLOTS if projections else 0)
    return Settings(folder, catalogue, options, guard or Guard(), dtype, capacity)


def _capacity(folder: Path, catalogue: Catalogue, max_steerings: int, captures: int) -> Capacity:
    """Room for the steerings, for each direction of the vectors, and for the canary's, which stay."""
    config = load_config(folder).get_text_config()
    layers, width = config.num_hidden_layers, config.hidden_size
    modules = graph_modules(catalogue.operations)
    proven = [operation for operation in OPERATIONS.values() if operation.module in modules]
    directions = layers + sum(map(len, catalogue.vectors.values()))
    capacity = Capacity(
        cells=1 + layers * (1 + 2 * len(proven)) + max_steerings,
        # those of other operations have length 1
        rows=1 + directions * (2 if modules else 1),
        terms=catalogue.terms,
        captures=captures,
        modules=modules,
    )
    for name, vector in catalogue.vectors.items():
        for layer, direction in vector.items():
            check_direction(name, layer, direction, width)
    SteeringTable.build(catalogue.vectors, catalogue.steerings.values(), layers, width, capacity)
    return capacity


def _checked(value: dict[str, Any]) -> SteeringFile:
    try:
        return SteeringFile.model_validate(value)
    except ValidationError as error:
        raise Source(value, Path()).explained(error) from None
