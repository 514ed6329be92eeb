"""A data file as records: read once, hashed as it was read, each record with the line it starts on.

Three layouts, told apart by content: a JSON array (or one object of arrays), JSON Lines, and plain text with
one record a line. What the fields mean is not known here.
"""

import hashlib
import json
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


def open_data(path: str | Path) -> DataFile:
    """The file's text: UTF-8, with or without a byte order mark."""
    path = Path(path)
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}", "name a data file that exists and can be read") from None
    source = Source(str(path), hashlib.sha256(raw).hexdigest())
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        message = f"{path}, line {line}: expected UTF-8 text, found byte 0x{raw[error.start]:02x}"
        raise DataError(message, "save the file as UTF-8") from None
    if not text.strip():
        raise DataError(f"{path}, line 1: expected data, found an empty file", "is it the file you meant?")
    return DataFile(source, text)


def is_json(file: DataFile) -> bool:
    return file.text.lstrip(_WHITESPACE)[0] in '[{"'


def json_records(file: DataFile) -> list[Record]:
    """The elements of a JSON array, the lines of JSON Lines, or the one value that the file consists of."""
    start = _skip(file.text, 0)
    if file.text[start] == "[":
        records, end = _array(file, start)
        _expect_end(file, end)
        return records
    lines = [(number, line) for number, line in enumerate(file.text.split("\n"), 1) if line.strip()]
    # An object printed over several lines is one value; its first line alone is not.
    if len(lines) == 1 or _stands_alone(lines[0][1]):
        return [_line_record(file, number, line) for number, line in lines]
    value, end = _value(file, start)
    _expect_end(file, end)
    return [Record(_line(file.text, start), value)]


def json_lists(file: DataFile) -> dict[str, list[Record]] | None:
    """The arrays of one object such as `{"positive": [...], "negative": [...]}`; None if it isn't one."""
    text, position = file.text, _skip(file.text, 0)
    lists: dict[str, list[Record]] = {}
    separator = "{"
    while text[position : position + 1] == separator:
        start = _skip(text, position + 1)
        if text[start : start + 1] != '"':
            return None
        key, end = _value(file, start)
        colon = _skip(text, end)
        opening = _skip(text, colon + 1)
        if text[colon : colon + 1] != ":" or text[opening : opening + 1] != "[":
            return None
        if str(key) in lists:
            raise file.error(
                _line(text, start), f'expected one list "{key}", found two', "join them into one"
            )
        lists[str(key)], end = _array(file, opening)
        position, separator = _skip(text, end), ","
    if not lists:
        return None
    if text[position : position + 1] != "}":
        raise file.error(
            _line(text, position), "not valid JSON: expected , or } after a list", "close the object"
        )
    _expect_end(file, position + 1)
    return lists


def text_records(file: DataFile) -> list[Record]:
    """One record a line; empty lines separate and are no records."""
    lines = enumerate(file.text.split("\n"), 1)
    return [Record(number, line.strip()) for number, line in lines if line.strip()]


def _array(file: DataFile, start: int) -> tuple[list[Record], int]:
    """The elements of the array that opens at `start`, and where it ends."""
    text = file.text
    records: list[Record] = []
    position = _skip(text, start + 1)
    if text[position : position + 1] == "]":
        return records, position + 1
    line, counted = _line(text, position), position
    while True:
        line, counted = line + text.count("\n", counted, position), position
        value, end = _value(file, position)
        records.append(Record(line, value))
        end = _skip(text, end)
        following = text[end : end + 1]
        if following == "]":
            return records, end + 1
        if following != ",":
            found = f"found {following!r}" if following else "the file ends"
            message = f"not valid JSON: expected , or ] after an item, {found}"
            raise file.error(_line(text, end), message, "is the file complete?")
        position = _skip(text, end + 1)


def _value(file: DataFile, start: int) -> tuple[object, int]:
    try:
        value, end = _DECODER.raw_decode(file.text, start)
    except json.JSONDecodeError as error:
        raise file.error(error.lineno, f"not valid JSON: {_reason(error)}", "is the file complete?") from None
    except (ValueError, RecursionError) as error:
        raise file.error(_line(file.text, start), f"not usable JSON: {error}", "fix this item") from None
    return value, end


def _line_record(file: DataFile, number: int, line: str) -> Record:
    try:
        return Record(number, _DECODER.decode(line))
    except json.JSONDecodeError as error:
        hint = "JSON Lines has one whole JSON value on each line"
        raise file.error(number, f"not valid JSON: {_reason(error)}", hint) from None
    except (ValueError, RecursionError) as error:
        raise file.error(number, f"not usable JSON: {error}", "fix this line") from None


def _reason(error: json.JSONDecodeError) -> str:
    return f"{error.msg} at column {error.colno}"


def _stands_alone(line: str) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True


def _expect_end(file: DataFile, position: int) -> None:
    position = _skip(file.text, position)
    if position < len(file.text):
        line = _line(file.text, position)
        raise file.error(line, "expected the file to end after its JSON value", "keep one array in a file")


def _skip(text: str, position: int) -> int:
    while position < len(text) and text[position] in _WHITESPACE:
        position += 1
    return position


def _line(text: str, position: int) -> int:
    return text.count("\n", 0, position) + 1


def _object(fields: list[tuple[str, object]]) -> dict[str, object]:
    """Refuse a key that stands twice: one of its two values would be lost silently."""
    names = [name for name, _ in fields]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f'the field "{name}" stands twice')
    return dict(fields)


_DECODER = json.JSONDecoder(object_pairs_hook=_object)
