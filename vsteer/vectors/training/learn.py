"""From pairs of responses to a learned vector of the mean difference's length, with its table of losses."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vsteer.datasets.items import ItemSet
from vsteer.errors import UsageError, VectorError
from vsteer.prompts.template import template_name
from vsteer.protocol import Direction
from vsteer.vectors.derive import content_sha256, mention
from vsteer.vectors.norms import length, scaled_to
from vsteer.vectors.recipe import Reading, Recipe
from vsteer.vectors.training.checkpoint import Checkpoint
from vsteer.vectors.training.learner import Learner, Row
from vsteer.vectors.training.settings import Settings
from vsteer.vectors.training.texts import Pair, held_out, read_pairs, with_shuffled_labels
from vsteer.vectors.vector import Origin, SteeringVector

if TYPE_CHECKING:
    from vsteer.engine.proof.reference import ReferenceEngine

# Raise it whenever the same settings come to give other numbers.
TRAINING_VERSION = 1
# Seconds between two checkpoints.
OFTEN = 20.0


@dataclass(frozen=True)
class Standard:
    """The mean difference whose length a learned vector gets, and the direction it is compared with."""

    vector: SteeringVector
    compared: Mapping[int, Direction]
    origin: Origin  # what is known of the model and of where its stream was measured


def standard_of(reading: Reading, learned: Sequence[int]) -> Standard:
    """Its length is that of all pairs; what is compared knows only the pairs that are learned from."""
    extraction = reading.extraction
    weights = extraction.contrast * np.isin(np.arange(len(extraction.labels)) // 2, learned)
    found = {
        layer: extraction.activations.weighted(layer, weights[None])[0].astype(np.float32)
        for layer in range(extraction.layers)
    }
    return Standard(reading.vector("raw"), found, reading.origin)


def standard_in(vector: SteeringVector, engine: ReferenceEngine, model: Origin) -> Standard:
    """A vector from a file as the standard of a model."""
    if vector.hidden_size != engine.info.hidden_size:
        raise VectorError(
            f"{vector.name!r} is {vector.hidden_size} wide, and the model's stream {engine.info.hidden_size}",
            "take a vector of this model",
        )
    origin = replace(
        model,
        model_type=engine.info.model_type,
        model_layers=engine.info.layers,
        template=template_name(engine.tokenizer),
        token=vector.origin.token,
    )
    return Standard(vector, vector.directions, origin)


def responses_of(recipe: Recipe) -> ItemSet:
    if isinstance(recipe.data, ItemSet):
        return recipe.data
    raise UsageError(
        "the data holds two unpaired sets, and a vector is learned from responses",
        "give {prompt, positive, negative} on each line; `vsteer vectors responses` makes such data",
    )


def learn(
    engine: ReferenceEngine,
    recipe: Recipe,
    pairs: Sequence[Pair],
    standard: Standard,
    layers: Sequence[int],
    settings: Settings,
    out: Path,
    on_step: Callable[[int, int, float], None] = lambda layer, step, loss: None,
) -> tuple[SteeringVector, list[Row]]:
    """Learn each layer's direction on its own. `on_step` hears of each step, and of the loss in its epoch.

    The checkpoint beside `out` is taken up, and left there: it goes once the vector is written.
    """
    learned, held = split(pairs, settings)
    checkpoint = checkpoint_of(out, engine, recipe, standard, settings, layers)
    checkpoint.read()
    learner = Learner(engine.model, settings, learned, held)
    written = time.monotonic()
    for layer in layers:
        compared, target = standard.compared[layer], length(standard.vector.directions[layer])
        if layer not in checkpoint.controls:
            checkpoint.controls[layer] = learner.controls(layer, compared, target)
            checkpoint.layers[layer] = learner.begin(layer)
        begun = checkpoint.layers[layer]
        on_step(layer, begun.step, float("nan"))
        for progress in learner.advance(layer, begun, compared, target):
            if time.monotonic() - written > OFTEN or progress.step == learner.steps:
                checkpoint.write()
                written = time.monotonic()
            place = progress.step % learner.steps_an_epoch or learner.steps_an_epoch
            seen = min(place * settings.batch_size, len(learner.learned))
            on_step(layer, progress.step, progress.loss / seen)
    rows = [row for layer in layers for row in (*checkpoint.controls[layer], *checkpoint.layers[layer].rows)]
    return _vector(engine, recipe, standard, layers, settings, checkpoint, len(learned), len(held)), rows


def pairs_of(recipe: Recipe, tokenizer: Any, config: Any, settings: Settings) -> list[Pair]:
    """The data in the model's tokens; what is wrong with it is found before the model is loaded."""
    data = responses_of(recipe)
    longest = config.max_position_embeddings
    return read_pairs(tokenizer, data, settings.tokens, settings.positions, recipe.system, longest)


