"""llama.cpp's and repeng's control vectors: a GGUF file with a float32 tensor `direction.N` for each layer.

What is relied on, as read in llama.cpp (common.cpp, llama-adapter.cpp, cvector-generator.cpp) and in repeng
(extract.py):
- `direction.N` is added to the output of the 0-based block N, so N is our layer (measured too, against
  Hugging Face with a hook at each layer, by the libllama of llama-cpp-python 0.2.60). llama.cpp refuses
  N = 0, any other tensor name, any other type than float32, and more than one dimension.
- `controlvector.layer_count` is the number of directions (llama.cpp writes int32, repeng uint32; neither
  reads it). `controlvector.model_hint` is llama.cpp's architecture, in repeng config.json's model_type;
  repeng doesn't read a file without one.
- Both skip keys that they don't know, so vsteer's own ride along.
"""

import json
import re
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

from vsteer.errors import UnsupportedError, VectorError
from vsteer.vectors.checks import as_direction
from vsteer.vectors.files import metadata
from vsteer.vectors.vector import Origin, SteeringVector

_ARCHITECTURE = "controlvector"
_HINT = "controlvector.model_hint"
_COUNT = "controlvector.layer_count"
_KEY = "vsteer"
_STREAM_NORMS = "vsteer.stream_norms"
_TENSOR = re.compile(r"direction\.(0|[1-9]\d*)")


def write(vector: SteeringVector, path: Path) -> None:
    """Every layer but 0, which the format doesn't have. The caller warns of that (`files.save`)."""
    gguf = _gguf(path)
    layers = [layer for layer in vector.layers if layer > 0]
    norms = {layer: norm for layer, norm in sorted(vector.stream_norms.items()) if layer > 0}
    with closing(gguf.GGUFWriter(path, _ARCHITECTURE)) as writer:
        writer.add_string(_HINT, vector.origin.model_type or "unknown")
        writer.add_uint32(_COUNT, len(layers))
        writer.add_string(_KEY, metadata.to_text(vector.name, vector.origin))
        writer.add_string(_STREAM_NORMS, json.dumps(norms))
        for layer in layers:
            # The writer takes the memory as it lies, so a view must be made dense first.
            direction = np.ascontiguousarray(vector.directions[layer], np.float32)
            writer.add_tensor(f"direction.{layer}", direction)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()


def read(path: Path) -> SteeringVector:
    source = str(path)
    gguf = _gguf(path)
    try:
        reader = gguf.GGUFReader(path)
        fields = {key: reader.get_field(key).contents() for key in reader.fields if _is_wanted(key)}
    except OSError:
        raise
    except Exception as error:  # the reader trips over a bad file wherever its numbers lead it
        raise VectorError(
            f"{source} is not a whole GGUF file: {error}", "it may have been cut short; copy it again"
        ) from error
    if fields.get("general.architecture") != _ARCHITECTURE:
        raise VectorError(
            f"{source} is a GGUF file of {fields.get('general.architecture')!r}, not of a control vector",
            "name the control vector's file, not a model's",
        )
    directions = {}
    for tensor in reader.tensors:
        match = _TENSOR.fullmatch(tensor.name)
        if match is None or match[1] == "0":
            raise VectorError(
                f"{source}: unexpected tensor {tensor.name!r}",
                "a control vector has direction.1, direction.2, ...; the format has no layer 0",
            )
        layer = int(match[1])
        if tensor.tensor_type.name not in {"F32", "F16", "F64"}:
            raise VectorError(
                f"{source}: layer {layer} holds {tensor.tensor_type.name} values",
                "a control vector is made of floating-point values, in llama.cpp of float32",
            )
        directions[layer] = as_direction(tensor.data, layer, source)
    directions = dict(sorted(directions.items()))
    if _KEY not in fields:
        origin = Origin(model_type=_text(fields, _HINT, source), norm="")
        return SteeringVector(path.stem, directions, origin=origin)
    name, origin = metadata.from_text(_text(fields, _KEY, source), source)
    stream_norms = _stream_norms(_text(fields, _STREAM_NORMS, source), source)
    return SteeringVector(name, directions, stream_norms, origin)


def _is_wanted(key: str) -> bool:
    return key in {"general.architecture", _HINT, _KEY, _STREAM_NORMS}


def _text(fields: dict[str, object], key: str, source: str) -> str:
    value = fields.get(key, "")
    if not isinstance(value, str):
        raise VectorError(f"{source}: {key} is {value!r}, not text", "write it again from where it came")
    return value


def _stream_norms(text: str, source: str) -> dict[int, float]:
    try:
        return {int(layer): float(norm) for layer, norm in json.loads(text).items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise VectorError(
            f"{source}: its stream norms can't be read: {error!r}", "write it again from where it came"
        ) from error


def _gguf(path: Path) -> Any:
    try:
        import gguf
    except ImportError as error:
        raise UnsupportedError(
            f"{path} needs the gguf package, which isn't installed", "pip install gguf"
        ) from error
    return gguf
