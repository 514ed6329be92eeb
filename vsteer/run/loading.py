"""A model into vLLM: fetched, and loaded with a grid's settings, as a stored run had it, or by name alone."""

from __future__ import annotations

import socket
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vsteer import models
from vsteer.engine.options import EngineOptions
from vsteer.errors import ModelError, StoreError
from vsteer.grid.spec import EngineSpec, Grid
from vsteer.models.adapters import Adapted
from vsteer.models.hugging_face import refuse_own_code
from vsteer.models.identity import cached_snapshot, model_sha256, weights_of
from vsteer.plan.budget import budget
from vsteer.plan.model_facts import ModelFacts, find_adapted, locate
from vsteer.plan.plan import Plan
from vsteer.protocol import Engine
from vsteer.store.manifest import read_manifest
from vsteer.store.sound import require_run
from vsteer.vectors.recipe import CAPTURES

if TYPE_CHECKING:
    from vsteer.engine.driver import VllmEngine
    from vsteer.engine.table import Capacity

# The files that make a model; weights in pickle are never fetched.
HUB_FILES = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]

# A plan, how its engine runs, and whether vectors are to be extracted through it.
Load = Callable[[Plan, EngineSpec, bool], Engine]


def fetched(name: str, revision: str | None = None, adapter: Path | None = None) -> Path:
    """The folder of a named model, a folder, or a hub id; made or fetched where this machine lacks it."""
    folder = _fetched(name, revision)
    if adapter is None:
        return folder
    weights = weights_of(models.resolve(name, revision).model, folder)
    return Adapted(name, folder, weights, adapter.expanduser().absolute()).merged()


def _fetched(name: str, revision: str | None) -> Path:
    source = models.resolve(name, revision)
    if Path(source.model).is_dir():
        return Path(source.model)
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(source.model, revision=source.revision, allow_patterns=HUB_FILES))
    except (OSError, ValueError) as error:
        raise ModelError(
            f"{source.model} can't be fetched: {str(error).splitlines()[0]}",
            hint="is the id right, are you logged in where the model wants it, is the hub reachable?",
        ) from error
    refuse_own_code(folder)
    return folder


def fetch_models(grid: Grid) -> None:
    """Make or fetch the models that the grid names and this machine lacks, and merge their adapters."""
    for n, model in enumerate(grid.model):
        if model.id in models.NAMED:
            models.resolve(model.id)
        elif not Path(model.id).expanduser().exists() and not (grid.folder / model.id).exists():
            fetched(model.id, model.revision)
        if model.adapter is not None and (adapted := find_adapted(grid, n, locate(grid, model))):
            adapted.merged()


def load_vllm(
    plan: Plan,
    spec: EngineSpec,
    extracts: bool,
    on_event: Callable[..., None] = lambda event, **fields: None,
    ray: str | None = None,
) -> Engine:
    """One engine in this process, or several as one on Ray, on this machine or on the cluster at `ray`.

    `on_event` is called for each of several that starts or dies.
    """
    from vsteer.engine.start import is_cpu_build
    from vsteer.engine.table import Capacity
    from vsteer.engine.vllm_compat import may_pass, unknown_seams

    if may_pass() and (unknown := unknown_seams()):
        on_event("unknown_seams", seams=unknown)
    size = budget(plan)
    captures = CAPTURES if extracts else 0
    capacity = Capacity.for_grid(size.cells, size.vector_rows, size.terms, captures, size.modules)
    if spec.replicas.most == 1 and ray is None:
        return engine_maker(plan.facts, spec, capacity)()
    from vsteer.cluster.cluster import Cluster

    return Cluster(
        partial(engine_on_node, plan.facts, spec, capacity),
        least=spec.replicas.least,
        most=spec.replicas.most,
        ranks=spec.ranks,
        gpu=not is_cpu_build(),
        # as many as its VllmEngine takes
        requests=2 * spec.max_num_seqs + 64,
        address=ray,
        on_event=on_event,
    )


def engine_on_node(facts: ModelFacts, spec: EngineSpec, capacity: Capacity) -> VllmEngine:
    """An engine of a plan's very model, on whatever machine this is. A named model is made there once."""
    return engine_maker(replace(facts, folder=same_model(facts)), spec, capacity)()


def engine_maker(
    facts: ModelFacts, options: EngineOptions, capacity: Capacity | None = None
) -> Callable[[], VllmEngine]:
    """What starts an engine of the model. It can be pickled, so that another process can start it."""
    from vsteer.engine.driver import VllmEngine

    return partial(
        VllmEngine,
        str(facts.folder),
        dtype=facts.dtype,
        quantization=facts.quantization,
        kv_cache_dtype=facts.kv_cache_dtype,
        options=options,
        capacity=capacity,
    )


def as_stored(facts: ModelFacts, spec: EngineSpec) -> dict[str, Any]:
    """A model as a run's manifest has it, for `stored_models`."""
    return {
        "name": facts.name,
        **facts.identity(),
        "folder": str(facts.folder),
        "layers": facts.layers,
        "engine": spec.model_dump(mode="json"),
    } | ({"adapted": _written(facts.adapted)} if facts.adapted else {})


def _written(adapted: Adapted) -> dict[str, Any]:
    return {
        "name": adapted.name,
        "base": str(adapted.base),
        "weights": dict(adapted.weights),
        "adapter": str(adapted.adapter),
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
    adapted = entry.get("adapted")
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
        adapted=adapted
        and Adapted(adapted["name"], Path(adapted["base"]), adapted["weights"], Path(adapted["adapter"])),
    )
    return facts, EngineSpec.model_validate(entry["engine"])


def load_stored(facts: ModelFacts, spec: EngineSpec) -> VllmEngine:
    """One engine of the very model that made a stored run, whatever the number of replicas then."""
    return engine_maker(replace(facts, folder=same_model(facts)), spec)()


def same_model(facts: ModelFacts) -> Path:
    """The folder of a model on this machine, where it must be the one that a plan or a run had."""
    weights = facts.weights or {}
    there = facts.folder if facts.folder and facts.folder.is_dir() else None
    if facts.adapted:
        there, same = _same_adapted(facts, facts.adapted)
    elif "commit" in weights:
        there = there or cached_snapshot(weights["hub"], weights["commit"])
        same = there is not None and there.name == weights["commit"]
    else:
        there = there or fetched(facts.name)
        same = model_sha256(there) == weights["sha256"]
    if there is None or not same:
        raise ModelError(
            f"{facts.name} isn't on {socket.gethostname()} as the run has it",
            hint="bring that very model there, in the same folder: another's numbers don't compare",
        )
    return there


def _same_adapted(facts: ModelFacts, adapted: Adapted) -> tuple[Path | None, bool]:
    base = replace(facts, name=adapted.name, folder=adapted.base, weights=adapted.weights, adapted=None)
    here = replace(adapted, base=same_model(base))
    here.check()
    if here.sha256 != (facts.weights or {}).get("sha256"):
        return None, False
    return here.merged(), True


def load_named(
    folder: Path,
    dtype: str,
    options: EngineOptions,
    capacity: Capacity | None = None,
    quantization: str | None = None,
) -> VllmEngine:
    """One engine of a model that no grid describes."""
    from vsteer.engine.driver import VllmEngine

    return VllmEngine(str(folder), dtype=dtype, quantization=quantization, options=options, capacity=capacity)
