"""What a file records about its vector beside the numbers: name, origin, what a layer is. One JSON text.

It is one text rather than a key for each field: safetensors writes its keys in random order, and equal
vectors must make equal files.
"""

import json
from dataclasses import asdict, fields
from reprlib import repr as _short

from vsteer.errors import VectorError
from vsteer.files import parse_json
from vsteer.packages import __version__
from vsteer.vectors.vector import Origin

FORMAT = "vsteer vector"
VERSION = 1
_LONGEST_NORM = 60
LAYERS = "layer L is the output of decoder block L, counted from 0"


def to_text(name: str, origin: Origin, **more: str) -> str:
    return json.dumps(
        {
            "format": FORMAT,
            "format_version": VERSION,
            "vsteer_version": __version__,
            "layers": LAYERS,
            "name": name,
            "origin": asdict(origin),
            **more,
        }
    )


def from_text(text: str, source: str) -> tuple[str, Origin]:
    """Name and origin. A field that this version doesn't know is left out; one that is missing is unknown."""
    try:
        content = parse_json(text)
        version, name, origin = content["format_version"], content["name"], content["origin"]
        known = {field.name: origin[field.name] for field in fields(Origin) if field.name in origin}
    except (ValueError, TypeError, KeyError) as error:
        raise VectorError(
            f"{source}: its metadata can't be read: {repr(error)[:200]}", "write it again from where it came"
        ) from error
    if version != VERSION:
        raise VectorError(
            f"{source} has format version {_short(version)}, this vsteer reads {VERSION}",
            "use a newer vsteer",
        )
    for key, value in known.items():
        empty = getattr(Origin(), key)
        if isinstance(empty, tuple) and isinstance(value, list) and all(isinstance(v, str) for v in value):
            known[key] = tuple(value)
        elif type(value) is not type(empty):
            raise VectorError(
                f"{source}: its metadata says {key} is {_short(value)}", "write it again from where it came"
            )
    # it stands in every message about the vector's size
    if len(str(known.get("norm", ""))) > _LONGEST_NORM:
        raise VectorError(f"{source}: its metadata names no norm", "write it again from where it came")
    if known.get("where", "") not in ("", "attention", "layer"):
        raise VectorError(
            f"{source}: its metadata says where is {_short(known['where'])}",
            "write it again from where it came",
        )
    if not isinstance(name, str):
        raise VectorError(
            f"{source}: its metadata says its name is {_short(name)}", "write it again from where it came"
        )
    return name, Origin(**known)
