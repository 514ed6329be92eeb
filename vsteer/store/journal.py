"""The rows of the next shard, on disk before there are enough of them: a kill costs a second or two of work.

The writer adds to `unwritten-N.arrow` about once a second, and deletes it when shard N holds its rows. After
a kill the next start makes a shard of it. It consists of pieces, each an Arrow stream behind its length and
its CRC-32, so that a piece that a kill cut, or that was damaged, is never read.
"""

from __future__ import annotations

import os
import re
import struct
import zlib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pyarrow as pa

from vsteer.files import sync
from vsteer.store.files import disk_errors
from vsteer.store.schema import ROWS_SCHEMA, as_written, with_added

NAME = re.compile(r"unwritten-(\d{8})\.arrow")
HEAD = struct.Struct("<QI")


class Journal:
    """The writer's side: for the holder of the lock."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._path: Path | None = None
        self._size = 0

    def add(self, shard: int, rows: pa.Table) -> None:
        """Make rows durable that will be in this shard."""
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, rows.schema) as stream:
            stream.write_table(rows)
        content = sink.getvalue().to_pybytes()
        piece = HEAD.pack(len(content), zlib.crc32(content)) + content
        path = self._path = self._path or self._folder / f"unwritten-{shard:08d}.arrow"
        with disk_errors(f"writing {path}"):
            handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW, 0o644)
            try:
                # What a write that failed left behind the last whole piece goes first.
                os.ftruncate(handle, self._size)
                done = 0
                while done < len(piece):
                    done += os.pwrite(handle, piece[done:], self._size + done)
                os.fsync(handle)
            finally:
                os.close(handle)
            if not self._size:
                sync(self._folder)
        self._size += len(piece)

    def clear(self) -> None:
        """Drop the rows, which are in a shard now. The number tells a file that can't be deleted."""
        if self._path:
            with suppress(OSError):
                self._path.unlink(missing_ok=True)
        self._path, self._size = None, 0


def journals(folder: Path) -> dict[int, Path]:
    """What kills left, by the number of the shard that each would have become."""
    with disk_errors(f"reading {folder}"):
        return {
            int(found[1]): path
            for path in sorted(folder.iterdir())
            if (found := NAME.fullmatch(path.name)) and path.is_file() and not path.is_symlink()
        }


def whole_rows(journal: Path) -> pa.Table:
    """The rows of a journal's pieces up to the first that isn't whole."""
    with disk_errors(f"reading {journal}"):
        content = journal.read_bytes()
    return pa.concat_tables([ROWS_SCHEMA.empty_table(), *_pieces(content)])


def _pieces(content: bytes) -> Iterator[pa.Table]:
    place = 0
    while place + HEAD.size <= len(content):
        length, crc = HEAD.unpack_from(content, place)
        piece = content[place + HEAD.size : place + HEAD.size + length]
        if len(piece) != length or zlib.crc32(piece) != crc:
            return
        with pa.ipc.open_stream(piece) as stream:
            if not stream.schema.equals(as_written(ROWS_SCHEMA, stream.schema.names)):
                return  # another version of vsteer wrote it, and its rows are computed anew
            yield with_added(stream.read_all(), ROWS_SCHEMA)
        place += HEAD.size + length
