"""Which model it is: every byte counts, and large files are read once."""

from __future__ import annotations

import hashlib
import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from vsteer.models import identity
from vsteer.models.identity import model_sha256

WEIGHTS = bytes(3 * 2**20)


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VSTEER_HOME", str(tmp_path / "home"))
    return filled(tmp_path / "model")


@pytest.fixture
def settled(model: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Files that were written long enough ago for their hashes to be kept."""
    monkeypatch.setattr(identity, "RACY_SECONDS", -1.0)
    return model


def filled(folder: Path) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "llama"}')
    (folder / "merges.txt").write_text("a b")
    (folder / "tokenizer.model").write_bytes(b"pieces")
    (folder / "weights.safetensors").write_bytes(WEIGHTS)
    return folder


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[str]]:
    """The files that were read through since the last call."""
    seen: list[str] = []
    real = hashlib.file_digest

    def watched(file: object, kind: str) -> object:
        seen.append(Path(file.name).name)  # type: ignore[attr-defined]
        return real(file, kind)  # type: ignore[arg-type]

    monkeypatch.setattr(hashlib, "file_digest", watched)

    def since() -> list[str]:
        found, seen[:] = sorted(seen), []
        return found

    return since


def test_one_changed_byte_anywhere_is_another_model(model: Path) -> None:
    known = model_sha256(model)
    for place in (0, 100_001, 2_000_003, len(WEIGHTS) - 1):
        weights = bytearray(WEIGHTS)
        weights[place] = 1
        (model / "weights.safetensors").write_bytes(weights)
        assert model_sha256(model) != known
    (model / "weights.safetensors").write_bytes(WEIGHTS)
    assert model_sha256(model) == known
    for name in ("config.json", "merges.txt", "tokenizer.model"):
        before = (model / name).read_bytes()
        (model / name).write_bytes(before + b" ")
        assert model_sha256(model) != known, name
        (model / name).write_bytes(before)


def test_it_is_the_hash_of_the_files_hashes(model: Path) -> None:
    listed = subprocess.run(
        ["sha256sum", "config.json", "merges.txt", "tokenizer.model", "weights.safetensors"],
        cwd=model,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    lines = [reversed(line.split()) for line in listed.splitlines()]
    expected = "vsteer-model-2" + "".join(f"{':'.join(line)}\n" for line in lines)
    assert model_sha256(model) == hashlib.sha256(expected.encode()).hexdigest()


def test_equal_files_are_the_same_model_wherever_they_are(model: Path, tmp_path: Path) -> None:
    other = filled(tmp_path / "elsewhere")
    (other / "README.md").write_text("about it")
    (other / "vsteer.json").write_text("{}")
    assert model_sha256(other) == model_sha256(model)


def test_large_files_are_read_once_until_they_change(settled: Path, reads: Callable[[], list[str]]) -> None:
    model = settled
    first = model_sha256(model)
    assert reads() == ["config.json", "merges.txt", "tokenizer.model", "weights.safetensors"]
    assert model_sha256(model) == first
    assert reads() == ["config.json", "merges.txt", "tokenizer.model"]
    # changed in place, with the same size and its time set back
    weights = model / "weights.safetensors"
    at = weights.stat()
    time.sleep(0.05)  # a file system's clock has coarse ticks
    with weights.open("r+b") as file:
        file.seek(12345)
        file.write(b"\1")
    os.utime(weights, ns=(at.st_atime_ns, at.st_mtime_ns))
    assert weights.stat().st_mtime_ns == at.st_mtime_ns
    assert model_sha256(model) != first
    assert "weights.safetensors" in reads()


def test_a_file_that_has_just_changed_is_not_kept(
    model: Path, monkeypatch: pytest.MonkeyPatch, reads: Callable[[], list[str]]
) -> None:
    monkeypatch.setattr(identity, "RACY_SECONDS", 60.0)
    model_sha256(model)
    reads()
    model_sha256(model)
    assert "weights.safetensors" in reads()


def test_a_home_that_can_t_be_written_or_holds_rubbish_is_no_hindrance(
    settled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = settled
    first = model_sha256(model)
    (kept,) = (tmp_path / "home" / "hashes").iterdir()
    kept.write_text("torn")
    assert model_sha256(model) == first
    (tmp_path / "file").touch()
    monkeypatch.setenv("VSTEER_HOME", str(tmp_path / "file" / "home"))
    assert model_sha256(model) == first


def test_the_hub_s_cache_names_large_files_by_their_hash(
    model: Path, tmp_path: Path, reads: Callable[[], list[str]]
) -> None:
    """A snapshot links to blobs, which are named by their sha256, small ones by git's own hash."""
    blobs, snapshot = tmp_path / "models--a--b" / "blobs", tmp_path / "models--a--b" / "snapshots" / "c0ffee"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for file in model.iterdir():
        content = file.read_bytes()
        large = file.suffix == ".safetensors"
        name = hashlib.sha256(content).hexdigest() if large else hashlib.sha1(content).hexdigest()
        (blobs / name).write_bytes(content)
        (snapshot / file.name).symlink_to(Path("../../blobs", name))
    found = model_sha256(snapshot)
    assert reads() == ["config.json", "merges.txt", "tokenizer.model"]
    assert found == model_sha256(model)


def test_a_long_reading_is_announced(
    settled: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(identity, "LARGE", 2**20)
    model_sha256(settled)
    assert "once, to recognise them later" in capsys.readouterr().err
    model_sha256(settled)
    assert capsys.readouterr().err == ""
