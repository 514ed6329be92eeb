"""Vectors in files: what is read is what was written, and nothing is ever half-written."""

import hashlib
import json
import os
import random
import resource
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from tests.vectors.sample import awkward, same_bits, vector
from vsteer import __version__
from vsteer.errors import UsageError, VectorError
from vsteer.vectors.files import file_format, file_sha256, load, save
from vsteer.vectors.vector import SteeringVector


def saved(folder: Path, suffix: str = ".safetensors") -> Path:
    path = folder / f"v{suffix}"
    save(awkward(layers=(1, 2, 3)), path)
    return path


def message(path: Path) -> str:
    with pytest.raises(VectorError) as error:
        load(path)
    assert error.value.hint
    return error.value.message


def metadata(path: Path) -> dict[str, Any]:
    with safe_open(path, framework="numpy") as file:
        content: dict[str, Any] = json.loads(file.metadata()["vsteer"])
        content.pop("seal", None)  # what a test changes is meant
        return content


def with_metadata(path: Path, **changes: object) -> Path:
    save_file(load_file(path), path, {"vsteer": json.dumps(metadata(path) | changes)})
    return path


@contextmanager
def files_no_larger_than(size: int) -> Iterator[None]:
    """The kernel cuts every write off at `size` bytes, as a full disk does."""
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, old[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)


def test_what_is_read_is_what_was_written(tmp_path: Path) -> None:
    written = awkward()
    save(written, tmp_path / "v.safetensors")
    read = load(tmp_path / "v.safetensors")
    assert same_bits(written, read)
    assert (read.name, read.origin) == (written.name, written.origin)
    assert dict(read.stream_norms) == dict(written.stream_norms)
    assert dict(read.deviations) == dict(written.deviations)


def test_the_layout_as_the_safetensors_library_sees_it(tmp_path: Path) -> None:
    path = tmp_path / "v.safetensors"
    save(vector({3: [1, 2], 10: [-3, 4.5]}, stream_norms={3: 1 / 3}, deviations={10: 1 / 7}), path)
    arrays = load_file(path)
    assert {key: (array.dtype.name, array.tolist()) for key, array in arrays.items()} == {
        "direction.3": ("float32", [1, 2]),
        "direction.10": ("float32", [-3, 4.5]),
        "stream_norm.3": ("float64", [1 / 3]),
        "deviation.10": ("float64", [1 / 7]),
    }
    content = metadata(path)
    assert content["layers"] == "layer L is the output of decoder block L, counted from 0"
    assert (content["format"], content["format_version"]) == ("vsteer vector", 1)
    assert (content["vsteer_version"], content["name"], content["origin"]["norm"]) == (
        __version__,
        "sample",
        "raw",
    )


def test_equal_vectors_make_equal_files(tmp_path: Path) -> None:
    """Layers in another order, a view with gaps in memory: the same vector, the same hash."""
    one = vector({0: [1, 2], 1: [3, 4]})
    wide = np.array([[3, 9, 4, 9], [1, 9, 2, 9]], np.float32)
    other = SteeringVector("sample", {1: wide[0, ::2], 0: wide[1, ::2]})
    save(one, tmp_path / "one.safetensors")
    save(other, tmp_path / "other.safetensors")
    assert (tmp_path / "one.safetensors").read_bytes() == (tmp_path / "other.safetensors").read_bytes()


def test_a_file_has_a_hash(tmp_path: Path) -> None:
    path = saved(tmp_path)
    assert file_sha256(path) == hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_vector_can_be_read_under_another_name(tmp_path: Path) -> None:
    assert load(saved(tmp_path), name="kind").name == "kind"


@pytest.mark.parametrize("suffix", [".safetensors", ".gguf"])
def test_the_content_tells_not_the_ending(tmp_path: Path, suffix: str) -> None:
    path = saved(tmp_path, suffix).rename(tmp_path / "v.bin")
    assert file_format(path) == suffix[1:]
    assert same_bits(load(path), awkward(layers=(1, 2, 3)))


