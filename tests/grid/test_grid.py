"""The grid file: what it takes, and that everything else is refused with its line and what was meant."""

from pathlib import Path

import pytest

from vsteer.evaluations.choice import ChoiceEvaluation
from vsteer.evaluations.open_ended import OpenEndedEvaluation
from vsteer.grid.axes import Dose, parse_layers, parse_multipliers, written_multipliers
from vsteer.grid.problems import GridError
from vsteer.grid.spec import EngineSpec, Grid, read_grid
from vsteer.grid.yaml_lines import read_yaml

GRID = """\
version: 1
name: try
model: {id: tiny-llama, dtype: float32, layers: 6}
engine: {tensor_parallel_size: 2, max_model_len: 512}
vectors:
  refusal: {data: refusal, norm: [raw, {residual: 0.1}]}
  other:
    file: other.safetensors
grid:
  - vector: refusal
    layers: all
    multipliers: [-2, 1, 0.5]
    positions: [all, after_prompt, [0, 4]]
  - vectors: [refusal, other]
    layers: {from: 1, to: 5, step: 2}
    multipliers: 1
controls: {random_vectors: 2, system_prompts: {positive: Be kind.}}
evaluations:
  - {kind: choice, data: [refusal, sentiment]}
  - kind: open_ended
    data: refusal
    temperature: 0.7
    samples: 3
    stop: END
exclude:
  - {vector: refusal, layers: 3}
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "grid.yaml"
    path.write_text(text)
    return path


def read(folder: Path, text: str) -> Grid:
    return read_grid(write(folder, text))


def test_a_grid_is_read(tmp_path: Path) -> None:
    grid = read(tmp_path, GRID)
    assert [model.id for model in grid.model] == ["tiny-llama"]
    assert grid.vectors["refusal"].model_dump()["norm"] == ["raw", "residual:0.1"]
    first, second = grid.grid
    assert (first.names, second.names) == (("refusal",), ("refusal", "other"))
    assert first.layers.resolve(3) == ((0,), (1,), (2,))
    assert second.layers.resolve(6) == ((1,), (3,), (5,))
    assert first.multipliers == (-2.0, 1.0, 0.5)
    assert first.positions == ("all", "after_prompt", (0, 4))
    assert second.positions == ("all",)
    choice, written = grid.evaluations
    assert isinstance(choice, ChoiceEvaluation)
    assert choice.both_orders
    assert isinstance(written, OpenEndedEvaluation)
    assert (written.samples, written.stop, written.max_tokens) == (3, ("END",), 100)
    names = [name for name, _, _ in grid.named_evaluations()]
    assert names == ["choice:refusal", "choice:sentiment", "open_ended:refusal"]


def test_a_model_may_be_a_name_or_a_list_with_its_own_engine(tmp_path: Path) -> None:
    several = "model:\n  - tiny-llama\n  - {id: org/big, layers: 6, engine: {tensor_parallel_size: 8}}\n"
    grid = read(tmp_path, GRID.replace("model: {id: tiny-llama, dtype: float32, layers: 6}\n", several))
    small, big = grid.model
    assert grid.engine_for(small).tensor_parallel_size == 2
    assert grid.engine_for(big).tensor_parallel_size == 8
    assert grid.engine_for(big).max_model_len == 512


@pytest.mark.parametrize(
    ("written", "layers", "meant"),
    [
        ("all", 3, ((0,), (1,), (2,))),
        (9, 12, ((9,),)),
        ([9, 10], 12, ((9,), (10,))),
        ([[10, 4]], 12, ((4, 10),)),
        ([3, [4, 5]], 12, ((3,), (4, 5))),
        ([3, 3], 12, ((3,),)),
        ({"together": {"from": 8, "to": 11, "step": 2}}, 12, ((8, 10),)),
        ({"together": [5, [4, 2]]}, 12, ((2, 4, 5),)),
        ([3, {"together": {"from": 8, "to": 10}}], 12, ((3,), (8, 9, 10))),
        ({"together": "all"}, 3, ((0, 1, 2),)),
        ({"together": {"depth": [0.2, 0.4]}}, 10, ((1, 2, 3),)),
        ({"from": 8, "to": 11, "step": 2}, 12, ((8,), (10,))),
        ({"from": 8, "to": 10}, 12, ((8,), (9,), (10,))),
        # depths of layers 0 to 9 of 10 are 0.1 to 1.0, both ends are taken
        ({"depth": [0.2, 0.4]}, 10, ((1,), (2,), (3,))),
        ({"depth": [0.4, 0.4]}, 30, ((11,),)),
    ],
)
def test_layers(written: object, layers: int, meant: object) -> None:
    assert parse_layers(written).resolve(layers) == meant


@pytest.mark.parametrize(
    ("written", "layers", "why"),
    [
        ([12], 12, "layer 12 does not exist: the model has layers 0 to 11"),
        ({"depth": [0.01, 0.02]}, 10, "no layer of 10 has a depth from 0.01 to 0.02"),
        ("all", None, "not known"),
        ({"together": "all"}, None, "not known"),
        ({"together": [3, 12]}, 12, "layer 12 does not exist: the model has layers 0 to 11"),
    ],
)
def test_layers_that_a_model_has_not(written: object, layers: int | None, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        parse_layers(written).resolve(layers)


def test_replicas_are_a_number_or_between_two() -> None:
    for written, meant in ((3, (3, 3)), ({"min": 0, "max": 64}, (0, 64)), ({"max": 2}, (1, 2))):
        spec = EngineSpec.model_validate({"replicas": written})
        assert spec.replicas == meant
        # and so again from what a manifest has of it
        again = spec.model_dump(mode="json")
        assert EngineSpec.model_validate(again).replicas == meant
        assert isinstance(again["replicas"], int) == (written == 3)


def test_multipliers() -> None:
    assert parse_multipliers({"from": -2, "to": 2, "step": 0.5}) == (-2, -1.5, -1, -0.5, 0, 0.5, 1, 1.5, 2)
    assert parse_multipliers({"from": 0.1, "to": 0.3, "step": 0.1}) == (0.1, 0.2, 0.3)
    assert parse_multipliers([1, 1.0, 2]) == (1.0, 2.0)
    # the device multiplies in float32, where these two are one
    assert parse_multipliers([0.1, 0.1 + 1e-12]) == (0.1,)
    assert str(parse_multipliers(-0.0)[0]) == "0.0"


# what stands in the file, what it is replaced with, the line of the error, and what it says
BAD = [
    (
        "    positions: [",
        "    postions: [",
        13,
        "unknown setting 'postions'\nhint: did you mean 'positions'?",
    ),
    ("after_prompt", "after_promt", 13, "hint: did you mean 'after_prompt'?"),
    ("[0, 4]", "[4, 0]", 13, "no token lies in [4, 0)"),
    ("kind: choice", "kind: choise", 19, "did you mean 'choice'?"),
    ("kind: choice, ", "", 19, "the kind choice, lm_eval, open_ended or refusal_tokens"),
    ("samples: 3", "samples: 0", 23, "samples should be greater than or equal to 1, found 0"),
    ("temperature: 0.7", "temperature: 0", 23, "at temperature 0 every sample is the same"),
    ("temperature: 0.7", "temperature: .inf", 22, "expected a finite number, found inf"),
    ("temperature: 0.7", "temperature: true", 22, "found true"),
    ("data: refusal, norm", "data: 3, norm", 6, "expected a text, found 3"),
    ("{residual: 0.1}", "{residual: 0}", 6, "expected a positive fraction"),
    ("raw,", "rw,", 6, "did you mean 'raw'?"),
    ("file: other.safetensors", "file: other.safetensors\n    norm: raw", 9, "unknown setting 'norm'"),
    (
        "- vector: refusal",
        "- vector: refsal",
        10,
        "no vector is called 'refsal'\nhint: did you mean 'refusal'?",
    ),
    ("[refusal, other]", "[refusal, others]", 14, "did you mean 'other'?"),
    ("vector: refusal\n", "vectors: refusal\n    vector: refusal\n", 10, "vector or vectors, one of them"),
    ("layers: all", "layers: most", 11, "the number of a layer, found 'most'"),
    ("layers: all", "layers: [-1]", 11, "the number of a layer, found -1"),
    ("layers: all", "layers: [[4, 4]]", 11, "different layers to steer at once"),
    ("layers: all", "layers: {together: most}", 11, "the number of a layer, found 'most'"),
    ("layers: all", "layers: [1, {together: all}]", 11, "a range of layers together, found 'all'"),
    ("layers: all", "layers: {depth: [0.6, 0.2]}", 11, "the lower first"),
    ("layers: all", "layers: {from: 3}", 11, "expected from, to and step"),
    ("[-2, 1, 0.5]", "[-2, 1e-3]", 12, "YAML wants a point before an exponent"),
    ("[-2, 1, 0.5]", "[1.0e+39]", 12, "no float32 number"),
    ("[-2, 1, 0.5]", "[.nan]", 12, "expected a finite number, found nan"),
    ("[-2, 1, 0.5]", "[]", 12, "an empty list"),
    ("[-2, 1, 0.5]", "{from: 0, to: 1, step: 0}", 12, "expected from, to and a step"),
    ("name: try", "name: a/b", 2, "expected a name, found 'a/b'"),
    ("version: 1", "version: 2", 1, "version should be 1, found 2"),
    ("version: 1\n", "", 1, "the setting 'version' is missing"),
    ("dtype: float32", "dtype: float23", 3, "did you mean 'float32'?"),
    ("layers: 6}", "layers: 6}\nmodel: tiny-llama", 4, "the key 'model' stands twice, first on line 3"),
    ("tensor_parallel_size: 2", "vllm: {seed: 3}", 4, "the option 'seed' can't be passed to vLLM here"),
    ("random_vectors: 2", "random_vectors: -2", 17, "greater than or equal to 0"),
    ("{positive: Be kind.}", "Be kind.", 17, "expected settings, found 'Be kind.'"),
    ("[refusal, sentiment]", "[refusal, refusal]\n    , name: [a]", 20, "expected a text"),
    ("{vector: refusal, layers: 3}", "{}", 26, "an exclusion that names nothing"),
    ("{vector: refusal, layers: 3}", "{layer: 3}", 26, "did you mean 'layers'?"),
    ("{vector: refusal, layers: 3}", "{evaluation: choice:refusals}", 26, "did you mean 'choice:refusal'?"),
    ("evaluations:\n", "evaluations:\n  - {kind: choice, data: refusal}\n", 20, "the first on line 19"),
    ("model: {id: tiny-llama, dtype: float32, layers: 6}", "model: 3", 3, "expected settings, found 3"),
    ("exclude:\n  - {vector: refusal, layers: 3}", "exclude: 3", 25, "expected a list, found 3"),
    ("stop: END", "stop: [END", 25, "not valid YAML"),
    ("stop: END", "stop: *end", 24, "not valid YAML: found undefined alias 'end'"),
    ("stop: END", "stop: !!python/name:os.system x", 24, "is not known here"),
    ("stop: END", 'stop: "\\ud800"', 24, "escape"),
]


@pytest.mark.parametrize(("old", "new", "line", "message"), BAD)
def test_what_is_wrong_is_reported_with_its_line(
    old: str, new: str, line: int, message: str, tmp_path: Path
) -> None:
    assert old in GRID
    with pytest.raises(GridError) as error:
        read(tmp_path, GRID.replace(old, new, 1))
    assert f"{tmp_path / 'grid.yaml'}, line {line}: " in str(error.value)
    assert message in str(error.value)
    assert error.value.exit_code == 2


def test_several_errors_are_reported_at_once_in_the_file_s_order(tmp_path: Path) -> None:
    text = GRID.replace("samples: 3", "samples: -3").replace("dtype: float32", "dtype: f32")
    with pytest.raises(GridError) as error:
        read(tmp_path, text)
    first, second = error.value.message.splitlines()
    assert ", line 3: dtype " in first
    assert second.strip().startswith("line 23: samples ")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "line 1: expected a grid, found an empty file"),
        (b"a: 1\nb: \xff", "line 2: expected UTF-8 text, found byte 0xff"),
        (b"a: 1\nb: \x07", "line 2: a character that YAML forbids"),
        (b"- 1", "line 1: expected settings, found [1]"),
        (b"3: 4", "line 1: expected the name of a setting"),
        (b"a: &a [*a]", "an alias stands for something that it is itself a part of"),
        (b"[" * 2000, "line 1: the values are nested too deeply"),
        (b"a: 1\n---\nb: 2", "line 2: not valid YAML"),
    ],
)
def test_files_that_are_no_grid(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "grid.yaml"
    path.write_bytes(content)
    with pytest.raises(GridError) as error:
        read_grid(path)
    assert message in str(error.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(GridError, match="No such file"):
        read_grid(tmp_path / "none.yaml")


def test_aliases_that_ask_for_a_billion_values_are_refused(tmp_path: Path) -> None:
    lines = ["a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 10)]
    with pytest.raises(GridError, match="aliases make more than"):
        read_yaml(write(tmp_path, "\n".join(lines)))


def test_merged_values_keep_their_lines(tmp_path: Path) -> None:
    document = read_yaml(write(tmp_path, "one: &one\n  a: 1\n  b: [2,\n  3]\ntwo:\n  <<: *one\n  a: 4\n"))
    assert document.value == {"one": {"a": 1, "b": [2, 3]}, "two": {"a": 4, "b": [2, 3]}}
    assert document.place(("two", "b", 1)) == "line 4"
    assert document.place(("two", "a")) == "line 7"


def test_the_resolved_grid_is_plain_json(tmp_path: Path) -> None:
    dumped = read(tmp_path, GRID).model_dump(mode="json")
    assert dumped["grid"][1]["layers"] == {"from": 1, "to": 5, "step": 2}
    assert dumped["grid"][0]["positions"] == ["all", "after_prompt", [0, 4]]


def test_doses() -> None:
    """A dose has both signs unless the grid says otherwise, and stands among multipliers."""
    both = [Dose(0.05, -1), Dose(0.05, 1), Dose(0.2, -1), Dose(0.2, 1)]
    assert parse_multipliers({"kl": [0.05, 0.2]}) == tuple(both)
    assert parse_multipliers([-1, {"kl": 0.2, "signs": [1], "text": "plain.txt"}, 1]) == (
        -1.0,
        Dose(0.2, 1, "plain.txt"),
        1.0,
    )
    assert parse_multipliers(written_multipliers((1.0, *both))) == (1.0, *both)
