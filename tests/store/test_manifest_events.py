"""manifest.json and events.jsonl: a flipped bit is found, or what is read is what was written."""

from __future__ import annotations

import json
import random
import zlib
from pathlib import Path
from typing import Any

import pytest

from tests.store.makers import row, write_plan
from vsteer.errors import StoreError
from vsteer.store.events import append_event, read_events
from vsteer.store.manifest import DamagedManifest, read_manifest, write_manifest
from vsteer.store.store import open_store

MANIFEST = {"name": "Où? 東京", "day": "2026-11-30", "grid": {"model": ["a", "b"], "seed": 7}}


def flips(path: Path, count: int) -> Any:
    """Each time the file has another bit flipped."""
    content, bits = path.read_bytes(), random.Random(5)
    for _ in range(count):
        bit, flipped = bits.randrange(8 * len(content)), bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        yield bit // 8


def test_the_manifests_checksum_is_that_of_all_before_it(tmp_path: Path) -> None:
    write_manifest(tmp_path, MANIFEST, {"rows": 12})
    content = (tmp_path / "manifest.json").read_bytes()
    head, _, tail = content.partition(b',\n  "crc32": "')
    assert tail == f'{zlib.crc32(head):08x}"\n}}'.encode()
    assert json.loads(content)["grid"] == MANIFEST["grid"]


def test_a_flipped_bit_in_the_manifest(tmp_path: Path) -> None:
    wanted = write_manifest(tmp_path, MANIFEST, {"rows": 12})
    found = 0
    for _ in flips(tmp_path / "manifest.json", 300):
        try:
            # where the flip is in the last key itself, that one may be there under another name
            read = read_manifest(tmp_path) or {}
            assert {name: read.get(name) for name in wanted} == wanted
        except DamagedManifest:
            found += 1
    assert found > 270


def test_a_flipped_bit_in_the_events(tmp_path: Path) -> None:
    for session in range(1, 6):
        append_event(tmp_path, "start", session=session, note="東京")
    wanted = read_events(tmp_path)
    assert [event["session"] for event in wanted] == [1, 2, 3, 4, 5]
    for _ in flips(tmp_path / "events.jsonl", 300):
        for event in read_events(tmp_path):
            same = [one for one in wanted if one.items() <= event.items()]
            assert same or event["event"] == "unreadable"


def test_files_of_before_have_no_checksum_and_are_read(tmp_path: Path) -> None:
    entries = {"schema_version": 1, "rows": 3}
    (tmp_path / "manifest.json").write_text(json.dumps(entries))
    (tmp_path / "events.jsonl").write_text('{"at": "2026-11-30", "event": "start", "session": 1}\n')
    assert read_manifest(tmp_path) == entries
    assert read_events(tmp_path) == [{"at": "2026-11-30", "event": "start", "session": 1}]


@pytest.mark.parametrize(
    "line", [b"[1]", b'{"event": 3}', b'{"event": "start", "session": "x"}', b"[" * 99_999]
)
def test_an_odd_event_is_unreadable_and_no_more(tmp_path: Path, line: bytes) -> None:
    (tmp_path / "events.jsonl").write_bytes(line + b"\n")
    assert [event["event"] for event in read_events(tmp_path)] == ["unreadable"]


def test_a_writer_sets_a_damaged_manifest_aside_and_keeps_the_rows(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with open_store(run) as store:
        write_plan(store, 2)
        store.append(row(0))
    damaged = (run / "manifest.json").read_bytes().replace(b'"rows": 2', b'"rows": 3')
    (run / "manifest.json").write_bytes(damaged)
    with pytest.raises(StoreError, match="is damaged"):
        read_manifest(run)
    with open_store(run) as store:
        assert store.manifest is None
        assert len(store.done().good) == 1
        write_plan(store, 2)
    assert (run / "set-aside" / "manifest.json").read_bytes() == damaged
    assert (read_manifest(run) or {})["rows"] == 2
