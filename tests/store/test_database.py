"""What a database in memory can't hold goes to temporary files, and away with it."""

from __future__ import annotations

from pathlib import Path

import pytest

from vsteer.store.database import in_memory


def test_what_does_not_fit_in_memory_goes_to_temporary_files_and_with_the_database(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    temporary, here = tmp_path / "temporary", tmp_path / "here"
    temporary.mkdir()
    here.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    monkeypatch.chdir(here)
    with in_memory(memory_limit="24MB", threads=1) as database:
        assert list(temporary.iterdir()) == []
        database.execute(
            "create table numbers as select hash(range)::varchar as number from range(2_000_000)"
        )
        ((count,),) = database.execute("select count(distinct number) from numbers").fetchall()
        assert count == 2_000_000
        (folder,) = temporary.iterdir()
        assert any(folder.iterdir()), "nothing was put there"
    assert list(temporary.iterdir()) == []
    assert list(here.iterdir()) == []
