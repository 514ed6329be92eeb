"""Choice questions in tokens: what is forced, what is scored, how it is summed. Figures are by hand."""

import math
from collections.abc import Sequence

import pytest

from vsteer.datasets.items import Choice, Item
from vsteer.errors import SteeringFault
from vsteer.evaluations.choice import ChoiceEvaluation, orders
from vsteer.evaluations.evaluation import CannotAsk, CannotScore
from vsteer.evaluations.given_answers import answer_requests, steps
from vsteer.evaluations.rendered_prompt import RenderedPrompt
from vsteer.prompts.answers import AmbiguousAnswers, common_prefix, cut_letters, cut_words
from vsteer.protocol import Prompt, Result, Steering, Term

CHOICE = ChoiceEvaluation(kind="choice", data=("items.json",))


def item(
    *choices: tuple[str, str], matching: int = 0, not_matching: int | None = 1, question: str = "?"
) -> Item:
    """Choices as (label, text); without a label the text is the answer."""
    made = tuple(Choice(f"({label})" if label else text, text, label) for label, text in choices)
    return Item("0" * 16, question, made, matching, not_matching, line=1)


def rendered(
    of: Item, answers: Sequence[tuple[int, ...]], scored: Sequence[int] | None = None
) -> RenderedPrompt:
    prompt = Prompt((1, 2, 3), 3, 2)
    return RenderedPrompt(
        "e", of, "original", prompt, "p", tuple(scored or range(len(answers))), tuple(answers)
    )


def ok(row: str, n: int, probabilities: dict[int, float]) -> Result:
    return Result(f"{row}.{n}", "ok", logprobs=({t: math.log(p) for t, p in probabilities.items()},))


YES_NO = item(("", "Yes"), ("", "No"))
FOUR = item(("A", "a"), ("B", "b"), ("C", "c"), ("D", "d"), matching=2, not_matching=0)


def test_letters_are_scored_and_the_bracket_before_them_is_forced() -> None:
    # header 1 2, "(" 5, A 6, B 7, ")" 8
    assert cut_letters([(1, 2, 5, 6, 8), (1, 2, 5, 7, 8)]) == (3, ((6,), (7,)))


def test_a_bracket_that_merges_with_its_letter_is_scored_with_it() -> None:
    # "(A" is token 16, "(B" is 17: nothing but the header can be forced
    assert cut_letters([(1, 2, 16, 8), (1, 2, 17, 8)]) == (2, ((16,), (17,)))
    # "A)" 26 and "B)" 27
    assert cut_letters([(1, 2, 5, 26), (1, 2, 5, 27)]) == (3, ((26,), (27,)))


def test_numbers_that_begin_alike_are_scored_as_far_as_they_need() -> None:
    # (1) is 5 31 8, (10) is 5 31 30 8, (2) is 5 32 8
    assert cut_letters([(5, 31, 8), (5, 31, 30, 8), (5, 32, 8)]) == (1, ((31, 8), (31, 30), (32, 8)))


def test_words_are_scored_whole_even_what_they_have_in_common() -> None:
    # header 1 2; "I am happy" 40 41 42, "I am sad" 40 41 43 44
    whole = [(1, 2, 40, 41, 42), (1, 2, 40, 41, 43, 44)]
    assert cut_words((1, 2), whole) == (2, ((40, 41, 42), (40, 41, 43, 44)))


def test_a_word_that_merges_with_the_header_takes_its_last_token_along() -> None:
    assert cut_words((1, 2), [(1, 50), (1, 51)]) == (1, ((50,), (51,)))


@pytest.mark.parametrize("answers", [[(1, 40), (1, 40, 41)], [(1, 40), (1, 40)], [(1,), (1, 41)]])
def test_an_answer_that_begins_another_is_refused(answers: list[tuple[int, ...]]) -> None:
    with pytest.raises(AmbiguousAnswers):
        cut_words((1,), answers)
    with pytest.raises(AmbiguousAnswers):
        cut_letters(answers)


def test_common_prefix() -> None:
    assert common_prefix([(1, 2, 3), (1, 2, 4), (1, 2)]) == 2
    assert common_prefix([(1,), (2,)]) == 0


def test_one_request_for_every_proper_prefix() -> None:
    assert steps([(6,), (7,)]) == {(): (6, 7)}
    # 40 41 42 and 40 43 share the prefix 40
    assert steps([(40, 41, 42), (40, 43), (50,)]) == {(): (40, 50), (40,): (41, 43), (40, 41): (42,)}


def test_requests_force_the_prefix_and_leave_the_span_where_it_was() -> None:
    steering = Steering((Term("v", 3, 1.0),), (2, 3))
    requests = answer_requests("r", rendered(YES_NO, [(40, 41), (50,)]), steering)
    assert [request.id for request in requests] == ["r.0", "r.1"]
    assert [request.prompt.token_ids for request in requests] == [(1, 2, 3), (1, 2, 3, 40)]
    assert [request.logprob_token_ids for request in requests] == [(40, 50), (41,)]
    assert {request.steering for request in requests} == {steering}
    assert all(request.prompt.span((2, 3)) == (2, 3) for request in requests)
    assert all(request.max_tokens == 1 for request in requests)


