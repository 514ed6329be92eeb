"""`vsteer vectors`: what is printed, in which order options act, and what is refused."""

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result

from tests.test_imports import vsteer_without_torch
from tests.vectors.sample import awkward, same_bits, vector
from vsteer import cli
from vsteer.vectors.derive import random_like, sparsified
from vsteer.vectors.files import file_sha256, load, save
from vsteer.vectors.norms import with_norm
from vsteer.vectors.vector import Origin, SteeringVector

ORIGIN = Origin("some/model", model_layers=10, method="mean_diff", pairs=32, derived=("one", "two"))


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cli.main, ["vectors", *map(str, arguments)])


def good(*arguments: object) -> str:
    done = run(*arguments)
    assert (done.exit_code, done.stderr) == (0, ""), done.output
    return done.stdout


def refused(*arguments: object) -> str:
    done = run(*arguments)
    assert done.exit_code in {1, 2}
    assert done.stdout == ""
    first, second = done.stderr.splitlines()
    assert first.startswith("error: ")
    assert second.startswith("hint: ")
    return first


def write(
    folder: Path, name: str, rows: dict[int, list[float]], origin: Origin = ORIGIN, **more: Any
) -> Path:
    path = folder / f"{name}.safetensors"
    save(vector(rows, name, origin=origin, **more), path)
    return path


