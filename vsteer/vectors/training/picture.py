"""A picture of a learning: the held-out loss over the epochs, beside those of the controls."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vsteer.vectors.training.learner import Row

COLOURS = {"learned": "#3b6ea5", "mean difference": "#c1662f", "random": "#999999", "unsteered": "#444444"}


def loss_chart(altair: Any, rows: Sequence[Row], title: str) -> Any:
    layers = dict.fromkeys(row["layer"] for row in rows)
    # altair takes no null in a place of an axis
    shown = [{**row, "what": str(row["vector"]).split(" ")[0]} for row in rows]
    shown = [{**row, "what": "mean difference" if row["what"] == "mean" else row["what"]} for row in shown]
    return altair.vconcat(
        *(_panel(altair, [row for row in shown if row["layer"] == layer], layer) for layer in layers),
        title=altair.Title(title, subtitle="loss on held-out pairs at equal length", anchor="start"),
    )


def _panel(altair: Any, rows: Sequence[Row], layer: int) -> Any:
    colour = altair.Color(
        "what:N",
        title="vector",
        scale=altair.Scale(domain=list(COLOURS), range=list(COLOURS.values())),
    )
    y = altair.Y("loss:Q", title="loss", scale=altair.Scale(zero=False))
    learned = [row for row in rows if row["epoch"] is not None]
    x = altair.X("epoch:Q", title="epoch", axis=altair.Axis(tickMinStep=1, format="d", grid=False))
    line = altair.Chart(altair.Data(values=learned)).mark_line(point=True).encode(x=x, y=y, color=colour)
    chosen = altair.Data(values=[row for row in learned if row["chosen"]])
    ring = altair.Chart(chosen).mark_point(size=160).encode(x=x, y=y, color=colour)
    controls = altair.Data(values=[row for row in rows if row["epoch"] is None])
    rules = altair.Chart(controls).mark_rule(strokeDash=[4, 3]).encode(y=y, color=colour)
    return altair.layer(rules, line, ring).properties(width=520, height=200, title=f"layer {layer}")
