"""`vsteer doctor`: whether a run would start on this machine, and what would make it faster."""

import json
import shutil
import textwrap
from dataclasses import asdict

import click

from vsteer.terminal import echo


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")
def doctor(as_json: bool) -> None:
    """Show what a run would meet on this machine, and how to fix it.

    It looks at versions, at whether everything inside vLLM that vsteer depends on is as vsteer knows it, at
    devices, threads, memory and space. `warn` marks what slows a run or may end it early, `REFUSED` what
    keeps it from starting. Nothing is loaded. Exits 1 when a run would be refused.

    \b
    Example:
      vsteer doctor
    """
    from vsteer.host.doctor import examine
    from vsteer.host.machine import this_machine

    machine = this_machine()
    found = examine(machine)
    if as_json:
        report = {
            "refused": found.refused,
            "versions": found.versions,
            "findings": [asdict(finding) for finding in found.findings],
        }
        echo(json.dumps(report, indent=2))
    else:
        width = min(110, shutil.get_terminal_size().columns)
        versions = "  ".join(f"{name} {version}" for name, version in found.versions.items())
        echo(_wrapped("", f"{versions}  on {machine.system}", width))
        echo()
        for finding in found.findings:
            label = finding.level.upper() if finding.level == "refused" else finding.level
            echo(_wrapped(f"{label:8}{finding.about:9}", finding.says, width))
            if finding.fix:
                echo(_wrapped(f"{'':17}fix: ", finding.fix, width))
        echo()
        warnings = sum(finding.level == "warn" for finding in found.findings)
        more = f"; warnings: {warnings}" if warnings else ""
        echo("a run would be refused" if found.refused else f"a run would start{more}")
    if found.refused:
        raise click.exceptions.Exit(1)


def _wrapped(lead: str, text: str, width: int) -> str:
    """The text in lines, with commands and paths whole, so that they can be copied."""
    return textwrap.fill(
        text,
        width=width,
        initial_indent=lead,
        subsequent_indent=" " * len(lead),
        break_long_words=False,
        break_on_hyphens=False,
    )
