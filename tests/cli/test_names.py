"""Names that no file can have, or no reader of Parquet can open: one message, whatever the verb."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from click.testing import CliRunner

from tests.store.makers import row, write_plan
from vsteer import cli
from vsteer.errors import StoreError
from vsteer.store.store import open_store

LONG = "select " + "x" * 300
COMMANDS = (
    ("sql", "NAME"),
    ("sql", "layer_peaks", "NAME"),
    ("status", "NAME"),
    ("check", "NAME"),
    ("report", "NAME"),
    ("stats", "NAME"),
    ("score", "NAME"),
    ("show", "NAME", "--prompt", "x"),
    ("export", "NAME", "-o", "OUT/rows.csv"),
    ("run", "NAME"),
    ("plan", "NAME"),
)


def said(tmp_path: Path, command: tuple[str, ...], name: str) -> str:
    words = [{"NAME": name}.get(word, word).replace("OUT", str(tmp_path)) for word in command]
    done = CliRunner().invoke(cli.main, words)
    assert isinstance(done.exception, SystemExit), done.exception
    assert done.exit_code in (1, 2)
    assert len(done.output) <= 600
    assert "\nhint: " in done.output
    return done.output


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_a_name_too_long_for_a_file_is_one_message(tmp_path: Path, command: tuple[str, ...]) -> None:
    """Such as SQL without -c before it."""
    text = said(tmp_path, command, LONG)
    assert "too long" in text
    assert LONG[:200] not in text
    if command == ("sql", "NAME"):
        assert "vsteer sql -c" in text


@pytest.mark.parametrize("command", [one for one in COMMANDS if one[0] not in ("run", "plan")], ids=" ".join)
def test_a_runs_folder_whose_name_is_not_utf8_is_one_message(
    tmp_path: Path, command: tuple[str, ...]
) -> None:
    folder = tmp_path / "run"
    with open_store(folder) as store:
        write_plan(store, 1)
        store.append(row(0))
    odd = folder.rename(tmp_path / os.fsdecode(b"run\xff"))
    with pytest.raises(StoreError, match="is not UTF-8"):
        open_store(odd)
    assert "run\\udcff is not UTF-8" in said(tmp_path, command, str(odd))
