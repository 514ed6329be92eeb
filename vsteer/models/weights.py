"""What a model folder's weights and configuration say of themselves, checked before anything is loaded.

A safetensors file begins with the length of its header, then the header: each tensor's type, shape and place.
A file that was cut short, or a pointer of Git LFS in its place, shows there, without reading any weights.
"""

from __future__ import annotations

import os
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

from vsteer.errors import ModelError
from vsteer.files import open_regular, parse_json, read_regular, reading_hint

# A header of 100,000 tensors has about 12 MB, and a configuration of any model some kB.
_MAX_HEADER, _MAX_CONFIG = 2**24, 2**22
# What a plan counts with, and the most that it may be: a grid's `layers` has the same limit.
_COUNTS = {"num_hidden_layers": 10_000, "hidden_size": 10**7, "max_position_embeddings": 2**53}
FETCH, CUT = "fetch the model again", "was it cut short? fetch the model again"
_GIT_LFS = b"version https://git-lfs"


class Tensor(NamedTuple):
    dtype: str  # as safetensors names it
    shape: tuple[int, ...]


def read_config(folder: Path) -> dict[str, Any]:
    """config.json, with its `text_config` above it; its counts are whole numbers or not there."""
    path = folder / "config.json"
    try:
        config = parse_json(read_regular(path, _MAX_CONFIG))
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise _unreadable(path, why, reading_hint(error, FETCH)) from None
    if not isinstance(config, dict):
        raise _unreadable(path, "it is no JSON object")
    text = config.get("text_config")
    if text is not None and not isinstance(text, dict):
        raise _unreadable(path, "its text_config is no JSON object")
    config |= text or {}
    for name, most in _COUNTS.items():
        value = config.get(name)
        if value is not None and not (type(value) is int and 0 < value <= most):
            raise _unreadable(path, f"its {name} is {repr(value)[:60]}, not a whole number from 1 to {most}")
    return config


def check_weights(folder: Path) -> None:
    """Refuse a folder with a file that is called safetensors and isn't one, or not whole."""
    for path in sorted(folder.glob("*.safetensors")):
        if path.exists():  # in the hub's cache, a link to what isn't fetched yet
            parameters(path)


def parameters(path: Path) -> int:
    """How many numbers a safetensors file holds, by its header."""
    return sum(prod(tensor.shape) for tensor in tensors(path).values())


def tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file by its header, which agrees with the file's size."""
    try:
        with open_regular(path) as file:
            start, size = file.read(8), os.fstat(file.fileno()).st_size
            if (start + file.read(len(_GIT_LFS) - 8)).startswith(_GIT_LFS):
                raise ModelError(
                    f"{path} holds no weights: it is a pointer of Git LFS, in place of the file",
                    hint="fetch the file itself, in the repository's folder: git lfs pull",
                )
            length = int.from_bytes(start, "little")
            if len(start) < 8 or length > min(size, _MAX_HEADER):
                raise ValueError(f"it has {size:,} bytes and no header")
            file.seek(8)
            header = parse_json(file.read(length))
        entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
        end = 8 + length + max((entry["data_offsets"][1] for entry in entries.values()), default=0)
        if end != size:
            raise ValueError(f"its header speaks of {end:,} bytes, and it has {size:,}")
        return {name: Tensor(str(one["dtype"]), tuple(one["shape"])) for name, one in entries.items()}
    except OSError as error:
        hint = reading_hint(error, CUT)
        raise ModelError(f"{path} can't be read: {error.strerror or error}", hint) from None
    except ValueError as error:
        raise _no_weights(path, str(error)) from None
    except (AttributeError, KeyError, IndexError, TypeError):
        raise _no_weights(path, "its header is damaged") from None


def _no_weights(path: Path, why: str) -> ModelError:
    return ModelError(f"{path} holds no weights: {why[:200]}", CUT)


def _unreadable(path: Path, why: str, hint: str = FETCH) -> ModelError:
    return ModelError(f"{path} can't be read: {why[:200]}", hint)
