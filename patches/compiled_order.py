"""Seam: the order of what the compiler fuses on a CPU.

Completes `SchedulerNode.recompute_size_and_body` of torch's Inductor up to 2.13 (as pytorch's pull request
185873 does): a node whose loops are made anew to fit another's keeps the names under which it reads what an
operation wrote in place.
Why: without them it no longer waits for that operation, and vLLM's matrix products on a CPU write in place.
With four vectors at one layer, whether it happened depended on the table's size, and layers then read memory
that nothing had written yet.
"""

from __future__ import annotations

import functools
from typing import Any

from torch._inductor.scheduler import SchedulerNode

MARK = "replaced_by_vsteer"


def apply() -> None:
    original = SchedulerNode.recompute_size_and_body
    if hasattr(original, MARK):
        return

    @functools.wraps(original)
    def with_renames(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        self.set_read_writes(self.read_writes.rename(self.mutation_renames))

    setattr(with_renames, MARK, True)
    SchedulerNode.recompute_size_and_body = with_renames
