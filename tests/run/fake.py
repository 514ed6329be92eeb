"""A run's engine that runs no model, as tests of the run load it in place of vLLM."""

from __future__ import annotations

from tests.fake_engine import FakeEngine
from vsteer.grid.spec import EngineSpec
from vsteer.plan.plan import Plan
from vsteer.run.loading import Load


def fake_engine(
    plan: Plan, dies_after: int | None = None, pace: float = 0.0, kind: type[FakeEngine] = FakeEngine
) -> FakeEngine:
    """A fake of the plan's model. `dies_after` results it is gone; 24 of them take `pace` seconds."""
    facts = plan.facts
    assert facts.folder is not None
    assert facts.layers is not None
    assert facts.hidden_size is not None
    return kind(facts.folder, facts.layers, facts.hidden_size, dies_after=dies_after, pace=pace)


def load(dies_after: int | None = None, pace: float = 0.0, kind: type[FakeEngine] = FakeEngine) -> Load:
    """What `run_grid` takes in place of vLLM."""

    def loaded(plan: Plan, spec: EngineSpec, extracts: bool) -> FakeEngine:
        return fake_engine(plan, dies_after, pace, kind)

    return loaded
