"""events.jsonl: what happened to a run, one JSON object a line, oldest first; each ends in its checksum."""

from __future__ import annotations

import json
import os
import re
import zlib
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from vsteer.files import open_regular, parse_json, read_regular
from vsteer.store.files import disk_errors, refuse_link

EVENTS = "events.jsonl"
# Stands for a line that is damaged.
UNREADABLE = "unreadable"
SEAL, SEALED = b', "crc32": "%08x"}', re.compile(rb'(.*), "crc32": "([0-9a-f]{8})"}', re.DOTALL)
Event = dict[str, Any]
# Some 100 events a start are some kB.
_MAX_BYTES, _MOST_UNREADABLE = 2**26, 1000


def append_event(folder: Path, event: str, **fields: Any) -> Event:
    """Add a line, whole or not at all, and make it durable."""
    entry = {"at": datetime.now(UTC).isoformat(timespec="milliseconds"), "event": event, **fields}
    text = json.dumps(entry, ensure_ascii=False).encode().removesuffix(b"}")
    line = text + SEAL % zlib.crc32(text) + b"\n"
    path = folder / EVENTS
    with disk_errors(f"writing {path}"):
        refuse_link(path)
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NONBLOCK | os.O_NOFOLLOW
        handle = os.open(path, flags, 0o644)
        try:
            before = os.fstat(handle).st_size
            try:
                while line:
                    line = line[os.write(handle, line) :]
                os.fsync(handle)
            except OSError:
                os.ftruncate(handle, before)
                raise
        finally:
            os.close(handle)
    return entry


def read_events(folder: Path) -> list[Event]:
    """Every event. A last line without an end doesn't count: it is being written, or a kill cut it."""
    path = folder / EVENTS
    with disk_errors(f"reading {path}"):
        try:
            lines = read_regular(path, _MAX_BYTES).split(b"\n")[:-1]
        except FileNotFoundError:
            return []
    found, unreadable = list[Event](), 0
    for number, line in enumerate(lines, start=1):
        event = _parsed(line)
        if event is None:
            unreadable += 1
            if unreadable > _MOST_UNREADABLE:
                continue
            event = {"event": UNREADABLE, "line": number, "text": line[:800].decode(errors="replace")[:200]}
        found.append(event)
    return found


def _parsed(line: bytes) -> Event | None:
    """The event, if its bytes are those written, and all that readers rely on is what it must be."""
    sealed = SEALED.fullmatch(line)
    if sealed and zlib.crc32(sealed[1]) != int(sealed[2], 16):
        return None
    try:
        entry = parse_json(line) if line.startswith(b"{") else None
    except ValueError:
        return None
    if not isinstance(entry, dict) or not isinstance(entry.get("event"), str):
        return None
    entry.pop("crc32", None)
    session, at = entry.get("session", 0), entry.get("at", "")
    return entry if type(session) is int and 0 <= session < 2**31 and isinstance(at, str) else None


def is_torn(folder: Path) -> bool:
    """Whether the last line has no end: it is being written, or a kill cut it, or it is damaged."""
    path = folder / EVENTS
    with disk_errors(f"reading {path}"):
        try:
            with open_regular(path) as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - 1))
                return file.read() not in (b"", b"\n")
        except FileNotFoundError:
            return False


def end_torn_line(folder: Path) -> None:
    """End a last line that a kill cut, so that the next event begins on its own."""
    path = folder / EVENTS
    refuse_link(path)
    if is_torn(folder):
        with disk_errors(f"writing {path}"), path.open("ab") as end:
            end.write(b"\n")
