"""head_values.parquet: every head's steering value vector in words, beside a random vector's."""

from __future__ import annotations

from vsteer.mechanism.analysis import Analysis, OnProgress, controls
from vsteer.mechanism.edge_tables import Row
from vsteer.mechanism.values import top_tokens, value_vectors
from vsteer.store.mechanism import write_table


def write_values(analysis: Analysis, tokens: int, on_progress: OnProgress) -> list[Row]:
    """`on_progress` is called once for each layer, of the vector and of each control."""
    model, rows = analysis.model, []
    for place, control in controls(analysis.settings.controls):
        for layer in range(analysis.graph.first, model.layers):
            vectors = value_vectors(model, layer, analysis.directions[place])
            found = top_tokens(model, vectors, tokens)
            lengths = vectors.norm(dim=-1).tolist()
            for head, (logits, ids) in enumerate(zip(*(each.tolist() for each in found), strict=True)):
                rows += [
                    {
                        **analysis.settings.key,
                        **control,
                        "layer": layer,
                        "head": head,
                        "length": lengths[head],
                        "rank": rank,
                        "token": model.tokenizer.decode([token]),
                        "logit": logit,
                    }
                    for rank, (token, logit) in enumerate(zip(ids, logits, strict=True), 1)
                ]
            on_progress()
    write_table(analysis.folder.path, "head_values", rows)
    return rows
