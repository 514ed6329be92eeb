"""Grids that would blow up: each is refused at once, in a short message with its line and a hint."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.grid.test_grid import GRID, read, write
from vsteer.grid.problems import GridError
from vsteer.grid.spec import as_grid, read_grid
from vsteer.grid.yaml_lines import read_yaml

KV, VLLM = "kv_cache_gib: N", "vllm: {swap_space: N}"


def merges_of_merges(levels: int) -> str:
    lines = ["- &a0 {k: 1}"]
    lines += [f"- &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 9)}]}}" for n in range(1, levels)]
    return "\n".join(lines)


def number(value: str, setting: str = "seed") -> str:
    """The grid with a number for the seed, or for one of the engine's settings."""
    if setting == "seed":
        return GRID.replace("name: try", f"name: try\nseed: {value}")
    return GRID.replace("max_model_len: 512", setting.replace("N", value))


# what the file holds, the line of the error, and what it says
HUGE: list[tuple[str, int, str]] = [
    (number("9" * 5000), 3, "a whole number of 5,000 characters"),
    (number("0x" + "f" * 5000), 3, "a whole number of 5,002 characters"),
    (number("0b" + "1" * 20000), 3, "a whole number of 20,002 characters"),
    (number("0" + "7" * 5000), 3, "a whole number of 5,001 characters"),
    (number("1" + ":59" * 5000), 3, "a whole number of 15,001 characters"),
    (number("0x" + "f" * 17), 3, "at most 64 bits, found 295147905179352825855"),
    (number("9." + "9" * 5000), 3, "a number of 5,002 characters"),
    (number("1.0e+300", KV), 4, "less than or equal to 1048576, found 1e+300"),
    (number("1.0e+999", KV), 4, "expected a finite number, found inf"),
    (number(".inf", VLLM), 4, "expected a finite number, found inf"),
    (number(".nan", VLLM), 4, "expected a finite number, found nan"),
    (number("0x" + "f" * 90, VLLM), 4, "at most 64 bits"),
    ("a: [" + "1," * 10**5 + "1]", 1, "the file has more than 100,000 values"),
    ("a: [" + "1," * 10**6 + "1]", 1, "it has 2,000,006 bytes, and at most 1,048,576 are read"),
    ("a: {" * 5000 + "}" * 5000, 1, "nested too deeply"),
    ("".join(f"{' ' * n}a:\n" for n in range(1300)), 50, "nested too deeply"),
    ("- " * 5000 + "1", 1, "nested too deeply"),
    (merges_of_merges(30), 1, "expected settings, found "),
    (GRID.replace("{residual: 0.1}", "unit, " * 1000), 6, "1,001 norms, and at most 1,000 are taken"),
    # 20,000 merges of 20 keys each
    (f"- &a {{{', '.join(f'k{n}: 1' for n in range(20))}}}\n- <<: [{'*a, ' * 20_000}]", 2, "aliases make"),
    ("a: &a 1\na2: &a 2", 2, "two values have the anchor 'a'"),
    (f"{'x' * 900}: 1\n{'x' * 900}: 2", 2, "stands twice, first on line 1"),
    ("&" + "x" * 5000 + " [1, *" + "y" * 5000 + "]", 1, "found undefined alias"),
    ("!" + "x" * 5000 + " [1]", 1, "is not known here"),
    (GRID.replace("refusal:", f"{'r' * 100}:").replace("name: try", "name: " + "x" * 5000), 2, "a name"),
    (GRID.replace("vector: refusal\n", f"vector: {'x' * 99}\n"), 10, "no vector is called"),
    (GRID.replace("positions: [all", f"positions: [{'x' * 5000}"), 13, "expected positions"),
    (GRID.replace("layers: all", f"layers: {{{'x' * 900}: 1}}"), 11, "expected from, to and step"),
    (GRID.replace("kind: choice", f"kind: choice, {'x' * 900}: 1"), 19, "unknown setting"),
    (
        GRID.replace("  - kind: open", f"  - {{kind: choice, data: {'x' * 5000}}}\n" * 2 + "  - kind: open"),
        21,
        "two evaluations are called",
    ),
    (
        GRID.replace("{vector: refusal, layers: 3}", "{evaluation: " + "x" * 5000 + "}"),
        26,
        "no evaluation is",
    ),
    (GRID.replace("  - {vector: refusal, layers: 3}", "  - 1\n" * 20_000), 26, "expected settings, found 1"),
    (
        GRID.replace("  - {kind: choice", f"  - {{kind: {'x' * 5000}}}\n" * 99 + "  - {kind: choice"),
        19,
        "expected the kind",
    ),
]


def refused(attempt: Callable[[], object]) -> GridError:
    began = time.process_time()
    with pytest.raises(GridError) as error:
        attempt()
    assert time.process_time() - began < 10
    text = str(error.value)
    assert len(text) <= 600
    assert error.value.hint
    assert not any(character * 201 in text for character in "xyr19f")
    return error.value


@pytest.mark.parametrize(("text", "line", "message"), HUGE, ids=range(len(HUGE)))
def test_a_grid_that_would_blow_up_is_one_message(text: str, line: int, message: str, tmp_path: Path) -> None:
    error = refused(lambda: read(tmp_path, text))
    assert message in error.message
    if "bytes" not in message:
        assert f"grid.yaml, line {line}: " in error.message


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("/dev/zero", "it is a device"),
        ("/dev/tty", "/dev/tty: "),
        ("pipe", "it is a named pipe"),
        (".", "directory"),
    ],
)
def test_what_is_no_file_is_refused_at_once(path: str, message: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert message in refused(lambda: read_grid(tmp_path / path)).message


def test_merges_of_merges_are_made_once_each(tmp_path: Path) -> None:
    """30 levels of 9 merges, which would be 9^29 mappings if each was made anew."""
    document = read_yaml(write(tmp_path, merges_of_merges(30)))
    assert document.value == [{"k": 1}] * 30
    assert document.place((29, "k")) == "line 1"


def test_many_merged_keys_cost_as_much_as_many_keys(tmp_path: Path) -> None:
    count = 15_000
    text = "- &a\n" + "".join(f"  k{n}: {n}\n" for n in range(count)) + "- <<: *a\n  last: 1\n"
    began = time.process_time()
    document = read_yaml(write(tmp_path, text))
    assert time.process_time() - began < 10
    assert isinstance(document.value, list)
    assert document.value[1] == {"last": 1} | {f"k{n}": n for n in range(count)}
    assert document.place((1, "k9")) == "line 11"


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (
            {"seed": 10**5000},
            "seed: expected a number of at most 64 bits, found a number of thousands of digits",
        ),
        ({"model": {"layers": -(2**70)}}, "model.layers: expected a number of at most 64 bits, found -1180"),
        (
            {"engine": {"vllm": {"swap_space": float("inf")}}},
            "engine.vllm.swap_space: expected a finite number",
        ),
        ({"name": "a\ud800"}, "name: expected Unicode text"),
        ({"grid": nested(10**5)}, "the values are nested too deeply"),
        ({"grid": range(10**9)}, "more than 100,000 values"),
        ({"x" * 5000: 1}, "unknown setting"),
        ({10**5000: 1}, "the name of a setting, found a number of thousands of digits"),
        ({"version": 1, "name": "y" * 10**7}, "expected a name"),
    ],
    ids=range(9),
)
def test_the_same_in_python(value: dict[Any, Any], message: str) -> None:
    assert message in str(refused(lambda: as_grid(value)))
