"""README and docs/ are held to the code: what is generated, links, commands, grids, Python, names of files.

`make docs` writes the generated parts anew.
"""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import click
import pytest
import yaml
from click.testing import CliRunner

import vsteer
from tests import grid_reference
from tests.cli.test_cli import every_command
from tests.test_architecture import LAYERS
from vsteer import cli
from vsteer.grid.spec import read_grid
from vsteer.plan.plan import make_plans
from vsteer.results import queries
from vsteer.results import statistics_files as statistics
from vsteer.store import cosines, rounding, schema

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
PAGES = (README, *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "runs" / "bench").glob("*.md")))
MOST_BYTES = 8 * 1024
# ```language, and what stands up to the next ```
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
# a file or a folder of this repository, with * for any part of a name
FILE = re.compile(r"`((?:vsteer|tests|patches|queries)/[\w./*-]+|\.ci/\w+)`")


def label(page: Path) -> str:
    return str(page.relative_to(ROOT))


def blocks(page: Path, language: str) -> list[str]:
    return [text for found, text in BLOCK.findall(page.read_text()) if found == language]


# --- what is generated


def commands() -> str:
    """Every command's help, in a terminal of 80 columns."""
    parts = []
    for path in every_command(cli.main, ()):
        shown = CliRunner().invoke(cli.main, [*path, "--help"], prog_name="vsteer", terminal_width=80)
        parts.append(f"## {' '.join(('vsteer', *path))}\n\n```\n{shown.output}```")
    return "\n\n".join(parts)


def table(columns: Sequence[schema.Column]) -> str:
    lines = ["| column | type | what it is | null |", "| --- | --- | --- | --- |"]
    for column in columns:
        about = column.about
        if column.values:
            about += ": " + ", ".join(f"`{value}`" if value else "empty" for value in column.values)
        cells = (f"`{column.name}`", schema.SQL_TYPES[column.type], about, column.null or "never")
        lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return "\n".join(lines)


def columns() -> str:
    tables = (
        ("rows/*.parquet", schema.ROWS),
        ("configs.parquet", schema.CONFIGS),
        ("prompts.parquet", schema.PROMPTS),
        (rounding.ROUNDING_FILE, rounding.ROUNDING),
        (cosines.COSINES_FILE, cosines.COSINES),
        *((f"statistics/{name}.parquet", found) for name, found in statistics.TABLES.items()),
    )
    return "\n\n".join(f"### {title}\n\n{table(found)}" for title, found in tables)


def questions() -> str:
    """Each query and the question that its file opens with."""
    lines = ["| query | question |", "| --- | --- |"]
    for query in queries.queries().values():
        lines.append(f"| `{query.name}` | {query.question} |")
    return "\n".join(lines)


def first_line(file: Path) -> str:
    docstring = ast.get_docstring(ast.parse(file.read_text()))
    assert docstring, f"{file} does not say what it is"
    return docstring.splitlines()[0]


def tree() -> str:
    """The package's folders and top-level files, each with the first line of its docstring."""
    package = ROOT / "vsteer"
    found = [*package.glob("*.py"), *package.rglob("*/__init__.py"), *ROOT.glob("[pq]*/__init__.py")]
    rows = []
    for file in found:
        # what links lead to is beside the package
        if not file.parent.is_symlink():
            name = str(file.relative_to(ROOT)).removesuffix("__init__.py")
            rows.append(f"| `{name}` | {first_line(file)} |")
    return "\n".join(["| where | what |", "| --- | --- |", *sorted(rows)])


def layers() -> str:
    """The layers of tests/test_architecture.py, the highest first, as a numbered picture."""
    rows = [f"{floor + 1:2}  {'  '.join(layer)}" for floor, layer in enumerate(LAYERS)]
    return "\n".join(["```", *reversed(rows), "```"])


PARTS: dict[str, tuple[str, Callable[[], str]]] = {
    "commands": ("cli.md", commands),
    "columns": ("results.md", columns),
    "queries": ("results.md", questions),
    "settings": ("grid.md", grid_reference.settings),
    "covered": ("grid.md", grid_reference.positions),
    "tree": ("architecture.md", tree),
    "layers": ("architecture.md", layers),
}


def made_anew(part: str) -> tuple[Path, str]:
    """The page of a generated part, with that part as the code has it."""
    name, make = PARTS[part]
    page = ROOT / "docs" / name
    begin, end = f"<!-- {part}: made by `make docs` -->", f"<!-- end of {part} -->"
    pattern = re.escape(begin) + ".*?" + re.escape(end)
    text, count = re.subn(pattern, lambda _: f"{begin}\n{make()}\n{end}", page.read_text(), flags=re.DOTALL)
    assert count == 1, f"docs/{name} has no place for the {part}"
    return page, text


@pytest.mark.parametrize("part", PARTS)
def test_what_is_generated_is_as_the_code_has_it(part: str) -> None:
    page, text = made_anew(part)
    assert page.read_text() == text, "run `make docs`"


def test_a_table_names_every_column_once() -> None:
    lines = table(schema.ROWS).splitlines()
    assert lines[0] == "| column | type | what it is | null |"
    assert [line.split("`")[1] for line in lines[2:]] == schema.ROWS_SCHEMA.names
    about = "the layers that are steered, from 0; empty for a baseline"
    assert f"| `layers` | INTEGER[] | {about} | never |" in lines


def test_every_command_has_its_help_in_the_docs() -> None:
    text = (ROOT / "docs" / "cli.md").read_text()
    for path in every_command(cli.main, ()):
        assert f"\n## {' '.join(('vsteer', *path))}\n" in text


# --- what is written by hand


