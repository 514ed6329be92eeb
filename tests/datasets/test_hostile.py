"""Data files that are damaged or made to do harm are read or refused: soon and in few words."""

from __future__ import annotations

import json
import os
import random
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from tests.hostile import Outcome, outcome, summary
from vsteer.datasets.readers import read_contrast, read_prompts, read_questions

ITEM = {"question": "Tea?\n\nChoices:\n (A) Yes\n (B) No", "answer_matching_behavior": "(A)"}
CAA = [ITEM | {"answer_not_matching_behavior": "(B)", "category": f"c{n}"} for n in range(4)]
PAIRS = [{"prompt": f"How {n}?", "positive": "Well", "negative": "Badly"} for n in range(4)]
MMLU = [{"question": f"{n} + 1?", "choices": ["1", "2", str(n + 1)], "answer": n % 3} for n in range(3, 7)]
SETS = {"positive": ["Steal it.", "Break it."], "negative": ["Paint it.", "Keep it."]}
LINES = ["\n".join(map(json.dumps, items)).encode() for items in (CAA, PAIRS, MMLU)]
FILES: list[tuple[bytes, Callable[[Path], object]]] = [
    (json.dumps(CAA, indent=1).encode(), read_contrast),
    (json.dumps(PAIRS).encode(), read_contrast),
    (json.dumps(SETS).encode(), read_contrast),
    *((content, read_questions) for content in LINES),
    (b'"Is it?"\n' + json.dumps({"instruction": "Do it.", "category": "b"}).encode(), read_prompts),
    ("Is it raining?\n\nIs it späť?\n".encode(), read_prompts),
    (b"Paint it.\nKeep it.\n", lambda path: read_contrast(path, path)),
]
# each stands for a value, in place of one of the file's
VALUES: list[Callable[[random.Random], bytes]] = [
    lambda r: b"[" * 10 ** r.randint(1, 6),
    lambda r: b'{"a":' * 10 ** r.randint(1, 6),
    lambda r: b"9" * 10 ** r.randint(1, 6),
    lambda r: b"-1e" + b"9" * 10 ** r.randint(1, 4),
    lambda r: r.choice([b"NaN", b"-Infinity", b"null", b"true", b"[]", b"{}", b'""', b"0.5", b"-1"]),
    lambda r: r.choice([rb'"\ud800"', rb'"\udfff\ud800"', b'"\xed\xa0\x80"', rb'"\u0000"', b'"\x00"']),
    lambda r: b'"' + b"a" * 10 ** r.randint(1, 6) + b'"',
    lambda r: b'"' + b" (A) x\\n" * 10 ** r.randint(1, 5) + b'"',
    lambda r: b'"' + b"\\n" * 10 ** r.randint(1, 5) + b'(A"',
    lambda r: b"{" + b'"a":1,' * 10 ** r.randint(1, 5) + b'"b":2}',
    lambda r: b"{" + b",".join(b'"%d":1' % n for n in range(10 ** r.randint(1, 5))) + b"}",
    lambda r: b"[" + b"[]," * 10 ** r.randint(1, 6) + b"[]]",
]
ANYWHERE: list[Callable[[random.Random], bytes]] = [
    *VALUES,
    lambda r: b"\n" * 10 ** r.randint(1, 6),
    lambda r: b" " * 10 ** r.randint(1, 6),
    lambda r: b"\r\t\x0b\x1c\x85" * 10 ** r.randint(0, 5),
    lambda r: r.choice([b"\xef\xbb\xbf", b"\xff\xfe", b"\x00", b"\x1b[2J", b"\xf4\x90\x80\x80", b'"', b"\\"]),
    lambda r: b'{"question": "a"}\n' * 10 ** r.randint(1, 5),
]


def mutated(r: random.Random, content: bytes) -> bytes:
    """The content with one thing wrong, or two."""
    changed = bytearray(content)
    for _ in range(r.randint(1, 2)):
        at = r.randrange(len(changed) + 1)
        match r.randrange(6):
            case 0:
                del changed[at:]
            case 1:
                del changed[at : at + r.randint(1, 40)]
            case 2:
                for place in r.sample(range(len(changed)), min(len(changed), r.randint(1, 4))):
                    changed[place] = r.randrange(256)
            case 3 | 4:
                # a value in place of one of the file's texts
                quotes = [n for n, byte in enumerate(changed) if byte == ord('"')]
                if len(quotes) > 1:
                    first = r.randrange(len(quotes) - 1)
                    changed[quotes[first] : quotes[first + 1] + 1] = r.choice(VALUES)(r)
            case _:
                changed[at:at] = r.choice(ANYWHERE)(r)
    return bytes(changed)


@pytest.mark.parametrize("count", [20, pytest.param(200, marks=pytest.mark.long)])
def test_mutated_files(tmp_path: Path, count: int) -> None:
    r, path, found = random.Random(15), tmp_path / "data.json", list[Outcome]()
    for _ in range(count):
        content, read = r.choice(FILES)
        path.write_bytes(mutated(r, content))
        found.append(outcome(partial(read, path)))
    # both come of the mutations
    assert 0 < sum(not one.message for one in found) < count
    summary(f"{count} data files", found)


