"""`vsteer show` and `vsteer export`: the answers to a prompt over the multipliers, and every row."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result

from tests.store import makers
from vsteer import cli
from vsteer.cli.show import texts
from vsteer.store.files import write_sealed
from vsteer.store.store import open_store

SAID = {-1.0: "I am sad.", 0.0: "I am here.", 1.0: "I am \x1b[31mglad."}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Two texts' prompts and a choice, at layers 3 and 4, with a control that says something else."""
    folder = tmp_path / "run"
    configs: list[makers.Record] = []
    prompts: list[makers.Record] = []
    rows: list[makers.Record] = []
    for kind in ("open_ended", "choice"):
        evaluation = f"{kind}:toy"
        for item, question in enumerate(("How are you today?", "How is the weather today?")):
            asked = {"kind": kind, "evaluation": evaluation, "item_id": f"item-{item}"}
            prompt = {"prompt_id": f"{kind}-{item}", "question": question, "matching": 1, **asked}
            if kind == "open_ended":
                prompt |= {"choices": None, "matching": None}
            prompts.append(makers.prompt(item, **prompt))
        for layer, multiplier, control in (
            (None, 0.0, ""),
            *((layer, m, "") for layer in (3, 4) for m in (-1.0, 1.0)),
            (3, 1.0, "random"),
        ):
            axes: makers.Record = {
                "evaluation": evaluation,
                "kind": kind,
                "config_id": f"{kind}-{layer}-{multiplier}-{control}",
                "vector": "mood" if layer else "",
                "norm": "raw" if layer else "",
                "vector_sha256": "ab" * 32 if layer else "",
                "control": control,
                "control_index": 0 if control else None,
                "layers": [layer] if layer else [],
                "layer": layer,
                "depth": (layer + 1) / 8 if layer else None,
                "operation": "add" if layer else "",
                "multiplier": multiplier,
                "positions": "all" if layer else "",
            }
            configs.append(makers.config(**axes, rows=2))
            for item in range(2):
                number = len(rows)
                place = {"item_id": f"item-{item}", "prompt_id": f"{kind}-{item}", **axes}
                place |= {"row_id": makers.row_id(number), "steered_tokens": 9 if layer else 0}
                if kind == "open_ended":
                    text = "CONTROL" if control else f"{SAID[multiplier]} {item} {layer}"
                    rows.append(makers.text_row(number, **place, text=text))
                elif (layer, multiplier, item) == (4, 1.0, 0):
                    nothing = dict.fromkeys(("text", "token_ids", "finish_reason"))
                    failed = makers.error_row(number, **place)
                    rows.append({**failed, **nothing, "error": "too long", "steered_tokens": None})
                else:
                    answered = {
                        "choices": ["Yes", "No"],
                        "choice_logprobs": [math.log(0.2), math.log(0.6)],
                        "matching": 1,
                        "total_mass": 0.8,
                        "p_match": 0.75,
                        "logit_diff": math.inf if multiplier < 0 else math.log(3),
                    }
                    nothing = dict.fromkeys(("text", "token_ids", "finish_reason"))
                    rows.append(makers.row(number, **place, **answered, **nothing))
    with open_store(folder) as store:
        store.write_plan({"name": "toy"}, configs, prompts, len(rows))
        for row in rows:
            store.append(row)
        store.compact()
    return folder


def vsteer(*arguments: object) -> Result:
    return CliRunner().invoke(cli.main, list(map(str, arguments)))


def test_texts_over_the_multipliers(run: Path) -> None:
    printed = vsteer("show", run, "--prompt", "are YOU", "--layer", 3).stdout
    lines = printed.splitlines()
    shown = [line for line in lines if line.startswith(("---", "I am"))]
    assert shown == [
        "--- -1",
        "I am sad. 0 3 …",
        "--- unsteered",
        "I am here. 0 None …",
        "--- +1",
        # what a terminal would obey is shown
        "I am \\x1b[31mglad. 0 3 …",
    ]
    assert "CONTROL" not in printed
    assert "\x1b" not in printed


def test_probabilities_of_a_choice(run: Path) -> None:
    shown = vsteer("show", run, "--prompt", "are you", "--layer", 3).stdout
    table = [
        line.split() for line in shown.splitlines() if line and line.split()[0] in ("-1", "unsteered", "+1")
    ]
    assert table == [
        ["-1", "0.200", "0.600", "0.750", "inf", "0.800"],
        ["unsteered", "0.200", "0.600", "0.750", "1.10", "0.800"],
        ["+1", "0.200", "0.600", "0.750", "1.10", "0.800"],
    ]
    assert "p(No)*" in shown
    assert "p(Yes) " in shown


def test_a_row_that_failed_says_so(run: Path) -> None:
    assert "+1: failed: too long" in vsteer("show", run, "--prompt", "are you", "--layer", 4).stdout


