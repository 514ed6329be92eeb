"""`vsteer status RUN` and `vsteer check RUN`: where a run stands, and whether it is whole."""

import json
from pathlib import Path

import click

from vsteer.terminal import echo

RUN = click.Path(path_type=Path)


@click.command()
@click.argument("run", type=RUN)
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")
def status(run: Path, as_json: bool) -> None:
    """Show where the run in the folder RUN stands, also while it goes on.

    \b
    Example:
      vsteer status runs/quickstart
    """
    from vsteer.store.status import status as status_of

    found = status_of(run)
    event = found.last_event or {}
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
            "live": found.live,
            "last_event": event,
        }
        echo(json.dumps(entry, indent=2))
        return
    planned = "not written yet" if found.planned is None else f"{found.planned:,}"
    share = f" ({found.done / found.planned:.1%})" if found.planned else ""
    echo(f"planned    {planned}")
    echo(f"good       {found.done:,}{share}")
    echo(f"failed     {found.errors:,}")
    if found.missing is not None:
        echo(f"missing    {found.missing:,}")
    echo(f"starts     {found.sessions}")
    who = found.holder
    echo(f"running    {f'yes, process {who.pid} on {who.host}' if who else 'no'}")
    echo(f"last event {event.get('event', 'none')} {event.get('at', '')}".rstrip())
    if found.unreadable or found.set_aside:
        echo(f"unreadable {len(found.unreadable)} files in rows/, {found.set_aside} in set-aside/")


@click.command()
@click.argument("grid", type=RUN)
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")
def check(grid: Path, as_json: bool) -> None:
    """Hold the run of the file GRID against its plan: every planned row once, no other, all readable.

    Exits 1 when something is wrong.

    \b
    Example:
      vsteer check runs/quickstart.yaml
    """
    from vsteer.grid.spec import read_grid
    from vsteer.plan.plan import make_plans
    from vsteer.run.folder import run_day, run_folder
    from vsteer.store.check import check as check_run
    from vsteer.store.planned import Planned

    read = read_grid(grid)
    folder = run_folder(read)
    plans = make_plans(read, run_day(folder))
    findings = check_run(folder, Planned(part for plan in plans for part in plan.parts()))
    faults = [finding for finding in findings if finding.fault]
    if as_json:
        entries = [{**vars(finding), "examples": list(finding.examples)} for finding in findings]
        echo(json.dumps({"whole": not faults, "findings": entries}, indent=2))
    else:
        for finding in findings:
            echo(f"{'WRONG' if finding.fault else 'note '}  {finding.message}")
            for example in finding.examples:
                echo(f"       {example}")
        rows = sum(plan.row_count for plan in plans)
        echo("NOT whole" if faults else f"whole: each of {rows:,} planned rows stands once")
    if faults:
        raise click.exceptions.Exit(1)
