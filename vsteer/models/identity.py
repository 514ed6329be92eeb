"""Which model a folder or a hub snapshot holds: equal files have an equal hash, wherever they are.

Every byte counts, so that one changed tensor is another model. Weights are read once: vsteer's home keeps
each file's hash by its path, size, times and inode. The hub's cache names large files by their sha256. A
model that an adapter was merged into is known by what it was made of: processors round sums differently.
"""

from __future__ import annotations

import hashlib
import re
import time
from contextlib import suppress
from pathlib import Path

from vsteer.errors import ModelError
from vsteer.files import open_regular, reading_hint, written_whole
from vsteer.models import home
from vsteer.terminal import echo

# What decides a model's numbers and tokens.
FILES = ("*.json", "*.safetensors", "*.model", "*.tiktoken", "*.jinja", "merges.txt", "vocab.txt")
SHA256 = re.compile("[0-9a-f]{64}")
# A folder that holds a merged model has this name and the hash of what it was made of. Its file of that name
# has the hash of what was written there.
MERGED = "merged-"
MERGED_FILES = "merged.sha256"
# Files up to SMALL bytes are read again each time; reading LARGE bytes or more is announced.
SMALL, LARGE = 2**20, 2**31
# A file that changed within so many seconds may change again and show the same time.
RACY_SECONDS = 2.0


def model_sha256(folder: str | Path) -> str:
    folder = Path(folder)
    try:
        found = files_sha256(folder)
        if not is_merged(folder):
            return found
        made = (folder / MERGED_FILES).read_text()
    except OSError as error:
        raise ModelError(
            f"{error.filename or folder} can't be read: {error.strerror or error}",
            hint=reading_hint(error, "fetch the model again"),
        ) from None
    if found != made:
        raise ModelError(f"{folder} isn't what was merged there", "remove that folder: it is made again")
    return folder.name.removeprefix(MERGED)


def is_merged(folder: Path) -> bool:
    """Whether it is a folder in vsteer's home that a merged model was made in (`adapters.py`)."""
    own = folder.parent == home() / "models" and folder.name.startswith(MERGED)
    return own and SHA256.fullmatch(folder.name.removeprefix(MERGED)) is not None


def weights_of(model: str, folder: Path) -> dict[str, str]:
    """What identifies the weights of a folder: a hub id's is a snapshot, which is named by its commit."""
    if Path(model).is_dir():
        return {"sha256": model_sha256(folder)}
    return {"hub": model, "commit": folder.name}


def files_sha256(folder: Path) -> str:
    """One hash of all of its files that count."""
    files = {path for pattern in FILES for path in folder.glob(pattern) if path.name != "vsteer.json"}
    unread = sum(path.stat().st_size for path in files if _known(path) is None)
    if unread > LARGE:
        size = f"{unread / 2**30:.0f} GiB"
        echo(f"... reading {size} of {folder} once, to recognise them later", err=True)
    digest = hashlib.sha256(b"vsteer-model-2")
    for path in sorted(files, key=lambda path: path.name):
        digest.update(f"{path.name}:{large_file_sha256(path)}\n".encode())
    return digest.hexdigest()


def large_file_sha256(path: Path) -> str:
    """A file's hash, which is kept, so that a file of gigabytes is read once."""
    return _known(path) or _read(path)


def _known(path: Path) -> str | None:
    """A large file's hash, if it is known without reading the file."""
    blob = path.resolve()
    if blob.parent.name == "blobs" and SHA256.fullmatch(blob.name):
        return blob.name
    try:
        kept = _kept(path).read_text()
    except OSError:
        return None
    return kept if SHA256.fullmatch(kept) else None


def _read(path: Path) -> str:
    before, kept = path.stat(), _kept(path)
    with open_regular(path) as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if before.st_size > SMALL and kept == _kept(path) and time.time() - before.st_ctime > RACY_SECONDS:
        with suppress(OSError):  # it is read again the next time
            kept.parent.mkdir(parents=True, exist_ok=True)
            with written_whole(kept, shared=True) as temporary:
                temporary.write_text(found)
    return found


def _kept(path: Path) -> Path:
    """Where a file's hash is kept until the file changes; nobody can set its change time by hand."""
    at = path.stat()
    key = f"{path.resolve()}|{at.st_size}|{at.st_mtime_ns}|{at.st_ctime_ns}|{at.st_ino}"
    return home() / "hashes" / hashlib.sha256(key.encode()).hexdigest()[:32]


def commit_of(model: str, revision: str | None) -> str:
    """The hub commit of a hub id's cached files; empty for a folder."""
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
        raise ModelError(f"{model} is not in the hub's cache", "load it once, which fetches its files")
    return found
