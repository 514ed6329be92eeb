"""What torch.save wrote, without torch and without running a pickle: containers, numbers, texts and tensors.

A pickle is a program for a small machine. This one knows the instructions that torch uses for tensors in
dictionaries and lists, and none that could call or import anything: the names of functions and classes stay
names. A tensor is a view of a storage, and is checked against the storage's bytes before it becomes an array.
"""

from __future__ import annotations

import pickletools
import struct
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

# A pickle of 10,000 layers has about 1 MB.
_MAX_PICKLE, _MAX_ENTRIES = 2**21, 20_000
_MAGIC = 0x1950A86A20F9469CFC6C
_BFLOAT16 = "bfloat16"
_ZIP_FAULTS = (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, OverflowError)
_TYPES = {
    "FloatStorage": "<f4", "DoubleStorage": "<f8", "HalfStorage": "<f2", "BFloat16Storage": _BFLOAT16,
    "LongStorage": "<i8", "IntStorage": "<i4", "ShortStorage": "<i2", "CharStorage": "i1",
    "ByteStorage": "u1", "BoolStorage": "?", "ComplexFloatStorage": "<c8", "ComplexDoubleStorage": "<c16",
}  # fmt: skip


class MoreThanTensorsError(ValueError):
    """The pickle names something that isn't torch's, so that reading it whole would run code."""


