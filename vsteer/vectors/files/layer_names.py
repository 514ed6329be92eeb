"""Which layer a tensor's name means, in files of others: `direction.13`, `layer_13`, `blocks.13.out`, 13.

The names of one file differ in one number, which is the layer as vsteer counts it: the output of decoder
block L, counted from 0.
"""

import re
from collections.abc import Iterable, Mapping
from typing import TypeVar

from vsteer.errors import VectorError

Name = TypeVar("Name")
_ONE_NUMBER = re.compile(r"(?P<before>\D*?)(?P<layer>-?\d{1,9})(?P<after>\D*)", re.ASCII)
_HINT = (
    "name each layer's tensor alike but for its number, from direction.0 on, and leave the embeddings out; "
    "of a decoder choose one direction (key, index, layer)"
)


def by_layer(names: Iterable[Name], source: str) -> Mapping[int, Name]:
    """The names by their layers. A name without a layer, of another kind, or a layer twice is an error."""
    found: dict[int, Name] = {}
    kinds: dict[tuple[str, str], Name] = {}
    for name in names:
        text = str(name) if type(name) is int else name
        match = _ONE_NUMBER.fullmatch(text) if isinstance(text, str) else None
        if match is None:
            raise VectorError(f"{source} has the key {_shown(name)}, which names no layer", _HINT)
        kinds.setdefault((match["before"], match["after"]), name)
        if len(kinds) > 1:
            one, other = map(_shown, kinds.values())
            raise VectorError(f"{source} has {one} and {other}, which are not layers of one vector", _HINT)
        layer = int(match["layer"])
        if layer in found:
            raise VectorError(f"{source} has layer {layer} twice", "give each layer once")
        found[layer] = name
    return dict(sorted(found.items()))


def _shown(name: object) -> str:
    return repr(name[:60]) if isinstance(name, str) else repr(name)[:60]
