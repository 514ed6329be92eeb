"""The one way from contrast data to a steering vector, for a run, `vsteer vectors extract` and a notebook.

    recipe = make_recipe("sentiment", method="pca")
    recipe.check(tokenizer)
    with recipe.read(engine, tokenizer, model_origin("smollm2-135m-instruct", source)) as reading:
        vector = reading.vector("unit")

The engine must have room to capture: `Capacity(captures=CAPTURES)`.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from vsteer.datasets.builtin import behaviours, find_data
from vsteer.datasets.items import ItemSet, UnpairedSets
from vsteer.datasets.readers import read_contrast
from vsteer.errors import UsageError
from vsteer.models import Source
from vsteer.models.identity import commit_of, sha256_of
from vsteer.prompts.template import template_name
from vsteer.protocol import Engine
from vsteer.vectors.extract import Extraction, extract
from vsteer.vectors.members import (
    Token,
    check_token,
    letter_start,
    member_count,
    members,
    parse_token,
)
from vsteer.vectors.methods import METHODS, MethodName, check_method
from vsteer.vectors.methods.iti import HEADS
from vsteer.vectors.norms import parse_norm, with_norm
from vsteer.vectors.vector import Origin, SteeringVector

# How many tokens of one step an engine can capture that vectors are extracted through.
CAPTURES = 64
# Raise it whenever the same recipe comes to give other numbers.
EXTRACTION_VERSION = 1


@dataclass(frozen=True)
class Recipe:
    """What a vector is made from, and how: every default filled in, the model and the norm left open."""

    name: str
    source: str  # the data as the user named it: a built-in behaviour, or one or two files
    files: tuple[Path, ...]
    sha256: tuple[str, ...]  # of the data's files; one that holds two sets counts once
    method: MethodName
    token: Token
    system: str | None
    data: ItemSet | UnpairedSets = field(compare=False, repr=False)
    heads: int | None = None  # how many heads are chosen, by a method that reads heads
    form: str = ""  # what the files' pairs were made into, if anything: see vsteer/vectors/unrelated.py

    def identity(self) -> dict[str, Any]:
        """What decides the vector's numbers before its norm, the model aside."""
        return {
            "data": list(self.sha256),
            "method": self.method,
            "token": str(self.token),
            "system": self.system,
        } | {name: value for name, value in (("heads", self.heads), ("form", self.form)) if value}

    def describe(self) -> str:
        """As in: mean_diff of 204 pairs at the token answer."""
        if isinstance(self.data, ItemSet):
            size = f"{len(self.data.items)} pairs"
        else:
            size = f"{len(self.data.positive.prompts)} and {len(self.data.negative.prompts)} texts"
        heads = "" if self.heads is None else f", {self.heads} heads"
        return f"{self.method} of {size} at the token {self.token}{heads}"

    @property
    def members(self) -> int:
        """How many texts an extraction runs."""
        return member_count(self.data)

    def check(self, tokenizer: Any, norm: str = "raw") -> None:
        """Find what is wrong before the model is loaded, which takes long."""
        if parse_norm(norm)[0] == "caa":
            raise UsageError(
                "the norm caa needs the other behaviours' vectors",
                "extract them raw, then: vsteer vectors convert IN OUT --norm caa --with OTHER",
            )
        self.check_norm(norm)
        for _ in members(tokenizer, self.data, self.token, self.system):
            pass

    def check_norm(self, norm: str) -> None:
        if self.heads is not None and norm != "raw":
            raise UsageError(
                f"a vector of heads is as long as their standard deviations, and has no norm {norm}",
                "leave norm out",
            )

    def read(
        self,
        engine: Engine,
        tokenizer: Any,
        model: Origin,
        on_progress: Callable[[], None] = lambda: None,
    ) -> Reading:
        """Run the data through the engine; `on_progress` is called once for each text."""
        if self.heads is not None:
            raise UsageError(
                f"{self.method} reads heads in Hugging Face, and not through this engine",
                "make the vector with vsteer vectors extract, or in a grid",
            )
        extraction = extract(engine, tokenizer, self.data, self.token, self.system, on_progress)
        origin = replace(
            self.origin(tokenizer, model),
            model_type=engine.info.model_type,
            model_layers=engine.info.layers,
            dtype=engine.info.dtype,
        )
        return Reading(self, extraction, origin)

    def origin(self, tokenizer: Any, model: Origin) -> Origin:
        """What an origin says of the data and the method, beside the model."""
        return replace(
            model,
            data=self.source,
            data_sha256="+".join(self.sha256),
            method=self.method,
            token=str(self.token),
            answer_start=letter_start(tokenizer, self.data, self.token, self.system) or "",
            template=template_name(tokenizer),
            system=self.system or "",
            pairs=self.pairs,
        )

    @property
    def pairs(self) -> int:
        """How many pairs there are; for unpaired sets, the size of the smaller one."""
        if isinstance(self.data, ItemSet):
            return len(self.data.items)
        return min(len(self.data.positive.prompts), len(self.data.negative.prompts))


