"""Something done on every node of a Ray cluster, such as a look at what is installed there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from vsteer.cluster.session import RaySession

T = TypeVar("T")
# A node may have to start a process and import what the function needs.
SECONDS = 120.0


@dataclass(frozen=True)
class NodeAnswer(Generic[T]):
    host: str
    gpus: int
    cores: int
    answer: T | None
    error: str = ""  # why there is no answer


def on_every_node(address: str, function: Callable[..., T], *arguments: Any) -> list[NodeAnswer[T]]:
    """Call a function, which is found by its name there, in a process on each node."""
    session = RaySession(address)
    try:
        return _asked(session.ray, function, arguments)
    finally:
        session.close()


def _asked(ray: Any, function: Callable[..., T], arguments: tuple[Any, ...]) -> list[NodeAnswer[T]]:
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    alive = [node for node in ray.nodes() if node["Alive"]]
    task = ray.remote(function)
    calls = [
        task.options(
            num_cpus=0,
            max_retries=0,
            scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False),
        ).remote(*arguments)
        for node in alive
    ]
    ray.wait(calls, num_returns=len(calls), timeout=SECONDS)
    found = []
    for node, call in zip(alive, calls, strict=True):
        answer, error = None, ""
        try:
            answer = ray.get(call, timeout=0.1)
        except ray.exceptions.RayError as problem:
            error = next(iter(reversed(str(problem).strip().splitlines())), "no answer")
        resources = node["Resources"]
        gpus, cores = int(resources.get("GPU", 0)), int(resources.get("CPU", 0))
        found.append(NodeAnswer(node["NodeManagerHostname"], gpus, cores, answer, error))
    return found
