"""LoRA adapters as peft saves them, each merged into the model that it changes: W + scale * B A.

The headers of the files say whether an adapter fits and which model comes of it, so that a plan knows both.
The merged model is made once, when it is first loaded, in a folder of vsteer's home, from safetensors alone
and without peft. The sum is computed in float32 and rounded to the type of the model's own weights.
"""

from __future__ import annotations

import hashlib
import math
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from vsteer.errors import ModelError, UnsupportedError
from vsteer.files import parse_json, read_regular, reading_hint
from vsteer.identity import canonical
from vsteer.models import NamedModel, ensure, is_present
from vsteer.models.identity import (
    FILES,
    MERGED,
    MERGED_FILES,
    files_sha256,
    large_file_sha256,
    model_sha256,
)
from vsteer.models.weights import read_config, tensors
from vsteer.terminal import echo

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
# Raise it whenever the same files come to give other weights.
VERSION = 1
_FORM = f"an adapter is a folder with {CONFIG} and {WEIGHTS}, as peft saves a LoRA"
_SUPPORTED = (
    "a plain LoRA on linear layers is merged; merge others with peft, and name the folder as the model"
)
_PART = re.compile(r"base_model\.model\.(.+)\.lora_([AB])\.weight")
_FLOATS = ("F32", "F16", "BF16")
# What a configuration may say beside what is false or empty. These say how the adapter was trained, or what
# its tensors say themselves.
_TRAINING = {
    "auto_mapping", "base_model_name_or_path", "exclude_modules", "eva_config", "inference_mode",
    "layers_pattern", "layers_to_transform", "lora_alpha", "lora_dropout", "megatron_core", "peft_type",
    "peft_version", "qalora_group_size", "r", "rank_pattern", "revision", "target_modules", "task_type",
    "use_rslora",
}  # fmt: skip
# These ways to begin leave the model's own weights as they are.
_SETTINGS = {"bias": ("none",), "init_lora_weights": (True, "gaussian", "eva", "orthogonal")}


class Change(NamedTuple):
    """What becomes of one linear layer's weight."""

    shape: tuple[int, int]
    scale: float


@dataclass(frozen=True)
class Adapted:
    """A model with an adapter: another model, with an identity of its own."""

    name: str  # of the model alone, as the user wrote it
    base: Path
    weights: Mapping[str, str]  # what identifies the base
    adapter: Path

    @property
    def sha256(self) -> str:
        """What identifies the merged model, on every machine and whether it was made there or not."""
        adapter = [large_file_sha256(self.adapter / name) for name in (CONFIG, WEIGHTS)]
        made_of = {"version": VERSION, "base": dict(self.weights), "adapter": adapter}
        return hashlib.sha256(canonical(made_of).encode()).hexdigest()

    @property
    def _model(self) -> NamedModel:
        return NamedModel(f"{MERGED}{self.sha256}", "", "", size_mib=0, recipe=VERSION, make=self._make)

    @property
    def folder(self) -> Path:
        """Where it is, or will be."""
        return self._model.folder

    def merged(self) -> Path:
        """The merged model's folder, which is made if it isn't there."""
        self.check()
        if not is_present(self._model):
            echo(f"... merging the adapter {_called(self.adapter)} into {_called(self.base)}, once", err=True)
        folder = ensure(self._model)
        model_sha256(folder)
        return folder

    def check(self) -> None:
        """Refuse an adapter that doesn't fit the model, by the headers of their files."""
        changes = read_adapter(self.adapter)
        config = read_config(self.base)
        if config.get("quantization_config"):
            raise UnsupportedError(
                f"{_called(self.base)} is quantised, so nothing is merged into it", _SUPPORTED
            )
        found = {name: one for file in weight_files(self.base) for name, one in tensors(file).items()}
        for module, change in changes.items():
            weight = found.get(f"{module}.weight")
            what = f"the adapter {_called(self.adapter)} changes {module[:100]}"
            if module.endswith("embed_tokens") or (module == "lm_head" and config.get("tie_word_embeddings")):
                raise UnsupportedError(f"{what}, which is an embedding", _SUPPORTED)
            if weight is None:
                raise ModelError(
                    f"{what}, which is not in {_called(self.base)}", "is it an adapter of this very model?"
                )
            if weight.shape != change.shape:
                raise ModelError(
                    f"{what} by {_size(change.shape)}, and there it is {_size(weight.shape)}",
                    "is it an adapter of this very model?",
                )
            if weight.dtype not in _FLOATS:
                raise UnsupportedError(f"{what}, whose weights are {weight.dtype[:20]}", _SUPPORTED)

    def _make(self, folder: Path) -> None:
        from safetensors import safe_open
        from safetensors.torch import save_file

        changes = read_adapter(self.adapter)
        changed = 0
        for source in {path for pattern in FILES for path in self.base.glob(pattern)}:
            # a recipe is another model's, and an adapter's settings would have transformers look for it
            if source.suffix != ".safetensors" and source.name not in ("vsteer.json", CONFIG):
                shutil.copyfile(source, folder / source.name)
        with safe_open(self.adapter / WEIGHTS, "pt") as adapter:
            for source in weight_files(self.base):
                with safe_open(source, "pt") as model:
                    found = {name: model.get_tensor(name) for name in model.keys()}  # noqa: SIM118
                    metadata = model.metadata() or {"format": "pt"}
                for module in changes.keys() & {name.removesuffix(".weight") for name in found}:
                    weight = found[f"{module}.weight"]
                    found[f"{module}.weight"] = self._changed(module, weight, adapter, changes[module].scale)
                    changed += not weight.equal(found[f"{module}.weight"])
                save_file(found, folder / source.name, metadata=metadata)
        if not changed:
            raise ModelError(
                f"the adapter {_called(self.adapter)} changes no weight of the model",
                "its B are zero, as before training: was the trained one saved?",
            )
        if self.sha256 not in folder.name:
            raise ModelError(
                f"the adapter {_called(self.adapter)} changed while it was merged", "give the command again"
            )
        (folder / MERGED_FILES).write_text(files_sha256(folder))

    def _changed(self, module: str, weight: Any, adapter: Any, scale: float) -> Any:
        a, b = (adapter.get_tensor(_name(module, part)).float() for part in "AB")
        merged = (weight.float() + scale * (b @ a)).to(weight.dtype)
        if not merged.isfinite().all():
            raise ModelError(
                f"the adapter {_called(self.adapter)} makes {module[:100]} infinite or NaN",
                "was its training stable?",
            )
        return merged


