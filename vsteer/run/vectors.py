"""The vectors that a plan uses, as files in the run's folder: read, extracted, drawn or scaled, each once.

A vector's file is named by what it is made from, so a run that is resumed finds it and never extracts twice:
extracted bytes vary with the hardware, and rows of one run must not.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from vsteer.errors import DataError, VectorError
from vsteer.identity import VERSION, identify
from vsteer.plan.configurations import VectorUse
from vsteer.plan.plan import Plan
from vsteer.plan.vector_sources import STORED, VectorFile, VectorSource
from vsteer.protocol import Engine, Vectors
from vsteer.store.sound import set_aside_with_warning
from vsteer.vectors.derive import content_sha256, for_model, random_like
from vsteer.vectors.files import file_sha256, load, save
from vsteer.vectors.norms import length, scaled_to, with_norm
from vsteer.vectors.recipe import EXTRACTION_VERSION, Recipe
from vsteer.vectors.run_norms import FOLDER
from vsteer.vectors.vector import Origin, SteeringVector


@dataclass(frozen=True)
class StoredVectors:
    """A plan's vectors as they lie in the run's folder, by the names that its terms have for them."""

    directions: Vectors
    content_sha256: Mapping[str, str]
    file_sha256: Mapping[str, str]


class RunVectors:
    """The vectors of one plan in one run's folder: found there, or made."""

    def __init__(self, plan: Plan, run_folder: Path) -> None:
        self.plan = plan
        self.folder = run_folder / FOLDER
        self._raw: dict[str, SteeringVector] = {}

    @property
    def to_extract(self) -> list[Recipe]:
        """The recipes whose vectors still have to be read from the model."""
        used = {use.source.name for use in self.plan.vectors.values()}
        # The norm caa averages over all behaviours that have it.
        if any(use.norm == "caa" for use in self.plan.vectors.values()):
            used |= {source.name for source in self._averaged()}
        recipes = [
            source.made_from
            for name, source in self.plan.sources.items()
            if name in used and isinstance(source.made_from, Recipe)
        ]
        # a behaviour's vector may also be an unrelated one of another's: it is then made once for each
        others = dict.fromkeys(use.other for use in self.plan.vectors.values() if use.other)
        return [
            recipe
            for recipe in (*recipes, *others)
            if not all(path.exists() for path in self._extracted(recipe))
        ]

    def set_damaged_aside(self) -> None:
        """Make room for a damaged vector to be made anew; a row must not be steered by it."""
        for path in sorted(self.folder.glob("*.safetensors")):
            try:
                load(path)
            except VectorError as error:
                why = error.message.removeprefix(str(path)).lstrip(": ")
                set_aside_with_warning(self.folder.parent, path, why, "it is made anew")

    def check(self) -> None:
        """Find what is wrong with the data before the model is loaded, which takes long."""
        for recipe in self.to_extract:
            recipe.check(self.plan.tokenizer)

    def extract(self, engine: Engine, recipe: Recipe, on_progress: Callable[[], None]) -> str | None:
        """Make a raw vector, those of its shuffled labels and its diagnostics, in one pass.

        Returns what to warn of, or None. An unrelated vector is a control: it has no diagnostics.
        """
        from vsteer.vectors.diagnostics import tables as diagnose
        from vsteer.vectors.diagnostics.rounding import warning

        for path, sha256 in zip(recipe.files, recipe.sha256, strict=True):
            _check_unchanged(path, sha256, file_sha256(path))
        raw, *shuffled = self._extracted(recipe)
        seed = self._shuffles(recipe)[1]
        own = any(source.made_from == recipe for source in self.plan.sources.values())
        with recipe.read(engine, self.plan.tokenizer, self._model_origin(), on_progress) as reading:
            vector = reading.vector()
            tables = diagnose.tables(reading.extraction, vector) if own else {}
            chance = reading.shuffled(len(shuffled), seed)
        self.folder.mkdir(parents=True, exist_ok=True)
        diagnose.write_tables(tables, raw, overwrite=True)
        for path, control in zip(shuffled, chance, strict=True):
            save(control, path, overwrite=True)
        # It comes last: where it is, the others are. Once rows were made with it, it stays what it is.
        if not raw.exists():
            save(vector, raw)
        return warning(recipe.name, tables["layers"], engine.info.dtype) if own else None

    def read_heads(self, recipe: Recipe, on_progress: Callable[[], None]) -> None:
        """Make a vector of heads, with their table, through Hugging Face: without an engine."""
        from vsteer.vectors import heads
        from vsteer.vectors.diagnostics.tables import write_tables

        for path, sha256 in zip(recipe.files, recipe.sha256, strict=True):
            _check_unchanged(path, sha256, file_sha256(path))
        facts, raw = self.plan.facts, self._extracted(recipe)[0]
        assert facts.folder is not None
        vector, rows = heads.read_heads(
            recipe, facts.folder, facts.dtype, self.plan.tokenizer, self._model_origin(), on_progress
        )
        self.folder.mkdir(parents=True, exist_ok=True)
        write_tables({heads.TABLE: rows}, raw, overwrite=True)
        save(vector, raw, overwrite=True)

    def stored(self) -> StoredVectors:
        """Every vector, once all recipes are extracted."""
        self.folder.mkdir(parents=True, exist_ok=True)
        directions, content, files = {}, {}, {}
        for key, use in self.plan.vectors.items():
            path = self._path(use)
            if not path.exists():
                save(self._made(use), path, overwrite=True)
            vector = load(path)
            layers, hidden_size = self.plan.facts.layers, self.plan.facts.hidden_size
            if layers is not None and hidden_size is not None:
                for_model(vector, layers, hidden_size)
            directions[key] = vector.directions
            made_from = use.source.made_from
            if isinstance(made_from, Recipe) and made_from.heads is not None:
                # A plan steers all layers together; nothing is added where no head was chosen.
                none = np.zeros(vector.hidden_size, np.float32)
                directions[key] = dict.fromkeys(range(layers or 0), none) | dict(vector.directions)
            content[key], files[key] = content_sha256(vector), file_sha256(path)
        return StoredVectors(directions, content, files)

    def _made(self, use: VectorUse) -> SteeringVector:
        """The vector of one use, its norm applied; a control has its vector's lengths."""
        if use.control:
            beside = self._made(replace(use, control="", index=None))
            if use.control == "random":
                assert use.seed is not None
                return random_like(beside, use.seed)
            assert use.index is not None
            assert isinstance(use.source.made_from, Recipe)
            path = (
                self._extracted(use.other)[0]
                if use.other
                else self._extracted(use.source.made_from)[1 + use.index]
            )
            chance = load(path)
            directions = {
                layer: scaled_to(chance.directions[layer], length(direction), chance.name, layer)
                for layer, direction in beside.directions.items()
            }
            return replace(
                chance, directions=directions, origin=replace(chance.origin, norm=beside.origin.norm)
            )
        if (use.norm,) == STORED:
            return self._raw_of(use.source)
        others = []
        if use.norm == "caa":
            others = [self._raw_of(source) for source in self._averaged() if source.name != use.source.name]
        return with_norm(self._raw_of(use.source), use.norm, others)

    def _averaged(self) -> list[VectorSource]:
        """The behaviours over whose lengths the norm caa is the mean."""
        return [source for source in self.plan.sources.values() if "caa" in source.norms]

    def _raw_of(self, source: VectorSource) -> SteeringVector:
        if source.name not in self._raw:
            made_from = source.made_from
            if isinstance(made_from, VectorFile):
                _check_unchanged(made_from.path, made_from.file_sha256, made_from.hashed())
                self._raw[source.name] = made_from.load(source.name, self.plan.facts.hidden_size)
            else:
                self._raw[source.name] = load(self._extracted(made_from)[0], source.name)
        return self._raw[source.name]

    def _extracted(self, recipe: Recipe) -> list[Path]:
        """The raw vector's file, then those of its shuffled labels."""
        name = f"{recipe.name}-extracted-{self._hash(recipe.identity())}"
        count, seed = self._shuffles(recipe)
        controls = [f"{name}-shuffled-{n:02}-{seed:016x}" for n in range(count)]
        return [self.folder / f"{stem}.safetensors" for stem in (name, *controls)]

    def _shuffles(self, recipe: Recipe) -> tuple[int, int]:
        """How many shuffled-label vectors of a source the plan uses, and the one seed of all of them."""
        uses = [
            use
            for use in self.plan.vectors.values()
            if use.control == "shuffled" and use.source.made_from == recipe
        ]
        return len({use.index for use in uses}), next((use.seed or 0 for use in uses), 0)

    def _path(self, use: VectorUse) -> Path:
        stem = re.sub(r"[^\w.-]+", "-", use.key)
        return self.folder / f"{stem}-{self._hash(use.recipe)}.safetensors"

    def _hash(self, recipe: Mapping[str, Any]) -> str:
        """What a vector's file is named by: all that decides its numbers."""
        made_from = {
            "version": [VERSION, EXTRACTION_VERSION],
            "model": self.plan.facts.identity(),
            "recipe": dict(recipe),
        }
        return identify(made_from)[:12]

    def _model_origin(self) -> Origin:
        weights = self.plan.facts.weights or {}
        return Origin(
            model=self.plan.facts.name,
            revision=weights.get("commit", ""),
            model_sha256=weights.get("sha256", ""),
        )


def _check_unchanged(path: Path, planned: str, found: str) -> None:
    """A file must still be what it was when the plan named it."""
    if found != planned:
        raise DataError(
            f"{path} changed while the run went on",
            "give the same command again: it plans with the file as it is",
        )
