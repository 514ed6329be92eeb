"""`vsteer status` and `vsteer check` on a grid and on a run, before and after the grid changed."""

import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from tests.plan.sample import filled, replaced
from tests.run import fake
from vsteer.cli import main
from vsteer.grid.spec import read_grid
from vsteer.models import resolve
from vsteer.plan.plan import make_plans
from vsteer.protocol import EngineStanding
from vsteer.run.engines_file import write
from vsteer.run.start import run_grid
from vsteer.store.events import EVENTS
from vsteer.store.store import open_store
from vsteer.store.stored_plan import stored_plan

# one layer, one multiplier, one norm, two positions
SMALL = ("layers: [1, 4]", "layers: 1", "[-1, 0, 1]", "1", "[raw, unit]", "raw")
MADE_BEFORE = Path(__file__).parents[1] / "run" / "made_before"


def call(*words: object) -> Result:
    return CliRunner().invoke(main, [str(word) for word in words])


@pytest.fixture
def grid(tmp_path: Path) -> Path:
    resolve("tiny-llama")
    path = filled(tmp_path) / "grid.yaml"
    path.write_text(replaced(*SMALL))
    return path


def test_the_rows_of_a_folder_are_those_that_its_grid_planned(tmp_path: Path) -> None:
    """Held against the ids that older code wrote down, two system prompts and several samples among them."""
    resolve("tiny-llama")
    path = Path(shutil.copytree(MADE_BEFORE, tmp_path / "before")) / "grid.yaml"
    folder = run_grid(path, load=fake.load()).folder
    planned = stored_plan(folder)
    ids = sorted(planned.row_id(place) for place in range(len(planned)))
    assert ids == (MADE_BEFORE / "row_ids.txt").read_text().split()


def test_a_grid_and_its_run_are_one_to_both_commands(grid: Path) -> None:
    missing = call("status", grid)
    assert missing.exit_code == 1
    assert "is not a run's folder" in missing.output
    folder = run_grid(grid, load=fake.load()).folder
    for command in ("status", "check"):
        by_grid, by_folder = call(command, grid), call(command, folder)
        assert by_grid.output == by_folder.output != ""
        assert by_grid.exit_code == by_folder.exit_code
    ids = [row.row_id for plan in make_plans(read_grid(grid)) for row in plan.rows()]
    assert f"planned    {len(ids)}\n" in call("status", grid).output
    # a folder is held against its own plan wherever it lies, without the data and the grid
    elsewhere = shutil.move(folder, folder.parents[1] / "moved")
    (grid.parent / "items.json").unlink()
    whole = json.loads(call("check", elsewhere, "--json").output)["findings"]
    assert {finding["what"] for finding in whole} <= {"errors"}


def test_status_says_which_events_are_damaged(grid: Path) -> None:
    """A bit anywhere in the last two lines, and in what ends them."""
    folder = run_grid(grid, load=fake.load()).folder
    path = folder / EVENTS
    content = path.read_bytes()
    sound = call("status", grid).output
    assert "unreadable" not in sound
    lines = content.splitlines(keepends=True)
    last_two = range(len(content) - len(lines[-1]) - len(lines[-2]) - 1, len(content), 7)
    for place in (*last_two, len(content) - 1):
        damaged = bytearray(content)
        damaged[place] ^= 1 << place % 8
        path.write_bytes(damaged)
        shown = call("status", grid)
        assert shown.exit_code == 0
        assert shown.output == sound or "unreadable 1 line of events.jsonl" in shown.output


def test_status_shows_how_several_engines_fare(grid: Path) -> None:
    folder = run_grid(grid, load=fake.load()).folder
    assert "engines" not in call("status", grid).output
    some = [
        EngineStanding(0, "up", "a", 900, 30.5, 0, ""),
        EngineStanding(1, "starting", "b", 100, 0.0, 2, "its process died"),
        EngineStanding(2, "waiting", "", 0, 0.0, 0, ""),
    ]
    write(folder, some)
    text = call("status", grid).output
    assert "engines    none now; as of " in text
    assert "  1        starting on b, 100 rows, 2 deaths, the last: its process died\n" in text
    with open_store(folder):
        live = call("status", grid).output
    assert "engines    1 of up to 3 are up, 30.5 rows/s, 2 deaths\n" in live
    assert "  0        up on a, 30.5 rows/s, 900 rows\n" in live
    assert "waiting" not in live
    shown = json.loads(call("status", grid, "--json").output)["engines"]
    assert [one["rows"] for one in shown] == [900, 100, 0]
    (folder / "engines.json").write_text('{"at": 1, "engines": [{}]}')
    assert "engines" not in call("status", grid).output


def test_a_row_that_is_lost_is_missing_by_the_folder_too(grid: Path) -> None:
    folder = run_grid(grid, load=fake.load()).folder
    (shard,) = (folder / "rows").iterdir()
    shard.unlink()
    found = json.loads(call("check", folder, "--json").output)
    assert not found["whole"]
    assert {finding["what"]: finding["count"] for finding in found["findings"]}["missing"] == 3 * 9
    (folder / "prompts.parquet").write_bytes(b"PAR1")
    torn = call("check", folder)
    assert (torn.exit_code, "check the run by its grid" in torn.output) == (1, True)


def test_rows_of_a_changed_grid_are_set_aside_and_not_unreadable(grid: Path) -> None:
    run_grid(grid, load=fake.load())
    grid.write_text(replaced(*SMALL, "[all, after_prompt]", "all"))
    folder = run_grid(grid, load=fake.load()).folder
    output = call("status", grid).output
    assert "unreadable" not in output
    assert "set aside  files in set-aside/: 1 with rows that the grid no longer planned\n" in output
    assert json.loads(call("status", folder, "--json").output)["set_aside"] == 0
    assert call("check", folder).output == call("check", grid).output
    findings = {f["what"]: f for f in json.loads(call("check", grid, "--json").output)["findings"]}
    assert findings.keys() <= {"no_longer_planned", "errors"}
    assert findings["no_longer_planned"]["fault"] is False


def test_what_is_not_the_run_s_is_set_aside_by_name(grid: Path) -> None:
    folder = run_grid(grid, load=fake.load()).folder
    (folder / "rows" / "mine.txt").write_text("x")
    run_grid(grid, load=fake.load())
    assert "set-aside/: 1 with what can't be read or isn't the run's\n" in call("status", grid).output
