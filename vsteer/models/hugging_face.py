"""Configurations, tokenizers and models through transformers, which runs no code that a model brings along.

transformers asks on the terminal where `trust_remote_code` is not given, and an answer in the input runs the
model's Python. So every load of the project is here and gives it, and a model that can't do without its own
code is refused by name before anything is loaded.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from vsteer.errors import ModelError, UsageError
from vsteer.files import parse_json, read_regular, reading_hint

# In which a model is looked into here, beside vLLM.
DTYPES = ("float32", "bfloat16", "float16", "float64")
# What of an error of transformers is shown.
SHOWN = 200
# A tokenizer's configuration may list some 100,000 special tokens.
_MOST_BYTES = 2**26


def load_config(model: str | Path, revision: str | None = None) -> Any:
    """The model's configuration, of a folder or a hub id."""
    from transformers import AutoConfig

    refuse_own_code(model)
    try:
        return AutoConfig.from_pretrained(model, revision=revision, trust_remote_code=False)
    except Exception as error:  # transformers raises all kinds of errors for a broken file
        raise _unreadable("configuration", model, error) from None


def load_tokenizer(model: str | Path, revision: str | None = None, *, local_files_only: bool = False) -> Any:
    """The model's tokenizer, without the model, of a folder or a hub id."""
    from transformers import AutoTokenizer

    refuse_own_code(model)
    try:
        return AutoTokenizer.from_pretrained(
            model, revision=revision, local_files_only=local_files_only, trust_remote_code=False
        )
    except Exception as error:  # transformers raises all kinds of errors for a broken file
        raise _unreadable("tokenizer", model, error) from None


def load_model(model: str | Path, revision: str | None = None, *, device: str = "cpu", **options: Any) -> Any:
    """The model itself, of a folder or a hub id. Its weights come from safetensors, never from a pickle."""
    from transformers import AutoModelForCausalLM
    from transformers.utils.logging import disable_progress_bar

    refuse_own_code(model)
    check_device(device)
    # a command's own progress stands on the terminal
    disable_progress_bar()
    try:
        found = AutoModelForCausalLM.from_pretrained(
            model, revision=revision, use_safetensors=True, trust_remote_code=False, **options
        )
    except (OSError, ValueError) as error:
        raise _unreadable("weights", model, error) from None
    try:
        return found.to(device)
    except RuntimeError as error:  # out of memory is one
        raise ModelError(
            f"{str(model)[-100:]} can't be put on the device {device}: {_first_line(error)}",
            "give another --device, or a smaller --dtype",
        ) from None


def check_device(device: str) -> None:
    """Raise where this machine has no such device, before weights are read."""
    import torch

    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, ValueError) as error:
        raise UsageError(
            f"the device {device[:40]!r} can't be used: {_first_line(error)}", "such as cpu or cuda:0"
        ) from None


def _first_line(error: Exception) -> str:
    return str(error).split("\n", 1)[0][:SHOWN]


def refuse_own_code(model: str | Path) -> None:
    """Raise for a folder whose configuration or tokenizer is a class of the folder's own Python.

    Where transformers has a class for the same type, it takes that one instead. A hub id passes: nothing of
    it is here, and transformers refuses its code.
    """
    if find_spec("transformers") is None:
        return  # nothing on this machine could load it
    config = _json(Path(model, "config.json"))
    kind = config.get("model_type")
    if "AutoConfig" in _auto_map(config) and not _is_known_type(kind):
        raise _needs_own_code(model, f"for its model type {shown(kind)}")
    tokenizer = _json(Path(model, "tokenizer_config.json"))
    kind = tokenizer.get("tokenizer_class")
    if "AutoTokenizer" in _auto_map(tokenizer) and not _is_known_tokenizer(kind):
        raise _needs_own_code(model, f"for its tokenizer {shown(kind)}")


def shown(kind: object) -> str:
    return repr(kind)[:60]


def _json(path: Path) -> dict[str, Any]:
    """The file's object; empty where there is none, since whoever needs the file says so."""
    try:
        found = parse_json(read_regular(path, _MOST_BYTES))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _auto_map(config: dict[str, Any]) -> list[str]:
    """The classes for which the folder has code; in the old form of a tokenizer's it is a list of its own."""
    named = config.get("auto_map")
    return ["AutoTokenizer"] if isinstance(named, list) else list(named) if isinstance(named, dict) else []


def _is_known_type(kind: object) -> bool:
    from transformers import CONFIG_MAPPING

    return isinstance(kind, str) and kind in CONFIG_MAPPING


def _is_known_tokenizer(kind: object) -> bool:
    from transformers.models.auto.tokenization_auto import tokenizer_class_from_name

    return isinstance(kind, str) and tokenizer_class_from_name(kind) is not None


def _needs_own_code(model: str | Path, what: str) -> ModelError:
    return ModelError(
        f"{model} needs Python code of its own {what}, and vsteer runs no code from a model's folder",
        hint="take a model whose type and tokenizer are part of transformers; a newer version may have them",
    )


def _unreadable(what: str, model: str | Path, error: Exception) -> ModelError:
    if "trust_remote_code" in str(error):
        return _needs_own_code(model, f"for its {what}")
    reason = " ".join(str(error).split())[:SHOWN] or type(error).__name__
    return ModelError(
        f"the {what} of {model} can't be read: {reason}",
        # transformers wraps the system's errors in its own
        hint=reading_hint(
            error.__cause__ if isinstance(error.__cause__, PermissionError) else error,
            "is it a model of Hugging Face's layout, and whole? fetch it again",
        ),
    )
