"""Refusal tokens through vLLM, against transformers: unsteered, ablated and added to in one batch."""

from __future__ import annotations

from pathlib import Path

from tests.engine.conftest import ONE, on
from tests.evaluations.refusal_tokens_oracle import check
from vsteer.engine.driver import VllmEngine


@on(ONE)
def test_log_odds_equal_transformers(engine: VllmEngine, tmp_path: Path) -> None:
    check(engine, tmp_path)