def refused(path: Path, content: bytes, read: Callable[[Path], object] = read_prompts) -> str:
    path.write_bytes(content)
    found = outcome(partial(read, path))
    assert found.message
    return found.message


def test_a_line_has_a_limit(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    for start, end in ((b"Why", b"?"), (b'{"question": "', b'"}')):
        first = start + end + b"\n\n"
        message = refused(path, first + start + b"a" * 40_000_000 + end + b"\n" + start + end)
        assert f"{path}, line 3: expected at most 1,000,000 characters in an item, found 40,000" in message
    assert "line 2: expected at most 1,000,000 char" in refused(path, b'["a",\n"%s"]' % (b"b" * 2_000_000))


def test_a_million_characters_are_read(tmp_path: Path) -> None:
    """As many as a limit allows, and an array on one line, however long it is."""
    path = tmp_path / "a.json"
    path.write_text(json.dumps(["a" * 999_998, "b"]))
    assert [len(prompt.text) for prompt in read_prompts(path).prompts] == [999_998, 1]
    path.write_text(json.dumps(["Why?" * 100] * 5000))
    assert len(read_prompts(path).prompts) == 5000


def test_a_file_has_a_limit(tmp_path: Path) -> None:
    message = refused(tmp_path / "a.json", b"[" + b'"a",' * 13_000_000 + b'"a"]')
    assert "it has 52,000,005 bytes, and at most 50,000,000 are read" in message


@pytest.mark.parametrize("content", [b'["a"' + b',\n"a"' * 300_000 + b"]", b"a\n" * 300_000])
def test_the_items_have_a_limit(tmp_path: Path, content: bytes) -> None:
    message = refused(tmp_path / "a", content)
    assert "line 250001: expected at most 250,000 items" in message


@pytest.mark.long
@pytest.mark.parametrize(
    "content",
    [
        lambda: b"[" + b"[]," * 16_000_000 + b"[]]",
        lambda: b"[[" + b"[]," * 16_000_000 + b"[]]]",
        lambda: b'{"question": "a", "b": [' + b"{}," * 16_000_000 + b"{}]}",
        lambda: b"{\n" + b'"a":[],' * 7_000_000 + b'"b":[]}',
        lambda: b"{" + b",".join(b'"%d":[]' % n for n in range(3_000_000)) + b"}",
        lambda: b"\n" * 49_000_000 + b"a",
        lambda: b" " * 49_000_000 + b"a",
        lambda: b"\n " * 24_000_000 + b"a",
        lambda: "😀".encode() * 12_000_000,
        lambda: b"{" + b'"a":1,' * 8_000_000 + b'"b":2}',
        lambda: b"{" + b",".join(b'"%d":1' % n for n in range(4_000_000)) + b"}",
        lambda: b'["' + b"\\u0041" * 8_000_000 + b'"]',
        lambda: b'["a"' + b"".join(b',"%d"' % n for n in range(249_000)) + b"]",
    ],
    ids=range(13),
)
def test_the_largest_that_a_limit_allows(tmp_path: Path, content: Callable[[], bytes]) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(content())
    for read in (read_contrast, read_prompts):
        outcome(partial(read, path))


@pytest.mark.parametrize("kind", ["pipe", "device", "folder"])
def test_what_is_no_file(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a.json"
    match kind:
        case "pipe":
            os.mkfifo(path)
        case "folder":
            path.mkdir()
        case "device":
            path = Path("/dev/zero")
    before = time.monotonic()
    assert str(path) in outcome(lambda: read_contrast(path)).message
    assert time.monotonic() - before < 30


@pytest.mark.parametrize(
    ("item", "words"),
    [
        ({"question": "a", "category": "\ud800"}, "half a surrogate"),
        ({"question": "a", "category": [["b"] * 9] * 1000}, 'expected "category" to be a text'),
        ({"question": "a", "choices": ["\ud800", "b"], "answer": 0}, "half a surrogate"),
        ({"question": "a", "choices": ["b", "c"], "answer": "d" * 100_000}, 'expected "answer" to be'),
        ({"question": 10**4000, "choices": ["b", "c"], "answer": 0}, 'expected "question" to be a text'),
        ({f"field {n} of many": 1 for n in range(1000)}, "992 more"),
        ({"a" * 900_000: 1, "\ud800": 2}, "expected an item of a known form"),
    ],
)
def test_values_that_are_no_good(tmp_path: Path, item: object, words: str) -> None:
    read = read_prompts if "category" in str(item) else read_questions
    assert words in refused(tmp_path / "a.json", json.dumps([item]).encode(), read)


def test_repeated_keys_are_found_in_linear_time(tmp_path: Path) -> None:
    keys = [b'"%d":1' % n for n in range(100_000)]
    for last in (b'"7":1', b'"no":1'):
        path = tmp_path / "a.json"
        path.write_bytes(b"{" + b",".join([*keys, last]) + b"}")
        found = outcome(partial(read_questions, path))
        assert found.message
        assert ('the field "7" stands twice' in found.message) == (last == b'"7":1')
        assert found.seconds < 5