@dataclass(frozen=True)
class Tensor:
    """A tensor as the file describes it: which storage's values, from where, in which steps."""

    dtype: str
    key: str
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    storage: Callable[[str], bytes]

    def array(self) -> NDArray[Any]:
        """Its values. Those of bfloat16 become float32, which numpy has."""
        kind = np.dtype("<u2" if self.dtype == _BFLOAT16 else self.dtype)
        content = self.storage(self.key)
        stored = np.frombuffer(content[: len(content) // kind.itemsize * kind.itemsize], kind)
        count = prod(list(self.shape))
        last = sum((size - 1) * step for size, step in zip(self.shape, self.strides, strict=True))
        if count > len(stored) or (count and self.offset + last >= len(stored)):
            raise ValueError(f"a tensor of {count:,} values has {len(stored):,} stored; save tensor.clone()")
        steps = [step * kind.itemsize for step in self.strides]
        values = np.lib.stride_tricks.as_strided(stored[self.offset :], self.shape, steps)
        if self.dtype == _BFLOAT16:
            return (values.astype(np.uint32) << 16).view(np.float32)
        return np.array(values)


@dataclass(frozen=True)
class Unknown:
    """Something of torch's that is no plain tensor: sparse, quantised, or without content."""

    name: str


def read_torch(content: bytes) -> object:
    """The one object in the file. Whatever is wrong is a ValueError."""
    try:
        return _zipped(content) if content.startswith(b"PK") else _one_after_another(content)
    except _ZIP_FAULTS as error:
        raise ValueError(f"it is no whole zip file: {error}") from error
    except (IndexError, KeyError, TypeError, AttributeError, struct.error) as error:
        raise ValueError("its pickle is damaged") from error


def _zipped(content: bytes) -> object:
    if content.count(b"PK\1\2") > _MAX_ENTRIES:
        raise ValueError("it holds more files than a vector has layers")
    archive = zipfile.ZipFile(BytesIO(content))
    entries = {entry.filename: entry for entry in archive.infolist()}
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries.values()):
        raise ValueError("it is compressed, and torch.save compresses nothing")
    # Entries may share their bytes, which torch's never do.
    if sum(entry.file_size for entry in entries.values()) > len(content):
        raise ValueError("its files claim more bytes than it has")
    pickles = [name for name in entries if name.endswith("/data.pkl")]
    if len(pickles) != 1 or entries[pickles[0]].file_size > _MAX_PICKLE:
        raise ValueError("it is a zip file without a vector's data.pkl")
    root = pickles[0].removesuffix("data.pkl")
    if f"{root}byteorder" in entries and archive.read(f"{root}byteorder") != b"little":
        raise ValueError("its numbers are big-endian; save it on another machine")
    pickled = archive.read(pickles[0])
    return _unpickled(BytesIO(pickled), lambda key: _stored(archive, f"{root}data/{key}"))


def _stored(archive: zipfile.ZipFile, name: str) -> bytes:
    try:
        return archive.read(name)
    except _ZIP_FAULTS as error:
        raise ValueError(f"its zip file is damaged: {error}") from error


def _one_after_another(content: bytes) -> object:
    """The format before torch 1.6: four pickles, a fifth with the storages' keys, then the storages."""
    file, storages = BytesIO(content), dict[str, bytes]()
    # What is no file of torch's is told by what it would do.
    if _unpickled(file, storages.__getitem__) != _MAGIC:
        raise ValueError("it is a pickle, but not of torch.save")
    _version, system = (_unpickled(file, storages.__getitem__) for _ in range(2))
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise ValueError("its numbers are not little-endian")
    whole = _unpickled(file, storages.__getitem__)
    sizes = _item_sizes(whole)
    keys = _unpickled(file, storages.__getitem__)
    if not isinstance(keys, list) or len(keys) > _MAX_ENTRIES:
        raise ValueError("its list of storages is damaged")
    for key in keys:
        (count,) = struct.unpack("<q", file.read(8))
        size = count * sizes.get(key, 1)
        if not 0 <= size <= len(content) - file.tell():
            raise ValueError("it ends within a storage")
        storages[key] = file.read(size)
    return whole


def _item_sizes(value: object) -> dict[str, int]:
    """How many bytes each value has, by storage. Vectors lie in the object itself or one container deep."""
    held = (
        value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else [value]
    )
    tensors = [one for one in held if isinstance(one, Tensor)]
    return {one.key: 2 if one.dtype == _BFLOAT16 else np.dtype(one.dtype).itemsize for one in tensors}


def _unpickled(file: BytesIO, storage: Callable[[str], bytes]) -> object:
    """Run one pickle's instructions, as far as they are torch's for tensors in containers."""
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[int, Any] = {}
    start = file.tell()

    def since_mark() -> list[Any]:
        at = marks.pop()
        taken = stack[at:]
        del stack[at:]
        return taken

    argument: Any
    for instruction, argument, _ in pickletools.genops(file):
        if file.tell() - start > _MAX_PICKLE:
            raise ValueError("its pickle is larger than that of any vector")
        match instruction.name:
            case "PROTO":
                pass
            case "STOP":
                return stack[-1]
            case "MARK":
                marks.append(len(stack))
            case "NONE" | "NEWTRUE" | "NEWFALSE":
                stack.append({"NONE": None, "NEWTRUE": True, "NEWFALSE": False}[instruction.name])
            case "BININT" | "BININT1" | "BININT2" | "LONG1" | "BINFLOAT" | "BINUNICODE":
                stack.append(argument)
            case "EMPTY_DICT":
                stack.append({})
            case "EMPTY_LIST":
                stack.append([])
            case "EMPTY_TUPLE":
                stack.append(())
            case "TUPLE":
                stack.append(tuple(since_mark()))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                count = int(instruction.name[-1])
                stack[-count:] = [tuple(stack[-count:])]
            case "APPEND" | "APPENDS":
                added = since_mark() if instruction.name == "APPENDS" else [stack.pop()]
                stack[-1].extend(added)
            case "SETITEM" | "SETITEMS":
                added = since_mark() if instruction.name == "SETITEMS" else [stack.pop(-2), stack.pop()]
                for key, value in zip(added[::2], added[1::2], strict=True):
                    # The hash of nested tuples can take for ever.
                    stack[-1][key if isinstance(key, str | int) else Unknown(type(key).__name__)] = value
            case "BINPUT" | "LONG_BINPUT":
                memo[argument] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(memo[argument])
            case "GLOBAL":
                stack.append(_named(argument))
            case "BINPERSID":
                stack.append(_Storage.of(stack.pop()))
            case "REDUCE":
                arguments = stack.pop()
                stack.append(_called(stack.pop(), arguments, storage))
            case "BUILD":
                stack.pop()  # attributes of a dictionary or a tensor
            case _:
                raise MoreThanTensorsError(f"its pickle has the instruction {instruction.name}")
    raise ValueError("its pickle has no end")


@dataclass(frozen=True)
class _Storage:
    dtype: str
    key: str

    @classmethod
    def of(cls, described: Any) -> _Storage | Unknown:
        word, kind, key, _device, _count, *view = described
        known = isinstance(kind, Unknown) and kind.name.removeprefix("torch ") in _TYPES
        if word != "storage" or not known or not isinstance(key, str) or view not in ([], [None]):
            return Unknown("a storage of another kind")
        return cls(_TYPES[kind.name.removeprefix("torch ")], key)


def _named(name: str) -> Unknown:
    module = name.partition(" ")[0]
    if module not in {"torch", "collections"} and not module.startswith("torch."):
        raise MoreThanTensorsError(f"its pickle names {name[:100]!r}")
    return Unknown(name)


def _called(what: Any, arguments: Any, storage: Callable[[str], bytes]) -> object:
    """What a call would return. Nothing is called: only tensors and dictionaries are known here."""
    match what, arguments:
        case Unknown("collections OrderedDict"), ():
            return {}
        case Unknown("torch._utils _rebuild_parameter"), (Tensor() as tensor, *_):
            return tensor
        case (
            Unknown("torch._utils _rebuild_tensor_v2"),
            (_Storage() as at, int(offset), tuple(shape), tuple(strides), *_),
        ):
            numbers = (offset, *shape, *strides)
            if len(shape) != len(strides) or not all(type(n) is int and 0 <= n < 2**62 for n in numbers):
                raise ValueError("a tensor's shape is damaged")
            return Tensor(at.dtype, at.key, offset, shape, strides, storage)
    return Unknown(what.name)
