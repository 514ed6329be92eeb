"""One steering's analysis from its folder: the model, the vector with its controls, each text's scores."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vsteer.errors import DataError, StoreError, VectorError
from vsteer.mechanism.attribution import Floats, Question, TextScores, attribute, exact_effects
from vsteer.mechanism.folder import Folder, Settings
from vsteer.mechanism.graph import Graph
from vsteer.mechanism.model import Model
from vsteer.mechanism.texts import Text
from vsteer.models import resolve
from vsteer.models.identity import sha256_of
from vsteer.vectors.derive import content_sha256, for_model, random_like
from vsteer.vectors.files import load
from vsteer.vectors.vector import SteeringVector

OnProgress = Callable[[], None]


def settings_of(model: str, revision: str | None, file: Path, layer: int, **others: Any) -> Settings:
    """The settings of an analysis that is begun; the vector is checked against the layer."""
    vector = load(file)
    vector.at(layer)
    return Settings(
        model=model,
        revision=revision,
        model_sha256=sha256_of(*resolve(model, revision)),
        vector=str(file.absolute()),
        vector_name=vector.name,
        vector_sha256=content_sha256(vector),
        layer=layer,
        **others,
    )


def vectors_of(folder: Folder) -> list[SteeringVector]:
    """The folder's vector as its file still holds it, and its random controls."""
    settings = folder.settings
    vector = load(settings.vector)
    if content_sha256(vector) != settings.vector_sha256:
        raise VectorError(
            f"{settings.vector} holds another vector than {folder.path} was begun with",
            "put the old file back, or begin a new folder with --out",
        )
    return [vector, *(random_like(vector, settings.seed + n) for n in range(settings.controls))]


@dataclass(frozen=True)
class Scores:
    """The texts' scores that were asked for, each with its text."""

    texts: Sequence[Text]
    found: Sequence[TextScores]

    @property
    def positions(self) -> int:
        return sum(len(each.positions) for each in self.found)

    def mean(self, control: int, name: str = "edges") -> Floats:
        """The mean over all listed positions, of the vector (0) or one of its controls."""
        total: Floats = sum(
            (getattr(each, name)[control] for each in self.found if len(each.positions)), np.zeros(())
        )
        return total / self.positions

    def only(self, keep: Callable[[Text], bool]) -> Scores:
        kept = [pair for pair in zip(self.texts, self.found, strict=True) if keep(pair[0])]
        return Scores([text for text, _ in kept], [found for _, found in kept])

    @property
    def halves(self) -> tuple[Scores, Scores]:
        """The texts of every other prompt that has listed positions: to choose on, and to measure on."""
        listed = [text for text, found in zip(self.texts, self.found, strict=True) if len(found.positions)]
        half = {prompt: n % 2 for n, prompt in enumerate(dict.fromkeys(text.prompt for text in listed))}
        return self.only(lambda text: half.get(text.prompt) == 0), self.only(
            lambda text: half.get(text.prompt) == 1
        )


class Analysis:
    def __init__(self, folder: Folder, model: Model) -> None:
        self.folder, self.model = folder, model
        self.settings = settings = folder.settings
        self.vectors = vectors_of(folder)
        for_model(self.vectors[0], model.layers, model.width)
        if settings.layer >= model.layers - 1:
            raise VectorError(
                f"behind layer {settings.layer}, the model's last, no head and no MLP reads the stream",
                f"take a layer from 0 to {model.layers - 2}",
            )
        self.graph = Graph(settings.layer, model.layers, model.heads)

    @classmethod
    def load(cls, folder: Folder, device: str) -> Analysis:
        settings = folder.settings
        vectors_of(folder)  # what is wrong with the vector is said before the model is loaded
        return cls(folder, Model.load(settings.model, settings.revision, device, settings.dtype))

    @cached_property
    def directions(self) -> list[torch.Tensor]:
        """At the injected layer: the vector's, then its controls'."""
        found = [vector.directions[self.settings.layer] for vector in self.vectors]
        return [torch.from_numpy(each).to(self.model.whole.device) for each in found]

    def question(self, at_once: int = 1) -> Question:
        settings = self.settings
        return Question(
            graph=self.graph,
            directions=self.directions,
            multiplier=settings.multiplier,
            positions=settings.positions,
            system=settings.system,
            steps=settings.steps,
            at_once=at_once,
            behind_norms=settings.behind_norms,
        )

    def attribute(self, at_once: int, on_progress: OnProgress) -> Scores:
        """Every text's scores; those that are in the folder are not worked out again."""
        question, texts = self.question(at_once), self.folder.texts()
        found = []
        for text in texts:
            there = _stored(self.folder, text)
            if there is None:
                there = attribute(self.model, question, text)
                self.folder.put_done(text.text_id, vars(there))
            found.append(there)
            on_progress()
        return checked(Scores(texts, found))

    def patch(
        self, edges: Sequence[tuple[int, int]], scores: Scores, at_once: int, on_progress: OnProgress
    ) -> Floats:
        """The exact effect of each edge, as a mean over the listed positions; stored text by text."""
        question = self.question(at_once)
        wanted = np.array(edges)
        total = np.zeros(len(edges))
        for text in scores.texts:
            name = f"{text.text_id}-exact"
            there = self.folder.done(name)
            if there is None or not np.array_equal(there["edges"], wanted):
                there = {"edges": wanted, "effects": exact_effects(self.model, question, text, edges)}
                self.folder.put_done(name, there)
            total += there["effects"]
            on_progress()
        return total / scores.positions


def stored_scores(folder: Folder) -> Scores:
    """The scores of an attribution that is done."""
    texts = folder.texts() if folder.has_texts else []
    found = [_stored(folder, text) for text in texts]
    if not texts or any(each is None for each in found):
        missing = sum(each is None for each in found)
        raise StoreError(
            f"the attribution in {folder.path} isn't done: {missing} of {len(texts)} texts are missing",
            "give the same `vsteer mechanism attribute` again: it goes on where it stopped",
        )
    return checked(Scores(texts, [each for each in found if each is not None]))


def checked(scores: Scores) -> Scores:
    if not scores.positions:
        raise DataError(
            f"in none of the {len(scores.texts)} texts does the steering change a most likely token",
            "steer more strongly (--multiplier), at another layer, or give other texts",
        )
    return scores


def _stored(folder: Folder, text: Text) -> TextScores | None:
    found = folder.done(text.text_id)
    names = {each.name for each in fields(TextScores)}
    return TextScores(**found) if found is not None and set(found) == names else None


def controls(count: int) -> Iterator[tuple[int, dict[str, Any]]]:
    """The place of the vector (0) and of each control, with the columns that tell them apart."""
    yield 0, {"control": "", "control_index": None}
    for n in range(count):
        yield n + 1, {"control": "random", "control_index": n}
