"""How the store writes: whole files, Parquet with checksums, and one clear error for a fault of the disk."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from vsteer.errors import StoreError
from vsteer.files import UNREADABLE, written_whole
from vsteer.store.seal import seal, with_place

FULL = "free some space on that disk and give the same command again: what was written is kept"
READ_ONLY = "make the folder writable and give the same command again: what was written is kept"
HINTS = {
    errno.ENOSPC: FULL,
    errno.EDQUOT: FULL,
    errno.EFBIG: FULL,
    errno.EROFS: READ_ONLY,
    errno.EACCES: READ_ONLY,
    errno.EPERM: READ_ONLY,
}


@contextmanager
def disk_errors(doing: str) -> Iterator[None]:
    """Turn an OSError into a StoreError that names what was being done."""
    try:
        yield
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise  # the name is at fault, and the command line says so
        hint = HINTS.get(error.errno or 0, "check that disk; what was written is kept")
        if hint == READ_ONLY and doing.startswith("reading "):
            hint = UNREADABLE
        raise StoreError(f"{doing} failed: {error.strerror or error}", hint=hint) from error


def refuse_name(folder: Path) -> None:
    """Readers of Parquet take no path that isn't UTF-8, as an old disk or archive may have."""
    try:
        str(folder).encode()
    except UnicodeEncodeError:
        raise StoreError(f"the path {folder} is not UTF-8", hint="give the folder another name") from None


def refuse_link(path: Path, hint: str = "delete the link") -> None:
    """What is changed in its place must lie there: a link's target is somebody else's."""
    if path.is_symlink():
        raise StoreError(f"{path} is a symbolic link, and vsteer would change what it points to", hint=hint)


def write_sealed(path: Path, table: pa.Table) -> None:
    """Put a derived table at `path`, whole or not at all."""
    with disk_errors(f"writing {path}"), written_whole(path) as temporary:
        write_parquet(temporary, table)


def write_file(path: Path, content: bytes | memoryview, *, shared: bool = False) -> None:
    """Put `content` at `path`, whole or not at all; `shared` where no lock keeps others from doing it too."""
    with disk_errors(f"writing {path}"), written_whole(path, shared=shared) as temporary:
        temporary.write_bytes(content)


def write_parquet(path: Path, table: pa.Table) -> None:
    """A derived table's file, sealed: what isn't a shard has no checksum in its name."""
    # through a file of Python's, whose errors have the system's words
    with path.open("wb") as file, parquet_writer(file, with_place(table.schema)) as writer:
        writer.write_table(table, row_group_size=max(1, len(table)))
    seal(path)


def as_parquet(*groups: pa.Table) -> memoryview:
    """Tables of moderate size as a file's content, each a row group."""
    sink = pa.BufferOutputStream()
    with parquet_writer(sink, groups[0].schema) as writer:
        for table in groups:
            writer.write_table(table, row_group_size=max(1, len(table)))
    return memoryview(sink.getvalue())


def parquet_writer(sink: object, schema: pa.Schema) -> pq.ParquetWriter:
    # With a checksum on each page, so that a damaged one is never read for numbers.
    return pq.ParquetWriter(sink, schema, compression="zstd", write_page_checksum=True)
