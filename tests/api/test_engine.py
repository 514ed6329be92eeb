"""The notebook's engine: its answers are those of a grid's rows, its table is loaded when it must be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pytest

import vsteer
from tests.api.conftest import Recording
from tests.run import fake
from vsteer.api.steerings import LoadedSteerings
from vsteer.engine.options import EngineOptions
from vsteer.engine.table import Capacity
from vsteer.errors import EngineError, UsageError, VectorError, VsteerError
from vsteer.grid.spec import as_grid
from vsteer.run.start import run_grid
from vsteer.vectors.files import save
from vsteer.vectors.vector import SteeringVector

PROMPTS = ["How was the film?", "What do you think of rain?", "Tell me of your day."]


def made_vector(name: str = "glad", seed: int = 0, width: int = 128, layers: int = 6) -> SteeringVector:
    rng = np.random.default_rng(seed)
    return SteeringVector(name, {n: rng.standard_normal(width).astype(np.float32) for n in range(layers)})


@pytest.fixture
def engine(engines: list[Recording], nothing_fails: None) -> vsteer.Engine:
    return vsteer.Engine("tiny-llama")


def test_texts_and_log_probabilities_are_those_of_a_grid_s_rows(
    engine: vsteer.Engine, tmp_path: Path
) -> None:
    """The fake's answers are a hash of the tokens, the span, the vector and the seed: all must agree."""
    vector = made_vector()
    save(vector, tmp_path / "glad.safetensors")
    grid: dict[str, Any] = {
        "version": 1,
        "name": "same",
        "seed": 7,
        "model": {"id": "tiny-llama", "dtype": "float32"},
        "vectors": {"glad": {"file": "glad.safetensors"}},
        "grid": [{"vector": "glad", "layers": 3, "multipliers": 1.5, "positions": "after_prompt"}],
        "evaluations": [
            {
                "kind": "open_ended",
                "data": "open.jsonl",
                "max_tokens": 9,
                "temperature": 0.7,
                "system": "Be brief.",
                "coherence": False,
            },
            {"kind": "choice", "data": "words.jsonl"},
        ],
    }
    lines = [f'{{"text": "{prompt}"}}' for prompt in PROMPTS]
    (tmp_path / "open.jsonl").write_text("\n".join(lines))
    pairs = [f'{{"prompt": "{prompt}", "positive": "Good", "negative": "Bad"}}' for prompt in PROMPTS]
    (tmp_path / "words.jsonl").write_text("\n".join(pairs))
    folder = run_grid(as_grid(grid, tmp_path), load=fake.load()).folder
    rows = f"'{folder}/rows/*.parquet' r join '{folder}/prompts.parquet' p using (prompt_id)"
    steer = vector.at(layer=3, multiplier=1.5)
    for multiplier, steering in ((1.5, steer), (0, None)):
        texts = dict(
            duckdb.sql(
                f"select p.question, r.text from {rows} where r.kind = 'open_ended' "
                f"and multiplier = {multiplier}"
            ).fetchall()
        )
        assert engine.generate(
            PROMPTS,
            steer=steering,
            positions="after_prompt",
            system="Be brief.",
            max_tokens=9,
            temperature=0.7,
            seed=7,
        ) == [texts[prompt] for prompt in PROMPTS]
        scores = dict(
            duckdb.sql(
                f"select p.question, r.choice_logprobs from {rows} where r.kind = 'choice' "
                f"and multiplier = {multiplier}"
            ).fetchall()
        )
        found = engine.score(PROMPTS, ["Good", "Bad"], steer=steering, positions="after_prompt")
        assert found.tolist() == [scores[prompt] for prompt in PROMPTS]


