"""Model folders that are damaged: a plan refuses each in one message that names the file."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.hostile import Outcome, mutated, outcome, summary
from tests.plan.sample import GRID, filled
from vsteer.grid.spec import read_grid
from vsteer.models import resolve
from vsteer.models.weights import parameters
from vsteer.plan.memory import memory_of
from vsteer.plan.plan import make_plans

LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:%s\nsize 12345\n" % (b"4d" * 32)


@pytest.fixture(scope="module", autouse=True)
def transformers_is_here() -> None:
    """So that not each reader's process imports it."""
    from transformers import AutoTokenizer

    AutoTokenizer.from_pretrained(resolve("tiny-llama").model)


@pytest.fixture
def grid(tmp_path: Path) -> Path:
    """A grid beside a whole copy of tiny-llama, `model`."""
    filled(tmp_path)
    shutil.copytree(resolve("tiny-llama").model, tmp_path / "model")
    path = tmp_path / "grid.yaml"
    path.write_text(GRID.replace("id: tiny-llama", "id: ./model"))
    return path


def planned(grid: Path) -> None:
    for plan in make_plans(read_grid(grid)):
        memory_of(plan)


def refused(grid: Path) -> str:
    found = outcome(partial(planned, grid))
    assert found.message
    assert "grid.yaml, line 4" in found.message
    return found.message


def test_a_whole_folder_is_planned(grid: Path) -> None:
    assert not outcome(partial(planned, grid)).message


def cut(content: bytes) -> bytes:
    return content[: len(content) // 2]


@pytest.mark.parametrize(
    ("damaged", "words"),
    [
        (lambda content: LFS, "it is a pointer of Git LFS"),
        (lambda content: b"", "it has 0 bytes and no header"),
        (lambda content: content[:5], "it has 5 bytes and no header"),
        (lambda content: content[:40], "and no header"),
        (cut, "its header speaks of"),
        (lambda content: content[:-1], "its header speaks of"),
        (lambda content: content + b"\0", "its header speaks of"),
        (lambda content: b"\xff" * 8 + content[8:], "and no header"),
        (lambda content: content[:8] + b"[" * (len(content) - 8), "too deep"),
        (lambda content: content[:8] + b"}" * (len(content) - 8), "holds no weights"),
        (lambda content: b"\2" + bytes(7) + b"[]", "its header is damaged"),
        (lambda content: b"\x08" + bytes(7) + b'{"a":{}}', "its header is damaged"),
    ],
)
def test_weights_that_are_none(grid: Path, damaged: Callable[[bytes], bytes], words: str) -> None:
    path = grid.with_name("model") / "model.safetensors"
    path.write_bytes(damaged(path.read_bytes()))
    message = refused(grid)
    assert f"{path} holds no weights" in message
    assert words in message


def test_the_weights_of_a_whole_file_are_counted(grid: Path) -> None:
    from safetensors import safe_open

    path = grid.with_name("model") / "model.safetensors"
    with safe_open(path, "numpy") as file:
        values = sum(file.get_tensor(key).size for key in file.keys())  # noqa: SIM118
    assert parameters(path) == values


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"num_hidden_layers": "30"}, "its num_hidden_layers is '30', not a whole number from 1 to 10000"),
        ({"num_hidden_layers": 10**9}, "its num_hidden_layers is 1000000000"),
        ({"num_hidden_layers": 10**4000}, "its num_hidden_layers is 1000"),
        ({"num_hidden_layers": True}, "its num_hidden_layers is True"),
        ({"num_hidden_layers": [6]}, "its num_hidden_layers is [6]"),
        ({"hidden_size": 128.0}, "its hidden_size is 128.0"),
        ({"hidden_size": float("nan")}, "its hidden_size is nan"),
        ({"max_position_embeddings": {"a": "b" * 10_000}}, "its max_position_embeddings is {'a': 'bbb"),
        ({"text_config": "none"}, "its text_config is no JSON object"),
        ({"text_config": [1] * 10_000}, "its text_config is no JSON object"),
        ({"text_config": {"num_hidden_layers": "six"}}, "its num_hidden_layers is 'six'"),
        ({"name": "\ud800"}, "half a surrogate pair"),
    ],
)
def test_odd_configurations(grid: Path, changed: dict[str, Any], words: str) -> None:
    path = grid.with_name("model") / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changed))
    message = refused(grid)
    assert f"{path} can't be read: " in message
    assert words in message


@pytest.mark.parametrize(
    "content", ["", "[]", "3", "[" * 100_000, '{"a":' * 100_000, "\0", "{" + " " * 5_000_000]
)
def test_configurations_that_are_none(grid: Path, content: str) -> None:
    path = grid.with_name("model") / "config.json"
    path.write_text(content)
    assert f"{path} can't be read: " in refused(grid)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer_config.json", "extra.json"])
def test_a_pipe_among_the_files_hangs_nothing(grid: Path, name: str) -> None:
    path = grid.with_name("model") / name
    path.unlink(missing_ok=True)
    os.mkfifo(path)
    refused(grid)


@pytest.mark.long
def test_mutated_folders(grid: Path) -> None:
    r, found = random.Random(21), list[Outcome]()
    folder = grid.with_name("model")
    whole = {path: path.read_bytes() for path in sorted(folder.glob("*.*")) if path.is_file()}
    for _ in range(60):
        path, content = r.choice(list(whole.items()))
        path.write_bytes(mutated(content, r, within=2000))
        found.append(outcome(partial(planned, grid)))
        path.write_bytes(content)
    summary("60 model folders", found)
