"""What a plan refuses, before a night is spent on it: with the grid's line, and never with a traceback."""

import re
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, event, example, given, settings
from hypothesis import strategies as st

from tests.plan.sample import GRID, filled, planner, refused
from vsteer.grid.problems import GridError
from vsteer.grid.spec import read_grid
from vsteer.models import resolve
from vsteer.plan.budget import budget
from vsteer.plan.plan import Plan, make_plans
from vsteer.vectors.files import load, save


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return filled(tmp_path)


@pytest.fixture
def plan(folder: Path) -> Callable[..., Plan]:
    return planner(folder)


TWICE = "choice, data: items.json}\n  - {kind: choice, name: b, data: items.json}"
LISTED = "layers: [1, 4]\n    multipliers: [-1, 0, 1]"
SHUFFLED = ("evaluations:", "controls: {shuffled_labels: 1}\nevaluations:")
# what is replaced, the line of the error, and what it says
REFUSED = [
    (("after_prompt]", "generated]"), 13, "positions generated (line 11) cannot act on what choice"),
    (("after_prompt]", "[4000, 4001]]"), 13, "positions (4000, 4001) (line 11) cannot act on what choice"),
    (("multipliers: [-1, 0, 1]", "operation: add"), 8, "multipliers is missing"),
    (("layers: [1, 4]", "operation: ablate"), 8, "layers"),
    (("layers: [1, 4]", "layers: 1\n    operation: ablate"), 11, "the operation ablate has no multipliers"),
    (
        ("layers: [1, 4]\n    multipliers: [-1, 0, 1]", "layers: [[1, 4]]\n    operation: ablate_everywhere"),
        9,
        "one direction at a time",
    ),
    (
        (
            "layers: [1, 4]\n    multipliers: [-1, 0, 1]",
            "layers: {together: all}\n    operation: ablate_everywhere",
        ),
        9,
        "one direction at a time",
    ),
    (
        (
            "layers: [1, 4]\n    multipliers: [-1, 0, 1]",
            "layers: 1\n    operation: ablate\n    where: attention",
        ),
        11,
        "the operation ablate does not act behind the attention alone",
    ),
    (("layers: [1, 4]", "layers: 1\n    where: mlp"), 10, "where"),
    (("layers: [1, 4]", "layers: 1\n    operation: add_attention"), 10, "operation"),
    (
        ("layers: [1, 4]", "layers: 1\n    operation: clamp"),
        11,
        "multiplier 0 of clamp takes the component out",
    ),
    (
        ("layers: [1, 4]\n    multipliers: [-1, 0, 1]", "layers: 1\n    operation: clamp"),
        8,
        "multipliers is missing",
    ),
    (("layers: [1, 4]", "layers: [1, 6]"), 9, "layer 6 does not exist: the model has layers 0 to 5"),
    (("dtype: float32", "layers: 7"), 4, "says that tiny-llama has 7 layers, but it has 6"),
    (("{data: items.json", "{data: none.json"), 6, "no data file and no built-in behaviour 'none.json'"),
    (("{data: items.json", "{data: refusl"), 6, "did you mean 'refusal'?"),
    (("{data: items.json", "{data: open.json"), 6, "open.json, line 1: expected"),
    (("{data: items.json", "{method: dim, data: items.json"), 6, "the data holds pairs"),
    (("{data: items.json, norm: [raw, unit]}", "{file: none}"), 6, "no vector file 'none'"),
    (("choice, data: items.json", "choice, data: open.json"), 13, "open.json, line 1: expected"),
    (("choice, data", "choice, caa_compat: true, data"), 11, "caa_compat (line 13) steers after_user_turn"),
    (
        ("choice, data: items.json}", TWICE),
        14,
        "b asks what choice:items (line 13) asks in the same way",
    ),
    (("id: tiny-llama", "id: tiny-lama"), 4, "no model 'tiny-lama'"),
    (("id: tiny-llama", "revision: main, id: tiny-llama"), 4, "has no revision"),
    (("model: {id: tiny-llama, dtype: float32}", "model: [tiny-llama, ./tiny]"), 4, "no model 'tiny'"),
    (
        (*SHUFFLED, "{data: items.json, norm: [raw, unit]}", "{file: made.safetensors}"),
        12,
        "'v', which is a file",
    ),
    (
        (*SHUFFLED, "norm: [raw, unit]", "norm: [raw, unit], method: pca"),
        12,
        "a principal component has no labels",
    ),
    (
        ("evaluations:", "controls: {unrelated: 21}\nevaluations:"),
        12,
        "expected at most 20 built-in contrasts, found 21",
    ),
    (("evaluations:", "controls: {unrelated: true}\nevaluations:"), 12, "found true"),
    (
        ("evaluations:", "controls: {unrelated: [3]}\nevaluations:"),
        12,
        "expected a behaviour or a file, found 3",
    ),
    (
        ("evaluations:", "controls:\n  unrelated: [language,\n    langage]\nevaluations:"),
        14,
        "did you mean 'language'?",
    ),
    (
        ("evaluations:", "controls: {unrelated: items.json}\nevaluations:"),
        12,
        "nothing stands here but the data of 'v' itself",
    ),
    (
        ("evaluations:", "controls: {unrelated: refusal/instructions}\nevaluations:"),
        12,
        "two unpaired sets, from which mean_diff makes no vector",
    ),
    (
        (
            "evaluations:",
            "controls: {unrelated: 1}\nevaluations:",
            "{data: items.json, norm: [raw, unit]}",
            "{file: made.safetensors}",
        ),
        12,
        "unrelated vectors are made as 'v' is, and that is a file",
    ),
    (("norm: [raw, unit]", "norm: [raw, caa]"), 6, "the norm caa is the mean length over several behaviours"),
    (
        ("{data: items.json, norm: [raw, unit]}", "{file: narrow.safetensors}"),
        6,
        "4 wide, but the model's stream is",
    ),
    (("{data: items.json, norm: [raw, unit]}", "{file: open.json}"), 6, "open.json"),
    (
        (
            "{data: items.json, norm: [raw, unit]}",
            "{file: some.safetensors}",
            "layers: [1, 4]",
            "layers: [1, 3]",
        ),
        6,
        "'v' has no direction at layer 3, which the grid steers",
    ),
    (
        ("norm: [raw, unit]}", "norm: raw}\n  w: {data: items.json, norm: unit}"),
        7,
        "'w' is made as 'v' on line 6",
    ),
    (
        (
            "{data: items.json, norm: [raw, unit]}",
            "{file: some.safetensors}\n  w: {file: ./some.safetensors}",
            "layers: [1, 4]",
            "layers: 1",
        ),
        7,
        "one vector under two names",
    ),
]


