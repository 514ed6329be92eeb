"""How a vector is learned, with the defaults of arXiv 2604.08524 where its text or code has one."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from vsteer.protocol import Positions

MethodName = Literal["ntp", "reps"]


@dataclass(frozen=True)
class Settings:
    method: MethodName = "reps"
    epochs: int = 10
    batch_size: int = 6
    learning_rate: float = 0.01
    tokens: int = 64  # how many of a response count
    k: float = 0.02  # of RePS's weight
    positions: Positions = "all"
    held_out: float = 0.2  # the share of the pairs that only choose the epoch
    seed: int = 0
    shuffled: int | None = None  # the seed of the shuffled labels, for a control
    # an example's factor is drawn from these, and has its sign
    factors: tuple[int, ...] = tuple(range(2, 21, 2))
    start: float = 0.01  # the standard deviation of the first vector's numbers
    clip: float = 1.0  # the largest norm of a gradient

    def identity(self) -> dict[str, Any]:
        return {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(self).items()}

    def describe(self) -> str:
        words = [
            f"epochs {self.epochs}",
            f"batches of {self.batch_size}",
            f"learning rate {self.learning_rate:g}",
            f"{self.tokens} tokens of a response",
            f"positions {self.positions}",
            f"held out {self.held_out:g}",
            f"seed {self.seed}",
        ]
        if self.method == "reps":
            words.insert(3, f"k {self.k:g}")
        if self.shuffled is not None:
            words.append(f"labels shuffled, seed {self.shuffled}")
        return ", ".join(words)