def test_score_of_single_tokens() -> None:
    score = CHOICE.columns(
        rendered(FOUR, [(6,), (7,), (8,), (9,)]), [ok("r", 0, {6: 0.2, 7: 0.1, 8: 0.4, 9: 0.05})]
    )
    assert score["choices"] == ["A", "B", "C", "D"]
    assert score["choice_logprobs"] == pytest.approx([math.log(p) for p in (0.2, 0.1, 0.4, 0.05)])
    assert score["total_mass"] == pytest.approx(0.75)
    assert score["p_match"] == pytest.approx(0.4 / 0.75)
    assert score["logit_diff"] == pytest.approx(math.log(0.4 / 0.2))  # against A, which the file names
    assert score["matching"] == 2


def test_score_of_several_tokens_is_the_product() -> None:
    results = [ok("r", 0, {40: 0.5, 50: 0.3}), ok("r", 1, {41: 0.25})]
    score = CHOICE.columns(rendered(YES_NO, [(40, 41), (50,)]), results)
    assert score["choice_logprobs"] == pytest.approx([math.log(0.125), math.log(0.3)])
    assert score["choice_tokens"] == [2, 1]
    assert score["total_mass"] == pytest.approx(0.425)
    assert score["p_match"] == pytest.approx(0.125 / 0.425)
    assert score["logit_diff"] == pytest.approx(math.log(0.125 / 0.3))


def test_where_the_file_names_no_opponent_all_others_are_it() -> None:
    capability = item(("A", "a"), ("B", "b"), ("C", "c"), matching=1, not_matching=None)
    score = CHOICE.columns(rendered(capability, [(6,), (7,), (8,)]), [ok("r", 0, {6: 0.1, 7: 0.5, 8: 0.15})])
    assert score["logit_diff"] == pytest.approx(math.log(0.5 / 0.25))


def test_tiny_probabilities_keep_their_ratio() -> None:
    result = Result("r.0", "ok", logprobs=({6: -800.0, 7: -801.0},))
    score = CHOICE.columns(rendered(item(("A", "a"), ("B", "b")), [(6,), (7,)]), [result])
    assert score["total_mass"] == 0
    assert score["p_match"] == pytest.approx(1 / (1 + math.exp(-1)))
    assert score["logit_diff"] == pytest.approx(1)


def test_no_probability_at_all_is_no_ratio() -> None:
    result = Result("r.0", "ok", logprobs=({6: -math.inf, 7: -math.inf},))
    score = CHOICE.columns(rendered(item(("A", "a"), ("B", "b")), [(6,), (7,)]), [result])
    assert (score["p_match"], score["logit_diff"], score["total_mass"]) == (None, None, 0)


def test_a_probability_that_did_not_come_back_is_loud() -> None:
    with pytest.raises(SteeringFault, match=r"without log-probabilities of \[7\]"):
        CHOICE.columns(rendered(YES_NO, [(6,), (7,)]), [ok("r", 0, {6: 0.5})])


def test_nan_is_no_score() -> None:
    result = Result("r.0", "ok", logprobs=({6: math.nan, 7: -1.0},))
    with pytest.raises(CannotScore, match="not numbers"):
        CHOICE.columns(rendered(YES_NO, [(6,), (7,)]), [result])


def test_caa_scores_the_two_letters_that_the_file_names() -> None:
    caa = ChoiceEvaluation(kind="choice", data=("items.json",), caa_compat=True)
    assert CHOICE.scored(FOUR) == (0, 1, 2, 3)
    assert caa.scored(FOUR) == (0, 2)
    two = rendered(FOUR, [(6,), (8,)], scored=(0, 2))
    score = CHOICE.columns(two, [ok("r", 0, {6: 0.2, 8: 0.6})])
    assert (score["choices"], score["matching"]) == (["A", "C"], 1)
    assert score["p_match"] == pytest.approx(0.75)
    with pytest.raises(CannotAsk, match="two letters"):
        caa.scored(YES_NO)


def test_the_other_order_is_asked_where_it_means_the_same() -> None:
    plain = item(("A", "tea"), ("B", "milk"), question="Which?\n\nChoices:\n(A) tea\n(B) milk")
    both = orders(plain, both=True)
    assert [order for order, _ in both] == ["original", "swapped"]
    assert both[1][1].question == "Which?\n\nChoices:\n(A) milk\n(B) tea"
    assert both[1][1].positive == "(B)"
    assert len(orders(plain, both=False)) == 1
    assert len(orders(YES_NO, both=True)) == 1
    leaning = item(
        ("A", "tea"), ("B", "both of the above"), question="Which?\n(A) tea\n(B) both of the above"
    )
    assert len(orders(leaning, both=True)) == 1
