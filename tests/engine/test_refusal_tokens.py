"""Refusal tokens through vLLM, against transformers: unsteered, ablated and added to in one batch."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.engine.conftest import Setup
from tests.evaluations.refusal_tokens_oracle import check
from vsteer.engine.driver import VllmEngine


@pytest.mark.parametrize("engine", [Setup(ablates=True)], indirect=True, ids=str)
def test_log_odds_equal_transformers(engine: VllmEngine, tmp_path: Path) -> None:
    check(engine, tmp_path)
