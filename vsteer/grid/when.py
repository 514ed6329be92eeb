"""`when`: the condition on a prompt under which a block of the grid steers, after conditional steering."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, PlainValidator, model_validator

from vsteer.grid.axes import parse_number
from vsteer.validation import AS_LIST, Name, Strict, many, shown, wrong

_FORMS = "a cosine lies between -1 and 1, such as above: 0.05 or above: [0.0, 0.05, 0.1]"


def _threshold(value: Any) -> float:
    number = parse_number(value, _FORMS)
    if not -1 <= number <= 1:
        raise wrong(f"no cosine is compared with {shown(value)}", _FORMS)
    return number + 0.0  # -0.0 is 0


Thresholds = Annotated[tuple[float, ...], PlainValidator(many(_threshold)), AS_LIST]


class When(Strict):
    """Steer the prompts on which the unsteered stream points along a vector, and leave the others alone."""

    vector: Name
    """One of the grid's `vectors`: the direction with which the prompt's stream is compared. Its length plays
    no part."""
    layer: Annotated[int, Field(ge=0, le=9_999)]
    """The layer whose stream is compared, with the vector's direction of that layer."""
    token: Literal["mean", "last"] = "mean"
    """`mean` compares the mean of the stream over all tokens of the prompt, `last` that of its last token.
    The prompt is the whole rendered one with its generation prompt, without a forced answer prefix."""
    above: Thresholds | None = None
    """One of `above` and `below`: the condition holds where the cosine is above the threshold. Several
    thresholds are as many conditions."""
    below: Thresholds | None = None
    """One of `above` and `below`: the condition holds where the cosine is below the threshold."""

    @model_validator(mode="after")
    def _one_side(self) -> When:
        if (self.above is None) == (self.below is None):
            raise wrong("expected above or below, one of them", "such as above: [0.0, 0.05, 0.1]")
        return self

    @property
    def side(self) -> str:
        return "below" if self.above is None else "above"

    @property
    def thresholds(self) -> tuple[float, ...]:
        return self.above or self.below or ()
