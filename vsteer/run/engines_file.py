"""engines.json: how the engines of a run fare that has several, written anew every few seconds.

`vsteer status` reads it, from another process or after the run.
"""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from vsteer.files import parse_json, read_regular, written_whole
from vsteer.protocol import Engine, EngineStanding

ENGINES = "engines.json"
SECONDS = 5.0
_MOST_BYTES = 2**24


@contextlib.contextmanager
def engines_shown(folder: Path, engine: Engine) -> Iterator[None]:
    """Keep the file up to date from a thread; nothing for an engine by itself."""
    over = threading.Event()

    def keep() -> None:
        while True:
            last = over.wait(SECONDS)
            # a run does not end where this can't be written
            with contextlib.suppress(OSError):
                write(folder, engine.engines())
            if last:
                return

    if not engine.engines():
        yield
        return
    thread = threading.Thread(target=keep, name="vsteer-engines", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def write(folder: Path, engines: list[EngineStanding]) -> None:
    at = datetime.now(UTC).isoformat(timespec="seconds")
    with written_whole(folder / ENGINES) as temporary:
        temporary.write_text(json.dumps({"at": at, "engines": [asdict(one) for one in engines]}))


def read(folder: Path) -> tuple[str, list[EngineStanding]]:
    """When the engines were last seen, and how; nothing for an engine by itself or a damaged file."""
    try:
        found: Any = parse_json(read_regular(folder / ENGINES, _MOST_BYTES))
        return str(found["at"]), [EngineStanding(**one) for one in found["engines"]]
    except (OSError, ValueError, KeyError, TypeError):
        return "", []
