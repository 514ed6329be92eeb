"""`vsteer doctor`: whether a run would start here, or on a cluster, and what would make it faster."""

from __future__ import annotations

import json
import shutil
import textwrap
from collections.abc import Iterable
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from vsteer.terminal import echo

if TYPE_CHECKING:
    from vsteer.host.doctor import Examination, Finding


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")
@click.option("--model", metavar="MODEL", help="Look for this model too: a named one, a folder, or a hub id.")
@click.option(
    "--ray",
    metavar="ADDRESS",
    help="Look at every node of a Ray cluster: host:port, or auto for the one that this machine is in.",
)
def doctor(as_json: bool, model: str | None, ray: str | None) -> None:
    """Show what a run would meet on this machine, and how to fix it.

    It looks at versions, at whether everything inside vLLM that vsteer depends on is as vsteer knows it, at
    devices, threads, memory and space. `warn` marks what slows a run or may end it early, `REFUSED` what
    keeps it from starting. Nothing is loaded. Exits 1 when a run would be refused.

    \b
    Example:
      vsteer doctor
      vsteer doctor --ray auto --model org/name
    """
    from vsteer.host.doctor import examine
    from vsteer.host.machine import this_machine

    if ray is not None:
        _cluster(ray, model, as_json)
        return
    machine = this_machine()
    found = examine(machine, model)
    if as_json:
        echo(json.dumps(_plain(found), indent=2))
    else:
        width = min(110, shutil.get_terminal_size().columns)
        echo(_wrapped("", f"{_versions(found)}  on {machine.system}", width))
        echo()
        _print(found.findings, width)
        echo()
        warnings = sum(finding.level == "warn" for finding in found.findings)
        more = f"; warnings: {warnings}" if warnings else ""
        echo("a run would be refused" if found.refused else f"a run would start{more}")
    if found.refused:
        raise click.exceptions.Exit(1)


def _cluster(address: str, model: str | None, as_json: bool) -> None:
    """Every node's examination, of which the text shows what isn't as it should be."""
    from vsteer.cluster.nodes import on_every_node
    from vsteer.host.doctor import differing, examine_here

    answers = on_every_node(address, examine_here, model)
    # several nodes may be simulated on one machine
    examined = {f"{one.host}#{n}": one.answer for n, one in enumerate(answers) if one.answer is not None}
    between = list(differing(examined))
    silent = [one for one in answers if one.answer is None]
    refused = bool(between or silent) or any(found.refused for found in examined.values())
    if as_json:
        nodes = [
            {"host": one.host, "gpus": one.gpus, "cores": one.cores, "error": one.error}
            | (_plain(one.answer) if one.answer else {})
            for one in answers
        ]
        report = {"refused": refused, "nodes": nodes, "findings": [asdict(finding) for finding in between]}
        echo(json.dumps(report, indent=2))
    else:
        width = min(110, shutil.get_terminal_size().columns)
        for one in answers:
            echo(
                _wrapped(
                    "",
                    f"{one.host}: {_count(one.gpus, 'GPU')} and {_count(one.cores, 'core')} for engines",
                    width,
                )
            )
            if one.answer is None:
                echo(_wrapped("  ", f"it does not answer: {one.error}", width))
                continue
            echo(_wrapped("  ", _versions(one.answer), width))
            _print((finding for finding in one.answer.findings if finding.level != "ok"), width)
        echo()
        _print(between, width)
        devices = sum(one.gpus for one in answers)
        where = f"{_count(len(answers), 'node')} with {_count(devices, 'GPU')}"
        echo("a run would be refused" if refused else f"a run would start on {where}")
    if refused:
        raise click.exceptions.Exit(1)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _plain(found: Examination) -> dict[str, object]:
    return {
        "refused": found.refused,
        "versions": found.versions,
        "findings": [asdict(finding) for finding in found.findings],
    }


def _versions(found: Examination) -> str:
    return "  ".join(f"{name} {version}" for name, version in found.versions.items())


def _print(findings: Iterable[Finding], width: int) -> None:
    for finding in findings:
        label = finding.level.upper() if finding.level == "refused" else finding.level
        echo(_wrapped(f"{label:8}{finding.about:9}", finding.says, width))
        if finding.fix:
            echo(_wrapped(f"{'':17}fix: ", finding.fix, width))


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
