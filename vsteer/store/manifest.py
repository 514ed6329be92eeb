"""manifest.json: what a run is and was made with, as its caller gives it, and how many rows it plans.

Its last key is the checksum of all that stands before it.
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Mapping
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

from vsteer.errors import StoreError
from vsteer.files import parse_json, read_regular
from vsteer.store.files import disk_errors, write_file
from vsteer.store.schema import SCHEMA_VERSION

MANIFEST = "manifest.json"
SEAL, SEALED = b',\n  "crc32": "%08x"\n}', re.compile(rb'(.*),\n  "crc32": "([0-9a-f]{8})"\n}', re.DOTALL)
Manifest = dict[str, Any]
_MAX_BYTES = 2**26
# What readers rely on, where it is there.
_KINDS = {"day": str, "grid": dict, "hardware": dict, "models": list, "vsteer_version": str}


class DamagedManifest(StoreError):
    """The manifest isn't as it was written. A run writes it anew; nothing else knows what was planned."""


def write_manifest(folder: Path, manifest: Mapping[str, Any], counts: Mapping[str, int]) -> Manifest:
    """Write the caller's keys after the store's own: schema_version, written_at and the counts."""
    own = {
        "schema_version": SCHEMA_VERSION,
        "written_at": datetime.now(UTC).isoformat(timespec="seconds"),
        **counts,
    }
    if taken := own.keys() & manifest.keys():
        raise ValueError(f"the store itself writes {', '.join(sorted(taken))} into the manifest")
    entries = {**own, **manifest}
    text = json.dumps(entries, indent=2, ensure_ascii=False, allow_nan=False).encode().removesuffix(b"\n}")
    write_file(folder / MANIFEST, text + SEAL % zlib.crc32(text))
    return entries


def read_manifest(folder: Path) -> Manifest | None:
    """The manifest, or None where none was ever written."""
    path = folder / MANIFEST
    with disk_errors(f"reading {path}"):
        try:
            text = read_regular(path, _MAX_BYTES)
        except FileNotFoundError:
            return None
    sealed = SEALED.fullmatch(text)
    if sealed and zlib.crc32(sealed[1]) != int(sealed[2], 16):
        raise _damaged(path)
    try:
        manifest = parse_json(text)
        version = manifest["schema_version"]
        rows = manifest["rows"]
        kinds = {name: type(manifest[name]) for name in _KINDS if name in manifest}
        date.fromisoformat(manifest.get("day") or "2000-01-01")
    except (ValueError, TypeError, KeyError) as error:
        raise _damaged(path) from error
    if type(version) is not int or type(rows) is not int or not 0 <= rows < 2**63:
        raise _damaged(path)
    if any(kind is not _KINDS[name] for name, kind in kinds.items()):
        raise _damaged(path)
    if version > SCHEMA_VERSION:
        raise StoreError(
            f"{path} was written by a newer vsteer: its schema is version {version}, and this vsteer knows "
            f"up to {SCHEMA_VERSION}",
            hint="use that newer vsteer for this run",
        )
    assert isinstance(manifest, dict)
    manifest.pop("crc32", None)
    return manifest


def _damaged(path: Path) -> StoreError:
    return DamagedManifest(
        f"{path} is damaged: it is not a manifest of vsteer's",
        hint="give the same `vsteer run` again: it sets it aside and writes a new one, and rows are kept",
    )