def test_the_readme_is_one_screen() -> None:
    assert len(README.read_bytes()) <= MOST_BYTES


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives to a page's headings."""
    text = BLOCK.sub("", page.read_text())
    titles = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=label)
def test_every_link_leads_somewhere(page: Path) -> None:
    for link in LINK.findall(BLOCK.sub("", page.read_text())):
        if re.match(r"\w+:", link):
            continue
        name, _, anchor = link.partition("#")
        there = (page.parent / name).resolve() if name else page
        assert there.exists(), link
        assert not anchor or anchor in anchors(there), link


@pytest.mark.parametrize("page", PAGES, ids=label)
def test_every_file_that_a_page_names_is_there(page: Path) -> None:
    if page.parent.name == "bench":
        return  # figures of a commit name its files
    missing = [name for name in FILE.findall(page.read_text()) if not any(ROOT.glob(name.rstrip("/")))]
    assert missing == []


def test_every_page_is_reached_from_the_readme() -> None:
    reached, ahead = set(), [README]
    while ahead:
        page = ahead.pop()
        reached.add(page)
        links = (link.partition("#")[0] for link in LINK.findall(page.read_text()))
        linked = {(page.parent / link).resolve() for link in links if link.endswith(".md")}
        ahead += sorted(found for found in linked - reached if found.exists())
    assert set(PAGES) <= reached


def calls(text: str) -> Iterator[list[str]]:
    """The words of every call of vsteer or make in some lines, those of a comment in a grid too."""
    for line in text.splitlines():
        words = shlex.split(line.strip().removeprefix("#"), comments=True)
        if words and words[0] in ("vsteer", "make"):
            yield words


def whole_calls() -> Iterator[tuple[str, list[str]]]:
    """What a reader is to type: every call in a block of shell and in the comments of a grid."""
    for page in PAGES:
        for block in blocks(page, "sh"):
            yield from ((label(page), words) for words in calls(block))
    for grid in sorted((ROOT / "runs").glob("*.yaml")):
        comments = "\n".join(line for line in grid.read_text().splitlines() if line.startswith("#  "))
        yield from ((label(grid), words) for words in calls(comments))


def mentions() -> Iterator[tuple[str, list[str]]]:
    """Calls within a sentence, which may lack a part."""
    for page in PAGES:
        # figures of a day are those of the commands of that day
        if page.parent.name != "bench":
            for text in re.findall(r"`((?:vsteer|make) [^`\n]+)`", BLOCK.sub("", page.read_text())):
                yield from ((label(page), words) for words in calls(text))


def wrong_in(words: list[str], whole: bool) -> str | None:
    if words[0] == "make":
        targets = set(re.findall(r"^([\w.-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
        return None if set(words[1:]) <= targets else "no such target"
    command: click.Command = cli.main
    context = click.Context(command, help_option_names=["-h", "--help"])
    at = 1
    while isinstance(command, click.Group) and at < len(words) and not words[at].startswith("-"):
        inner = command.get_command(context, words[at])
        if inner is None:
            return f"no command {words[at]}"
        command, context, at = inner, click.Context(inner, parent=context), at + 1
    known = {name for param in command.get_params(context) for name in param.opts}
    if unknown := {word for word in words[at:] if word.startswith("-")} - known:
        return f"no option {', '.join(sorted(unknown))}"
    if not whole:
        return None
    try:
        command.make_context(command.name, words[at:], parent=context.parent)
    except click.exceptions.Exit:
        return None
    except click.BadParameter as error:
        # a run that isn't made yet
        return None if "does not exist" in error.message else error.format_message()
    except click.UsageError as error:
        return error.format_message()
    return None


def test_every_call_that_a_page_shows_is_one() -> None:
    found = [(*call, True) for call in whole_calls()] + [(*call, False) for call in mentions()]
    assert len(found) > 40  # else they are not found any more
    wrong = [(page, " ".join(words), why) for page, words, whole in found if (why := wrong_in(words, whole))]
    assert wrong == []


@pytest.mark.parametrize(
    ("call", "why"),
    [
        ("make readme", "no such target"),
        ("vsteer rnu grid.yaml", "no command rnu"),
        ("vsteer show runs/quickstart", "Missing option '--prompt'"),
        ("vsteer run grid.yaml --quick", "no option --quick"),
        ("vsteer vectors extract smollm2-135m-instruct", "Missing argument 'DATA'"),
    ],
)
def test_a_call_that_is_none_is_found(call: str, why: str) -> None:
    assert why in str(wrong_in(call.split(), whole=True))


@pytest.mark.parametrize("page", PAGES, ids=label)
def test_a_grid_can_be_planned_and_a_part_of_one_is_yaml(page: Path, tmp_path: Path) -> None:
    for n, text in enumerate(blocks(page, "yaml")):
        assert isinstance(yaml.safe_load(text), dict)
        if text.startswith("version:"):
            path = tmp_path / f"{n}.yaml"
            path.write_text(text)
            assert sum(plan.row_count for plan in make_plans(read_grid(path))) > 0


def test_the_readme_has_a_grid_and_python() -> None:
    assert sum(text.startswith("version:") for text in blocks(README, "yaml")) == 1
    assert sum("import vsteer" in text for text in blocks(README, "python")) == 1


@pytest.mark.parametrize("page", PAGES, ids=label)
def test_python_in_a_page_is_python_and_names_what_vsteer_has(page: Path) -> None:
    for text in blocks(page, "python"):
        nodes = (node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Attribute))
        names = {
            node.attr for node in nodes if isinstance(node.value, ast.Name) and node.value.id == "vsteer"
        }
        assert names <= set(dir(vsteer))


if __name__ == "__main__":
    for part in PARTS:
        page, text = made_anew(part)
        page.write_text(text)
