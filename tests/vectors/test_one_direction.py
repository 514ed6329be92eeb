"""One direction of a file that holds many: its numbers, however they are stored, and what can't be told."""

from __future__ import annotations

import contextlib
import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from safetensors.numpy import save_file

from tests.vectors.test_hostile import safetensors_file
from vsteer import cli
from vsteer.errors import VectorError
from vsteer.vectors.files import load
from vsteer.vectors.files.one_direction import find_tensor, load_direction
from vsteer.vectors.vector import SteeringVector

torch = pytest.importorskip("torch")

# 40 directions, 6 wide. Every number says where it stands: 100 * direction + component.
DECODER = (100 * np.arange(40)[:, None] + np.arange(6)).astype(np.float32) + 1
SEVENTH = [701, 702, 703, 704, 705, 706]


def saved(folder: Path, suffix: str, **tensors: Any) -> Path:
    path = folder / f"sae{suffix}"
    if suffix == ".npz":
        np.savez(path, **tensors)
    elif suffix == ".compressed.npz":
        np.savez_compressed(path, **tensors)
    else:
        save_file({name: np.ascontiguousarray(one) for name, one in tensors.items()}, path)
    return path


def error(path: Path, key: str = "W_dec", **settings: Any) -> str:
    with pytest.raises(VectorError) as raised:
        load_direction(path, key, 3, **settings)
    assert raised.value.hint
    assert len(str(raised.value)) <= 600
    return raised.value.message


@pytest.mark.parametrize("suffix", [".safetensors", ".npz", ".compressed.npz"])
@pytest.mark.parametrize("dtype", ["<f4", "<f8", "<f2"])
def test_rows_and_columns(tmp_path: Path, suffix: str, dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # a column is gathered in pieces, of which the last is shorter
    monkeypatch.setattr("vsteer.vectors.files.one_direction._CHUNK", 300)
    decoder = DECODER.astype(dtype)
    path = saved(tmp_path, suffix, W_enc=decoder.T, W_dec=decoder, one=decoder[7], row=decoder[7:8])
    for key, index in (("W_dec", 7), ("W_enc", 7), ("one", None), ("row", None)):
        found = load_direction(path, key, 3, index=index, width=6, where="attention")
        assert found.directions[3].dtype == np.float32
        assert found.directions[3].tolist() == SEVENTH
        assert (found.layers, found.origin.where, found.origin.norm) == ((3,), "attention", "raw")
    last = load_direction(path, "W_enc", 3, index=39, width=6)
    assert last.directions[3].tolist() == decoder[39].tolist()


def test_an_array_that_is_stored_by_column(tmp_path: Path) -> None:
    path = saved(tmp_path, ".npz", W_dec=np.asfortranarray(DECODER), W_enc=np.asfortranarray(DECODER.T))
    for key in ("W_dec", "W_enc"):
        assert load_direction(path, key, 3, index=7, width=6).directions[3].tolist() == SEVENTH


def test_bfloat16_has_the_values_that_torch_gives_it(tmp_path: Path) -> None:
    from safetensors.torch import save_file as save_torch

    decoder = torch.randn(40, 6, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    save_torch({"W_dec": decoder}, tmp_path / "sae.safetensors")
    found = load_direction(tmp_path / "sae.safetensors", "W_dec", 0, index=5, width=6)
    assert found.directions[0].tolist() == decoder[5].float().tolist()


def test_a_square_matrix_needs_its_axis(tmp_path: Path) -> None:
    path = saved(tmp_path, ".safetensors", W_dec=DECODER[:6])
    assert "may be its rows or its columns" in error(path, index=2, width=6)
    rows, columns = (load_direction(path, "W_dec", 3, index=2, axis=axis, width=6) for axis in (0, 1))
    assert rows.directions[3].tolist() == [201, 202, 203, 204, 205, 206]
    assert columns.directions[3].tolist() == [3, 103, 203, 303, 403, 503]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"width": 6}, "has 40 directions"),
        ({"width": 6, "index": 40}, "has no direction 40"),
        ({"width": 7, "index": 1}, "neither side of 'W_dec' (40 x 6) is the model's width, 7"),
        ({"width": 6, "index": 1, "axis": 1}, "along axis 1 the directions of 'W_dec' (40 x 6) are 40 wide"),
        ({"index": 1}, "may be its rows or its columns"),
        ({"key": "W_dce", "index": 1}, "no tensor 'W_dce'"),
        ({"key": "one", "axis": 0}, "it is one direction"),
        ({"key": "one", "index": 1}, "has no direction 1"),
        ({"key": "cube", "index": 0}, "neither a direction nor a matrix"),
        ({"key": "counts", "index": 0, "width": 6}, "holds I64 values"),
        ({"key": "zero", "index": 0, "width": 6}, "is zero, and steers nothing"),
        ({"key": "nan", "index": 1, "width": 6}, "not finite"),
    ],
)
def test_what_can_t_be_read_is_one_error(tmp_path: Path, settings: dict[str, Any], words: str) -> None:
    bad = np.where(DECODER > 100, np.nan, DECODER)
    path = saved(
        tmp_path,
        ".safetensors",
        W_dec=DECODER,
        one=DECODER[7],
        cube=DECODER.reshape(2, 20, 6),
        counts=DECODER.astype(np.int64),
        zero=0 * DECODER,
        nan=bad,
    )
    assert words in error(path, **settings)


