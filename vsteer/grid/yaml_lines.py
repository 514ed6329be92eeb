"""A YAML file as plain values, with the line of each one.

YAML can name code to run, hold a key twice, reuse a part under an alias and merge one mapping into another.
An error should name the line, so the values are made here from the parser's events, one after another: a file
that would become too much is refused where it does. What an alias stands for is made once, however often it
is used. Only safe tags are taken.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import yaml

from vsteer.files import read_regular, reading_hint
from vsteer.grid.problems import GridError, Source
from vsteer.grid.values import MOST_DEPTH, MOST_VALUES, Lines, fault
from vsteer.validation import shortened, shown

MOST_BYTES = 2**20
MOST_DIGITS = 100
_PREFIX = "tag:yaml.org,2002:"
_KINDS = {"null": "nothing", "bool": "true or false", "int": "a whole number", "float": "a number"}
# libyaml's is ten times as fast; wheels have it.
_PARSER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_TOO_DEEP = "the values are nested too deeply", "a grid is a few levels deep"
_FORBIDDEN = yaml.reader.Reader.NON_PRINTABLE


def read_yaml(path: str | Path) -> Source:
    path = Path(path)
    try:
        text = read_regular(path, MOST_BYTES).decode("utf-8-sig")
    except OSError as error:
        hint = reading_hint(error, "name a YAML file that exists and can be read")
        raise GridError(f"{shortened(str(path))}: {error.strerror}", hint) from None
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        message = f"expected UTF-8 text, found byte 0x{error.object[error.start]:02x}"
        raise _error(path, line, message, "save the file as UTF-8") from None
    if found := _FORBIDDEN.search(text):
        line = text.count("\n", 0, found.start()) + 1
        raise _error(path, line, f"a character that YAML forbids: {found[0]!r}", "take it out")
    made = _Reader(path, text).document()
    return Source(made.value, path.parent, path, made.lines)


def _error(path: Path, line: int, message: str, hint: str) -> GridError:
    return Source(None, path.parent, path, Lines(line)).error((), message, hint)


@dataclass
class _Made:
    value: object
    lines: Lines


class _Reader:
    def __init__(self, path: Path, text: str) -> None:
        self.path = path
        self._events = self._parsed(text)
        self._known: Any = yaml.SafeLoader("")  # for what an untagged scalar means
        self._anchors: dict[str, _Made | None] = {}  # None while the value is being made
        self._depth = self._read = self._merged = 0

    def document(self) -> _Made:
        next(self._events)  # the stream's start
        first = next(self._events)
        if isinstance(first, yaml.StreamEndEvent):
            self.fail(0, "expected a grid, found an empty file", "is it the file you meant?")
        made = self._value(next(self._events))
        next(self._events)  # the document's end
        after = next(self._events)
        if not isinstance(after, yaml.StreamEndEvent):
            line = after.start_mark.line
            self.fail(line, "not valid YAML: expected a single document", "take the second one out")
        return made

    def _parsed(self, text: str) -> Iterator[Any]:
        try:
            yield from yaml.parse(text, Loader=_PARSER)
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            reason = shortened(" ".join(part for part in (error.context, error.problem) if part))
            line = mark.line if mark else 0
            if "nesting depth" in reason:  # libyaml's own limit
                self.fail(line, *_TOO_DEEP)
            self.fail(line, f"not valid YAML: {reason}", "look at the indentation, quotes and escapes")
        except (yaml.YAMLError, ValueError, IndexError, OverflowError) as error:  # the escape "\U7fffffff"
            hint = "look at escapes such as \\U in quoted texts"
            self.fail(0, f"not valid YAML: {shortened(str(error))}", hint)

    def _value(self, event: Any, key: int | None = None) -> _Made:
        """The value that begins with `event`. Its place in the file is that of the key before it, if any."""
        line = event.start_mark.line if key is None else key
        self._read += 1
        if self._read > MOST_VALUES:
            self.fail(line, f"the file has more than {MOST_VALUES:,} values", "a grid is smaller")
        if isinstance(event, yaml.AliasEvent):
            return self._alias(event, line)
        if event.anchor is not None:
            if event.anchor in self._anchors:
                hint = "give each a name of its own"
                self.fail(line, f"two values have the anchor {shortened(event.anchor)!r}", hint)
            self._anchors[event.anchor] = None
        made = _Made(None, Lines(line + 1))
        if isinstance(event, yaml.ScalarEvent):
            made.value = self._scalar(event)
        else:
            self._depth += 1
            if self._depth > MOST_DEPTH:
                self.fail(line, *_TOO_DEEP)
            if isinstance(event, yaml.MappingStartEvent):
                self._check_tag(event, "map")
                self._mapping(made)
            else:
                self._check_tag(event, "seq")
                self._sequence(made)
            self._depth -= 1
        if event.anchor is not None:
            self._anchors[event.anchor] = made
        return made

    def _alias(self, event: Any, line: int) -> _Made:
        if event.anchor not in self._anchors:
            hint = "an alias such as *name needs an anchor &name before it"
            self.fail(line, f"not valid YAML: found undefined alias {shortened(event.anchor)!r}", hint)
        target = self._anchors[event.anchor]
        if target is None:
            self.fail(line, "an alias stands for something that it is itself a part of", "write it out")
        return _Made(target.value, Lines(line + 1, target.lines.parts, target.lines.count))

    def _sequence(self, made: _Made) -> None:
        values: list[object] = []
        while not isinstance(event := next(self._events), yaml.SequenceEndEvent):
            one = self._value(event)
            self._add(made.lines, len(values), one.lines)
            values.append(one.value)
        made.value = values

    def _mapping(self, made: _Made) -> None:
        values: dict[str, object] = {}
        merges: list[tuple[_Made, Any]] = []
        made.value = values
        while not isinstance(key := next(self._events), yaml.MappingEndEvent):
            line = key.start_mark.line
            merge = isinstance(key, yaml.ScalarEvent) and self._tag(key) == "merge"
            name = self._scalar(key) if isinstance(key, yaml.ScalarEvent) else None
            if not isinstance(name, str):
                self.fail(line, "expected the name of a setting", "put a key that is not a word in quotes")
            if name in values and not merge:
                first = made.lines.parts[name].line
                message = f"the key {shown(name)} stands twice, first on line {first}"
                self.fail(line, message, "join them, or take one out")
            one = self._value(next(self._events), line)
            if merge:
                merges.append((one, line))
            else:
                values[name] = one.value
                self._add(made.lines, name, one.lines)
        for one, line in merges:
            self._merge(one, line, made, values)

    def _merge(self, one: _Made, line: int, made: _Made, values: dict[str, object]) -> None:
        """`<<: *other` takes what the other mapping has and this one lacks."""
        parts = one.lines.parts
        others = list(enumerate(one.value)) if isinstance(one.value, list) else [(None, one.value)]
        for n, other in others:
            if not isinstance(other, dict):
                self.fail(line, "expected the alias of a mapping after <<", "such as <<: *defaults")
            self._merged += len(other)
            if self._merged > MOST_VALUES:
                self.fail_aliases(line)
            lines = parts if n is None else parts[n].parts
            for name, held in other.items():
                if name not in values:
                    values[name] = held
                    self._add(made.lines, name, lines[name])

    def _add(self, whole: Lines, key: str | int, part: Lines) -> None:
        """An alias stands for a whole tree, so a few nested ones can make more values than memory holds."""
        whole.parts[key] = part
        whole.count += part.count
        if whole.count > MOST_VALUES:
            self.fail_aliases(part.line - 1)

    def _tag(self, event: Any) -> str:
        tag = event.tag
        if tag is None or tag == "!":
            tag = self._known.resolve(yaml.ScalarNode, event.value, event.implicit)
        return str(tag).removeprefix(_PREFIX)

    def _scalar(self, event: Any) -> object:
        kind, text, line = self._tag(event), event.value, event.start_mark.line
        value: object = text
        if kind in _KINDS:
            if len(text) > MOST_DIGITS:
                self.fail(line, f"{_KINDS[kind]} of {len(text):,} characters", "put a text in quotes")
            node = yaml.ScalarNode(_PREFIX + kind, text)
            try:
                value = self._known.construct_object(node)
            except (ValueError, LookupError, OverflowError, yaml.YAMLError):
                self.fail(line, f"expected {_KINDS[kind]}, found {text!r}", "put a text in quotes")
        elif kind not in ("str", "timestamp", "value", "merge"):  # A date stays a text.
            self.fail_tag(line, kind)
        if found := fault(value):
            self.fail(line, *found)
        return value

    def _check_tag(self, event: Any, expected: str) -> None:
        if event.tag not in (None, "!", _PREFIX + expected):
            self.fail_tag(event.start_mark.line, event.tag)

    def fail_aliases(self, line: int) -> NoReturn:
        self.fail(line, f"aliases make more than {MOST_VALUES:,} values of this file", "write it out")

    def fail_tag(self, line: int, tag: str) -> NoReturn:
        self.fail(line, f"the tag {shortened(tag)} is not known here", "leave the tag out")

    def fail(self, line: int, message: str, hint: str) -> NoReturn:
        """`line` is the parser's, counted from 0."""
        raise _error(self.path, line + 1, message, hint) from None
