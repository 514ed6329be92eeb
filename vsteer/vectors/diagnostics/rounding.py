"""How much of a vector is rounding: a small difference of long streams that the model keeps in few digits.

A layer adds twice to the stream, and every sum is rounded, in each member by chance: more members make a
vector better, and float32 makes it exact. What else a layer rounds is not counted, nor that the stream was
shorter before, nor that like values round alike. Compared with float32, the error was 0.5 to 1.6 times this
in SmolLM2 (tests/engine/test_extraction.py); in Gemma 3, whose stream is long by a few components, mostly
less.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from vsteer.vectors.activations import Float64

# from 1 to the dtype's next number
STEP = {"bfloat16": 2**-7, "float16": 2**-10, "float32": 2**-23}
# such a vector has a cosine of 0.995 with float32's
MUCH = 0.1


def rounding(dtype: str, layer: int, stream_norm: float, contrast: Float64, norm: float) -> float | None:
    """The length of the error in the difference of the means, over the difference's own length `norm`.

    None where a dtype isn't known here, and where there is no difference.
    """
    if dtype not in STEP or not norm:
        return None
    of_one_sum = stream_norm * STEP[dtype] / 12**0.5
    return float(of_one_sum * (2 * (layer + 1)) ** 0.5 * np.linalg.norm(contrast) / norm)


def warning(name: str, layers: Iterable[Mapping[str, Any]], dtype: str) -> str | None:
    """What to warn of by a vector's table of layers, if rounding is much of the vector somewhere."""
    much = {row["layer"]: row["rounding"] for row in layers if (row["rounding"] or 0) >= MUCH}
    if not much:
        return None
    worst = max(much, key=lambda layer: much[layer])
    text = f"{dtype}'s rounding may be {min(1, much[worst]):.0%} of the vector {name} at layer {worst}"
    if others := [str(layer) for layer in much if layer != worst]:
        text += f" and {MUCH:.0%} or more at layer{'s' * (len(others) > 1)} {', '.join(others)}"
    return f"{text}: the classes hardly differ there"
