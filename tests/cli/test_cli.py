"""The command line's frame: lazy verbs, errors without a traceback, exit codes, help that shows examples."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import click
import pytest
from click.testing import CliRunner, Result

from vsteer import cli
from vsteer.errors import ModelError, UsageError


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VSTEER_HOME", str(tmp_path / "home"))


def run(*arguments: str) -> Result:
    return CliRunner().invoke(cli.main, arguments)


def run_verb_that_raises(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> Result:
    @click.command()
    def verb() -> None:
        raise error

    module = ModuleType("a_verb")
    module.__dict__["verb"] = verb
    monkeypatch.setitem(sys.modules, "a_verb", module)
    monkeypatch.setitem(cli.VERBS, "verb", ("a_verb:verb", "Raise."))
    return run("verb")


def every_command(command: click.Command, path: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    yield path
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            inner = command.get_command(context, name)
            assert inner is not None
            yield from every_command(inner, (*path, name))


def test_every_command_shows_an_example_of_itself() -> None:
    for path in every_command(cli.main, ()):
        done = run(*path, "--help")
        assert done.exit_code == 0
        _, example = done.stdout.split("Example:\n")
        assert " ".join(("vsteer", *path)) in example


def test_the_group_lists_every_verb_with_its_line() -> None:
    listing = run("--help").stdout.split("Commands:")[1]
    for verb in cli.VERBS:
        assert f"\n  {verb} " in listing


@pytest.mark.parametrize(
    ("error", "code"), [(ModelError("it broke", "fix it"), 1), (UsageError("it broke", "fix it"), 2)]
)
def test_our_errors_are_two_lines_on_stderr(
    error: Exception, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = run_verb_that_raises(error, monkeypatch)
    assert (done.exit_code, done.stdout, done.stderr) == (code, "", "error: it broke\nhint: fix it\n")


def test_ctrl_c_ends_with_130(monkeypatch: pytest.MonkeyPatch) -> None:
    done = run_verb_that_raises(KeyboardInterrupt(), monkeypatch)
    assert (done.exit_code, done.stderr) == (130, "interrupted\n")


def test_a_bug_stays_loud(monkeypatch: pytest.MonkeyPatch) -> None:
    bug = ZeroDivisionError("a bug")
    assert run_verb_that_raises(bug, monkeypatch).exception is bug


def test_an_unknown_verb_is_a_usage_error() -> None:
    done = run("stear")
    assert done.exit_code == 2
    assert "No such command 'stear'" in done.stderr


def test_models_are_listed_fetched_and_located(tmp_path: Path) -> None:
    folder = str(tmp_path / "home" / "models" / "tiny-llama")

    before = run("models", "path", "tiny-llama")
    assert before.exit_code == 1
    assert before.stderr == "error: tiny-llama is not here yet\nhint: run: vsteer models get tiny-llama\n"

    assert run("models", "get", "tiny-llama").stdout == f"{folder}\n"
    assert run("models", "path", "tiny-llama").stdout == f"{folder}\n"

    listed = {row["name"]: row for row in json.loads(run("models", "list", "--json").stdout)}
    assert listed["tiny-llama"]["present"] is True
    assert listed["tiny-llama"]["path"] == folder
    assert listed["smollm2-135m-instruct"]["present"] is False

    table = run("models", "list").stdout.splitlines()
    assert table[0].split() == ["NAME", "SIZE", "LICENSE", "HERE", "WHAT", "IT", "IS"]
    assert table[2].split()[:7] == ["gemma3-270m", "1055", "MiB", "Gemma", "Terms", "of", "Use"]
    assert [line.split()[:5] for line in (table[1], *table[3:])] == [
        ["smollm2-135m-instruct", "517", "MiB", "Apache-2.0", "no"],
        ["tiny-llama", "5", "MiB", "Apache-2.0", "yes"],
    ]


def test_an_unknown_model_name_lists_the_known_ones() -> None:
    done = run("models", "get", "tiny-lama")
    assert done.exit_code == 2
    assert done.stderr == (
        "error: no named model 'tiny-lama'\n"
        "hint: the named models are smollm2-135m-instruct, gemma3-270m, tiny-llama\n"
    )
