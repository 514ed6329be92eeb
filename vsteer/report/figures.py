"""A report's figures as files for a paper: each as SVG, PDF and PNG, with what it shows in words.

They are the page's own figures. Those of the page's scripts that draw nothing work out data, title and words,
here in V8, and Vega draws them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from vsteer.report.charts import specs
from vsteer.report.scripts import FIGURE_SCRIPTS, page_file
from vsteer.store.files import disk_errors, write_file

# A figure is drawn 440 points wide; this makes 1320 pixels of them on 3.3 inches, which is a column's width.
PNG_PPI, PNG_SCALE = 400.0, 0.54

# What stands in for the page: the data are all that the scripts ask of it.
PAGE = "const document = {getElementById: () => ({textContent: %s})};"
EVERY_FIGURE = """
const SPECS = %s, PALETTE = %s, DRAWN = new Set(), CALLED = new Map();
const WANTED = (FAMILIES.length ? FAMILIES : [null]).flatMap((family) => Object.keys(FIGURES).flatMap((name) =>
  (inMeasures(name) ? Object.keys(MEASURES) : ['effect']).flatMap((measure) => (FIGURES[name].sized ? [undefined, ...sizesOf(family)] : [undefined]).map((size) =>
    [name, choiceOf(family, measure, undefined, size)]))));
function figureAt(n) {
  const [name, state] = WANTED[n], given = FIGURES[name].give(state);
  if (typeof given === 'string') return '';
  const spec = JSON.stringify(standAlone(name, state, given, SPECS[FIGURES[name].spec ?? name], PALETTE));
  if (DRAWN.has(spec)) return '';
  DRAWN.add(spec);
  // Two names may have nothing in common but what a file's name keeps of them.
  const file = fileOf(name, state), place = file.toLowerCase(), count = (CALLED.get(place) ?? 0) + 1;
  CALLED.set(place, count);
  return `{"file": ${JSON.stringify(count === 1 ? file : `${file}-${count}`)}, "spec": ${spec}}`;
}
WANTED.length;
"""  # noqa: E501


def write_figures(data: Mapping[str, Any], into: Path) -> list[Path]:
    """Draw every figure of every vector in its settings; the files.

    Each is drawn in every measure and at every size of multiplier that the page offers; where it is of one
    layer, that is the one with the largest effect.
    """
    import vl_convert

    with disk_errors(f"making {into}"):
        into.mkdir(parents=True, exist_ok=True)
    written = []
    for figure in every_figure(data):
        svg = vl_convert.vega_to_svg(figure["spec"])
        drawn = {
            "svg": svg.encode(),
            "pdf": vl_convert.svg_to_pdf(svg),
            "png": vl_convert.svg_to_png(svg, scale=PNG_SCALE, ppi=PNG_PPI),
        }
        for ending, content in drawn.items():
            path = into / f"{figure['file']}.{ending}"
            with disk_errors(f"writing {path}"):
                write_file(path, content, shared=True)
            written.append(path)
    return written


def every_figure(data: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Each figure's file name, without an ending, and its Vega specification."""
    from py_mini_racer import mini_racer

    with mini_racer() as scripts:
        scripts.eval(PAGE % json.dumps(json.dumps(data, allow_nan=False)))
        for name in FIGURE_SCRIPTS:
            scripts.eval(page_file(name))
        count = scripts.eval(EVERY_FIGURE % (json.dumps(specs(data["level"])), json.dumps(light_colours())))
        for number in range(int(str(count))):
            if figure := scripts.eval(f"figureAt({number})"):
                yield json.loads(str(figure))


def light_colours() -> dict[str, str]:
    """The page's colours by name, as its style sheet has them for paper."""
    light = page_file("page.css").split("}", 1)[0]
    return dict(re.findall(r"--(\w+): (#\w+);", light))
