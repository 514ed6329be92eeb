"""`vsteer status` and `vsteer check`: where a run stands, and whether it is whole."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from vsteer.terminal import echo

if TYPE_CHECKING:
    from vsteer.protocol import EngineStanding
    from vsteer.store.planned import Planned

RUN = click.Path(path_type=Path)


@click.command()
@click.argument("run", type=RUN)
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")
def status(run: Path, as_json: bool) -> None:
    """Show where RUN stands, a run's folder or the file of its grid, also while it goes on.

    \b
    Example:
      vsteer status runs/quickstart
    """
    from vsteer.run.engines_file import read
    from vsteer.run.folder import find_run
    from vsteer.store.status import status as status_of

    folder = find_run(run)
    found = status_of(folder)
    at, engines = read(folder)
    event = found.last_event or {}
    if found.manifest:
        echo(f"warning: {found.manifest}", err=True)
    if as_json:
        entry = {
            "planned": found.planned,
            "done": found.done,
            "errors": found.errors,
            "missing": found.missing,
            "sessions": found.sessions,
            "compacted": found.compacted,
            "unreadable": list(found.unreadable),
            "set_aside": found.set_aside,
            "unplanned": found.unplanned,
            "live": found.live,
            "engines": [asdict(engine) for engine in engines],
            "unreadable_events": found.unreadable_events,
            "last_event": event,
        }
        echo(json.dumps(entry, indent=2))
        return
    unplanned = "not known" if found.manifest else "not written yet"
    planned = unplanned if found.planned is None else f"{found.planned:,}"
    share = f" ({found.done / found.planned:.1%})" if found.planned else ""
    echo(f"planned    {planned}")
    echo(f"good       {found.done:,}{share}")
    echo(f"failed     {found.errors:,}")
    if found.missing is not None:
        echo(f"missing    {found.missing:,}")
    echo(f"starts     {found.sessions}")
    who = found.holder
    echo(f"running    {f'yes, process {who.pid} on {who.host}' if who else 'no'}")
    if engines:
        echo(_engines(engines, found.live, at))
    echo(f"last event {event.get('event', 'none')} {event.get('at', '')}".rstrip())
    if found.unreadable_events:
        lines = "1 line" if found.unreadable_events == 1 else f"{found.unreadable_events:,} lines"
        echo(f"unreadable {lines} of events.jsonl, left out above")
    if found.unreadable:
        echo(f"unreadable {len(found.unreadable)} files in rows/, which the next start sets aside")
    if found.set_aside or found.unplanned:
        aside = [
            f"{count} with {what}"
            for count, what in (
                (found.unplanned, "rows that the grid no longer planned"),
                (found.set_aside, "what can't be read or isn't the run's"),
            )
            if count
        ]
        echo(f"set aside  files in set-aside/: {', '.join(aside)}")


def _engines(engines: Sequence[EngineStanding], live: bool, at: str) -> str:
    """How several engines fare: their sums, and those that are up or have died in a table."""
    up = [engine for engine in engines if engine.state == "up"]
    deaths = sum(engine.deaths for engine in engines)
    rate = sum(engine.rows_per_second for engine in up)
    now = f"{len(up)} of up to {len(engines)} are up, {rate:,.1f} rows/s" if live else f"none now; as of {at}"
    lines = [f"engines    {now}, {_deaths(deaths)}"]
    for one in engines:
        if one.host or one.deaths:
            speed = f"{one.rows_per_second:,.1f} rows/s, " if live else ""
            died = f", {_deaths(one.deaths)}, the last: {one.last_error}" if one.deaths else ""
            lines.append(
                f"  {one.number:<8} {one.state} on {one.host or 'no node'}, {speed}{one.rows:,} rows{died}"
            )
    return "\n".join(lines)


def _deaths(count: int) -> str:
    return f"{count:,} death{'' if count == 1 else 's'}"


@click.command()
@click.argument("run", type=RUN)
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")
def check(run: Path, as_json: bool) -> None:
    """Check RUN against its plan: each planned row is there once, no other is, and all can be read.

    RUN is the file of a grid, which is planned as it is now, or a run's folder, whose plan is that of its
    last start. Exits 1 when something is wrong.

    \b
    Example:
      vsteer check runs/quickstart.yaml
    """
    from vsteer.run.folder import find_run
    from vsteer.store.check import check as check_run
    from vsteer.store.stored_plan import stored_plan

    folder = find_run(run)
    planned = _plan_of_grid(run) if run.is_file() else stored_plan(folder)
    findings = check_run(folder, planned)
    faults = [finding for finding in findings if finding.fault]
    if as_json:
        entries = [{**vars(finding), "examples": list(finding.examples)} for finding in findings]
        echo(json.dumps({"whole": not faults, "findings": entries}, indent=2))
    else:
        for finding in findings:
            echo(f"{'WRONG' if finding.fault else 'note '}  {finding.message}")
            for example in finding.examples:
                echo(f"       {example}")
        echo("NOT whole" if faults else f"whole: each of {len(planned):,} planned rows stands once")
    if faults:
        raise click.exceptions.Exit(1)


def _plan_of_grid(path: Path) -> Planned:
    from vsteer.grid.spec import read_grid
    from vsteer.run.folder import run_plans
    from vsteer.store.planned import Planned

    return Planned(part for plan in run_plans(read_grid(path)) for part in plan.parts())
