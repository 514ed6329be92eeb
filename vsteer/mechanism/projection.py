"""The unsteered stream's component along a vector at every token of a text, beside a random vector's."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from vsteer.errors import DataError, UsageError, VectorError
from vsteer.mechanism.shades import Scale
from vsteer.results.views import connect_runs, readable
from vsteer.store.database import records
from vsteer.vectors.derive import content_sha256, random_like
from vsteer.vectors.norms import length
from vsteer.vectors.vector import SteeringVector

if TYPE_CHECKING:
    from vsteer.engine.proof.reference import ReferenceEngine

# Where a run keeps them.
FILE = Path("mechanism", "projections.parquet")
SCHEMA = pa.schema(
    {
        "model": pa.string(),
        "vector": pa.string(),
        "vector_sha256": pa.string(),
        "text": pa.int32(),
        "row_id": pa.string(),  # of a run's text; empty for another
        "steering": pa.string(),  # under which a run's text was written
        "layer": pa.int32(),
        "position": pa.int32(),
        "token": pa.string(),
        "generated": pa.bool_(),
        "projection": pa.float64(),
        "random": pa.float64(),
        "random_seed": pa.int64(),
    }
)
OF_A_RUN = """
select r.row_id, p.token_ids as prompt, r.token_ids as response,
       case when r.vector = '' then 'unsteered'
            else concat(r.vector, ' at layer ', array_to_string(r.layers, '+'), ' x ' || r.multiplier)
       end as steering
from (select * from rows where kind = 'open_ended' and status = 'ok' and model = $model and ({where})) r
join prompts p using (run, evaluation, prompt_id)
order by md5(prompt_id), prompt_id, r.vector <> '', r.vector, r.layers, r.multiplier, r.sample, r.row_id
limit {limit}
"""


@dataclass(frozen=True)
class TokenText:
    token_ids: tuple[int, ...]
    start: int  # where the generated part begins; the length where there is none
    row_id: str = ""
    steering: str = ""


@dataclass(frozen=True)
class Projection:
    """A text at one layer, a number for each token."""

    text: TokenText
    layer: int
    tokens: tuple[str, ...]
    vector: NDArray[np.float64]
    random: NDArray[np.float64]


def texts_of_run(run: Path, model: str, where: str, limit: int) -> list[TokenText]:
    """The run's generated texts that fulfil an SQL condition, with their prompts, in an order of hashes."""
    import duckdb

    with connect_runs([run]) as database, readable(run):
        try:
            found = records(database, OF_A_RUN.format(where=where, limit=limit), model=model)
        except duckdb.Error as error:
            reason = str(error).splitlines()[0][:200]
            raise UsageError(f"the condition can't be asked: {reason}", "such as: multiplier = 1") from None
    if not found:
        raise UsageError(f"no text of {model[:100]} in {run} fulfils it", "look at `vsteer show`")
    return [
        TokenText((*row["prompt"], *row["response"]), len(row["prompt"]), row["row_id"], row["steering"])
        for row in found
    ]


def project(
    engine: ReferenceEngine,
    texts: Iterable[TokenText],
    vector: SteeringVector,
    layers: Sequence[int],
    random_seed: int = 0,
) -> Iterator[Projection]:
    """Each text at each layer, in turn. One pass gives all layers."""
    for layer in layers:
        if layer not in vector.directions:
            raise VectorError(
                f"{vector.name!r} has no direction at layer {layer}",
                f"it has layers {vector.layers[0]} to {vector.layers[-1]}",
            )
        if layer >= engine.info.layers:
            raise VectorError(f"the model has no layer {layer}", f"it has {engine.info.layers} layers")
    if vector.hidden_size != engine.info.hidden_size:
        raise VectorError(
            f"{vector.name!r} is {vector.hidden_size} wide, and the model's stream {engine.info.hidden_size}",
            "take a vector of this model",
        )
    random = random_like(vector, random_seed)
    for n, text in enumerate(texts, 1):
        if not 0 < len(text.token_ids) <= engine.info.max_model_len:
            raise DataError(
                f"text {n} has {len(text.token_ids)} tokens, and the model reads {engine.info.max_model_len}",
                "shorten it, or leave it out",
            )
        streams = engine.streams(text.token_ids)
        tokens = tuple(engine.tokenizer.decode([token]) for token in text.token_ids)
        for layer in layers:
            yield Projection(
                text,
                layer,
                tokens,
                _along(streams[layer], vector.directions[layer]),
                _along(streams[layer], random.directions[layer]),
            )


def _along(stream: NDArray[np.float32], direction: NDArray[np.float32]) -> NDArray[np.float64]:
    found: NDArray[np.float64] = stream.astype(np.float64) @ direction.astype(np.float64)
    return found / length(direction)


def as_table(found: Sequence[Projection], model: str, vector: SteeringVector, random_seed: int) -> pa.Table:
    """A row for each token and layer."""
    texts = {id(one.text): n for n, one in enumerate({id(one.text): one for one in found}.values())}
    sha256 = content_sha256(vector)
    rows: list[dict[str, Any]] = [
        {
            "model": model, "vector": vector.name, "vector_sha256": sha256, "text": texts[id(one.text)],
            "row_id": one.text.row_id, "steering": one.text.steering, "layer": one.layer,
            "position": place, "token": token, "generated": place >= one.text.start,
            "projection": float(one.vector[place]), "random": float(one.random[place]),
            "random_seed": random_seed,
        }
        for one in found
        for place, token in enumerate(one.tokens)
    ]  # fmt: skip
    return pa.Table.from_pylist(rows, SCHEMA)


def scale_of(found: Sequence[Projection]) -> Scale:
    """One for all texts at a layer. Their first tokens are left out, since their stream is like no other."""
    vector = np.concatenate([one.vector[1:] for one in found])
    return Scale.of(vector, np.concatenate([one.random[1:] for one in found]))
