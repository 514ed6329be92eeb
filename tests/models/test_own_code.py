"""A model folder's Python is never run: not where the terminal would answer yes, nor where nobody answers."""

from __future__ import annotations

import ast
import json
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import vsteer
from vsteer.cli import main
from vsteer.engine.driver import VllmEngine
from vsteer.engine.options import EngineOptions
from vsteer.engine.proof.reference import ReferenceEngine
from vsteer.engine.start import engine_environment
from vsteer.errors import ModelError, UsageError, VsteerError
from vsteer.grid.spec import EngineSpec, read_grid
from vsteer.models import resolve
from vsteer.models.hugging_face import load_config, load_model, load_tokenizer
from vsteer.models.identity import model_sha256
from vsteer.plan.plan import make_plans
from vsteer.run.loading import load_stored

GRID = """\
version: 1
name: foreign
model: {id: ./model, dtype: float32}
vectors:
  v: {data: sentiment}
grid:
  - {vector: v, layers: [1], multipliers: [1]}
evaluations:
  - {kind: choice, data: sentiment, limit: 3}
"""
# What a folder's JSON files hold beside tiny-llama's own settings.
OWN_TYPE = {
    "config.json": {
        "model_type": "foreign",
        "auto_map": {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"},
    }
}
OWN_TOKENIZER = {
    "tokenizer_config.json": {
        "tokenizer_class": "OwnTokenizer",
        "auto_map": {"AutoTokenizer": ["own.Tokenizer", None]},
    }
}
OLD_TOKENIZER = {
    "tokenizer_config.json": {"tokenizer_class": "OwnTokenizer", "auto_map": ["own.Tokenizer", None]}
}
# Of a type that transformers knows, and still with code of its own.
KNOWN = {
    "config.json": {"auto_map": {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"}},
    "tokenizer_config.json": {"auto_map": {"AutoTokenizer": ["own.Tokenizer", "own.Tokenizer"]}},
    "generation_config.json": {"custom_generate": "own"},
}


class Foreign:
    """A folder that holds a grid and a model whose Python leaves a mark when it is run."""

    def __init__(self, folder: Path, changes: dict[str, Any]) -> None:
        self.marker, self.model, self.grid = folder / "marker", folder / "model", folder / "grid.yaml"
        shutil.copytree(resolve("tiny-llama").model, self.model)
        (self.model / "vsteer.json").unlink()
        code = f"open({str(self.marker)!r}, 'w')\nclass Config: ...\nclass Model: ...\nclass Tokenizer: ...\n"
        for file in ("own.py", "generation_config.py", "custom_generate/generate.py"):
            (self.model / file).parent.mkdir(exist_ok=True)
            (self.model / file).write_text(code)
        for name, more in changes.items():
            path = self.model / name
            before = json.loads(path.read_text()) if path.exists() else {}
            path.write_text(json.dumps(before | more))
        self.grid.write_text(GRID)


@pytest.fixture
def foreign(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, Any]], Foreign]:
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    return lambda changes: Foreign(tmp_path, changes)


def stored(made: Foreign) -> None:
    """As `vsteer score --scorer perplexity` loads a run's own model."""
    grid = made.grid.parent / "plain.yaml"
    grid.write_text(GRID.replace("./model", "tiny-llama"))
    (plan,) = make_plans(read_grid(grid))
    facts = replace(plan.facts, folder=made.model, weights={"sha256": model_sha256(made.model)})
    load_stored(facts, EngineSpec())


PYTHON: dict[str, Callable[[Foreign], object]] = {
    "vsteer.run": lambda made: vsteer.run(made.grid),
    "vsteer.Engine": lambda made: vsteer.Engine(str(made.model)),
    "vsteer.extract": lambda made: vsteer.extract(str(made.model), "sentiment"),
    "a configuration": lambda made: load_config(made.model),
    "a tokenizer": lambda made: load_tokenizer(made.model),
    "the reference": lambda made: ReferenceEngine(str(made.model)),
    "the engine": lambda made: VllmEngine(str(made.model)),
    "a stored run's model": stored,
}
VERBS: dict[str, Callable[[Foreign], list[str]]] = {
    "plan": lambda made: ["plan", str(made.grid)],
    "run": lambda made: ["run", str(made.grid)],
    "verify": lambda made: ["verify", str(made.model)],
    "vectors extract": lambda made: ["vectors", "extract", str(made.model), "sentiment"],
    "judge": lambda made: [
        "score", str(made.grid.parent), "--scorer", "judge", "--rubric", "refusal",
        "--judge-model", str(made.model),
    ],
    "bench": lambda made: ["bench", "engine", str(made.model)],
}  # fmt: skip


@pytest.mark.parametrize(
    "changes", [OWN_TYPE, OWN_TOKENIZER, OLD_TOKENIZER], ids=["type", "tokenizer", "old"]
)
def test_a_model_that_needs_its_own_code_is_refused_by_name(
    foreign: Callable[[dict[str, Any]], Foreign], changes: dict[str, Any]
) -> None:
    made = foreign(changes)
    for name, act in PYTHON.items():
        with pytest.raises(VsteerError, match="needs Python code of its own") as refused:
            act(made)
        assert refused.value.hint, name
    for name, verb in VERBS.items():
        done = CliRunner().invoke(main, verb(made), input="y\ny\ny\n")
        assert done.exit_code in (1, 2), name
        assert isinstance(done.exception, SystemExit), name
        assert "needs Python code of its own" in done.stderr.splitlines()[-2], name
        assert "foreign" in done.stderr or "OwnTokenizer" in done.stderr
        assert len(done.stderr) < 600
        assert not done.stdout
    assert not made.marker.exists()


def test_a_type_that_transformers_knows_is_loaded_by_its_own_class(
    foreign: Callable[[dict[str, Any]], Foreign], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("standard input was read"))
    made = foreign(KNOWN)
    (plan,) = make_plans(read_grid(made.grid))
    assert plan.facts.layers == 6
    assert type(load_config(made.model)).__module__.startswith("transformers.")
    assert type(load_tokenizer(made.model)).__module__.startswith("transformers.")
    reference = ReferenceEngine(str(made.model))
    assert type(reference.model).__module__.startswith("transformers.")
    assert not made.marker.exists()


def test_the_word_for_code_can_be_given_nowhere(foreign: Callable[[dict[str, Any]], Foreign]) -> None:
    made = foreign(KNOWN)
    made.grid.write_text(GRID + "engine: {vllm: {trust_remote_code: true}}\n")
    for act in (
        lambda: read_grid(made.grid),
        lambda: vsteer.Engine(str(made.model), vllm={"trust_remote_code": True}),
    ):
        with pytest.raises(UsageError, match="trust_remote_code") as refused:
            act()
        assert "runs no code from a model's folder" in refused.value.hint
    for kind in ("pt", "npcache"):
        made.grid.write_text(GRID + f"engine: {{load_format: {kind}}}\n")
        with pytest.raises(UsageError, match="pickled weights"):
            read_grid(made.grid)


def test_vllm_is_started_without_code_whatever_its_options_say() -> None:
    from vsteer.engine.start import engine_args
    from vsteer.engine.table import Capacity

    options = EngineOptions.model_construct(**{**dict(EngineOptions()), "vllm": {"trust_remote_code": True}})
    assert engine_args(options, Capacity())["trust_remote_code"] is False


def test_python_does_not_take_modules_from_the_working_directory(tmp_path: Path) -> None:
    """vLLM starts processes of its own, and whoever verifies a model may stand in its folder."""
    (tmp_path / "random.py").write_text(f"open({str(tmp_path / 'marker')!r}, 'w')")
    command = [sys.executable, "-c", "import random"]
    with engine_environment(EngineOptions()):
        subprocess.run(command, cwd=tmp_path, check=True)
    assert not (tmp_path / "marker").exists()
    subprocess.run(command, cwd=tmp_path, check=True)
    assert (tmp_path / "marker").exists()


class Touch:
    """A pickle of this leaves a mark when it is loaded without care."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return (open, (str(self.marker), "w"))


def test_weights_in_a_pickle_are_not_read(foreign: Callable[[dict[str, Any]], Foreign]) -> None:
    made = foreign({})
    for name in ("pytorch_model.bin", "model.pt"):
        (made.model / name).write_bytes(pickle.dumps({"model.norm.weight": Touch(made.marker)}))
    load_model(made.model)  # beside weights in safetensors it isn't looked at
    for file in made.model.glob("*.safetensors"):
        file.unlink()
    with pytest.raises(ModelError, match="it has no"):
        resolve(str(made.model))
    with pytest.raises(ModelError):
        load_model(made.model)
    assert not made.marker.exists()


def test_a_chat_template_reaches_nothing_but_its_messages(
    foreign: Callable[[dict[str, Any]], Foreign],
) -> None:
    made = foreign({})
    reach = "{{ cycler.__init__.__globals__.os.system('touch " + str(made.marker) + "') }}{{ messages }}"
    settings = json.loads((made.model / "tokenizer_config.json").read_text())
    del settings["chat_template"]
    (made.model / "tokenizer_config.json").write_text(json.dumps(settings))
    (made.model / "chat_template.jinja").write_text(reach)
    done = CliRunner().invoke(main, ["plan", str(made.grid)])
    assert done.exit_code == 2
    assert "the model's chat template" in done.stderr
    assert "unsafe" in done.stderr
    assert not made.marker.exists()


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.parametrize("answer", ["yes", "silence"])
def test_nobody_is_asked(foreign: Callable[[dict[str, Any]], Foreign], answer: str) -> None:
    """In a process of its own, with an answer that waits, or an input that stays open and says nothing."""
    made = foreign(OWN_TYPE)
    for verb in ("plan", "verify"):
        with subprocess.Popen(
            [sys.executable, "-m", "vsteer", *VERBS[verb](made)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            assert process.stderr is not None
            if answer == "yes":
                process.stdin.write("y\n" * 5)
                process.stdin.flush()
            # transformers would wait for an answer; the start of Python takes a while on a busy machine
            process.wait(240)
            assert "needs Python code of its own" in process.stderr.read()
            assert not process.stdout.read()
    assert not made.marker.exists()


def test_every_load_in_the_project_forbids_code() -> None:
    """Each `from_pretrained`, and vLLM's LLM, has `trust_remote_code=False` written beside it."""
    found: list[str] = []
    for folder in ("vsteer", "patches", "tests/bench"):
        for path in sorted(Path(folder).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text())):
                name = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
                if isinstance(node, ast.Call) and (name.endswith(".from_pretrained") or name == "LLM"):
                    found.append(str(path))
                    given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
                    assert given.get("trust_remote_code") == "False", f"{path}:{node.lineno}"
    assert len(found) >= 6
