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

from vsteer.datasets.items import ItemSet, UnpairedSets
from vsteer.datasets.readers import read_contrast
from vsteer.errors import DataError
from vsteer.identity import VERSION, identify
from vsteer.plan.configurations import VectorUse
from vsteer.plan.model_facts import ModelFacts, template_name
from vsteer.plan.plan import Plan
from vsteer.plan.vector_sources import VectorSource
from vsteer.protocol import Direction, Engine
from vsteer.vectors.derive import content_sha256, for_model, random_like
from vsteer.vectors.files import file_sha256, load, save
from vsteer.vectors.members import members, parse_token
from vsteer.vectors.norms import length, scaled_to, with_norm
from vsteer.vectors.vector import Origin, SteeringVector

FOLDER = "vectors"
# Raise whenever the same recipe comes to give other numbers.
EXTRACTION_VERSION = 1


@dataclass(frozen=True)
class MadeVectors:
    """The plan's vectors by the name that its terms have for them, and the hashes that rows tell."""

    vectors: Mapping[str, Mapping[int, Direction]]
    content_sha256: Mapping[str, str]
    file_sha256: Mapping[str, str]


class RunVectors:
    """Makes and finds the vectors of one plan in one run folder."""

    def __init__(self, plan: Plan, run_folder: Path) -> None:
        self.plan = plan
        self.folder = run_folder / FOLDER
        self._raw: dict[str, SteeringVector] = {}

    @property
    def to_extract(self) -> list[VectorSource]:
        """What the model must still be asked for."""
        used = {use.source.name for use in self.plan.vectors.values()}
        # the norm caa wants every behaviour that has it
        if any(use.norm == "caa" for use in self.plan.vectors.values()):
            used |= {name for name, source in self.plan.sources.items() if "caa" in source.norms}
        return [
            source
            for name, source in self.plan.sources.items()
            if name in used and not source.is_file and not all(p.exists() for p in self._extracted(source))
        ]

    def check(self) -> None:
        """Find what is wrong with the data before the model is loaded, which takes long."""
        for source in self.to_extract:
            contrast = _read(source)
            for _ in members(self.plan.tokenizer, contrast, parse_token(source.token), source.system):
                pass

    def extract(self, engine: Engine, source: VectorSource, progress: Callable[[], None]) -> str | None:
        """Make a source's raw vector, its shuffled-label vectors and its diagnostics, in one pass.

        Returns what there is to be warned of.
        """
        from vsteer.vectors.diagnostics import tables as diagnose
        from vsteer.vectors.diagnostics.rounding import warning
        from vsteer.vectors.extract import extract

        contrast = _read(source)
        raw, *shuffled = self._extracted(source)
        with extract(
            engine, self.plan.tokenizer, contrast, parse_token(source.token), source.system, progress
        ) as extraction:
            vector = extraction.vector(
                source.name, source.method, self._origin(engine, source, extraction.pairs)
            )
            tables = diagnose.tables(extraction, vector)
            seed = self._shuffles(source)[1]
            chance = extraction.shuffled(len(shuffled), seed) if shuffled else []
        self.folder.mkdir(parents=True, exist_ok=True)
        diagnose.write_tables(tables, raw, overwrite=True)
        for index, (path, directions) in enumerate(zip(shuffled, chance, strict=True)):
            origin = replace(vector.origin, derived=(f"shuffled labels {index}, seed {seed}",))
            found = {layer: direction.astype(np.float32) for layer, direction in directions.items()}
            save(replace(vector, directions=found, origin=origin), path, overwrite=True)
        # last: where it is, the others are; and once rows were made with it, it stays what it is
        if not raw.exists():
            save(vector, raw)
        return warning(source.name, tables["layers"], engine.info.dtype)

    def supply(self) -> MadeVectors:
        """Every vector, once everything was extracted."""
        self.folder.mkdir(parents=True, exist_ok=True)
        vectors, content, files = {}, {}, {}
        for key, use in self.plan.vectors.items():
            path = self._path(use)
            if not path.exists():
                save(self._stored(use), path, overwrite=True)
            vector = load(path)
            layers, hidden_size = self.plan.facts.layers, self.plan.facts.hidden_size
            if layers is not None and hidden_size is not None:
                for_model(vector, layers, hidden_size)
            vectors[key] = vector.directions
            content[key], files[key] = content_sha256(vector), file_sha256(path)
        return MadeVectors(vectors, content, files)

    def _stored(self, use: VectorUse) -> SteeringVector:
        """The vector of one use, its norm applied; a control has its vector's lengths."""
        if use.control:
            beside = self._stored(replace(use, control="", index=None))
            if use.control == "random":
                assert use.seed is not None
                return random_like(beside, use.seed)
            assert use.index is not None
            chance = load(self._extracted(use.source)[1 + use.index])
            directions = {
                layer: scaled_to(chance.directions[layer], length(direction), chance.name, layer)
                for layer, direction in beside.directions.items()
            }
            return replace(
                chance, directions=directions, origin=replace(chance.origin, norm=beside.origin.norm)
            )
        if use.source.is_file:
            return self._raw_of(use.source)
        others = []
        if use.norm == "caa":
            others = [
                self._raw_of(source)
                for name, source in self.plan.sources.items()
                if "caa" in source.norms and name != use.source.name
            ]
        return with_norm(self._raw_of(use.source), use.norm, others)

    def _raw_of(self, source: VectorSource) -> SteeringVector:
        if source.name not in self._raw:
            path = source.files[0] if source.is_file else self._extracted(source)[0]
            if source.is_file and file_sha256(path) != source.sha256[0]:
                raise _changed(path)
            self._raw[source.name] = load(path, source.name)
        return self._raw[source.name]

    def _extracted(self, source: VectorSource) -> list[Path]:
        """The raw vector's file, then those of its shuffled labels."""
        name = f"{source.name}-extracted-{identify(self._recipe(source.recipe()))[:12]}"
        count, seed = self._shuffles(source)
        controls = [f"{name}-shuffled-{n:02}-{seed:016x}" for n in range(count)]
        return [self.folder / f"{stem}.safetensors" for stem in (name, *controls)]

    def _shuffles(self, source: VectorSource) -> tuple[int, int]:
        """How many shuffled-label vectors of a source the plan uses, and the one seed of all of them."""
        uses = [
            use
            for use in self.plan.vectors.values()
            if use.source.name == source.name and use.control == "shuffled"
        ]
        return len({use.index for use in uses}), next((use.seed or 0 for use in uses), 0)

    def _path(self, use: VectorUse) -> Path:
        stem = re.sub(r"[^\w.-]+", "-", use.key)
        return self.folder / f"{stem}-{identify(self._recipe(use.recipe))[:12]}.safetensors"

    def _recipe(self, recipe: Mapping[str, Any]) -> dict[str, Any]:
        return {
            "version": [VERSION, EXTRACTION_VERSION],
            "model": self.plan.facts.identity(),
            "recipe": dict(recipe),
        }

    def _origin(self, engine: Engine, source: VectorSource, pairs: int) -> Origin:
        facts: ModelFacts = self.plan.facts
        weights = facts.weights or {}
        return Origin(
            model=facts.name,
            revision=weights.get("commit", ""),
            model_sha256=weights.get("sha256", ""),
            data=" ".join(path.name for path in source.files),
            data_sha256="+".join(source.sha256),
            method=source.method,
            token=source.token,
            template=template_name(self.plan.tokenizer),
            system=source.system or "",
            dtype=engine.info.dtype,
            pairs=pairs,
            model_type=engine.info.model_type,
            model_layers=engine.info.layers,
        )


def _read(source: VectorSource) -> ItemSet | UnpairedSets:
    """The source's data, which must still be what it was when the plan named it."""
    contrast = read_contrast(*source.files)
    sets = [contrast] if isinstance(contrast, ItemSet) else [contrast.positive, contrast.negative]
    if tuple(dict.fromkeys(one.source.sha256 for one in sets)) != source.sha256:
        raise _changed(source.files[0])
    return contrast


def _changed(path: Path) -> DataError:
    return DataError(
        f"{path} changed while the run went on",
        "give the same command again: it plans with the file as it is",
    )


def member_total(source: VectorSource) -> int:
    """How many texts an extraction runs."""
    from vsteer.vectors.extract import member_count

    return member_count(read_contrast(*source.files))