def check_layers(layers: Sequence[int], config: Any, standard: SteeringVector | None) -> None:
    there = config.num_hidden_layers
    for layer in layers:
        if layer >= there:
            raise UsageError(f"the model has no layer {layer}", f"it has layers 0 to {there - 1}")
        if standard and layer not in standard.directions:
            raise VectorError(
                f"{standard.name!r} has no direction at layer {layer}, and so no length there",
                f"it has layers {standard.layers[0]} to {standard.layers[-1]}",
            )


def split(pairs: Sequence[Pair], settings: Settings) -> tuple[list[Pair], list[Pair]]:
    """The pairs that are learned from, and those held out; shuffled where a control is wanted."""
    if settings.shuffled is not None:
        pairs = with_shuffled_labels(pairs, settings.shuffled)
    learned, held = held_out(len(pairs), settings.held_out, settings.seed)
    return [pairs[n] for n in learned], [pairs[n] for n in held]


def steps(pairs: int, settings: Settings) -> int:
    """How many steps a layer takes."""
    learned, _ = held_out(pairs, settings.held_out, settings.seed)
    return settings.epochs * -(-2 * len(learned) // settings.batch_size)


def checkpoint_path(out: Path) -> Path:
    return out.with_suffix(".checkpoint")


def checkpoint_of(
    out: Path,
    engine: ReferenceEngine,
    recipe: Recipe,
    standard: Standard,
    settings: Settings,
    layers: Sequence[int],
) -> Checkpoint:
    """What makes a learning the same learning: going on with another's numbers would be silent nonsense."""
    identity = {
        "version": TRAINING_VERSION, "model": standard.origin.model_sha256, "dtype": engine.info.dtype,
        "recipe": recipe.identity(), "standard": content_sha256(standard.vector),
        "settings": settings.identity(), "layers": list(layers),
    }  # fmt: skip
    return Checkpoint(checkpoint_path(out), identity)


def _vector(
    engine: ReferenceEngine,
    recipe: Recipe,
    standard: Standard,
    layers: Sequence[int],
    settings: Settings,
    checkpoint: Checkpoint,
    learned: int,
    held: int,
) -> SteeringVector:
    directions, epochs = {}, []
    for layer in layers:
        progress = checkpoint.layers[layer]
        best = progress.best.double().numpy()
        target = length(standard.vector.directions[layer])
        directions[layer] = scaled_to(best.astype(np.float32), target, recipe.name, layer)
        epochs.append(f"{next(row['epoch'] for row in progress.rows if row['chosen'])} at layer {layer}")
    done = (
        f"learned by {settings.method} from {learned} pairs: {settings.describe()}",
        f"the epoch with the least loss on {held} held-out pairs: {', '.join(epochs)}",
        f"as long as the mean difference {mention(standard.vector)}",
    )
    origin = replace(
        standard.origin,
        data=recipe.source,
        data_sha256="+".join(recipe.sha256),
        method=settings.method,
        system=recipe.system or "",
        dtype=engine.info.dtype,
        pairs=learned + held,
        norm="raw",
        derived=done,
    )
    norms = {layer: norm for layer, norm in standard.vector.stream_norms.items() if layer in directions}
    return SteeringVector(recipe.name, dict(sorted(directions.items())), norms, origin)
