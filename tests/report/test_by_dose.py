"""Where every multiplier was found for a KL dose, the report and the terminal's table are over doses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.run.test_kl_doses import Runs
from vsteer.analysis.statistics import write_statistics
from vsteer.cli.layer_curve import layer_curves
from vsteer.report.figures import every_figure
from vsteer.report.page import gathered
from vsteer.results.views import run_names


def values(data: dict[str, Any], table: str, column: str) -> list[Any]:
    coded = data["tables"][table]["columns"][column]
    found: list[Any] = coded.get("values") or [coded["different"][place] for place in coded["which"]]
    return found


@pytest.mark.long
def test_curves_are_over_doses(tmp_path: Path) -> None:
    runs = Runs(tmp_path)
    runs.write(kl=[0.02, 0.05])
    folder = runs.run().folder
    write_statistics(folder)
    data = gathered([folder], run_names([folder]))
    assert data["level"] == "KL dose"
    doses = {-0.05, -0.02, 0.0, 0.02, 0.05}
    assert set(values(data, "multiplier_curves", "multiplier")) == doses
    assert set(values(data, "layer_peaks", "multiplier")) == doses - {0.0}
    assert set(values(data, "control_bands", "multiplier")) == doses - {0.0}
    # a line through multipliers is none through doses
    assert data["tables"]["doses"]["length"] == 0
    assert runs.ask("select distinct kl, level from peaks order by all") == [
        (kl, sign) for kl in (0.02, 0.05) for sign in (-1, 1)
    ]
    assert runs.ask("select count(*) from asymmetries where measure = 'logit_diff'") == [(4,)]
    # the SQL behind a figure gives what is drawn
    sql = data["tables"]["multiplier_curves"]["sql"]
    assert {row[0] for row in runs.ask(f"select multiplier from ({sql})")} == doses
    found = runs.ask(f"select found_multiplier from ({sql}) where multiplier <> 0")
    assert {row[0] for row in found} == {
        row[0] for row in runs.ask("select multiplier from conditions where control = '' and vector <> ''")
    }
    drawn = {one["file"]: json.dumps(one["spec"]) for one in every_figure(data)}
    for name in ("dose", "heat"):
        of_name = [spec for file, spec in drawn.items() if file.startswith(name)]
        assert of_name
        assert all("KL dose" in spec and '"title": "multiplier"' not in spec for spec in of_name)
    table = layer_curves(folder)
    assert all(f"KL {kl:+g}" in table for kl in doses - {0.0})
    assert " for a KL dose of 0.0" in table


@pytest.mark.long
def test_multipliers_beside_doses_are_drawn_over(tmp_path: Path) -> None:
    runs = Runs(tmp_path)
    runs.path.write_text(runs.path.read_text().replace("{kl: [0.01, 0.03]}", "[1, {kl: 0.02}]"))
    folder = runs.run().folder
    write_statistics(folder)
    data = gathered([folder], run_names([folder]))
    assert data["level"] == "multiplier"
    found = runs.ask("select distinct multiplier from conditions where control = '' and vector <> ''")
    assert len(found) == 5
    assert {row[0] for row in found} | {0.0} >= {1.0}
    assert len(set(values(data, "multiplier_curves", "multiplier"))) == 6
    assert data["tables"]["doses"]["length"] > 0
    assert "KL +0.02" in layer_curves(folder)
