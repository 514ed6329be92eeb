"""Prompts with two responses each, made by the engine: data from which a vector is learned.

Either side is the model as it is, under a system prompt, or steered. What is written so far stands in a file
beside the data to be, so that an interrupted making goes on.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vsteer.api.engine import Engine
from vsteer.datasets.items import PromptSet
from vsteer.errors import DataError, UsageError
from vsteer.files import new_file, parse_json
from vsteer.models.identity import sha256_of
from vsteer.protocol import Positions
from vsteer.scoring.scorers import PLAIN
from vsteer.validation import did_you_mean, shown
from vsteer.vectors.derive import mention
from vsteer.vectors.vector import VectorTerm

SIDES = ("positive", "negative")
# How many prompts are answered before what was written is kept.
AT_ONCE = 64
_CONDITION = re.compile(
    r"(positive|negative)\.(\w{1,40})\s*(<=|>=|<|>)\s*(-?\d{1,12}(?:\.\d{1,12})?)", re.ASCII
)
_COMPARED: Mapping[str, Callable[[float, float], bool]] = {
    "<": lambda a, b: a < b,
    "<=": lambda a, b: a <= b,
    ">": lambda a, b: a > b,
    ">=": lambda a, b: a >= b,
}


@dataclass(frozen=True)
class Side:
    """How one response of each prompt comes about."""

    system: str | None = None
    steer: VectorTerm | None = None

    def describe(self) -> dict[str, Any]:
        term = self.steer
        return {
            "system": self.system,
            "vector": mention(term.vector) if term else None,
            "layer": term.layer if term else None,
            "multiplier": term.multiplier if term else None,
        }


@dataclass(frozen=True)
class Condition:
    """What a response must be for its pair to be kept, by a plain scorer's number."""

    side: str
    name: str
    comparison: str
    bound: float

    def __str__(self) -> str:
        return f"{self.side}.{self.name} {self.comparison} {self.bound:g}"

    def holds(self, scores: Mapping[str, Mapping[str, float | None]]) -> bool:
        value = scores[self.side][self.name]
        return value is not None and _COMPARED[self.comparison](value, self.bound)


def parse_condition(text: str) -> Condition:
    """As in `positive.refusal >= 1`."""
    found = _CONDITION.fullmatch(text.strip())
    if found is None:
        raise UsageError(f"{shown(text)} is no condition", "such as: positive.refusal >= 1")
    known = list(score_of("", []))
    if found[2] not in known:
        otherwise = f"the numbers are {', '.join(known)}"
        raise UsageError(f"no scorer gives a number {found[2]!r}", did_you_mean(found[2], known, otherwise))
    return Condition(found[1], found[2], found[3], float(found[4]))


def score_of(text: str, tokens: Sequence[int]) -> dict[str, float | None]:
    """All numbers of the plain scorers."""
    found = [scorer.score(text, tokens) for scorer in PLAIN.values()]
    return {name: value for numbers in found for name, (value, _) in numbers.items()}


@dataclass(frozen=True)
class Made:
    """What came of it: how many pairs were kept, and why others weren't."""

    prompts: int
    kept: int
    dropped: dict[str, int]  # by the first reason that holds
    means: dict[str, dict[str, float]]  # of each condition's number, by side, over all prompts

    def as_json(self) -> dict[str, Any]:
        return {"prompts": self.prompts, "kept": self.kept, "dropped": self.dropped, "means": self.means}


def check_sides(positive: Side, negative: Side) -> None:
    if positive == negative:
        raise UsageError(
            "nothing makes the two responses differ",
            "give --positive-system or --negative-system, or --vector with a multiplier",
        )


