"""Judging against a faulty fake server: no text lost or scored wrongly, none asked twice, no key kept."""

from __future__ import annotations

import json
import multiprocessing
import threading
import time
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.store import makers
from vsteer.results.views import connect_runs
from vsteer.scoring.endpoint import Endpoint, JudgeError
from vsteer.scoring.endpoint_judge import judge_texts
from vsteer.scoring.judge import Judged
from vsteer.scoring.rubrics import Rubric, load_rubric
from vsteer.store.store import open_store

KEY = "sk-very-secret-0123456789"
RUBRIC = Rubric("gladness", "0 is sad and 10 is glad.")


class Server(ThreadingHTTPServer):
    """Answers by the text's number; `faults` are what each question meets before its answer."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.faults: list[str] = []
        self.answers: dict[int, str | None] = {}
        self.asked: Counter[int] = Counter()  # tries, by text
        self.answered: Counter[int] = Counter()
        self.pause = 0.0
        # No fault before the first answer: an endpoint that has given none is soon given up.
        self.begins_well = False
        self.mutex = threading.Lock()

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # clients that hang up are wanted here


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        prompt = json.loads(self.rfile.read(int(self.headers["content-length"])))["messages"][0]["content"]
        number = int(prompt.split("text number ")[1].split()[0])
        with self.server.mutex:
            tries = self.server.asked[number]
            self.server.asked[number] += 1
        time.sleep(self.server.pause)
        faults = self.server.faults
        # Every question begins elsewhere among the faults, and meets its answer after two of them.
        meets = faults and tries < 2 and (self.server.answered or not self.server.begins_well)
        fault = faults[(number + tries) % len(faults)] if meets else ""
        key = self.headers["authorization"]
        if fault == "closed":
            self.close_connection = True
            self.connection.close()
        elif fault == "slow":
            time.sleep(3)
        elif fault == "half":
            self.reply(200, b'{"choices": [{"message": {"cont')
        elif fault == "html":
            self.reply(200, b"<html>10</html>", kind="text/html")
        elif fault == "no choices":
            self.reply(200, b'{"id": "1", "choices": []}')
        elif fault:
            self.reply(int(fault), json.dumps({"error": {"message": f"no: {key}"}}).encode())
        else:
            with self.server.mutex:
                self.server.answered[number] += 1
            text = self.server.answers.get(number, f"{number % 11}: so glad, {key}")
            choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
            body = {"id": "1", "choices": [choice], "usage": {"total_tokens": 100}}
            self.reply(200, json.dumps(body).encode())

    def reply(self, status: int, body: bytes, kind: str = "application/json") -> None:
        self.send_response(status)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with Server() as made:
        threading.Thread(target=made.serve_forever, args=(0.02,), daemon=True).start()
        yield made
        made.shutdown()


def made_run(folder: Path, texts: int) -> Path:
    with open_store(folder) as store:
        prompts = [
            makers.prompt(n, choices=None, matching=None, kind="open_ended") for n in range(-(-texts // 14))
        ]
        store.write_plan({"name": "t"}, map(makers.config, range(14)), prompts, texts + 1)
        for n in range(texts):
            store.append(makers.text_row(n, text=f"text number {n} is glad"))
        store.append(makers.error_row(texts, kind="open_ended"))
    return folder


def judge(run: Path, server: Server, **options: Any) -> Judged:
    url = f"http://127.0.0.1:{server.server_port}/v1"
    endpoint = Endpoint(url, "judge-1", 120, timeout=options.pop("timeout", 2.0))
    return judge_texts(run, RUBRIC, endpoint, first_wait=0.01, **options)


def verdicts(run: Path) -> dict[int, tuple[float | None, str]]:
    found = connect_runs([run]).execute("select row_id, value, note from scores").fetchall()
    by_id = {row_id: (value, note) for row_id, value, note in found}
    assert len(by_id) == len(found)
    return {n: by_id[makers.row_id(n)] for n in range(2000) if makers.row_id(n) in by_id}


def test_faults_lose_no_text_and_score_none_wrongly(tmp_path: Path, server: Server) -> None:
    run = made_run(tmp_path / "run", 60)
    server.faults = ["429", "500", "slow", "half", "closed", "html", "no choices", "503"]
    server.begins_well = True
    server.answers = {
        3: "10/10",
        4: "Score: 7 because 3 of them",
        5: "No number.",
        6: "11: wow",
        7: None,
        8: "7-8",
    }
    done = judge(run, server)
    assert (done.texts, done.scored, done.failed, done.open) == (60, 56, 4, 0)
    wanted = {n: float(n % 11) for n in range(60)} | {3: 10, 4: 7} | dict.fromkeys((5, 6, 7, 8))
    assert {n: value for n, (value, _) in verdicts(run).items()} == wanted
    assert all(verdicts(run)[n][1] for n in (5, 6, 7, 8))
    assert sorted(server.asked.values()) == [1] + 59 * [3]
    # The same command asks for nothing again.
    before = server.asked.copy()
    again = judge(run, server)
    assert (again.standing, again.asked, again.open) == (60, 0, 0)
    assert server.asked == before


def test_texts_without_an_answer_stay_open_and_are_asked_for_again(tmp_path: Path, server: Server) -> None:
    run = made_run(tmp_path / "run", 8)
    server.faults, server.asked = ["500"], Counter(dict.fromkeys((2, 5), -100))  # these two always fail
    done = judge(run, server)
    assert (done.scored, done.unanswered, done.open) == (6, 2, 2)
    assert set(verdicts(run)) == {0, 1, 3, 4, 6, 7}
    server.faults = []
    assert judge(run, server).open == 0
    assert set(verdicts(run)) == set(range(8))
    assert set(server.answered.values()) == {1}


def test_the_key_is_in_no_file_and_no_message(
    tmp_path: Path, server: Server, capfd: pytest.CaptureFixture[str]
) -> None:
    run = made_run(tmp_path / "run", 12)
    server.faults, server.asked = ["400", "500", "429"], Counter({1: -100})
    done = judge(run, server)
    assert "[key]" in done.last_fault
    assert KEY not in done.last_fault + "".join(capfd.readouterr())
    assert {note for value, note in verdicts(run).values() if value} == {"so glad, Bearer [key]"}
    for path in run.rglob("*"):
        if path.is_file():
            assert KEY.encode() not in path.read_bytes(), path


def test_a_wrong_key_ends_it_at_once(tmp_path: Path, server: Server) -> None:
    run = made_run(tmp_path / "run", 30)
    server.faults = ["401"]
    with pytest.raises(JudgeError) as error:
        judge(run, server, concurrency=2)
    assert KEY not in str(error.value)
    assert sum(server.asked.values()) <= 4


def test_an_endpoint_that_is_gone_is_left_alone(tmp_path: Path, server: Server) -> None:
    run = made_run(tmp_path / "run", 60)
    server.asked = Counter(dict.fromkeys(range(60), -100))
    server.faults = ["500"]
    done = judge(run, server, concurrency=4)
    assert done.gave_up
    assert done.open == 60
    assert done.asked < 20


def test_the_budget_holds_over_restarts(tmp_path: Path, server: Server) -> None:
    run = made_run(tmp_path / "run", 30)
    done = judge(run, server, budget=1500)
    assert done.over_budget
    assert done.tokens <= 1500
    assert 5 <= done.scored == len(verdicts(run)) < 15
    again = judge(run, server, budget=1500)
    assert (again.asked, again.tokens) == (0, done.tokens)
    whole = judge(run, server, budget=100_000)
    assert (whole.open, whole.tokens) == (0, 3000)
    assert set(server.asked.values()) == {1}


def test_equal_questions_are_asked_once(tmp_path: Path, server: Server) -> None:
    with open_store(tmp_path / "run") as store:
        prompts = [makers.prompt(0, choices=None, matching=None, kind="open_ended")]
        store.write_plan({"name": "t"}, map(makers.config, range(14)), prompts, 14)
        for n in range(14):
            store.append(makers.text_row(n, text="text number 4 is glad"))
    done = judge(tmp_path / "run", server)
    assert (done.scored, done.asked, sum(server.asked.values())) == (14, 1, 1)


def test_killed_half_way_it_asks_nothing_twice(tmp_path: Path, server: Server) -> None:
    run = made_run(tmp_path / "run", 200)
    server.pause = 0.02
    process = multiprocessing.get_context("fork").Process(target=judge, args=(run, server))
    process.start()
    while sum(server.answered.values()) < 60:
        time.sleep(0.01)
    process.kill()
    process.join()
    time.sleep(0.2)
    asked = sum(server.asked.values())
    assert asked < 200
    done = judge(run, server)
    assert done.open == 0
    assert {n: value for n, (value, _) in verdicts(run).items()} == {n: float(n % 11) for n in range(200)}
    # Only what was under way when it was killed never arrived.
    assert sum(server.asked.values()) <= 200 + 8
    assert done.asked <= 200 - asked + 8


def test_the_rubrics_that_ship() -> None:
    for name in ("refusal", "sentiment", "language"):
        rubric = load_rubric(name)
        assert rubric.name == name
        assert "- 0:" in rubric.text
        assert "- 10:" in rubric.text
