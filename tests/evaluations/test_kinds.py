"""Kinds of evaluation: each goes by the name of its registry's entry, and a grid names them by it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest

from tests.plan.sample import filled, planner, refused
from vsteer.evaluations.kinds import KINDS
from vsteer.plan.plan import Plan
from vsteer.store import schema

TOKENS = "- {kind: refusal_tokens, data: open.json, tokens: [I, N]}"
CHOICE = "- {kind: choice, data: items.json}"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return filled(tmp_path)


@pytest.fixture
def plan(folder: Path) -> Callable[..., Plan]:
    return planner(folder)


@pytest.mark.parametrize("name", KINDS)
def test_a_kind_s_name_is_its_entry_s(name: str) -> None:
    assert get_args(KINDS[name].model_fields["kind"].annotation) == (name,)
    assert KINDS[name].row_kind in schema.KINDS


def test_a_grid_names_a_kind(plan: Callable[..., Plan]) -> None:
    blocks = plan(CHOICE, f"{CHOICE}\n  {TOKENS}").blocks
    assert [type(block.spec.evaluation) for block in blocks] == [
        KINDS["choice"],
        KINDS["refusal_tokens"],
        KINDS["open_ended"],
    ]


# 16 steered configurations and a baseline. Rows of refusal tokens are stored as choices, so that an exclusion
# of choices takes them out with the others.
@pytest.mark.parametrize(
    ("kind", "configs"),
    [("choice", [1, 1, 17]), ("refusal_tokens", [17, 1, 17]), ("open_ended", [17, 17, 1])],
)
def test_an_exclusion_names_a_kind(plan: Callable[..., Plan], kind: str, configs: list[int]) -> None:
    exclude = f"exclude:\n  - {{kind: {kind}}}\nevaluations:"
    found = plan(CHOICE, f"{CHOICE}\n  {TOKENS}", "evaluations:", exclude)
    assert [len(block.configs) for block in found.blocks] == configs


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        (("kind: choice", "kind: choise"), "expected the kind choice, lm_eval, open_ended or refusal_tokens"),
        (("evaluations:", "exclude: [{kind: choise}]\nevaluations:"), "'refusal_tokens', found 'choise'"),
    ],
)
def test_an_unknown_kind_is_refused_with_those_that_there_are(
    folder: Path, pairs: tuple[str, str], message: str
) -> None:
    assert message in refused(folder, *pairs)


def test_what_was_answered_is_what_the_store_has_columns_for() -> None:
    from vsteer.plan.rows import NO_ANSWER

    columns: dict[str, Any] = {column.name: column for column in schema.ROWS}
    assert all(columns[name].null for name in NO_ANSWER)
