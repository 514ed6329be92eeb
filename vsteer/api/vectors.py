"""Vectors in a notebook: extracted from contrast data, or loaded from a file."""

from __future__ import annotations

import warnings
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from vsteer import models
from vsteer.api.engine import Engine
from vsteer.models.hugging_face import load_tokenizer
from vsteer.vectors.files import load
from vsteer.vectors.recipe import make_recipe, model_origin
from vsteer.vectors.vector import SteeringVector


def extract(
    model: str | Engine,
    data: str | Path,
    *,
    negative: str | Path | None = None,
    method: str | None = None,
    norm: str = "raw",
    token: str | int | None = None,
    system: str | None = None,
    name: str | None = None,
    **engine: Any,
) -> SteeringVector:
    """A vector for every layer of a model, from a built-in behaviour or from a file of contrast data.

    It is made as `vsteer vectors extract` makes it. The model is loaded for it with the settings `engine`,
    which are those of `Engine`; an Engine that is open already is used as it is.
    """
    from vsteer.vectors.diagnostics.rounding import warning
    from vsteer.vectors.diagnostics.tables import layer_table

    recipe = make_recipe(
        str(data),
        negative=None if negative is None else str(negative),
        method=method,
        token=None if token is None else str(token),
        system=system,
        name=name,
    )
    if isinstance(model, Engine):
        tokenizer = model.tokenizer
    else:
        source = models.resolve(model, engine.get("revision"))
        tokenizer = load_tokenizer(source.model, source.revision)
    # What is wrong with the data is found before the model is loaded, which takes long.
    recipe.check(tokenizer, norm)
    with nullcontext(model) if isinstance(model, Engine) else Engine(model, **engine) as opened:
        origin = model_origin(opened.model, opened.source)
        with (
            opened.counting(f"extracting {recipe.name}", recipe.members) as step,
            recipe.read(opened.engine, tokenizer, origin, step) as reading,
        ):
            vector = reading.vector(norm)
            layers = layer_table(reading.extraction, vector)
    if note := warning(recipe.name, layers, vector.origin.dtype):
        warnings.warn(f"{note}; dtype='float32' avoids it", stacklevel=2)
    return vector


def load_vector(path: str | Path, name: str | None = None) -> SteeringVector:
    """A vector from vsteer's .safetensors, llama.cpp's .gguf, or CAA's .pt files."""
    return load(path, name)