@dataclass(frozen=True)
class Reading:
    """The activations that a recipe read, and what is made of them. They are on disk: close it."""

    recipe: Recipe
    extraction: Extraction
    origin: Origin

    def __enter__(self) -> Reading:
        return self

    def __exit__(self, *_: object) -> None:
        self.extraction.activations.close()

    def vector(self, norm: str = "raw") -> SteeringVector:
        return with_norm(self.extraction.vector(self.recipe.name, self.recipe.method, self.origin), norm)

    def shuffled(self, count: int, seed: int) -> list[SteeringVector]:
        """Raw vectors of the same data with its labels at random."""
        return [
            SteeringVector(
                self.recipe.name,
                {layer: direction.astype(np.float32) for layer, direction in directions.items()},
                self.extraction.stream_norms,
                replace(self.origin, derived=(f"shuffled labels {index}, seed {seed}",)),
            )
            for index, directions in enumerate(self.extraction.shuffled(count, seed) if count else [])
        ]


def make_recipe(
    data: str,
    *,
    negative: str | None = None,
    method: str | None = None,
    token: Token | str | None = None,
    system: str | None = None,
    heads: int | None = None,
    name: str | None = None,
    beside: Path = Path(),
    located: Callable[[str], AbstractContextManager[object]] = nullcontext,
) -> Recipe:
    """Read the data and fill in the defaults.

    The method is `dim` for two unpaired sets and `mean_diff` for pairs; the token is `answer` where all
    answers are letters, as in CAA, else `last`. `data` is a built-in behaviour or a path from the folder
    `beside`, and so is `negative`, the second of two unpaired sets. Each setting is checked within
    `located(its name)`, so that the caller can say where an error comes from.
    """
    part = "instructions" if method == "dim" and data in behaviours() else "pairs"
    with located("data"):
        files = [find_data(data, part, beside)]
    if negative is not None:
        with located("negative"):
            files.append(find_data(negative, part, beside))
    with located("data"):
        contrast = read_contrast(*files)
    with located("method"):
        chosen = check_method(method or ("mean_diff" if isinstance(contrast, ItemSet) else "dim"), contrast)
    with located("heads"):
        if METHODS[chosen].direction is None:
            heads = heads or HEADS
        elif heads is not None:
            raise UsageError(f"{chosen} chooses no heads", "leave heads out, or take the method iti")
    with located("token"):
        if token is None:
            lettered = isinstance(contrast, ItemSet) and all(item.lettered for item in contrast.items)
            token = "answer" if lettered else "last"
        at = parse_token(token) if isinstance(token, str) else token
        check_token(at, contrast)
    sets = [contrast] if isinstance(contrast, ItemSet) else [contrast.positive, contrast.negative]
    return Recipe(
        name=name or Path(data).stem,
        source=data if negative is None else f"{data} {negative}",
        files=tuple(files),
        sha256=tuple(dict.fromkeys(one.source.sha256 for one in sets)),
        method=chosen,
        token=at,
        system=system,
        heads=heads,
        data=contrast,
    )


def model_origin(name: str, source: Source) -> Origin:
    """What an origin says of a model, which must be in a folder or in the hub's cache."""
    return Origin(model=name, revision=commit_of(*source), model_sha256=sha256_of(*source))
