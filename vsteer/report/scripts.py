"""The page's own files. Some of its scripts draw nothing; the saved figures are made by those too."""

from __future__ import annotations

from importlib.resources import files

FIGURE_SCRIPTS = ("data.js", "figures.js", "mechanism.js", "choose.js", "alone.js")
SCRIPTS = (*FIGURE_SCRIPTS, "draw.js", "parts.js", "texts.js", "projections.js", "main.js")


def page_file(name: str) -> str:
    return (files("vsteer.report") / "page" / name).read_text(encoding="utf-8")
