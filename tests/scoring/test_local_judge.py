"""A judge in the local engine: the same questions, cache, budget and reading of answers as at an endpoint."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from transformers import AutoTokenizer

from tests.store import makers
from vsteer.cli import main
from vsteer.engine.options import EngineOptions
from vsteer.models import resolve
from vsteer.protocol import Engine, EngineInfo, Request, Result, Steering, Vectors
from vsteer.results.views import connect_runs
from vsteer.run import loading
from vsteer.scoring.judge import Judged
from vsteer.scoring.local_judge import judge_locally
from vsteer.scoring.rubrics import Rubric
from vsteer.store.store import open_store

RUBRIC = Rubric("gladness", "0 is sad and 10 is glad.")
WEIGHTS = {"sha256": "ab", "dtype": "float32"}
ANSWER_TOKENS = 7


class JudgingEngine(Engine):
    """Answers by the text's number; refuses the numbers in `refuses`; batches, as a real engine has them."""

    info = EngineInfo("fake", "float32", "llama", layers=1, hidden_size=1, vocab_size=1, max_model_len=1)
    steps = 0

    def __init__(self, tokenizer: Any, refuses: frozenset[int] = frozenset(), dies_after: int | None = None):
        self.tokenizer, self.refuses, self.dies_after = tokenizer, refuses, dies_after
        self.asked: list[int] = []
        self.prompts: list[str] = []
        self.prompt_tokens = 0
        self.closed = False

    def load(self, vectors: Vectors, steerings: Iterable[Steering]) -> None:
        raise AssertionError("a judge steers nothing")

    def run(self, requests: Iterable[Request]) -> Iterator[Result]:
        waiting = iter(requests)
        more = True
        while more:
            batch: list[Request] = []
            while more and len(batch) < 4:
                if (request := next(waiting, None)) is None:
                    more = False
                else:
                    batch.append(request)
            for request in reversed(batch):
                if len(self.asked) == self.dies_after:
                    raise KeyboardInterrupt
                yield self._answer(request)

    def _answer(self, request: Request) -> Result:
        prompt = self.tokenizer.decode(request.prompt.token_ids)
        number = int(prompt.split("text number ")[1].split()[0])
        self.asked.append(number)
        self.prompts.append(prompt)
        assert request.steering is None
        assert (request.temperature, request.max_tokens) == (0, 120)
        if number in self.refuses:
            return Result(request.id, "error", error="too long")
        self.prompt_tokens += len(request.prompt.token_ids)
        text = "no number" if number == 6 else f"{number % 11}: so glad"
        return Result(
            request.id,
            "ok",
            token_ids=(1,) * ANSWER_TOKENS,
            text=text,
            finish_reason="stop",
            prompt_tokens=len(request.prompt.token_ids),
        )

    def close(self) -> None:
        self.closed = True


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(resolve("tiny-llama").model)


def made_run(folder: Path, *numbers: int) -> Path:
    with open_store(folder) as store:
        prompts = [makers.prompt(n, choices=None, matching=None, kind="open_ended") for n in range(4)]
        store.write_plan({"name": "t"}, map(makers.config, range(14)), prompts, 60)
        for place, number in enumerate(numbers):
            store.append(makers.text_row(place, text=f"text number {number} is glad"))
    return folder


def judge(run: Path, engine: JudgingEngine, budget: int | None = None) -> Judged:
    def load() -> JudgingEngine:
        return engine

    return judge_locally(run, RUBRIC, "tiny-llama", WEIGHTS, engine.tokenizer, load, budget)


def verdicts(run: Path) -> list[float | None]:
    found = connect_runs([run]).execute("select row_id, value from scores").fetchall()
    by_id = dict(found)
    assert len(by_id) == len(found)
    return [by_id[makers.row_id(n)] for n in range(60) if makers.row_id(n) in by_id]


