"""`vsteer sql`: the query in four shapes, DuckDB's own command for the same, and the shell."""

from __future__ import annotations

import csv
import io
import json
import shlex
from pathlib import Path

import duckdb
import pytest
from click.testing import CliRunner, Result

from tests.results.made_up import Cell, make_run, sweep, write_vector
from vsteer import cli
from vsteer.results.views import statements


def sql(*arguments: str, typed: str | None = None) -> Result:
    return CliRunner().invoke(cli.main, ["sql", *arguments], input=typed)


@pytest.fixture
def run(tmp_path: Path) -> str:
    folder = tmp_path / "toy-run"
    sha256 = write_vector(folder, "toy", [2.0] * 4, stream=50.0)

    def says(cell: Cell) -> float:
        return 1 + cell.steered.multiplier * {None: 0, 1: 1.0, 2: 3.0}[cell.steered.layer]

    return str(make_run(folder, sweep("toy", (1, 2), (-1.0, 1.0), sha256=sha256), says))


def test_shapes_say_the_same(run: str) -> None:
    asked = json.loads(sql("layer_peaks", run, "--format", "json").stdout)
    assert [(row["multiplier"], row["peak_layer"], row["effect"]) for row in asked] == [
        (-1, 2, -3),
        (1, 2, 3),
    ]
    # the vectors' lengths were measured on the way
    assert [row["relative_norm"] for row in asked] == pytest.approx([0.04, 0.04])
    as_csv = list(csv.DictReader(io.StringIO(sql("layer_peaks", run, "--format", "csv").stdout)))
    assert [(float(row["multiplier"]), row["peak_layer"]) for row in as_csv] == [(-1, "2"), (1, "2")]
    table = sql("layer_peaks", run).stdout.splitlines()
    assert "vector: toy" in table
    assert "norm: raw" in table
    md = sql("layer_peaks", run, "--format", "md").stdout.splitlines()
    assert md[0].startswith("| run | model |")
    assert len(md) == 4


def test_duckdb_alone_does_the_same(run: str) -> None:
    printed = shlex.split(sql("multiplier_curves", run, "--set", "layer=2", "--print").stdout)
    assert printed[:3] == ["duckdb", "-box", "-c"]
    *made, last = statements(printed[3])
    with duckdb.connect() as database:
        for statement in made:
            database.execute(statement)
        effects = [row[0] for row in database.execute(f"select effect from ({last})").fetchall()]
    asked = json.loads(sql("multiplier_curves", run, "--set", "layer=2", "--format", "json").stdout)
    assert effects == [row["effect"] for row in asked] == [-3.0, 0.0, 3.0]


def test_a_name_nearly_right_and_one_that_is_not() -> None:
    done = sql("layer_peeks", "somewhere")
    assert (done.exit_code, done.stderr) == (
        2,
        "error: no query 'layer_peeks'\nhint: did you mean 'layer_peaks'?\n",
    )
    assert "the queries are capability_cost, " in sql("xyz", "somewhere").stderr


def test_a_wrong_command_is_an_error_with_a_hint(run: str, tmp_path: Path) -> None:
    assert "no run is given" in sql("layer_peaks").stderr
    assert "there is no folder no/where" in sql("no/where").stderr
    assert "is not a run's folder" in sql("layer_peaks", str(tmp_path)).stderr
    assert "is no parameter" in sql("layer_peaks", run, "--set", "layer").stderr
    assert "--about needs a query" in sql(run, "--about").stderr


def test_the_list_and_a_querys_words() -> None:
    assert "layer_peaks " in sql("--list").stdout
    assert "Caveat:" in sql("layer_peaks", "--about").stdout


def test_the_shell_asks_queries_and_sql(run: str) -> None:
    lines = [
        "layer_peaks",
        "select count(*)",
        "  as n from rows;",
        ".list",
        "layer_peeks",
        "select nonsense;",
    ]
    typed = "\n".join([*lines, ".nothing", ".quit", ""])
    done = sql(run, typed=typed)
    shown, wrong = done.stdout, done.stderr
    assert "peak_layer" in shown
    assert "n  20\n" in shown
    assert "sign_asymmetry " in shown
    assert "did you mean 'layer_peaks'?" in wrong
    assert '"nonsense"' in wrong
    assert "no command .nothing" in wrong
    assert done.exit_code == 1


@pytest.mark.parametrize(
    "typed", ["select 20 + 1 as n", "select 20 + 1 as n;", "select 20\n + 1 as n\n;\n\n"]
)
def test_what_is_piped_runs_with_and_without_a_semicolon(run: str, typed: str) -> None:
    done = sql(run, "--format", "csv", typed=typed)
    assert (done.exit_code, done.stdout) == (0, "n\n21\n")


def test_sql_on_the_command_line(run: str) -> None:
    done = sql("-c", "select count(*) as n from effects", run, "--format", "csv")
    # two layers and two multipliers on four items
    assert (done.exit_code, done.stdout) == (0, "n\n16\n")
    wrong = sql("--command", "select nonsense", run)
    assert (wrong.exit_code, wrong.stdout) == (2, "")
    assert "\nhint: " in wrong.stderr
    assert "Traceback" not in wrong.stderr
    printed = shlex.split(sql("-c", "select count(*) as n from effects", run, "--print").stdout)
    assert statements(printed[3])[-1] == "select count(*) as n from effects"


def test_a_wide_table_repeats_its_keys_and_is_as_wide_as_asked(
    run: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = (
        "select l.layer, m as multiplier, repeat('x', 20) || m as first, repeat('y', 20) || l.layer as second"
        " from (values (1), (2)) l(layer), (values (-1), (1)) v(m) order by all"
    )
    for columns, parts in (("120", 1), ("50", 2)):
        monkeypatch.setenv("COLUMNS", columns)
        shown = sql("-c", asked, run).stdout
        assert max(map(len, shown.splitlines())) <= int(columns)
        blocks = shown.strip().split("\n\n")
        assert len(blocks) == parts
        for block in blocks:
            header, *rows = [line.split() for line in block.splitlines()]
            assert header[:2] == ["layer", "multiplier"]
            assert [row[:2] for row in rows] == [["1", "-1"], ["1", "1"], ["2", "-1"], ["2", "1"]]


def test_an_empty_answer_names_the_columns(run: str) -> None:
    assert sql("letter_bias", run).stdout.startswith("no rows; the columns are run, model, ")


def test_a_run_that_can_not_be_written_to_is_read_all_the_same(
    run: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        from vsteer.errors import VectorError

        raise VectorError("could not write norms.parquet", "look at the disk")

    monkeypatch.setattr("vsteer.vectors.run_norms.write_vector_norms", refuse)
    done = sql("layer_peaks", run, "--format", "json")
    assert "warning: relative_norm is not known" in done.stderr
    assert [row["relative_norm"] for row in json.loads(done.stdout)] == [None, None]
