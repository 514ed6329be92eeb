"""What a value of a grid may be, and how a wrong one is explained to who wrote it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from difflib import get_close_matches
from reprlib import Repr
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, PlainSerializer, PlainValidator, model_validator
from pydantic_core import PydanticCustomError

T = TypeVar("T")

_NAME = re.compile(r"[A-Za-z0-9][\w.-]*", re.ASCII)
_COMPARED = 100
# It prints no more of a large value than is shown.
_SHOWN = Repr()
_SHOWN.maxstring = _SHOWN.maxother = _SHOWN.maxlong = 60


def wrong(message: str, hint: str, *at: str | int) -> PydanticCustomError:
    """An error for pydantic to carry; `at` leads from the value to the part of it that is wrong."""
    return PydanticCustomError("grid", "{message}", {"message": message, "hint": hint, "at": at})


def did_you_mean(value: object, known: Iterable[str], otherwise: str) -> str:
    word = value if isinstance(value, str) else shown(value)
    near = get_close_matches(word[:_COMPARED], list(known), n=1)
    return f"did you mean {shown(near[0])}?" if near else otherwise


def shortened(text: str, most: int = 100) -> str:
    """The start of a text, so that no message prints all that a user wrote."""
    return text if len(text) <= most else f"{text[: most - 1]}…"


def shown(value: object) -> str:
    """A value about as the user wrote it, or its start."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return str(value).lower()
    try:
        return shortened(_SHOWN.repr(value), 60)
    except ValueError:  # Python prints no integer of more than 4,300 digits.
        return "a number of thousands of digits"


def many(parse: Callable[[Any], T]) -> Callable[[Any], tuple[T, ...]]:
    """One value or a list of them, each once, in the order written."""

    def parse_many(value: Any) -> tuple[T, ...]:
        if not isinstance(value, list | tuple):
            return (parse(value),)
        if not value:
            raise wrong(
                "expected at least one value, found an empty list", "take the line out, or fill it in"
            )
        parsed: dict[T, None] = {}
        for n, one in enumerate(value):
            try:
                parsed[parse(one)] = None
            except PydanticCustomError as error:
                context = error.context or {}
                raise wrong(context["message"], context["hint"], n, *context["at"]) from None
        return tuple(parsed)

    return parse_many


def _name(value: Any) -> str:
    """A name that can stand in a file's name, on a command line and in SQL."""
    if not isinstance(value, str) or not _NAME.fullmatch(value) or len(value) > 100:
        raise wrong(f"expected a name, found {shown(value)}", "letters, digits, and . _ - within; no spaces")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise wrong(f"expected a text, found {shown(value)}", "put it in quotes")
    return value


def _text_or_none(value: Any) -> str | None:
    return None if value is None else _text(value)


AS_LIST = PlainSerializer(list)
Name = Annotated[str, PlainValidator(_name)]
Text = Annotated[str, PlainValidator(_text)]
Names = Annotated[tuple[str, ...], PlainValidator(many(_name)), AS_LIST]
Texts = Annotated[tuple[str, ...], PlainValidator(many(_text)), AS_LIST]
Systems = Annotated[tuple[str | None, ...], PlainValidator(many(_text_or_none)), AS_LIST]
Count = Annotated[int, Field(ge=1, le=2**31 - 1)]


class Strict(BaseModel):
    """Settings that refuse every key and every type that they do not name."""

    # The text behind a setting is its description, from which docs/grid.md is made.
    model_config = ConfigDict(
        strict=True, extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True
    )

    @model_validator(mode="before")
    @classmethod
    def _known_keys(cls, value: Any) -> Any:
        if isinstance(value, dict):
            known = list(cls.model_fields)
            for key in value:
                if key not in known:
                    hint = did_you_mean(key, known, f"known here: {', '.join(known)}")
                    raise wrong(f"unknown setting {shown(key)}", hint, key)
        return value
