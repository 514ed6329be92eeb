"""The steering file and the object in a request: what they mean, and whose line an error names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from vsteer.errors import UsageError
from vsteer.protocol import Steering, Term
from vsteer.serve.steering_file import parse_object, read_steering_file

FILE = """\
vectors:
  joy: vectors/joy.safetensors
steerings:
  spelled: base+joy@3*1.5:after_prompt
  written:
    terms:
      - {vector: joy, layers: [3, 5], multiplier: -2}
      - {vector: joy, layers: {from: 1, to: 2}, operation: ablate}
    positions: [4, 8]
engine: {max_model_len: 64}
"""


def written(folder: Path, text: str) -> Path:
    path = folder / "steering.yaml"
    path.write_text(text)
    return path


def test_what_a_file_means(tmp_path: Path) -> None:
    file, vectors = read_steering_file(written(tmp_path, FILE))
    assert vectors == {"joy": tmp_path / "vectors" / "joy.safetensors"}
    assert file.steerings == {
        "spelled": Steering((Term("joy", 3, 1.5),), "after_prompt"),
        "written": Steering(
            (
                Term("joy", 3, -2.0),
                Term("joy", 5, -2.0),
                Term("joy", 1, 1.0, "ablate"),
                Term("joy", 2, 1.0, "ablate"),
            ),
            (4, 8),
        ),
    }
    assert file.engine.max_model_len == 64


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("spelled: base+joy@3*1.5", "spelled: base+joy@x", "line 4: the name of a model can't be read"),
        ("spelled:", "base:", "line 4: the name 'base' is the unsteered model's"),
        ("spelled:", "a+b:", "line 4: expected a name"),
        ("multiplier: -2", "multiplier: [1, 2]", "line 7: expected a number"),
        ("multiplier: -2", "times: 2", "line 7: unknown setting 'times'"),
        ("layers: [3, 5]", "layers: all", "line 7: expected layers by their numbers"),
        ("layers: [3, 5]", "layers: {together: {depth: [0, 1]}}", "line 7: expected layers by their numbers"),
        ("operation: ablate", "operation: ablat", "line 8: expected an operation"),
        ("positions: [4, 8]", "positions: [8, 4]", "line 9: no token lies in [8, 4)"),
        ("joy: vectors/joy.safetensors", "joy: 3", "line 2: expected a text"),
        ("vectors:\n", "vectors: !!python/object:os.system\n", "line 1: the tag"),
        ("max_model_len: 64", "load_format: pt", "reads pickled weights"),
        ("max_model_len: 64", "vllm: {trust_remote_code: true}", "trust_remote_code"),
    ],
)
def test_an_error_names_its_line(tmp_path: Path, old: str, new: str, says: str) -> None:
    assert old in FILE
    with pytest.raises(UsageError) as raised:
        read_steering_file(written(tmp_path, FILE.replace(old, new, 1)))
    assert says in raised.value.message
    assert len(str(raised.value)) < 600


def test_a_file_that_is_not_there_is_one_message(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="No such file"):
        read_steering_file(tmp_path / "none.yaml")


TERM = {"vector": "joy", "layers": 3}


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ({}, "'terms' is missing"),
        ({"terms": []}, "at least one entry"),
        ({"terms": "joy"}, "terms"),
        ({"terms": [TERM] * 1_001}, "terms"),
        ({"terms": [{**TERM, "layers": {"from": 0, "to": 1_500}}]}, "more than 1,000 terms"),
        ({"terms": [{"vector": "joy"}]}, "'layers' is missing"),
        ({"terms": [{**TERM, "file": "/etc/passwd"}]}, "unknown setting 'file'"),
        ({"terms": [{**TERM, "vector": "/etc/passwd"}]}, "expected a name"),
        ({"terms": [{**TERM, "multiplier": True}]}, "expected a number"),
        ({"terms": [{**TERM, "layers": -1}]}, "expected the number of a layer"),
        ({"terms": [TERM], "positions": "everywhere"}, "expected positions"),
        ({"terms": [TERM], "pickle": "x"}, "unknown setting 'pickle'"),
    ],
)
def test_a_request_object_that_is_none(value: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError) as raised:
        parse_object(value)
    assert says in raised.value.message
    assert len(str(raised.value)) < 600


def test_a_request_object_is_what_the_file_would_mean() -> None:
    found = parse_object({"terms": [{**TERM, "multiplier": 2}], "positions": "generated"})
    assert found == Steering((Term("joy", 3, 2.0),), "generated")
