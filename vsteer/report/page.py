"""The page itself: facts, tables and figures put into one HTML file that needs nothing else.

Everything that came from a run is JSON in a script element that no browser runs, and only ever becomes text.
A content security policy lets only the page's own scripts run, and lets nothing be fetched.
"""

from __future__ import annotations

import base64
import gzip
import json
import secrets
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import cache
from html import escape
from pathlib import Path
from string import Template
from typing import Any

from vsteer.analysis.over_runs import scaling_over_runs
from vsteer.errors import StoreError
from vsteer.operations import OPERATIONS
from vsteer.packages import __version__
from vsteer.report.diagnostics import diagnostics
from vsteer.report.facts import alike, facts
from vsteer.report.figures import write_figures
from vsteer.report.marks import DOSE, MULTIPLIER
from vsteer.report.projections import projections
from vsteer.report.scripts import SCRIPTS, page_file
from vsteer.report.tables import Table, answer, item_slopes, table
from vsteer.report.texts import texts
from vsteer.results.views import connect_runs, readable, run_names, without_statistics
from vsteer.store.files import write_file
from vsteer.vectors import run_norms

NAME = "report.html"
# The queries that are drawn as figures or put into words, and those that are shown as plain tables.
DRAWN = (
    "failures",
    "layer_peaks",
    "controls",
    "multiplier_curves",
    "control_bands",
    "sign_asymmetry",
    "scaling",
    "scaling_fits",
    "coherence_frontier",
    "capability_cost",
    "steerability",
    "node_scores",
    "circuit_faithfulness",
    "sparsity_curves",
)
MORE = (
    "lm_eval",
    "letter_bias",
    "system_prompt_interaction",
    "layer_transfer",
    "model_transfer",
    "rounding",
    "edges_by_kind",
    "freezing_costs",
    "throughput",
)
# what has no multiplier stands in no multiplier curve
WITHOUT_MULTIPLIER = """\
select e.run, e.model, e.evaluation, e.system, e.vector, e.norm, e.positions, e.operation, e.layers, e.depth,
       e.multiplier, e.effect, e.effect_se, i.low as effect_low, i.high as effect_high, e.effect_p,
       e.effect_p_se, p.low as effect_p_low, p.high as effect_p_high, e.effect_headroom, e.items,
       e.total_mass, e.baseline_mass, i.why
from config_effects e
join conditions c using (condition)
left join intervals i on i.run = c.run and i.evaluation = c.evaluation and i.config_id = c.config_id
                     and i.measure = 'logit_diff'
left join intervals p on p.run = c.run and p.evaluation = c.evaluation and p.config_id = c.config_id
                     and p.measure = 'p_match'
where e.multiplier is null and e.items > 0
order by all"""
# whether every multiplier of a vector was found for a KL dose: then curves are over doses
ALL_DOSES = """\
select coalesce(bool_and(kl is not null), false) from conditions
where vector <> '' and level is not null"""
# fits over multipliers, from the statistics that are stored beside the rows
DOSES = """\
select run, model, evaluation, system, vector, norm, positions, operation, layers, measure,
       multipliers, means, isotonic, isotonic_direction, isotonic_r2, fit, intercept, slope, slope_low,
       slope_high, midpoint, fit_r2, residual_df, relative_norms, items, items_left_out, why
from doses where not {by_dose} order by all"""


def write_report(folders: Sequence[Path], out: Path | None = None, figures: Path | None = None) -> Path:
    """Write the report of one run or several; by default into the first one's folder.

    Where a folder for them is given, its figures too, as files for a paper.
    """
    runs = run_names(folders)
    for folder in folders:
        # where it can't be written, the figures say that the relative norm is not measured
        run_norms.bring_up_to_date(folder)
    path = out or folders[0] / NAME
    data = gathered(folders, runs)
    try:
        write_file(path, page(data).encode(), shared=True)
    except StoreError as error:
        raise StoreError(
            error.message, "is there room, and may you write there? -o gives another place"
        ) from error
    if figures:
        write_figures(data, figures)
    return path


