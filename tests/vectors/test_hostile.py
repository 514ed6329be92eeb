"""Vector files that are damaged or made to do harm are read or refused: soon, within memory, in few words."""

from __future__ import annotations

import io
import json
import os
import pickle
import random
import struct
import time
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save as to_safetensors

from tests.hostile import Outcome, outcome, summary
from tests.vectors.sample import awkward
from vsteer.errors import VectorError
from vsteer.vectors.diagnostics.describe import layer_rows
from vsteer.vectors.files import file_sha256, load, save

torch = pytest.importorskip("torch")
pytest.importorskip("gguf")

ROWS = {layer: np.arange(6, dtype=np.float32) + layer for layer in (1, 2, 3)}
HUGE = [2**n - k for n in (8, 16, 31, 32, 40, 62, 63, 64) for k in (0, 1) if 2**n - k < 2**64]
SNIPPETS: list[Callable[[random.Random], bytes]] = [
    lambda r: b"[" * 10 ** r.randint(1, 5),
    lambda r: b'{"a":' * 10 ** r.randint(1, 5),
    lambda r: rb"\ud800",
    lambda r: b"\x00" * 10 ** r.randint(1, 6),
    lambda r: b"9" * 10 ** r.randint(1, 4),
    lambda r: b"\x1b[31m\xff\xfe",
    lambda r: b"h\x00" * 100 + b"(" * 10 ** r.randint(1, 4),
    lambda r: struct.pack("<IIQ", 9, r.randrange(14), r.choice(HUGE)),
]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[str, bytes]]:
    """A sound file in each format, with the name that it must have."""
    folder = tmp_path_factory.mktemp("whole")
    save(awkward(layers=(1, 2)), folder / "v.safetensors")
    save(awkward(layers=(1, 2)), folder / "v.gguf")
    (folder / "w.safetensors").write_bytes(to_safetensors({f"layer_{n}": row for n, row in ROWS.items()}))
    np.save(folder / "v.npy", np.stack(list(ROWS.values())))
    tensors = {layer: torch.from_numpy(row) for layer, row in ROWS.items()}
    torch.save(tensors, folder / "v.pt")
    torch.save(tensors, folder / "w.pt", _use_new_zipfile_serialization=False)
    torch.save(tensors[1], folder / "vec_layer_1_m.pt")
    return [(path.name, path.read_bytes()) for path in sorted(folder.iterdir())]


def mutated(r: random.Random, content: bytes) -> bytes:
    """The content with one thing wrong, or two. Most are near its start, where the claims are."""
    changed = bytearray(content)
    for _ in range(r.randint(1, 2)):
        at = r.randrange(min(len(changed), r.choice([60, 400, len(changed)])) + 1)
        match r.randrange(7):
            case 0:
                del changed[at:]
            case 1:
                del changed[at : at + r.randint(1, 16)]
            case 2:
                for place in r.sample(range(len(changed)), min(len(changed), r.randint(1, 4))):
                    changed[place] = r.randrange(256)
            case 3 | 4:
                layout = r.choice(["<Q", "<I"])
                number = struct.pack(layout, r.choice(HUGE) % 256 ** struct.calcsize(layout))
                changed[at : at + len(number)] = number
            case 5:
                # one text or number of the file in place of another of its length
                changed[at : at + 8] = r.choice([b"99999999", b"F32F64BF", b"-1,-1,-1", b"\x8a\xff" * 4])
            case _:
                changed[at:at] = r.choice(SNIPPETS)(r)
    return bytes(changed)


def used(path: Path) -> None:
    """What a command does first with a vector's file."""
    vector = load(path)
    file_sha256(path)
    json.dumps(layer_rows(vector))


@pytest.mark.parametrize("count", [20, pytest.param(200, marks=pytest.mark.long)])
def test_mutated_files(tmp_path: Path, whole: list[tuple[str, bytes]], count: int) -> None:
    r, found = random.Random(15), list[Outcome]()
    for _ in range(count):
        name, content = r.choice(whole)
        path = tmp_path / name
        path.write_bytes(mutated(r, content))
        found.append(outcome(partial(used, path)))
    # both come of the mutations
    assert 0 < sum(not one.message for one in found) < count
    summary(f"{count} vector files", found)


