"""A data file as records: read once, hashed as it was read, each record with the line it starts on.

Three layouts, told apart by content: a JSON array (or an object of arrays), JSON Lines, and plain text with one
record a line. What the fields mean is not known here.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from vsteer.errors import DataError

_WHITESPACE = " \t\r\n"


@dataclass(frozen=True, slots=True)
class Source:
    """A file that something was made from. The hash says which of several public versions it was."""

    path: str
    sha256: str


@dataclass(frozen=True, slots=True)
class Record:
    """One value of a file and the line it starts on, counted from 1."""

    line: int
    value: object


@dataclass(frozen=True, slots=True)
class DataFile:
    """A file's text and its source."""

    source: Source
    text: str

    def error(self, line: int, message: str, hint: str) -> DataError:
        return DataError(f"{self.source.path}, line {line}: {message}", hint)

    def is_json(self) -> bool:
        return self.text.lstrip(_WHITESPACE)[:1] in {"[", "{", '"'}


def open_data(path: str | Path) -> DataFile:
    """The file's text, UTF-8 with or without a byte order mark."""
    path = Path(path)
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}", "name a data file that exists and can be read") from None
    source = Source(str(path), hashlib.sha256(raw).hexdigest())
    try:
        return DataFile(source, raw.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        message = f"{path}, line {line}: expected UTF-8 text, found byte 0x{raw[error.start]:02x}"
        raise DataError(message, "save the file as UTF-8") from None


def json_records(file: DataFile) -> Iterator[Record]:
    """The elements of a JSON array, the lines of JSON Lines, or the one value that a file consists of."""
    start = _skip(file.text, 0)
    if file.text[start : start + 1] == "[":
        _, end = yield from _array(file, start)
        _expect_end(file, end)
        return
    lines = [(n, line) for n, line in enumerate(file.text.split("\n"), 1) if line.strip()]
    if len(lines) > 1 and _is_json_value(lines[0][1]):
        yield from _json_lines(file, lines)
        return
    value, end = _value(file, start)
    _expect_end(file, end)
    yield Record(_line(file.text, start), value)


def json_lists(file: DataFile) -> dict[str, list[Record]] | None:
    """The arrays of one object such as `{"positive": [...], "negative": [...]}`; None where it is something else."""
    text, position = file.text, _skip(file.text, 0)
    if text[position : position + 1] != "{":
        return None
    lists: dict[str, list[Record]] = {}
    while True:
        position = _skip(text, position + 1)
        if text[position : position + 1] != '"':
            return None
        key, position = _value(file, position)
        position = _skip(text, position)
        if text[position : position + 1] != ":":
            return None
        position = _skip(text, position + 1)
        if text[position : position + 1] != "[":
            return None
        if str(key) in lists:
            raise file.error(_line(text, position), f'"{key}" stands twice', "join the two lists into one")
        elements = _array(file, position)
        lists[str(key)], position = _drain(elements)
        position = _skip(text, position)
        if text[position : position + 1] == "}":
            _expect_end(file, position + 1)
            return lists
        if text[position : position + 1] != ",":
            raise file.error(_line(text, position), "expected , or } after a list", "the file isn't valid JSON")


def text_records(file: DataFile) -> Iterator[Record]:
    """One record a line; empty lines separate and are no records."""
    for number, line in enumerate(file.text.split("\n"), 1):
        if line.strip():
            yield Record(number, line.strip())


def _json_lines(file: DataFile, lines: Iterable[tuple[int, str]]) -> Iterator[Record]:
    for number, line in lines:
        try:
            yield Record(number, _decoder.decode(line))
        except (ValueError, RecursionError) as error:
            hint = "JSON Lines has one whole JSON value on each line"
            raise file.error(number, f"not valid JSON: {_reason(error)}", hint) from None


type _Elements = Iterator[Record]


def _array(file: DataFile, start: int):  # type: ignore[no-untyped-def]
    raise NotImplementedError
