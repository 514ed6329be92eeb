"""The figures' shapes, in Vega-Lite, compiled to Vega: the page gives them data, so that they are made once.

A colour has a name such as @plus and becomes the theme's when it is drawn. Whatever a colour shows, a shape,
a dash, a place or a label shows too. Data come as `rows` and the like; page/figures.js says what each is.
"""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import altair as alt

from vsteer.report import mechanism_charts
from vsteer.report.marks import (
    BANDS,
    DIVERGING,
    FAMILIES,
    MULTIPLIER,
    SHAPES,
    SIGN_COLOUR,
    SIGN_DASH,
    SIGN_SHAPE,
    SIGNS_DRAWN,
    chart,
    effect_tips,
    finished,
    layer_axis,
    layer_line,
    tips,
    zero_line,
)

Spec = dict[str, Any]
# d3 writes a minus sign in front of a number, and a hyphen in its exponent.
EXPONENT = "replace(datum.label, 'e-', 'e\u2212')"


@cache
def specs(level: str = MULTIPLIER) -> dict[str, Spec]:
    """Every figure's Vega, by its name; `level` is what stands where multipliers do."""
    import vl_convert

    compiled = {name: vl_convert.vegalite_to_vega(each.to_dict()) for name, each in charts().items()}
    for axis in (axis for spec in compiled.values() for axis in spec["axes"]):
        if axis.get("labels", True) and "encode" not in axis:
            axis["encode"] = {"labels": {"update": {"text": {"signal": EXPONENT}}}}
    # A legend's point would be dashed as its line is.
    for legend in (legend for spec in compiled.values() for legend in spec.get("legends", ())):
        if "shape" in legend:
            legend.pop("strokeDash", None)
    if level == MULTIPLIER:
        return compiled
    text = json.dumps(compiled)
    # of axes and legends, in tooltips, for a screen reader
    for words in ('"title": "%s"', r"\"%s\": ", r"%s: \""):
        text = text.replace(words % MULTIPLIER, words % level)
    found: dict[str, Spec] = json.loads(text)
    return found


def charts() -> dict[str, Any]:
    return {
        "layers": layers(),
        "mass": mass(),
        "heat": heat(),
        "dose": dose(),
        "asymmetry": asymmetry(),
        "scaling": scaling(),
        "coherence": tradeoff("perplexity (higher is less coherent)"),
        "capability": tradeoff("lost in capability"),
        "components": components(),
        "cosine": cosine(),
        "line": line(),
        "slopes": slopes(),
        "spread": spread(),
        "head_scores": mechanism_charts.head_scores(),
        "faithfulness": mechanism_charts.faithfulness(),
        "sparsity": mechanism_charts.sparsity(),
    }


def layers() -> Any:
    """Effect by layer, with intervals, over the band of the controls."""
    band = chart("band").encode(
        layer_axis(),
        alt.Y("low:Q", title=""),
        alt.Y2("high:Q"),
        alt.Fill(
            "kind:N",
            title="band of",
            scale=alt.Scale(domain=BANDS, range=["@band", "@none", "@none"]),
            legend=alt.Legend(values=alt.ExprRef("bands"), symbolType="square", symbolStrokeColor="@quiet"),
        ),
        alt.Stroke("kind:N", scale=alt.Scale(domain=BANDS, range=["@band", "@quiet", "@ink"]), legend=None),
        tooltip=tips("kind:N", "layer:Q", "low:Q", "high:Q", "controls:Q"),
    )
    found = chart().encode(layer_axis(), alt.Y("y:Q", title=""), SIGN_COLOUR)
    interval = found.encode(alt.Y("low:Q", title=""), alt.Y2("high:Q"))
    return finished(
        band.mark_area(strokeWidth=1, strokeDash=[3, 3]),
        band.transform_filter("datum.lonely").mark_bar(size=14, strokeWidth=1, strokeDash=[3, 3]),
        zero_line(),
        interval.mark_area(opacity=0.22),
        interval.transform_filter("datum.lonely").mark_rule(strokeWidth=2),
        found.encode(SIGN_DASH).mark_line(strokeWidth=2),
        found.encode(SIGN_SHAPE, tooltip=effect_tips()).mark_point(filled=True, size=46, opacity=1),
        layer_line("layer"),
        params=[alt.param(name="bands", value=BANDS), SIGNS_DRAWN],
    )


