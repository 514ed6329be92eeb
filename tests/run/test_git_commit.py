"""The manifest names the grid's commit, and finding it runs nothing that the repository names."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from vsteer.run.folder import _git_commit


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository of one commit, at home nowhere else."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    folder = tmp_path / "repository"
    folder.mkdir()
    git(folder, "init", "--quiet")
    git(folder, "config", "user.name", "someone")
    git(folder, "config", "user.email", "someone@example.org")
    (folder / "grid.yaml").write_text("version: 1\n")
    git(folder, "add", "grid.yaml")
    git(folder, "commit", "--quiet", "--message", "one")
    return folder


def git(folder: Path, *arguments: str) -> str:
    return subprocess.check_output(["git", "-C", str(folder), *arguments], text=True).strip()


def head_by_hand(folder: Path) -> str:
    """As the files of a plain repository say it."""
    name = (folder / ".git" / "HEAD").read_text().removeprefix("ref: ").strip()
    return (folder / ".git" / name).read_text().strip()


def test_it_is_the_commit(repository: Path, tmp_path: Path) -> None:
    assert _git_commit(repository) == head_by_hand(repository)
    (repository / "below").mkdir()
    assert _git_commit(repository / "below") == head_by_hand(repository)
    git(repository, "worktree", "add", "--quiet", "--detach", str(tmp_path / "tree"))
    assert _git_commit(tmp_path / "tree") == head_by_hand(repository)
    git(repository, "tag", "--annotate", "v1", "--message", "a tag that `describe` would name")
    assert _git_commit(repository) == head_by_hand(repository)


def test_there_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert _git_commit(tmp_path) == ""
    git(tmp_path, "init", "--quiet")
    assert _git_commit(tmp_path) == ""
    monkeypatch.setenv("PATH", str(tmp_path))
    assert _git_commit(tmp_path) == ""


def test_nothing_of_the_repository_is_run(repository: Path) -> None:
    marks = repository.parent / "marks"
    marks.mkdir()

    def program(name: str) -> str:
        path = repository.parent / f"{name}.sh"
        path.write_text(f"#!/bin/sh\ntouch {marks / name}\ncat\n")
        path.chmod(0o755)
        return str(path)

    for key in (
        "core.fsmonitor",
        "core.sshCommand",
        "core.pager",
        "core.askPass",
        "diff.external",
        "core.editor",
    ):
        git(repository, "config", key, program(key))
    for key in ("alias.rev-parse", "alias.describe"):
        git(repository, "config", key, f"!{program(key)}")
    for key in ("clean", "smudge", "process"):
        git(repository, "config", f"filter.f.{key}", program(f"filter.{key}"))
    hooks = repository / ".git" / "hooks"
    for hook in ("post-index-change", "reference-transaction", "post-checkout"):
        (hooks / hook).write_text(Path(program(hook)).read_text())
        (hooks / hook).chmod(0o755)
    (repository / ".gitattributes").write_text("* filter=f\n")
    # a changed file of the same length, whose content git would have to look at
    (repository / "grid.yaml").write_text("version: 2\n")
    os.utime(repository / "grid.yaml", (1, 1))
    assert _git_commit(repository) == head_by_hand(repository)
    assert list(marks.iterdir()) == []
    # and what git was asked before does run them
    git(repository, "describe", "--always", "--dirty=+")
    assert "core.fsmonitor" in {mark.name for mark in marks.iterdir()}
