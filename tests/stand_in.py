"""The engine that runs no model, for tests of the run."""

from vsteer.bench.stand_in import StandIn, load, number

__all__ = ["StandIn", "load", "number"]