def test_every_text_has_a_verdict_or_a_counted_failure(tmp_path: Path, tokenizer: Any) -> None:
    run, engine = made_run(tmp_path / "run", *range(14)), JudgingEngine(tokenizer)
    done = judge(run, engine)
    assert (done.texts, done.scored, done.failed, done.open) == (14, 13, 1, 0)
    assert verdicts(run) == [None if n == 6 else n % 11 for n in range(14)]
    assert done.tokens == engine.prompt_tokens + 14 * ANSWER_TOKENS
    # The model is asked in the rubric's own words, in its template.
    asked = tokenizer.apply_chat_template(
        [{"role": "user", "content": RUBRIC.prompt("Was it good?", "text number 3 is glad")}],
        tokenize=False,
        add_generation_prompt=True,
    )
    assert asked in engine.prompts

    def nothing() -> JudgingEngine:
        raise AssertionError("a model was loaded for nothing")

    again = judge_locally(run, RUBRIC, "tiny-llama", WEIGHTS, tokenizer, nothing)
    assert (again.standing, again.asked, again.open) == (14, 0, 0)


def test_equal_texts_are_asked_about_once(tmp_path: Path, tokenizer: Any) -> None:
    run, engine = made_run(tmp_path / "run", *[4] * 12, 5), JudgingEngine(tokenizer)
    assert judge(run, engine).scored == 13
    assert sorted(engine.asked) == [4, 5]


def test_cut_short_it_asks_nothing_twice(tmp_path: Path, tokenizer: Any) -> None:
    run, first, second = (
        made_run(tmp_path / "run", *range(14)),
        JudgingEngine(tokenizer, dies_after=5),
        JudgingEngine(tokenizer),
    )
    with pytest.raises(KeyboardInterrupt):
        judge(run, first)
    done = judge(run, second)
    assert (done.standing, done.scored + done.failed, done.open) == (5, 9, 0)
    assert sorted(first.asked + second.asked) == list(range(14))


def test_another_judge_is_asked_anew(tmp_path: Path, tokenizer: Any) -> None:
    run, engine = made_run(tmp_path / "run", 1, 2), JudgingEngine(tokenizer)
    judge(run, engine)
    other = {**WEIGHTS, "dtype": "bfloat16"}
    assert judge_locally(run, RUBRIC, "tiny-llama", other, tokenizer, lambda: engine).asked == 2


def test_what_the_engine_refuses_stays_open(tmp_path: Path, tokenizer: Any) -> None:
    run, engine = made_run(tmp_path / "run", *range(5)), JudgingEngine(tokenizer, refuses=frozenset({3}))
    done = judge(run, engine)
    assert (done.scored, done.unanswered, done.open) == (4, 1, 1)
    assert done.last_fault == "the local engine: too long"
    assert judge(run, JudgingEngine(tokenizer)).open == 0


def test_the_budget_is_kept_and_used(tmp_path: Path, tokenizer: Any) -> None:
    run, engine = made_run(tmp_path / "run", *range(10, 24)), JudgingEngine(tokenizer)
    each = judge(made_run(tmp_path / "one", 10), JudgingEngine(tokenizer)).tokens
    # This is what five cost and a sixth may cost at most; more is never under way at once.
    budget = 5 * each + (each - ANSWER_TOKENS + 120)
    done = judge(run, engine, budget)
    assert done.over_budget
    assert done.tokens <= budget
    assert done.scored == done.asked == 6
    assert judge(run, engine, budget).asked == 0
    assert judge(run, engine, 100_000).open == 0
    assert sorted(engine.asked) == list(range(10, 24))


def test_the_command_judges_here_without_an_address(
    tmp_path: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, made = made_run(tmp_path / "run", *range(5)), []

    def load(folder: Path, *how: Any) -> JudgingEngine:
        assert folder == Path(resolve("tiny-llama").model)
        assert how == ("float32", EngineOptions(max_model_len=512, enforce_eager=True))
        made.append(JudgingEngine(tokenizer))
        return made[0]

    monkeypatch.setattr(loading, "load_named", load)
    how = ["--judge-model", "tiny-llama", "--dtype", "float32", "--max-model-len", "512", "--eager", "--json"]
    done = CliRunner().invoke(main, ["score", str(run), "--scorer", "judge", "--rubric", "sentiment", *how])
    assert done.exit_code == 0, done.output
    (entry,) = json.loads(done.stdout)
    assert (entry["scored"], entry["open"], entry["asked"]) == (5, 0, 5)
    assert made[0].closed