def test_pickles_are_refused_unread(tmp_path: Path) -> None:
    for name, zipped in (("new.pt", True), ("old.pt", False)):
        torch.save({"W_dec": torch.ones(4)}, tmp_path / name, _use_new_zipfile_serialization=zipped)
        assert "is a pickle" in error(tmp_path / name)
    np.savez(tmp_path / "o.npz", W_dec=np.array([{"a": 1}], dtype=object))
    assert "Python objects" in error(tmp_path / "o.npz")


@pytest.mark.parametrize(
    "header",
    [
        b'{"W_dec":{"dtype":"F32","shape":[4611686018427387904],"data_offsets":[0,8]}}',
        b'{"W_dec":{"dtype":"F32","shape":[2],"data_offsets":[0,1099511627776]}}',
        b'{"W_dec":{"dtype":"F32","shape":[-2],"data_offsets":[8,0]}}',
        b'{"W_dec":{"dtype":"F32","shape":[9007199254740992,0],"data_offsets":[0,0]}}',
        b'{"W_dec":{"dtype":["F32"],"shape":[2],"data_offsets":[0,8]}}',
        b'{"W_dec":{"dtype":"F32"}}',
        b'{"W_dec":[]}',
        b'{"W_dec":' + b"[" * 100_000,
        b"{" + b" " * 5_000_000 + b"}",
    ],
)
def test_headers_that_lie(tmp_path: Path, header: bytes) -> None:
    path = tmp_path / "sae.safetensors"
    path.write_bytes(safetensors_file(header, bytes(8)))
    assert error(path, width=2)


def test_files_that_are_cut_short_or_swell(tmp_path: Path) -> None:
    for suffix in (".safetensors", ".npz"):
        whole = saved(tmp_path, suffix, W_dec=DECODER).read_bytes()
        for size in range(0, len(whole) - 1, 37):
            cut = tmp_path / f"cut{suffix}"
            cut.write_bytes(whole[:size])
            error(cut, index=39, width=6)
    bomb = saved(tmp_path, ".compressed.npz", W_dec=np.zeros((10_000, 600), np.float32))
    assert "would swell to 24,000,128 bytes" in error(bomb, index=1, width=600)
    with zipfile.ZipFile(tmp_path / "no.npz", "w") as archive:
        archive.writestr("W_dec.npy", b"\x93NUMPY\x01\x00" + struct.pack("<H", 9) + b"9" * 9)
    assert "could not read" in error(tmp_path / "no.npz")
    (tmp_path / "text.npz").write_text("W_dec")
    assert "neither a safetensors file nor an .npz" in error(tmp_path / "text.npz")
    assert "No such file" in error(tmp_path / "missing.npz")


