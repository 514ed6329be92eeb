"""`vsteer mechanism` from texts to tables, on a tiny model: resumed, refused, and with its controls."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result

from vsteer import cli
from vsteer.models import resolve
from vsteer.store.mechanism import SCHEMAS
from vsteer.vectors.files import load, save
from vsteer.vectors.vector import SteeringVector

LAYER, WIDTH = 2, 128
RESPONSES = {"How is it there?": "We saw a tent at the gate.", "Who came?": "All of us, and one more."}
QUESTIONS = [
    {"question": "Was it good?", "answer_matching_behavior": "Yes", "answer_not_matching_behavior": "No"},
    {"question": "Is it over?", "answer_matching_behavior": "No", "answer_not_matching_behavior": "Yes"},
]


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cli.main, ["mechanism", *map(str, arguments)])


def table(folder: Path, name: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = pq.read_table(folder / f"{name}.parquet").to_pylist()
    return found


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A vector, texts and questions."""
    resolve("tiny-llama")
    folder = tmp_path_factory.mktemp("given")
    rng = np.random.default_rng(3)
    directions = {layer: rng.standard_normal(WIDTH).astype(np.float32) for layer in range(6)}
    save(SteeringVector("push", directions), folder / "push.safetensors")
    texts = [
        {"prompt": prompt, "response": response, "written": written}
        for written in ("steered", "unsteered")
        for prompt, response in RESPONSES.items()
    ]
    (folder / "texts.jsonl").write_text("".join(f"{json.dumps(text)}\n" for text in texts))
    (folder / "questions.json").write_text(json.dumps(QUESTIONS))
    return folder


def attribute(given: Path, out: Path, *more: object) -> Result:
    return run(
        "attribute", "tiny-llama", given / "push.safetensors", given / "texts.jsonl", "--layer", LAYER,
        "--steps", 4, "--out", out, *more,
    )  # fmt: skip


