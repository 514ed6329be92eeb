"""Files that appear whole or not at all: written beside their place under another name, synced, renamed."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

TEMPORARY = ".tmp"


@contextmanager
def written_whole(path: Path, *, shared: bool = False) -> Iterator[Path]:
    """The temporary path to write to. It becomes `path` when the block ends well, and goes when it doesn't.

    What a kill leaves there is overwritten the next time. Where several processes may write `path` at once,
    `shared` gives each a temporary path of its own.
    """
    temporary = temporary_path(path, secrets.token_hex(4) if shared else "")
    try:
        yield temporary
        put_in_place(temporary, path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


@contextmanager
def new_file(path: Path, error: Callable[[str, str], Exception], overwrite: bool = False) -> Iterator[Path]:
    """`written_whole` for a file that a user names: nothing is replaced unasked, faults are an `error`."""
    if path.exists() and not overwrite:
        raise error(f"{path} exists already", "give another name, or overwrite it on purpose (--force)")
    try:
        with written_whole(path, shared=True) as temporary:
            yield temporary
    except OSError as fault:
        raise error(
            f"could not write {path}: {fault.strerror or fault}",
            "is the folder there and writable, and is there room on the disk? Nothing half-written is left",
        ) from fault


def temporary_path(path: Path, owner: str = "") -> Path:
    """Hidden, and with another ending, so that nothing that looks for files by suffix finds it."""
    return path.with_name(f".{path.name}{f'.{owner}' if owner else ''}{TEMPORARY}")


def put_in_place(temporary: Path, path: Path) -> None:
    sync(temporary)
    temporary.replace(path)
    sync(path.parent)


def sync(path: Path) -> None:
    """Make a file's content, or a folder's list of names, durable."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
