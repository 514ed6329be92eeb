"""Files that appear whole or not at all, whoever else writes them and however writing them ends."""

from __future__ import annotations

from pathlib import Path

import pytest

from vsteer.errors import StoreError, VectorError
from vsteer.files import new_file, written_whole


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
