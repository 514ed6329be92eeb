"""A run's manifest and events that are damaged: one message, or an event that says so; never a traceback."""

from __future__ import annotations

import json
import os
import random
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.hostile import Outcome, mutated, outcome, summary
from tests.store.makers import row, write_plan
from vsteer.store.events import EVENTS, append_event, read_events
from vsteer.store.manifest import MANIFEST, read_manifest
from vsteer.store.status import status
from vsteer.store.store import open_store


def damaged(folder: Path, content: bytes) -> str:
    (folder / MANIFEST).write_bytes(content)
    found = outcome(partial(read_manifest, folder))
    assert found.message
    return found.message


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[" * 100_000,
        b'{"schema_version":' * 100_000,
        b'{"schema_version": 1, "rows": ' + b"9" * 10_000 + b"}",
        b'{"schema_version": 1, "rows": 1e999}',
        b'{"schema_version": 1, "rows": NaN}',
        rb'{"schema_version": 1, "rows": 3, "name": "\ud800"}',
        b'{"schema_version": 1, "rows": 3, "name": "\xff"}',
        b'["schema_version", "rows"]',
        b'"schema_version"',
        b"null",
    ],
    ids=range(11),
)
def test_manifests_that_are_none(tmp_path: Path, content: bytes) -> None:
    assert "is damaged: it is not a manifest of vsteer's" in damaged(tmp_path, content)


@pytest.mark.parametrize(
    "changed",
    [
        {"rows": -1},
        {"rows": True},
        {"rows": "3"},
        {"rows": 2**63},
        {"schema_version": "1"},
        {"day": "yesterday"},
        {"day": 3},
        {"day": None},
        {"models": {"a": 1}},
        {"hardware": ["a"]},
        {"vsteer_version": 3},
    ],
)
def test_values_that_are_none(tmp_path: Path, changed: dict[str, Any]) -> None:
    whole = {"schema_version": 1, "rows": 3, "day": "2026-11-30", "models": [], "hardware": {}}
    (tmp_path / MANIFEST).write_text(json.dumps(whole))
    assert read_manifest(tmp_path) == whole
    assert "is damaged" in damaged(tmp_path, json.dumps(whole | changed).encode())


def test_events_that_are_none_are_shown_as_such(tmp_path: Path) -> None:
    append_event(tmp_path, "started", session=4)
    lines = [
        b"[" * 100_000,
        rb'{"event": "started", "note": "\ud800"}',
        b'{"event": "started", "session": "5"}',
        b'{"event": "started", "session": null}',
        b'{"event": "started", "session": 1e400}',
        b'{"event": "started", "session": -7}',
        b'{"event": "started", "session": 99999999999999999999}',
        b'{"event": "started", "at": ["now"]}',
        b'{"event": ["started"]}',
        b"\xff\xfe",
        b"",
    ]
    with (tmp_path / EVENTS).open("ab") as file:
        file.write(b"\n".join(lines) + b"\n")
    append_event(tmp_path, "ended", session=4)
    found = read_events(tmp_path)
    assert [event["event"] for event in found] == ["started", *["unreadable"] * len(lines), "ended"]
    assert [event["line"] for event in found[1:-1]] == list(range(2, 2 + len(lines)))
    assert max(event.get("session", 0) for event in found) == 4
    json.dumps(found, ensure_ascii=False).encode()


def test_millions_of_unreadable_lines_fill_no_memory(tmp_path: Path) -> None:
    (tmp_path / EVENTS).write_bytes(b"1\n" * 200_000 + b'{"event": "ended"}\n')
    found = read_events(tmp_path)
    assert len(found) == 1001
    assert found[-1] == {"event": "ended"}


@pytest.mark.parametrize("name", [MANIFEST, EVENTS])
@pytest.mark.parametrize("kind", ["pipe", "giant"])
def test_what_is_no_file_hangs_nothing(tmp_path: Path, name: str, kind: str) -> None:
    if kind == "pipe":
        os.mkfifo(tmp_path / name)
    else:
        with (tmp_path / name).open("wb") as file:
            file.truncate(2**40)
    read = read_manifest if name == MANIFEST else read_events
    assert f"reading {tmp_path / name} failed: it " in outcome(partial(read, tmp_path)).message


@pytest.mark.parametrize("count", [20, pytest.param(300, marks=pytest.mark.long)])
def test_mutated_notes(tmp_path: Path, count: int) -> None:
    with open_store(tmp_path) as store:
        write_plan(store, 1)
        store.append(row(0))
    r, found = random.Random(21), list[Outcome]()
    for _ in range(count):
        path = tmp_path / r.choice([MANIFEST, EVENTS])
        whole = path.read_bytes()
        path.write_bytes(mutated(whole, r))
        found.append(outcome(partial(status, tmp_path)))
        path.write_bytes(whole)
    summary(f"{count} manifests and files of events", found)
