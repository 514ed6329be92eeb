"""Which model this is, in a folder or a hub snapshot: equal files, equal hash, wherever they are.

Weights of 140 GB are not read whole: of each file its name, size, header and samples all over it count, so
that another checkpoint of the same shape is told apart.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from vsteer.errors import ModelError

SMALL = ("*.json", "*.model", "*.jinja")
SAMPLES = 64
SAMPLE_BYTES = 1 << 16


def model_sha256(folder: str | Path) -> str:
    folder = Path(folder)
    digest = hashlib.sha256(b"vsteer-model-1")
    small = {path for pattern in SMALL for path in folder.glob(pattern) if path.name != "vsteer.json"}
    for path in sorted(small):
        _add(digest, path.name, path.read_bytes())
    for path in sorted(folder.glob("*.safetensors")):
        size = path.stat().st_size
        digest.update(f"{path.name}:{size}\n".encode())
        with path.open("rb") as file:
            for index in range(SAMPLES):
                file.seek(index * max(0, size - SAMPLE_BYTES) // (SAMPLES - 1))
                _add(digest, str(index), file.read(SAMPLE_BYTES))
    return digest.hexdigest()


def _add(digest: hashlib._Hash, name: str, content: bytes) -> None:
    digest.update(f"{name}:{len(content)}\n".encode())
    digest.update(content)


def commit_of(model: str, revision: str | None) -> str:
    """The hub commit that a hub id's cached files are of; empty for a folder."""
    if Path(model).is_dir():
        return ""
    return _cached(model, revision).name


def sha256_of(model: str, revision: str | None) -> str:
    """The hash of a folder, or of the snapshot of a hub id that has been fetched."""
    return model_sha256(model if Path(model).is_dir() else _cached(model, revision))


def cached_snapshot(model: str, revision: str | None) -> Path | None:
    """Where the hub's own cache holds a model's settings, in a folder named by the commit."""
    try:
        from huggingface_hub import try_to_load_from_cache
    except ModuleNotFoundError:
        return None
    found = try_to_load_from_cache(model, "config.json", revision=revision)
    return Path(found).parent if isinstance(found, str) else None


def _cached(model: str, revision: str | None) -> Path:
    found = cached_snapshot(model, revision)
    if found is None:
        raise ModelError(f"{model} is not in the hub's cache", "load it once; then its files can be named")
    return found