def refused(path: Path, content: bytes) -> str:
    path.write_bytes(content)
    before = time.monotonic()
    found = outcome(partial(used, path))
    assert found.message
    # beside what the tests hold already
    assert found.peak < memory_now() + 400 * 2**20
    assert time.monotonic() - before < 30
    return found.message


def memory_now() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def gguf_head(keys: int, tensors: int = 0, rest: bytes = b"") -> bytes:
    return b"GGUF" + struct.pack("<IQQ", 3, tensors, keys) + rest


def gguf_key(name: bytes, rest: bytes) -> bytes:
    return struct.pack("<Q", len(name)) + name + rest


@pytest.mark.parametrize("kind", [0, 4, 6, 8, 9, 12])
@pytest.mark.parametrize("count", [2**30, 2**63])
def test_a_gguf_list_that_claims_gigabytes(tmp_path: Path, kind: int, count: int) -> None:
    content = gguf_head(1, rest=gguf_key(b"a", struct.pack("<IIQ", 9, kind, count))).ljust(100, b"\0")
    assert "not a whole GGUF file" in refused(tmp_path / "v.gguf", content)


def test_other_claims_of_gguf(tmp_path: Path) -> None:
    path, architecture = tmp_path / "v.gguf", b"general.architecture"
    known = gguf_key(architecture, struct.pack("<I", 8) + gguf_key(b"controlvector", b""))
    tensor = gguf_key(b"direction.1", struct.pack("<IQIQ", 1, 2**62, 0, 0))
    far = gguf_key(b"direction.1", struct.pack("<IQIQ", 1, 4, 0, 2**63))
    many = gguf_key(b"direction.1", struct.pack("<I", 2**31))
    aligned = gguf_key(b"general.alignment", struct.pack("<II", 4, 0))
    digits = gguf_key(b"direction." + b"9" * 5000, struct.pack("<IQIQ", 1, 1, 0, 0)) + b"\0" * 64
    long = gguf_key(b"d" * 10**6, struct.pack("<IQIQ", 1, 1, 0, 0)) + b"\0" * 64
    for content, words in (
        (gguf_head(2**60), "claims 1,152,921,504,606,846,976 parts"),
        (gguf_head(0, 2**60), "claims 1,152,921,504,606,846,976 parts"),
        (gguf_head(1, rest=struct.pack("<Q", 2**62)), "claims 4,611,686,018,427,387,904 bytes"),
        (gguf_head(1, 1, known + tensor), "claims 18,446,744,073,709,551,616 bytes"),
        (gguf_head(1, 1, known + far), "where 0 are left"),
        (gguf_head(1, 1, known + many), "2147483648 dimensions"),
        (gguf_head(2, 1, known + aligned + far), "alignment"),
        (gguf_head(1, 1, known + digits), "unexpected tensor 'direction.999"),
        (gguf_head(1, 1, known + long), "unexpected tensor 'ddd"),
        (b"GGUF" + struct.pack("<IQQ", 1, 0, 0), "version 1"),
    ):
        assert words in refused(path, content)


def test_a_tensor_that_repeats_one_value_forty_gigabytes_long(tmp_path: Path) -> None:
    for zipped in (True, False):
        file = io.BytesIO()
        torch.save(torch.ones(1).expand(10**10), file, _use_new_zipfile_serialization=zipped)
        assert file.tell() < 2000
        message = refused(tmp_path / "vec_layer_1_m.pt", file.getvalue())
        assert "a tensor of 10,000,000,000 values has 1 stored" in message
    torch.save({3: torch.ones(2, 1).expand(2, 10**9)[0]}, file := io.BytesIO())
    assert "a tensor of 1,000,000,000 values has 2 stored" in refused(tmp_path / "v.pt", file.getvalue())