def test_the_table_is_loaded_when_a_steering_is_new(engine: vsteer.Engine, engines: list[Recording]) -> None:
    (inner,) = engines
    glad, sad = made_vector(), made_vector("sad", 1)
    engine.generate(PROMPTS[:1])
    assert inner.loads == []
    first = engine.generate(PROMPTS[:1], steer=glad.at(3))
    assert engine.generate(PROMPTS[:1], steer=glad.at(3)) == first
    assert len(inner.loads) == 1
    engine.generate(PROMPTS[:1], steer=[glad.at(3), sad.at(2, -1.0)])
    vectors, steerings = inner.loads[-1]
    assert vectors == {"glad", "sad"}
    assert [[(term.vector, term.layer, term.multiplier) for term in one.terms] for one in steerings] == [
        [("glad", 3, 1.0)],
        [("glad", 3, 1.0), ("sad", 2, -1.0)],
    ]
    # what is known needs no loading, and neither does a multiplier of 0
    assert engine.generate(PROMPTS[:1], steer=glad.at(3)) == first
    assert engine.generate(PROMPTS[:1], steer=glad.at(3, 0.0)) == engine.generate(PROMPTS[:1])
    assert len(inner.loads) == 2


def test_another_vector_of_the_same_name_is_another_vector(
    engine: vsteer.Engine, engines: list[Recording]
) -> None:
    one, other = made_vector(), made_vector(seed=1)
    first = engine.generate(PROMPTS[:1], steer=one.at(3))
    assert engine.generate(PROMPTS[:1], steer=other.at(3)) != first
    assert len(engines[0].loads[-1][0]) == 2
    # the same numbers under another name are the same steering
    assert engine.generate(PROMPTS[:1], steer=SteeringVector("else", one.directions).at(3)) == first
    assert len(engines[0].loads) == 2


def test_the_oldest_steerings_go_when_the_table_is_full(engines: list[Recording]) -> None:
    vsteer.Engine("tiny-llama")
    (inner,) = engines
    # cell 0 and row 0 are unsteered
    by_cells = LoadedSteerings(inner, Capacity(cells=4))
    for n in range(1, 7):
        by_cells.load(made_vector().at(3, n))
    assert [one.terms[0].multiplier for one in inner.loads[-1][1]] == [4, 5, 6]
    by_rows = LoadedSteerings(inner, Capacity(rows=4))
    for layer in range(1, 6):
        by_rows.load([made_vector().at(layer), made_vector().at(0, 2.0)])
    assert [one.terms[0].layer for one in inner.loads[-1][1]] == [4, 5]


def test_a_prompt_that_fails_is_named(engines: list[Recording]) -> None:
    engine = vsteer.Engine("tiny-llama")
    with pytest.raises(EngineError, match=r"prompt \d+ failed: too long") as error:
        engine.generate([f"What is {n} and {n}?" for n in range(200)], max_tokens=1)
    # the traceback is alive, and yet nothing is left under way
    assert error.tb is not None
    assert engines[0].ended == 1


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"steer": made_vector()}, "expected a vector at a layer to steer with, found SteeringVector"),
    ({"steer": [made_vector().at(1)] * 5}, "5 vectors are added at one layer"),
    ({"steer": made_vector().at(1, 1.0, "ablate")}, "started without the operation ablate"),
    ({"steer": made_vector().at(1, 1.0, "abalte")}, "did you mean 'ablate'?"),
    ({"steer": made_vector().at(1), "positions": "after_promt"}, "did you mean 'after_prompt'?"),
    ({"steer": made_vector().at(1), "positions": "generated", "max_tokens": 1}, "cannot act on prompt 1"),
    ({"steer": made_vector().at(1), "positions": (4000, 4001)}, "cannot act on prompt 1"),
    ({"max_tokens": 0}, "max_tokens: max_tokens should be greater than or equal to 1, found 0"),
    ({"temperature": -1.0}, "temperature: temperature should be greater"),
    ({"answer_prefix": ""}, "answer_prefix"),
]


