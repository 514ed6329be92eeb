"""Files: written so that they appear whole or not at all, and read within limits, whatever they are.

What is written stands beside its place under another name until it is synced and renamed. What is read is a
regular file of a size that was to be expected, so that no device, pipe or giant hangs us or fills the memory.
"""

from __future__ import annotations

import errno
import json
import os
import re
import secrets
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from io import BufferedReader
from pathlib import Path
from typing import Any

TEMPORARY = ".tmp"
_KINDS = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}
UNREADABLE = "you may not read it: make it readable, or run this as its owner"
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def open_regular(path: Path) -> BufferedReader:
    """Open a file for reading. A pipe, device or folder is an OSError at once, in words for the user."""
    file = open(path, "rb", opener=_without_waiting)  # noqa: SIM115  (the caller closes it)
    kind = stat.S_IFMT(os.fstat(file.fileno()).st_mode)
    if kind != stat.S_IFREG:
        file.close()
        raise OSError(
            errno.EINVAL, f"it is {_KINDS.get(kind, 'no file')}, not a file with content", str(path)
        )
    return file


def read_regular(path: Path, limit: int) -> bytes:
    """All bytes of a regular file; an OSError where they are more than `limit`."""
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        # the files of /proc have no size beforehand
        content = b"" if size > limit else file.read(limit + 1)
    if max(size, len(content)) > limit:
        found = f"it has {size:,} bytes" if size > limit else "it has more bytes than it says"
        raise OSError(errno.EINVAL, f"{found}, and at most {limit:,} are read", str(path))
    return content


def reading_hint(error: BaseException, otherwise: str) -> str:
    """The hint of an error in reading a file: one that may not be read is neither missing nor broken."""
    return UNREADABLE if isinstance(error, PermissionError) else otherwise


def parse_json(content: str | bytes) -> Any:
    """The value of a JSON text. Whatever is wrong with it is a ValueError.

    That counts for nesting too deep, and for half a surrogate pair, which no file and no terminal can hold.
    """
    text = content if isinstance(content, str) else content.decode()
    try:
        value = json.loads(text)
        if _SURROGATE.search(text):
            json.dumps(value, ensure_ascii=False).encode()
    except RecursionError:
        raise ValueError("it is nested too deep") from None
    except UnicodeEncodeError:
        raise ValueError("it holds half a surrogate pair") from None
    return value


def _without_waiting(path: str, flags: int) -> int:
    """Opening a pipe would otherwise wait until someone writes to it."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0))


@contextmanager
def written_whole(path: Path, *, shared: bool = False) -> Iterator[Path]:
    """The temporary path to write to. It becomes `path` when the block ends well, and goes when it doesn't.

    What a kill leaves there goes first. Where several processes may write `path` at once, `shared` gives each
    a temporary path of its own.
    """
    temporary = vacant_path(path, secrets.token_hex(4) if shared else "")
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


def vacant_path(path: Path, owner: str = "") -> Path:
    """Where to write what will be `path`; nothing stands there, not even a link that others put there.

    It is hidden and has another ending, so that nothing that looks for files by suffix finds it.
    """
    temporary = path.with_name(f".{path.name}{f'.{owner}' if owner else ''}{TEMPORARY}")
    temporary.unlink(missing_ok=True)
    return temporary


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
