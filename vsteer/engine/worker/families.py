"""The steered classes: each is vLLM's own of a family, mixed with the steered stream.

In nearly all of them a layer returns (hidden, residual) and the stream is their sum, with whatever norms a
family has around its MLP (Gemma, GLM) already in `hidden`; so those need no code of their own.
"""

from __future__ import annotations

import importlib
import pkgutil

from vsteer.families import FAMILIES

_FAMILIES = {f"Steered{family.architecture}": family for family in FAMILIES}


def __getattr__(name: str) -> type:
    """The class of that name, made when it is first asked for, so that only its own family is imported."""
    family = _FAMILIES.get(name)
    if family is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    theirs = getattr(importlib.import_module(family.vllm_module), family.architecture)
    made = type(name, (pkgutil.resolve_name(family.mixin), theirs), {"__module__": __name__})
    globals()[name] = made
    return made
