"""The report in a browser, clicked through: everything drawn, nothing fetched, nothing complained of."""

from __future__ import annotations

import csv
import os
import time
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import pytest

from tests.report import browser as browsers
from tests.report.browser import LOCAL, Page
from tests.report.golden import HOSTILE, PEAK, Ablated, golden, hostile, logit
from tests.results.made_up import Cell, make_run, sweep
from vsteer.report.page import write_report
from vsteer.scoring.scorers import PLAIN
from vsteer.scoring.stored_texts import score_texts

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(
        not (browsers.CHROMIUM and browsers.DRIVER) and "VSTEER_NEEDS_BROWSER" not in os.environ,
        reason="no chromium and chromedriver on the path: apt-get install chromium chromium-driver",
    ),
]
# A figure has something in it: marks of its own, beyond axes and titles.
DRAWN = """
return Object.fromEntries([...document.querySelectorAll('figure')].map((figure) => [figure.dataset.figure, {
  state: figure.dataset.state,
  marks: figure.querySelectorAll('svg [role="graphics-symbol"], svg .mark-symbol path, svg .mark-rect path, '
    + 'svg .mark-line path').length,
  why: figure.querySelector('.why').textContent,
  title: figure.querySelector('h3').textContent,
  words: figure.textContent,
}]));
"""


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with browsers.chromium(tmp_path_factory.mktemp("chromium")) as opened:
        yield opened


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models, everything measured of the first."""
    folder = tmp_path_factory.mktemp("runs")
    first = golden(folder / "first")
    for name in ("length", "repetition"):
        score_texts(first, PLAIN[name])
    second = golden(folder / "second", model="toy-13b", norms=("raw",))
    return write_report([first, second], folder / "report.html")


@pytest.fixture
def golden_page(page: Page, report: Path) -> Page:
    page.size(1100)
    page.open(report)
    return page


@pytest.fixture(autouse=True)
def nothing_fetched_nothing_complained_of(page: Page) -> Iterator[None]:
    page.console()
    page.requests()
    yield
    assert page.console() == []
    assert [address for address in page.requests() if not address.startswith(LOCAL)] == []


def figures(page: Page) -> dict[str, Any]:
    found: dict[str, Any] = page.js(DRAWN)
    return found


def test_every_figure_is_drawn(golden_page: Page) -> None:
    found = figures(golden_page)
    assert len(found) == 22
    assert {name: one["why"] for name, one in found.items() if one["state"] != "drawn"} == {}
    assert [name for name, one in found.items() if one["marks"] < 1] == []
    # what a peak, an asymmetry and a scaling must say of themselves
    for name in (
        "layers",
        "heat",
        "dose",
        "asymmetry_effect",
        "asymmetry_p",
        "asymmetry_headroom",
        "scaling",
    ):
        assert "vector warm, norm raw, positions all." in found[name]["words"]
        assert "njected norm over stream norm is 0.0" in found[name]["words"]


def test_intervals_and_fits_are_those_that_are_stored(golden_page: Page, report: Path) -> None:
    page = golden_page
    drawn = page.js("return figures.find((figure) => figure.name === 'layers').given.data.rows")
    stored = duckdb.sql(
        f"""select c.layer, c.multiplier, i.low, i.high
            from '{report.parent}/first/statistics/intervals.parquet' i
            join '{report.parent}/first/configs.parquet' c using (evaluation, config_id)
            where i.measure = 'logit_diff' and c.control = '' and c.norm = 'raw' and abs(c.multiplier) = 2
              and c.evaluation = 'choice:toy'"""
    ).fetchall()
    true = {(layer, multiplier): (low, high) for layer, multiplier, low, high in stored}
    assert len(true) == len(drawn) == 12
    for point in drawn:
        low, high = true[point["layer"], point["multiplier"]]
        # at layer 0 every item moves alike, and there is no interval
        assert (low is None) == (point["layer"] == 0)
        assert point["low"] == (low if low is None else pytest.approx(low, rel=1e-4))
        assert point["high"] == (high if high is None else pytest.approx(high, rel=1e-4))
    assert "95% intervals" in page.driver.find_element("id", "figure-layers").text
    assert "The dashed line is fitted" in page.driver.find_element("id", "figure-dose").text
    assert "held-out effect (95%)" in page.driver.find_element("id", "peaks").text
    # two models can't tell one curve from another
    assert "no family is preferred" in page.driver.find_element("id", "figure-scaling").text.lower()


def test_the_slider_moves_every_figure_by_keyboard(golden_page: Page) -> None:
    from selenium.webdriver.common.keys import Keys

    page = golden_page
    slider = page.driver.find_element("id", "layer")
    assert page.js("return state.layer") == PEAK
    before = page.js("return document.querySelector('#figure-components svg').innerHTML")
    slider.send_keys(Keys.ARROW_LEFT)
    page.settle()
    assert page.js("return state.layer") == PEAK - 1
    assert slider.get_attribute("aria-valuetext") == f"layer {PEAK - 1}"
    found = figures(page)
    for name in ("dose", "components", "slopes", "cosine_row"):
        assert f"ayer {PEAK - 1}" in found[name]["title"]
    assert page.js("return document.querySelector('#figure-components svg').innerHTML") != before
    slider.send_keys(Keys.HOME)
    page.settle()
    assert figures(page)["dose"]["title"].endswith("at layer 0")


def test_a_click_in_a_curve_chooses_the_layer(golden_page: Page) -> None:
    from selenium.webdriver.common.action_chains import ActionChains

    page = golden_page
    chart = page.driver.find_element("css selector", "#figure-layers .chart")
    page.js("arguments[0].scrollIntoView({block: 'center'})", chart)
    page.settle()
    wide = page.js("return document.querySelector('#figure-layers .chart').clientWidth")
    # near the right end of the axis stands the last layer
    ActionChains(page.driver).move_to_element_with_offset(chart, int(wide / 2) - 12, 0).click().perform()
    page.settle()
    assert page.js("return state.layer") == 5


def test_choices_change_what_is_shown(golden_page: Page) -> None:
    from selenium.webdriver.support.ui import Select

    page = golden_page

    def choose(name: str, text: str) -> None:
        Select(page.driver.find_element("css selector", f"[data-choice='{name}']")).select_by_visible_text(
            text
        )
        page.settle()

    shown = page.driver.find_element("id", "verdicts").text
    assert "The peak is outside the band of the random vectors (5% level, for this vector alone)." in shown
    assert ", the largest of 19 random vectors is " in shown
    assert (
        "By the strictest control: too few shuffled vectors to say more: 3 whole and distinct, 19 are needed."
        in shown
    )
    choose("measure", "p(matching)")
    assert "p(matching)" in page.driver.find_element("css selector", "#figure-layers .axis:not(.about)").text
    choose("size", "±1")
    assert "multiplier ±1" in figures(page)["layers"]["title"]
    choose("norm", "unit")
    assert "norm unit" in figures(page)["layers"]["words"]
    assert "No control vectors were run" in page.driver.find_element("id", "verdicts").text
    # what was not run under this norm says so, and is not an empty picture
    found = figures(page)
    assert (found["capability"]["state"], found["capability"]["marks"]) == ("empty", 0)
    assert found["capability"]["why"].startswith("no evaluation of capability")
    choose("model", "toy-13b")
    assert page.js("return state.family.norm") == "raw"


def test_texts_are_filtered(golden_page: Page) -> None:
    from selenium.webdriver.support.ui import Select

    page = golden_page

    def matches() -> str:
        page.settle()
        return str(page.driver.find_element("id", "matches").text)

    def choose(name: str, text: str) -> None:
        Select(page.driver.find_element("css selector", f"[data-filter='{name}']")).select_by_visible_text(
            text
        )

    # 2 runs x 10 prompts x 4 multipliers at the layer of the figures; all 6 layers
    assert matches() == "80 texts of 480 steered ones here"
    choose("layer", "all")
    assert matches() == "480 texts of 480 steered ones here"
    page.driver.find_element("id", "further").click()
    assert len(page.driver.find_elements("css selector", "#generations article")) == 20
    choose("multiplier", "+2")
    choose("run", "first")
    assert matches() == "60 texts of 480 steered ones here"
    choose("score", "perplexity")
    page.driver.find_element("css selector", "[data-filter='low']").send_keys("20.5")
    true = page.js(
        "const worse = rows('scores').filter((score) => score.run === 'first' && score.name === 'perplexity'"
        " && score.value >= 20.5).map((score) => score.row_id);"
        "return rows('texts').filter((text) => text.run === 'first' && text.multiplier === 2"
        " && worse.includes(text.row_id)).length"
    )
    assert 0 < true < 60
    assert matches() == f"{true} texts of 480 steered ones here"
    words = page.driver.find_element("css selector", "[data-filter='words']")
    words.send_keys("question 3")
    assert int(matches().split()[0]) <= 6
    words.send_keys(" and nothing like it")
    assert matches() == "No text matches: loosen a filter."
    first = "#generations article .pair > div"
    assert page.driver.find_elements("css selector", first) == []


def test_figures_and_their_numbers_are_saved(golden_page: Page) -> None:
    page = golden_page

    def saved(name: str) -> Path:
        path = page.downloads / name
        for _ in range(100):
            if path.exists():
                return path
            time.sleep(0.1)
        raise AssertionError(f"{name} was not saved; there are {list(page.downloads.iterdir())}")

    page.driver.find_element("css selector", "#figure-layers [data-save=svg]").click()
    stem = "layers-first-toy_7b-choice_toy-warm-raw-all-multiplier2"
    picture = ET.parse(saved(f"{stem}.svg")).getroot()
    words = " ".join(text for text in picture.itertext() if text.strip())
    for part in ("Model toy-7b", "evaluation choice:toy", "no system prompt", "norm raw", "positions all"):
        assert part in words
    assert "Injected norm over stream norm is 0.0" in words
    page.driver.find_element("css selector", "#figure-layers [data-save=png]").click()
    assert saved(f"{stem}.png").read_bytes().startswith(b"\x89PNG")
    page.driver.find_element("css selector", "#figure-heat details summary").click()
    page.settle()
    details = page.driver.find_element("css selector", "#figure-heat details")
    assert "vsteer sql multiplier_curves" in details.text
    assert "over (partition by dose" in details.find_element("css selector", "pre").text
    page.driver.find_element("css selector", "#figure-heat [data-csv='multiplier_curves']").click()
    with saved("multiplier_curves.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    # 3 evaluations' curves: 2 norms of one and capability in the first run, one each in the second
    assert len(rows) == (3 + 2) * 6 * 5
    assert all(row["layers"].startswith("[") for row in rows)


def test_hostile_words_do_nothing(page: Page, tmp_path: Path) -> None:
    page.open(write_report([hostile(tmp_path / "hostile")], tmp_path / "out.html"))
    with pytest.raises(Exception, match="no such alert"):
        _ = page.driver.switch_to.alert.text
    assert page.js("return document.querySelectorAll('img, script').length") == 3
    assert HOSTILE.split("\u2028")[0] in page.js("return document.querySelector('#generations').textContent")
    assert "</script>" in page.js("return document.querySelector('#run').textContent")
    # one row failed and one is missing, and the page begins with it
    banner = page.driver.find_element("css selector", "#state .banner").text
    assert "is not complete" in banner
    assert "1 of 4 rows are missing and 1 failed" in banner
    found = figures(page)
    assert {one["state"] for one in found.values()} == {"empty"}
    assert all(one["why"] for one in found.values())


def test_three_hundred_configurations_are_drawn_in_time(page: Page, tmp_path: Path) -> None:
    steered = sweep("warm", range(30), [m for n in range(1, 6) for m in (-float(n), float(n))])
    assert len(steered) == 300
    made = make_run(tmp_path / "large", steered, logit)
    path = write_report([made])
    assert path.stat().st_size < 1_000_000
    assert page.open(path) < 5000
    assert figures(page)["heat"]["marks"] >= 300
    assert "no open-ended evaluation in this run" in page.driver.find_element("id", "texts").text


def test_ablations_are_drawn_over_layers(page: Page, tmp_path: Path) -> None:
    steered = [*sweep("warm", range(4), (-1.0, 1.0)), *(Ablated("cold", layer) for layer in range(1, 4))]

    def says(cell: Cell) -> float:
        if cell.steered.vector == "cold":
            return -float(cell.steered.layer or 0)
        return 0.1 * cell.steered.multiplier

    page.open(write_report([make_run(tmp_path / "ablated", steered, says)]))
    # the largest effect is an ablation's, so it is what is looked at first
    assert page.js("return [state.family.vector, state.family.operation, state.layer, state.size]") == [
        "cold",
        "ablate",
        3,
        None,
    ]
    found = figures(page)
    assert found["layers"]["title"].endswith("by layer, ablated")
    drawn = page.js("return figures.find((figure) => figure.name === 'layers').given.data.rows")
    assert [(point["layer"], point["y"]) for point in drawn] == [(1, -1), (2, -2), (3, -3)]
    assert page.js("return document.querySelector('#figure-layers svg').textContent").count("ablated") == 1
    assert "Ablation injects nothing." in found["layers"]["words"]
    assert found["dose"]["why"] == "ablation has no multiplier, so there is no dose curve"
    page.js("chooseFamily(FAMILIES.find((family) => family.vector === 'warm'))")
    page.settle()
    words = page.js("return document.querySelector('#figure-layers svg').textContent")
    assert "ablated" not in words
    assert "negative" in words


PRINTED = """
const there = (each) => each.getClientRects().length;
const cut = [...document.querySelectorAll('.scroll, pre, .chart')].filter((each) => there(each)
  && (each.scrollHeight > each.clientHeight + 1 || each.scrollWidth > each.clientWidth + 1));
