"""The figures as files: which there are, what each says of itself, and whether its numbers are the run's."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from py_mini_racer import mini_racer

from tests.report.golden import Ablated, logit
from tests.results.made_up import Cell, Steered, controls, make_run, sweep
from vsteer import cli
from vsteer.analysis.statistics import write_statistics
from vsteer.report.figures import PAGE, every_figure
from vsteer.report.page import gathered
from vsteer.report.scripts import SCRIPTS, page_file
from vsteer.results.views import run_names

LAYERS, MULTIPLIERS = (2, 3), (-2.0, 2.0)
ITEMS = 10
MINUS = "\u2212"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    steered = sweep("warm", LAYERS, MULTIPLIERS, system="polite")
    folder = make_run(
        tmp_path_factory.mktemp("runs") / "run", [*steered, *controls(steered, 4)], logit, items=ITEMS
    )
    write_statistics(folder)
    return folder


def figures(folder: Path) -> dict[str, Any]:
    """Each figure as it is drawn first, by the part of its file's name that says what it is."""
    made = list(every_figure(gathered([folder], run_names([folder]))))
    return {one["file"].split("-")[0]: one["spec"] for one in reversed(made)}


def drawn(spec: Any) -> ET.Element:
    import vl_convert

    return ET.fromstring(vl_convert.vega_to_svg(spec))


def words(picture: ET.Element) -> str:
    return " ".join(text.strip() for text in picture.itertext() if text.strip())


def bars(picture: ET.Element) -> list[ET.Element]:
    """The vertical lines that are neither an axis nor its ticks: error bars."""
    groups = [each for each in picture.iter() if "mark-rule role-mark" in each.get("class", "")]
    lines = [line for group in groups for line in group]
    return [line for line in lines if float(line.get("y2", 0)) != 0 and float(line.get("x2", 0)) == 0]


@pytest.mark.long
def test_every_figure_is_three_files_that_say_what_they_show(run: Path, tmp_path: Path) -> None:
    done = CliRunner().invoke(
        cli.main, ["report", str(run), "-o", str(tmp_path / "a.html"), "--figures", str(tmp_path / "figures")]
    )
    assert done.exit_code == 0, done.output
    files = sorted((tmp_path / "figures").iterdir())
    stems = {path.stem for path in files}
    about = "toy_7b-choice_toy-warm-raw-all"
    assert {f"layers-{about}-multiplier2", f"heat-{about}", f"dose-{about}-layer3"} <= stems
    assert {path.name for path in files} == {
        f"{stem}.{end}" for stem in stems for end in ("svg", "pdf", "png")
    }
    begins = {".pdf": b"%PDF-", ".png": b"\x89PNG", ".svg": b"<svg"}
    assert all(path.read_bytes().startswith(begins[path.suffix]) for path in files)
    said = words(ET.parse(tmp_path / "figures" / f"layers-{about}-multiplier2.svg").getroot())
    for part in (
        "Effect of the vector warm by layer, multiplier ±2",
        "Model toy-7b, evaluation choice:toy, system prompt \u201cpolite\u201d",
        "vector warm, norm raw, positions all.",
        "4 random vectors",
        "95% intervals over items",
        "10 items.",
        "Injected norm over stream norm is not measured.",
        "effect on the logit difference",
        "layer",
    ):
        assert part in said, part


def test_the_numbers_are_those_of_the_run(run: Path) -> None:
    spec = figures(run)["heat"]
    (shown,) = [each["values"] for each in spec["data"] if each["name"] == "rows"]
    found = {(one["layer"], one["multiplier"]): one["words"] for one in shown}

    def effect(layer: int, multiplier: float) -> float:
        cells = [
            (Cell(Steered("warm", layer, multiplier), item, "original"), Cell(Steered(), item, "original"))
            for item in range(ITEMS)
        ]
        return sum(logit(one) - logit(other) for one, other in cells) / ITEMS

    assert found == {
        (layer, multiplier): f"{effect(layer, multiplier):+.2f}".replace("-", MINUS)
        for layer in LAYERS
        for multiplier in MULTIPLIERS
    }
    assert set(found.values()) <= set(words(drawn(spec)).split())


@pytest.mark.long
def test_small_effects_have_ticks_and_cells_that_can_be_read(tmp_path: Path) -> None:
    def says(cell: Cell) -> float:
        one = cell.steered
        return 8e-7 * one.multiplier if one.layer == 1 else -0.001 if one.layer == 2 else one.multiplier

    small = figures(make_run(tmp_path / "small", sweep("warm", (1,), (-1.0, 1.0)), says))
    ticks = words(drawn(small["layers"]))
    assert f"e{MINUS}7" in ticks
    assert "0.0000" not in ticks
    # each tick has a number of its own
    axis = [word for word in ticks.split() if f"e{MINUS}7" in word]
    assert len(axis) == len(set(axis)) > 3
    mixed = figures(make_run(tmp_path / "mixed", sweep("warm", (1, 2, 3), (-1.0, 1.0)), says))
    cells = words(drawn(mixed["heat"])).split()
    assert "0.00" in cells
    assert not {f"{MINUS}0.00", "-0.00", "+0.00"} & set(cells)


