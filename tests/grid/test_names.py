"""What evaluations are called: the stem of their file, made unique, and for good once a run has begun."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.plan.sample import filled, replaced
from tests.run import fake
from vsteer.datasets.builtin import is_builtin
from vsteer.grid.spec import as_grid, read_grid
from vsteer.models import resolve
from vsteer.run.folder import run_plans
from vsteer.run.start import run_grid
from vsteer.store.check import check
from vsteer.store.planned import Planned


def names(*evaluations: dict[str, Any]) -> list[str]:
    block = {"vector": "v", "layers": 1, "multipliers": 1}
    grid = {
        "version": 1,
        "name": "names",
        "model": "m",
        "vectors": {"v": {"data": "refusal"}},
        "grid": [block],
        "evaluations": list(evaluations),
    }
    return [name for name, _, _ in as_grid(grid).named_evaluations()]


@pytest.mark.parametrize(
    ("data", "named"),
    [
        (["items.json"], ["items"]),
        (["refusal", "refusal/harmful", "./refusal"], ["refusal", "refusal/harmful", "refusal"]),
        (["a/test.json", "b/test.json", "c/other.json"], ["a/test", "b/test", "other"]),
        (["x/a/test.json", "y/a/test.jsonl", "test.json"], ["x/a/test", "y/a/test", "test"]),
        (["/data/pairs.v2.json"], ["pairs.v2"]),
    ],
)
def test_a_file_is_called_by_its_stem_and_as_many_folders_as_it_takes(
    data: list[str], named: list[str]
) -> None:
    kinds = ["choice", "open_ended", "choice"] if "./refusal" in data else ["choice"] * 3
    kinds[2] = "open_ended" if "./refusal" in data else "choice"
    found = names(*({"kind": kind, "data": one} for kind, one in zip(kinds, data, strict=False)))
    assert found == [f"{kind}:{name}" for kind, name in zip(kinds, named, strict=False)]


def test_an_own_name_stands_and_is_followed_by_the_data_where_there_are_several() -> None:
    assert names({"kind": "choice", "name": "mine", "data": "a/x.json"}) == ["mine"]
    several = {"kind": "choice", "name": "mine", "data": ["a/x.json", "sentiment"]}
    assert names(several) == ["mine:x", "mine:sentiment"]
    assert [is_builtin(name) for name in ("refusal", "refusal/open", "refusal/nothing", "x")] == [
        True,
        True,
        False,
        False,
    ]


def test_names_do_not_enter_ids(tmp_path: Path) -> None:
    resolve("tiny-llama")
    grid = filled(tmp_path) / "grid.yaml"
    found = []
    for named in ("kind: choice, data", "kind: choice, name: mine, data"):
        grid.write_text(replaced("kind: choice, data", named))
        found.append([row.row_id for plan in run_plans(read_grid(grid)) for row in plan.rows()])
    assert found[0] == found[1]


@pytest.mark.parametrize("older", [True, False])
def test_a_run_keeps_the_names_of_its_first_start(tmp_path: Path, older: bool) -> None:
    """Older runs named an evaluation by the whole path, and their manifests say nothing of names."""
    resolve("tiny-llama")
    path = filled(tmp_path) / "grid.yaml"
    path.write_text(replaced("[raw, unit]", "raw"))
    folder = run_grid(path, load=fake.load()).folder
    if older:
        manifest = json.loads((folder / "manifest.json").read_text())
        del manifest["evaluations"]
        (folder / "manifest.json").write_text(json.dumps(manifest))
    # another file of the same stem comes first now
    (tmp_path / "more").mkdir()
    text = (tmp_path / "items.json").read_text().replace("Tea", "Coffee")
    (tmp_path / "more" / "items.json").write_text(re.sub("Milk|Rum|Ale", "Wine and \\g<0>", text))
    path.write_text(
        replaced(
            "[raw, unit]", "raw", "evaluations:", "evaluations:\n  - {kind: choice, data: more/items.json}"
        )
    )
    (plan,) = run_plans(read_grid(path))
    old = ["choice:items.json", "open_ended:open.json"] if older else ["choice:items", "open_ended:open"]
    new = "choice:items" if older else "choice:more/items"
    assert [block.evaluation for block in plan.blocks] == [new, *old]
    if not older:
        run_grid(path, load=fake.load())
        faults = {one.what for one in check(folder, Planned(plan.parts())) if one.fault}
        assert faults <= {"errors"}
