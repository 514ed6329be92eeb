"""Data to learn from: two responses to each prompt, filtered by scorers, interrupted and gone on with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from tests.alone import AS_IN_MAIN
from tests.api.conftest import Recording
from tests.api.test_engine import made_vector
from vsteer.api import engine as api_engine
from vsteer.api import responses as making
from vsteer.api.responses import Condition, parse_condition
from vsteer.cli.responses import responses
from vsteer.datasets.readers import read_contrast
from vsteer.errors import UsageError
from vsteer.vectors.files import save

QUESTIONS = [f"What of {word}?" for word in ("rain", "salt", "wool", "iron", "moss")]


def command(*arguments: str | Path) -> Result:
    return CliRunner().invoke(responses, ["tiny-llama", *map(str, arguments)], **AS_IN_MAIN)


@pytest.fixture
def asked(tmp_path: Path) -> Path:
    path = tmp_path / "questions.jsonl"
    path.write_text("\n".join(json.dumps({"question": one}) for one in QUESTIONS))
    return path


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """What the model says: it refuses under the strict system prompt, all but the question about salt."""
    calls: list[tuple[Any, ...]] = []

    def generate(self: Any, prompts: list[str], *, system: Any, steer: Any, **_: Any) -> list[str]:
        calls.append((len(prompts), system, steer.multiplier if steer else None))
        if system == "mute":
            return [" "] * len(prompts)
        strict = system == "strict" or (steer is not None and steer.multiplier > 0)
        said = [
            "I can't help with that." if strict and "salt" not in one else f"Of course, {one[8:-1]}."
            for one in prompts
        ]
        return [f"{text}\n" if strict else text for text in said]

    monkeypatch.setattr(api_engine.Engine, "generate", generate)
    return calls


def test_pairs_are_kept_that_differ_and_fulfil_every_condition(
    asked: Path, tmp_path: Path, engines: list[Recording], answers: list[tuple[Any, ...]]
) -> None:
    out = tmp_path / "made.jsonl"
    keep = ("--keep", "positive.refusal >= 1", "--keep", "negative.words > 2")
    done = command(asked, "-o", out, "--positive-system", "strict", *keep)
    assert done.exit_code == 0, done.output
    # salt has equal responses but for a line break, and a negative response has three words
    data = read_contrast(out)
    assert [item.question for item in data.items] == [QUESTIONS[n] for n in (0, 2, 3, 4)]  # type: ignore[union-attr]
    assert data.items[0].positive == "I can't help with that."  # type: ignore[union-attr]
    assert data.items[0].negative == "Of course, rain."  # type: ignore[union-attr]
    how = json.loads((tmp_path / "made.made.json").read_text())
    assert (how["prompts"], how["kept"]) == (5, 4)
    assert how["dropped"] == {
        "an empty response": 0, "equal responses": 1, "positive.refusal >= 1": 0, "negative.words > 2": 0,
    }  # fmt: skip
    assert how["means"]["refusal"] == {"positive": 0.8, "negative": 0.0}
    assert how["positive"]["system"] == "strict"
    assert not making.part_path(out).exists()
    assert engines[0].closed


def test_a_steering_makes_a_side(
    asked: Path, tmp_path: Path, engines: list[Recording], answers: list[tuple[Any, ...]]
) -> None:
    save(made_vector(), tmp_path / "glad.safetensors")
    out = tmp_path / "made.jsonl"
    steering = ("--vector", tmp_path / "glad.safetensors", "--layer", "3", "--positive-multiplier", "2")
    done = command(asked, "-o", out, *steering, "--limit", "2")
    assert done.exit_code == 0, done.output
    assert answers == [(2, None, 2.0), (2, None, None)]
    how = json.loads((tmp_path / "made.made.json").read_text())
    assert (how["positive"]["layer"], how["positive"]["multiplier"], how["kept"]) == (3, 2.0, 1)
    assert how["positive"]["vector"].startswith("glad (")


def test_an_interrupted_making_goes_on(
    asked: Path,
    tmp_path: Path,
    engines: list[Recording],
    answers: list[tuple[Any, ...]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(making, "AT_ONCE", 2)
    out = tmp_path / "made.jsonl"
    generate = api_engine.Engine.generate

    def dying(self: Any, *arguments: Any, **more: Any) -> list[str]:
        if len(answers) == 4:
            raise KeyboardInterrupt
        return generate(self, *arguments, **more)

    monkeypatch.setattr(api_engine.Engine, "generate", dying)
    assert command(asked, "-o", out, "--positive-system", "strict").exit_code != 0
    part = making.part_path(out)
    # 3 batches of positive responses and 1 of negative ones; the last line was cut short
    part.write_text(part.read_text()[:-4])
    monkeypatch.setattr(api_engine.Engine, "generate", generate)
    other = command(asked, "-o", out, "--positive-system", "mild")
    assert "other settings" in str(other.exception)
    done = command(asked, "-o", out, "--positive-system", "strict")
    assert done.exit_code == 0, done.output
    assert [count for count, *_ in answers] == [2, 2, 1, 2, 2, 2]
    whole = tmp_path / "whole.jsonl"
    assert command(asked, "-o", whole, "--positive-system", "strict").exit_code == 0
    assert whole.read_bytes() == out.read_bytes()


def test_empty_responses_are_dropped(
    asked: Path, tmp_path: Path, engines: list[Recording], answers: list[tuple[Any, ...]]
) -> None:
    done = command(asked, "-o", tmp_path / "made.jsonl", "--negative-system", "mute")
    assert done.exit_code == 0
    assert "5 dropped: an empty response" in done.output


def test_conditions() -> None:
    assert parse_condition("negative.distinct_1<=-0.5") == Condition("negative", "distinct_1", "<=", -0.5)
    scores = {"positive": {"words": 3.0, "distinct_1": None}}
    for text, holds in (
        ("positive.words > 3", False),
        ("positive.words >= 3", True),
        ("positive.words < 4", True),
        ("positive.distinct_1 < 9", False),
    ):
        assert parse_condition(text).holds(scores) == holds
    for text in ("positive refusal", "other.refusal > 1", "positive.refusal > x", "positive.refusl > 1"):
        with pytest.raises(UsageError):
            parse_condition(text)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "nothing makes the two responses differ"),
        (("--layer", "2"), "no vector"),
        (("--positive-multiplier", "1"), "no vector"),
        (("--vector", "glad.safetensors"), "no layer"),
        (("--vector", "glad.safetensors", "--layer", "9", "--positive-multiplier", "1"), "layer 9"),
        (("--positive-system", "x", "--keep", "positive.x > 1"), "no scorer gives"),
        (("--positive-system", "x", "-o", "made.json"), "does not end in .jsonl"),
        (("--positive-system", "x", "-o", "there.jsonl"), "exists"),
    ],
)
def test_what_is_wrong_is_one_message(
    asked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    save(made_vector(), tmp_path / "glad.safetensors")
    Path("there.jsonl").touch()
    done = command(asked, "-o", "made.jsonl", *arguments)
    assert message in str(done.exception)
    assert len(str(done.exception)) < 600