def mass() -> Any:
    """How much probability the answers have together; the unsteered model's as a line."""
    found = chart().encode(
        layer_axis(), alt.Y("mass:Q", title="", scale=alt.Scale(zero=True)), SIGN_COLOUR, SIGN_DASH
    )
    unsteered = chart("base").encode(alt.Y("mass:Q"), tooltip=tips("mass:Q"))
    label = unsteered.encode(text=alt.value("unsteered"), x=alt.value(4))
    above, below = label.transform_filter("!datum.top"), label.transform_filter("datum.top")
    return finished(
        found.mark_line(strokeWidth=2),
        found.encode(SIGN_SHAPE, tooltip=tips("multiplier:Q", "layer:Q", "mass:Q")).mark_point(
            filled=True, size=30, opacity=1
        ),
        unsteered.mark_rule(color="@ink", strokeDash=[2, 3]),
        above.mark_text(align="left", dy=-6, color="@ink"),
        below.mark_text(align="left", dy=8, color="@ink"),
        layer_line("layer"),
        height=140,
        params=[SIGNS_DRAWN],
    )


def heat() -> Any:
    """Layer by multiplier; every cell shows its number."""
    extent = alt.param(name="extent", value=1.0)
    places = chart().encode(
        alt.X("multiplier:O", title=MULTIPLIER, axis=alt.Axis(labelAngle=0, format="+~g", orient="top")),
        alt.Y(
            "place:O",
            title="layer",
            sort=alt.EncodingSortField("order", order="descending"),
            axis=alt.Axis(grid=False),
        ),
        tooltip=effect_tips("place:O"),
    )
    cells = places.encode(
        alt.Color(
            "y:Q",
            title="",
            scale=alt.Scale(
                domain=[alt.ExprRef("-extent"), 0, alt.ExprRef("extent")],
                range=DIVERGING,
                interpolate="lab",
            ),
            legend=None,
        ),
        stroke=alt.condition("datum.chosen", alt.value("@ink"), alt.value("@none")),
    )
    words = places.encode(
        alt.Text("words:N"),
        color=alt.condition("abs(datum.y) > 0.6 * extent", alt.value("@onfull"), alt.value("@ink")),
    )
    return finished(
        cells.mark_rect(strokeWidth=1.5),
        words.mark_text(fontSize=10),
        height=alt.Step(17),
        params=[extent],
    )


def dose() -> Any:
    """One layer's effect over the multipliers, before the other layers' and the stored fit."""
    x = alt.X("multiplier:Q", title=MULTIPLIER, axis=alt.Axis(format="~g"))
    others = chart("others").encode(x, alt.Y("y:Q", title=""), detail="place:N")
    found = chart().encode(x, alt.Y("y:Q", title=""))
    interval = found.encode(alt.Y("low:Q", title=""), alt.Y2("high:Q"))
    fit = chart("fit").encode(x, alt.Y("y:Q", title=""))
    return finished(
        others.mark_line(color="@faint", strokeWidth=1),
        zero_line(),
        interval.mark_rule(color="@plus", strokeWidth=2),
        fit.mark_line(color="@ink", strokeDash=[4, 3], strokeWidth=1.5),
        found.mark_line(color="@plus", strokeWidth=2),
        found.encode(tooltip=effect_tips("place:N")).mark_point(
            filled=True, size=60, color="@plus", opacity=1
        ),
    )