def test_a_header_of_any_length_is_no_pickle(tmp_path: Path) -> None:
    """A safetensors file starts with the length of its header, whose first byte may be a pickle's."""
    first_bytes = set()
    for length in range(0, 264, 8):
        path = tmp_path / f"{length}.safetensors"
        one = vector({0: [1, 2]})
        save(replace(one, origin=replace(one.origin, data="x" * length)), path)
        first_bytes.add(path.read_bytes()[0])
        assert file_format(path) == "safetensors"
        assert load(path).origin.data == "x" * length
    assert 0x80 in first_bytes


def test_an_existing_file_stays_unless_asked(tmp_path: Path) -> None:
    path = saved(tmp_path)
    before = path.read_bytes()
    other = vector({0: [1, 2]})
    with pytest.raises(VectorError, match="exists already"):
        save(other, path)
    assert path.read_bytes() == before
    save(other, path, overwrite=True)
    assert same_bits(load(path), other)


@pytest.mark.parametrize("suffix", [".safetensors", ".gguf"])
@pytest.mark.parametrize("room", [0, 10, 1500])
def test_a_write_that_fails_half_way_leaves_nothing(tmp_path: Path, suffix: str, room: int) -> None:
    large = vector({1: np.ones(5000).tolist()})
    with files_no_larger_than(room), pytest.raises(VectorError, match="could not write"):
        save(large, tmp_path / f"v{suffix}")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("suffix", [".safetensors", ".gguf"])
def test_a_failed_overwrite_keeps_the_old_file(tmp_path: Path, suffix: str) -> None:
    path = saved(tmp_path, suffix)
    before = path.read_bytes()
    with files_no_larger_than(100), pytest.raises(VectorError, match="could not write"):
        save(vector({1: np.ones(5000).tolist()}), path, overwrite=True)
    assert list(tmp_path.iterdir()) == [path]
    assert path.read_bytes() == before


