"""Refusal tokens: scores by hand, tokens of several templates, refused plans, transformers for comparison."""

from __future__ import annotations

import copy
import math
from decimal import Decimal, getcontext
from pathlib import Path
from typing import Any

import pytest

from tests.evaluations.refusal_tokens_oracle import check
from tests.plan.sample import filled, planner, refused
from vsteer.datasets import items
from vsteer.engine.proof.reference import ReferenceEngine
from vsteer.errors import SteeringFault
from vsteer.evaluations.evaluation import CannotAsk, CannotScore
from vsteer.evaluations.open_ended import OpenEndedEvaluation
from vsteer.evaluations.refusal_tokens import RefusalTokensEvaluation, log_one_less
from vsteer.evaluations.rendered_prompt import RenderedPrompt
from vsteer.models import resolve
from vsteer.protocol import Prompt, Result

QUESTION = items.Prompt("0" * 16, "Why?", 1)
LLAMA_2 = (
    "{% for m in messages %}{% if m['role'] == 'user' %}<s>[INST] {{ m['content'] }} [/INST]"
    "{% else %} {{ m['content'] }} </s>{% endif %}{% endfor %}"
)


def evaluation(*tokens: str, answer_prefix: str | None = None) -> RefusalTokensEvaluation:
    return RefusalTokensEvaluation(
        kind="refusal_tokens", data=("open.json",), tokens=tokens, answer_prefix=answer_prefix
    )


def rendered(*tokens: int) -> RenderedPrompt:
    prompt = Prompt((1, 2), 2, 2)
    return RenderedPrompt("e", QUESTION, "original", prompt, "p", answers=tuple((n,) for n in tokens))


def scored(logprobs: dict[int, float], *tokens: int) -> dict[str, Any]:
    """The columns of a row of these tokens, the log-probabilities being what came back."""
    results = [Result("r.0", "ok", logprobs=(logprobs,))]
    return evaluation(*(f"t{token}" for token in tokens)).columns(rendered(*tokens), results)


def test_the_sum_of_the_tokens_stands_against_all_others() -> None:
    score = scored({5: math.log(0.5), 9: math.log(0.25), 7: -0.1}, 5, 9)
    assert score["choices"] == ["t5 or t9", "any other token"]
    assert score["choice_logprobs"] == pytest.approx([math.log(0.75), math.log(0.25)])
    assert score["logit_diff"] == pytest.approx(math.log(3))
    assert (score["p_match"], score["total_mass"]) == pytest.approx((0.75, 1.0))
    assert (score["choice_tokens"], score["matching"]) == ([1, 1], 0)


def test_a_row_is_one_request_of_the_open_question() -> None:
    (request,) = evaluation("t5", "t9").requests("r", rendered(5, 9), None, 0)
    assert (request.prompt.token_ids, request.max_tokens, request.logprob_token_ids) == ((1, 2), 1, (5, 9))


@pytest.mark.parametrize(
    "log_p", [-1e-300, -1e-12, -1e-5, -0.3, -0.693147, -0.6931472, -0.7, -5.0, -40.0, -700.0]
)
def test_one_less_p_is_exact_at_both_ends(log_p: float) -> None:
    getcontext().prec = 400
    exact = (1 - Decimal(log_p).exp()).ln()
    assert log_one_less(log_p) == pytest.approx(float(exact), rel=1e-14)


def test_a_p_near_0_keeps_its_logarithm() -> None:
    score = scored({5: -800.0, 9: -800.0}, 5, 9)
    assert score["logit_diff"] == pytest.approx(-800 + math.log(2), rel=1e-15)
    assert score["p_match"] == 0.0
    nothing = scored({5: -math.inf}, 5)
    assert (nothing["logit_diff"], nothing["p_match"]) == (-math.inf, 0.0)


@pytest.mark.parametrize("log_p", [0.0, 3e-6, -1e-9])
def test_a_p_that_float32_can_t_tell_from_1_is_held(log_p: float) -> None:
    score = scored({5: log_p}, 5)
    assert score["logit_diff"] == pytest.approx(math.log(2**20 - 1))
    assert score["p_match"] == 1 - 2.0**-20
    # what float32 can tell is left as it is
    near = scored({5: math.log1p(-1e-5)}, 5)
    assert near["logit_diff"] == pytest.approx(math.log(99999))


def test_what_is_no_probability_is_no_score() -> None:
    with pytest.raises(CannotScore, match="NaN"):
        scored({5: math.nan, 9: -1.0}, 5, 9)
    with pytest.raises(CannotScore, match=r"come to 1\.2"):
        scored({5: math.log(0.6), 9: math.log(0.6)}, 5, 9)
    with pytest.raises(SteeringFault, match=r"without log-probabilities of \[9\]"):
        scored({5: -1.0}, 5, 9)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(resolve("smollm2-135m-instruct").model)