def torch_zip(pickled: bytes, stored: bytes, compression: int = zipfile.ZIP_STORED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        archive.writestr("v/data.pkl", pickled)
        archive.writestr("v/data/0", stored)
        archive.writestr("v/version", b"3\n")
    return file.getvalue()


def test_bombs_of_zip(tmp_path: Path) -> None:
    with zipfile.ZipFile(io.BytesIO(whole_torch())) as archive:
        pickled = archive.read("archive/data.pkl")
    bomb = torch_zip(pickled, bytes(60_000_000), zipfile.ZIP_DEFLATED)
    assert len(bomb) < 10**6
    assert "it is compressed" in refused(tmp_path / "v.pt", bomb)
    np.savez_compressed(file := io.BytesIO(), a=np.zeros((10, 10**6), np.float32))
    assert "can't be read as a torch file: it is compressed" in refused(tmp_path / "v", file.getvalue())
    assert "holds arrays by their keys, and none is chosen" in refused(tmp_path / "v.npz", file.getvalue())
    many = io.BytesIO()
    with zipfile.ZipFile(many, "w") as archive:
        for n in range(21_000):
            archive.writestr(f"v/data/{n}", b"")
    assert "more files than a vector has layers" in refused(tmp_path / "v.pt", many.getvalue())
    # the directory says that one entry is as long as half the file, many times
    once = torch_zip(pickled, bytes(10**6))
    at = once.index(b"PK\1\2", once.index(b"PK\1\2") + 1)
    assert "can't be read as a torch file" in refused(
        tmp_path / "v.pt", once[:at] + once[at:].replace(struct.pack("<I", 10**6), struct.pack("<I", 2**31))
    )


def test_any_byte_of_a_zip_changed(tmp_path: Path) -> None:
    """It is refused, or the vector is the same: the zip has a checksum of each tensor."""
    whole, path = whole_torch(), tmp_path / "v.pt"
    path.write_bytes(whole)
    expected = load(path).directions[1].tolist()
    for at in range(len(whole)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :])
        try:
            found = load(path)
        except VectorError:
            continue
        assert [row.tolist() for row in found.directions.values()] == [expected]


def whole_torch() -> bytes:
    torch.save({1: torch.ones(3)}, file := io.BytesIO())
    return file.getvalue()


def pickled(body: bytes) -> bytes:
    return torch_zip(b"\x80\x02" + body + b".", b"")


@pytest.mark.parametrize(
    ("body", "words"),
    [
        # the hash of a tuple of tuples of tuples visits 2^60 leaves
        (b"})" + b"q\x00h\x00\x86" * 60 + b"K\x01s", "names no layer"),
        (b"]" + b"q\x00h\x00a" * 10, "is a list, not a tensor"),
        (b"(" * 100_000, "damaged"),
        pytest.param(b"]" * 1_000_000, "is a list", marks=pytest.mark.long),
        (b"}" * 5_000_000, "without a vector's data.pkl"),
        (b"\x8d" + struct.pack("<Q", 2**60), "can't be read"),
        (b"\x96" + struct.pack("<Q", 2**40), "can't be read"),
        (b"r" + struct.pack("<I", 2**31), "damaged"),
        (b"K\x01r" + struct.pack("<I", 2**31), "is a int"),
        (b"\x8a\xff" + b"\x7f" * 255, "is a int"),
        (b"\x8b" + struct.pack("<i", 2**30), "can't be read"),
        (b"cos\nsystem\n", "was not run"),
        (b"c__builtin__\neval\nX\x01\x00\x00\x001\x85R", "was not run"),
        (b"ctorch\nload\n)R", "is no plain tensor"),
        (b"c" + b"a" * 1_000_000 + b"\nb\n", "was not run"),
        (b"}X\x03\x00\x00\x00\xed\xa0\x80K\x01s", "names no layer"),
    ],
)
def test_pickles_that_claim_too_much(tmp_path: Path, body: bytes, words: str) -> None:
    assert words in refused(tmp_path / "vec_layer_1_m.pt", pickled(body))


def test_every_plain_pickle_is_refused_unrun(tmp_path: Path) -> None:
    for protocol in range(2, 6):
        assert "pickle" in refused(tmp_path / "v.pt", pickle.dumps({1: [1.0]}, protocol))