def test_a_large_file_is_not_read_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """64 MiB are the most that other vectors' files may have; of this one 6 numbers are read."""
    path, count = tmp_path / "sae.safetensors", 20_000_000
    end = 24 * count
    header = b'{"W_dec":{"dtype":"F32","shape":[%d,6],"data_offsets":[0,%d]}}' % (count, end)
    with path.open("wb") as file:
        file.write(safetensors_file(header))
        start = file.tell() + 24 * 7
        file.seek(start)
        file.write(DECODER[7].tobytes())
        file.truncate(start - 24 * 7 + end)
    tensor = find_tensor(path, "W_dec")
    sizes: list[int] = []
    opened = tensor.opened

    @contextlib.contextmanager
    def counting() -> Iterator[Any]:
        with opened() as file:
            read = file.read

            class Counting:
                seek = file.seek

                def read(self, size: int) -> bytes:
                    sizes.append(size)
                    return read(size)

            yield Counting()

    object.__setattr__(tensor, "opened", counting)
    assert tensor.direction(0, 7).tolist() == SEVENTH
    assert sizes == [24]


def run(*arguments: object) -> Any:
    return CliRunner().invoke(cli.main, ["vectors", *map(str, arguments)])


def test_inspect_and_convert(tmp_path: Path) -> None:
    path = saved(tmp_path, ".npz", W_dec=DECODER)
    chosen = ("--key", "W_dec", "--index", 7, "--axis", 0, "--at-layer", 12, "--where", "attention")
    shown = run("inspect", path, *chosen).stdout
    assert "sae-7, layer 12, 6 wide, norm raw" in shown
    assert "sae.npz: W_dec, axis 0, 7" in shown
    out = tmp_path / "cats.safetensors"
    done = run("convert", path, out, *chosen, "--norm", "unit", "--name", "cats")
    assert done.exit_code == 0, done.output
    vector = load(out)
    expected = np.array(SEVENTH) / np.sqrt(np.square(SEVENTH).sum())
    assert vector.directions[12] == pytest.approx(expected, rel=1e-6)
    assert (vector.name, vector.origin.norm, vector.origin.where) == ("cats", "unit", "attention")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--index", "7"), "--index has no meaning without --key"),
        (("--key", "W_dec"), "--key needs --at-layer"),
        (("--key", "W_dec", "--at-layer", "3"), "may be its rows or its columns"),
        ((), "holds arrays by their keys, and none is chosen"),
    ],
)
def test_commands_say_what_is_missing(tmp_path: Path, arguments: tuple[str, ...], words: str) -> None:
    done = run("inspect", saved(tmp_path, ".npz", W_dec=DECODER), *arguments)
    first, second = done.stderr.splitlines()
    assert (words in first, second.startswith("hint: "), done.exit_code in (1, 2)) == (True, True, True)


def test_no_data_no_deviation(tmp_path: Path) -> None:
    chosen = ("--key", "W_dec", "--index", 7, "--axis", 0, "--at-layer", 12)
    path = saved(tmp_path, ".npz", W_dec=DECODER)
    for norm in ("deviation", "residual:0.1"):
        done = run("convert", path, tmp_path / "o.safetensors", *chosen, "--norm", norm)
        assert "needs what extraction measures" in done.stderr
    assert not (tmp_path / "o.safetensors").exists()


def test_a_vector_acts_where_it_belongs(tmp_path: Path) -> None:
    path = saved(tmp_path, ".npz", W_dec=DECODER)

    def at(where: str) -> SteeringVector:
        return load_direction(path, "W_dec", 3, index=7, width=6, where=where)

    for where, operations in (
        ("layer", ("add", "clamp", "ablate", "ablate_everywhere")),
        ("attention", ("add_attention", "ablate_everywhere")),
    ):
        for operation in ("add", "add_attention", "ablate", "ablate_everywhere", "clamp"):
            if operation in operations:
                assert at(where).at(3, operation=operation).operation == operation
            else:
                with pytest.raises(VectorError, match="does not act"):
                    at(where).at(3, operation=operation)
