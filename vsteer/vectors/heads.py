"""A vector made from attention heads, read in Hugging Face: what enters each layer's output projection.

vLLM keeps heads' outputs within its attention, so they are read where Hugging Face hands them on. The model
must fit one device beside nothing else.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from vsteer.errors import UnsupportedError, UsageError
from vsteer.families import BY_ARCHITECTURE
from vsteer.models.hugging_face import load_model
from vsteer.models.weights import read_config
from vsteer.vectors.activations import Activations, Float64
from vsteer.vectors.members import member_count, members
from vsteer.vectors.methods.iti import best_heads, head_directions, probed_heads
from vsteer.vectors.recipe import Recipe
from vsteer.vectors.vector import Origin, SteeringVector

# The table beside the vector, as diagnostics name theirs.
TABLE = "heads"
Rows = list[dict[str, Any]]


def check_heads(recipe: Recipe, model: Path) -> None:
    """Raise where the model has no heads that can be read so, or fewer than the recipe wants."""
    wanted, config = recipe.heads or 0, read_config(model)
    named = config.get("architectures")
    for name in named if isinstance(named, list) else ():
        family = BY_ARCHITECTURE.get(str(name))
        if family is None or family.attention_as_it_is:
            continue
        raise UnsupportedError(
            f"{family.name} norms or scales what its attention gives before it is added, so a head's "
            "direction is not its share in the stream",
            "take another method, such as mean_diff",
        )
    layers, heads = config.get("num_hidden_layers"), config.get("num_attention_heads")
    if type(layers) is int and type(heads) is int and wanted > (total := layers * heads):
        raise UsageError(f"the model has {total:,} heads, and {wanted:,} are wanted", "take fewer heads")


def read_heads(
    recipe: Recipe,
    model: str | Path,
    dtype: str,
    tokenizer: Any,
    origin: Origin,
    on_progress: Callable[[], None] = lambda: None,
) -> tuple[SteeringVector, Rows]:
    """The vector, at the layers that have a chosen head, and one row for each head of the model.

    `origin` says which model it is; `on_progress` is called once for each text.
    """
    import torch

    assert recipe.heads is not None
    kind = dtype if dtype == "auto" else getattr(torch, dtype)
    found = load_model(model, device="cuda" if torch.cuda.is_available() else "cpu", dtype=kind).eval()
    outputs_of = [layer.self_attn.o_proj for layer in found.model.layers]
    if any(type(one) is not torch.nn.Linear for one in outputs_of):
        raise UnsupportedError(
            "the model's weights are quantised, and iti needs its attention's output projection as it is",
            "give the plain checkpoint",
        )
    config = found.config.get_text_config()
    heads, width = config.num_attention_heads, outputs_of[0].in_features
    shape = (len(outputs_of), member_count(recipe.data), width)
    positive = []
    with Activations(*shape) as outputs, torch.inference_mode():
        for place, member in enumerate(members(tokenizer, recipe.data, recipe.token, recipe.system)):
            positive.append(member.positive)
            outputs.put(place, _outputs(found, outputs_of, member.prompt.token_ids, member.position))
            on_progress()
        labels = np.array(positive)
        probed = probed_heads(outputs, labels, heads)
        chosen = best_heads(probed, recipe.heads)
        if not chosen:
            raise UsageError("no head's output differs between the classes", "read another token")

        def projected(layer: int, of_heads: Float64) -> Float64:
            weight: Float64 = outputs_of[layer].weight.double().cpu().numpy()
            return weight @ of_heads

        directions = head_directions(outputs, labels, heads, chosen, projected)
    origin = replace(
        recipe.origin(tokenizer, origin),
        model_type=config.model_type,
        model_layers=len(outputs_of),
        dtype=str(found.dtype).removeprefix("torch."),
        derived=(f"{len(chosen)} of {len(probed)} heads, added together at {len(directions)} layers",),
        where="attention",
    )
    rows = [asdict(replace(one, chosen=(one.layer, one.head) in chosen)) for one in probed]
    made = {layer: one.astype(np.float32) for layer, one in directions.items()}
    return SteeringVector(recipe.name, made, origin=origin), rows


def _outputs(model: Any, outputs_of: list[Any], token_ids: tuple[int, ...], position: int) -> Any:
    """What the heads of each layer give at one position: [layer, heads x width]."""
    import torch

    seen: list[Any] = []
    hooks = [
        one.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0][0, position].float()))
        for one in outputs_of
    ]
    try:
        model.model(input_ids=torch.tensor([token_ids], device=model.device), use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return torch.stack(seen).cpu().numpy()
