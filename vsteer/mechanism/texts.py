"""Texts that a steering is looked at in: which they are, their tokens, and the positions that count.

A position counts where a token of the response is predicted, and the steered and the unsteered pass over the
same tokens hold different ones most likely.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vsteer.datasets.items import content_hash
from vsteer.datasets.records import is_json, json_records, open_data
from vsteer.mechanism.graph import Graph
from vsteer.mechanism.model import Actor, Model, wide
from vsteer.mechanism.passes import Metric, Record, Steered
from vsteer.prompts.template import render_question, with_gap
from vsteer.protocol import Positions, Prompt
from vsteer.validation import shown

WRITTEN = ("steered", "unsteered")
# How many positions' logits over the vocabulary are held at once.
AT_ONCE = 64


@dataclass(frozen=True)
class Text:
    prompt: str
    response: str
    written: str  # by which model: steered or unsteered

    @property
    def text_id(self) -> str:
        return content_hash([self.prompt, self.response, self.written])

    def as_json(self) -> dict[str, str]:
        return asdict(self)


def read_texts(path: Path) -> list[Text]:
    """JSON Lines of {prompt, response, written: steered or unsteered}; each text once."""
    file = open_data(path)
    hint = 'such as {"prompt": "How was it?", "response": "Lovely.", "written": "steered"}'
    found: dict[str, Text] = {}
    for record in json_records(file):
        value = record.value
        if not isinstance(value, dict):
            raise file.error(record.line, f"expected an object, found {shown(value)}", hint)
        for name in ("prompt", "response", "written"):
            if not isinstance(value.get(name), str) or not value[name].strip():
                raise file.error(record.line, f"expected a text in the field {name}", hint)
        if value["written"] not in WRITTEN:
            message = f"written is steered or unsteered, found {shown(value['written'])}"
            raise file.error(record.line, message, hint)
        text = Text(value["prompt"], value["response"], value["written"])
        found.setdefault(text.text_id, text)
    return list(found.values())


def holds_texts(path: Path) -> bool:
    """Whether a file's records are texts with responses, not prompts."""
    file = open_data(path)
    first = json_records(file)[:1] if is_json(file) else []
    return bool(first and isinstance(first[0].value, dict) and "response" in first[0].value)


def rendered(tokenizer: Any, text: Text, system: str | None = None) -> Prompt:
    """The prompt and the response as tokens; `template_length` is where the response begins."""
    response = with_gap(tokenizer, text.prompt, text.response, system)
    return render_question(tokenizer, text.prompt, system, response)


@dataclass(frozen=True)
class Listed:
    """The positions that count in one text, and the tokens on which the two passes differ there."""

    positions: Tensor
    steered: Tensor
    unsteered: Tensor

    def __len__(self) -> int:
        return len(self.positions)

    def metric(self, model: Model) -> Metric:
        """The sum over the positions of the steered pass's token's logit less the unsteered pass's."""

        def difference(normed: Tensor) -> Tensor:
            here = normed[:, self.positions]
            return (model.logits(here, self.steered) - model.logits(here, self.unsteered)).sum(-1)

        return difference


@dataclass(frozen=True)
class Case:
    """A text with both of its passes behind the injection."""

    text: Text
    steered: Steered
    passes: dict[str, Record]  # steered and unsteered
    listed: Listed
    normed: dict[str, Tensor]  # the final norm's output at the listed positions, of both passes

    @property
    def metric(self) -> Metric:
        return self.listed.metric(self.steered.model)

    def under(self, added: Tensor) -> tuple[Steered, Record]:
        """The same text with another addition, and its pass."""
        other, record = replace(self.steered, added=added), Record()
        with torch.no_grad():
            other.run(record)
        return other, record


def steer(
    model: Model, graph: Graph, prompt: Prompt, direction: Tensor, multiplier: float, positions: Positions
) -> Steered:
    """A text behind the injection of the vector at the positions that are meant."""
    with torch.no_grad():
        stream, rails = model.embed([prompt.token_ids])
        stream = model.run(stream, rails, Actor(), end=graph.first)
    return Steered(model, graph, rails, stream, addition(stream, prompt, direction, multiplier, positions))


def addition(
    stream: Tensor, prompt: Prompt, direction: Tensor, multiplier: float, positions: Positions
) -> Tensor:
    """Multiplier x vector within the span, and 0 elsewhere: [position, width].

    The response is no part of the prompt whose span it is: `generated` begins with it.
    """
    header = prompt.template_length
    start, end = Prompt(prompt.token_ids[:header], header, prompt.user_turn_length).span(positions)
    added = torch.zeros_like(stream[0])
    added[start:end] = (multiplier * wide(direction)).to(added)
    return added


def case_of(text: Text, prompt: Prompt, steered: Steered) -> Case:
    passes = {"unsteered": Record(), "steered": Record()}
    with torch.no_grad():
        ends = {name: steered.run(record, float(name == "steered")) for name, record in passes.items()}
        start = prompt.template_length - 1
        best = {name: _best(steered.model, end[0, start:-1]) for name, end in ends.items()}
    where = (best["steered"] != best["unsteered"]).nonzero()[:, 0]
    listed = Listed(where + start, best["steered"][where], best["unsteered"][where])
    normed = {name: end[0, listed.positions] for name, end in ends.items()}
    return Case(text, steered, passes, listed, normed)


def _best(model: Model, normed: Tensor) -> Tensor:
    """The most likely token at each position."""
    best = torch.zeros(len(normed), dtype=torch.long, device=normed.device)
    for start in range(0, len(normed), AT_ONCE):
        part = slice(start, start + AT_ONCE)
        best[part] = model.logits(normed[part]).argmax(-1)
    return best
