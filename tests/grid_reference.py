"""docs/grid.md's generated parts: every setting from the schema, and positions on a rendered chat."""

from __future__ import annotations

from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from annotated_types import Ge, Gt, Le, Lt
from pydantic.fields import FieldInfo

from vsteer.controls import CONTROL_VECTORS
from vsteer.datasets.builtin import CONTRASTS
from vsteer.evaluations.evaluation import Evaluation
from vsteer.evaluations.kinds import KINDS
from vsteer.grid import spec, when
from vsteer.models import resolve
from vsteer.models.hugging_face import load_tokenizer
from vsteer.prompts.template import render_question
from vsteer.protocol import POSITION_WORDS
from vsteer.validation import Name, Names, Strict, Systems, Text, Texts

# Where each model of the schema stands in a grid.
PLACES: dict[str, type[Strict]] = {
    "the grid itself": spec.Grid,
    "`model`": spec.Model,
    "`engine`": spec.EngineSpec,
    "`vectors`, from data": spec.DataVector,
    "`vectors`, from a file": spec.FileVector,
    "`vectors`, one direction of a file that holds many": spec.FileDirection,
    "`grid`, each block": spec.Axis,
    "`grid: when`": when.When,
    "`controls`": spec.Controls,
    "`controls: system_prompts`": spec.SystemPrompts,
    "`evaluations`, of every kind": Evaluation,
    **{f"`evaluations`, `kind: {name}`": kind for name, kind in KINDS.items()},
    "`exclude`, each entry": spec.Exclude,
}
WORDS: dict[Any, str] = {
    Text: "text",
    Texts: "text or list",
    Name: "name",
    Names: "name or list",
    Systems: "text, `null`, or list",
    spec.LayerChoice: "[layers](#the-grids-blocks)",
    spec.Multipliers: "[multipliers](#the-grids-blocks)",
    spec.PositionList: "[positions](#positions)",
    spec.Norms: "`raw`, `unit`, `caa`, `deviation`, `{residual: F}`, or list",
    spec.HowMany: "whole number from 1, or `{min: N, max: N}`",
    spec.ControlNames: ", ".join(f"`{name}`" for name in CONTROL_VECTORS) + ", or list",
    spec.Unrelated: f"whole number from 0 to {len(CONTRASTS)}, or list",
    when.Thresholds: "number from -1 to 1, or list",
    bool: "`true`, `false`",
    int: "whole number",
    float: "number",
    str: "text",
}


def settings() -> str:
    """A table for each place of a grid, with the settings that only this place has."""
    parts, kinds = [], ", ".join(f"`{name}`" for name in KINDS)
    for title, model in PLACES.items():
        inherited = (
            Evaluation.model_fields if model is not Evaluation and issubclass(model, Evaluation) else ()
        )
        hints = get_type_hints(model, include_extras=True)
        rows = [
            f"| `{name}` | {kinds if name == 'kind' and model is Evaluation else worded(hints[name])} "
            f"| {default(field)} | {about(field)} |"
            for name, field in model.model_fields.items()
            if name not in inherited
        ]
        parts.append(
            "\n".join(
                [
                    f"### {title}",
                    "",
                    "| setting | value | default | what it is |",
                    "| --- | --- | --- | --- |",
                    *rows,
                ]
            )
        )
    return "\n\n".join(parts)


def worded(hint: Any) -> str:
    """A type as who writes a grid needs it."""
    for known, word in WORDS.items():
        if hint == known:
            return word
    origin, parts = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return ", ".join(worded(part) for part in parts if part not in (NoneType, tuple[()]))
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in parts)
    if origin is Annotated:
        bounds = [
            bound
            for extra in parts[1:]
            for bound in (extra.metadata if isinstance(extra, FieldInfo) else [extra])
        ]
        return worded(parts[0]) + "".join(map(_bound, bounds))
    if origin is tuple:
        return "list of settings"
    if isinstance(hint, type) and issubclass(hint, Strict):
        return "settings"
    if origin is dict or hint is dict:
        return "settings by name"
    raise TypeError(f"no word for {hint}")


def _bound(bound: Any) -> str:
    match bound:
        case Ge(ge):
            return f" from {ge}"
        case Gt(gt):
            return f" above {gt}"
        case Le(le) if le < 2**20:  # type: ignore[operator]
            return f" to {le:,}"
        case Lt(lt) if lt < 2**20:
            return f" below {lt:,}"
    return ""


def about(field: FieldInfo) -> str:
    assert field.description, "a setting without its text"
    return " ".join(field.description.split())


def default(field: FieldInfo) -> str:
    if field.is_required():
        return "needed"
    value = field.get_default(call_default_factory=True)
    if value is None or value == () or value == (None,) or value == {} or isinstance(value, Strict):
        return ""
    if isinstance(value, tuple):
        value = value[0] if len(value) == 1 else list(value)
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def positions() -> str:
    """A short chat in the embedded model's template, token by token, with what each word covers."""
    tokenizer = load_tokenizer(resolve("smollm2-135m-instruct").model)
    prompt = render_question(tokenizer, "Is it cold?", "Be brief.", "Well")
    texts = [tokenizer.decode([token]) for token in prompt.token_ids] + [" it", " is"]
    spans = {word: prompt.span(word) for word in POSITION_WORDS}
    lines = [["", "token", *POSITION_WORDS]]
    for n, text in enumerate(texts):
        shown = text.replace("\n", "\\n")
        about = (
            " (generated)"
            if n >= len(prompt.token_ids)
            else " (forced)"
            if n >= prompt.template_length
            else ""
        )
        marks = ["x" if start <= n < end else "" for start, end in spans.values()]
        lines.append([str(n), f"{shown!r}".replace("\\\\n", "\\n") + about, *marks])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    rows = [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    ]
    return "\n".join(["```", *rows, "```"])
