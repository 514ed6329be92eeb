"""A grid that Python made: it is held to the same rules, and a problem names its place in the grid."""

import copy
import pickle
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import pytest
import yaml

from tests.plan.sample import GRID, filled
from vsteer.grid.problems import GridError
from vsteer.grid.spec import Grid, as_grid, read_grid
from vsteer.models import resolve
from vsteer.plan.plan import make_plans

# in the grid: what is set there, the place that the error names, and what it says of it
PROBLEMS: list[tuple[tuple[str | int, ...], object, str, str]] = [
    (("version",), 2, "version", "version should be 1, found 2"),
    (("nmae",), "x", "nmae", "unknown setting 'nmae'\nhint: did you mean 'name'?"),
    (("model",), 3, "model", "expected settings, found 3"),
    (("model",), {"id": "tiny-llama", "dtype": "f32"}, "model.dtype", "found 'f32'"),
    (("model",), ["tiny-llama", {"dtype": "float32"}], "model[1]", "the setting 'id' is missing"),
    (("model",), ["tiny-llama", "tiny-llama"], "model[1]", "the model tiny-llama stands twice"),
    (("vectors", "v", "norm"), ["raw", "rw"], "vectors.v.norm[1]", "did you mean 'raw'?"),
    (("vectors", "v", "file"), "x", "vectors.v.data", "unknown setting 'data'"),
    (("grid",), [], "grid", "expected at least one entry under 'grid'"),
    (("grid", 0, "layers"), {"depth": [0.6, 0.2]}, "grid[0].layers.depth", "the lower first"),
    (("grid", 0, "multipliers"), [1, "x"], "grid[0].multipliers[1]", "expected a number, found 'x'"),
    (("grid", 0, "multipliers"), {"kl": [0.2, 0]}, "grid[0].multipliers.kl[1]", "0 is no KL divergence"),
    (("grid", 0, "multipliers"), {"kl": "x"}, "grid[0].multipliers.kl", "expected a number, found 'x'"),
    (
        ("grid", 0, "multipliers"),
        {"kl": 0.2, "sgn": 1},
        "grid[0].multipliers",
        "found kl, sgn\nhint: write {kl",
    ),
    (("grid", 0, "multipliers"), {"signs": [1]}, "grid[0].multipliers", "expected kl, signs and text"),
    (("grid", 0, "multipliers"), {"kl": 1, "signs": [2]}, "grid[0].multipliers.signs[0]", "expected a sign"),
    (
        ("grid", 0, "multipliers"),
        {"kl": 1, "text": 3},
        "grid[0].multipliers.text",
        "a file of texts, found 3",
    ),
    (("grid", 0, "positions", 1), "after_promt", "grid[0].positions[1]", "did you mean 'after_prompt'?"),
    (("grid", 0, "vector"), "w", "grid[0].vector", "no vector is called 'w'"),
    (("evaluations", 1, "kind"), "choise", "evaluations[1].kind", "did you mean 'choice'?"),
    (("evaluations", 1, "samples"), 2, "evaluations[1].samples", "at temperature 0 every sample is the same"),
    (
        ("evaluations", 1),
        {"kind": "choice", "data": "items.json"},
        "evaluations[1]",
        "two evaluations are called 'choice:items', the first at evaluations[0]",
    ),
    (
        ("exclude",),
        [{"evaluation": "choice:x"}],
        "exclude[0].evaluation",
        "no evaluation is called 'choice:x'",
    ),
    (("controls",), "none", "controls", "expected settings, found 'none'"),
    (("engine",), {"replicas": 0}, "engine.replicas", "from 1 to 10,000, found 0"),
    (("engine",), {"replicas": {"min": -1, "max": 2}}, "engine.replicas.min", "from 0 to 10,000, found -1"),
    (("engine",), {"replicas": {"min": 3, "max": 2}}, "engine.replicas", "min is above max"),
    (("engine",), {"replicas": {"min": 3}}, "engine.replicas", "expected min and max, found min"),
    (
        ("engine",),
        {"vllm": {"distributed_executor_backend": "ray"}},
        "engine.vllm.distributed_executor_backend",
        "only vLLM's own processes (mp, uni)",
    ),
    (
        ("engine",),
        {"vllm": {"seed": 3}},
        "engine.vllm.seed",
        "the option 'seed' can't be passed to vLLM",
    ),
    # those that only a plan can find
    (("vectors", "v", "data"), "none.json", "vectors.v.data", "no data file and no built-in behaviour"),
    (("vectors", "v"), {"file": "narrow.safetensors"}, "vectors.v.file", "4 wide, but the model's stream is"),
    (
        ("vectors", "w"),
        {"data": "items.json", "norm": "unit"},
        "vectors.w",
        "'w' is made as 'v' at vectors.v: one vector under two names",
    ),
    (("vectors", "v", "norm"), "caa", "vectors.v.norm", "'v' alone asks for it"),
    (("model",), "tiny-lama", "model", "no model 'tiny-lama'"),
    (("model", "layers"), 7, "model.layers", "has 7 layers, but it has 6"),
    (("grid", 0, "layers"), [1, 6], "grid[0].layers", "layer 6 does not exist"),
    (
        ("grid", 0, "positions"),
        ["generated"],
        "evaluations[0]",
        "positions generated (grid[0].positions[0]) cannot act on what choice:items",
    ),
    (
        ("evaluations", 0, "caa_compat"),
        True,
        "grid[0].positions",
        "caa_compat (evaluations[0]) steers after_user_turn",
    ),
    (
        ("evaluations", 1),
        {"kind": "choice", "name": "b", "data": "items.json"},
        "evaluations[1]",
        "b asks what choice:items (evaluations[0]) asks in the same way",
    ),
    (("exclude",), [{"multipliers": 9}], "exclude[0]", "this exclusion matches no configuration"),
]


