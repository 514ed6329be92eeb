"""No text of a user's, a model's or a file's reaches a terminal as a command, whichever verb prints it."""

from __future__ import annotations

import ast
import csv
import io
import json
import logging
import sys
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pytest
from click.testing import CliRunner, Result

import vsteer as vsteer_package
from tests.fake_engine import FakeEngine
from tests.run import fake
from vsteer import terminal
from vsteer.cli import VERBS, main
from vsteer.models import resolve
from vsteer.protocol import Request
from vsteer.results.queries import queries
from vsteer.run import start
from vsteer.vectors.files import save
from vsteer.vectors.vector import Origin, SteeringVector

# A reset, a colour, a title, the one-character form of a command's beginning, a bell, letters that overwrite,
# and a change of direction.
EVIL = "a\x1bc\x1b[31m\x1b]0;owned\x07\x9b2J\rb\x08\u202ec\u2066d"
# The same in a file's name, without what patterns of files would be read from.
NAME = "a\x1bc\x9b2J\x07\u202eb"
TURNS = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}
MARKS = {
    unicodedata.lookup(name) for name in ("LEFT-TO-RIGHT MARK", "RIGHT-TO-LEFT MARK", "ARABIC LETTER MARK")
}
GRID = """\
version: 1
name: evil
model: {{id: {model}, dtype: float32}}
vectors:
  v: {{data: {data}, token: last}}
grid:
  - {{vector: v, layers: [1, 2, 3], multipliers: [-1, 1], positions: all}}
controls: {{system_prompts: {{positive: {text}}}}}
evaluations:
  - {{kind: choice, data: {data}}}
  - {{kind: open_ended, data: {open}, max_tokens: 4}}
"""


def dangerous(letter: str) -> bool:
    """By Unicode's own tables: controls, line separators, half surrogates, and what turns the direction."""
    return letter not in "\n\t" and (
        unicodedata.category(letter) in ("Cc", "Zl", "Zp", "Cs")
        or unicodedata.bidirectional(letter) in TURNS
        or letter in MARKS
    )


def found_in(text: str) -> set[str]:
    return set(filter(dangerous, text))


def test_every_dangerous_character_is_shown_and_no_other() -> None:
    for code in range(sys.maxunicode + 1):
        letter = chr(code)
        if 0xFFF9 <= code <= 0xFFFB:
            continue  # brackets of annotations, which hide what stands between them
        shown = terminal.harmless(letter)
        if dangerous(letter):
            assert shown == f"\\x{code:02x}" or shown == f"\\u{code:04x}" or (shown, letter) == ("\\r", "\r")
        else:
            assert shown == letter
    assert terminal.harmless("नमस्ते 👩‍🔬 عربى\tx\n") == "नमस्ते 👩‍🔬 عربى\tx\n"
    assert terminal.on_one_line("a\tb\nc") == "a\\tb\\nc"


def test_json_keeps_its_values() -> None:
    values = {"text": EVIL + "\n\t\"'\\é🙂\ud800", EVIL: [1, None]}
    shown = terminal.harmless_json(json.dumps(values, indent=2, ensure_ascii=False))
    assert not found_in(shown)
    assert json.loads(shown) == values
    assert "é🙂" in shown