def asymmetry() -> Any:
    """How much more strongly the negative multiplier acts, by layer; the shape shows which is stronger."""
    found = chart().encode(
        layer_axis(),
        alt.Y("y:Q", title=""),
        alt.Color(
            "stronger:N",
            title="acts more strongly",
            scale=alt.Scale(domain=["positive", "negative"], range=["@plus", "@minus"]),
            legend=alt.Legend(symbolOpacity=1),
        ),
    )
    return finished(
        found.encode(alt.Y("low:Q", title=""), alt.Y2("high:Q")).mark_rule(strokeWidth=1.5),
        zero_line(),
        found.encode(
            alt.Shape(
                "stronger:N",
                title="acts more strongly",
                scale=alt.Scale(domain=["positive", "negative"], range=["circle", "triangle-down"]),
            ),
            tooltip=tips(
                "layer:Q", "y:Q", "low:Q", "high:Q", "minus:Q", "plus:Q", "relative_norm:Q", "items:Q"
            ),
        ).mark_point(filled=True, size=50, opacity=1),
        layer_line("layer"),
        height=190,
    )


def scaling() -> Any:
    """Peaks by the models' sizes, with the families that were fitted."""
    x = alt.X(
        "billions:Q",
        title="parameters, billions (log)",
        scale=alt.Scale(type="log", nice=False, padding=40),
        axis=alt.Axis(format="~g"),
    )
    # with room for a name above the topmost point
    y = alt.Y("y:Q", title="", scale=alt.Scale(nice=False, padding=22))
    found = chart().encode(x, y, SIGN_COLOUR)
    fits = chart("fit").encode(
        x,
        y,
        alt.StrokeDash(
            "family:N",
            title="fit",
            scale=alt.Scale(domain=FAMILIES, range=[[1, 0], [6, 3], [2, 2]]),
            legend=alt.Legend(
                symbolStrokeColor="@ink",
                values=alt.ExprRef("families"),
                labelExpr="replace(datum.label, '_', '-')",
            ),
        ),
        alt.Detail("series:N"),
    )
    return finished(
        fits.mark_line(color="@quiet", strokeWidth=1.5),
        zero_line(),
        found.encode(alt.Y("low:Q", title=""), alt.Y2("high:Q")).mark_rule(strokeWidth=1.5),
        found.encode(
            SIGN_SHAPE, tooltip=effect_tips("model:N", "billions:Q", "peak_layer:Q", "peak_depth:Q")
        ).mark_point(filled=True, size=80, opacity=1),
        found.encode(text="model:N").mark_text(dy=-12, fontSize=10, color="@ink", clip=False),
        params=[alt.param(name="families", value=FAMILIES), SIGNS_DRAWN],
    )


def tradeoff(cost: str) -> Any:
    """Effect against its cost, a point for each layer and multiplier."""
    found = chart().encode(
        alt.X("cost:Q", title=cost, scale=alt.Scale(zero=False)),
        # room for the labels above points
        alt.Y("y:Q", title="", scale=alt.Scale(padding=18)),
        SIGN_COLOUR,
    )
    error = found.encode(alt.X("cost_low:Q"), alt.X2("cost_high:Q"))
    label = found.encode(text="place:N").transform_filter("datum.labelled")
    return finished(
        zero_line(),
        error.mark_rule(strokeWidth=1, opacity=0.6),
        found.encode(
            SIGN_SHAPE,
            stroke=alt.condition("datum.marked", alt.value("@ink"), alt.value("@none")),
            tooltip=effect_tips("place:N", "cost:Q", "of:N"),
        ).mark_point(filled=True, size=46, opacity=1, strokeWidth=1.5),
        label.mark_text(dy=-10, fontSize=10, color="@ink"),
        params=[SIGNS_DRAWN],
    )


