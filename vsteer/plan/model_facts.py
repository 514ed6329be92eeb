"""What a plan must know of a model, found without a network: in a folder or in the hub's cache."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vsteer import models
from vsteer.errors import VsteerError
from vsteer.files import reading_hint
from vsteer.grid.spec import Grid, Model
from vsteer.models.adapters import Adapted, read_adapter
from vsteer.models.hugging_face import load_tokenizer, refuse_own_code
from vsteer.models.identity import cached_snapshot, model_sha256
from vsteer.models.weights import check_weights, read_config
from vsteer.validation import shortened, shown

# What vLLM uses by itself. Small blocks share more of a prefix; a CPU's smallest are of 32 tokens.
GPU_BLOCK, CPU_BLOCK = 16, 32
_GPU = Path("/dev/nvidiactl")


Located = tuple[Path, dict[str, str]]


@dataclass(frozen=True)
class ModelFacts:
    """A model as the plan sees it. `weights` is None where the model is not at hand: ids are pending."""

    name: str  # as results have it
    folder: Path | None  # what is loaded; one that an adapter is merged into may have yet to be made
    revision: str | None  # the hub's commit where it is known, otherwise as the user wrote it
    weights: Mapping[str, str] | None
    layers: int | None
    hidden_size: int | None
    max_model_len: int | None  # the model's own
    dtype: str
    quantization: str | None
    kv_cache_dtype: str
    block_size: int = GPU_BLOCK
    adapted: Adapted | None = None  # how its folder is made, if an adapter is merged into it

    @property
    def like(self) -> Path | None:
        """A folder that is here, with its settings, and with weights of its shapes."""
        return self.adapted.base if self.adapted else self.folder

    @property
    def pending(self) -> bool:
        return self.weights is None

    def identity(self) -> dict[str, Any]:
        """What its streams depend on, and with them the vectors that are extracted from it."""
        weights = (
            {"pending": self.name, "revision": self.revision} if self.weights is None else dict(self.weights)
        )
        return weights | {
            "dtype": self.dtype,
            "quantization": self.quantization,
            "kv_cache_dtype": self.kv_cache_dtype,
        }

    def output_identity(self) -> dict[str, Any]:
        """What its answers depend on besides: in 16 bits vLLM's own unembedding would round them."""
        return self.identity() | ({} if self.dtype == "float32" else {"unembedding": "float32"})


def has_gpu() -> bool:
    """Without asking torch, whose import takes seconds."""
    return _GPU.exists()


def find_model(grid: Grid, n: int) -> tuple[ModelFacts, Any | None]:
    """The facts of the grid's n-th model and its tokenizer, or without one where it isn't at hand.

    Nothing is fetched or made. The grid must not contradict the model's own configuration.
    """
    model = grid.model[n]
    try:
        found = locate(grid, model)
        tokenizer, folder, weights = None, None, None
        config: dict[str, Any] = {}
        if found is not None:
            folder, weights = found
            config = read_config(folder)
            tokenizer = _tokenizer(folder)
    except VsteerError as error:
        raise grid.error(("model", n, "id"), error.message, error.hint) from None
    except (OSError, RuntimeError, ValueError) as error:  # a path that no system could have
        why = shortened(getattr(error, "strerror", None) or str(error))
        raise grid.error(
            ("model", n, "id"),
            f"can't look for the model {shown(model.id)}: {why}",
            reading_hint(error, "name a model"),
        ) from None
    if tokenizer is None:
        weights = None
    revision = (weights or {}).get("commit", model.revision)
    adapted = find_adapted(grid, n, found)
    if adapted:
        folder, weights = adapted.folder, weights and {"sha256": adapted.sha256}
    layers = config.get("num_hidden_layers")
    if layers and model.layers and layers != model.layers:
        message = f"the grid says that {shortened(model.id)} has {model.layers} layers, but it has {layers}"
        raise grid.error(("model", n, "layers"), message, "leave layers out: the model is at hand")
    engine = grid.engine_for(model)
    facts = ModelFacts(
        name=model.name,
        folder=folder,
        revision=revision,
        weights=weights,
        layers=layers or model.layers,
        hidden_size=config.get("hidden_size"),
        max_model_len=config.get("max_position_embeddings"),
        dtype=model.dtype,
        quantization=model.quantization,
        kv_cache_dtype=model.kv_cache_dtype,
        block_size=engine.block_size or (CPU_BLOCK if weights and not has_gpu() else GPU_BLOCK),
        adapted=adapted,
    )
    return facts, tokenizer


def find_adapted(grid: Grid, n: int, base: Located | None) -> Adapted | None:
    """The n-th model with its adapter, if it has one, and if the model itself is at hand."""
    adapter = grid.model[n].adapter
    if adapter is None:
        return None
    try:
        folder = grid.folder.absolute() / Path(adapter).expanduser()
        if base is None:
            read_adapter(folder)
            return None
        adapted = Adapted(grid.model[n].id, *base, folder)
        adapted.check()
        return adapted
    except VsteerError as error:
        raise grid.error(("model", n, "adapter"), error.message, error.hint) from None
    except (OSError, RuntimeError, ValueError) as error:  # a path that no system could have
        why = shortened(getattr(error, "strerror", None) or str(error))
        raise grid.error(
            ("model", n, "adapter"),
            f"can't look for the adapter {shown(adapter)}: {why}",
            reading_hint(error, "name a folder"),
        ) from None


def locate(grid: Grid, model: Model) -> Located | None:
    """The model's folder and what identifies its weights; None where neither is here yet."""
    name = model.id
    if name.startswith(("./", "../")):
        name = str(grid.folder / name)  # beside the grid, as its data
    if name in models.NAMED:
        if model.revision is not None:
            models.resolve(name, model.revision)  # refuses the revision
        made = models.NAMED[name]
        return (made.folder, {"sha256": model_sha256(made.folder)}) if models.is_present(made) else None
    source = models.resolve(name, model.revision)
    folder = Path(source.model)
    if folder.is_dir():
        return folder, {"sha256": model_sha256(folder)}
    snapshot = cached_snapshot(source.model, source.revision)
    if snapshot is None:
        return None
    refuse_own_code(snapshot)
    check_weights(snapshot)
    return snapshot, {"hub": source.model, "commit": snapshot.name}


def _tokenizer(folder: Path) -> Any | None:
    """The folder's tokenizer; None where transformers isn't installed or the cache holds only a part."""
    if not any((folder / file).is_file() for file in models.TOKENIZER_FILES):
        return None
    try:
        return load_tokenizer(folder, local_files_only=True)
    except ModuleNotFoundError:
        return None