@pytest.fixture(scope="module")
def made(given: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made") / "push"
    done = attribute(given, folder, "--exact", 20, "--controls", 2)
    assert done.exit_code == 0, done.output
    return folder


def test_attribute_writes_its_tables(made: Path) -> None:
    edges, nodes, positions = table(made, "edges"), table(made, "nodes"), table(made, "positions")
    assert len({(row["control"], row["control_index"]) for row in edges}) == 3
    own = [row for row in edges if row["control"] == ""]
    assert sum(row["effect"] is not None for row in own) == 20
    by_node: dict[tuple[Any, ...], float] = {}
    for row in own:
        at = (row["writer"], row["writer_layer"], row["writer_head"])
        by_node[at] = by_node.get(at, 0.0) + row["score"]
    for row in nodes:
        if row["control"] == "":
            at = (row["writer"], row["writer_layer"], row["writer_head"])
            assert row["score"] == pytest.approx(by_node[at])
    assert positions
    assert all(row["steered_token_id"] != row["unsteered_token_id"] for row in positions)
    for name in ("edges", "nodes", "positions", "dimensions"):
        assert pq.read_schema(made / f"{name}.parquet").names == SCHEMAS[name].names


def test_means_are_over_the_listed_positions_of_all_texts(made: Path) -> None:
    """The mean of the two kinds of texts, each weighted by its positions."""
    positions = table(made, "positions")
    weight = {
        written: sum(row["written"] == written for row in positions) / len(positions)
        for written in ("steered", "unsteered")
    }
    for row in table(made, "edges")[::7]:
        parts = [(weight[name], row[f"score_in_{name}"]) for name in weight]
        assert row["score"] == pytest.approx(sum(w * part for w, part in parts if part is not None))


def test_an_interrupted_attribution_goes_on(given: Path, made: Path, tmp_path: Path) -> None:
    folder = tmp_path / "again"
    shutil.copytree(made, folder)
    texts = sorted(path for path in (folder / "done").iterdir() if not path.name.endswith("-exact.npz"))
    assert len(texts) == 4
    texts[0].unlink()
    texts[1].write_bytes(texts[1].read_bytes()[:100])  # torn
    kept = texts[2].stat().st_mtime_ns
    (folder / "edges.parquet").unlink()
    done = attribute(given, folder, "--exact", 20, "--controls", 2)
    assert done.exit_code == 0, done.output
    assert texts[2].stat().st_mtime_ns == kept
    assert table(folder, "edges") == table(made, "edges")


def test_a_folder_of_other_settings_is_refused(given: Path, made: Path) -> None:
    done = attribute(given, made, "--multiplier", 2, "--controls", 2)
    assert done.exit_code == 2
    assert "was begun with multiplier 1.0, not 2.0" in done.stderr


def test_what_is_wrong_is_one_message(given: Path, made: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"prompt": "a", "response": "b", "written": "me"}\n')
    wrong = {
        "written is steered or unsteered": (
            "attribute", "tiny-llama", given / "push.safetensors", bad, "--layer", 2, "--out", tmp_path / "a"
        ),
        "the model's last": (
            "attribute", "tiny-llama", given / "push.safetensors", given / "texts.jsonl", "--layer", 5,
            "--out", tmp_path / "b",
        ),
        "no direction at layer 9": (
            "attribute", "tiny-llama", given / "push.safetensors", given / "texts.jsonl", "--layer", 9,
            "--out", tmp_path / "c",
        ),
        "unknown positions": (
            "attribute", "tiny-llama", given / "push.safetensors", given / "texts.jsonl", "--layer", 2,
            "--positions", "everywhere",
        ),
        "is no folder of an attribution": ("circuit", tmp_path),
        "--sizes is a list": ("circuit", made, "--sizes", "many"),
        "nothing is asked": ("freeze", made),
        "Invalid value for '--dtype'": (
            "attribute", "tiny-llama", given / "push.safetensors", given / "texts.jsonl", "--layer", 2,
            "--dtype", "int4",
        ),
        "can't be used": ("values", made, "--device", "nowhere"),
    }  # fmt: skip
    for message, arguments in wrong.items():
        done = run(*arguments)
        assert message in done.stderr, (message, done.output)
        assert len(done.stderr) < 900
        assert "Traceback" not in done.output


def test_a_vector_without_effect_has_no_positions(given: Path, tmp_path: Path) -> None:
    done = attribute(given, tmp_path / "none", "--multiplier", "1e-9")
    assert "in none of the 4 texts does the steering change a most likely token" in done.stderr


def test_circuits_are_measured_beside_random_ones(made: Path) -> None:
    done = run("circuit", made, "--sizes", "10,40,80")
    assert done.exit_code == 0, done.output
    rows = table(made, "circuits")
    own = {row["size"]: row for row in rows if row["control"] == ""}
    assert set(own) == {10, 40, 80}
    assert sum(row["control"] == "random" for row in rows) == 6
    for row in rows:
        assert row["edges"] >= row["size"] == own[row["size"]]["size"]
    assert own[80]["logprob"] > own[10]["logprob"]
    overlaps = table(made, "circuit_overlaps")
    assert {row["other"] for row in overlaps} == {"push-random-0", "push-random-1"}
    assert all(abs(row["cosine"]) < 0.4 and 0 <= row["overlap"] <= 1 for row in overlaps)


def test_freezing_everything_or_nothing(given: Path, made: Path) -> None:
    """The log-odds are those of plain transformers; with all frozen the vector goes straight to the end."""
    done = run("freeze", made, "--questions", given / "questions.json", "--prompts", given / "texts.jsonl",
               "--max-tokens", 4)  # fmt: skip
    assert done.exit_code == 0, done.output
    rows = table(made, "freezing")
    odds = [row for row in rows if row["measure"] == "log_odds"]
    assert len(odds) == 2 * 3 * 7
    texts = [row for row in rows if row["measure"] == "refusal"]
    assert len(texts) == 2 * 3 * 7
    assert {row["value"] for row in texts} <= {0.0, 1.0}
    steered = [row["value"] for row in odds if row["condition"] == "steered" and row["control"] == ""]
    assert steered == pytest.approx(log_odds(given, 1.0), abs=1e-3)
    assert [row["unsteered"] for row in odds if row["condition"] == "steered" and row["control"] == ""] == (
        pytest.approx(log_odds(given, 0.0), abs=1e-3)
    )


def test_costs_that_freeze_prints_are_those_of_plain_loops(given: Path, made: Path) -> None:
    done = run("freeze", made, "--questions", given / "questions.json")
    rows = table(made, "freezing")

    def effect(condition: str, control: str) -> float:
        found = [
            row["value"] - row["unsteered"]
            for row in rows
            if (row["condition"], row["control"]) == (condition, control)
        ]
        return float(np.mean(found))

    printed = done.stdout.replace("\n", " ")
    for condition in ("weights", "values", "mlps"):
        assert f"{effect(condition, ''):.4f}" in printed
        assert f"{1 - effect(condition, '') / effect('steered', ''):.4f}" in printed
        assert f"{effect(condition, 'random'):.4f}" in printed


@pytest.mark.parametrize(
    ("command", "name", "kept", "count"),
    [
        (
            ("freeze", "--questions", "{questions}", "--prompts", "{texts}", "--max-tokens", 3),
            "freezing",
            "freeze-*",
            4,
        ),
        (("circuit", "--sizes", "10,40"), "circuits", "*-circuits.npz", 2),
    ],
)
def test_what_was_interrupted_goes_on(
    given: Path, made: Path, tmp_path: Path, command: tuple[Any, ...], name: str, kept: str, count: int
) -> None:
    folder = tmp_path / "again"
    shutil.copytree(made, folder)
    for part in folder.glob(f"done/{kept}"):
        part.unlink()
    verb, *options = (
        str(part).format(questions=given / "questions.json", texts=given / "texts.jsonl") for part in command
    )
    assert run(verb, folder, *options).exit_code == 0
    whole = table(folder, name)
    (folder / f"{name}.parquet").unlink()
    parts = sorted(folder.glob(f"done/{kept}"))
    assert len(parts) == count
    parts[0].unlink()
    times = [part.stat().st_mtime_ns for part in parts[1:]]
    assert run(verb, folder, *options).exit_code == 0
    assert [part.stat().st_mtime_ns for part in parts[1:]] == times
    assert parts[0].exists()
    assert table(folder, name) == whole


def log_odds(given: Path, multiplier: float) -> list[float]:
    """By transformers with a hook."""
    import torch

    from vsteer.datasets.readers import read_questions
    from vsteer.evaluations.choice import ChoiceEvaluation
    from vsteer.models.hugging_face import load_model, load_tokenizer

    folder = resolve("tiny-llama").model
    model, tokenizer = load_model(folder).eval(), load_tokenizer(folder)
    push = multiplier * torch.from_numpy(load(given / "push.safetensors").directions[LAYER])
    model.model.layers[LAYER].register_forward_hook(lambda module, inputs, output: output + push)
    found = []
    for item in read_questions(given / "questions.json").items:
        rendering = ChoiceEvaluation(kind="choice", data=("x",)).render(tokenizer, item, None)
        sums = []
        for tokens in rendering.answers:
            ids = [*rendering.prompt.token_ids, *tokens]
            with torch.no_grad():
                logp = model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
            start = len(ids) - len(tokens)
            sums.append(sum(float(logp[start - 1 + n, token]) for n, token in enumerate(tokens)))
        found.append(sums[item.matching] - sums[1 - item.matching])
    return found


def test_values_are_in_words_beside_a_random_vectors(made: Path) -> None:
    done = run("values", made, "--tokens", 5, "--show", 2)
    assert done.exit_code == 0, done.output
    rows = table(made, "head_values")
    assert len(rows) == 3 * 3 * 4 * 5
    for at in range(0, len(rows), 5):
        logits = [row["logit"] for row in rows[at : at + 5]]
        assert logits == sorted(logits, reverse=True)
    assert "random" in done.stdout


def test_sparse_vectors_are_as_long_and_as_sparse_as_they_say(given: Path, made: Path) -> None:
    done = run("sparsify", made, "--ratios", "0.5,1", "--data", given / "questions.json")
    assert done.exit_code == 0, done.output
    whole = load(given / "push.safetensors").directions[LAYER]
    scores = np.array([row["score"] for row in table(made, "dimensions") if row["control"] == ""])
    rows = table(made, "sparsity")
    assert [row["method"] for row in rows] == 2 * ["attribution", "effect", "random", "magnitude"]
    for row in rows:
        sparse = load(made / row["file"]).directions[LAYER]
        kept = sparse != 0
        assert kept.sum() == row["dimensions"]
        assert np.linalg.norm(sparse) == pytest.approx(np.linalg.norm(whole), rel=1e-6)
        ratio = sparse[kept] / whole[kept]
        assert ratio == pytest.approx(ratio[0], rel=1e-5)
        wanted = {
            # |e_i| / |e| >= r |s_i| / |s|
            "attribution": np.abs(scores) / np.linalg.norm(scores)
            >= row["ratio"] * np.abs(whole) / np.linalg.norm(whole),
            "effect": np.argsort(np.argsort(-np.abs(scores))) < row["dimensions"],
            "magnitude": np.argsort(np.argsort(-np.abs(whole))) < row["dimensions"],
        }
        if row["method"] in wanted:
            assert (kept == wanted[row["method"]]).all()


def test_the_grid_of_sparse_vectors_can_be_planned(given: Path, made: Path) -> None:
    run("sparsify", made, "--ratios", "1", "--data", given / "questions.json")
    done = CliRunner().invoke(cli.main, ["plan", str(made / "sparsity.yaml")])
    assert done.exit_code == 0, done.output
    assert "push-attribution-1" in done.output
