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

It is read here, not by the gguf package, whose reader takes gigabytes for what a file of 100 bytes claims:
each number of the file is held against the file's size before anything is made of it.
"""

import json
import re
import struct
from contextlib import closing
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vsteer.errors import UnsupportedError, VectorError
from vsteer.files import parse_json
from vsteer.vectors.checks import as_direction
from vsteer.vectors.files import metadata
from vsteer.vectors.vector import Origin, SteeringVector

_ARCHITECTURE = "controlvector"
_HINT = "controlvector.model_hint"
_COUNT = "controlvector.layer_count"
_KEY = "vsteer"
_STREAM_NORMS = "vsteer.stream_norms"
_TENSOR = re.compile(r"direction\.(0|[1-9]\d{0,8})", re.ASCII)
# The format's numbers for types: of a key's value, and of a tensor's.
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_TEXT, _ARRAY = 8, 9
_FLOATS = {0: "<f4", 1: "<f2", 28: "<f8"}
_MOST = 20_000  # keys, tensors, texts of a list


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


def read(path: Path, content: bytes) -> SteeringVector:
    source = str(path)
    try:
        fields, tensors = _Content(content).parts()
    except (ValueError, struct.error) as error:
        raise VectorError(
            f"{source} is not a whole GGUF file: {str(error)[:200]}",
            "it may have been cut short; copy it again",
        ) from error
    if fields.get("general.architecture") != _ARCHITECTURE:
        found = str(fields.get("general.architecture"))[:60]
        raise VectorError(
            f"{source} is a GGUF file of {found!r}, not of a control vector",
            "name the control vector's file, not a model's",
        )
    directions = {}
    for name, kind, values in tensors:
        match = _TENSOR.fullmatch(name)
        if match is None or match[1] == "0":
            raise VectorError(
                f"{source}: unexpected tensor {name[:60]!r}",
                "a control vector has direction.1, direction.2, ...; the format has no layer 0",
            )
        layer = int(match[1])
        if values is None:
            raise VectorError(
                f"{source}: layer {layer} holds values of GGUF's type {kind}",
                "a control vector is made of floating-point values, in llama.cpp of float32",
            )
        if layer in directions:
            raise VectorError(f"{source} has layer {layer} twice", "give each layer once")
        directions[layer] = as_direction(values, layer, source)
    directions = dict(sorted(directions.items()))
    if _KEY not in fields:
        origin = Origin(model_type=_text(fields, _HINT, source), norm="")
        return SteeringVector(path.stem, directions, origin=origin)
    name, origin = metadata.from_text(_text(fields, _KEY, source), source)
    stream_norms = _stream_norms(_text(fields, _STREAM_NORMS, source), source)
    return SteeringVector(name, directions, stream_norms, origin)


class _Content:
    """The format, from its first byte on: header, keys with values, tensors' places, aligned values."""

    def __init__(self, content: bytes) -> None:
        self.content, self.at = content, 0

    def parts(self) -> tuple[dict[str, object], list[tuple[str, int, NDArray[Any] | None]]]:
        """The values by key; and each tensor's name, type and values, None for a type that is no float."""
        _magic, version, tensors, keys = self._take("<4sIQQ")
        if version not in {2, 3}:
            raise ValueError(f"it is of version {version}, and 2 and 3 are known")
        if max(tensors, keys) > _MOST:
            raise ValueError(f"it claims {max(tensors, keys):,} parts, more than a control vector has")
        fields = {self._string(): self._value(*self._take("<I")) for _ in range(keys)}
        places = [self._place() for _ in range(tensors)]
        align = fields.get("general.alignment", 32)
        if not isinstance(align, int) or not 0 < align <= 2**16:
            raise ValueError("its alignment is no number of bytes")
        start = -(-self.at // align) * align
        tensors_with_values = [
            (name, kind, self._values(start + offset, shape, kind)) for name, kind, shape, offset in places
        ]
        return fields, tensors_with_values

    def _take(self, layout: str) -> tuple[Any, ...]:
        taken = struct.unpack_from(layout, self.content, self.at)
        self.at += struct.calcsize(layout)
        return taken

    def _skip(self, size: int) -> None:
        if size > len(self.content) - self.at:
            raise ValueError(f"it claims {size:,} bytes where {len(self.content) - self.at:,} are left")
        self.at += size

    def _string(self) -> str:
        (size,) = self._take("<Q")
        self._skip(size)
        return self.content[self.at - size : self.at].decode()

    def _value(self, kind: int) -> object:
        """A text or a number; None for a list, which no control vector needs."""
        if kind == _TEXT:
            return self._string()
        if kind != _ARRAY:
            return self._take(f"<{_scalar(kind)}")[0]
        inner, count = self._take("<IQ")
        if inner != _TEXT:
            self._skip(count * struct.calcsize(f"<{_scalar(inner)}"))
        elif count > _MOST:
            raise ValueError(f"it claims a list of {count:,} texts")
        else:
            for _ in range(count):
                self._string()
        return None

    def _place(self) -> tuple[str, int, tuple[int, ...], int]:
        name, (count,) = self._string(), self._take("<I")
        if count > 4:
            raise ValueError(f"a tensor has {count} dimensions")
        shape = self._take(f"<{count}Q")
        kind, offset = self._take("<IQ")
        return name, kind, shape[::-1], offset

    def _values(self, start: int, shape: tuple[int, ...], kind: int) -> NDArray[Any] | None:
        if kind not in _FLOATS:
            return None
        size = prod(shape) * np.dtype(_FLOATS[kind]).itemsize
        self.at = min(start, len(self.content))
        self._skip(size)
        return np.frombuffer(self.content[start : start + size], _FLOATS[kind]).reshape(shape)


def _scalar(kind: int) -> str:
    if kind not in _SCALARS:
        raise ValueError(f"it has a value of the unknown type {kind}")
    return _SCALARS[kind]


def _text(fields: dict[str, object], key: str, source: str) -> str:
    value = fields.get(key, "")
    if not isinstance(value, str):
        raise VectorError(
            f"{source}: {key} is {str(value)[:60]}, not text", "write it again from where it came"
        )
    return value


def _stream_norms(text: str, source: str) -> dict[int, float]:
    try:
        return {int(layer): float(norm) for layer, norm in parse_json(text).items()}
    except (ValueError, TypeError, AttributeError, OverflowError) as error:
        raise VectorError(
            f"{source}: its stream norms can't be read: {repr(error)[:200]}",
            "write it again from where it came",
        ) from error


def _gguf(path: Path) -> Any:
    try:
        import gguf
    except ImportError as error:
        raise UnsupportedError(
            f"writing {path} needs the gguf package, which isn't installed", "pip install gguf"
        ) from error
    return gguf
