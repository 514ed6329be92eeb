"""The page as a file: what it holds, what it says of runs that are less than whole, and how large it gets."""

from __future__ import annotations

import base64
import gzip
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from tests.report.golden import HOSTILE, ITEMS, PEAK, golden, hostile, logit
from tests.results.made_up import Cell, Steered, make_run, sweep
from vsteer import cli
from vsteer.report import diagnostics, tables, texts
from vsteer.report.facts import ranges
from vsteer.report.page import gathered, script_safe, write_report
from vsteer.report.tables import coded
from vsteer.results.queries import queries
from vsteer.results.views import connect_runs, run_names


class Elements(HTMLParser):
    """A page as a browser's parser takes it: every start tag, and the text in each script element."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: dict[str, str] = {}
        self._inside = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._inside = str(dict(attrs).get("id", "page")) if tag == "script" else ""

    def handle_data(self, data: str) -> None:
        if self._inside:
            self.scripts[self._inside] = self.scripts.get(self._inside, "") + data

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    @property
    def data(self) -> Any:
        return json.loads(self.scripts["data"])


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return golden(tmp_path_factory.mktemp("runs") / "golden")


@pytest.fixture(scope="module")
def page(run: Path) -> Elements:
    done = CliRunner().invoke(cli.main, ["report", str(run)])
    assert done.stdout == f"report     {run}/report.html\n", done.output
    return Elements((run / "report.html").read_text())


def column(table: dict[str, Any], name: str) -> list[Any]:
    found = table["columns"][name]
    return found["values"] if "values" in found else [found["different"][n] for n in found["which"]]


def test_it_needs_no_other_file(page: Elements) -> None:
    for tag, attributes in page.tags:
        assert not {"src", "srcset", "data", "poster"} & attributes.keys(), tag
        assert tag not in ("link", "iframe", "object", "embed", "img", "base")
        if tag == "a":
            assert str(attributes["href"]).startswith("#")
    (policy,) = [a["content"] for t, a in page.tags if t == "meta" and "http-equiv" in a]
    assert str(policy).startswith("default-src 'none'")
    assert not re.search(r"https?:", str(policy))


def test_the_runtime_is_vega_alone(page: Elements) -> None:
    script = gzip.decompress(base64.b64decode(page.scripts["runtime"])).decode()
    assert "window.vega" in script
    assert "window.SPECS" in script
    # of Vega-Lite nothing is needed: its figures were compiled
    assert len(page.scripts["runtime"]) < 330_000


def test_the_sql_that_is_shown_is_the_sql_that_was_run(run: Path, page: Elements) -> None:
    known = queries()
    with connect_runs([run]) as database:
        for name, shown in page.data["tables"].items():
            if name in known:
                assert shown["sql"] == known[name].sql
                assert shown["about"] == known[name].about
                assert shown["command"] == f"vsteer sql {name} {run}"
            if not name.startswith(("texts", "questions", "scores")):
                again = database.execute(shown["sql"])
                header = [one[0] for one in again.description]
                assert header == list(shown["columns"])
                assert len(again.fetchall()) == shown["length"]


def test_numbers_are_those_of_the_run(page: Elements) -> None:
    curves = page.data["tables"]["multiplier_curves"]
    rows = [
        dict(zip(curves["columns"], row, strict=True))
        for row in zip(*(column(curves, name) for name in curves["columns"]), strict=True)
    ]
    for layer, multiplier in ((PEAK, 2.0), (0, -1.0)):
        (found,) = [
            row
            for row in rows
            if row["layers"] == [layer]
            and row["multiplier"] == multiplier
            and row["evaluation"] == "choice:toy"
            and row["norm"] == "raw"
        ]
        true = [
            logit(Cell(Steered("warm", layer, multiplier), item, "original"))
            - logit(Cell(Steered(), item, "original"))
            for item in range(ITEMS)
        ]
        assert found["effect"] == pytest.approx(sum(true) / ITEMS, rel=1e-4)
        assert found["total_mass"] == pytest.approx(0.8 - 0.1 * abs(multiplier), rel=1e-5)


def test_what_was_run(page: Elements) -> None:
    (fact,) = page.data["facts"]
    assert (fact["good"], fact["planned"], fact["errors"], fact["missing"]) == (
        fact["planned"],
        fact["planned"],
        0,
        0,
    )
    assert fact["live"] is False
    vectors = {one["norm"]: one for one in fact["vectors"]}
    assert vectors["raw"]["layers"] == "0-5"
    assert (vectors["raw"]["random"], vectors["raw"]["shuffled"], vectors["unit"]["random"]) == (19, 3, 0)
    assert {one["evaluation"]: one["items"] for one in fact["evaluations"]} == {
        "choice:toy": ITEMS,
        "choice:mmlu": ITEMS,
        "open_ended:toy": ITEMS,
    }


def test_hostile_words_stay_words(tmp_path: Path) -> None:
    path = write_report([hostile(tmp_path / "hostile")], tmp_path / "out.html")
    text = path.read_text()
    tame = Elements(Path(golden_page(tmp_path)).read_text())
    found = Elements(text)
    # nothing that came from the run made an element or an attribute
    assert [tag for tag, _ in found.tags] == [tag for tag, _ in tame.tags]
    assert "alert(1)</script>" not in text
    assert "\u2028" not in text
    shown = found.data["tables"]["texts"]
    assert f"-1.0 {HOSTILE} \x00 \x1b[31m" in column(shown, "text")
    assert column(found.data["tables"]["questions"], "question") == [f"{HOSTILE} What?"]


def golden_page(tmp_path: Path) -> Path:
    folder = make_run(tmp_path / "tame", sweep("warm", (1, 2), (-1.0, 1.0)), lambda cell: 1.0)
    return write_report([folder])


def test_script_safe_is_the_same_json() -> None:
    value = {"a": HOSTILE, "<b>": ["\u2029", "<!--", "]]>"], "c": "\\u003c"}
    text = script_safe(json.dumps(value, ensure_ascii=False))
    assert json.loads(text) == value
    assert not set("<>&\u2028\u2029") & set(text)


def test_an_incomplete_run_says_so_and_empty_sections_why(tmp_path: Path) -> None:
    half = make_run(
        tmp_path / "half",
        sweep("warm", (1, 2), (-1.0, 1.0)),
        lambda cell: None if cell.item == 0 and cell.steered.vector else 1.0,
        left_out=lambda cell: cell.item == 1 and cell.steered.layer == 1,
    )
    with_texts = hostile(tmp_path / "texts")
    data = gathered([half], run_names([half]))
    (fact,) = data["facts"]
    # of 5 configurations on 4 items, 4 steered rows failed and 2 were never run
    assert (fact["planned"], fact["good"], fact["errors"], fact["missing"]) == (20, 14, 4, 2)
    assert set(column(data["tables"]["failures"], "problem")) == {"error", "missing"}
    assert data["why"]["texts"] == "no open-ended evaluation in this run"
    assert "no open-ended evaluation" in data["why"]["coherence"]
    other = gathered([with_texts], run_names([with_texts]))
    assert other["why"]["choice"] == "no choice evaluation in this run"
    assert (other["facts"][0]["errors"], other["facts"][0]["missing"]) == (1, 1)


def test_statistics_are_shown_where_they_are_of_these_rows(page: Elements, tmp_path: Path) -> None:
    assert page.data["nostatistics"] == ""
    assert None not in column(page.data["tables"]["layer_peaks"], "heldout_effect")
    folder = make_run(tmp_path / "without", sweep("warm", (1, 2), (-1.0, 1.0)), lambda cell: 1.0)
    data = gathered([folder], run_names([folder]))
    assert f"the statistics of {folder} are not there" in data["nostatistics"]
    assert f"`vsteer stats {folder}`" in data["nostatistics"]
    assert set(column(data["tables"]["layer_peaks"], "heldout_effect")) == {None}


def test_two_configurations_in_one_place_are_warned_of(tmp_path: Path) -> None:
    mixed = [*sweep("warm", (1,), (1.0,)), *sweep("warm", (1,), (1.0,), dtype="bfloat16")]
    folder = make_run(tmp_path / "mixed", mixed, lambda cell: 1.0)
    data = gathered([folder], run_names([folder]))
    assert "1 places in these figures hold several configurations" in data["warnings"][0]


def test_a_table_that_is_cut_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_run(tmp_path / "run", sweep("warm", range(4), (-1.0, 1.0)), logit, items=5)
    monkeypatch.setattr(tables, "MOST_ROWS", 11)
    monkeypatch.setattr(tables, "MOST_SLOPES", 11)
    data = gathered([folder], run_names([folder]))["tables"]
    assert data["multiplier_curves"]["length"] == 11
    assert data["multiplier_curves"]["note"] == "the first 11 of 12 rows"
    # whole layers, those that move most: 3 and 2 of the four
    slopes = data["item_slopes"]
    assert slopes["note"].startswith("10 of 20 rows")
    assert {tuple(layers) for layers in column(slopes, "layers")} == {(3,), (2,)}


def test_texts_are_a_stated_sample_of_whole_prompts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steered = sweep("warm", range(3), (-1.0, 1.0), evaluation="open_ended:toy", kind="open_ended")
    folder = make_run(tmp_path / "run", steered, lambda cell: 0.0, items=8)
    monkeypatch.setattr(texts, "MOST_TEXTS", 22)
    with connect_runs([folder]) as database:
        found = texts.texts(database)
    # 7 texts a prompt, the unsteered one among them: three whole prompts
    shown = found["texts"]
    assert shown.note.startswith("21 of 56 texts: 3 of 8 prompts")
    prompts = shown.columns["prompt_id"]
    assert {prompts.count(one) for one in prompts} == {7}
    assert len(found["questions"]) == 3


def test_activations_are_sampled_by_items(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diagnostics, "MOST_POINTS", 60)
    monkeypatch.setattr(diagnostics, "FEWEST_MEMBERS", 4)
    with connect_runs([run]) as database:
        found = diagnostics.diagnostics(database, {run.name: run})["pca"]
    # 6 layers x 10 pairs x 2: half of the pairs stay, both members of each, the same at every layer
    assert len(found) == 60
    assert found.note.startswith("at most 5 items")
    items = found.columns["item_id"]
    assert {items.count(one) for one in items} == {12}
    assert set(found.columns["vector"]) == {"warm"}


def test_columns_are_coded_where_values_repeat() -> None:
    for values in ([1.0, None, 2.5], ["a"] * 20, [[1], [2]] * 10, list(range(50)), [True, False] * 9):
        made = json.loads(json.dumps(coded(values)))
        back = made["values"] if "values" in made else [made["different"][n] for n in made["which"]]
        assert back == values
    assert coded([float("nan"), float("inf"), 1 / 3]) == {"values": [None, None, 0.333333]}
    # 1 and 1.0 and True are three things
    mixed = coded([1, True, "1"] * 5)
    assert [type(value) for value in mixed["different"]] == [int, bool, str]


def test_ranges() -> None:
    assert ranges([0, 1, 2, 5, 7, 8]) == "0-2, 5, 7-8"
    assert ranges([]) == ""