@pytest.mark.parametrize(
    "header",
    [
        "{'descr': '<f4', 'fortran_order': False, 'shape': (1099511627776, 4)}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (0, 1099511627776)}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (-1, 4)}",
        "{'descr': '|O', 'fortran_order': False, 'shape': (1, 4)}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': " + "(" * 5000 + ")}",
        "(" * 200 + ")" * 200,
        "'" * 60_000,
        "9" * 60_000,
    ],
)
def test_headers_of_numpy(tmp_path: Path, header: str) -> None:
    content = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode() + bytes(16)
    assert str(tmp_path / "v.npy") in refused(tmp_path / "v.npy", content)


def safetensors_file(header: bytes, rest: bytes = b"") -> bytes:
    return struct.pack("<Q", len(header)) + header + rest


@pytest.mark.parametrize(
    ("header", "words"),
    [
        (b'{"a":' * 100_000, "too deep"),
        (b'{"a":' + b"[" * 100_000, "too deep"),
        (b"{" + b" " * 5_000_000 + b"}", "its header has 5,000,002 bytes"),
        (
            b'{"layer.1":{"dtype":"F32","shape":[4611686018427387904],"data_offsets":[0,8]}}',
            "whole safetensors",
        ),
        (b'{"layer.1":{"dtype":"F32","shape":[2],"data_offsets":[0,1099511627776]}}', "whole safetensors"),
        (b'{"layer.1":{"dtype":"F32","shape":[9007199254740992,0],"data_offsets":[0,0]}}', "has the shape"),
        (rb'{"__metadata__":{"vsteer":"{\"name\":\"\\ud800\"}"}}', "half a surrogate"),
        (b'{"__metadata__":{"vsteer":"' + b"[" * 100_000 + b'"}}', "too deep"),
        (b'{"__metadata__":{"vsteer":"' + b"9" * 100_000 + b'"}}', "metadata can't be read"),
        (b'{"__metadata__":[]}', "whole safetensors"),
        (b'{"' + b"a" * 1_000_000 + b'":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}', "names no layer"),
    ],
)
def test_headers_of_safetensors(tmp_path: Path, header: bytes, words: str) -> None:
    assert words in refused(tmp_path / "v.safetensors", safetensors_file(header))


@pytest.mark.parametrize(
    "changed",
    [
        {"name": "a" * 100_000},
        {"name": ["a"] * 100_000},
        {"format_version": "1" * 100_000},
        {"origin": {"norm": "raw" * 100_000}},
        {"origin": {"method": ["a" * 100_000]}},
    ],
)
def test_metadata_of_any_length(tmp_path: Path, changed: dict[str, Any]) -> None:
    known = {"format_version": 1, "name": "v", "origin": {}}
    metadata = {"vsteer": json.dumps(known | changed)}
    content = to_safetensors({"direction.1": ROWS[1]}, metadata)
    assert str(tmp_path / "v.safetensors") in refused(tmp_path / "v.safetensors", content)


def test_a_file_has_a_limit(tmp_path: Path) -> None:
    for start in (b"GGUF", b"PK\3\4", b"\x93NUMPY", struct.pack("<Q", 100) + b"{", b""):
        path = tmp_path / "v"
        with path.open("wb") as file:
            file.write(start)
            file.truncate(2**40)
        message = outcome(partial(used, path)).message
        assert "it has 1,099,511,627,776 bytes, and at most 67,108,864 are read" in message
    folder = tmp_path / "caa"
    folder.mkdir()
    for n in range(3):
        with (folder / f"vec_layer_{n}_m.pt").open("wb") as file:
            file.truncate(2**25)
    assert "have 100,663,296 bytes together" in outcome(partial(used, folder)).message


@pytest.mark.parametrize("kind", ["pipe", "device", "pipe in a folder", "missing"])
def test_what_is_no_file(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "v.safetensors"
    match kind:
        case "pipe":
            os.mkfifo(path)
        case "pipe in a folder":
            path.mkdir()
            os.mkfifo(path / "vec_layer_1_m.pt")
        case "device":
            path = Path("/dev/zero")
    before = time.monotonic()
    assert f"could not read {path}" in outcome(partial(used, path)).message
    assert time.monotonic() - before < 30
