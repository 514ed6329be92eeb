"""Chat templates: rendered as transformers renders them, and one message where they run away."""

from __future__ import annotations

import copy
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from tests.plan.sample import filled, replaced
from vsteer.errors import ModelError
from vsteer.grid.problems import GridError
from vsteer.grid.spec import read_grid
from vsteer.models import resolve
from vsteer.plan.plan import make_plans
from vsteer.prompts.chat import chat
from vsteer.prompts.template import dated, render_question

Templated = Callable[..., Any]
CHATML = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + "
    "'<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TURN = "{% generation %}{{ m.content }}{% endgeneration %}\n"
COUNT = "{% set ns.n = ns.n + 1 %}{% if ns.n > 2 %}{% break %}{% endif %}"
MACRO = "{% macro turn(m) %}<{{ m.role }}>{{ m.content }}</{{ m.role }}>{% endmacro %}"
EACH = "{% for m in messages %}"
# What public templates use: special tokens, blocks, trimming, macros, loop controls, filters, the date.
TEMPLATES = [
    CHATML,
    "{{ bos_token }}" + EACH + "{{ m.content | trim }}{{ eos_token }}{% endfor %}",
    "{%- for m in messages -%}\n  {{- m['role'] | upper }}: " + TURN + "{% endfor %}\n A:",
    "{% set ns = namespace(n=0) %}" + EACH + COUNT + "{{ ns.n }}{{ m | tojson(indent=2) }}{% endfor %}",
    MACRO + "{% for m in messages if m.role == 'user' %}{{ turn(m) }}{% endfor %}{{ tools }}{{ unknown }}",
    EACH + "{{ m.content.split('\n') | join('|') }}{{ loop.index0 }}{{ m.content[:3] }}{% endfor %}",
    "{{ strftime_now('%d %b %Y') }}" + EACH + "{{ m.content | e }}{% endfor %}\n",
]
QUESTIONS = ["Why?", "<b>&amp; \u00e9\n\n \U0001f600 \x0b{{ x }}", "  "]
SYSTEMS = [None, "Be kind."]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(resolve("tiny-llama").model)


@pytest.fixture(scope="module")
def templated(tokenizer: Any) -> Templated:
    def with_template(template: object) -> Any:
        other = copy.deepcopy(tokenizer)
        other.chat_template = template
        return other

    return with_template


def conversations() -> Iterator[list[dict[str, str]]]:
    for system in SYSTEMS:
        for question in QUESTIONS:
            first = [{"role": "system", "content": system}] if system else []
            yield [*first, {"role": "user", "content": question}]


@pytest.mark.parametrize("template", TEMPLATES)
def test_a_template_is_rendered_as_transformers_does(templated: Templated, template: str) -> None:
    tokenizer = dated(templated(template), date(2026, 11, 21))
    assert ("strftime_now" in template) == ("21 Nov 2026" in chat(tokenizer, next(conversations())).turn)
    for messages in conversations():
        # that of transformers, in this process
        want = [
            tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=header)
            for header in (False, True)
        ]
        assert list(chat(tokenizer, messages)) == want


def test_a_named_template_is_the_default_one(templated: Templated) -> None:
    tokenizer = templated({"default": "{{ messages[0].content }}", "tool_use": "{{ 1 / 0 }}"})
    assert chat(tokenizer, [{"role": "user", "content": "Why?"}]).turn == "Why?"


# the template, and what is said of it
RUNAWAY: list[Any] = [
    ("{% for i in range(10**9) %}x{% endfor %}", "Range too big"),
    (
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "takes longer than 2 s",
    ),
    pytest.param("{{ 10 ** (10 ** 10) }}", "takes longer than 2 s", marks=pytest.mark.long),
    ("{{ 'a' * 10**10 }}", "asks for more than 512 MiB of memory"),
    ("{{ messages[0].content * 10**10 }}", "asks for more than 512 MiB of memory"),
    ("{{ '%10000000000d' % 1 }}", "asks for more than 512 MiB of memory"),
    ("{{ 'x' | center(10**10) }}", "asks for more than 512 MiB of memory"),
    pytest.param(
        "{% set ns = namespace(x=['a']) %}{% for i in range(99) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
        "memory",
        marks=pytest.mark.long,
    ),
    ("{{ 'x' * 10**7 }}", "it makes 10,000,000 characters of "),
    pytest.param("{{ lipsum(10**6) }}", "takes longer than 2 s", marks=pytest.mark.long),
    ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "it calls itself without end"),
    ("{{ 1 / 0 }}", "division by zero"),
    ("{{ '\\ud800' }}", "half a surrogate pair"),
    ("{% include 'x' %}", "no loader"),
    ("{% import 'x' as x %}", "no loader"),
    ("{% extends 'x' %}", "no loader"),
    ("{{ messages.x.y }}", "has no attribute"),
    ("{{ messages[0].content + 1 }}", "can only concatenate"),
    ("{{ ''.__class__.__mro__ }}", "unsafe"),
    ("{% for %}", "Expected an expression"),
    ("{{ " + "(" * 2000 + "1" + ")" * 2000 + " }}", "the model's chat template can't be rendered: it "),
    ("{% if 1 %}" * 2000 + "{% endif %}" * 2000, "the model's chat template can't be rendered: "),
    ("{{ " + "x" * 5000 + ".y }}", "can't be rendered: 'xxx"),
    ("{{ raise_exception('r' * 5000) }}", "refuses this question: rrr"),
    ("{{ raise_exception('') }}", "refuses this question: TemplateError"),
    ("x" * 2_000_000, "it has 2,000,000 characters"),
    (5, "it is no text, but 5"),
    ({"tool_use": "{{ 1 }}"}, "can't be rendered: This model has multiple chat templates"),
]


@pytest.mark.parametrize(("template", "message"), RUNAWAY, ids=range(len(RUNAWAY)))
def test_a_template_that_runs_away_is_one_message(
    templated: Templated, template: object, message: str
) -> None:
    tokenizer = templated(template)
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    with pytest.raises(ModelError) as error:
        render_question(tokenizer, "Why?")
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before < 6
    assert message in error.value.message
    assert len(str(error.value)) <= 600
    assert error.value.hint
    assert not any(character * 201 in str(error.value) for character in "xr")
    # and the next one is rendered
    assert chat(templated(CHATML), [{"role": "user", "content": "Why?"}]).turn.endswith("Why?<|im_end|>\n")


def test_a_plan_names_the_line_of_the_evaluation(tmp_path: Path, templated: Templated) -> None:
    shutil.copytree(resolve("tiny-llama").model, tmp_path / "model")
    (tmp_path / "model" / "vsteer.json").unlink()
    templated("{{ 1 / 0 }}").save_pretrained(tmp_path / "model")
    (filled(tmp_path) / "grid.yaml").write_text(replaced("id: tiny-llama", "id: ./model"))
    with pytest.raises(
        GridError, match=r"grid\.yaml, line 13: the model's chat template can't be rendered: div"
    ):
        make_plans(read_grid(tmp_path / "grid.yaml"))


PARENT = """
import json
from vsteer.prompts.chat import PROCESS
request = {"template": "{}", "messages": [], "special_tokens": {}, "day": None}
PROCESS.ask(json.dumps(request))
print(PROCESS.child.pid, flush=True)
loop = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
PROCESS.ask(json.dumps(request | {"template": loop}))
"""


@pytest.mark.long
def test_a_template_that_loops_ends_when_nobody_waits_for_it() -> None:
    parent = subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = Path("/proc", parent.stdout.readline().strip())
    assert child.exists()
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 60
    while child.exists() and "State:\tZ" not in (child / "status").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.1)
