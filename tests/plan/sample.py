"""A small grid, its data, and its plan with pieces replaced: what the tests of plans have in common.

plan = planner(filled(folder))
plan("limit: 1", "limit: 2")
"""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from vsteer.grid.problems import GridError
from vsteer.grid.spec import read_grid
from vsteer.models import resolve
from vsteer.plan.plan import Plan, make_plans
from vsteer.vectors.files import save
from vsteer.vectors.vector import SteeringVector

# tiny-llama has 6 layers. Four lettered items, the last of which leans on its order; open questions, one
# of which stands twice.
ITEMS = [
    {"question": "Tea?\n\nChoices:\n(A) Yes\n(B) No", "match": "(A)", "not": "(B)"},
    {"question": "Milk?\n\nChoices:\n(A) Yes\n(B) No", "match": "(B)", "not": "(A)"},
    {"question": "Rum?\n\nChoices:\n(A) Yes\n(B) No\n(C) Some", "match": "(C)", "not": "(A)"},
    {"question": "Ale?\n\nChoices:\n(A) Yes\n(B) None of the above", "match": "(A)", "not": "(B)"},
]
OPEN = ["Why?", "How?", "Why?"]
GRID = """\
version: 1
name: try
seed: 5
model: {id: tiny-llama, dtype: float32}
vectors:
  v: {data: items.json, norm: [raw, unit]}
grid:
  - vector: v
    layers: [1, 4]
    multipliers: [-1, 0, 1]
    positions: [all, after_prompt]
evaluations:
  - {kind: choice, data: items.json}
  - {kind: open_ended, data: open.json, max_tokens: 7}
"""


def filled(folder: Path) -> Path:
    names = {"match": "answer_matching_behavior", "not": "answer_not_matching_behavior"}
    items = [{names.get(key, key): value for key, value in item.items()} for item in ITEMS]
    (folder / "items.json").write_text(json.dumps(items, indent=0))
    (folder / "open.json").write_text(json.dumps(OPEN))
    words = [("How?", "Good", "Bad"), ("So?", "Splendid", "Bad")]
    lines = [json.dumps({"prompt": p, "positive": a, "negative": b}) for p, a, b in words]
    (folder / "words.jsonl").write_text("\n".join(lines))
    # one that fits tiny-llama, one that is too narrow, one that has some layers alone
    width = json.loads(Path(resolve("tiny-llama").model, "config.json").read_text())["hidden_size"]
    for name, layers, size in (("made", range(6), width), ("narrow", range(6), 4), ("some", range(3), width)):
        made = SteeringVector(name, {layer: np.ones(size, np.float32) for layer in layers})
        save(made, folder / f"{name}.safetensors", overwrite=True)
    return folder


def planner(folder: Path) -> Callable[..., Plan]:
    """What plans GRID with pieces replaced, given in pairs: old, new, old, new."""
    resolve("tiny-llama")

    def plan(*pairs: str) -> Plan:
        (folder / "grid.yaml").write_text(replaced(*pairs))
        (one,) = make_plans(read_grid(folder / "grid.yaml"))
        return one

    return plan


def replaced(*pairs: str) -> str:
    text = GRID
    for old, new in zip(pairs[::2], pairs[1::2], strict=True):
        assert old in text, old
        text = text.replace(old, new, 1)
    return text


def refused(folder: Path, *pairs: str) -> str:
    """What is said of GRID with pieces replaced."""
    resolve("tiny-llama")
    (folder / "grid.yaml").write_text(replaced(*pairs))
    with pytest.raises(GridError) as error:
        make_plans(read_grid(folder / "grid.yaml"))
    return str(error.value).replace(f"{folder}/", "")
