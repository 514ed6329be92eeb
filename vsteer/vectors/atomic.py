"""A file that appears whole or not at all: written beside its place under another name, synced, renamed."""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vsteer.errors import VectorError


@contextmanager
def written_whole(path: Path, overwrite: bool = False) -> Iterator[Path]:
    """The temporary path to write to. It becomes `path` when the block ends well, and goes when it doesn't.

    Its name has another ending than the file's, so that nothing that looks for files by suffix finds it.
    """
    if path.exists() and not overwrite:
        raise VectorError(f"{path} exists already", "give another name, or overwrite it on purpose (--force)")
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        try:
            yield temporary
            _sync(temporary)
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        _sync(path.parent)
    except OSError as error:
        raise VectorError(
            f"could not write {path}: {error.strerror or error}",
            "is the folder there and writable, and is there room on the disk? Nothing half-written is left",
        ) from error


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