def adapted_name(model: str, adapter: str | Path | None) -> str:
    """As results and vector files name a model with an adapter."""
    return model if adapter is None else f"{model} + {adapter}"


def read_adapter(folder: Path) -> dict[str, Change]:
    """What a folder's adapter changes, by linear layer; one that is more than a plain LoRA is refused."""
    if not folder.is_dir():
        raise ModelError(f"no adapter at {_called(folder)}", _FORM)
    config = _read_config(folder)
    if not (folder / WEIGHTS).exists():
        pickled = any((folder / name).exists() for name in ("adapter_model.bin", "adapter_model.pt"))
        raise ModelError(
            f"the adapter {_called(folder)} has no {WEIGHTS}",
            "it is a pickle, which is never read: save it anew with peft" if pickled else _FORM,
        )
    shapes: dict[str, dict[str, tuple[int, ...]]] = {}
    for name, tensor in tensors(folder / WEIGHTS).items():
        part = _PART.fullmatch(name)
        if part is None or len(tensor.shape) != 2 or tensor.dtype not in _FLOATS:
            raise _refused(folder, f"the tensor {name[:100]}")
        shapes.setdefault(part[1], {})[part[2]] = tensor.shape
    changes = {}
    for module, parts in sorted(shapes.items()):
        if parts.keys() != {"A", "B"} or parts["A"][0] != parts["B"][1] or not parts["A"][0]:
            raise ModelError(
                f"the adapter {_called(folder)} has no A and B of one rank for {module[:100]}",
                "was it cut short?",
            )
        rank = parts["A"][0]
        if not config.get("rank_pattern") and rank != config["r"]:
            raise ModelError(
                f"the adapter {_called(folder)} has rank {rank} for {module[:100]}, and {config['r']} in its "
                f"{CONFIG}",
                "are both files of one adapter?",
            )
        scale = config["lora_alpha"] / (math.sqrt(rank) if config.get("use_rslora") else rank)
        changes[module] = Change((parts["B"][0], parts["A"][1]), scale)
    if not changes:
        raise ModelError(f"the adapter {_called(folder)} has no tensors", _FORM)
    return changes


def weight_files(folder: Path) -> list[Path]:
    """The files that a model's weights are loaded from: those of its index, where it has one."""
    try:
        index = parse_json(read_regular(folder / "model.safetensors.index.json", 2**26))
        names = set(index["weight_map"].values())
    except FileNotFoundError:
        names = {"model.safetensors"} & {path.name for path in folder.iterdir()}
        names = names or {path.name for path in folder.glob("*.safetensors")}
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        why = getattr(error, "strerror", None) or "it is no index of weights"
        raise ModelError(
            f"{_called(folder)}/model.safetensors.index.json can't be read: {why}",
            reading_hint(error, "fetch the model again"),
        ) from None
    if not all(isinstance(name, str) and Path(name).name == name for name in names):
        raise ModelError(
            f"{_called(folder)}/model.safetensors.index.json names files elsewhere", "fetch the model again"
        )
    return [folder / name for name in sorted(names)]


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG
    try:
        config = parse_json(read_regular(path, 2**22))
    except FileNotFoundError:
        raise ModelError(f"the adapter {_called(folder)} has no {CONFIG}", _FORM) from None
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or str(error)[:200]
        raise ModelError(f"{_called(path)} can't be read: {why}", reading_hint(error, _FORM)) from None
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        kind = config.get("peft_type") if isinstance(config, dict) else None
        raise UnsupportedError(f"{_called(path)} is of no LoRA: its peft_type is {_shown(kind)}", _SUPPORTED)
    for name, value in config.items():
        allowed = _SETTINGS.get(name)
        if value and not (value in allowed if allowed else name in _TRAINING):
            raise _refused(folder, f"{name[:60]}: {_shown(value)}")
    for name in ("r", "lora_alpha"):
        value = config.get(name)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e9:
            raise ModelError(f"{_called(path)}: {name} is {_shown(value)}, not a positive number", _FORM)
    return config


def _refused(folder: Path, what: str) -> UnsupportedError:
    return UnsupportedError(
        f"the adapter {_called(folder)} is not a plain LoRA on linear layers: {what}", _SUPPORTED
    )


def _called(path: Path) -> str:
    """The end of a path, which says more than its start."""
    name = str(path)
    return name if len(name) <= 150 else f"…{name[-149:]}"


def _shown(value: object) -> str:
    return repr(value)[:60]


def _size(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))


def _name(module: str, part: str) -> str:
    return f"base_model.model.{module}.lora_{part}.weight"
