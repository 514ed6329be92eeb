"""The grammar of names: what each form means, by hand; what is none; and there and back again."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vsteer.errors import UsageError
from vsteer.protocol import OPEN_END, POSITION_WORDS, Steering, Term
from vsteer.serve.catalogue import Catalogue, UnknownName
from vsteer.serve.names import parse_name, spelled


@pytest.mark.parametrize(
    ("name", "terms", "positions"),
    [
        ("base", (), "all"),
        ("base+refusal@13*1.5", (Term("refusal", 13, 1.5),), "all"),
        ("base+refusal@13", (Term("refusal", 13, 1.0),), "all"),
        (
            "base+refusal@10..12:after_prompt",
            (Term("refusal", 10), Term("refusal", 11), Term("refusal", 12)),
            "after_prompt",
        ),
        ("base+a.b-c_d@0*-2:[3,9)", (Term("a.b-c_d", 0, -2.0),), (3, 9)),
        ("base+joy@1*1e-3+joy@1*2", (Term("joy", 1, 0.001), Term("joy", 1, 2.0)), "all"),
        (
            "base+ablate(refusal@13)+joy@2..3*0.5",
            (Term("refusal", 13, 1.0, "ablate"), Term("joy", 2, 0.5), Term("joy", 3, 0.5)),
            "all",
        ),
        ("base+joy@1*0", (Term("joy", 1, 0.0),), "all"),
        ("base+joy@1:[0,9999999999)", (Term("joy", 1),), (0, OPEN_END)),
    ],
)
def test_what_a_name_means(name: str, terms: tuple[Term, ...], positions: object) -> None:
    assert parse_name(name) == Steering(terms, positions)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("", "from '' on"),
        ("bse+joy@1", "from 'bse+joy@1' on"),
        ("Base", "from 'Base' on"),
        ("base+", "from '+' on"),
        ("base+joy", "from '+joy' on"),
        ("base +joy@1", "from ' +joy@1' on"),
        ("base+joy@1 ", "from ' ' on"),
        ("base+joy@1\n", "on"),
        ("base+joy@-1", "from '+joy@-1' on"),
        ("base+joy@1.5", "from '.5' on"),
        ("base+joy@1*", "from '*' on"),
        ("base+joy@1*nan", "from '*nan' on"),
        ("base+joy@1*1e+3", "from 'e+3' on"),
        ("base+joy@1*1.5*2", "from '*2' on"),
        ("base+ablate(joy@1", "from '+ablate(joy@1' on"),
        ("base+joy@1)", "from ')' on"),
        ("base+../../etc/passwd@1", "on"),
        ("base+joy@٣", "on"),
        ("base:after_prompt", "from ':after_prompt' on"),
        ("base+joy@9..3", "no layer lies in 9..3"),
        ("base+joy@1*1e99", "no float32 number"),
        ("base+joy@1*1e-99", "no float32 number"),
        ("base+joy@1:", "no positions are called ''"),
        ("base+joy@1:after_promt", "no positions are called 'after_promt'"),
        ("base+joy@1:[5,5)", "no token lies in [5, 5)"),
        ("base+joy@1:[5,3)", "no token lies in [5, 3)"),
        ("base+joy@1:[-1,3)", "no positions"),
        ("base" + "+joy@1" * 1_000, "6,004 characters"),
        ("base" + "+joy@0..999" * 2, "more than 1,000 terms"),
        ("base" + "+joy@0..9999" * 166, "more than 1,000 terms"),
    ],
)
def test_what_is_no_name(name: str, says: str) -> None:
    with pytest.raises(UsageError) as raised:
        parse_name(name)
    assert says in raised.value.message
    assert raised.value.hint
    assert len(str(raised.value)) < 600


def test_a_near_word_is_proposed() -> None:
    with pytest.raises(UsageError, match="did you mean 'after_prompt'"):
        parse_name("base+joy@1:after_promt")


NAMES = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,12}", fullmatch=True)
MULTIPLIERS = st.floats(-1000, 1000, width=32, allow_subnormal=False).map(lambda x: float(str(x)) + 0.0)
TERMS = st.builds(Term, NAMES, st.integers(0, 99), MULTIPLIERS, st.sampled_from(["add", "ablate"]))
SPANS = st.tuples(st.integers(0, 50), st.integers(51, 99))


@given(st.lists(TERMS, min_size=1, max_size=12), st.one_of(st.sampled_from(POSITION_WORDS), SPANS))
def test_a_steering_survives_being_spelled_out(terms: list[Term], positions: str | tuple[int, int]) -> None:
    steering = Steering(tuple(terms), positions)
    found = parse_name(spelled(steering))
    assert found.positions == positions
    for one, other in zip(found.terms, terms, strict=True):
        assert (one.vector, one.layer, one.operation) == (other.vector, other.layer, other.operation)
        # the device multiplies in float32
        assert one.multiplier == pytest.approx(other.multiplier, rel=1e-6)


def test_neighbouring_layers_become_one_range() -> None:
    terms = tuple(Term("joy", layer, 0.5) for layer in (3, 4, 5, 7))
    assert spelled(Steering(terms, "generated")) == "base+joy@3..5*0.5+joy@7*0.5:generated"
    assert spelled(Steering(())) == "base"
    assert spelled(Steering((Term("joy", 1, 1e30),))) == "base+joy@1*1e30"


def test_a_vector_acts_where_its_directions_are() -> None:
    vectors = {"heads": {1: np.ones(4, np.float32)}}
    operations = ("add", "add_attention", "clamp")
    catalogue = Catalogue("tiny", vectors, operations=operations, places={"heads": "attention"})
    assert catalogue.named("base+add_attention(heads@1)").terms == (Term("heads", 1, 1.0, "add_attention"),)
    for name in ("base+heads@1", "base+clamp(heads@1*2)"):
        with pytest.raises(UnknownName, match=r"behind a layer's attention, where (add|clamp) does not act"):
            catalogue.named(name)