def test_an_interrupted_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(_: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save(vector({0: [1]}), tmp_path / "v.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_until_it_is_whole_no_file_bears_a_vectors_ending(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    monkeypatch.setattr(os, "fsync", lambda _: seen.append(list(tmp_path.glob("*.safetensors"))))
    save(vector({0: [1]}), tmp_path / "v.safetensors")
    # Synced twice: the file before it has its name, and the folder after.
    assert seen == [[], [tmp_path / "v.safetensors"]]


@pytest.mark.parametrize("suffix", [".safetensors", ".gguf"])
def test_a_folder_that_cannot_be_written_to(suffix: str) -> None:
    """/proc takes no files, not even root's."""
    with pytest.raises(VectorError, match="could not write /proc/v"):
        save(vector({1: [1]}), f"/proc/v{suffix}")


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_read_only_folder(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(VectorError, match="Permission denied"):
        save(vector({1: [1]}), tmp_path / "v.safetensors")


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(VectorError, match="No such file or directory"):
        save(vector({1: [1]}), tmp_path / "gone" / "v.safetensors")


@pytest.mark.parametrize("name", ["v", "v.pt", "v.safetensors.tmp"])
def test_an_unknown_ending_is_not_written(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match=r"neither \.safetensors nor \.gguf"):
        save(vector({1: [1]}), tmp_path / name)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (SteeringVector("v", {}), "has no layers"),
        (vector({0: [1, 2], 4: [1, 2, 3]}), "layer 4 is 3 wide, but layer 0 is 2"),
        (vector({0: [1], 2: [float("nan")]}), "layer 2 has 1 value"),
        (vector({0: [float("inf")]}), "layer 0 has 1 value"),
        (vector({-1: [1]}), "has a layer -1"),
        (vector({0: []}), "has the shape 0"),
        (vector({0: [1]}, stream_norms={0: 0.0}), "stream norm of layer 0 is 0.0"),
        (vector({0: [1]}, deviations={0: -1.0}), "deviation of layer 0 is -1.0"),
        (vector({0: [1]}, stream_norms={0: float("nan")}), "stream norm of layer 0 is nan"),
        (SteeringVector("v", {0: np.array([1, 2])}), "layer 0 holds int64"),
        (SteeringVector("v", {0: np.ones((2, 3), np.float32)}), "has the shape 2 x 3"),
        (SteeringVector("v", {0: np.array([1e39])}), "layer 0 has 1 value"),
    ],
)
@pytest.mark.parametrize("suffix", [".safetensors", ".gguf"])
def test_an_unsound_vector_is_not_written(
    tmp_path: Path, bad: SteeringVector, words: str, suffix: str
) -> None:
    with pytest.raises(VectorError) as error:
        save(bad, tmp_path / f"v{suffix}")
    assert words in error.value.message
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    assert "No such file or directory" in message(tmp_path / "gone.safetensors")


@pytest.mark.parametrize("content", [b"", b"x", b"{}", b"hello, world, this is text", b"\x00" * 64])
def test_what_is_no_vector_at_all(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "v.safetensors"
    path.write_bytes(content)
    assert f"({len(content)} bytes) is no vector" in message(path)


def test_every_truncation_is_one_clear_error(tmp_path: Path) -> None:
    whole = saved(tmp_path).read_bytes()
    cut = tmp_path / "cut.safetensors"
    for size in range(0, len(whole), 13):
        cut.write_bytes(whole[:size])
        assert any(
            words in message(cut) for words in ("is no vector", "not a whole safetensors file", "is damaged")
        )


def test_a_flipped_bit_is_found_or_is_in_the_seals_own_name(tmp_path: Path) -> None:
    path = saved(tmp_path)
    whole, content, bits = load(path), path.read_bytes(), random.Random(3)
    found = 0
    for _ in range(300):
        bit, flipped = bits.randrange(8 * len(content)), bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        try:
            same_bits(load(path), whole)
        except VectorError:
            found += 1
    assert found > 280


def test_anothers_safetensors(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"weight": np.ones(3, np.float32)}, path)
    assert "that is not vsteer's, has the key 'weight', which names no layer" in message(path)


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ({"direction.0": np.ones(3, np.float16)}, "'direction.0' in F16"),
        ({"direction.0": np.ones(3, np.int32)}, "'direction.0' in I32"),
        ({"direction.00": np.ones(3, np.float32)}, "'direction.00'"),
        ({"direction.-1": np.ones(3, np.float32)}, "'direction.-1'"),
        ({"weight": np.ones(3, np.float32)}, "'weight'"),
        ({"direction.0": np.ones((1, 3), np.float32)}, "has the shape 1 x 3"),
        ({"direction.0": np.array([1, np.nan], np.float32)}, "not finite"),
        (
            {"direction.0": np.ones(3, np.float32), "direction.1": np.ones(4, np.float32)},
            "layer 1 is 4 wide, but layer 0 is 3",
        ),
        ({"stream_norm.0": np.ones(1, np.float64)}, "has no layers"),
    ],
)
def test_unexpected_tensors(tmp_path: Path, tensors: dict[str, Any], words: str) -> None:
    path = saved(tmp_path)
    save_file(tensors, path, {"vsteer": json.dumps(metadata(path))})
    assert words in message(path)


@pytest.mark.parametrize(
    "changes",
    [
        {"origin": {"pairs": "many"}},
        {"origin": {"norm": 1}},
        {"origin": {"derived": "once"}},
        {"origin": {"derived": [1]}},
        {"origin": None},
        {"name": 3},
    ],
)
def test_metadata_of_another_kind(tmp_path: Path, changes: dict[str, object]) -> None:
    assert "metadata" in message(with_metadata(saved(tmp_path), **changes))


def test_a_newer_format_is_refused_by_its_number(tmp_path: Path) -> None:
    assert "format version 2, this vsteer reads 1" in message(
        with_metadata(saved(tmp_path), format_version=2)
    )


def test_an_origin_that_lacks_a_field_or_has_one_more(tmp_path: Path) -> None:
    """As an older and a newer vsteer write it."""
    path = with_metadata(saved(tmp_path), origin={"method": "pca", "phase_of_the_moon": "full"})
    assert (load(path).origin.method, load(path).origin.model) == ("pca", "")


def test_a_header_that_claims_too_much(tmp_path: Path) -> None:
    path = tmp_path / "v.safetensors"
    path.write_bytes(struct.pack("<Q", 2**40) + b"{" + b" " * 100)
    assert "is no vector" in message(path)
