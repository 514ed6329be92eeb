"""How long a run's vectors are beside the stream they were added to: RUN/vectors/norms.parquet.

It has one row for each vector file and layer, read back from the files that the engine was given. A query
divides |multiplier| times `vector_norm` by `stream_norm`; it may do so only in the model where the stream was
measured, so the table says which that was.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from vsteer.errors import VectorError
from vsteer.files import new_file
from vsteer.store.sound import faults_of_tables
from vsteer.vectors.derive import content_sha256
from vsteer.vectors.files import load
from vsteer.vectors.norms import length

# The folder of a run's vectors, and the table's name in it.
FOLDER, NAME = "vectors", "norms.parquet"
ONE_LAYER = re.compile(r"layer (\d+) of .* at every layer")


def vector_norms(run_folder: Path) -> list[dict[str, Any]]:
    """One record for each layer of each vector file of a run."""
    records = []
    for path in _files(run_folder):
        vector = load(path)
        origin, sha256 = vector.origin, content_sha256(vector)
        for layer, direction in sorted(vector.directions.items()):
            records.append(
                {
                    "file": path.name,
                    "vector_sha256": sha256,
                    "layer": layer,
                    "vector_norm": length(direction),
                    "stream_norm": vector.stream_norms.get(layer),
                    "made_in_model": origin.model,
                    "made_in_revision": origin.revision,
                    "made_in_sha256": origin.model_sha256,
                    "made_at_layer": _one_layer(origin.derived),
                    "derived": "; ".join(origin.derived),
                }
            )
    return records


def write_vector_norms(run_folder: Path) -> None:
    """Write the table, if the run has vectors."""
    import pyarrow as pa

    from vsteer.store.files import write_parquet

    records = vector_norms(run_folder)
    if not records:
        return
    columns = {"layer": pa.int32(), "vector_norm": pa.float64(), "stream_norm": pa.float64()}
    columns["made_at_layer"] = pa.int32()
    schema = pa.schema([(name, columns.get(name, pa.string())) for name in records[0]])
    path = run_folder / FOLDER / NAME
    with new_file(path, VectorError, overwrite=True) as temporary:
        write_parquet(temporary, pa.Table.from_pylist(records, schema))


def norms_are_current(run_folder: Path) -> bool:
    """Whether the table is there, can be read, and no vector file is newer than it."""
    path = run_folder / FOLDER / NAME
    if not path.exists():
        return not _files(run_folder)
    if faults_of_tables(run_folder, [path])[path]:
        return False
    written = path.stat().st_mtime_ns
    return all(file.stat().st_mtime_ns <= written for file in _files(run_folder))


def bring_up_to_date(run_folder: Path) -> str | None:
    """Write the table where it is missing, damaged or older than a vector; why that failed, or None."""
    if not norms_are_current(run_folder):
        try:
            write_vector_norms(run_folder)
        except VectorError as error:
            return error.message
    return None


def _files(run_folder: Path) -> list[Path]:
    return sorted((run_folder / FOLDER).glob("*.safetensors"))


def _one_layer(derived: tuple[str, ...]) -> int | None:
    """The layer that the direction was made at, where one layer's is used at every layer."""
    found = [match for match in map(ONE_LAYER.match, derived) if match]
    return int(found[-1][1]) if found else None
