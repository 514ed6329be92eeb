"""Where engines run: what each takes of a node, for how many there is room, and which cores are its own.

Ray counts cores and does not hand them out, so an engine on a CPU claims its own on the machine that it finds
itself on.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from vsteer.errors import EngineError, UnsupportedError, UsageError

BIND = "VLLM_CPU_OMP_THREADS_BIND"
# A process that was just killed may hold its cores a moment longer.
CLAIM_SECONDS = 10.0


@dataclass(frozen=True)
class Share:
    """What one engine takes, all of it on one node: devices, or cores where there are none."""

    ranks: int
    gpu: bool
    cores: int = 0

    @property
    def resources(self) -> dict[str, float]:
        # a GPU engine needs next to no processor time, so that devices alone decide where there is room
        return {"GPU": self.ranks} if self.gpu else {"CPU": self.cores}

    def room(self, nodes: Sequence[Mapping[str, float]]) -> int:
        """How many engines these nodes can hold."""
        ((name, each),) = self.resources.items()
        return sum(int(node.get(name, 0) // each) for node in nodes)


def find_share(ranks: int, gpu: bool, most: int, nodes: Sequence[Mapping[str, float]]) -> Share:
    """On a CPU, as many cores as there are for each if `most` engines run."""
    cores = [int(node.get("CPU", 0)) for node in nodes]
    largest = max(cores, default=0)
    return Share(ranks, gpu, 0 if gpu else max(ranks, min(largest, sum(cores) // most)))


def check_room(share: Share, least: int, nodes: Sequence[Mapping[str, float]]) -> None:
    """Refuse at once what would wait for ever."""
    what, name = ("devices", "GPU") if share.gpu else ("cores", "CPU")
    largest = max((int(node.get(name, 0)) for node in nodes), default=0)
    if least and largest < share.ranks:
        raise UnsupportedError(
            f"an engine of {share.ranks} ranks needs {share.ranks} {what} on one node, and the largest node "
            f"has {largest}",
            hint="vsteer does not spread an engine over nodes: take a smaller tensor_parallel_size times "
            "pipeline_parallel_size, larger nodes, or a quantised model",
        )
    if share.room(nodes) < least:
        found = sum(int(node.get(name, 0)) for node in nodes)
        ranks = f" of {share.ranks} ranks" if share.ranks > 1 else ""
        raise UsageError(
            f"{least} replicas{ranks} need {least * share.ranks} {what}, and there are {found} "
            f"on {len(nodes)} node{'s' if len(nodes) > 1 else ''}",
            hint="take fewer, or replicas: {min: 1, max: N}, which begins with those that there are "
            "(min: 0 waits for nodes that have yet to come)",
        )


def user_binding() -> list[str]:
    """The lists of cores, one a rank, that the user bound engines to; empty without any."""
    bind = os.environ.get(BIND, "auto")
    return [] if bind in ("auto", "nobind") else bind.split("|")


class Cores:
    """Cores of this machine that no other engine has, until this process ends."""

    def __init__(self, share: Share) -> None:
        """In the thread that starts the engine, which hands them down to all that it starts."""
        self._held: list[socket.socket] = []
        if share.gpu or not hasattr(os, "sched_getaffinity"):
            return
        if bound := user_binding():
            os.environ[BIND] = "|".join(self._claim(bound, share.ranks))
        else:
            usable = [str(core) for core in sorted(os.sched_getaffinity(0))]
            os.sched_setaffinity(0, [int(core) for core in self._claim(usable, share.cores)])

    def _claim(self, names: Sequence[str], count: int) -> list[str]:
        deadline = time.monotonic() + CLAIM_SECONDS
        found: list[str] = []
        while True:
            for name in names:
                if len(found) < count and name not in found and self._claims(name):
                    found.append(name)
            if len(found) == count:
                return sorted(found, key=names.index)
            if time.monotonic() > deadline:
                raise EngineError(
                    f"{count} cores are wanted on {socket.gethostname()}, and only {len(found)} of "
                    f"{len(names)} are free of other engines",
                    hint="end the other run, or give Ray no more cores than there are (ray start --num-cpus)",
                )
            time.sleep(0.1)

    def _claims(self, name: str) -> bool:
        """An address in the kernel that one process can have at a time, and that goes with it."""
        held = socket.socket(socket.AF_UNIX)
        try:
            held.bind(f"\0vsteer-core-{name}")
        except OSError:
            held.close()
            return False
        self._held.append(held)
        return True