@pytest.mark.parametrize("tty", [False, True])
def test_data_is_exact_in_a_pipe_and_harmless_on_a_terminal(
    tty: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = io.StringIO()
    monkeypatch.setattr(out, "isatty", lambda: tty)
    monkeypatch.setattr(sys, "stdout", out)
    terminal.echo_data(EVIL)
    assert out.getvalue() == (terminal.harmless(EVIL) if tty else EVIL) + "\n"


class EvilEngine(FakeEngine):
    """It answers with a terminal's commands, and fails with them."""

    def _answer(self, request: Request) -> Any:
        result = super()._answer(request)
        if result.status != "ok":
            return type(result)(result.id, "error", error=EVIL)
        return type(result)(**{**vars(result), "text": f"{EVIL} {result.text}"})


def as_yaml(text: str) -> str:
    return json.dumps(text)


@pytest.fixture(scope="module")
def evil(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A grid, its data, its run and a vector, all with such text in them and in their names."""
    folder = tmp_path_factory.mktemp("evil") / NAME
    folder.mkdir()
    items = [
        {
            "question": f"{n} {EVIL}\n\nChoices:\n(A) {EVIL}\n(B) No",
            "answer_matching_behavior": "(A)",
            "answer_not_matching_behavior": "(B)",
        }
        for n in range(8)
    ]
    (folder / f"{NAME}.json").write_text(json.dumps(items))
    (folder / f"open {NAME}.json").write_text(json.dumps([f"{n} {EVIL}?" for n in range(3)]))
    text = GRID.format(
        open=as_yaml(f"open {NAME}.json"),
        data=as_yaml(f"{NAME}.json"),
        text=as_yaml(f"Be glad. {EVIL}"),
        model="{model}",
    )
    for name, model in ((NAME, "tiny-llama"), ("lost", as_yaml(f"./{NAME}"))):
        (folder / f"{name}.yaml").write_text(text.replace("{model}", model))
    (folder / "wrong.yaml").write_text(f"version: 1\n{as_yaml(EVIL)}: {as_yaml(EVIL)}\n")
    width = json.loads(Path(resolve("tiny-llama").model, "config.json").read_text())["hidden_size"]
    origin = Origin(model=EVIL, data=EVIL, method=EVIL, derived=(EVIL,))
    directions = {layer: np.ones(width, np.float32) for layer in range(6)}
    save(SteeringVector(EVIL, directions, origin=origin), folder / f"{NAME}.safetensors")
    patch = pytest.MonkeyPatch()
    patch.setattr(start, "load_vllm", lambda plan, *_, **__: fake.fake_engine(plan, kind=EvilEngine))
    yield folder
    patch.undo()


def vsteer(*arguments: object) -> Result:
    done = CliRunner().invoke(main, list(map(str, arguments)))
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done


@pytest.mark.long
def test_no_verb_prints_a_terminals_commands(evil: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(evil)
    grid, vector, run = evil / f"{NAME}.yaml", evil / f"{NAME}.safetensors", evil / "runs" / "evil"
    shapes = ("table", "md", "json")
    tables: list[list[object]] = [
        ["sql", name, run, "--format", shape] for name in queries() for shape in shapes
    ]
    question = "select question, text, error, rows.system from rows join prompts using (prompt_id);"
    said: dict[str, str] = {}
    commands: list[list[object]] = [
        ["plan", grid], ["plan", grid, "--json"], ["plan", evil / "lost.yaml"], ["plan", evil / "wrong.yaml"],
        ["run", grid], ["run", grid, "--dry-run"], ["run", evil / "wrong.yaml"],
        ["status", run], ["status", run, "--json"], ["status", evil],
        ["check", grid], ["check", grid, "--json"],
        ["stats", run], ["score", run], ["score", run, "--json"], ["score", run, "--scorer", EVIL],
        *tables,
        ["sql", EVIL, run], ["sql", "layer_peaks", run, "--set", f"{EVIL}=1"], ["sql", "--about", EVIL],
        ["show", run, "--prompt", "0 a", "--layer", "1"], ["show", run, "--prompt", "No"],
        ["show", run, "--prompt", EVIL, "--layer", EVIL],
        ["report", run], ["export", run, "-o", evil / f"{NAME}.csv"], ["export", run, "-o", evil / EVIL[:4]],
        ["vectors", "inspect", vector], ["vectors", "inspect", vector, "--json"],
        ["vectors", "inspect", evil / f"{NAME}.json"], ["vectors", "compare", vector, vector],
        ["vectors", "compare", vector, vector, "--json"],
        ["vectors", "convert", vector, evil / f"{NAME}.gguf", "--name", EVIL],
        ["vectors", "extract", f"./{NAME}", "sentiment"], ["vectors", "extract", "tiny-llama", NAME],
        ["mechanism", "project", "tiny-llama", vector, "--layer", "1", "--text", EVIL],
        ["mechanism", "project", EVIL, vector, "--layer", "1", "--text", EVIL],
        ["mechanism", "attribute", EVIL, vector, evil / f"open {NAME}.json", "--layer", "1"],
        ["mechanism", "values", "tiny-llama", evil / f"{NAME}.json", "--layer", "1"],
        ["vectors", "train", EVIL, evil / f"{NAME}.json", "--layer", "1"],
        ["vectors", "responses", EVIL, evil / f"open {NAME}.json"],
        ["models", "get", EVIL], ["models", "path", EVIL], ["verify", EVIL], ["bench", "engine", EVIL],
        ["serve", EVIL], ["serve", "tiny-llama", "--steering", evil / "wrong.yaml"],
        ["serve", "tiny-llama", "--vector", f"{EVIL}={vector}"],
        ["serve", "tiny-llama", "--vector", f"a={NAME}"],
        ["serve", "tiny-llama", "--operation", EVIL], ["chat", EVIL, "--vector", vector],
        ["chat", "tiny-llama", "--vector", EVIL], ["chat", "--server", EVIL, "--vector", EVIL],
        ["chat", "tiny-llama", "--vector", vector, "--layer", EVIL],
        ["doctor"], [EVIL],
    ]  # fmt: skip
    for arguments in commands:
        done = vsteer(*arguments)
        words = " ".join(map(str, arguments))
        assert not found_in(done.output), (words, done.output)
        said[words] = done.output
    for shape in shapes:
        done = CliRunner().invoke(main, ["sql", str(run), "--format", shape], input=question)
        assert not found_in(done.output)
        assert "\\u202e" in done.output
    assert {words.split()[0] for words in said} >= set(VERBS)
    assert " rows are good" in said[f"run {grid}"]
    for words, output in said.items():
        if words.startswith(("show", "plan", "vectors inspect", "vectors compare", "verify")):
            assert "\\x1bc" in output or "\\u001bc" in output, words


@pytest.mark.long
def test_csv_in_a_pipe_is_exact(evil: Path) -> None:
    if not (evil / "runs").exists():
        vsteer("run", evil / f"{NAME}.yaml")
    run = evil / "runs" / "evil"
    question = "select row_id, text from rows where text is not null order by row_id;"
    done = CliRunner().invoke(main, ["sql", str(run), "--format", "csv"], input=question)
    printed = [(row[0], row[1]) for row in csv.reader(io.StringIO(done.stdout, newline=""))][1:]
    glob = f"{run}/rows/*.parquet"
    stored = duckdb.sql(
        f"select row_id, text from read_parquet('{glob}') where text is not null order by row_id"
    )
    assert printed == stored.fetchall()
    assert "rows" in vsteer("export", run, "-o", evil / "rows.csv").stdout
    with (evil / "rows.csv").open(newline="") as file:
        assert dict(printed).items() <= {row["row_id"]: row["text"] for row in csv.DictReader(file)}.items()
    assert EVIL in printed[0][1]


def test_log_messages_are_harmless_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert vsteer("models", "list").exit_code == 0
    assert logging.lastResort is not None
    logging.lastResort.handle(
        logging.makeLogRecord({"msg": "%s is set aside", "args": (EVIL,), "levelno": 30})
    )
    assert capsys.readouterr().err == f"{terminal.harmless(EVIL)} is set aside\n"


def test_everything_that_is_printed_goes_through_one_place() -> None:
    """Beside it only rich draws: bars, and tables whose texts were made harmless before."""
    root = Path(vsteer_package.__file__).parent
    direct = set()
    for path in root.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            name = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
            if name in ("click.echo", "click.secho", "print"):
                direct.add(str(path.relative_to(root)))
    assert direct == {"terminal.py"}
