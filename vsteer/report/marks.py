"""The parts of the figures' shapes: scales that mean the same in every figure, and common layers."""

from __future__ import annotations

from typing import Any

import altair as alt

from vsteer.operations import OPERATIONS

# What is drawn over: multipliers, or the KL doses that they were found for.
MULTIPLIER, DOSE = "multiplier", "KL dose"
# A configuration without a multiplier has what its operation did in the sign's place.
DONE = list(dict.fromkeys(operation.done for operation in OPERATIONS.values() if operation.done))
SIGNS = ["+", "-", *DONE]
SIGN_SHAPES = ["circle", "triangle-down", "square", "diamond", "cross", "triangle-up", "wedge"][: len(SIGNS)]
SIGN_DASHES = [[1, 0], [6, 3], *([2, 2] for _ in DONE)]
# How a sign is drawn wherever it is.
SIGN_COLOUR = alt.Color(
    "sign:N",
    title=MULTIPLIER,
    scale=alt.Scale(domain=SIGNS, range=["@plus", "@minus", *["@ink"] * len(DONE)]),
    legend=alt.Legend(
        labelExpr="datum.label == '+' ? 'positive' : datum.label == '-' ? 'negative' : datum.label",
        symbolStrokeWidth=2,
        symbolOpacity=1,
        # those that are drawn
        values=alt.ExprRef("signs"),
    ),
)
SIGN_SHAPE = alt.Shape(
    "sign:N",
    title=MULTIPLIER,
    scale=alt.Scale(domain=SIGNS, range=SIGN_SHAPES),
    legend=alt.Legend(values=alt.ExprRef("signs")),
)
SIGNS_DRAWN = alt.param(name="signs", value=SIGNS)
SIGN_DASH = alt.StrokeDash(
    "sign:N", title=MULTIPLIER, scale=alt.Scale(domain=SIGNS, range=SIGN_DASHES), legend=None
)
# of positive and negative members in turn
SHAPES = ["circle", "triangle-down", "square", "diamond", "cross", "triangle-up", "wedge", "stroke"]
BANDS = ["random vectors", "shuffled labels", "unrelated vectors"]
FAMILIES = ["exponential", "power", "log_linear"]
DIVERGING = ["@minus", "@zero", "@plus"]
HEIGHT = 250
# 8e-7, and not 0.0000008. Without a number of digits d3 would round ticks to those that their step needs.
TICKS = ".6~g"


def chart(data: str = "rows") -> Any:
    return alt.Chart(alt.NamedData(data))


def layer_axis() -> Any:
    return alt.X(
        "layer:Q",
        title="layer",
        scale=alt.Scale(nice=False, zero=False, padding=8),
        # with few layers the axis has ticks between them, which are no layers
        axis=alt.Axis(labelExpr="datum.value % 1 ? '' : datum.value", tickMinStep=1, grid=False),
    )


def zero_line() -> Any:
    return alt.Chart(alt.NamedData("zero")).encode(alt.Y("y:Q")).mark_rule(color="@quiet")


def layer_line(field: str) -> Any:
    """The layer that the page's slider is at."""
    return chart("at").encode(alt.X(f"{field}:Q")).mark_rule(color="@ink", strokeWidth=1, strokeDash=[2, 2])


def tips(*fields: str) -> list[Any]:
    words = {"y": "value", "low": "from", "high": "to", "relative_norm": "injected norm / stream norm"}
    words |= {"place": "layer", "of": "in", "wrong": "share the wrong way", "mass": "total mass"}
    found = []
    for field in fields:
        name = field.split(":")[0]
        quantity = field.endswith(":Q") and name not in ("layer", "items", "controls", "peak_layer", "rank")
        more: dict[str, Any] = {"format": ".3~g" if name == "multiplier" else ".4~g"} if quantity else {}
        found.append(alt.Tooltip(field, title=words.get(name, name.replace("_", " ")), **more))
    return found


def effect_tips(*first: str) -> list[Any]:
    return tips(
        *first, "multiplier:Q", "layer:Q", "y:Q", "low:Q", "high:Q", "relative_norm:Q", "mass:Q", "items:Q"
    )


def finished(*layers: Any, height: Any = HEIGHT, params: Any = ()) -> Any:
    made = alt.layer(*layers) if len(layers) > 1 else layers[0]
    made = made.properties(
        width=640, height=height, autosize=alt.AutoSizeParams(type="fit-x", contains="padding")
    )
    return (
        (made.add_params(*params) if params else made)
        .configure_axisX(labelFlush=False)
        .configure(numberFormat=TICKS)
    )
