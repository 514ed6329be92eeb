"""vsteer's own form: a safetensors file with `direction.L` (float32) and `stream_norm.L` (float64)."""

import re
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as to_bytes

from vsteer.errors import VectorError
from vsteer.vectors.checks import as_direction
from vsteer.vectors.files import metadata
from vsteer.vectors.vector import SteeringVector

_KEY = "vsteer"
_TENSOR = re.compile(r"(direction|stream_norm)\.(0|[1-9]\d*)")
_TYPES = {"direction": "F32", "stream_norm": "F64"}


def write(vector: SteeringVector, path: Path) -> None:
    # safetensors writes an array's memory as it lies, so a view must be made dense first.
    tensors = {
        f"direction.{layer}": np.ascontiguousarray(direction, np.float32)
        for layer, direction in sorted(vector.directions.items())
    } | {
        f"stream_norm.{layer}": np.array([norm], np.float64)
        for layer, norm in sorted(vector.stream_norms.items())
    }
    path.write_bytes(to_bytes(tensors, {_KEY: metadata.to_text(vector.name, vector.origin)}))


def read(path: Path) -> SteeringVector:
    source = str(path)
    directions, stream_norms = {}, {}
    try:
        with safe_open(path, framework="numpy") as file:
            text = (file.metadata() or {}).get(_KEY)
            if text is None:
                raise VectorError(
                    f"{source} is a safetensors file, but not a vector of vsteer",
                    "a vector has vsteer's metadata and a tensor direction.L for each layer",
                )
            for key in file.keys():  # noqa: SIM118  (safe_open is no mapping)
                match = _TENSOR.fullmatch(key)
                kind = match[1] if match else ""
                dtype = file.get_slice(key).get_dtype()
                if match is None or dtype != _TYPES[kind]:
                    raise VectorError(
                        f"{source}: unexpected tensor {key!r} in {dtype}",
                        "a vector has direction.L in F32 and stream_norm.L in F64, and nothing else",
                    )
                layer = int(match[2])
                if kind == "direction":
                    directions[layer] = as_direction(file.get_tensor(key), layer, source)
                else:
                    stream_norms[layer] = float(file.get_tensor(key).item())
    except (SafetensorError, ValueError) as error:
        raise VectorError(
            f"{source} is not a whole safetensors file: {error}", "it may have been cut short; copy it again"
        ) from error
    name, origin = metadata.from_text(text, source)
    return SteeringVector(name, dict(sorted(directions.items())), dict(sorted(stream_norms.items())), origin)
