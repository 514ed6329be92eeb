"""A data file as records: read once, hashed as it was read, each record with the line it starts on.

Three layouts, told apart by content: a JSON array (or one object of arrays), JSON Lines, and plain text with
one record a line. What the fields mean is not known here. A file and its records have limits, far above what
can be asked, so that none fills the memory.
"""

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from vsteer.errors import DataError
from vsteer.files import read_regular, reading_hint

MAX_BYTES, MAX_RECORDS, MAX_CHARACTERS = 50_000_000, 250_000, 1_000_000
_MAX_LISTS = 20
_MOST_ARE_SHORTER, _LONGEST_ESCAPE = 5000, len(r"\ud83d\ude00")
_WHITESPACE = " \t\r\n"
_BLANK = re.compile(f"[{_WHITESPACE}]*")
_FROM_FIRST_LETTER = re.compile(r"\S[^\n]*")


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
        raw = read_regular(path, MAX_BYTES)
    except OSError as error:
        hint = "name a data file that exists and can be read; a sample of a large one will do"
        raise DataError(f"{path}: {error.strerror}", reading_hint(error, hint)) from None
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
    # An object printed over several lines is one value; its first line alone is not.
    first, *more = _lines(file, 2)
    if not more or _stands_alone(first[1]):
        return [_line_record(file, number, line) for number, line in _lines(file)]
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
            message = f'expected one list "{str(key)[:60]}", found two'
            raise file.error(_line(text, start), message, "join them into one")
        if len(lists) == _MAX_LISTS:
            message = f"expected an object of at most {_MAX_LISTS} lists"
            raise file.error(_line(text, start), message, "the lists of one behaviour are two")
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
    return [Record(number, line.strip()) for number, line in _lines(file)]


def _lines(file: DataFile, most: int = MAX_RECORDS) -> Iterator[tuple[int, str]]:
    """The lines that hold something, from their first letter on, with their numbers; at most `most`."""
    number, counted = 1, 0
    for found, match in enumerate(_FROM_FIRST_LETTER.finditer(file.text)):
        if found == most < MAX_RECORDS:
            return
        number, counted = number + file.text.count("\n", counted, match.start()), match.start()
        _check_limits(file, number, found, match.end() - match.start())
        yield number, match[0]


def _check_limits(file: DataFile, line: int, before: int, characters: int) -> None:
    """A record of so many characters, after so many others, is one that can be asked."""
    if before >= MAX_RECORDS:
        message = f"expected at most {MAX_RECORDS:,} items, and here begins another"
        raise file.error(line, message, "take a sample: every item is asked at every configuration")
    if characters > MAX_CHARACTERS:
        raise _too_long(file, line, f"{characters:,}")


def _too_long(file: DataFile, line: int, found: str) -> DataError:
    message = f"expected at most {MAX_CHARACTERS:,} characters in an item, found {found}"
    return file.error(line, message, "is the file one long line by mistake? JSON Lines has one item a line")


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
        _check_limits(file, line, len(records), end - position)
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
    """The value that begins there, and where it ends. Nothing longer than an item may be is decoded."""
    text = file.text
    for size in (_MOST_ARE_SHORTER, MAX_CHARACTERS + 1):
        part = text[start : start + size]
        cut = start + size < len(text)
        try:
            value, end = _DECODER.raw_decode(part)
        except json.JSONDecodeError as error:
            at, unended = start + error.pos, error.msg.startswith("Unterminated string")
            message = f"not valid JSON: {error.msg} at column {at - text.rfind(chr(10), 0, at)}"
            if not (cut and (unended or error.pos > size - _LONGEST_ESCAPE)):
                raise file.error(_line(text, at), message, "is the file complete?") from None
        except (ValueError, RecursionError) as error:
            raise file.error(
                _line(text, start), f"not usable JSON: {_reason(error)}", "fix this item"
            ) from None
        else:
            # a number may go on
            if end < size or not cut:
                return value, start + end
    raise _too_long(file, _line(text, start), "more")


def _line_record(file: DataFile, number: int, line: str) -> Record:
    try:
        return Record(number, _DECODER.decode(line))
    except json.JSONDecodeError as error:
        hint = "JSON Lines has one whole JSON value on each line"
        raise file.error(number, f"not valid JSON: {_reason(error)}", hint) from None
    except (ValueError, RecursionError) as error:
        raise file.error(number, f"not usable JSON: {_reason(error)}", "fix this line") from None


def _reason(error: Exception) -> str:
    match error:
        case json.JSONDecodeError():
            return f"{error.msg} at column {error.colno}"
        case RecursionError():
            return "it is nested too deep"
    return str(error)


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
    blank = _BLANK.match(text, position)
    assert blank is not None  # it matches nothing, too
    return blank.end()


def _line(text: str, position: int) -> int:
    return text.count("\n", 0, position) + 1


def _object(fields: list[tuple[str, object]]) -> dict[str, object]:
    """Refuse a key that stands twice: one of its two values would be lost silently."""
    found: dict[str, object] = {}
    for name, value in fields:
        if name in found:
            raise ValueError(f'the field "{name[:60]}" stands twice')
        found[name] = value
    return found


_DECODER = json.JSONDecoder(object_pairs_hook=_object)
