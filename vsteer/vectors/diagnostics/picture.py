"""A picture of a vector: its length, and its length over the stream's, layer by layer."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from vsteer.errors import UnsupportedError, UsageError, VectorError
from vsteer.files import new_file
from vsteer.vectors.diagnostics.describe import layer_rows
from vsteer.vectors.vector import SteeringVector

_COLOUR = "#3b6ea5"


def draw(vector: SteeringVector, path: Path) -> None:
    draw_chart(lambda altair: _chart(altair, vector), path)


def check_ending(path: Path) -> None:
    if path.suffix not in {".png", ".svg"}:
        raise UsageError(f"{path} ends in neither .png nor .svg", "the ending says what is drawn")


def draw_chart(chart: Callable[[Any], Any], path: Path) -> None:
    """Write what `chart` makes with altair as PNG or SVG, by the path's ending. An older one is replaced."""
    check_ending(path)
    try:
        import altair
        import vl_convert
    except ImportError as error:
        raise UnsupportedError(
            f"drawing needs {error.name}, which isn't installed", "pip install altair vl-convert-python"
        ) from error
    spec = chart(altair).to_dict()
    with new_file(path, VectorError, overwrite=True) as temporary:
        if path.suffix == ".png":
            temporary.write_bytes(vl_convert.vegalite_to_png(spec, scale=2))
        else:
            temporary.write_text(vl_convert.vegalite_to_svg(spec), encoding="utf-8")


def _chart(altair: Any, vector: SteeringVector) -> Any:
    rows = layer_rows(vector)
    panels = {"norm": "norm"}
    if vector.stream_norms:
        panels["norm_over_stream"] = "norm / stream norm"
    charts = [_panel(altair, rows, field, title) for field, title in panels.items()]
    origin = vector.origin
    facts = [
        f"norm {origin.norm or 'unknown'}",
        f"{len(rows)} layer{'s' if len(rows) > 1 else ''}",
        f"{vector.hidden_size} wide",
    ]
    facts += [text for text in (origin.model, origin.method) if text]
    title = altair.Title(
        vector.name, subtitle=", ".join(facts), anchor="start", fontSize=16, subtitleFontSize=12
    )
    return altair.vconcat(*charts, title=title).configure_axis(labelFontSize=12, titleFontSize=12)


def _panel(altair: Any, rows: list[Any], field: str, title: str) -> Any:
    layers = [row["layer"] for row in rows]
    x = altair.X(
        "layer:Q",
        title="layer",
        scale=altair.Scale(domain=[min(layers), max(layers)], nice=False, padding=6),
        axis=altair.Axis(tickMinStep=1, format="d", grid=False),
    )
    y = altair.Y(f"{field}:Q", title=title, scale=altair.Scale(zero=True))
    return (
        altair.Chart(altair.Data(values=rows))
        .mark_line(point=altair.OverlayMarkDef(size=30, color=_COLOUR), color=_COLOUR)
        .encode(x=x, y=y)
        .properties(width=560, height=200)
    )
