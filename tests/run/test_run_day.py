"""A chat template that writes the date writes that of the run's first start, whenever the run goes on."""

from __future__ import annotations

import json
import shutil
from datetime import date, datetime
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from transformers import AutoTokenizer

from tests.fake_engine import FakeEngine
from tests.run import fake
from tests.run.test_start import rows_of, written
from vsteer.cli import main
from vsteer.grid.spec import read_grid
from vsteer.models import resolve
from vsteer.plan.plan import make_plans
from vsteer.run.folder import run_folder
from vsteer.run.start import run_grid

TODAY = "{{ '<|im_start|>system\\nIt is ' + strftime_now('%d %b %Y') + '<|im_end|>\\n' }}"


@pytest.fixture
def grid(tmp_path: Path) -> Path:
    """A model whose template writes the date, as Llama 3.1's does."""
    folder = tmp_path / "model"
    shutil.copytree(resolve("tiny-llama").model, folder)
    (folder / "vsteer.json").unlink(missing_ok=True)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = TODAY + tokenizer.chat_template
    tokenizer.save_pretrained(folder)
    return written(tmp_path, "id: tiny-llama", "id: ./model", "random_vectors: 2, shuffled_labels: 3, ", "")


def set_clock(monkeypatch: pytest.MonkeyPatch, day: str) -> None:
    """For transformers, which asks by itself, as for us."""

    class Then(datetime):
        @classmethod
        def now(cls, *_: Any) -> datetime:  # type: ignore[override]
            return datetime.fromisoformat(f"{day}T23:59:00")

    class Day(date):
        @classmethod
        def today(cls) -> date:  # type: ignore[override]
            return date.fromisoformat(day)

    monkeypatch.setattr("transformers.utils.chat_template_utils.datetime", Then)
    for module in ("run.folder", "plan.plan"):
        monkeypatch.setattr(import_module(f"vsteer.{module}"), "date", Day)


def test_a_run_that_goes_on_the_next_day_has_the_same_prompts(
    grid: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_clock(monkeypatch, "2026-11-21")
    first = run_grid(grid, load=fake.load(300))
    assert 0 < first.good < first.planned
    before = {row[0] for row in rows_of(first.folder, "row_id")}
    set_clock(monkeypatch, "2026-11-22")
    again = run_grid(grid, load=fake.load())
    assert before < {row[0] for row in rows_of(again.folder, "row_id")}
    assert again.good + again.errors == again.planned == first.planned
    assert not list((again.folder / "set-aside").glob("unplanned-*"))
    assert json.loads((again.folder / "manifest.json").read_text())["day"] == "2026-11-21"
    (plan,) = make_plans(read_grid(grid), date(2026, 11, 21))
    assert "It is 21 Nov 2026" in plan.text(plan.blocks[0].prompts[0])
    assert {row.row_id for row in plan.rows()} == {row[0] for row in rows_of(again.folder, "row_id")}


def test_plan_and_check_take_the_run_s_day(grid: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def plan() -> str:
        return " ".join(CliRunner().invoke(main, ["plan", str(grid)]).output.split())

    set_clock(monkeypatch, "2026-11-21")
    run_grid(grid, load=fake.load())
    set_clock(monkeypatch, "2026-12-24")
    assert "It is 21 Nov 2026" in plan()
    checked = CliRunner().invoke(main, ["check", str(grid), "--json"])
    assert "missing" not in [finding["what"] for finding in json.loads(checked.output)["findings"]]
    run_grid(grid, fresh=True, load=fake.load())
    assert "It is 24 Dec 2026" in plan()
    shutil.rmtree(run_folder(read_grid(grid)))
    set_clock(monkeypatch, "2026-12-25")
    assert "It is 25 Dec 2026" in plan()


def test_vectors_are_made_of_prompts_of_that_day(grid: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run may be killed between its plan and its extraction."""
    prompts: list[str] = []

    class Watching(FakeEngine):
        def run(self, requests: Any) -> Any:
            kept = list(requests)
            prompts.extend(
                self.tokenizer.decode(request.prompt.token_ids) for request in kept if request.capture
            )
            return super().run(kept)

    set_clock(monkeypatch, "2026-11-21")
    run_grid(grid, load=fake.load(0))
    set_clock(monkeypatch, "2026-11-22")
    run_grid(grid, load=lambda plan, *_: fake.fake_engine(plan, kind=Watching))
    assert prompts
    assert all("It is 21 Nov 2026" in text for text in prompts)


def test_a_template_without_a_date_is_left_alone() -> None:
    from vsteer.prompts.template import dated

    tokenizer = AutoTokenizer.from_pretrained(resolve("tiny-llama").model)
    before = tokenizer.apply_chat_template
    assert dated(tokenizer, date(2026, 11, 21)).apply_chat_template == before
    assert dated(None, date(2026, 11, 21)) is None
