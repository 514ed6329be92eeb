"""The checksum within a Parquet file: against zlib over the whole file, and single flipped bits."""

from __future__ import annotations

import zlib
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from vsteer.store.files import write_parquet
from vsteer.store.seal import broken

TABLE = pa.table({"name": ["a", "b"], "value": [1.5, None]})


def test_the_checksum_is_that_of_the_file_with_zeros_in_its_place(tmp_path: Path) -> None:
    file = tmp_path / "table.parquet"
    write_parquet(file, TABLE)
    head, mark, tail = file.read_bytes().partition(b"vsteer-crc32=")
    assert tail[:8] == f"{zlib.crc32(head + mark + b'0' * 8 + tail[8:]):08x}".encode()
    assert broken(file) is False
    assert pq.read_table(file).equals(TABLE)


def test_a_flipped_bit_is_found_but_in_the_mark_itself(tmp_path: Path) -> None:
    file = tmp_path / "table.parquet"
    write_parquet(file, TABLE)
    content = file.read_bytes()
    for bit in range(0, 8 * len(content), 5):
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        file.write_bytes(flipped)
        if broken(file) is None:
            # the mark was not found: no row changed, or the file can't be read at all
            try:
                assert pq.read_table(file).equals(TABLE)
            except (pa.ArrowException, OSError):
                continue
        else:
            assert broken(file)


def test_a_file_of_before_has_no_seal(tmp_path: Path) -> None:
    pq.write_table(TABLE, tmp_path / "table.parquet")
    assert broken(tmp_path / "table.parquet") is None
