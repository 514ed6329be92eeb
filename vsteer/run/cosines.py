"""What conditions on prompts are decided by: cosines of the unsteered stream, measured through the engine.

The prompt is the rendered one up to the end of its generation prompt: a forced answer prefix is the answer's.
Each prompt goes through the model once, whatever the number of conditions, and what was measured is kept.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vsteer.evaluations.rendered_prompt import RenderedPrompt
from vsteer.identity import identify
from vsteer.packages import vllm_version
from vsteer.plan.configurations import Condition
from vsteer.plan.plan import Plan
from vsteer.protocol import Direction, Engine, Prompt, Request, Result
from vsteer.run.vectors import StoredVectors
from vsteer.store.cosines import key_of, read_cosines, write_cosines
from vsteer.vectors.recipe import CAPTURES

SAVE_SECONDS = 20.0
Tokens = tuple[int, ...]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Stream:
    """What of a prompt's stream is compared, and with which direction."""

    vector: str
    sha256: str
    layer: int
    token: str
    direction: Direction


def condition_prompt(rendered: RenderedPrompt) -> Tokens:
    """The tokens whose stream decides."""
    return rendered.prompt.token_ids[: rendered.prompt.template_length]


class Cosines:
    """The cosines of one plan's prompts, as its run's folder has them or still lacks them."""

    def __init__(self, plan: Plan, folder: Path, stored: StoredVectors, session: int) -> None:
        self.plan, self.folder, self.session = plan, folder, session
        facts, weights = plan.facts, plan.facts.weights or {}
        self._model = {
            "model": facts.name,
            "model_commit": weights.get("commit") or weights.get("sha256", ""),
            "dtype": facts.dtype,
            "quantization": facts.quantization or "",
            "kv_cache_dtype": facts.kv_cache_dtype,
            "model_identity": identify(facts.identity()),
        }
        self._streams: dict[tuple[str, int, str], Stream] = {}
        for condition in plan.conditions:
            use = condition.vector
            self._streams[_stream_of(condition)] = Stream(
                condition.name,
                stored.content_sha256[use.key],
                condition.layer,
                condition.token,
                stored.directions[use.key][condition.layer],
            )
        self._records = read_cosines(folder)
        self._why: dict[str, str] = {}  # why a prompt has none

    def of(self, condition: Condition, prompt_id: str) -> float | None:
        """The cosine, or None where it could not be measured."""
        return self._known(self._streams[_stream_of(condition)], prompt_id)

    def why_not(self, prompt_id: str) -> str:
        return self._why.get(prompt_id, "it was not measured")

    def lacking(self) -> dict[Tokens, list[RenderedPrompt]]:
        """The prompts of which a cosine is still to be measured, by the tokens that decide."""
        found: dict[Tokens, list[RenderedPrompt]] = defaultdict(list)
        for block in self.plan.known_blocks():
            wanted = {_stream_of(config.when) for config in block.configs if config.when}
            streams = [self._streams[one] for one in wanted]
            for rendered in block.prompts:
                if any(self._known(stream, rendered.prompt_id) is None for stream in streams):
                    found[condition_prompt(rendered)].append(rendered)
        return found

    def requests(self, prompts: Mapping[Tokens, object]) -> Iterator[Request]:
        """What measures them, each named by the prompt's place and the first position that is read."""
        every = any(stream.token == "mean" for stream in self._streams.values())
        for place, tokens in enumerate(prompts):
            # What is captured of one request must fit the engine's slots; later tokens change no earlier one.
            first = 0 if every else len(tokens) - 1
            for start in range(first, len(tokens), CAPTURES):
                end = min(start + CAPTURES, len(tokens))
                positions = tuple(range(start, end))
                yield Request(f"{place}.{start}", Prompt.plain(tokens[:end]), capture=positions)

    def measure(
        self,
        engine: Engine,
        prompts: Mapping[Tokens, list[RenderedPrompt]],
        on_progress: Callable[[], None] = lambda: None,
        stopping: Callable[[], bool] = lambda: False,
    ) -> None:
        """Measure and keep them. A prompt that could not be run has none, and its rows will say why."""
        requests = list(self.requests(prompts))
        open_ = [0] * len(prompts)
        for request in requests:
            open_[_place_of(request.id)[0]] += 1
        parts: dict[int, dict[int, _Part]] = defaultdict(dict)
        layers = sorted({stream.layer for stream in self._streams.values()})
        made, saved = list(prompts.items()), time.monotonic()
        version = vllm_version() if engine.info.kind == "vllm" else ""

        def submitted() -> Iterator[Request]:
            for request in requests:
                if stopping():
                    return
                yield request

        try:
            for result in engine.run(submitted()):
                place, start = _place_of(result.id)
                tokens, asked = made[place]
                parts[place][start] = _part(result, layers)
                open_[place] -= 1
                if not open_[place]:
                    found = parts.pop(place)
                    self._take(tokens, asked, [found[n] for n in sorted(found)], engine.info.kind, version)
                on_progress()
                if time.monotonic() - saved > SAVE_SECONDS:
                    self._save()
                    saved = time.monotonic()
        finally:
            self._save()

    def _take(
        self, tokens: Tokens, asked: list[RenderedPrompt], parts: list[_Part], engine: str, version: str
    ) -> None:
        """Keep the cosines of one prompt, of which these are the stretches."""
        failed = next((part.error for part in parts if part.error), "")
        for stream in self._streams.values():
            if not failed:
                last = parts[-1].last[stream.layer]
                mean = np.sum([part.sums[stream.layer] for part in parts], axis=0)
                cosine = cosine_of(last if stream.token == "last" else mean, stream.direction)
                if cosine is None:
                    failed = f"the stream or the direction of layer {stream.layer} has no angle"
            for rendered in asked:
                if failed:
                    self._why[rendered.prompt_id] = failed
                    continue
                if self._known(stream, rendered.prompt_id) is not None:
                    continue  # what rows were decided by stays
                record = {
                    **self._model,
                    "vector": stream.vector,
                    "vector_sha256": stream.sha256,
                    "layer": stream.layer,
                    "token": stream.token,
                    "prompt_id": rendered.prompt_id,
                    "tokens": len(tokens),
                    "cosine": cosine,
                    "engine": engine,
                    "vllm_version": version,
                    "run_session": self.session,
                }
                self._records[key_of(record)] = record

    def _save(self) -> None:
        write_cosines(self.folder, self._records.values())

    def _known(self, stream: Stream, prompt_id: str) -> float | None:
        key = (self._model["model_identity"], stream.vector, stream.layer, stream.token, prompt_id)
        record = self._records.get(key)
        # a vector of the same name may have been another before
        if record is None or record["vector_sha256"] != stream.sha256:
            return None
        return float(record["cosine"])


@dataclass(frozen=True)
class _Part:
    """A stretch of a prompt's stream: by layer, the sum over its tokens and the last of them."""

    sums: Mapping[int, Floats]
    last: Mapping[int, Floats]
    error: str = ""


def _part(result: Result, layers: list[int]) -> _Part:
    if result.captured is None:
        return _Part({}, {}, result.error or "nothing was captured")
    streams = result.captured[:, layers].astype(np.float64)
    sums, last = streams.sum(axis=0), streams[-1]
    return _Part(dict(zip(layers, sums, strict=True)), dict(zip(layers, last, strict=True)))


def cosine_of(stream: Floats, direction: Direction) -> float | None:
    """None where one of them has no direction, or is not finite."""
    along = direction.astype(np.float64)
    lengths = float(np.linalg.norm(stream)) * float(np.linalg.norm(along))
    if not np.isfinite(lengths) or lengths == 0:
        return None
    return float(np.clip(stream @ along / lengths, -1.0, 1.0))


def _stream_of(condition: Condition) -> tuple[str, int, str]:
    return condition.name, condition.layer, condition.token


def _place_of(name: str) -> tuple[int, int]:
    place, _, start = name.partition(".")
    return int(place), int(start)
