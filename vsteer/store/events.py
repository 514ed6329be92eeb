"""events.jsonl: what happened to a run, one JSON object a line, oldest first."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from vsteer.store.files import disk_errors

EVENTS = "events.jsonl"
Event = dict[str, Any]


def append_event(folder: Path, event: str, **fields: Any) -> Event:
    """Add a line, whole or not at all, and make it durable."""
    entry = {"at": datetime.now(UTC).isoformat(timespec="milliseconds"), "event": event, **fields}
    line = json.dumps(entry, ensure_ascii=False).encode() + b"\n"
    path = folder / EVENTS
    with disk_errors(f"writing {path}"):
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
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
            lines = path.read_bytes().split(b"\n")[:-1]
        except FileNotFoundError:
            return []
    return [_parsed(number, line) for number, line in enumerate(lines, start=1)]


def _parsed(number: int, line: bytes) -> Event:
    try:
        entry = json.loads(line)
    except ValueError:
        entry = None
    if isinstance(entry, dict) and isinstance(entry.get("event"), str):
        return entry
    return {"event": "unreadable", "line": number, "text": line.decode(errors="replace")[:200]}


def end_torn_line(folder: Path) -> None:
    """End a last line that a kill cut, so that the next event begins on its own."""
    path = folder / EVENTS
    with disk_errors(f"writing {path}"):
        if path.exists() and (content := path.read_bytes()) and not content.endswith(b"\n"):
            with path.open("ab") as file:
                file.write(b"\n")
