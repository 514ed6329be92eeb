"""circuits.parquet and circuit_overlaps.parquet: chosen on one half of the texts, measured on the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple

import numpy as np

from vsteer.errors import DataError, UsageError
from vsteer.mechanism.analysis import Analysis, OnProgress, Scores, stored_scores, vectors_of
from vsteer.mechanism.circuits import Sums, circuits, compared, overlap, random_circuits
from vsteer.mechanism.edge_tables import Row
from vsteer.mechanism.folder import Folder
from vsteer.mechanism.graph import Graph, Mask
from vsteer.mechanism.texts import Text
from vsteer.store.mechanism import write_table

# The paper's range; a graph with fewer edges has only the smaller ones.
SIZES = (100, 200, 400, 600, 800, 1000, 1500)


def write_circuits(
    analysis: Analysis, scores: Scores, sizes: Sequence[int], on_progress: OnProgress
) -> list[Row]:
    """`on_progress` is called once for each text that is measured on."""
    graph, settings = analysis.graph, analysis.settings
    edges = int(graph.edges.sum())
    chosen_on, measured_on = scores.halves
    if not measured_on.texts:
        raise DataError(
            "only one text has positions at which the steering changes the most likely token",
            "circuits are chosen on one half of the texts and measured on the other: give more texts",
        )
    wanted = [size for size in dict.fromkeys(sizes) if size < edges]
    if not wanted:
        raise UsageError(f"the graph has {edges} edges, no more than {min(sizes)}", "give smaller --sizes")
    own = circuits(graph, chosen_on.mean(0), wanted)
    found: dict[tuple[str, int | None, int], Mask] = {("", None, size): own[size] for size in wanted}
    counts = {size: int(mask.sum()) for size, mask in own.items()}
    for n in range(max(1, settings.controls)):
        drawn = random_circuits(graph, counts, settings.seed + n)
        found |= {("random", n, size): mask for size, mask in drawn.items()}
    sums = dict.fromkeys(found, Sums(*[0.0] * 9))
    for text in measured_on.texts:
        for name, measured in zip(found, _measured(analysis, text, list(found.values())), strict=True):
            sums[name] += measured
        on_progress()
    rows: list[Row] = [
        {
            **settings.key,
            "control": control,
            "control_index": index,
            "size": size,
            "edges": int(mask.sum()),
            "share": mask.sum() / edges,
            "texts": len(measured_on.texts),
            "positions": int(sums[control, index, size].positions),
            **sums[control, index, size].measures,
        }
        for (control, index, size), mask in found.items()
    ]
    write_table(analysis.folder.path, "circuits", rows)
    return rows


def _measured(analysis: Analysis, text: Text, masks: Sequence[Mask]) -> list[Sums]:
    """Each circuit's sums on one text. The folder keeps them, so that an interrupted measuring goes on."""
    name, packed = f"{text.text_id}-circuits", np.packbits(masks)
    there = analysis.folder.done(name)
    if there is None or set(there) != {"masks", "sums"} or not np.array_equal(there["masks"], packed):
        case = analysis.question().case(analysis.model, text)
        sums = np.array([astuple(compared(case, mask)) for mask in masks])
        there = {"masks": packed, "sums": sums}
        analysis.folder.put_done(name, there)
    return [Sums(*row) for row in there["sums"].tolist()]


def write_overlaps(folder: Folder, graph: Graph, others: Sequence[Folder], sizes: Sequence[int]) -> list[Row]:
    """Of the folder's circuits with those of its random control, and of other folders' vectors."""
    settings = folder.settings
    vectors, scores = vectors_of(folder), stored_scores(folder)
    compared_with = [(vectors[n + 1], scores.mean(n + 1)) for n in range(settings.controls)]
    for other in others:
        of = other.settings
        if (of.model_sha256, of.layer) != (settings.model_sha256, settings.layer):
            raise UsageError(
                f"{other.path} is of another model or layer than {folder.path}: they share no edges",
                "compare vectors of one model, injected at one layer",
            )
        compared_with.append((vectors_of(other)[0], stored_scores(other).mean(0)))
    wanted = [size for size in dict.fromkeys(sizes) if size < graph.edges.sum()]
    own = circuits(graph, scores.mean(0), wanted)
    direction = vectors[0].directions[settings.layer].astype(np.float64)
    rows: list[Row] = []
    for vector, mean in compared_with:
        against = vector.directions[settings.layer].astype(np.float64)
        cosine = float(direction @ against / np.linalg.norm(direction) / np.linalg.norm(against))
        theirs = circuits(graph, mean, wanted)
        counts = {size: int(mask.sum()) for size, mask in theirs.items()}
        drawn = random_circuits(graph, counts, settings.seed)
        rows += [
            {
                **settings.key,
                "other": vector.name,
                "size": size,
                "overlap": overlap(own[size], theirs[size]),
                "random_overlap": overlap(own[size], drawn[size]),
                "cosine": cosine,
            }
            for size in wanted
        ]
    write_table(folder.path, "circuit_overlaps", rows)
    return rows
