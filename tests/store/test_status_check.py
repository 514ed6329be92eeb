"""What `vsteer status` and `vsteer check` go by, on whole runs, broken ones and live ones."""

from __future__ import annotations

import os
import random
import re
import shutil
from pathlib import Path

import pyarrow as pa
import pytest

from tests.store.makers import config, error_row, planned, prompt, row, row_id, text_row, write_plan
from vsteer.errors import StoreError
from vsteer.store.check import Finding, check
from vsteer.store.ids import pack, pack_column, unpack
from vsteer.store.planned import Planned
from vsteer.store.sound import noted_distinct
from vsteer.store.status import status
from vsteer.store.store import open_store
from vsteer.store.views import rows_sql

PLAN = planned(range(30))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A whole run of 30 rows in three shards and an empty one."""
    folder = tmp_path / "run"
    with open_store(folder, shard_rows=10) as store:
        write_plan(store, 30)
        for number in range(30):
            store.append(row(number))
    return folder


def found(folder: Path, plan: Planned = PLAN) -> dict[str, Finding]:
    return {finding.what: finding for finding in check(folder, plan)}


def test_a_whole_run_has_no_findings(run: Path) -> None:
    assert check(run, PLAN) == []
    with open_store(run) as store:
        assert check(run, PLAN) == []  # while it is open too
        store.compact()
    assert check(run, PLAN) == []


@pytest.mark.parametrize("name", ["configs.parquet", "prompts.parquet"])
def test_a_flipped_bit_in_a_table_is_found_wherever_it_is(run: Path, name: str) -> None:
    """Arrow reads some damaged footers that DuckDB does not."""
    whole = (run / name).read_bytes()
    bits = random.Random(3)
    for _ in range(40):
        bit = bits.randrange(8 * len(whole))
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        (run / name).write_bytes(damaged)
        assert name in found(run)["unreadable_tables"].examples[0], bit
    (run / name).write_bytes(whole)
    assert check(run, PLAN) == []


def test_the_status_of_a_run_from_its_beginning_to_its_end(tmp_path: Path) -> None:
    with open_store(tmp_path, shard_rows=10) as store:
        new = status(tmp_path)
        assert (new.planned, new.missing, new.done, new.errors) == (None, None, 0, 0)
        write_plan(store, 40)
        for number in range(30):
            store.append(error_row(number) if number % 10 == 0 else row(number))
        going = status(tmp_path)
        assert (going.planned, going.done, going.errors, going.missing) == (40, 18, 2, 20)
        assert (going.live, going.sessions, going.compacted) == (True, 1, False)
        assert going.holder is not None
        assert going.holder.pid == os.getpid()
        assert going.last_event is not None
        assert going.last_event["event"] == "start"
    with open_store(tmp_path) as store:
        store.append(row(0, attempt=2))
        store.compact()
    done = status(tmp_path)
    assert (done.done, done.errors, done.missing) == (28, 2, 10)
    assert (done.live, done.sessions, done.compacted, done.set_aside) == (False, 2, True, 0)
    assert done.last_event is not None
    assert done.last_event["event"] == "compact"


def test_counting_needs_no_ids_where_no_row_stands_twice(tmp_path: Path) -> None:
    """A query notes it; a retried row is another shard, of which nobody noted it."""
    with open_store(tmp_path, shard_rows=10) as store:
        for number in range(25):
            store.append(error_row(number) if number % 5 == 0 else row(number))
    for _ in range(2):
        assert (status(tmp_path).done, status(tmp_path).errors) == (20, 5)
        rows_sql(tmp_path)
    assert noted_distinct(tmp_path, sorted((tmp_path / "rows").iterdir()))
    with open_store(tmp_path) as store:
        store.append(row(0, attempt=2))
    assert (status(tmp_path).done, status(tmp_path).errors) == (21, 4)


def test_ids_in_a_column_are_packed_as_ids_in_a_list() -> None:
    ids = [row_id(number) for number in range(20)]
    column = pa.array(ids)
    for begin, end in ((0, 20), (3, 11), (20, 20)):
        assert unpack(pack_column(column[begin:end])) == unpack(pack(ids[begin:end])) == ids[begin:end]
    for bad in (["ab"], [ids[0][:-1] + "x"], [ids[0] + "00"], ["é" * 16]):
        with pytest.raises(ValueError):
            pack_column(pa.array(bad))


def test_the_status_names_shards_that_cannot_be_read(run: Path) -> None:
    shard = max((run / "rows").iterdir())
    shard.write_bytes(shard.read_bytes()[:-20])
    before = sorted(run.rglob("*"))
    assert status(run).unreadable == (shard.name,)
    assert status(run).done == 20
    assert sorted(run.rglob("*")) == before  # looking changes nothing
    open_store(run).close()
    assert (status(run).unreadable, status(run).set_aside, status(run).done) == ((), 1, 20)


def test_what_is_not_a_run_is_refused(tmp_path: Path) -> None:
    for ask in (lambda: status(tmp_path / "nothing"), lambda: check(tmp_path, planned([]))):
        with pytest.raises(StoreError, match="is not a run's folder"):
            ask()


def test_missing_and_unplanned_rows_are_counted_with_examples(run: Path) -> None:
    findings = found(run, planned([*range(3, 30), 77, 78]))
    assert findings.keys() == {"missing", "unplanned", "plan_differs"}
    assert (findings["missing"].count, set(findings["missing"].examples)) == (2, {row_id(77), row_id(78)})
    assert (findings["unplanned"].count, set(findings["unplanned"].examples)) == (
        3,
        set(map(row_id, range(3))),
    )
    assert findings["plan_differs"].message == "the manifest plans 30 rows, and 29 were given to check"
    assert all(finding.fault for finding in findings.values())


def test_rows_that_failed_are_a_fault_until_they_are_retried(run: Path) -> None:
    with open_store(run) as store:
        write_plan(store, 31)
        store.append(error_row(30))
    plan = planned(range(31))
    assert {what: f.examples for what, f in found(run, plan).items()} == {"errors": (row_id(30),)}
    with open_store(run) as store:
        store.append(row(30, attempt=2))
    (superseded,) = check(run, plan)
    assert (superseded.what, superseded.count, superseded.fault) == ("superseded", 1, False)
    with open_store(run) as store:
        store.compact()
    assert check(run, plan) == []


def test_damage_that_reading_would_not_notice_is_found(run: Path) -> None:
    shard = max((run / "rows").iterdir())
    content = bytearray(shard.read_bytes())
    content[300] ^= 1
    shard.write_bytes(content)
    findings = found(run)
    assert findings["unreadable"].examples[0].startswith(shard.name)
    assert findings["missing"].count == 10


def test_files_of_others_and_those_set_aside_are_named(run: Path) -> None:
    (run / "rows" / "mine.parquet").write_bytes(b"x")
    assert found(run)["foreign"].examples == ("mine.parquet",)
    open_store(run).close()
    (aside,) = check(run, PLAN)
    assert (aside.what, aside.fault, aside.examples) == ("set_aside", False, ("mine.parquet",))


def test_a_doubled_row_in_a_compacted_file_is_a_fault(run: Path, tmp_path: Path) -> None:
    """Which only a foreign hand can make: one shard with a row twice, under a compacted name."""
    with open_store(tmp_path / "other") as store:
        store.append(row(0))
        store.append(row(0))
    (shard,) = (path for path in (tmp_path / "other" / "rows").iterdir() if "-00000002-" in path.name)
    shutil.rmtree(run / "rows")
    (run / "rows").mkdir()
    shutil.copy(shard, run / "rows" / shard.name.replace("part", "compact"))
    assert found(run)["doubled"].count == 1


def test_the_tables_beside_the_rows_are_held_to_manifest_and_rows(run: Path) -> None:
    with open_store(run) as store:
        store.write_plan({}, map(config, range(13)), map(prompt, range(3)), 30)
    assert {what: finding.examples for what, finding in found(run).items()} == {
        "unknown_config_id": ("config-13",)
    }
    with open_store(run) as store:
        store.write_plan({}, map(config, range(14)), map(prompt, range(2)), 30)
    whole = (run / "prompts.parquet").read_bytes()
    damaged = bytearray(whole)
    damaged[whole.index(b"PAR1") + 60] ^= 1
    for content, says in (
        (whole, "it has 2 lines, and the manifest says 3"),
        ((run / "configs.parquet").read_bytes(), "it has other columns than it should"),
        (bytes(damaged), "its checksum is another's"),
        (b"PAR1", "it can't be read"),
        (b"", "it is empty"),
    ):
        if content is whole:
            manifest = (run / "manifest.json").read_text()
            # without its checksum, as one of before
            unsealed = re.sub(r',\s+"crc32": "\w+"', "", manifest.replace('"prompts": 2', '"prompts": 3'))
            (run / "manifest.json").write_text(unsealed)
        (run / "prompts.parquet").write_bytes(content)
        assert says in found(run)["unreadable_tables"].examples[0]
    (run / "prompts.parquet").unlink()
    (run / "manifest.json").unlink()
    assert found(run).keys() == {"unreadable_tables", "no_manifest"}
    assert found(run)["unreadable_tables"].examples == ("prompts.parquet: it is not there",)


def test_a_mixture_of_engines_or_vector_files_is_reported(run: Path) -> None:
    with open_store(run) as store:
        write_plan(store, 32)
        store.append(text_row(30, engine="vllm", vllm_version="0.32.0"))
        store.append(text_row(31, engine="vllm", vllm_version="0.33.0", vector_file_sha256="99" * 32))
    findings = found(run, planned(range(32)))
    assert findings.keys() == {"mixed_engines", "mixed_vectors"}
    assert findings["mixed_engines"].examples == ("reference", "vllm 0.32.0", "vllm 0.33.0")
    assert findings["mixed_vectors"].examples == ("sentiment",)
    assert not any(finding.fault for finding in findings.values())