@pytest.fixture
def plain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Lengths 5 and 13; a stream of 50 at layer 0. Named without its folder, so that lines are short."""
    monkeypatch.chdir(tmp_path)
    return write(Path(), "plain", {0: [3, -4], 4: [5, 12]}, stream_norms={0: 50.0})


def table(text: str, first: str = "LAYER") -> list[list[str]]:
    lines = text.split("\n")
    start = next(i for i, line in enumerate(lines) if line.split()[:1] == [first])
    end = next((i for i in range(start, len(lines)) if not lines[i]), len(lines))
    return [line.split() for line in lines[start:end]]


def test_inspect_shows_origin_and_layers(plain: Path) -> None:
    shown = good("inspect", plain)
    assert shown.startswith("plain, layers 0, 4, 2 wide, norm raw\n")
    for line in (
        "model         some/model",
        "method        mean_diff",
        "pairs         32",
        "derived 2     two",
    ):
        assert f"  {line}\n" in shown
    assert file_sha256(plain) in shown
    assert "revision" not in shown  # unknown, so not shown
    # 16/25 of the squared length is in -4, 144/169 in 12.
    assert table(shown) == [
        ["LAYER", "DEPTH", "NORM", "NORM/STREAM", "LARGEST"],
        ["0", "0.1000", "5.0000", "0.1000", "0.6400"],
        ["4", "0.5000", "13.0000", "-", "0.8521"],
    ]
    assert max(map(len, shown.splitlines())) <= 80


def test_inspect_as_json(plain: Path) -> None:
    shown = json.loads(good("inspect", plain, "--json"))
    assert shown["format"] == "safetensors"
    assert shown["sha256"] == file_sha256(plain)
    assert shown["origin"]["derived"] == ["one", "two"]
    expected = {"depth": 0.1, "norm": 5, "norm_over_stream": 0.1, "largest_component_share": 0.64}
    assert shown["layers"][0] == pytest.approx({"layer": 0, **expected})
    assert shown["layers"][1]["norm_over_stream"] is None


def test_inspect_of_a_zero_layer(tmp_path: Path) -> None:
    path = write(tmp_path, "zero", {0: [0, 0]}, Origin())
    assert table(good("inspect", path))[1] == ["0", "-", "0.0000", "-", "-"]


def beside(path: Path, columns: dict[str, list[Any]]) -> Path:
    side = path.with_name(f"{path.stem}.layers.parquet")
    pq.write_table(pa.table(columns), side)
    return side


def test_inspect_joins_the_diagnostics_beside_it(plain: Path) -> None:
    columns = {
        "layer": [4, 0, 3],
        "norm": np.array([13, 5, 1], np.float32).tolist(),
        "agreement": [0.25, 0.5, 0.75],
        "split_half_stability": [float("nan"), 0.9, 1.0],
        "letter_share": [None, 0.1, 0.2],
        "class_separation": [2.0, 3.0, 4.0],
    }
    beside(plain, columns)
    shown = good("inspect", plain)
    assert max(map(len, shown.splitlines())) <= 80
    first, second = shown.split("\n\n")[2:4]
    assert table(first)[1] == ["0", "0.1000", "5.0000", "0.1000", "0.6400", "0.5000", "0.9000"]
    assert table(second) == [
        ["LAYER", "LETTER_SHARE", "CLASS_SEPARATION"],
        ["0", "0.1000", "3.0000"],
        ["4", "-", "2.0000"],
    ]
    layers = json.loads(good("inspect", plain, "--json"))["layers"]
    assert [row["agreement"] for row in layers] == [0.5, 0.25]
    assert layers[1]["split_half_stability"] is None


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        (
            {"layer": [0, 4], "norm": [1.0, 1.0]},
            "is of another vector: at layer 0 it has the norm 1, the vector has 5",
        ),
        ({"layer": [0, 0], "agreement": [1.0, 2.0]}, "has not one row for each layer"),
        ({"agreement": [1.0, 2.0]}, "has not one row for each layer"),
        (None, "can't be read"),
    ],
)
def test_diagnostics_that_do_not_fit_are_left_out_aloud(
    plain: Path, columns: dict[str, list[Any]] | None, words: str
) -> None:
    if columns is None:
        plain.with_name("plain.layers.parquet").write_bytes(b"PAR1 torn")
    else:
        beside(plain, columns)
    done = run("inspect", plain)
    assert done.exit_code == 0
    assert words in done.stderr
    assert len(table(done.stdout)[0]) == 5


def png_size(path: Path) -> tuple[int, int]:
    content = path.read_bytes()
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", content[16:24])
    return width, height


def test_inspect_draws(plain: Path, tmp_path: Path) -> None:
    pytest.importorskip("vl_convert")
    picture = tmp_path / "v.png"
    assert f"drawn: {picture}" in good("inspect", plain, "--plot", picture)
    width, height = png_size(picture)
    assert width > 800
    assert height > 600
    drawing = tmp_path / "v.svg"
    good("inspect", plain, "--plot", drawing)
    text = drawing.read_text(encoding="utf-8")
    for words in (
        "plain",
        "norm raw, 2 layers, 2 wide, some/model, mean_diff",
        "norm / stream norm",
        "layer",
    ):
        assert f">{words}<" in text


def test_a_picture_of_another_kind(plain: Path, tmp_path: Path) -> None:
    assert "neither .png nor .svg" in refused("inspect", plain, "--plot", tmp_path / "v.jpeg")


def test_compare_two(plain: Path, tmp_path: Path) -> None:
    """[3, -4] and [8, 6] are at right angles; [5, 12] and [-2.5, -6] are opposite."""
    other = write(tmp_path, "other", {0: [8, 6], 3: [1, 1], 4: [-2.5, -6]})
    shown = good("compare", plain, other)
    assert "not in all of them, and left out: layer 3\n" in shown
    assert table(shown)[1:] == [
        ["0", "0.0000", "5.0000", "10.0000", "2.0000"],
        ["4", "-1.0000", "13.0000", "6.5000", "0.5000"],
    ]
    assert "mean cosine over layers 0, 4: -0.5000\n" in shown


def test_compare_many(plain: Path, tmp_path: Path) -> None:
    """C is -A at layer 0 and zero at layer 4, where it has no cosine: only layer 0 counts for it."""
    other = write(tmp_path, "other", {0: [8, 6], 4: [-2.5, -6]})
    zero = write(tmp_path, "zero", {0: [-3, 4], 4: [0, 0]})
    shown = good("compare", plain, other, zero)
    matrix = shown.split("\n\n")[-1].splitlines()
    assert [line.split() for line in matrix] == [
        ["A", "B", "C"],
        ["A", "1.0000", "-0.5000", "-1.0000"],
        ["B", "-0.5000", "1.0000", "0.0000"],
        ["C", "-1.0000", "0.0000", "1.0000"],
    ]
    shown = json.loads(good("compare", plain, other, zero, "--json"))
    assert shown["mean_cosine"][0] == [pytest.approx(1), pytest.approx(-0.5), pytest.approx(-1)]
    assert [(pair["a"], pair["b"]) for pair in shown["pairs"]] == [
        (str(plain), str(other)),
        (str(plain), str(zero)),
        (str(other), str(zero)),
    ]
    assert shown["pairs"][1]["layers"][1]["cosine"] is None


def test_compare_refuses(plain: Path, tmp_path: Path) -> None:
    assert "only one vector" in refused("compare", plain)
    assert "is 2 wide and 'wide' is 3" in refused("compare", plain, write(tmp_path, "wide", {0: [1, 2, 3]}))
    assert "no layer in common" in refused("compare", plain, write(tmp_path, "far", {9: [1, 2]}))


def test_convert_to_gguf_and_back(tmp_path: Path) -> None:
    source, there, back = (tmp_path / name for name in ("a.safetensors", "b.gguf", "c.safetensors"))
    whole = awkward(layers=(0, 1, 2))
    save(whole, source)
    done = run("convert", source, there)
    assert done.exit_code == 0
    assert done.stderr == "warning: b.gguf lacks layer 0: llama.cpp's control vectors start at direction.1\n"
    assert done.stdout == f"{there}: höflich, layers 1 to 2, 7 wide, norm residual:0.1\n"
    good("convert", there, back)
    rest = SteeringVector(whole.name, {layer: whole.directions[layer] for layer in (1, 2)})
    assert same_bits(load(back), rest)
    assert load(back).origin == whole.origin


def test_convert_of_caas_files(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    folder = tmp_path / "vectors" / "sycophancy"
    folder.mkdir(parents=True)
    for layer in range(3):
        torch.save(torch.tensor([3.0, 4.0]) * (layer + 1), folder / f"vec_layer_{layer}_Llama-2-7b.pt")
    target = tmp_path / "s.safetensors"
    assert good("convert", folder, target, "--norm", "unit") == (
        f"{target}: sycophancy, layers 0 to 2, 2 wide, norm unit\n"
    )
    assert np.allclose(load(target).directions[2], [0.6, 0.8])


def test_convert_with_other_behaviours(plain: Path, tmp_path: Path) -> None:
    """Mean lengths (5 + 15) / 2 = 10 and (13 + 39) / 2 = 26."""
    other = write(tmp_path, "other", {0: [9, 12], 4: [39, 0]})
    good("convert", plain, tmp_path / "out.safetensors", "--norm", "caa", "--with", other)
    made = load(tmp_path / "out.safetensors")
    assert [made.directions[layer].tolist() for layer in made.layers] == [[6, -8], [10, 24]]


def test_the_order_of_what_convert_does_is_fixed(tmp_path: Path) -> None:
    """Layer, sum, orthogonal, sparse, norm, random: each of these in another place gives other numbers."""
    a = write(tmp_path, "a", {0: [9, 9, 9], 1: [1, 2, 2]}, Origin())
    b = write(tmp_path, "b", {0: [0, 0, 2], 1: [3, 0, 0]}, Origin())
    c = write(tmp_path, "c", {0: [1, 0, 0], 1: [0, 1, 0]}, Origin())
    target = tmp_path / "out.safetensors"
    options = ["--norm", "unit", "--sparsify", 1 / 3, "--orthogonal-to", c, "--plus", b, "--layer", 1]
    good("convert", a, target, *options)
    # Layer 1 everywhere: [1, 2, 2]; plus b: [1, 2, 4], [4, 2, 2]; without c: [0, 2, 4], [4, 0, 2];
    # the largest of three: [0, 0, 4], [4, 0, 0]; at length 1.
    made = load(target)
    assert [made.directions[layer].tolist() for layer in (0, 1)] == [[0, 0, 1], [1, 0, 0]]
    good("convert", a, tmp_path / "r.safetensors", *options, "--random", 5, "--name", "control")
    control = load(tmp_path / "r.safetensors")
    assert same_bits(control, random_like(made, 5))
    assert (control.name, control.origin.method) == ("control", "random")


def test_convert_keeps_what_is_there_unless_forced(plain: Path, tmp_path: Path) -> None:
    target = write(tmp_path, "old", {0: [1]})
    before = target.read_bytes()
    assert "exists already" in refused("convert", plain, target)
    assert target.read_bytes() == before
    good("convert", plain, target, "--force")
    assert same_bits(load(target), load(plain))


def test_convert_refuses(plain: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.safetensors"
    assert "without --norm caa" in refused("convert", plain, out, "--with", plain)
    assert "unknown norm 'l2'" in refused("convert", plain, out, "--norm", "l2")
    assert "at layer 4" in refused("convert", plain, out, "--norm", "residual:0.1")
    assert "neither .safetensors nor .gguf" in refused("convert", plain, tmp_path / "out.pt")
    assert "No such file" in refused("convert", tmp_path / "gone.gguf", out)
    assert not out.exists()


def test_every_verb_takes_a_bad_file_in_one_error(tmp_path: Path) -> None:
    torn = tmp_path / "torn.safetensors"
    save(awkward(), torn)
    torn.write_bytes(torn.read_bytes()[:-1])
    assert "its bytes are not those that were written" in refused("inspect", torn)
    assert "its bytes are not those that were written" in refused("compare", torn, torn)
    assert "its bytes are not those that were written" in refused("convert", torn, tmp_path / "out.gguf")
    assert list(tmp_path.iterdir()) == [torn]


def test_all_but_gguf_and_pt_works_without_torch_and_gguf(plain: Path) -> None:
    here = plain.absolute()
    assert vsteer_without_torch("vectors", "inspect", str(here)).returncode == 0
    assert vsteer_without_torch("vectors", "compare", str(here), str(here)).returncode == 0
    there = str(here.with_name("there.safetensors"))
    assert vsteer_without_torch("vectors", "convert", str(here), there, "--norm", "unit").returncode == 0
    refused = vsteer_without_torch("vectors", "convert", str(here), str(here.with_name("there.gguf")))
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "needs the gguf package, which isn't installed\n" in refused.stderr
    assert sorted(path.name for path in here.parent.iterdir()) == ["plain.safetensors", "there.safetensors"]


def test_what_the_options_do_is_what_the_functions_do(plain: Path, tmp_path: Path) -> None:
    good("convert", plain, tmp_path / "out.safetensors", "--sparsify", 0.5, "--norm", "unit")
    assert same_bits(load(tmp_path / "out.safetensors"), with_norm(sparsified(load(plain), 0.5), "unit"))
