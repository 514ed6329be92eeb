"""Control vectors in GGUF: what llama.cpp and repeng would read, and what vsteer reads of theirs."""

import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.vectors.sample import awkward, same_bits, vector
from vsteer.errors import VectorError
from vsteer.vectors.files import VectorWarning, load, save
from vsteer.vectors.vector import Origin, SteeringVector

gguf = pytest.importorskip("gguf")


def write(
    path: Path,
    tensors: Mapping[str, np.ndarray[Any, Any]],
    hint: str | None = "llama",
    architecture: str = "controlvector",
) -> Path:
    """As repeng writes one."""
    writer = gguf.GGUFWriter(path, architecture)
    if hint is not None:
        writer.add_string("controlvector.model_hint", hint)
    writer.add_uint32("controlvector.layer_count", len(tensors))
    for name, tensor in tensors.items():
        writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def error(path: Path) -> str:
    with pytest.raises(VectorError) as raised:
        load(path)
    assert raised.value.hint
    return raised.value.message


def without_layer_0(whole: SteeringVector) -> SteeringVector:
    directions = {layer: row for layer, row in whole.directions.items() if layer}
    return SteeringVector(whole.name, directions, {}, whole.origin)


class RawGguf:
    """A second reader, by the format's description alone: header, keys, tensor infos, aligned data."""

    def __init__(self, path: Path) -> None:
        self.bytes, self.at = path.read_bytes(), 0
        magic, self.version, tensors, keys = self.take("<4sIQQ")
        assert magic == b"GGUF"
        self.keys = dict(self.pair() for _ in range(keys))
        infos = [self.info() for _ in range(tensors)]
        start = -(-self.at // 32) * 32
        self.offsets = {name: offset for name, _, _, offset in infos}
        self.tensors = {
            name: (dims, kind, self.bytes[start + offset : start + offset + 4 * dims[0]])
            for name, dims, kind, offset in infos
        }
        self.end = start + max(self.offsets.values()) + 4 * infos[0][1][0]

    def take(self, layout: str) -> Any:
        values = struct.unpack_from(layout, self.bytes, self.at)
        self.at += struct.calcsize(layout)
        return values

    def string(self) -> str:
        (size,) = self.take("<Q")
        self.at += size
        return self.bytes[self.at - size : self.at].decode()

    def pair(self) -> tuple[str, tuple[int, object]]:
        key, (kind,) = self.string(), self.take("<I")
        assert kind in {4, 8}  # uint32, string
        return key, (kind, self.string() if kind == 8 else self.take("<I")[0])

    def info(self) -> tuple[str, tuple[int, ...], int, int]:
        name, (count,) = self.string(), self.take("<I")
        dims = self.take(f"<{count}Q")
        kind, offset = self.take("<IQ")
        return name, dims, kind, offset


def test_layers_from_1_on_come_back_to_the_last_bit(tmp_path: Path) -> None:
    whole = awkward(layers=(0, 1, 2, 11))
    with pytest.warns(VectorWarning, match=r"v\.gguf lacks layer 0"):
        save(whole, tmp_path / "v.gguf")
    read = load(tmp_path / "v.gguf")
    assert same_bits(without_layer_0(whole), read)
    assert (read.name, read.origin) == (whole.name, whole.origin)
    assert dict(read.stream_norms) == {layer: whole.stream_norms[layer] for layer in (1, 2, 11)}


def test_the_bytes_in_the_file(tmp_path: Path) -> None:
    whole = awkward(layers=(1, 2, 11), width=7)
    save(whole, tmp_path / "v.gguf")
    raw = RawGguf(tmp_path / "v.gguf")
    assert raw.version == 3
    string, uint32 = 8, 4
    assert raw.keys["general.architecture"] == (string, "controlvector")
    assert raw.keys["controlvector.model_hint"] == (string, "llama")
    assert raw.keys["controlvector.layer_count"] == (uint32, 3)
    # Everything else is vsteer's own: the others' readers pass over it.
    assert {key.split(".")[0] for key in raw.keys} == {"general", "controlvector", "vsteer"}
    assert list(raw.tensors) == ["direction.1", "direction.2", "direction.11"]
    for layer in whole.layers:
        float32 = 0
        expected = ((7,), float32, whole.directions[layer].astype("<f4").tobytes())
        assert raw.tensors[f"direction.{layer}"] == expected
        assert raw.offsets[f"direction.{layer}"] % 32 == 0
    assert raw.end <= len(raw.bytes) < raw.end + 32


def test_what_the_gguf_library_sees(tmp_path: Path) -> None:
    whole = awkward(layers=(1, 5))
    save(whole, tmp_path / "v.gguf")
    reader = gguf.GGUFReader(tmp_path / "v.gguf")
    assert reader.get_field("general.architecture").contents() == "controlvector"
    assert reader.get_field("controlvector.model_hint").contents() == "llama"
    assert reader.get_field("controlvector.layer_count").contents() == 2
    assert reader.get_field("controlvector.layer_count").types == [gguf.GGUFValueType.UINT32]
    for tensor, layer in zip(reader.tensors, (1, 5), strict=True):
        assert tensor.name == f"direction.{layer}"
        assert tensor.tensor_type == gguf.GGMLQuantizationType.F32
        assert tensor.data.tobytes() == whole.directions[layer].tobytes()


def test_a_model_whose_type_is_unknown_still_has_a_hint(tmp_path: Path) -> None:
    """repeng doesn't read a file without one."""
    save(vector({1: [1.0]}), tmp_path / "v.gguf")
    field = gguf.GGUFReader(tmp_path / "v.gguf").get_field("controlvector.model_hint")
    assert field.contents() == "unknown"
    assert load(tmp_path / "v.gguf").origin.model_type == ""


def test_equal_vectors_make_equal_files(tmp_path: Path) -> None:
    wide = np.arange(12, dtype=np.float32).reshape(2, 6)
    save(SteeringVector("v", {2: wide[1, ::2], 1: wide[0, ::2]}), tmp_path / "one.gguf")
    save(vector({1: [0, 2, 4], 2: [6, 8, 10]}, name="v"), tmp_path / "other.gguf")
    assert (tmp_path / "one.gguf").read_bytes() == (tmp_path / "other.gguf").read_bytes()


def test_a_file_of_repengs(tmp_path: Path) -> None:
    rows = {f"direction.{layer}": np.array([layer, -0.5], np.float32) for layer in (31, 1, 2)}
    read = load(write(tmp_path / "honesty.gguf", rows, hint="mistral"))
    assert (read.name, read.layers) == ("honesty", (1, 2, 31))
    assert [read.directions[layer].tolist() for layer in read.layers] == [[1, -0.5], [2, -0.5], [31, -0.5]]
    # It doesn't say how long its directions are meant to be.
    assert read.origin == Origin(model_type="mistral", norm="")


def test_what_was_read_does_not_hang_on_the_file(tmp_path: Path) -> None:
    path = write(tmp_path / "v.gguf", {"direction.1": np.ones(4, np.float32)})
    read = load(path)
    path.write_bytes(b"\0" * path.stat().st_size)
    assert read.directions[1].tolist() == [1, 1, 1, 1]
    read.directions[1][0] = 2


def test_only_layer_0_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(VectorError, match="layer 0 only"):
        save(vector({0: [1.0]}), tmp_path / "v.gguf")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "tensor", "words"),
    [
        ("direction.0", np.ones(2, np.float32), "unexpected tensor 'direction.0'"),
        ("direction.x", np.ones(2, np.float32), "unexpected tensor 'direction.x'"),
        ("direction.01", np.ones(2, np.float32), "unexpected tensor 'direction.01'"),
        ("blk.0.attn_q.weight", np.ones(2, np.float32), "unexpected tensor 'blk.0.attn_q.weight'"),
        ("direction.3", np.ones(2, np.int32), "layer 3 holds values of GGUF's type 26"),
        ("direction.3", np.ones((2, 4), np.float32), "has the shape 2 x 4"),
        ("direction.3", np.array([np.inf, 1], np.float32), "layer 3 has 1 value"),
        ("direction.3", np.ones(5, np.float32), "layer 3 is 5 wide, but layer 1 is 2"),
    ],
)
def test_tensors_that_do_not_belong(
    tmp_path: Path, name: str, tensor: np.ndarray[Any, Any], words: str
) -> None:
    path = write(tmp_path / "v.gguf", {"direction.1": np.ones(2, np.float32), name: tensor})
    assert words in error(path)