@pytest.mark.parametrize(("pairs", "line", "message"), REFUSED)
def test_what_can_t_be_run_is_refused_with_its_line(
    folder: Path, pairs: tuple[str, ...], line: int, message: str
) -> None:
    refusal = refused(folder, *pairs)
    assert f"grid.yaml, line {line}: " in refusal
    assert message in refusal


def test_a_file_that_is_zero_steers_nothing(folder: Path, plan: Callable[..., Plan]) -> None:
    made = load(folder / "made.safetensors")
    zero = {layer: one * (layer != 4) for layer, one in made.directions.items()}
    save(replace(made, directions=zero), folder / "zero.safetensors")
    file = ("{data: items.json, norm: [raw, unit]}", "{file: zero.safetensors}")
    assert "line 6: 'v' is zero at layer 4, where it steers nothing" in refused(folder, *file)
    # beside another layer it may be zero
    assert plan(*file, "layers: [1, 4]", "layers: [[1, 4]]").blocks


def test_a_file_that_fits_is_planned(plan: Callable[..., Plan]) -> None:
    file = ("{data: items.json, norm: [raw, unit]}", "{file: some.safetensors}")
    found = plan(*file, "layers: [1, 4]", "layers: [1, 2]")
    assert len(found.blocks[0].configs) == 1 + 2 * 2 * 2
    # a layer that nothing steers need not be there
    keep = "exclude:\n  - {vector: v, layers: [3]}\nevaluations:"
    assert plan(*file, "layers: [1, 4]", "layers: [1, 3]", "evaluations:", keep).excluded == (8,)


def test_caa_with_another_behaviour_is_planned(plan: Callable[..., Plan]) -> None:
    both = plan("norm: [raw, unit]}", "norm: caa}\n  w: {data: words.jsonl, norm: [raw, caa]}")
    assert {use.norm for use in both.vectors.values()} == {"caa"}


def test_one_model_under_two_names_is_refused(folder: Path) -> None:
    path = resolve("tiny-llama").model
    refusal = refused(folder, "model: {id: tiny-llama, dtype: float32}", f"model: [tiny-llama, {path}]")
    assert f"line 4: {path} is the same model as tiny-llama on line 4" in refusal


def test_generated_acts_on_what_follows_the_first_token(plan: Callable[..., Plan], folder: Path) -> None:
    places = ("[all, after_prompt]", "generated")
    keep = "exclude:\n  - {kind: choice}\nevaluations:"
    assert len(plan(*places, "evaluations:", keep).blocks[1].configs) == 9
    one_token = refused(folder, *places, "evaluations:", keep, "max_tokens: 7", "max_tokens: 1")
    assert "positions generated (line 11) cannot act on what open_ended:open scores" in one_token


