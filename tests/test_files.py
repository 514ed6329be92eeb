"""Files that appear whole or not at all, however writing them ends, and what of a user's is not read."""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path

import pytest

from vsteer.errors import StoreError, VectorError
from vsteer.files import new_file, open_regular, parse_json, read_regular, written_whole


def test_a_file_is_there_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    with written_whole(path) as temporary:
        temporary.write_text("half")
        assert not list(tmp_path.glob("*.parquet"))
        assert [each.name for each in tmp_path.iterdir()] == [".a.parquet.tmp"]
    assert [each.name for each in tmp_path.iterdir()] == ["a.parquet"]
    assert path.read_text() == "half"


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_what_stood_there_stays_where_writing_fails(
    tmp_path: Path, shared: bool, error: type[BaseException]
) -> None:
    path = tmp_path / "a"
    path.write_text("before")

    def fails() -> None:
        with written_whole(path, shared=shared) as temporary:
            temporary.write_text("after")
            raise error

    with pytest.raises(error):
        fails()
    assert [each.name for each in tmp_path.iterdir()] == ["a"]
    assert path.read_text() == "before"


def test_what_a_kill_left_is_written_over(tmp_path: Path) -> None:
    (tmp_path / ".a.tmp").write_text("long, and left by a kill")
    with written_whole(tmp_path / "a") as temporary:
        temporary.write_text("new")
    assert [(each.name, each.read_text()) for each in tmp_path.iterdir()] == [("a", "new")]


def test_two_writers_of_one_file_do_not_mix(tmp_path: Path) -> None:
    path = tmp_path / "a"
    with written_whole(path, shared=True) as first:
        first.write_text("first")
        with written_whole(path, shared=True) as second:
            second.write_text("second")
        assert path.read_text() == "second"
    assert path.read_text() == "first"


@pytest.mark.parametrize("error", [StoreError, VectorError])
def test_a_users_file_is_replaced_on_purpose_only(
    tmp_path: Path, error: type[StoreError] | type[VectorError]
) -> None:
    path = tmp_path / "a"
    path.write_text("before")
    with pytest.raises(error, match="exists already"), new_file(path, error):
        raise AssertionError("nothing is written")
    with new_file(path, error, overwrite=True) as temporary:
        temporary.write_text("after")
    assert path.read_text() == "after"
    missing = r"could not write .*No such file or directory"
    with pytest.raises(error, match=missing), new_file(tmp_path / "none" / "a", error) as temporary:
        temporary.write_text("after")


def test_a_file_is_read_up_to_its_limit(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"12345")
    assert read_regular(path, 5) == b"12345"
    with pytest.raises(OSError) as error:
        read_regular(path, 4)
    assert error.value.strerror == "it has 5 bytes, and at most 4 are read"


def test_a_sparse_giant_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "a"
    with path.open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(OSError, match="1,099,511,627,776 bytes"):
        read_regular(path, 100)


def test_a_file_without_a_size_has_a_limit_too() -> None:
    assert read_regular(Path("/proc/self/cmdline"), 2**20)
    with pytest.raises(OSError, match="more bytes than it says, and at most 3 are read"):
        read_regular(Path("/proc/self/cmdline"), 3)


@pytest.mark.parametrize("kind", ["pipe", "device", "folder", "socket", "missing"])
def test_what_is_no_file_is_refused_at_once(tmp_path: Path, kind: str) -> None:
    path, words = tmp_path / "a", {"pipe": "a named pipe", "device": "a device"}.get(kind, "")
    match kind:
        case "pipe":
            os.mkfifo(path)
        case "device":
            path = Path("/dev/zero")
        case "folder":
            path.mkdir()
        case "socket":
            socket.socket(socket.AF_UNIX).bind(str(path))
    before = time.monotonic()
    with pytest.raises(OSError) as error, open_regular(path):
        raise AssertionError("it is open")
    assert words in (error.value.strerror or "")
    assert time.monotonic() - before < 30


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[" * 100_000, "too deep"),
        (b'{"a":' * 100_000, "too deep"),
        (r'"\ud800"', "half a surrogate"),
        (r'{"\uDFFF": 1}', "half a surrogate"),
        (b'"\xed\xa0\x80"', "utf-8"),
        ("9" * 5000, "4300"),
        ("{", "property name"),
        ("", "value"),
    ],
)
def test_json_that_cannot_be_used_is_a_value_error(text: str | bytes, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        parse_json(text)


def test_json_that_can_be_used() -> None:
    assert parse_json(rb'["\ud83d\ude00", {"a": [1]}]') == ["😀", {"a": [1]}]
    assert parse_json('"\u00fc"') == "ü"
