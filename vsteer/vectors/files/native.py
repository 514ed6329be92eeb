"""Safetensors: vsteer's own form, and others' files of one tensor a layer.

vsteer's has `direction.L` (float32), `stream_norm.L` and `deviation.L` (float64). Others' have one tensor a
layer, under names that differ in one number, such as repeng's `direction.L` (`layer_names.py`).
"""

import re
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, deserialize
from safetensors.numpy import save as to_bytes

from vsteer.errors import VectorError
from vsteer.files import parse_json
from vsteer.store.seal import PLACE, broken, seal
from vsteer.vectors.checks import as_direction
from vsteer.vectors.files import metadata
from vsteer.vectors.files.layer_names import by_layer
from vsteer.vectors.vector import Origin, SteeringVector

# A header of 10,000 layers has 1 MB.
MAX_HEADER = 2**22

_KEY = "vsteer"
_deserialize: Any = deserialize  # it has no types
_TENSOR = re.compile(r"(direction|stream_norm|deviation)\.(0|[1-9]\d{0,8})", re.ASCII)
_TYPES = {"direction": "F32", "stream_norm": "F64", "deviation": "F64"}
FLOATS = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}


def write(vector: SteeringVector, path: Path) -> None:
    # safetensors writes an array's memory as it lies, so a view must be made dense first.
    tensors: dict[str, NDArray[Any]] = {
        f"direction.{layer}": np.ascontiguousarray(direction, np.float32)
        for layer, direction in sorted(vector.directions.items())
    }
    for kind, numbers in (("stream_norm", vector.stream_norms), ("deviation", vector.deviations)):
        for layer, number in sorted(numbers.items()):
            tensors[f"{kind}.{layer}"] = np.array([number], np.float64)
    text = metadata.to_text(vector.name, vector.origin, seal=PLACE)
    path.write_bytes(to_bytes(tensors, {_KEY: text}))
    seal(path)


def read(path: Path, content: bytes) -> SteeringVector:
    source = str(path)
    if broken(path):
        raise VectorError(
            f"{source} is damaged: its bytes are not those that were written",
            "copy it again, or make it anew; who changes one on purpose leaves out `seal` in its metadata",
        )
    size = int.from_bytes(content[:8], "little")
    try:
        if size > MAX_HEADER:
            raise ValueError(f"its header has {size:,} bytes, and a vector's at most {MAX_HEADER:,}")
        header = parse_json(content[8 : 8 + size])
        # it checks every tensor's place against the file's size
        tensors: dict[str, Any] = dict(_deserialize(content))
        text = header.get("__metadata__", {}).get(_KEY)
    except (SafetensorError, ValueError) as error:
        raise VectorError(
            f"{source} is not a whole safetensors file: {str(error)[:200]}",
            "it may have been cut short; copy it again",
        ) from error
    if text is None:
        return _anothers(path, tensors)
    directions = {}
    numbers: dict[str, dict[int, float]] = {"stream_norm": {}, "deviation": {}}
    for key, tensor in tensors.items():
        match = _TENSOR.fullmatch(key)
        kind = match[1] if match else ""
        if match is None or tensor["dtype"] != _TYPES[kind]:
            raise VectorError(
                f"{source}: unexpected tensor {key[:60]!r} in {tensor['dtype']}",
                "a vector has direction.L in F32, stream_norm.L and deviation.L in F64, and nothing else",
            )
        layer, values = int(match[2]), _values(tensor)
        if kind == "direction":
            directions[layer] = as_direction(values, layer, source)
        elif values.size == 1:
            numbers[kind][layer] = float(values.item())
        else:
            raise VectorError(
                f"{source}: the {kind.replace('_', ' ')} of layer {layer} is not one number",
                "write it again from where it came",
            )
    name, origin = metadata.from_text(text, source)
    norms, deviations = (dict(sorted(of_layer.items())) for of_layer in numbers.values())
    return SteeringVector(name, dict(sorted(directions.items())), norms, origin, deviations)


def _anothers(path: Path, tensors: dict[str, Any]) -> SteeringVector:
    """One tensor a layer, as others keep vectors; its norm isn't known."""
    source = f"{path}, a safetensors file that is not vsteer's,"
    directions = {}
    for layer, key in by_layer(sorted(tensors), source).items():
        if (dtype := tensors[key]["dtype"]) not in FLOATS:
            raise VectorError(
                f"{path}: layer {layer} holds {dtype} values", "a direction is made of floating-point values"
            )
        directions[layer] = as_direction(_values(tensors[key]), layer, str(path))
    return SteeringVector(path.stem, directions, origin=Origin(norm=""))


def _values(tensor: dict[str, Any]) -> NDArray[Any]:
    return as_values(tensor["data"], tensor["dtype"]).reshape(tensor["shape"])


def as_values(content: bytes, dtype: str) -> NDArray[Any]:
    """bfloat16 becomes float32, which numpy has."""
    values: NDArray[Any] = np.frombuffer(content, FLOATS[dtype])
    if dtype == "BF16":
        values = (values.astype(np.uint32) << 16).view(np.float32)
    return values