return {cut: cut.map((each) => each.outerHTML.slice(0, 80)),
  behind: getComputedStyle(document.body).backgroundColor,
  chosen: [...document.querySelectorAll('#bar select')].filter(there)
    .map((each) => each.selectedOptions[0].textContent),
  label: getComputedStyle(document.querySelector('#figure-layers svg text')).fill};
"""


def test_on_paper_the_choices_stay_and_nothing_is_cut(golden_page: Page) -> None:
    page = golden_page
    page.theme("dark")
    page.js("state.measure = 'effect_p'; buildBar(); showAll()")
    page.js("for (const each of document.querySelectorAll('details')) each.open = true")
    page.settle()
    page.size(720)  # about the width of A4
    page.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    page.js("dispatchEvent(new Event('beforeprint'))")
    printed = page.js(PRINTED)
    page.js("dispatchEvent(new Event('afterprint'))")
    page.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})
    page.theme("light")
    assert printed["cut"] == []
    assert {"toy-7b", "choice:toy", "raw", "±2", "p(matching)"} <= set(printed["chosen"])
    # dark words on white paper, whatever the screen was
    assert (printed["behind"], printed["label"]) == ("rgb(255, 255, 255)", "rgb(22, 25, 29)")


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [400, 1100])
def test_it_can_be_read(golden_page: Page, theme: str, width: int) -> None:
    """Nothing wider than the screen, and words stand out from what is behind them."""
    page = golden_page
    page.size(width)
    page.theme(theme)
    assert page.js("return document.documentElement.scrollWidth") <= width
    contrast = page.js(CONTRAST)
    assert contrast, "no words were looked at"
    assert {name: value for name, value in contrast.items() if value < 4.5} == {}
    page.theme("light")


CONTRAST = """
const light = (colour) => {
  const [r, g, b] = colour.match(/[\\d.]+/g).map(Number).map((each) => each / 255)
    .map((each) => (each <= 0.03928 ? each / 12.92 : ((each + 0.055) / 1.055) ** 2.4));
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const behind = (node) => {
  for (let at = node; at; at = at.parentElement) {
    const colour = getComputedStyle(at).backgroundColor;
    if (colour !== 'rgba(0, 0, 0, 0)') return colour;
  }
};
const found = {};
const words = document.querySelectorAll('h1, h2, h3, p, a, td, th, dt, dd, button, summary, label, .chips *');
const labels = document.querySelectorAll('figure:not([data-figure="heat"]) svg text');
for (const node of [...words, ...labels]) {
  if (!node.textContent.trim() || !node.getClientRects().length) continue;
  const style = getComputedStyle(node);
  const [one, other] = [light(node instanceof SVGElement ? style.fill : style.color), light(behind(node))];
  const ratio = (Math.max(one, other) + 0.05) / (Math.min(one, other) + 0.05);
  const name = `${node.tagName}.${node.className.baseVal ?? node.className} ${node.textContent.slice(0, 20)}`;
  found[name] = Math.min(found[name] ?? 99, ratio);
}
return found;
"""


def test_it_works_by_keyboard_and_for_those_who_listen(golden_page: Page) -> None:
    from selenium.webdriver.common.keys import Keys

    page = golden_page
    reached = []
    body = page.driver.switch_to.active_element
    for _ in range(24):
        body.send_keys(Keys.TAB)
        body = page.driver.switch_to.active_element
        reached.append(body.get_attribute("data-choice") or body.tag_name)
    assert {"a", "button", "norm", "measure", "layer"} <= set(reached)
    unnamed = page.js(
        "return [...document.querySelectorAll('input, select, button')].filter((each) =>"
        " !each.textContent.trim() && !each.labels?.length && !each.getAttribute('aria-label'))"
        ".map((each) => each.outerHTML)"
    )
    assert unnamed == []
    assert page.js(
        "return [...document.querySelectorAll('.chart')].every((each) => each.getAttribute('role') === 'img'"
        " && each.getAttribute('aria-label').length > 40)"
    )


def test_the_theme_can_be_chosen(golden_page: Page) -> None:
    page = golden_page
    page.theme("light")

    def look() -> tuple[str, str]:
        page.settle()
        behind = "getComputedStyle(document.body).backgroundColor"
        label = "getComputedStyle(document.querySelector('#figure-layers svg text')).fill"
        return tuple(page.js(f"return [{behind}, {label}]"))

    system = look()
    button = page.driver.find_element("id", "theme")
    button.click()
    assert look() == system
    button.click()
    dark = look()
    assert all(one != other for one, other in zip(dark, system, strict=True))
    button.click()
    assert button.text == "theme: as the system"
