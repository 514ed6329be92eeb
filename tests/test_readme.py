"""The README's generated parts are what the code says. `make readme` writes them anew."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import click
from click.testing import CliRunner

from tests.cli.test_cli import every_command
from vsteer import cli
from vsteer.results import statistics_files as statistics
from vsteer.store import schema

README = Path(__file__).parent.parent / "README.md"


def commands() -> str:
    """Every command's help, in a terminal of 80 columns."""
    parts = []
    for path in every_command(cli.main, ()):
        shown = CliRunner().invoke(cli.main, [*path, "--help"], prog_name="vsteer", terminal_width=80)
        title = " ".join(("vsteer", *path))
        parts.append(
            f"<details><summary><code>{title}</code></summary>\n\n```\n{shown.output}```\n\n</details>"
        )
    return "\n".join(parts)


def columns() -> str:
    tables = (
        ("`rows/*.parquet`, one row for each configuration, item and sample", schema.ROWS),
        ("`configs.parquet`", schema.CONFIGS),
        ("`prompts.parquet`", schema.PROMPTS),
        *((f"`statistics/{name}.parquet`", found) for name, found in statistics.TABLES.items()),
    )
    return "\n\n".join(f"{title}:\n\n{schema.as_markdown(found)}" for title, found in tables)


PARTS: dict[str, Callable[[], str]] = {"commands": commands, "columns": columns}


def made_anew(text: str) -> str:
    for name, make in PARTS.items():
        begin, end = f"<!-- {name}: made by `make readme` -->", f"<!-- end of {name} -->"
        pattern = re.escape(begin) + ".*?" + re.escape(end)
        text, count = re.subn(pattern, lambda _: f"{begin}\n{make()}\n{end}", text, flags=re.DOTALL)  # noqa: B023
        assert count == 1, f"the README has no place for the {name}"
    return text


def test_the_readme_says_what_the_commands_and_tables_are() -> None:
    text = README.read_text()
    assert made_anew(text) == text, "run `make readme`"


def test_every_command_is_in_the_readme() -> None:
    for path in every_command(cli.main, ()):
        assert isinstance(cli.main, click.Group)
        assert f"<code>{' '.join(('vsteer', *path))}</code>" in README.read_text()


if __name__ == "__main__":
    README.write_text(made_anew(README.read_text()))