def gathered(folders: Sequence[Path], runs: Mapping[str, Path]) -> dict[str, Any]:
    """All that the page is drawn from, ready for JSON."""
    with connect_runs(folders) as database, readable(folders[0]):
        if fits := scaling_over_runs(database):
            database.execute(fits)
        ((by_dose,),) = database.execute(ALL_DOSES).fetchall()
        tables: dict[str, Table] = {
            name: answer(database, name, folders, bool(by_dose)) for name in (*DRAWN, *MORE)
        }
        tables["item_slopes"] = item_slopes(database, folders)
        tables["doses"] = table(database, DOSES.format(by_dose=bool(by_dose)))
        tables["without_multiplier"] = table(database, WITHOUT_MULTIPLIER)
        tables |= diagnostics(database, runs) | texts(database)
        tables["projections"] = projections(database, runs)
        found = facts(database, runs, bool(by_dose))
        twice = alike(database)
    rounded = tables["rounding"].columns
    warnings = [
        f"{model}, {evaluation}, {vector}: {verdict}, {rounding:.3f} for an effect of one question."
        for model, evaluation, vector, verdict, rounding, below in zip(
            *(rounded[name] for name in ("model", "evaluation", "vector", "verdict", "rounding", "below")),
            strict=True,
        )
        if below
    ]
    if twice:
        warnings.append(
            f"{twice} places in these figures hold several configurations that differ in something that they"
            " don't show, such as the dtype: make a report for each run, or use `vsteer sql`."
        )
    return {
        "title": f"Steering report: {', '.join(runs)}",
        "facts": found,
        "warnings": warnings,
        "why": reasons(found, runs),
        "nostatistics": no_statistics(folders),
        "more": MORE,
        "level": DOSE if by_dose else MULTIPLIER,
        "operations": {
            name: [of.done, "" if of.has_multiplier else of.noun] for name, of in OPERATIONS.items()
        },
        "tables": {name: each.as_json() for name, each in tables.items()},
    }


def no_statistics(folders: Sequence[Path]) -> str:
    """What to do where intervals and fits are missing; empty where they are there."""
    missing = without_statistics(folders)
    reasons = [f"the statistics of {folder} {why}" for folder, why in missing.items()]
    makes = " ".join(f"`vsteer stats {folder}`" for folder in missing)
    return f"{', '.join(reasons)}; {makes} makes them, then make this page again" if reasons else ""


def reasons(found: Sequence[Mapping[str, Any]], runs: Mapping[str, Path]) -> dict[str, str]:
    """For each section, in a line, why it may have nothing to show."""
    here = "in this run" if len(runs) == 1 else "in these runs"
    kinds = {one["kind"] for run in found for one in run["evaluations"]}
    folder = " ".join(map(str, runs.values()))
    no_texts = f"no open-ended evaluation {here}"
    return {
        "choice": (
            f"no result of a choice evaluation {here} yet"
            if "choice" in kinds
            else f"no choice evaluation {here}"
        ),
        "texts": f"no open-ended text {here} yet" if "open_ended" in kinds else no_texts,
        "coherence": (
            f"no text {here} has a score of its perplexity beside an effect at the same steering:"
            f" vsteer score {folder} --scorer perplexity"
            if "open_ended" in kinds
            else f"{no_texts}, so there is no text that could lose its coherence"
        ),
        "capability": (
            f"no evaluation of capability {here} at the same steering (its kind would be lm_eval, or its name"
            " or data contain mmlu, truthfulqa or capability)"
        ),
        "projections": (
            f"no text {here} was projected on a vector: vsteer mechanism project MODEL VECTOR --layer L"
            f" --run {folder}"
        ),
        "vectors": (
            f"no vector of this name was extracted {here}: its activations and cosines are not beside it"
        ),
    }


def page(data: Mapping[str, Any]) -> str:
    """The whole HTML."""
    import vl_convert

    return Template(page_file("page.html")).substitute(
        title=escape(data["title"]),
        version=__version__,
        vega=vl_convert.get_vega_version(),
        made=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        nonce=secrets.token_hex(16),
        css=page_file("page.css"),
        js="\n".join(map(page_file, SCRIPTS)),
        data=script_safe(json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))),
        runtime=runtime(data["level"]),
    )


def script_safe(text: str) -> str:
    """JSON that can't end a script element or begin a comment, whatever its strings contain."""
    for letter in "<>&\u2028\u2029":
        text = text.replace(letter, f"\\u{ord(letter):04x}")
    return text


@cache
def runtime(level: str) -> str:
    """Vega and the figures' specifications as one compressed script."""
    import vl_convert

    from vsteer.report.charts import specs

    # this is the address under which vl-convert has Vega (nothing is fetched), so that Vega-Lite stays out
    vega = f"https://cdn.jsdelivr.net/npm/vega@{vl_convert.get_vega_version()}/+esm"
    bundle = vl_convert.javascript_bundle(
        f"import {{View, parse}} from '{vega}'; window.vega = {{View, parse}};"
    )
    script = f"(function () {{\n{bundle}\n}})();\nwindow.SPECS = {json.dumps(specs(level))};"
    return base64.b64encode(gzip.compress(script.encode(), 9, mtime=0)).decode()
