"""The figures of a mechanism: who carries a steering, how few edges do, and how few dimensions."""

from __future__ import annotations

from typing import Any

import altair as alt

from vsteer.report.marks import DIVERGING, chart, finished, tips, zero_line

CIRCUITS = ["largest scores", "at random"]
METHODS = ["attribution", "effect", "magnitude", "random"]


def head_scores() -> Any:
    """Layer by head, with the MLP as the last column; a cell's tint is its score."""
    cells = chart().encode(
        alt.X(
            "head:O",
            title="head",
            sort=alt.EncodingSortField("place", order="ascending"),
            axis=alt.Axis(labelAngle=0, labelOverlap=True, orient="top"),
        ),
        alt.Y("layer:O", title="layer", sort="descending", axis=alt.Axis(grid=False)),
        alt.Color(
            "score:Q",
            title="score",
            scale=alt.Scale(
                domain=[alt.ExprRef("-extent"), 0, alt.ExprRef("extent")], range=DIVERGING, interpolate="lab"
            ),
            legend=alt.Legend(gradientLength=160),
        ),
        tooltip=tips("layer:O", "head:O", "score:Q", "to_unembedding:Q", "random:Q"),
    )
    return finished(cells.mark_rect(), height=alt.Step(14), params=[alt.param(name="extent", value=1.0)])


def faithfulness() -> Any:
    """How faithful a circuit is by its size, beside circuits of as many random edges."""
    found = chart().encode(
        alt.X(
            "share:Q", title="share of the edges (log)", scale=alt.Scale(type="log", nice=False, padding=8)
        ),
        alt.Y("y:Q", title=""),
        alt.Color(
            "edges:N",
            title="edges",
            scale=alt.Scale(domain=CIRCUITS, range=["@plus", "@quiet"]),
            legend=alt.Legend(symbolOpacity=1),
        ),
        detail="edges:N",
    )
    return finished(
        zero_line(),
        chart("base").encode(alt.Y("y:Q")).mark_rule(color="@quiet", strokeDash=[2, 3]),
        found.mark_line(strokeWidth=2),
        found.encode(
            alt.Shape("edges:N", title="edges", scale=alt.Scale(domain=CIRCUITS, range=["circle", "cross"])),
            tooltip=tips("count:Q", "share:Q", "y:Q", "edges:N", "positions:Q"),
        ).mark_point(filled=True, size=50, opacity=1),
    )


def sparsity() -> Any:
    """How much of the effect is left, by how many dimensions are; a method has a shape and a dash."""
    found = chart().encode(
        alt.X("share:Q", title="share of the dimensions left (log)", scale=alt.Scale(type="log", nice=False)),
        alt.Y("y:Q", title=""),
        alt.Color(
            "method:N",
            title="dimensions kept by",
            scale=alt.Scale(domain=METHODS, range=["@plus", "@minus", "@ink", "@quiet"]),
            legend=alt.Legend(symbolOpacity=1),
        ),
    )
    interval = found.encode(alt.Y("low:Q", title=""), alt.Y2("high:Q"))
    shapes = ["circle", "triangle-down", "square", "cross"]
    dashes = [[1, 0], [6, 3], [2, 2], [1, 3]]
    return finished(
        zero_line(),
        chart("base").encode(alt.Y("y:Q")).mark_rule(color="@quiet", strokeDash=[2, 3]),
        interval.mark_rule(strokeWidth=1, opacity=0.5),
        found.encode(
            alt.StrokeDash("method:N", scale=alt.Scale(domain=METHODS, range=dashes), legend=None)
        ).mark_line(strokeWidth=2),
        found.encode(
            alt.Shape("method:N", title="dimensions kept by", scale=alt.Scale(domain=METHODS, range=shapes)),
            tooltip=tips("method:N", "dimensions:Q", "share:Q", "y:Q", "effect:Q", "items:Q"),
        ).mark_point(filled=True, size=46, opacity=1),
    )