def test_caa_is_asked_after_the_user_s_turn(plan: Callable[..., Plan]) -> None:
    caa = ("choice, data", "choice, caa_compat: true, data")
    stated = plan(*caa, "[all, after_prompt]", "[all, after_user_turn]").blocks[0]
    silent = plan(*caa, "    positions: [all, after_prompt]\n", "").blocks[0]
    for block in (stated, silent):
        evaluation = block.spec.evaluation
        assert {config.positions for config in block.configs} == {None, "after_user_turn"}
        assert len(block.configs) == 9
        letters = ["".join(evaluation.labels(rendered)) for rendered in block.prompts]
        assert letters == ["AB", "AB", "AC", "AB"]
        assert all(rendered.order == "original" for rendered in block.prompts)


SCRAPS = [
    *(
        "",
        "[",
        "]",
        "{",
        "}",
        ":",
        "- ",
        "&a ",
        "*a",
        "<<",
        "!!int ",
        "'",
        '"',
        "#",
        "\n",
        "  ",
        "\t",
        "\x00",
        "~",
    ),
    *(
        "null",
        "true",
        "-1",
        "0",
        "1e9",
        ".nan",
        "100000",
        "9" * 30,
        "2001-01-01",
        "é",
        "[]",
        "{}",
        "[[1, 2]]",
    ),
    *("all", "v", "w", "caa", "residual", "generated", "{depth: [0, 1]}", "items.json", "words.jsonl"),
]
MORE = """\
controls: {random_vectors: 1, shuffled_labels: 1, system_prompts: {positive: Yes.}}
exclude:
  - {vector: v, layers: [1], norm: unit, evaluation: [choice:items]}
"""


@st.composite
def mutated(draw: st.DrawFn) -> str:
    """The grid with a few pieces cut out, doubled, exchanged with others or replaced with scraps of YAML."""
    text = GRID + MORE
    for _ in range(draw(st.integers(1, 3))):
        places = [match.span() for match in re.finditer(r"[\w.]+|\S|\n", text)]
        (start, end), (a, b) = draw(st.sampled_from(places)), draw(st.sampled_from(places))
        scrap = draw(st.sampled_from([*SCRAPS, text[start:end] * 2, text[a:b]]))
        text = text[:start] + scrap + text[draw(st.sampled_from([start, end])) :]
    return text


VALUES = [
    *(
        None,
        True,
        -1,
        0,
        1,
        2,
        5,
        6,
        7.5,
        1e300,
        "",
        "all",
        "v",
        "w",
        "raw",
        "caa",
        "generated",
        "last_prompt_token",
    ),
    *(
        [],
        {},
        [1, 2],
        [[1, 2]],
        ["v", "v"],
        {"depth": [0, 1]},
        {"from": 0, "to": 5},
        {"residual": 0.1},
        "x" * 300,
    ),
    *(
        "items.json",
        "words.jsonl",
        "open.json",
        "refusal",
        "made.safetensors",
        "narrow.safetensors",
        "tiny-llama",
        "org/model",
        "choice",
    ),
]


@st.composite
def rewritten(draw: st.DrawFn) -> str:
    """The grid with a few of its values exchanged, its keys renamed or its entries taken out: valid YAML."""
    grid = yaml.safe_load(GRID + MORE)
    for _ in range(draw(st.integers(1, 3))):
        place: Any = grid
        while True:
            keys = list(place) if isinstance(place, dict) else list(range(len(place)))
            if not keys:
                break
            key = draw(st.sampled_from(keys))
            if isinstance(place[key], dict | list) and place[key] and draw(st.booleans()):
                place = place[key]
                continue
            deed = draw(st.sampled_from(["exchange", "exchange", "take out", "rename", "repeat"]))
            if deed == "exchange":
                place[key] = deepcopy(draw(st.sampled_from(VALUES)))
            elif deed == "repeat" and isinstance(place, list):
                place.append(deepcopy(place[key]))
            else:
                value = place.pop(key)
                if deed == "rename" and isinstance(place, dict):
                    place[key[:-1] or "x"] = value
            break
    return yaml.safe_dump(grid, sort_keys=False)


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return filled(tmp_path_factory.mktemp("mutated"))


@settings(max_examples=500, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(text=mutated() | rewritten())
@example(text=GRID + MORE)
@example(text=GRID.replace("items.json", "x" * 5000))
@example(text=GRID.replace("tiny-llama", "~nobody/x"))
@example(text=GRID.replace("tiny-llama", "x" * 5000))
@example(text=GRID.replace("items.json", "."))
@example(text=GRID.replace("tiny-llama", "."))
@pytest.mark.long
def test_a_mutated_grid_is_planned_or_refused_with_its_line(workshop: Path, text: str) -> None:
    path = workshop / "grid.yaml"
    path.write_bytes(text.encode())
    try:
        plans = make_plans(read_grid(path))
    except GridError as error:
        said = error
    else:
        event("planned")
        assert all(budget(one).rows == one.row_count > 0 for one in plans)
        return
    event("refused")
    named = re.match(rf"{re.escape(str(path))}, line (\d+): ", said.message)
    assert named is not None
    assert 1 <= int(named[1]) <= text.count("\n") + 1
    assert said.hint
