"""What makes two rows the same row: hashes of everything that changes an output, and of nothing else.

Every identity is a plain value, written as canonical JSON and hashed. Raise VERSION whenever the same value
comes to stand for another output, so that an old row is never taken for a new one.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable

VERSION = 1


def canonical(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":"), allow_nan=False)


def identify(value: object) -> str:
    """32 hexadecimal digits: among a billion rows two share an id once in 10^20 runs."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()[:32]


def row_id(config_id: str, item_id: str, order: str, sample: int) -> str:
    return hashlib.sha256(f"{config_id}|{item_id}|{order}|{sample}".encode()).hexdigest()[:32]


def row_ids(config_ids: Iterable[bytes], item_id: str, order: str, sample: int) -> bytes:
    """The rows of several configurations, 16 bytes each: what `row_id` writes in hexadecimal digits."""
    rest = f"|{item_id}|{order}|{sample}".encode()
    return b"".join([hashlib.sha256(config_id + rest).digest()[:16] for config_id in config_ids])


def derived_seed(*content: object) -> int:
    """A seed for one random draw, made from the run's seed and from what is drawn."""
    digest = hashlib.sha256(f"vsteer-seed|{canonical(list(content))}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1  # vLLM takes a signed 64-bit integer


def sampling_seed(run_seed: int, item_id: str, order: str, sample: int) -> int:
    """It is equal for every configuration, so that a difference between two of them isn't chance."""
    return derived_seed(run_seed, item_id, order, sample)