def test_a_models_gguf(tmp_path: Path) -> None:
    path = write(tmp_path / "v.gguf", {"direction.1": np.ones(2, np.float32)}, architecture="llama")
    assert "GGUF file of 'llama'" in error(path)


def test_no_tensors(tmp_path: Path) -> None:
    assert "has no layers" in error(write(tmp_path / "v.gguf", {}))


def test_every_truncation_is_one_clear_error(tmp_path: Path) -> None:
    save(awkward(layers=(1, 2)), tmp_path / "v.gguf")
    raw = RawGguf(tmp_path / "v.gguf")
    cut = tmp_path / "cut.gguf"
    for size in [*range(0, raw.end, 23), raw.end - 1]:
        cut.write_bytes(raw.bytes[:size])
        assert str(cut) in error(cut)


def test_a_byte_changed_in_the_header_is_never_a_crash(tmp_path: Path) -> None:
    save(awkward(layers=(1, 2)), tmp_path / "v.gguf")
    whole = (tmp_path / "v.gguf").read_bytes()
    bad = tmp_path / "bad.gguf"
    for at in range(0, 400, 3):
        changed = bytearray(whole)
        changed[at] ^= 0xFF
        bad.write_bytes(changed)
        try:
            load(bad)
        except VectorError:
            continue
