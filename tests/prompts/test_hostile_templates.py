"""Chat templates that are damaged or made to do harm: rendered or refused, soon and in few words."""

from __future__ import annotations

import copy
import os
import random
import re
import resource
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.hostile import BYTES, CHARACTERS, SECONDS, in_fresh_process
from tests.prompts.test_chat import TEMPLATES
from vsteer.errors import ModelError
from vsteer.models import resolve
from vsteer.prompts.chat import PROCESS
from vsteer.prompts.template import render_question

LOOP = "{% for i in range(99999) %}BODY{% endfor %}"
SCRAPS: list[Callable[[random.Random], str]] = [
    lambda r: LOOP.replace("BODY", r.choice([LOOP, "{% set x = range(99999) | list %}", "{{ messages }}"])),
    lambda r: "{{ 'a' * 10 ** " + str(r.randint(1, 12)) + " }}",
    lambda r: "{{ [[1] * 10 ** " + str(r.randint(1, 12)) + "] }}",
    lambda r: "{{ 10 ** (10 ** " + str(r.randint(1, 9)) + ") }}",
    lambda r: "{{ 'x' | FILTER(10 ** N) }}".replace("FILTER", r.choice(["center", "indent"])).replace(
        "N", "9"
    ),
    lambda r: "{{ " + r.choice(["lipsum", "range", "cycler", "joiner", "dict"]) + "(10 ** 7) }}",
    lambda r: "{{ messages | tojson(indent=10 ** " + str(r.randint(1, 9)) + ") }}",
    lambda r: "{{ '%0*d' | format(10 ** " + str(r.randint(1, 12)) + ", 1) }}",
    lambda r: "{{ ('a' * 10**5) | replace('', 'b' * 10 ** " + str(r.randint(1, 6)) + ") | length }}",
    lambda r: "{{ [1] | batch(10 ** " + str(r.randint(1, 9)) + ", 0) | list | length }}",
    lambda r: "{% macro f(x) %}{{ f(x ~ x) }}{% endmacro %}{{ f('a') }}",
    lambda r: (
        "{% set ns = namespace(x='a') %}{% for i in range(64) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}"
    ),
    lambda r: r.choice(["{% include 'a' %}", "{% import 'a' as a %}", "{% extends 'a' %}", "{% block a %}"]),
    lambda r: (
        "{{ " + r.choice(["1 / 0", "1 // 0", "1 % 0", "a.b.c", "'a' + 1", "-'a'", "messages()"]) + " }}"
    ),
    lambda r: (
        "{{ " + r.choice(["''.__class__", "self", "x.__globals__", "messages.append(1)", "loop"]) + " }}"
    ),
    lambda r: "{{ raise_exception('r' * 10 ** " + str(r.randint(0, 6)) + ") }}",
    lambda r: r"{{ '" + r.choice([r"\ud800", r"\x00", r"\u2028", r"\x1b[2J"]) + "' }}",
    lambda r: "{{ " + "(" * 10 ** r.randint(1, 4) + "1" + ")" * 10 ** r.randint(1, 4) + " }}",
    lambda r: "{% if 1 %}" * 10 ** r.randint(1, 3),
    lambda r: "x" * 10 ** r.randint(1, 6),
    lambda r: "{{ " + "9" * 10 ** r.randint(1, 5) + " }}",
    lambda r: r.choice(["{%", "%}", "{{", "}}", "{#", "{% endfor %}", "{% else %}", "'", "|", "\0", "\x1b"]),
]


def mutated(r: random.Random) -> str:
    """A template with one thing wrong, or two."""
    text = r.choice(TEMPLATES)
    for _ in range(r.randint(1, 2)):
        # mostly between two statements, where it is a template yet
        between = [match.start() for match in re.finditer(r"\{[{%]", text)] + [len(text)]
        whole = r.random() < 0.8
        at = r.choice(between) if whole else r.randrange(len(text))
        text = text[:at] + r.choice(SCRAPS)(r) + text[at + (0 if whole else r.choice([0, 1, 10])) :]
    return text


def seconds() -> float:
    """Of all processes that have rendered so far."""
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent = ended.ru_utime + ended.ru_stime
    if PROCESS.child is not None:
        fields = Path(f"/proc/{PROCESS.child.pid}/stat").read_text().rpartition(")")[2].split()
        spent += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return spent


@pytest.mark.parametrize("count", [6, pytest.param(50, marks=pytest.mark.long)])
def test_mutated_templates(count: int) -> None:
    rendered, longest, peak = in_fresh_process(render_mutated, count)
    print(
        f"{count} templates, {rendered} of them rendered: at most {longest:.2f} s and {peak / 2**20:.0f} MiB"
    )
    assert rendered < count
    assert rendered or count < 50  # both come of the mutations
    assert longest < SECONDS
    assert peak < BYTES


def render_mutated(count: int) -> tuple[int, float, int]:
    """How many of the templates were rendered, the most processor seconds for one, and the most memory."""
    from transformers import AutoTokenizer

    tokenizer = copy.deepcopy(AutoTokenizer.from_pretrained(resolve("tiny-llama").model))
    r, rendered, longest = random.Random(15), 0, 0.0

    before = seconds()
    for _ in range(count):
        tokenizer.chat_template = mutated(r)
        message = ""
        try:
            render_question(tokenizer, "Why?", r.choice([None, "Be kind."]), " (")
        except ModelError as error:
            message = str(error)
        rendered += not message
        assert len(message) <= CHARACTERS
        assert not message or "\nhint: " in message
        assert not any(character * 201 in message for character in "xr9")
        message.encode()
        after = seconds()
        before, longest = after, max(longest, after - before)
    PROCESS.end()
    return rendered, longest, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
