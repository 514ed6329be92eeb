"""The notebook's API without vLLM: an engine that runs no model stands in its place."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import fake_engine
from tests.fake_engine import FakeEngine
from tests.run import fake
from vsteer import models
from vsteer.api import engine as api_engine
from vsteer.protocol import Request, Result, Steering, Vectors
from vsteer.run import start


class Recording(FakeEngine):
    """Keeps what it was given to load, and how many of its runs came to an end."""

    def __init__(self, model: Path) -> None:
        super().__init__(model, layers=6, hidden_size=128)
        self.loads: list[tuple[set[str], list[Steering]]] = []
        self.ended = 0

    def load(self, vectors: Vectors, steerings: Iterable[Steering]) -> None:
        given = list(steerings)
        self.loads.append((set(vectors), given))
        super().load(vectors, given)

    def run(self, requests: Iterable[Request]) -> Iterator[Result]:
        try:
            yield from super().run(requests)
        finally:
            self.ended += 1


@pytest.fixture
def nothing_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fake finds some prompts too long; here it finds none so."""

    hashed = fake_engine.number

    def number(*content: object) -> float:
        return 1.0 if content[0] == "too long" else hashed(*content)

    monkeypatch.setattr(fake_engine, "number", number)


@pytest.fixture
def engines(monkeypatch: pytest.MonkeyPatch) -> list[Recording]:
    """The engines that were started, in their order; each is tiny-llama."""
    made: list[Recording] = []

    def load(folder: Path, *_: Any) -> Recording:
        made.append(Recording(folder))
        return made[-1]

    models.resolve("tiny-llama")
    monkeypatch.setattr(api_engine, "load_named", load)
    return made


@pytest.fixture
def no_vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs go through a fake too."""
    monkeypatch.setattr(start, "load_vllm", lambda plan, *_, **__: fake.fake_engine(plan))
