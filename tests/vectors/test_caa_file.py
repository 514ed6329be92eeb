"""CAA's .pt files as that project writes them, and what must not be read: code, other shapes, odd names."""

import pickle
import sys
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest

from vsteer.errors import VectorError
from vsteer.vectors.files import file_sha256, load

torch = pytest.importorskip("torch")

MODEL = "Llama-2-7b-chat-hf"


def write(folder: Path, layer: int, tensor: object, model: str = MODEL) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"vec_layer_{layer}_{model}.pt"
    torch.save(tensor, path)
    return path


def error(path: Path) -> VectorError:
    with pytest.raises(VectorError) as raised:
        load(path)
    assert raised.value.hint
    return raised.value


class Exploit:
    """A pickle of this creates a file when it is loaded without care."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, (str(self.path), "w")


@pytest.mark.parametrize("norm_folder", ["vectors", "normalized_vectors", "elsewhere"])
def test_a_folder_of_layers(tmp_path: Path, norm_folder: str) -> None:
    folder = tmp_path / norm_folder / "sycophancy"
    for layer in (10, 2, 31):
        write(folder, layer, torch.tensor([layer + 0.5, -1.0, 0.1]))
    (folder / "notes.txt").write_text("not a vector")
    vector = load(folder)
    assert {layer: row.tolist() for layer, row in vector.directions.items()} == {
        2: [2.5, -1, np.float32(0.1)],
        10: [10.5, -1, np.float32(0.1)],
        31: [31.5, -1, np.float32(0.1)],
    }
    assert (vector.name, vector.origin.model) == ("sycophancy", MODEL)
    assert vector.origin.norm == {"vectors": "raw", "normalized_vectors": "caa", "elsewhere": ""}[norm_folder]
    assert dict(vector.stream_norms) == {}


def test_one_file(tmp_path: Path) -> None:
    vector = load(write(tmp_path / "refusal", 13, torch.tensor([1.0, 2.0])))
    assert (vector.name, vector.layers, vector.hidden_size) == ("refusal", (13,), 2)


@pytest.mark.parametrize("kind", [dict, OrderedDict])
@pytest.mark.parametrize("key", [int, str])
def test_a_dict_of_layers(tmp_path: Path, kind: type, key: type) -> None:
    path = tmp_path / "kindness.pt"
    torch.save(kind({key(4): torch.ones(3), key(11): torch.zeros(3)}), path)
    vector = load(path)
    assert (vector.name, vector.layers, vector.origin.norm) == ("kindness", (4, 11), "")


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_other_float_types_become_float32(tmp_path: Path, dtype: str) -> None:
    tensor = torch.tensor([1.5, -0.25, 3.0], dtype=getattr(torch, dtype), requires_grad=True)
    vector = load(write(tmp_path, 0, tensor))
    assert vector.directions[0].dtype == np.float32
    assert vector.directions[0].tolist() == [1.5, -0.25, 3.0]


def test_both_of_torchs_formats(tmp_path: Path) -> None:
    path = tmp_path / "vec_layer_1_m.pt"
    torch.save(torch.ones(2), path, _use_new_zipfile_serialization=False)
    assert load(path).directions[1].tolist() == [1, 1]


def test_the_hash_of_a_folder_changes_with_any_file(tmp_path: Path) -> None:
    for layer in (0, 1):
        write(tmp_path, layer, torch.ones(2) * layer)
    before = file_sha256(tmp_path)
    assert before == file_sha256(tmp_path)
    write(tmp_path, 1, torch.ones(2) * 7)
    assert file_sha256(tmp_path) != before


@pytest.mark.parametrize(
    "how", ["zip", "legacy", "plain pickle", "oldest pickle", "in a dict", "in a folder"]
)
def test_code_in_a_pickle_is_not_run(tmp_path: Path, how: str) -> None:
    traces = tmp_path / "traces"
    traces.mkdir()
    exploit = Exploit(traces / "ran")
    path = tmp_path / "behaviour" / "vec_layer_0_m.pt"
    path.parent.mkdir()
    match how:
        case "plain pickle":
            path.write_bytes(pickle.dumps(exploit))
        case "oldest pickle":
            path.write_bytes(pickle.dumps(exploit, protocol=0))
        case "in a dict":
            torch.save({0: torch.ones(2), 1: exploit}, path)
        case _:
            torch.save(exploit, path, _use_new_zipfile_serialization=how != "legacy")
    raised = error(path.parent if how == "in a folder" else path)
    assert list(traces.iterdir()) == []
    assert list(path.parent.iterdir()) == [path]
    expected = "is no vector" if how == "oldest pickle" else "holds more than tensors, and was not run"
    assert expected in raised.message


def test_the_exploit_would_work(tmp_path: Path) -> None:
    """Without care it runs, so that the test above shows something."""
    pickle.loads(pickle.dumps(Exploit(tmp_path / "ran"))).close()
    assert (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("tensor", "words"),
    [
        (torch.ones(2, 3), "has the shape 2 x 3"),
        (torch.ones(()), "has the shape a single number"),
        (torch.ones(0), "has the shape 0"),
        (torch.ones(3, dtype=torch.int64), "holds int64 values"),
        (torch.ones(3, dtype=torch.bool), "holds bool values"),
        (torch.ones(3, dtype=torch.complex64), "holds complex64 values"),
        (torch.tensor([1.0, float("nan")]), "has 1 value(s) that are not finite"),
        (torch.tensor([1e300], dtype=torch.float64), "has 1 value(s) that are not finite"),
        (torch.eye(3).to_sparse()[0], "is no plain tensor"),
        ([1.0, 2.0], "is a list, not a tensor"),
        ({"a": torch.ones(2)}, "has the key 'a'"),
        ({True: torch.ones(2)}, "has the key True"),
        ({0: torch.ones(2), "0": torch.ones(2)}, "has layer 0 twice"),
        ({0: torch.ones(2), 5: torch.ones(3)}, "layer 5 is 3 wide, but layer 0 is 2"),
        ({-1: torch.ones(2)}, "has a layer -1"),
        ({}, "has no layers"),
    ],
)
def test_what_is_no_vector(tmp_path: Path, tensor: object, words: str) -> None:
    assert words in error(write(tmp_path, 7, tensor)).message


def test_a_folder_whose_layers_differ_in_width(tmp_path: Path) -> None:
    write(tmp_path, 0, torch.ones(2))
    write(tmp_path, 1, torch.ones(3))
    assert "layer 1 is 3 wide, but layer 0 is 2" in error(tmp_path).message


def test_every_truncation_is_one_clear_error(tmp_path: Path) -> None:
    path = write(tmp_path, 0, torch.arange(50.0))
    whole = path.read_bytes()
    for size in range(0, len(whole), 97):
        path.write_bytes(whole[:size])
        assert str(path) in error(path).message


def test_a_name_without_a_layer(tmp_path: Path) -> None:
    path = tmp_path / "vector.pt"
    torch.save(torch.ones(2), path)
    assert "doesn't say its layer" in error(path).message
    # In a folder too: a file that is left out in silence would be a hole in the vector.
    write(tmp_path, 0, torch.ones(2))
    assert "doesn't say its layer" in error(tmp_path).message


def test_a_folder_of_two_models(tmp_path: Path) -> None:
    write(tmp_path, 0, torch.ones(2))
    write(tmp_path, 0, torch.ones(2), "Llama-2-7b-hf")
    assert "holds vectors of 2 models: Llama-2-7b-chat-hf, Llama-2-7b-hf" in error(tmp_path).message


def test_a_folder_with_a_layer_twice(tmp_path: Path) -> None:
    path = write(tmp_path, 1, torch.ones(2))
    path.with_name(f"vec_layer_01_{MODEL}.pt").write_bytes(path.read_bytes())
    assert "holds a layer twice" in error(tmp_path).message


def test_a_folder_without_vectors(tmp_path: Path) -> None:
    assert "holds no vec_layer_*.pt" in error(tmp_path).message


@pytest.mark.parametrize("zipped", [True, False])
def test_it_is_read_without_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, zipped: bool) -> None:
    path = tmp_path / "vec_layer_0_m.pt"
    torch.save(torch.arange(6.0)[1::2], path, _use_new_zipfile_serialization=zipped)
    monkeypatch.setitem(sys.modules, "torch", None)
    assert load(path).directions[0].tolist() == [1, 3, 5]