@pytest.mark.long
def test_a_single_layer_draws_its_interval_and_its_band(tmp_path: Path) -> None:
    steered = sweep("warm", (3,), (-1.0, 1.0))
    folder = make_run(tmp_path / "run", [*steered, *controls(steered, 4)], logit, items=12)
    write_statistics(folder)
    spec = figures(folder)["layers"]
    (shown,) = [each["values"] for each in spec["data"] if each["name"] == "rows"]
    assert all(one["low"] < one["y"] < one["high"] for one in shown)
    picture = drawn(spec)
    assert len(bars(picture)) == 2
    assert "random vectors" in words(picture)
    # Of a layer among others the area is drawn, and no bar.
    several = make_run(tmp_path / "several", sweep("warm", LAYERS, MULTIPLIERS), logit, items=12)
    write_statistics(several)
    assert bars(drawn(figures(several)["layers"])) == []


def scripts(data: Any) -> Any:
    """The page's scripts that draw nothing."""
    return [
        PAGE % json.dumps(json.dumps(data)),
        *map(page_file, ("data.js", "figures.js", "choose.js", "alone.js")),
    ]


def test_a_sweep_over_layers_comes_before_a_single_layer(tmp_path: Path) -> None:
    steered = [*sweep("wide", LAYERS, MULTIPLIERS), *sweep("loud", (3,), MULTIPLIERS)]
    folder = make_run(
        tmp_path / "run",
        steered,
        lambda cell: cell.steered.multiplier * (9 if cell.steered.vector == "loud" else 1),
    )
    with mini_racer() as page:
        for script in scripts(gathered([folder], run_names([folder]))):
            page.eval(script)
        assert page.eval("firstFamily().vector") == "wide"


def test_numbers_in_words() -> None:
    with mini_racer() as page:
        for script in scripts(
            {
                "tables": {
                    name: {"columns": {}, "length": 0}
                    for name in (
                        "multiplier_curves",
                        "without_multiplier",
                        "layer_peaks",
                        "pca",
                        "capability_cost",
                    )
                },
                "facts": [],
                "operations": {},
                "why": {},
            }
        ):
            page.eval(script)
        for call, text in {
            "number(-1.2e-7)": f"{MINUS}1.2e{MINUS}7",
            "number(-0)": "0",
            "number(-0.5)": f"{MINUS}0.500",
            "signed(0.25)": "+0.25",
            "rounded(-0.001, 2)": "0.00",
            "rounded(0.001, 2)": "0.00",
            "rounded(-0.126, 2)": f"{MINUS}0.13",
            "multiplierText(-1e-7)": f"{MINUS}1e{MINUS}7",
            "wrapped('a bb ccc', 4).join('|')": "a bb|ccc",
            "wrapped('abcdefgh', 3).join('|')": "abc|def|gh",
        }.items():
            assert page.eval(call) == text, call


def test_no_two_scripts_of_the_page_define_one_name() -> None:
    named = [
        name
        for script in SCRIPTS
        for name in re.findall(
            r"^(?:async )?(?:function|const|let|class) (\w+)", page_file(script), re.MULTILINE
        )
    ]
    assert len(named) == len(set(named)) > 50


@pytest.mark.long
def test_files_have_names_of_their_own_whatever_the_run_is_called(tmp_path: Path) -> None:
    steered = [*sweep("../../warm", (1, 2), (1.0,)), Ablated("über warm", 1)]
    folder = make_run(tmp_path / "run", steered, lambda cell: 1.0, model="org/model 7b")
    names = [one["file"] for one in every_figure(gathered([folder], run_names([folder])))]
    assert len(names) == len(set(names)) > 3
    assert all(re.fullmatch(r"[A-Za-z0-9_+.-]{1,180}", name) for name in names)
    assert not any("/" in name or name.startswith(".") for name in names)


@pytest.mark.long
def test_vectors_whose_names_a_file_cannot_tell_apart_each_have_their_figures(tmp_path: Path) -> None:
    vectors = ("东京", "大阪", "a:b", "a/b", "A/b", "x" * 60 + "1", "x" * 60 + "2", "\U0001f642", "漢" * 100)
    steered = [one for vector in vectors for one in sweep(vector, (1, 2), (1.0,))]
    folder = make_run(tmp_path / "run", steered, lambda cell: 1.0)
    made = list(every_figure(gathered([folder], run_names([folder]))))
    layers = [one for one in made if one["file"].startswith("layers-") and "effect_" not in one["file"]]
    titles = ["".join(one["spec"]["title"]["text"]).replace(" ", "") for one in layers]
    assert [sum(f"vector{vector}bylayer" in title for title in titles) for vector in vectors] == [1] * 9
    names = [one["file"] for one in made]
    assert len({name.lower() for name in names}) == len(names)
    assert all(len(name.encode()) <= 190 for name in names)
    assert any("东京" in name for name in names)


@pytest.mark.long
def test_there_is_a_figure_of_every_multiplier_and_measure(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", sweep("warm", (1, 2), (-2.0, -0.5, 0.5, 2.0)), logit)
    names = [one["file"] for one in every_figure(gathered([folder], run_names([folder])))]
    about = "toy_7b-choice_toy-warm-raw-all"
    measures = ("", "-effect_p", "-effect_headroom")
    assert [name for name in names if name.startswith("layers-")] == [
        f"layers-{about}-multiplier{size}{measure}" for measure in measures for size in ("2", "0.5")
    ]
    assert [name for name in names if name.startswith("heat-")] == [
        f"heat-{about}{each}" for each in measures
    ]
    # what shows the same in every measure is drawn once
    assert [name for name in names if name.startswith("mass-")] == [
        f"mass-{about}-multiplier2",
        f"mass-{about}-multiplier0.5",
    ]
