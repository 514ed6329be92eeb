"""edges.parquet, nodes.parquet, positions.parquet and dimensions.parquet of an attribution."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from vsteer.mechanism.analysis import Analysis, Scores, controls
from vsteer.mechanism.graph import Writer
from vsteer.store.mechanism import write_table

Row = dict[str, Any]


def write_edge_tables(analysis: Analysis, scores: Scores, effects: Mapping[tuple[int, int], float]) -> None:
    """`effects` are those of the edges that were patched."""
    path, key = analysis.folder.path, analysis.settings.key
    write_table(path, "edges", edge_rows(analysis, scores, effects))
    write_table(path, "nodes", node_rows(analysis, scores))
    write_table(path, "positions", position_rows(analysis, scores))
    direction = analysis.vectors[0].directions[analysis.settings.layer]
    rows: list[Row] = []
    for place, control in controls(analysis.settings.controls):
        given = scores.mean(place, "dimensions")
        values = analysis.vectors[place].directions[analysis.settings.layer]
        rows += [
            {**key, **control, "dimension": n, "value": float(values[n]), "score": float(given[n])}
            for n in range(len(direction))
        ]
    write_table(path, "dimensions", rows)


def edge_rows(analysis: Analysis, scores: Scores, effects: Mapping[tuple[int, int], float]) -> list[Row]:
    graph, key = analysis.graph, analysis.settings.key
    by_writer = {
        "steered": scores.only(lambda text: text.written == "steered"),
        "unsteered": scores.only(lambda text: text.written == "unsteered"),
    }
    rows = []
    for place, control in controls(analysis.settings.controls):
        mean = scores.mean(place)
        parts = {
            f"score_in_{name}": part.mean(place) if part.positions else None
            for name, part in by_writer.items()
        }
        for writer, reader in np.argwhere(graph.edges).tolist():
            rows.append(
                {
                    **key,
                    **control,
                    **_writer(graph.writers[writer]),
                    "reader": graph.readers[reader].kind,
                    "reader_layer": graph.readers[reader].layer,
                    "score": mean[writer, reader],
                    **{name: None if part is None else part[writer, reader] for name, part in parts.items()},
                    "effect": effects.get((writer, reader)) if place == 0 else None,
                }
            )
    return rows


def node_rows(analysis: Analysis, scores: Scores) -> list[Row]:
    rows = []
    for place, control in controls(analysis.settings.controls):
        mean = scores.mean(place)
        for n, writer in enumerate(analysis.graph.writers):
            sums = {"score": mean[n].sum(), "to_unembedding": mean[n, -1]}
            rows.append({**analysis.settings.key, **control, **_writer(writer), **sums})
    return rows


def position_rows(analysis: Analysis, scores: Scores) -> list[Row]:
    tokens = analysis.model.tokenizer
    return [
        {
            **analysis.settings.key,
            "text_id": text.text_id,
            "written": text.written,
            "position": position,
            "steered_token_id": steered,
            "unsteered_token_id": unsteered,
            "steered_token": tokens.decode([steered]),
            "unsteered_token": tokens.decode([unsteered]),
        }
        for text, found in zip(scores.texts, scores.found, strict=True)
        for position, steered, unsteered in zip(
            found.positions.tolist(), found.steered.tolist(), found.unsteered.tolist(), strict=True
        )
    ]


def _writer(writer: Writer) -> Row:
    return {
        "writer": writer.kind,
        "writer_layer": writer.layer,
        "writer_head": writer.head if writer.kind == "head" else None,
    }
