"""The file that `vsteer serve` takes, its vectors and the names that it gives to steerings; and a steering as
an object, as it stands there and in a request.

    vectors: {refusal: refusal.safetensors}
    steerings:
      cautious: base+refusal@13*1.5
      gentle: {terms: [{vector: refusal, layers: [10, 11], multiplier: 0.5}], positions: after_prompt}
    engine: {max_model_len: 4096}
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, PlainValidator, ValidationError

from vsteer.errors import UsageError
from vsteer.grid.axes import parse_layers, parse_multiplier, parse_positions
from vsteer.grid.problems import Source
from vsteer.grid.spec import EngineSpec
from vsteer.grid.yaml_lines import read_yaml
from vsteer.operations import OPERATIONS
from vsteer.protocol import Positions, Steering, Term
from vsteer.serve.names import BASE, MOST_TERMS, check_terms, parse_name
from vsteer.validation import Name, Strict, Text, did_you_mean, shown, wrong


def _operation(value: Any) -> str:
    if not isinstance(value, str) or value not in OPERATIONS:
        known = f"known: {', '.join(OPERATIONS)}"
        raise wrong(f"expected an operation, found {shown(value)}", did_you_mean(value, OPERATIONS, known))
    return value


def _layers(value: Any) -> tuple[int, ...]:
    """One layer, or several at once: `13`, `[10, 14]` or `{from: 10, to: 16}`."""
    groups = parse_layers(value).groups
    if groups is None:
        raise wrong(f"expected layers by their numbers, found {shown(value)}", "such as 13 or [10, 14]")
    return tuple(dict.fromkeys(layer for group in groups for layer in group))


def _multiplier(value: Any) -> float:
    if isinstance(value, list | tuple | dict):
        raise wrong(f"expected a number, found {shown(value)}", "a steering has one multiplier a term")
    return parse_multiplier(value)


class TermSpec(Strict):
    vector: Name
    layers: Annotated[tuple[int, ...], PlainValidator(_layers)]
    multiplier: Annotated[float, PlainValidator(_multiplier)] = 1.0
    operation: Annotated[str, PlainValidator(_operation)] = "add"

    def terms(self) -> tuple[Term, ...]:
        return tuple(Term(self.vector, layer, self.multiplier, self.operation) for layer in self.layers)


class SteeringSpec(Strict):
    terms: Annotated[list[TermSpec], Field(min_length=1, max_length=MOST_TERMS)]
    positions: Annotated[Positions, PlainValidator(parse_positions)] = "all"

    def steering(self) -> Steering:
        check_terms(sum(len(spec.layers) for spec in self.terms))
        return Steering(tuple(term for spec in self.terms for term in spec.terms()), self.positions)


def _steering(value: Any) -> Steering:
    """A name that spells a steering out, or an object."""
    if not isinstance(value, dict | str):
        raise wrong(f"expected a steering, found {shown(value)}", "such as base+refusal@13*1.5")
    try:
        return parse_name(value) if isinstance(value, str) else SteeringSpec.model_validate(value).steering()
    except UsageError as error:
        raise wrong(error.message, error.hint) from None


class SteeringFile(Strict):
    vectors: dict[Name, Text] = Field(default_factory=dict)
    """Files of vectors by the names under which steerings have them."""
    steerings: dict[Name, Annotated[Steering, PlainValidator(_steering)]] = Field(default_factory=dict)
    """Names of models beside `base`."""
    engine: EngineSpec = Field(default_factory=EngineSpec)
    """As in a grid."""


def read_steering_file(path: Path) -> tuple[SteeringFile, dict[str, Path]]:
    """The file, and where its vectors lie. An error names the line."""
    source = read_yaml(path)
    try:
        file = SteeringFile.model_validate(source.value)
    except ValidationError as error:
        raise source.explained(error) from None
    if BASE in file.steerings:
        message = f"the name {BASE!r} is the unsteered model's"
        raise source.error(("steerings", BASE), message, "give the steering another name")
    return file, {name: source.folder / vector for name, vector in file.vectors.items()}


def parse_object(value: Mapping[str, Any]) -> Steering:
    """The steering of a request's `vsteer` object."""
    try:
        return SteeringSpec.model_validate(dict(value)).steering()
    except ValidationError as error:
        raise Source(dict(value), Path()).explained(error) from None
