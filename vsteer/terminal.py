"""Text on its way to a person: no terminal obeys what a prompt, a model, a file or its name may hold.

Control characters (ESC begins a terminal's commands) and those that turn the direction of writing are shown
as escapes, such as `\\x1b`. Line breaks and tabs stay. What a program reads is left as it is.
"""

from __future__ import annotations

import json
import logging
import re
import sys

import click

# C0 but tab and line feed, DEL, C1, marks and overrides of direction, line separators, half surrogate pairs
_CONTROL = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufff9-\ufffb\ud800-\udfff]"
)


def harmless(text: str) -> str:
    return _CONTROL.sub(_escape, text)


def on_one_line(text: str) -> str:
    """For a table's cell: line breaks and tabs are shown as escapes too."""
    return harmless(text).replace("\n", "\\n").replace("\t", "\\t")


def harmless_json(text: str) -> str:
    """The same values in JSON, whose own escapes stand for what a terminal might obey."""
    return _CONTROL.sub(lambda found: json.dumps(found[0])[1:-1], text)


def echo(text: object = "", *, err: bool = False) -> None:
    """Print a line for a person, on stdout or stderr."""
    click.echo(harmless(str(text)), err=err)


def echo_data(text: str) -> None:
    """Print what programs read too, such as CSV or a path: a pipe or a file gets it as it is."""
    click.echo(harmless(text) if sys.stdout.isatty() else text, color=True)


class LogFormatter(logging.Formatter):
    """For log messages, which Python prints on stderr where nobody set up anything else."""

    def format(self, record: logging.LogRecord) -> str:
        return harmless(super().format(record))


def _escape(found: re.Match[str]) -> str:
    return found[0].encode("unicode_escape").decode()
