"""Random prompts and vectors for benchmarks: throughput does not depend on what they mean."""

from __future__ import annotations

import numpy as np

from vsteer.protocol import EngineInfo, Prompt, Vectors

VECTOR = "random"
ANSWERS = (10, 11)  # any two tokens: an evaluation reads two log-probabilities
LENGTHS = (60, 250)
PREFIX = 4  # the tokens of a forced answer behind the chat template


def random_vectors(info: EngineInfo) -> Vectors:
    """One vector with a direction at every layer."""
    directions = np.random.default_rng(0).standard_normal((info.layers, info.hidden_size))
    return {VECTOR: dict(enumerate(directions.astype(np.float32)))}


def chat_prompts(count: int, seed: int) -> list[Prompt]:
    """Random tokens behind a chat template."""
    rng = np.random.default_rng(seed)
    made = []
    for length in rng.integers(LENGTHS[0], LENGTHS[1] + 1, count).tolist():
        tokens = tuple(int(token) for token in rng.integers(100, 40_000, length))
        made.append(Prompt(tokens, length - PREFIX, length - PREFIX - 3))
    return made