def made() -> dict[str, Any]:
    value = yaml.safe_load(GRID)
    assert isinstance(value, dict)
    return value


def changed(at: tuple[str | int, ...], value: object) -> dict[str, Any]:
    grid = made()
    place: Any = grid
    for part in at[:-1]:
        place = place[part]
    place[at[-1]] = value
    return grid


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    resolve("tiny-llama")
    return filled(tmp_path_factory.mktemp("data"))


@pytest.mark.parametrize(("at", "value", "place", "message"), PROBLEMS)
def test_a_problem_names_its_place_in_the_grid_and_in_its_file(
    folder: Path, at: tuple[str | int, ...], value: object, place: str, message: str
) -> None:
    grid = changed(at, value)
    with pytest.raises(GridError) as error:
        make_plans(as_grid(grid, folder))
    found = str(error.value).replace(f"{folder}/", "")
    assert found.startswith(f"{place}: ")
    assert message in found
    # the same grid as a file: the same problem, with its line in place of its place
    path = folder / "grid.yaml"
    path.write_text(yaml.safe_dump(grid, sort_keys=False))
    with pytest.raises(GridError) as of_file:
        make_plans(read_grid(path))
    assert str(of_file.value).startswith(f"{path}, line ")
    assert of_file.value.hint == error.value.hint


def test_several_problems_are_named_at_once() -> None:
    grid = changed(("evaluations", 1, "samples"), -3) | {"model": {"id": "tiny-llama", "dtype": "f32"}}
    with pytest.raises(GridError) as error:
        as_grid(grid)
    first, second = error.value.message.splitlines()
    assert first.startswith("model.dtype: dtype ")
    assert second.strip().startswith("evaluations[1].samples: samples ")


def test_a_grid_needs_no_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = Grid.model_validate(made())
    assert plain.folder == Path()
    with pytest.raises(GridError, match=r"^vectors\.v\.data: no data file"):
        make_plans(plain)
    with pytest.raises(GridError, match=r"^grid\[0\]\.vector\[0\]: no vector is called 'w'"):
        Grid.model_validate(changed(("grid", 0, "vector"), "w"))
    monkeypatch.chdir(folder)
    (plan,) = make_plans(plain)
    assert plan.row_count == make_plans(as_grid(made(), folder))[0].row_count


def test_a_grid_from_python_has_the_rows_of_its_file(folder: Path) -> None:
    path = folder / "grid.yaml"
    path.write_text(GRID)
    (from_file,) = make_plans(as_grid(path))
    (from_python,) = make_plans(as_grid(made(), folder))
    assert [row.row_id for row in from_python.rows()] == [row.row_id for row in from_file.rows()]
    assert as_grid(path) == read_grid(str(path))


def test_values_of_python_stand_for_those_of_yaml() -> None:
    grid = made()
    grid["grid"][0] |= {
        "layers": (1, range(3, 5), np.int64(2)),
        "multipliers": np.linspace(-1, 1, 5, dtype=np.float32),
        "positions": ("all", (0, 4)),
    }
    grid["vectors"]["v"]["data"] = PurePath("items.json")
    (axis,) = as_grid(grid).grid
    assert axis.layers.resolve(6) == ((1,), (3, 4), (2,))
    assert axis.multipliers == (-1.0, -0.5, 0.0, 0.5, 1.0)
    assert axis.positions == ("all", (0, 4))


def test_a_grid_stays_itself(folder: Path) -> None:
    grid = as_grid(made(), folder)
    assert as_grid(grid) is grid
    for same in (copy.deepcopy(grid), pickle.loads(pickle.dumps(grid))):
        assert (same, same.folder, same.place(("grid", 0))) == (grid, folder, "grid[0]")


def test_a_key_that_is_no_text_is_refused() -> None:
    with pytest.raises(GridError, match="expected the name of a setting, found 3"):
        as_grid({**made(), 3: 4})  # type: ignore[dict-item]
