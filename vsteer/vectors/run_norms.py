"""How long a run's vectors are beside the stream they were added to: RUN/vectors/norms.parquet.

It has one row for each vector file and layer, read back from the files that the engine was given. A query
divides |multiplier| times `vector_norm` by `stream_norm`; it may do so only in the model where the stream was
measured, so the table says which that was. A vector from elsewhere has a further row for each model of the
run whose stream the run itself measured, in RUN/vectors/stream-*.json.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vsteer.errors import VectorError, VsteerError
from vsteer.files import new_file, parse_json, read_regular
from vsteer.store.schema import NORMS_SCHEMA
from vsteer.store.sound import faults_of_tables, set_aside_damaged
from vsteer.vectors.derive import content_sha256
from vsteer.vectors.files import load
from vsteer.vectors.norms import length
from vsteer.vectors.vector import SteeringVector

# The folder of a run's vectors, and the table's name in it.
FOLDER, NAME = "vectors", "norms.parquet"
ONE_LAYER = re.compile(r"layer (\d+) of .* at every layer")


@dataclass(frozen=True)
class Stream:
    """The mean length of a model's stream at each layer, and over how many prompts a run measured it."""

    model: str  # as the user named it
    revision: str
    sha256: str
    prompts: int
    norms: Mapping[int, float]


def knows_stream(vector: SteeringVector, model: str, *versions: str) -> bool:
    """Whether the vector's file says how long the stream of this model is: by its name, or its hash."""
    origin = vector.origin
    here = origin.model == model or bool({origin.revision, origin.model_sha256} & set(versions) - {""})
    return here and set(vector.layers) <= set(vector.stream_norms)


def write_stream(path: Path, stream: Stream) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with new_file(path, VectorError, overwrite=True) as temporary:
        temporary.write_text(json.dumps(asdict(stream)))


def read_stream(path: Path) -> Stream | None:
    """None where it isn't there or is damaged: it is measured anew."""
    try:
        noted = parse_json(read_regular(path, 2**22))
        norms = {int(layer): float(norm) for layer, norm in noted.pop("norms").items()}
        return Stream(**noted, norms=norms)
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None


def vector_norms(run_folder: Path) -> list[dict[str, Any]]:
    """One record for each layer of each vector file of a run; a damaged one is set aside."""
    records: list[dict[str, Any]] = []
    faults: dict[Path, str | None] = {}
    streams = [stream for path in _streams(run_folder) if (stream := read_stream(path))]
    for path in _files(run_folder):
        try:
            vector = load(path)
        except VectorError as error:
            faults[path] = error.message.removeprefix(str(path)).lstrip(": ")
            continue
        origin, sha256 = vector.origin, content_sha256(vector)
        own = Stream(origin.model, origin.revision, origin.model_sha256, 0, vector.stream_norms)
        foreign = [one for one in streams if not knows_stream(vector, one.model, one.revision, one.sha256)]
        for layer, direction in sorted(vector.directions.items()):
            for stream in (own, *foreign):
                records.append(
                    {
                        "file": path.name,
                        "vector_sha256": sha256,
                        "layer": layer,
                        "vector_norm": length(direction),
                        "stream_norm": stream.norms.get(layer),
                        "made_in_model": stream.model,
                        "made_in_revision": stream.revision,
                        "made_in_sha256": stream.sha256,
                        "made_at_layer": _one_layer(origin.derived),
                        "derived": "; ".join(origin.derived),
                    }
                )
    set_aside_damaged(run_folder, faults, run_folder, "`vsteer run` makes it anew when it steers by it")
    read = {one["file"] for one in records}
    # What was measured of a vector whose file is gone stays true of the rows that it steered.
    return [*(one for one in _before(run_folder) if one["file"] not in read), *records]


def _before(run_folder: Path) -> list[dict[str, Any]]:
    """The records of the table as it is."""
    import pyarrow.parquet as pq

    path = run_folder / FOLDER / NAME
    if list(faults_of_tables(run_folder, {path: NORMS_SCHEMA}).values()) != [None]:
        return []
    records: list[dict[str, Any]] = pq.read_table(path).to_pylist()
    return records


def write_vector_norms(run_folder: Path) -> None:
    """Write the table, if the run has vectors."""
    import pyarrow as pa

    from vsteer.store.files import write_parquet

    records = vector_norms(run_folder)
    if not records:
        return
    path = run_folder / FOLDER / NAME
    with new_file(path, VectorError, overwrite=True) as temporary:
        write_parquet(temporary, pa.Table.from_pylist(records, NORMS_SCHEMA))


def norms_are_current(run_folder: Path) -> bool:
    """Whether the table is there, can be read, and no vector file is newer than it."""
    path = run_folder / FOLDER / NAME
    if not path.exists():
        return not _files(run_folder)
    if faults_of_tables(run_folder, {path: NORMS_SCHEMA})[path]:
        return False
    written = path.stat().st_mtime_ns
    made_from = [*_files(run_folder), *_streams(run_folder)]
    # a link that leads nowhere is set aside when the table is written
    return all(file.exists() and file.stat().st_mtime_ns <= written for file in made_from)


def bring_up_to_date(run_folder: Path) -> str | None:
    """Write the table where it is missing, damaged or older than a vector; why that failed, or None."""
    if not norms_are_current(run_folder):
        try:
            write_vector_norms(run_folder)
        except VsteerError as error:
            return error.message
    return None


def _files(run_folder: Path) -> list[Path]:
    return sorted((run_folder / FOLDER).glob("*.safetensors"))


def _streams(run_folder: Path) -> list[Path]:
    return sorted((run_folder / FOLDER).glob("stream-*.json"))


def _one_layer(derived: tuple[str, ...]) -> int | None:
    """The layer that the direction was made at, where one layer's is used at every layer."""
    found = [match for match in map(ONE_LAYER.match, derived) if match]
    return int(found[-1][1]) if found else None