def test_one_prompt_is_meant_and_one_layer(run: Path) -> None:
    several = vsteer("show", run, "--prompt", "today", "--layer", 3)
    assert several.exit_code == 2
    assert "2 prompts have 'today' in their question:" in several.stderr
    assert "item-1  How is the weather today?" in several.stderr
    by_id = vsteer("show", run, "--prompt", "item-1", "--layer", 3)
    assert "prompt  How is the weather today?" in by_id.stdout
    assert "no prompt has 'xyz'" in vsteer("show", run, "--prompt", "xyz", "--layer", 3).stderr
    assert "give --layer, one of 3, 4" in vsteer("show", run, "--prompt", "item-1").stderr
    assert "layer 9 is not steered" in vsteer("show", run, "--prompt", "item-1", "--layer", 9).stderr
    assert (
        "by the vector other"
        in vsteer("show", run, "--prompt", "item-1", "--layer", 3, "--vector", "other").stderr
    )
    assert "is not a run's folder" in vsteer("show", run.parent, "--prompt", "a").stderr


def test_an_item_that_stands_in_two_evaluations_and_a_part_of_its_id(run: Path) -> None:
    """Each evaluation of the fixture asks both items; one has the question in words of its own."""
    prompts = pq.read_table(run / "prompts.parquet")
    words = [
        f"Yes or no: {question}" if kind == "choice" else question
        for question, kind in zip(prompts["question"].to_pylist(), prompts["kind"].to_pylist(), strict=True)
    ]
    place = prompts.schema.get_field_index("question")
    write_sealed(
        run / "prompts.parquet", prompts.set_column(place, prompts.schema.field(place), pa.array(words))
    )
    both = vsteer("show", run, "--prompt", "item-0", "--layer", 3).stdout
    assert "prompt  How are you today?\nprompt  Yes or no: How are you today?" in both
    assert ("open_ended:toy in" in both, "choice:toy in" in both) == (True, True)
    one = vsteer("show", run, "--prompt", "item-0", "--layer", 3, "--evaluation", "choice:toy").stdout
    assert "prompt  Yes or no: How are you today?" in one
    assert ("open_ended:toy in" in one, "choice:toy in" in one) == (False, True)
    assert vsteer("show", run, "--prompt", "choice-1", "--layer", 3).stdout.startswith("prompt  How is the")
    assert "2 prompts have 'item-'" in vsteer("show", run, "--prompt", "item-", "--layer", 3).stderr
    unknown = vsteer("show", run, "--prompt", "item-0", "--layer", 3, "--evaluation", "choice:toi")
    assert "did you mean 'choice:toy'?" in unknown.stderr


def test_columns_fit_the_terminal() -> None:
    rows: list[dict[str, Any]] = [
        {"multiplier": m, "status": "ok", "text": "word " * 30, "finish_reason": "stop"}
        for m in (-2.0, -1.0, 0.0, 1.0, 2.0)
    ]
    for width, beside in ((200, 5), (60, 2), (20, 1)):
        lines = texts(rows, width).splitlines()
        assert max(map(len, lines)) <= width
        assert len(lines[0].split()) == beside
    # every word is there, whatever the width
    assert texts(rows, 60).split().count("word") == 150


def test_csv_has_every_row_as_it_stands(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "rows.csv"
    assert "24 rows" in vsteer("export", run, "-o", out).stdout
    with out.open(newline="") as file:
        written = list(csv.DictReader(file))
    stored = duckdb.sql(f"select * from '{run}/rows/*.parquet'")
    assert list(written[0]) == stored.columns
    rows = [dict(zip(stored.columns, row, strict=True)) for row in stored.fetchall()]
    assert {row["row_id"] for row in written} == {row["row_id"] for row in rows}
    by_id = {row["row_id"]: row for row in rows}
    for row in written:
        true = by_id[row["row_id"]]
        for name in ("text", "error", "vector"):
            assert row[name] == (true[name] or "")
        assert json.loads(row["layers"]) == true["layers"]
        assert (json.loads(row["choices"]) if row["choices"] else None) == true["choices"]
        assert row["logit_diff"] == "" or float(row["logit_diff"]) == true["logit_diff"]
        assert row["started_at"] == true["started_at"].strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def test_json_lines_have_every_row(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "rows.jsonl"
    vsteer("export", run, "-o", out)
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert len(rows) == 24
    assert {row["text"] for row in rows if row["text"]} >= {"I am \x1b[31mglad. 0 3", "CONTROL"}
    assert [row["logit_diff"] for row in rows if row["kind"] == "choice"].count(math.inf) == 4
    assert {row["control_index"] for row in rows} == {None, 0}


def test_a_file_is_whole_or_not_there(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "rows.csv"
    out.write_text("mine")
    assert vsteer("export", run, "-o", out).exit_code == 1
    assert out.read_text() == "mine"
    assert vsteer("export", run, "-o", out, "--force").exit_code == 0
    assert out.read_text() != "mine"
    assert vsteer("export", run, "-o", tmp_path / "rows.xlsx").exit_code == 2
    assert vsteer("export", run, "-o", tmp_path / "no" / "rows.csv").exit_code == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["rows.csv", "run"]
