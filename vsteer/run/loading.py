"""A model into vLLM: with a grid's settings, as a stored run had it, or by its name alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vsteer import models
from vsteer.errors import ModelError, StoreError
from vsteer.grid.spec import EngineSpec
from vsteer.models.identity import cached_snapshot, model_sha256
from vsteer.plan.model_facts import ModelFacts
from vsteer.store.manifest import read_manifest
from vsteer.store.status import require_run

if TYPE_CHECKING:
    from vsteer.engine.driver import VllmEngine
    from vsteer.engine.start import EngineOptions

# What a model is made of; never weights in pickle.
HUB_FILES = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]
# Of a CPU's memory, where no grid says how much of it the KV cache may have.
CPU_KV_GIB = 1.0


def fetched(name: str, revision: str | None = None) -> Path:
    """The folder of a named model, a folder, or a hub id; made or fetched where this machine lacks it."""
    source = models.resolve(name, revision)
    if Path(source.model).is_dir():
        return Path(source.model)
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(source.model, revision=source.revision, allow_patterns=HUB_FILES))
    except (OSError, ValueError) as error:
        raise ModelError(
            f"{source.model} can't be fetched: {str(error).splitlines()[0]}",
            hint="is the id right, are you logged in where the model wants it, is the hub reachable?",
        ) from error


def engine_options(facts: ModelFacts, spec: EngineSpec) -> EngineOptions:
    from vsteer.engine.start import EngineOptions

    vllm = dict(spec.vllm)
    if facts.kv_cache_dtype != "auto":
        vllm["kv_cache_dtype"] = facts.kv_cache_dtype
    names = EngineSpec.model_fields.keys() - {"replicas", "vllm"}
    chosen = {name: getattr(spec, name) for name in names}
    return replace(EngineOptions(**chosen), dtype=facts.dtype, quantization=facts.quantization, vllm=vllm)


def as_stored(facts: ModelFacts, spec: EngineSpec) -> dict[str, Any]:
    """A model in a run's manifest: what `stored_models` reads."""
    return {
        "name": facts.name,
        **facts.identity(),
        "folder": str(facts.folder),
        "layers": facts.layers,
        "engine": spec.model_dump(mode="json"),
    }


def stored_models(run: Path) -> list[tuple[ModelFacts, EngineSpec]]:
    """The models of a run, as its manifest has them, and how their engines ran."""
    require_run(run)
    manifest = read_manifest(run) or {}
    try:
        return [_from_manifest(entry) for entry in manifest["models"]]
    except (KeyError, TypeError, ValueError) as error:
        raise StoreError(
            f"the manifest in {run} doesn't say how its models were loaded ({error})",
            hint="give the same `vsteer run` again: it writes the manifest anew, and rows stay",
        ) from None


def _from_manifest(entry: dict[str, Any]) -> tuple[ModelFacts, EngineSpec]:
    facts = ModelFacts(
        name=entry["name"],
        folder=Path(entry["folder"]),
        revision=entry.get("commit"),
        weights={name: entry[name] for name in ("sha256", "hub", "commit") if name in entry},
        layers=entry["layers"],
        hidden_size=None,
        max_model_len=None,
        dtype=entry["dtype"],
        quantization=entry["quantization"],
        kv_cache_dtype=entry["kv_cache_dtype"],
    )
    return facts, EngineSpec.model_validate(entry["engine"])


def load_stored(facts: ModelFacts, spec: EngineSpec) -> VllmEngine:
    """One engine of the very model that made a stored run, whatever the number of replicas then."""
    from vsteer.engine.driver import VllmEngine

    return VllmEngine(str(_same_model(facts)), options=engine_options(facts, spec))


def _same_model(facts: ModelFacts) -> Path:
    weights = facts.weights or {}
    there = facts.folder if facts.folder and facts.folder.is_dir() else None
    if "commit" in weights:
        there = there or cached_snapshot(weights["hub"], weights["commit"])
        same = there is not None and there.name == weights["commit"]
    else:
        there = there or fetched(facts.name)
        same = model_sha256(there) == weights["sha256"]
    if there is None or not same:
        raise ModelError(
            f"{facts.name} isn't here any more as it was when the run was made",
            hint="bring back the model that the run's manifest names: another's numbers don't compare",
        )
    return there


def load_named(
    folder: Path, dtype: str, tensor_parallel_size: int, max_model_len: int | None, eager: bool
) -> VllmEngine:
    """A model that no grid says anything of."""
    from vsteer.engine.driver import VllmEngine
    from vsteer.engine.start import EngineOptions
    from vsteer.engine.support import has_gpu

    options = EngineOptions(
        dtype=dtype,
        max_model_len=max_model_len,
        tensor_parallel_size=tensor_parallel_size,
        enforce_eager=eager,
        kv_cache_gib=None if has_gpu() else CPU_KV_GIB,
    )
    return VllmEngine(str(folder), options=options)
