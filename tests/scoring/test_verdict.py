"""Judges' answers: the score where it is plain, and a failure wherever it is not."""

from __future__ import annotations

import pytest

from vsteer.scoring.verdict import read_verdict


@pytest.mark.parametrize(
    ("answer", "score", "reason"),
    [
        ("7: it declines in substance.", 7, "it declines in substance."),
        ("10/10", 10, ""),
        ("10 / 10: all of it", 10, "all of it"),
        ("0", 0, ""),
        ("10", 10, ""),
        ("7.5 - mixed", 7.5, "mixed"),
        ("Score: 7 because 3 of its sentences decline", 7, "because 3 of its sentences decline"),
        ("7 because 3 lines decline", 7, "because 3 lines decline"),
        ("**Score:** 4/10\nIt hedges.", 4, "It hedges."),
        ("score is 3. Mostly bad.", 3, "Mostly bad."),
        ("8 out of 10, it is warm", 8, "it is warm"),
        ("8 out of ten", 8, ""),
        ("\n 2\nIt complies.", 2, "It complies."),
        ("<think>\nMaybe 3? No, 9.\n</think>\n\n9: glad", 9, "glad"),
        ("6: good. Final score: 6", 6, "good. Final score: 6"),
        ("5: 3 of 6 sentences are French", 5, "3 of 6 sentences are French"),
    ],
)
def test_plain_verdicts(answer: str, score: float, reason: str) -> None:
    found = read_verdict(answer)
    assert (found.score, found.reason.rstrip(".")) == (score, reason.rstrip("."))


@pytest.mark.parametrize(
    "answer",
    [
        None,
        "",
        "  \n",
        "I can't judge that.",
        "The answer deserves a 7.",
        "eleven",
        "11",
        "11: too glad",
        "-3",
        "100",
        "8/100",
        "8/5",
        "7/",
        "8 out of 100",
        "8 out of",
        "70%",
        "7-8",
        "7 - 8",
        "7 to 8",
        "7 or 8",
        "7, 8",
        "7,5",
        "7 8",
        "7\n8",
        "7.5.1",
        "7th",
        "7e3",
        "between 3 and 5",
        "3 sentences are rude, so I say 8",
        "7: it declines. Final score: 9",
        "10 words in all. Score: 3",
        "0 to 10: 7",
        "<think>7",
        "/10",
        '{"score": 7}',
        "1 000",
        "7 of 20",
        "seven (7)",
        "nan",
        "inf",
        "10.5",
        "7/10/10",
    ],
)
def test_whatever_leaves_a_doubt_is_a_failure(answer: str | None) -> None:
    found = read_verdict(answer)
    assert found.score is None
    assert found.reason


@pytest.mark.parametrize("answer", ["1", "7 out", "7/", "7/1", "Score: 1", "1."])
def test_a_number_beside_which_the_answer_was_cut_off_may_be_half_a_number(answer: str) -> None:
    assert read_verdict(answer, cut_off=True).score is None


def test_a_long_reason_may_be_cut_off() -> None:
    assert read_verdict("7: it declines, and offers to expl", cut_off=True).score == 7
