"""Vectors that other tools wrote: their numbers, at the layers that they mean, from files of theirs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from vsteer.errors import VectorError
from vsteer.vectors.derive import for_model
from vsteer.vectors.files import file_format, load, save
from vsteer.vectors.vector import SteeringVector

torch = pytest.importorskip("torch")

ROWS = {layer: np.random.default_rng(layer).standard_normal(9).astype(np.float32) for layer in (0, 3, 21)}
NAMES = ["direction.{}", "layer_{}", "{}", "model.layers.{}.mlp", "layer_{:02}", "L{} (out)"]


def expect_rows(vector: SteeringVector, name: str) -> None:
    assert (vector.name, vector.layers, vector.origin.norm) == (name, (0, 3, 21), "")
    for layer, row in ROWS.items():
        assert vector.directions[layer].dtype == np.float32
        assert vector.directions[layer].tobytes() == row.tobytes()


def error(path: Path) -> str:
    with pytest.raises(VectorError) as raised:
        load(path)
    assert raised.value.hint
    return raised.value.message


@pytest.mark.parametrize("name", NAMES)
def test_safetensors_of_one_tensor_a_layer(tmp_path: Path, name: str) -> None:
    path = tmp_path / "joy.safetensors"
    save_file({name.format(layer): row for layer, row in ROWS.items()}, path, {"format": "pt"})
    assert file_format(path) == "safetensors"
    expect_rows(load(path), "joy")


@pytest.mark.parametrize("dtype", ["float64", "float16", "bfloat16"])
@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".npy"])
def test_other_float_types_have_the_values_that_torch_gives_them(
    tmp_path: Path, dtype: str, suffix: str
) -> None:
    from safetensors.torch import save_file as save_torch

    path = tmp_path / f"joy{suffix}"
    kind = getattr(torch, dtype)
    tensors = {f"direction.{layer}": torch.from_numpy(row).to(kind) for layer, row in ROWS.items()}
    match suffix:
        case ".safetensors":
            save_torch(tensors, path)
        case ".pt":
            torch.save(tensors, path)
        case _ if dtype == "bfloat16":
            pytest.skip("numpy has no bfloat16")
        case _:
            np.save(path, np.stack([tensor.numpy() for tensor in tensors.values()]))
    read = load(path)
    for tensor, layer in zip(tensors.values(), read.layers, strict=True):
        assert read.directions[layer].tolist() == tensor.float().tolist()


@pytest.mark.parametrize("name", [*NAMES, int])
@pytest.mark.parametrize("zipped", [True, False])
def test_a_dictionary_of_torch(tmp_path: Path, name: Any, zipped: bool) -> None:
    def key(layer: int) -> object:
        return layer if name is int else name.format(layer)

    path = tmp_path / "joy.pt"
    rows = {key(layer): torch.from_numpy(row) for layer, row in ROWS.items()}
    torch.save(rows, path, _use_new_zipfile_serialization=zipped)
    expect_rows(load(path), "joy")


def test_views_parameters_and_a_shared_storage(tmp_path: Path) -> None:
    whole = torch.arange(64.0, dtype=torch.float64).reshape(8, 8)
    tensors = {0: whole[2], 1: whole.T[3], 2: torch.nn.Parameter(whole[:, 1]), 3: whole.flatten()[5:63:8]}
    torch.save(tensors, tmp_path / "v.pt")
    read = load(tmp_path / "v.pt")
    assert {layer: row.tolist() for layer, row in read.directions.items()} == {
        layer: tensor.tolist() for layer, tensor in tensors.items()
    }


def test_a_module_has_its_tensors_by_name(tmp_path: Path) -> None:
    """A state_dict is an OrderedDict with attributes of its own."""
    steering = torch.nn.ParameterList([torch.nn.Parameter(torch.full((3,), float(n))) for n in range(12)])
    torch.save(steering.state_dict(), tmp_path / "v.pt")
    read = load(tmp_path / "v.pt")
    assert {layer: row.tolist() for layer, row in read.directions.items()} == {n: [n] * 3 for n in range(12)}


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", ["<f4", ">f4", "<f8"])
def test_a_row_a_layer_of_numpy(tmp_path: Path, order: Any, dtype: str) -> None:
    array = np.arange(12, dtype=dtype).reshape(4, 3, order=order)
    np.save(tmp_path / "joy.npy", array)
    read = load(tmp_path / "joy.npy")
    assert (read.name, read.layers, read.origin.norm) == ("joy", (0, 1, 2, 3), "")
    assert [read.directions[layer].tolist() for layer in read.layers] == array.tolist()
    assert file_format(tmp_path / "joy.npy") == "npy"


def test_repengs_vector_is_one_in_either_format(tmp_path: Path) -> None:
    """Its `directions` are by 0-based block, and so is `direction.L` of its GGUF files."""
    gguf = pytest.importorskip("gguf")
    rows = {layer: row for layer, row in ROWS.items() if layer}
    writer = gguf.GGUFWriter(tmp_path / "v.gguf", "controlvector")
    writer.add_string("controlvector.model_hint", "llama")
    writer.add_uint32("controlvector.layer_count", len(rows))
    for layer, row in rows.items():
        writer.add_tensor(f"direction.{layer}", row)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    save_file({f"direction.{layer}": row for layer, row in rows.items()}, tmp_path / "v.safetensors")
    one, other = load(tmp_path / "v.gguf"), load(tmp_path / "v.safetensors")
    assert one.layers == other.layers == (3, 21)
    assert all(np.array_equal(one.directions[layer], other.directions[layer]) for layer in one.layers)


def test_what_was_read_can_be_written_as_vsteers_own(tmp_path: Path) -> None:
    save_file({f"layer_{layer}": row for layer, row in ROWS.items()}, tmp_path / "joy.safetensors")
    save(load(tmp_path / "joy.safetensors"), tmp_path / "own.safetensors")
    expect_rows(load(tmp_path / "own.safetensors"), "joy")


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ({"weight": np.ones(3)}, "has the key 'weight', which names no layer"),
        ({"h.0.w.1": np.ones(3)}, "has the key 'h.0.w.1', which names no layer"),
        ({"a.0": np.ones(3), "b.1": np.ones(3)}, "has 'a.0' and 'b.1', which are not layers of one vector"),
        ({"a.1": np.ones(3), "a.01": np.ones(3)}, "has layer 1 twice"),
        ({"a.-1": np.ones(3)}, "has a layer -1"),
        ({"a.10000": np.ones(3)}, "has a layer 10000"),
        ({"a.0": np.ones((1, 3))}, "layer 0 has the shape 1 x 3"),
        ({"a.0": np.ones(3, np.int8)}, "layer 0 holds I8 values"),
        ({"a.0": np.ones(3), "a.1": np.ones(4)}, "layer 1 is 4 wide, but layer 0 is 3"),
        ({}, "has no layers"),
    ],
)
def test_safetensors_that_are_no_vector(tmp_path: Path, tensors: dict[str, Any], words: str) -> None:
    save_file(tensors, tmp_path / "v.safetensors")
    assert words in error(tmp_path / "v.safetensors")


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.ones(3), "has the shape 3"),
        (np.ones((2, 3, 4)), "has the shape 2 x 3 x 4"),
        (np.ones((2, 3), np.int32), "layer 0 holds int32 values"),
        (np.ones((2, 3), np.complex64), "layer 0 holds complex64 values"),
        (np.array([[1.0, np.nan]]), "not finite"),
        (np.ones((0, 3)), "has no layers"),
        (np.array([[{}]]), "Python objects"),
    ],
)
def test_arrays_that_are_no_vector(tmp_path: Path, array: Any, words: str) -> None:
    np.save(tmp_path / "v.npy", array)
    assert words in error(tmp_path / "v.npy")


def test_a_row_for_the_embeddings_is_one_too_many(tmp_path: Path) -> None:
    """All of Hugging Face's `hidden_states`: the first is what goes into block 0."""
    np.save(tmp_path / "v.npy", np.ones((7, 3)))
    with pytest.raises(VectorError) as raised:
        for_model(load(tmp_path / "v.npy"), layers=6, hidden_size=3)
    assert "has layer 6, but the model has only layers 0 to 5" in raised.value.message
    assert "embeddings" in raised.value.hint
