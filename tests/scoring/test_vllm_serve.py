"""A real OpenAI-compatible server as judge: `vllm serve` with the embedded model, and its own count of us."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.store import makers
from vsteer.engine.options import EngineOptions
from vsteer.models import resolve
from vsteer.models.hugging_face import load_tokenizer
from vsteer.results.views import connect_runs
from vsteer.run.loading import load_named
from vsteer.scoring.endpoint import Endpoint
from vsteer.scoring.endpoint_judge import judge_texts
from vsteer.scoring.judge import MAX_TOKENS, Judged
from vsteer.scoring.judge_answers import ANSWERS
from vsteer.scoring.local_judge import judge_locally
from vsteer.scoring.rubrics import load_rubric
from vsteer.store.store import open_store

# A server and an engine are started: over a minute.
pytestmark = [pytest.mark.engine, pytest.mark.slow]

MODEL = "smollm2-135m-instruct"
KEY = "sk-loopback-9876543210"
TEXTS = 16
CONCURRENCY = 4
OPINIONS = ("wonderful", "dreadful", "fine", "sad beyond words", "a joy", "a bore", "bright", "grim")
RUBRIC = "sentiment"


@dataclass
class Server:
    url: str
    log: Path

    def metric(self, name: str) -> int:
        """A counter's sum over its labels."""
        with urllib.request.urlopen(f"{self.url}/metrics", timeout=30) as reply:
            text = reply.read().decode()
        values = re.findall(rf"^vllm:{name}(?:_total)?\{{[^}}]*\}} (\S+)$", text, re.MULTILINE)
        assert values, f"the server counts no {name}"
        return round(sum(map(float, values)))

    @property
    def answered(self) -> int:
        return self.metric("request_success")

    @property
    def tokens(self) -> int:
        return self.metric("prompt_tokens") + self.metric("generation_tokens")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """With float32, so that its answers can be held against the local engine's.

    As a module: the command `vllm serve` of the CPU build looks for a package of another name than its own.
    """
    log = tmp_path_factory.mktemp("server") / "log"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", resolve(MODEL).model,
        "--served-model-name", MODEL,
        "--host", "127.0.0.1", "--port", str(port), "--dtype", "float32", "--max-model-len", "1024",
        "--max-num-seqs", "8", "--enforce-eager",
    ]  # fmt: skip
    environment = {
        **os.environ, "VLLM_API_KEY": KEY, "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
    }  # fmt: skip
    with log.open("wb") as out:
        process = subprocess.Popen(
            command, env=environment, stdout=out, stderr=subprocess.STDOUT, start_new_session=True
        )
    found = Server(f"http://127.0.0.1:{port}", log)
    try:
        until = time.monotonic() + 400
        while not _healthy(found):
            assert process.poll() is None, log.read_text()[-4000:]
            assert time.monotonic() < until, log.read_text()[-4000:]
            time.sleep(0.5)
        yield found
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _healthy(server: Server) -> bool:
    try:
        with urllib.request.urlopen(f"{server.url}/health", timeout=5) as reply:
            return bool(reply.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def made_run(folder: Path, texts: int, word: str) -> Path:
    with open_store(folder) as store:
        prompts = [
            makers.prompt(n, kind="open_ended", question="How was the day?", choices=None, matching=None)
            for n in range(-(-texts // 14))
        ]
        store.write_plan({"name": "t"}, map(makers.config, range(14)), prompts, texts)
        for n in range(texts):
            opinion = OPINIONS[n % len(OPINIONS)]
            store.append(makers.text_row(n, text=f"{word} {n}: the day was {opinion}, and I say so."))
    return folder


def judge(run: Path, server: Server) -> Judged:
    endpoint = Endpoint(f"{server.url}/v1", MODEL, MAX_TOKENS)
    return judge_texts(run, load_rubric(RUBRIC), endpoint, concurrency=CONCURRENCY)


def verdicts(run: Path) -> dict[str, tuple[float | None, str]]:
    found = (
        connect_runs([run])
        .execute("select row_id, value, note from scores where scorer = 'judge'")
        .fetchall()
    )
    assert len({row_id for row_id, *_ in found}) == len(found)
    return {row_id: (value, note) for row_id, value, note in found}


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)


def test_every_text_is_scored_or_a_counted_failure(
    tmp_path: Path, server: Server, capfd: pytest.CaptureFixture[str]
) -> None:
    run, answered, tokens = made_run(tmp_path / "run", TEXTS, "Note"), server.answered, server.tokens
    done = judge(run, server)
    assert (done.texts, done.asked, done.open, done.unanswered) == (TEXTS, TEXTS, 0, 0)
    found = verdicts(run)
    assert found.keys() == {makers.row_id(n) for n in range(TEXTS)}
    assert sum(value is not None for value, _ in found.values()) == done.scored
    assert all(value is None or 0 <= value <= 10 for value, _ in found.values())
    assert all(note.startswith("unreadable, ") for value, note in found.values() if value is None)
    # The server itself counts them.
    assert server.answered - answered == TEXTS
    assert server.tokens - tokens == done.tokens
    assert judge(run, server).asked == 0
    assert server.answered - answered == TEXTS

    printed = "".join(capfd.readouterr())
    assert KEY not in printed
    assert KEY not in server.log.read_text()
    for path in run.rglob("*"):
        assert path.is_dir() or KEY.encode() not in path.read_bytes(), path
    print(f"{done.scored} scored, {done.failed} unreadable, {done.tokens} tokens")


def test_a_wrong_key_is_refused(tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-another-0123456789")
    done = subprocess.run(
        vsteer_score(made_run(tmp_path / "run", 2, "Wrong"), server),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "refuses the key (401)" in done.stderr
    assert "sk-another" not in done.stdout + done.stderr


def test_a_killed_scoring_goes_on_and_asks_nothing_twice(tmp_path: Path, server: Server) -> None:
    run, answered = made_run(tmp_path / "run", TEXTS, "Line"), server.answered
    process = subprocess.Popen(
        vsteer_score(run, server), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    while stored(run) < 3:
        assert process.poll() is None
        time.sleep(0.02)
    process.kill()
    out, _ = process.communicate()
    assert KEY not in out
    kept = stored(run)
    assert 3 <= kept < TEXTS
    # None of the verdicts was saved, but the answers were.
    assert not list(run.glob("scores/judge-*.parquet"))
    done = judge(run, server)
    assert (done.open, done.asked) == (0, TEXTS - kept)
    assert verdicts(run).keys() == {makers.row_id(n) for n in range(TEXTS)}
    # What was under way when it was killed never arrived.
    assert server.answered - answered <= TEXTS + CONCURRENCY


def vsteer_score(run: Path, server: Server) -> list[str]:
    return [
        sys.executable, "-m", "vsteer", "score", str(run), "--scorer", "judge", "--rubric", RUBRIC,
        "--base-url", f"{server.url}/v1", "--judge-model", MODEL, "--concurrency", str(CONCURRENCY),
    ]  # fmt: skip


def stored(run: Path) -> int:
    """How many answers lie in the cache."""
    path = run / "scores" / ANSWERS
    try:
        with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as database:
            return int(database.execute("select count(*) from answers").fetchone()[0])
    except sqlite3.OperationalError:
        return 0  # not there yet


def test_the_local_engine_judges_as_the_server_does(tmp_path: Path, server: Server) -> None:
    run = made_run(tmp_path / "run", TEXTS, "Note")
    there = judge(run, server)
    served = verdicts(run)
    for file in run.glob("scores/judge-*.parquet"):
        file.rename(tmp_path / file.name)
    folder = Path(resolve(MODEL).model)
    engine = load_named(folder, "float32", EngineOptions(max_model_len=1024, enforce_eager=True))
    try:
        tokenizer = load_tokenizer(str(folder))
        here = judge_locally(run, load_rubric(RUBRIC), MODEL, {"sha256": "x"}, tokenizer, lambda: engine)
    finally:
        engine.close()
    assert (here.texts, here.asked, here.open) == (TEXTS, TEXTS, 0)
    # It is greedy and in float32: the same tokens were paid for, and the same words came back.
    assert here.tokens == there.tokens
    assert verdicts(run) == served