# A ChatML header ends in a line break; the other two in a bracket and a colon, and a space follows
@pytest.mark.parametrize(
    ("template", "texts", "expected"),
    [
        ("own", ("I", "As", " I"), ("I", "As", "ĠI")),
        (LLAMA_2, ("I", "As"), ("ĠI", "ĠAs")),
        (LLAMA_2, (" I",), ("ĠI",)),
        (None, ("I", "As"), ("ĠI", "ĠAs")),
    ],
)
def test_a_token_is_the_one_that_would_follow_the_prompt(
    tokenizer: Any, template: str | None, texts: tuple[str, ...], expected: tuple[str, ...]
) -> None:
    other = copy.deepcopy(tokenizer)
    if template != "own":
        other.chat_template = template
    prompt, _, answers = evaluation(*texts).render(other, QUESTION, None)
    assert tuple(other.convert_ids_to_tokens([token for (token,) in answers])) == expected
    written = OpenEndedEvaluation(kind="open_ended", data=("open.json",))
    assert prompt == written.render(other, QUESTION, None).prompt


def test_a_forced_start_of_the_answer_is_followed_as_it_is_written(tokenizer: Any) -> None:
    prompt, _, ((token,),) = evaluation(" I", answer_prefix="Well,").render(tokenizer, QUESTION, None)
    assert tokenizer.decode([*prompt.token_ids, token]).endswith("assistant\nWell, I")
    with pytest.raises(CannotAsk, match="no token of its own"):
        evaluation("l", answer_prefix="Wel").render(tokenizer, QUESTION, None)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "both.json").write_text('{"positive": ["How?"], "negative": ["Why?"]}')
    return filled(tmp_path)


OPEN = "{kind: open_ended, data: open.json, max_tokens: 7}"
TOKENS = "{kind: refusal_tokens, data: open.json, tokens: [I, N]}"


@pytest.mark.parametrize(
    ("evaluation", "line", "message"),
    [
        ("{kind: refusal_tokens, data: open.json}", 14, "the setting 'tokens' is missing"),
        ("{kind: refusal_tokens, data: open.json, tokens: []}", 14, "expected at least one value"),
        ("{kind: refusal_tokens, data: open.json, tokens: [No]}", 14, "expected a text, found false"),
        ("{kind: refusal_token, data: open.json, tokens: I}", 14, "did you mean 'refusal_tokens'?"),
        ("{kind: refusal_tokens, data: open.json, tokens: I, max_tokens: 3}", 14, "'max_tokens'"),
        (
            "{kind: refusal_tokens, data: open.json,\n     tokens: [I, As]}",
            15,
            "'As' is not one token in this model's tokens, but 'A', 's'",
        ),
        (
            '{kind: refusal_tokens, answer_prefix: " ", data: open.json, tokens: [a]}',
            14,
            "behind the prompt 'a' is no token of its own",
        ),
        ("{kind: refusal_tokens, data: refusal, tokens: I}", 14, "'refusal' mixes kinds of questions"),
        ("{kind: refusal_tokens, data: both.json, tokens: I}", 14, "both.json, line 1: expected"),
        (
            f"{TOKENS}\n  - {{kind: refusal_tokens, name: b, data: open.json, tokens: [I, N]}}",
            15,
            "b asks what",
        ),
    ],
)
def test_what_can_t_be_asked_is_refused_with_its_line(
    folder: Path, evaluation: str, line: int, message: str
) -> None:
    refusal = refused(folder, OPEN, evaluation)
    assert f"grid.yaml, line {line}: " in refusal
    assert message in refusal


def test_positions_after_the_prompt_can_t_move_the_first_token(folder: Path) -> None:
    refusal = refused(
        folder,
        "after_prompt]",
        "generated]",
        f"- {{kind: choice, data: items.json}}\n  - {OPEN}",
        f"- {TOKENS}",
    )
    assert "positions generated (line 11) cannot act on what refusal_tokens:open scores" in refusal


def test_a_plan_has_them_beside_what_it_had(folder: Path) -> None:
    plan = planner(folder)
    before, after = plan(), plan(OPEN, f"{OPEN}\n  - {TOKENS}", "name: try", "name: other")
    ids = [{row.row_id for row in one.rows()} for one in (before, after)]
    assert ids[0] < ids[1]
    block = after.blocks[-1]
    # a baseline, and 2 norms, layers, multipliers and positions of each
    assert (len(block.configs), len(block.prompts)) == (1 + 2**4, 2)
    records = [record for record in after.prompt_records() if record["evaluation"] == block.evaluation]
    texts = [record for record in after.prompt_records() if record["kind"] == "open_ended"]
    assert [record["token_ids"] for record in records] == [record["token_ids"] for record in texts]
    assert {record["kind"] for record in records} == {"choice"}
    assert {tuple(record["choices"]) for record in records} == {("I or N", "any other token")}
    assert {record["matching"] for record in records} == {0}
    other = plan(OPEN, f"{OPEN}\n  - {TOKENS.replace('N]', 'S]')}")
    assert {row.row_id for row in other.rows()} & ids[1] == ids[0]


def test_the_sets_of_the_built_in_refusal_stand_beside_each_other(folder: Path) -> None:
    both = TOKENS.replace("open.json", "[refusal/harmful, refusal/harmless]")
    plan = planner(folder)(OPEN, both)
    names = {block.evaluation: len(block.prompts) for block in plan.blocks[1:]}
    assert names == {"refusal_tokens:refusal/harmful": 30, "refusal_tokens:refusal/harmless": 30}


def test_log_odds_equal_transformers(tmp_path: Path) -> None:
    check(ReferenceEngine(resolve("tiny-llama").model), tmp_path)