def components() -> Any:
    """The contrast's members on their layer's first two components."""
    kinds = [
        f"{sign}{letter}" for letter in ("", ", A", ", B", ", other") for sign in ("positive", "negative")
    ]
    legend = alt.Legend(values=alt.ExprRef("kinds"), columns=2)
    return finished(
        chart()
        .encode(
            alt.X("pc1:Q", title="first component", axis=alt.Axis(grid=True)),
            alt.Y("pc2:Q", title="second"),
            alt.Stroke(
                "kind:N",
                title="member",
                scale=alt.Scale(domain=kinds, range=["@plus", "@minus"] * 4),
                legend=legend,
            ),
            alt.Shape(
                "kind:N",
                title="member",
                scale=alt.Scale(
                    domain=kinds,
                    range=SHAPES,
                ),
                legend=legend,
            ),
            tooltip=tips("kind:N", "pc1:Q", "pc2:Q", "item_id:N"),
        )
        .mark_point(filled=False, size=44, strokeWidth=1.6, opacity=0.9),
        height=320,
        params=[alt.param(name="kinds", value=kinds[:2])],
    )


def cosine() -> Any:
    """Each layer's direction against every other's."""
    return finished(
        chart()
        .encode(
            alt.X("layer:O", title="layer", axis=alt.Axis(labelOverlap=True, labelAngle=0)),
            alt.Y("other_layer:O", title="layer", sort="descending", axis=alt.Axis(labelOverlap=True)),
            alt.Color(
                "cosine:Q",
                scale=alt.Scale(domain=[-1, 0, 1], range=DIVERGING, interpolate="lab"),
                legend=alt.Legend(title="cosine", gradientLength=160),
            ),
            stroke=alt.condition("datum.chosen", alt.value("@ink"), alt.value("@none")),
            tooltip=tips("layer:O", "other_layer:O", "cosine:Q"),
        )
        .mark_rect(strokeWidth=1),
        height=320,
    )


def line() -> Any:
    """One number by layer."""
    found = chart().encode(layer_axis(), alt.Y("y:Q", title="", scale=alt.Scale(zero=True)))
    return finished(
        chart("base").encode(alt.Y("y:Q")).mark_rule(color="@quiet", strokeDash=[2, 3]),
        found.mark_line(color="@plus", strokeWidth=2),
        found.encode(tooltip=tips("layer:Q", "y:Q")).mark_point(
            filled=True, size=24, color="@plus", opacity=1
        ),
        layer_line("layer"),
        height=120,
    )


def slopes() -> Any:
    """Every item's slope, in their order; a triangle is an item that moves the wrong way."""
    found = chart().encode(
        alt.X("rank:Q", title="items, by slope", axis=alt.Axis(format="d", tickMinStep=1, grid=False)),
        alt.Y("slope:Q", title=""),
    )
    ways = ["as the multiplier", "the wrong way"]
    return finished(
        zero_line(),
        found.encode(alt.Y("low:Q", title=""), alt.Y2("high:Q")).mark_rule(color="@faint"),
        found.encode(
            alt.Color("way:N", title="moves", scale=alt.Scale(domain=ways, range=["@plus", "@minus"])),
            alt.Shape(
                "way:N", title="moves", scale=alt.Scale(domain=ways, range=["circle", "triangle-down"])
            ),
            tooltip=tips("question:N", "slope:Q", "residual:Q", "baseline:Q", "rank_correlation:Q"),
        ).mark_point(filled=True, size=50, opacity=1),
    )


def spread() -> Any:
    """The items' mean slope by layer, between their tenth and ninetieth percentiles."""
    found = chart().encode(layer_axis(), alt.Y("y:Q", title=""))
    interval = found.encode(alt.Y("low:Q", title=""), alt.Y2("high:Q"))
    return finished(
        interval.mark_area(color="@plus", opacity=0.22),
        interval.transform_filter("datum.lonely").mark_rule(color="@plus", strokeWidth=2),
        zero_line(),
        found.mark_line(color="@plus", strokeWidth=2),
        found.encode(tooltip=tips("layer:Q", "y:Q", "low:Q", "high:Q", "wrong:Q", "items:Q")).mark_point(
            filled=True, size=36, color="@plus", opacity=1
        ),
        layer_line("layer"),
        height=190,
    )
