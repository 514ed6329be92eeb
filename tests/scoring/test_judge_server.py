"""Servers that refuse, hang, drip, flood or answer by half: what they cost, and when the waiting ends."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import signal
import socket
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from tests.scoring.test_judge import RUBRIC, made_run
from vsteer import cli
from vsteer.errors import UsageError
from vsteer.scoring.endpoint import Endpoint
from vsteer.scoring.endpoint_judge import judge_texts
from vsteer.scoring.judge import Judged

MAX_TOKENS = 120
TEMPLATE = 64
# What one of these questions can cost at most, worked out from the bytes that are sent.
MOST = len(RUBRIC.prompt("Was it good?", "text number 1 is glad").encode()) + TEMPLATE + MAX_TOKENS
# Far more than any of these questions takes, and far less than a wait for the longest of them.
SOON = 30.0

Behaviour = Callable[[socket.socket, int], None]


@dataclass
class Server:
    """Reads each request whole, then behaves; `began` are the times at which requests had arrived."""

    behave: Behaviour
    began: list[float] = field(default_factory=list)
    mutex: threading.Lock = field(default_factory=threading.Lock)
    ended: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}/v1"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self.listener.accept()
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError, ValueError):
            while True:
                head = b""
                while b"\r\n\r\n" not in head:
                    if not (got := connection.recv(65536)):
                        return
                    head += got
                head, body = head.split(b"\r\n\r\n", 1)
                size = int(head.lower().split(b"content-length:")[1].split()[0])
                while len(body) < size:
                    body += connection.recv(65536)
                with self.mutex:
                    number = len(self.began)
                    self.began.append(time.monotonic())
                self.behave(connection, number)

    def hang(self) -> None:
        self.ended.wait(30)

    def close(self) -> None:
        self.ended.set()
        self.listener.close()


def http(status: int, body: bytes, *headers: str, length: int | None = None) -> bytes:
    size = len(body) if length is None else length
    lines = [f"HTTP/1.1 {status} x", f"content-length: {size}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def completion(tokens: Any = 100) -> bytes:
    choice = {"index": 0, "message": {"role": "assistant", "content": "7: glad"}, "finish_reason": "stop"}
    return http(200, json.dumps({"choices": [choice], "usage": {"total_tokens": tokens}}).encode())


@pytest.fixture
def serving() -> Iterator[Callable[[Behaviour], Server]]:
    made: list[Server] = []

    def start(behave: Behaviour) -> Server:
        made.append(Server(behave))
        return made[-1]

    yield start
    for server in made:
        server.close()


def judge(run: Path, url: str, timeout: float = 0.4, **options: Any) -> Judged:
    endpoint = Endpoint(url, "judge-1", MAX_TOKENS, timeout=timeout)
    return judge_texts(run, RUBRIC, endpoint, first_wait=0.01, **options)


def test_what_never_left_costs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = made_run(tmp_path / "run", 40)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    refused = judge(run, f"http://127.0.0.1:{port}/v1", budget=20_000)
    # Nobody listens with TLS there, so that nothing of a question is sent.
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        no_tls = judge(run, f"https://127.0.0.1:{deaf.getsockname()[1]}/v1", timeout=0.1)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: time.sleep(2))
    no_name = judge(run, "http://judge.invalid/v1", timeout=0.1)
    for done in (refused, no_tls, no_name):
        assert (done.tokens, done.open, done.gave_up, done.over_budget) == (0, 40, True, False)


@pytest.mark.parametrize("kind", ["hangs", "drips", "floods", "says half", "hangs up", "gateway"])
def test_what_may_have_been_billed_counts_and_is_seldom_repeated(
    kind: str, tmp_path: Path, serving: Callable[[Behaviour], Server]
) -> None:
    flooded = 0

    def behave(connection: socket.socket, number: int) -> None:
        nonlocal flooded
        if kind == "hangs":
            server.hang()
        elif kind == "drips":
            connection.sendall(http(200, b"", length=10**6))
            while not server.ended.wait(0.02):
                connection.sendall(b" ")
        elif kind == "floods":
            connection.sendall(http(200, b"", length=10**12))
            while not server.ended.is_set():
                flooded += connection.send(b" " * 65536)
        elif kind == "says half":
            connection.sendall(http(200, b'{"choices": [{"mess', length=400))
            connection.close()
        elif kind == "gateway":
            connection.sendall(http(504, b"{}"))
        else:
            connection.close()

    server = serving(behave)
    run = made_run(tmp_path / "run", 40)
    began = time.monotonic()
    done = judge(run, server.url, budget=200_000)
    assert time.monotonic() - began < SOON
    assert done.gave_up
    assert done.open == 40
    assert len(server.began) == 3
    assert 3 * MOST <= done.tokens == done.unsure <= 3 * (MOST + 1)
    assert flooded < 50_000_000


def test_errors_of_the_server_cost_nothing_and_it_is_asked_when_it_wants(
    tmp_path: Path, serving: Callable[[Behaviour], Server]
) -> None:
    def behave(connection: socket.socket, number: int) -> None:
        replies = {0: http(429, b"{}", "retry-after: 0.7"), 1: http(500, b"{}"), 2: http(503, b"<html>")}
        connection.sendall(replies.get(number, completion()))

    server = serving(behave)
    done = judge(made_run(tmp_path / "run", 5), server.url)
    assert (done.open, done.tokens, done.unsure, len(server.began)) == (0, 500, 0, 8)
    assert server.began[1] - server.began[0] >= 0.7


@pytest.mark.parametrize("concurrency", [2, 40])
def test_the_budget_is_a_ceiling_by_the_servers_own_count(
    concurrency: int, tmp_path: Path, serving: Callable[[Behaviour], Server]
) -> None:
    """Every third question hangs. Whoever bills each request as dearly as may be stays below the budget."""
    billed = [0]

    def behave(connection: socket.socket, number: int) -> None:
        hangs = number % 3 == 2
        billed[0] += MOST + 2 if hangs else 100
        if hangs:
            server.hang()
        else:
            connection.sendall(completion())

    server = serving(behave)
    done = judge(made_run(tmp_path / "run", 90), server.url, budget=9 * MOST, concurrency=concurrency)
    assert done.over_budget
    assert done.scored >= 3
    # The longer numbers' texts have a byte or two more than the one that MOST is of.
    assert done.tokens <= 9 * MOST
    assert billed[0] <= 9 * (MOST + 2)
    assert abs(billed[0] - done.tokens) <= 2 * len(server.began)


@pytest.mark.parametrize("tokens", [True, -5, 10**30, float("nan"), "100", None, [1]])
def test_a_count_that_is_none_is_not_believed(
    tokens: Any, tmp_path: Path, serving: Callable[[Behaviour], Server]
) -> None:
    server = serving(lambda connection, number: connection.sendall(completion(tokens)))
    done = judge(made_run(tmp_path / "run", 2), server.url)
    assert done.scored == 2
    assert 2 * MOST - 2 <= done.tokens == done.unsure <= 2 * MOST + 2


def test_a_server_that_counts_more_is_believed_and_reserved_for(
    tmp_path: Path, serving: Callable[[Behaviour], Server]
) -> None:
    server = serving(lambda connection, number: connection.sendall(completion(3000)))
    done = judge(made_run(tmp_path / "run", 40), server.url, budget=10_000)
    assert (done.scored, done.tokens, done.over_budget) == (3, 9000, True)


def test_answers_deeper_than_python_are_none(tmp_path: Path, serving: Callable[[Behaviour], Server]) -> None:
    deep = http(200, b"[" * 500_000)
    packed = http(200, b"x" * 50, "content-encoding: gzip")
    server = serving(lambda connection, number: connection.sendall(deep if number % 2 else packed))
    done = judge(made_run(tmp_path / "run", 4), server.url)
    assert (done.scored, done.gave_up) == (0, True)
    assert "no chat completion" in done.last_fault


def test_an_interrupt_ends_the_waiting_and_counts_what_was_sent(
    tmp_path: Path, serving: Callable[[Behaviour], Server]
) -> None:
    def behave(connection: socket.socket, number: int) -> None:
        if number < 3:
            connection.sendall(completion())
        else:
            server.hang()

    server = serving(behave)
    run = made_run(tmp_path / "run", 40)
    interrupted = []

    def interrupt() -> None:
        while len(server.began) < 8:
            time.sleep(0.01)
        interrupted.append(time.monotonic())
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        judge(run, server.url, timeout=120, concurrency=5)
    assert time.monotonic() - interrupted[0] < SOON
    # The next call finds the answers, and the five that were under way as what they may have cost.
    again = judge(run, server.url, budget=1)
    assert (again.standing, again.asked) == (3, 0)
    assert 300 + 5 * MOST <= again.tokens <= 300 + 5 * (MOST + 1)


def test_a_kill_forgets_nothing_that_was_sent(tmp_path: Path, serving: Callable[[Behaviour], Server]) -> None:
    server = serving(lambda connection, number: server.hang())
    run = made_run(tmp_path / "run", 1)
    process = multiprocessing.get_context("fork").Process(target=judge, args=(run, server.url, 100.0))
    process.start()
    while not server.began:
        time.sleep(0.01)
    process.kill()
    process.join()
    with contextlib.closing(sqlite3.connect(run / "scores" / "judge-answers.sqlite")) as database:
        (spent,) = database.execute("select sum(tokens) from spent").fetchone()
    assert spent == MOST


@pytest.mark.parametrize(
    "address",
    [
        "", "127.0.0.1:8000/v1", "ftp://127.0.0.1/v1", "http:///v1", "http://[::1", "http://h:99999/v1",
        "http://h:abc/v1", "http://h:-1", "http://h\n/v1", "http://\udc80/v1", "http://xn--a/v1",
        "http://user:secret-word@h/v1", "http://" + "a" * 100_000,
    ],
)  # fmt: skip
def test_an_address_that_is_none_is_one_message(address: str, tmp_path: Path) -> None:
    run = made_run(tmp_path / "run", 1)
    command = ["score", str(run), "--scorer", "judge", "--rubric", "sentiment", "--judge-model", "x"]
    done = CliRunner().invoke(cli.main, [*command, f"--base-url={address}", "--timeout=1"])
    assert done.exit_code == 2
    assert isinstance(done.exception, SystemExit)
    assert done.stderr.count("\n") == 2
    assert "hint: " in done.stderr
    assert len(done.stderr) < 600
    assert "secret-word" not in done.stderr


@pytest.mark.parametrize(
    ("option", "value"),
    [
        *(("--timeout", value) for value in ("nan", "inf", "1e30", "-1", "0", "true")),
        *(("--budget", value) for value in ("true", "-1", "nan", "1e9", "1" + "0" * 30)),
        *(("--concurrency", value) for value in ("0", "257", "true", "1" + "0" * 30)),
        ("--judge-model", "a\nb"),
        ("--judge-model", "\udc80"),
        ("--rubric", "/dev/zero"),
        ("--rubric", "\0"),
    ],
)
def test_a_count_that_is_none_is_one_message(option: str, value: str, tmp_path: Path) -> None:
    run = made_run(tmp_path / "run", 1)
    command = {
        "--scorer": "judge", "--rubric": "sentiment", "--judge-model": "x",
        "--base-url": "http://127.0.0.1:1/v1", "--timeout": "1",
    }  # fmt: skip
    words = [word for pair in {**command, option: value}.items() for word in pair]
    done = CliRunner().invoke(cli.main, ["score", str(run), *words])
    assert done.exit_code in (1, 2)
    assert isinstance(done.exception, SystemExit)
    assert len(done.stderr) < 600


@pytest.mark.parametrize("key", ["two\nlines", "schlüssel"])
def test_a_key_that_is_none_is_not_shown(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", key)
    with pytest.raises(UsageError) as error:
        Endpoint("http://127.0.0.1:1/v1", "x", MAX_TOKENS)
    assert key not in str(error.value)


@pytest.mark.parametrize("proxy", ["http://[::1", "nonsense://h", "socks5://127.0.0.1:1"])
def test_a_proxy_that_is_none_is_one_message(proxy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALL_PROXY", proxy)
    with contextlib.suppress(UsageError):
        Endpoint("http://127.0.0.1:1/v1", "x", MAX_TOKENS)