@pytest.mark.parametrize(("settings", "message"), REFUSED)
def test_what_can_t_be_done_is_refused(engine: vsteer.Engine, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(VsteerError) as error:
        engine.generate(PROMPTS, **settings)
    assert message in str(error.value)


def test_a_layer_that_a_vector_lacks_is_refused() -> None:
    with pytest.raises(VectorError, match="no direction at layer 6"):
        made_vector().at(6)


def test_prompts_and_answers_that_are_none_are_refused(engine: vsteer.Engine) -> None:
    with pytest.raises(UsageError, match="prompt 2 is no text"):
        engine.generate(["Why?", " "])
    for answers in ([], [["Yes"], ["No"]], [["Yes"], ["No", "Yes"], ["No"]], ["Yes", " "]):
        with pytest.raises(UsageError, match="answers"):
            engine.score(PROMPTS, answers)
    with pytest.raises(UsageError, match="prompt 1 can't be asked"):
        engine.score(PROMPTS, ["Yes", "Yes"])


def test_answers_may_differ_by_prompt_and_letters_are_scored_as_letters(engine: vsteer.Engine) -> None:
    each = engine.score(PROMPTS[:2], [["Good", "Bad"], ["Wet", "Dry"]])
    assert each[0].tolist() == engine.score(PROMPTS[0], ["Good", "Bad"])[0].tolist()
    assert each[1].tolist() == engine.score(PROMPTS[1], ["Wet", "Dry"])[0].tolist()
    question = "Tea?\n\nChoices:\n(A) Yes\n(B) No"
    letters = engine.score(question, ["(A)", "(B)"])
    assert letters.shape == (1, 2)
    # a letter is one token of the fake's tokenizer, so one request had both
    assert (letters < 0).all()
    assert engine.score(question, ["A", "B"]).tolist() == letters.tolist()


def test_a_system_prompt_that_the_template_leaves_out_is_refused(
    engine: vsteer.Engine,
) -> None:
    engine.tokenizer.chat_template = "{{ messages[-1]['content'] }}:"
    with pytest.raises(UsageError, match="leaves the system prompt out"):
        engine.generate(PROMPTS, system="Be brief.")


def test_an_engine_says_what_it_is_and_is_closed(engines: list[Recording]) -> None:
    with vsteer.Engine("tiny-llama") as engine:
        assert repr(engine) == "<engine tiny-llama: 6 layers>"
    assert engines[0].closed
    assert repr(engine).endswith("closed>")
    with pytest.raises(UsageError, match="the engine is closed"):
        engine.generate(PROMPTS)
    with pytest.raises(VsteerError, match=r"(?s)enforce_eagr.*did you mean 'enforce_eager'"):
        vsteer.Engine("tiny-llama", enforce_eagr=True)
    with pytest.raises(UsageError, match="no operation is called 'ablat'"):
        vsteer.Engine("tiny-llama", operations=["ablat"])
    with pytest.raises(VsteerError, match="no model 'tiny-lama'"):
        vsteer.Engine("tiny-lama")


def test_settings_reach_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Any] = []

    def load(*settings: Any) -> Recording:
        given.extend(settings)
        return Recording(settings[0])

    monkeypatch.setattr("vsteer.api.engine.load_named", load)
    vsteer.Engine(
        "tiny-llama", dtype="float32", terms=2, operations=["ablate"], enforce_eager=True, max_model_len=512
    )
    _, dtype, options, capacity, quantization = given
    assert (dtype, quantization) == ("float32", None)
    assert options == EngineOptions(enforce_eager=True, max_model_len=512)
    assert (capacity.terms, len(capacity.modules), capacity.captures > 0) == (2, 1, True)


def test_it_is_silent_unless_progress_is_wanted(
    engines: list[Recording], capfd: pytest.CaptureFixture[str]
) -> None:
    vsteer.Engine("tiny-llama").generate(PROMPTS, steer=made_vector().at(3))
    assert capfd.readouterr() == ("", "")
    vsteer.Engine("tiny-llama", progress=True).generate(PROMPTS)
    assert "loading it into vLLM" in capfd.readouterr().err