def make_responses(
    engine: Engine,
    prompts: PromptSet,
    sides: Mapping[str, Side],
    keep: Sequence[Condition],
    out: Path,
    *,
    positions: Positions = "all",
    max_tokens: int = 512,
    overwrite: bool = False,
    on_progress: Callable[[int], None] = lambda count: None,
) -> Made:
    """Write `out`, JSON Lines of {prompt, positive, negative}, and beside it how it was made.

    `on_progress` hears how many responses were written.
    """
    how = {
        "model": engine.model,
        "model_sha256": sha256_of(*engine.source),
        "dtype": engine.engine.info.dtype,
        "prompts_sha256": prompts.source.sha256,
        "prompts": len(prompts.prompts),
        **{side: sides[side].describe() for side in SIDES},
        "positions": str(positions),
        "max_tokens": max_tokens,
    }
    part = part_path(out)
    written = _read_part(part, how)
    on_progress(len(written))
    with part.open("a", encoding="utf-8") as file:
        if not written and part.stat().st_size == 0:
            file.write(json.dumps({"how": how}) + "\n")
        for side in SIDES:
            missing = [n for n in range(len(prompts.prompts)) if (side, n) not in written]
            for start in range(0, len(missing), AT_ONCE):
                places = missing[start : start + AT_ONCE]
                texts = engine.generate(
                    [prompts.prompts[n].text for n in places],
                    steer=sides[side].steer,
                    positions=positions,
                    system=sides[side].system,
                    max_tokens=max_tokens,
                )
                for n, text in zip(places, texts, strict=True):
                    written[side, n] = text
                    file.write(json.dumps({"side": side, "n": n, "text": text}) + "\n")
                file.flush()
                on_progress(len(places))
    lines, made = _kept(engine, prompts, written, keep)
    with new_file(out, DataError, overwrite) as temporary:
        temporary.write_text("".join(f"{json.dumps(line, ensure_ascii=False)}\n" for line in lines))
    with new_file(how_path(out), DataError, overwrite) as temporary:
        more = {"keep": [str(one) for one in keep], **made.as_json()}
        temporary.write_text(json.dumps({**how, **more}, indent=2) + "\n")
    part.unlink()
    return made


def part_path(out: Path) -> Path:
    return out.with_suffix(".part")


def how_path(out: Path) -> Path:
    return out.with_suffix(".made.json")


def _kept(
    engine: Engine,
    prompts: PromptSet,
    written: Mapping[tuple[str, int], str],
    keep: Sequence[Condition],
) -> tuple[list[dict[str, str]], Made]:
    lines: list[dict[str, str]] = []
    dropped = dict.fromkeys(["an empty response", "equal responses", *map(str, keep)], 0)
    sums: dict[str, dict[str, list[float]]] = {one.name: {side: [] for side in SIDES} for one in keep}
    for n, prompt in enumerate(prompts.prompts):
        pair = {side: written[side, n] for side in SIDES}
        scores = {
            side: score_of(text, engine.tokenizer(text, add_special_tokens=False)["input_ids"])
            for side, text in pair.items()
        }
        for name, by_side in sums.items():
            for side in SIDES:
                by_side[side] += [value for value in [scores[side][name]] if value is not None]
        failed = next((str(one) for one in keep if not one.holds(scores)), None)
        if not all(text.strip() for text in pair.values()):
            failed = "an empty response"
        elif pair["positive"].strip() == pair["negative"].strip():
            failed = "equal responses"
        if failed:
            dropped[failed] += 1
        else:
            lines.append({"prompt": prompt.text, **{side: text.strip() for side, text in pair.items()}})
    means = {
        name: {side: sum(found) / len(found) for side, found in by_side.items() if found}
        for name, by_side in sums.items()
    }
    return lines, Made(len(prompts.prompts), len(lines), dropped, means)


def _read_part(path: Path, how: Mapping[str, Any]) -> dict[tuple[str, int], str]:
    """What an earlier start wrote. A line that a kill cut short doesn't count."""
    if not path.exists():
        return {}
    written: dict[tuple[str, int], str] = {}
    whole = [
        line for line in path.read_text(encoding="utf-8").splitlines(keepends=True) if line.endswith("\n")
    ]
    try:
        if whole and parse_json(whole[0])["how"] != json.loads(json.dumps(how)):
            raise UsageError(
                f"{path} is of responses made with other settings, prompts or model",
                "give those again, another --out, or --force to begin anew",
            )
        for line in whole[1:]:
            entry = parse_json(line)
            written[str(entry["side"]), int(entry["n"])] = str(entry["text"])
    except (ValueError, KeyError, TypeError):
        raise UsageError(f"{path} can't be read", "begin anew with --force") from None
    path.write_text("".join(whole), encoding="utf-8")
    return written
