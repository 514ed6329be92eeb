"""Grids that are damaged or made to do harm are planned or refused: soon, in little memory, in few words."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import shutil
from collections.abc import Callable
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.hostile import Outcome, outcome, summary
from tests.plan.sample import GRID, filled
from vsteer.cli.plan import show
from vsteer.models import resolve

MORE = """\
engine: {max_model_len: 512, kv_cache_gib: 2, block_size: 16, vllm: {swap_space: 1}}
controls: {random_vectors: 1, system_prompts: {positive: "Yes."}}
exclude:
  - {vector: v, layers: [1], norm: unit, evaluation: ["choice:items"], multipliers: -1}
"""
WHOLE = yaml.safe_load(GRID.replace("id: tiny-llama", "id: ./base") + MORE)
WHOLE["evaluations"][1] |= {"temperature": 1, "samples": 2, "stop": "END", "top_p": 0.9, "name": "open"}
WHOLE["vectors"] |= {"f": {"file": "made.safetensors"}}

# each is YAML that stands for a value, in place of one of the grid's
VALUES: list[Callable[[random.Random], str]] = [
    lambda r: r.choice(["9", "-9", "0x", "0b", "0", "1:"]) + r.choice("1079") * 10 ** r.randint(1, 6),
    lambda r: r.choice(["1.0e+300", "1.0e+999", "-1.0e-320", ".inf", "-.inf", ".nan", "-0.0", "0.1e-9"]),
    lambda r: str(r.choice([2**31 - 1, 2**31, 2**53, 2**63 - 1, 2**63, -(2**63), 10**9, 10**6, 1000, 99])),
    lambda r: r.choice(["null", "true", "[]", "{}", '""', "~", "2001-01-01", "!!binary aGk=", "!!set {a}"]),
    lambda r: r.choice([r'"\ud800"', r'"\0"', r'"\U7fffffff"', r'"\e[2J"', r'"\x85"', r'"\q"', '"é\u2028"']),
    lambda r: r.choice("xr") * 10 ** r.randint(1, 6),
    lambda r: '"' + r.choice(["x ", "\\n", "é", "\\t"]) * 10 ** r.randint(1, 5) + '"',
    lambda r: "[" * 10 ** r.randint(1, 5) + "]" * r.choice([0, 10, 1000]),
    lambda r: "{a: " * 10 ** r.randint(1, 5),
    lambda r: "[" + "1, " * 10 ** r.randint(1, 6) + "1]",
    lambda r: f"[{', '.join(map(str, range(10 ** r.randint(1, 5))))}]",
    lambda r: f"[{', '.join(f'[0, {n + 1}]' for n in range(10 ** r.randint(1, 4)))}]",
    lambda r: f"[{', '.join(f'v{n}' for n in range(10 ** r.randint(1, 4)))}]",
    lambda r: f"{{{', '.join(f'k{n}: 1' for n in range(10 ** r.randint(1, 4)))}}}",
    lambda r: f"[{', '.join(f'{{residual: {n + 1}}}' for n in range(10 ** r.randint(1, 4)))}]",
    lambda r: f"{{from: {r.choice([0, -9999, 1])}, to: {r.choice([5, 9999, 10**5])}}}",
    lambda r: f"{{from: 0.001, to: {r.choice([1, 9, 99])}, step: 0.001}}",
    lambda r: r.choice(["all", "generated", "{depth: [0, 1]}", "{depth: [1, 0]}", "caa"]),
    lambda r: r.choice(["/dev/zero", "/dev/stdin", "pipe", ".", "/proc/self/mem", "~x", "open.json"]),
    lambda r: r.choice(["tiny-llama", "./base", "no/model", "*a", "&a 1", "<<", "<<: 1", "!!str 3"]),
]  # fmt: skip
ENTRIES: list[Callable[[random.Random], str]] = [
    lambda r: "".join(f"\nx{n}: &x{n} [{f'*x{n - 1}, ' * 9 if n else '1'}]" for n in range(r.randint(2, 12))),
    lambda r: "".join(
        f"\nx{n}: &x{n} {{<<: [{f'*x{n - 1}, ' * 9 if n else '{b: 1}'}]}}" for n in range(r.randint(2, 30))
    ),
    lambda r: "\nexclude:" + "\n  - {vector: v, layers: 1}" * 10 ** r.randint(1, 4),
    lambda r: "\nexclude:" + "\n  - 1" * 10 ** r.randint(1, 4),
    lambda r: "\n" + "".join("  " * n + "a:\n" for n in range(10 ** r.randint(1, 3))),
    lambda r: "\n" + "a: 1\n" * 10 ** r.randint(1, 4),
    lambda r: "\n---\n" * 10 ** r.randint(1, 4),
    lambda r: "\n" * 10 ** r.randint(1, 6),
    lambda r: "#" * 10 ** r.randint(1, 6),
    lambda r: "\x1b[2J",
]


def listed(form: str, count: int) -> str:
    return f"[{', '.join(form.replace('N', str(n)) for n in range(count))}]"


NUMBERS = ["samples", "max_tokens", "random_vectors", "seed", "max_model_len", "block_size", "limit"]
COUNTS = ["1", "2", "7", "1000", "100000", "1000000", "2147483647"]
# what a setting can take, and can be too much of
FITTING: dict[str, list[Callable[[random.Random], str]]] = {
    "layers": [
        lambda r: r.choice(["all", "5", "6", "9999", "{from: 0, to: 5}", "{from: 0, to: 9999}", "[[0, 1]]"]),
        lambda r: "{depth: [0, 1]}",
        lambda r: f"[{listed('N', 10 ** r.randint(0, 4))}]",
    ],
    "multipliers": [
        lambda r: f"{{from: -{10 ** r.randint(0, 4)}, to: 99, step: {r.choice([1, 0.01])}}}",
        lambda r: listed("0.5N", 10 ** r.randint(0, 5)),
    ],
    "positions": [
        lambda r: r.choice(["all", "generated", "[[0, 1]]", "[[999, 2147483647]]", "last_prompt_token"]),
        lambda r: listed("[N, 9999]", 10 ** r.randint(0, 4)),
    ],
    "norm": [
        lambda r: r.choice(["caa", "unit"]),
        lambda r: listed("{residual: 1N}", 10 ** r.randint(0, 4)),
    ],
    "data": [
        lambda r: r.choice(["refusal", "words.jsonl", "items.json", "open.json", "[items.json, refusal]"]),
        lambda r: r.choice(["/dev/zero", "pipe", ".", "/proc/self/mem", r"'\e[2J'", "x" * 300]),
    ],
    "file": [lambda r: r.choice(["narrow.safetensors", "items.json", "/dev/zero", "pipe", ".", "x" * 300])],
    "id": [
        lambda r: r.choice(["tiny-llama", "no/model", "'~x'", ".", "x" * 300, "items.json"]),
        lambda r: r.choice(["/dev/zero", "pipe"]),
    ],
    "system": [
        lambda r: r.choice(["Be kind.", "[null, A, B]", r"'\e[2J'"]),
        lambda r: "x " * 10 ** r.randint(1, 5),
    ],
    "answer_prefix": [lambda r: "x " * 10 ** r.randint(1, 5) + "x"],
    "name": [lambda r: "x" * 10 ** r.randint(1, 4)],
    "stop": [lambda r: listed("sN", 10 ** r.randint(0, 4)), lambda r: "x" * 10 ** r.randint(1, 5)],
    **{key: [lambda r: r.choice(COUNTS)] for key in NUMBERS},
}
MORE_KEYS = ["layers", "limit", "system", "answer_prefix", "name"]


def places(value: Any) -> list[tuple[Any, Any]]:
    """Every value in it, by what holds it and its key there."""
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else []
    return [place for key in keys for place in [(value, key), *places(value[key])]]


def mutated(r: random.Random) -> bytes:
    """The grid with one thing wrong, or two or three."""
    grid, values = deepcopy(WHOLE), list[str]()

    def marked(value: str) -> str:
        values.append(value)
        return f"VALUE{len(values) - 1}"

    for _ in range(r.randint(1, 3)):
        held, key = r.choice(places(grid))
        match r.randrange(10):
            case 0:
                del held[key]
            case 1 if isinstance(held, list):
                held += [deepcopy(held[key]) for _ in range(10 ** r.randint(0, 2))]
            case 2 if isinstance(held, dict):
                held[marked(r.choice(VALUES[:7])(r)[:2000])] = held.pop(key)
            case 3:
                held[key] = marked(r.choice(VALUES)(r))
            case 4 if isinstance(held, dict):
                key = r.choice(MORE_KEYS)
                held[key] = marked(r.choice(FITTING[key])(r))
            case _:
                held, key = r.choice([one for one in places(grid) if one[1] in FITTING])
                held[key] = marked(r.choice(FITTING[key])(r))
    text = yaml.safe_dump(grid, sort_keys=False)
    text = re.sub(r"VALUE(\d)", lambda match: values[int(match[1])], text)
    if r.random() < 0.1:
        text += r.choice(ENTRIES)(r)
    content = bytearray(text.encode())
    if r.random() < 0.1:
        content[r.randrange(len(content))] = r.randrange(256)
    return bytes(content)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data of the grid, and a model without a chat template: no process is started for one."""
    folder = filled(tmp_path_factory.mktemp("hostile"))
    shutil.copytree(resolve("tiny-llama").model, folder / "base")
    for name in ("vsteer.json", "chat_template.jinja"):
        (folder / "base" / name).unlink(missing_ok=True)
    settings = folder / "base" / "tokenizer_config.json"
    kept = {key: value for key, value in json.loads(settings.read_text()).items() if key != "chat_template"}
    settings.write_text(json.dumps(kept))
    os.mkfifo(folder / "pipe")
    return folder


def planned(path: Path, as_json: bool) -> None:
    """As `vsteer plan` does."""
    with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stdout(nowhere):
        show(path, as_json)


@pytest.mark.parametrize("count", [15, pytest.param(500, marks=pytest.mark.long)])
def test_mutated_grids(folder: Path, count: int) -> None:
    r, path, found = random.Random(21), folder / "grid.yaml", list[Outcome]()
    path.write_text(yaml.safe_dump(WHOLE, sort_keys=False))
    planned(path, as_json=False)  # what is imported once is no part of what follows
    for n in range(count):
        path.write_bytes(mutated(r))
        found.append(outcome(partial(planned, path, as_json=n % 2 == 0)))
        message = found[-1].message
        assert not any(character * 201 in message for character in "xrx19"), message
        assert not message or message.startswith(str(path)), message
    assert 0 < sum(not one.message for one in found) < count
    summary(f"{count} grids", found)
