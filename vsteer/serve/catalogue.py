"""What a server steers with: its vectors, the names of its steerings, and what a request means by either."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from vsteer.errors import UsageError, VectorError
from vsteer.protocol import Steering, Vectors
from vsteer.serve.names import BASE, parse_name, spelled
from vsteer.serve.steering_file import parse_object
from vsteer.validation import did_you_mean, shown
from vsteer.vectors.vector import check_place


class UnknownName(UsageError):
    """The name of a model that means no steering here."""


@dataclass(frozen=True)
class Catalogue:
    model: str  # as the user named it
    vectors: Vectors
    steerings: Mapping[str, Steering] = field(default_factory=dict)
    # what the graph has room for
    operations: tuple[str, ...] = ("add",)
    terms: int = 4  # added at one layer
    # behind which part of a layer each vector's directions are, where that is known
    places: Mapping[str, str] = field(default_factory=dict)

    def named(self, name: object) -> Steering:
        """The steering that a model's name means."""
        if not isinstance(name, str):
            raise UnknownName(f"expected the name of a model, found {shown(name)}", "such as base")
        if name in self.steerings:
            return self.steerings[name]
        known = [BASE, *self.steerings]
        if not name.startswith(BASE):
            hint = did_you_mean(name, known, f"{BASE}, or a steering such as {self._example()}")
            raise UnknownName(f"no model is called {shown(name)}", hint)
        try:
            steering = parse_name(name)
            self.check(steering)
        except UsageError as error:
            raise UnknownName(error.message, error.hint) from None
        return steering

    def asked(self, request: Mapping[str, Any]) -> Steering:
        """What a request's `model` asks for, or its `vsteer` object beside the model `base`."""
        given = request.get("vsteer")
        if given is None:
            return self.named(request.get("model"))
        if request.get("model", BASE) != BASE:
            raise UsageError(
                "the request names a steering twice, in `model` and in `vsteer`",
                f"leave one out, or name the model {BASE}",
            )
        if isinstance(given, str):
            return self.named(given)
        if not isinstance(given, dict):
            raise UsageError(f"expected an object as `vsteer`, found {shown(given)}", self._example())
        steering = parse_object(given)
        self.check(steering)
        return steering

    def models(self) -> list[dict[str, Any]]:
        """The named ones as OpenAI's API lists models; what can be spelled out has no end."""
        return [self.card(name) for name in (BASE, *self.steerings)]

    def card(self, name: str) -> dict[str, Any]:
        means = {"steering": spelled(self.named(name)), "vectors": self._layers()}
        card = {"id": name, "object": "model", "created": 0, "owned_by": "vsteer"}
        return {**card, "root": self.model, "vsteer": means}

    def _layers(self) -> dict[str, list[int]]:
        return {name: sorted(directions) for name, directions in self.vectors.items()}

    def check(self, steering: Steering) -> None:
        """Raise unless the server has what the steering needs."""
        for term in steering.terms:
            if term.vector not in self.vectors:
                known = f"the vectors are {', '.join(list(self.vectors)[:10]) or 'none'}"
                raise UnknownName(
                    f"no vector is called {shown(term.vector)}",
                    did_you_mean(term.vector, self.vectors, known),
                )
            layers = self.vectors[term.vector]
            if term.layer not in layers:
                have = f"it has layers from {min(layers)} to {max(layers)}"
                raise UnknownName(f"the vector {term.vector} has no layer {term.layer}", have)
            if term.operation not in self.operations:
                hint = did_you_mean(term.operation, self.operations, f"it does {', '.join(self.operations)}")
                raise UnknownName(f"the server does no {shown(term.operation)}", hint)
            try:
                check_place(term.vector, self.places.get(term.vector, ""), term.operation)
            except VectorError as error:
                raise UnknownName(error.message, error.hint) from None
        added = Counter(term.layer for term in steering.acting_terms if term.is_added)
        if (most := max(added.values(), default=0)) > self.terms:
            raise UnknownName(f"{most} vectors are added at one layer", f"at most {self.terms} are")

    def _example(self) -> str:
        for name, directions in self.vectors.items():
            return f"{BASE}+{name}@{sorted(directions)[len(directions) // 2]}*1.5"
        return f"{BASE} (no vectors were given)"
