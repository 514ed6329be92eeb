"""What one HTTP request asked for, from its name to its proof: the HTTP layer sets it, the engine's client
steers by it and counts into it. vLLM's handlers stand between the two and carry nothing of ours.

It lives in a context variable, which every task that is started for the request inherits.
"""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass

from vsteer.protocol import Positions, Prompt


@dataclass
class Asked:
    name: str  # the steering, spelled out
    cell: int = 0  # 0: unsteered
    fingerprint: str = ""
    positions: Positions = "all"
    # where its parts end cannot be seen from the tokens alone: its tokens must then be these
    prompt: Prompt | None = None
    # answers that were finished, and proven to be steered where they should be
    proven: int = 0
    steered_tokens: int = 0

    def report(self) -> dict[str, object]:
        """What every answer says."""
        return {
            "steering": self.name,
            "fingerprint": self.fingerprint,
            "steered_tokens": self.steered_tokens,
        }


CURRENT: ContextVar[Asked | None] = ContextVar("vsteer_asked", default=None)
