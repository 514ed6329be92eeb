"""Learned vectors: losses by hand, gradients by finite differences, a toy with a known answer, going on."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.numpy import load_file, save_file

from tests.alone import AS_IN_MAIN
from vsteer import models
from vsteer.cli.vectors import vectors
from vsteer.datasets.readers import read_contrast
from vsteer.engine.proof.reference import ReferenceEngine
from vsteer.models import tiny_llama
from vsteer.protocol import Prompt, Request, Steering, Term
from vsteer.vectors.files import load
from vsteer.vectors.norms import length
from vsteer.vectors.recipe import make_recipe, model_origin
from vsteer.vectors.training import learn as learning
from vsteer.vectors.training import steered
from vsteer.vectors.training.learner import Learner
from vsteer.vectors.training.losses import ntp_loss, reps_loss, reps_weight
from vsteer.vectors.training.settings import Settings
from vsteer.vectors.training.steered import batches, score
from vsteer.vectors.training.texts import (
    Pair,
    Text,
    both_signs,
    held_out,
    read_pairs,
    with_shuffled_labels,
)

WORDS = ("rain", "salt", "wool", "iron", "moss", "clay", "dust", "corn", "silk", "lime")
SORTS = ("ok", "new", "old", "dear", "low", "wet")


def write_data(folder: Path, positive: str = "good", negative: str = "bad", sorts: int = 1) -> Path:
    """As many pairs as there are words, for each sort."""
    prompts = [f"Is {word} {sort}?" for sort in SORTS[:sorts] for word in WORDS]
    lines = [{"prompt": prompt, "positive": positive, "negative": negative} for prompt in prompts]
    path = folder / "data.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    return path


@pytest.fixture(scope="module")
def reference() -> ReferenceEngine:
    return ReferenceEngine(models.resolve("tiny-llama").model, dtype="float64")


@pytest.fixture
def exact(reference: ReferenceEngine, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The model with every step in float64: Hugging Face's norms and softmax are in float32."""

    def norm(module: Any, x: torch.Tensor) -> torch.Tensor:
        scaled: torch.Tensor = x / (x.square().mean(-1, keepdim=True) + module.variance_epsilon).sqrt()
        weighted: torch.Tensor = module.weight * scaled
        return weighted

    for module in reference.model.modules():
        if type(module).__name__ == "LlamaRMSNorm":
            monkeypatch.setattr(module, "forward", norm.__get__(module))
    monkeypatch.setattr(reference.model.config, "_attn_implementation", "sdpa")
    return reference.model


def pairs(reference: ReferenceEngine, folder: Path, tokens: int = 64) -> list[Pair]:
    data = read_contrast(write_data(folder))
    return read_pairs(reference.tokenizer, data, tokens, "all", None, 2048)  # type: ignore[arg-type]


def test_losses_by_hand() -> None:
    wanted, unwanted = torch.tensor([-1.0, -2.0]), torch.tensor([-1.0, -1.0, -4.0])
    assert float(ntp_loss(wanted)) == 1.5
    # the wanted response is the less likely one by 190 nats, of which 0.02 weigh
    weight = reps_weight(-200.0, -10.0, 0.02)
    assert weight == pytest.approx(3.8)
    assert reps_weight(-10.0, -200.0, 0.02) == 1.0
    # 3.8 x -1.5 - -2 = -3.7, and -log sigmoid(-3.7) = log(1 + e^3.7)
    assert float(reps_loss(wanted, unwanted, weight)) == pytest.approx(math.log(1 + math.exp(3.7)), rel=1e-6)


def test_scores_are_those_of_the_reference(reference: ReferenceEngine, tmp_path: Path) -> None:
    """Which has hooks of its own, and runs one text at a time."""
    direction = np.random.default_rng(0).standard_normal(128).astype(np.float32)
    texts = [t for pair in pairs(reference, tmp_path)[:2] for t in (pair.positive, pair.negative)]
    texts.append(Text(texts[0].token_ids, texts[0].start, (3, 5)))
    factors = [4.0, -4.0, 0.0, 1.0, 2.0]
    reference.load({"v": {2: direction}}, [])
    for text, factor, ours in zip(
        texts, factors, score(reference.model, 2, torch.tensor(direction), texts, factors), strict=True
    ):
        prompt = Prompt.plain(text.token_ids[: text.start])
        steering = Steering((Term("v", 2, factor),), text.span)
        answer = text.token_ids[text.start :]
        logprobs = reference.score(Request("0", prompt, steering), answer)
        expected = [float(logprobs[n, token]) for n, token in enumerate(answer)]
        assert ours.logprobs.tolist() == pytest.approx(expected, abs=1e-5)
        assert ours.match == np.mean(
            [int(row.argmax()) == t for row, t in zip(logprobs, answer, strict=True)]
        )


@pytest.mark.parametrize("method", ["ntp", "reps"])
def test_gradients_are_finite_differences(
    reference: ReferenceEngine, exact: Any, tmp_path: Path, method: Any
) -> None:
    learner = Learner(exact, Settings(method, k=1.0), pairs(reference, tmp_path)[:3], [])
    assert method == "ntp" or any(example.weight > 1 for example in learner.learned)
    factors = [2.0, 4.0, 6.0, 2.0, 20.0, 8.0]
    rng = np.random.default_rng(1)
    vector = torch.tensor(0.05 * rng.standard_normal(128), requires_grad=True)

    def loss(at: torch.Tensor) -> torch.Tensor:
        return torch.stack([part for part, _ in learner.losses(3, at, learner.learned, factors)]).sum()

    (gradient,) = torch.autograd.grad(loss(vector), vector)
    for _ in range(4):
        along = torch.tensor(rng.standard_normal(128))
        with torch.no_grad():
            measured = (loss(vector + 1e-6 * along) - loss(vector - 1e-6 * along)) / 2e-6
        assert float(measured) == pytest.approx(float(gradient @ along), rel=1e-6)


def test_losses_do_not_depend_on_the_batches(
    reference: ReferenceEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learner = Learner(reference.model, Settings("reps"), pairs(reference, tmp_path)[:4], [])
    vector = torch.tensor(np.random.default_rng(1).standard_normal(128))

    def loss() -> tuple[int, float]:
        with torch.no_grad():
            parts = [float(part) for part, _ in learner.losses(1, vector, learner.learned, [1.0] * 8)]
        return len(parts), sum(parts)

    count, together = loss()
    monkeypatch.setattr(steered, "MOST_TOKENS", 1)
    batches, alone = loss()
    assert (count, batches) == (1, 8)
    assert alone == pytest.approx(together, rel=1e-6)


def test_batches_stay_within_tokens_and_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    short, wide = Text((1,) * 10, 8, (0, 10)), Text((1,) * 30, 5, (0, 30))
    groups: Sequence[list[Text]] = [[short], [short], [short], [wide], [short, short]]
    monkeypatch.setattr(steered, "MOST_TOKENS", 60)
    # two short texts fill 20 tokens and the third 30; the wide one would make four rows of 30
    assert list(batches(groups, 1)) == [[0, 1, 2], [3], [4]]
    monkeypatch.setattr(steered, "MOST_LOGITS", 40)
    assert list(batches(groups, 10)) == [[0, 1], [2], [3], [4]]


def test_pairs_are_cut_and_steered_where_asked(reference: ReferenceEngine, tmp_path: Path) -> None:
    data, tokenizer = read_contrast(write_data(tmp_path)), reference.tokenizer
    whole = pairs(reference, tmp_path)[0].positive
    assert tokenizer.decode(whole.token_ids[whole.start :]) == "good"
    (after, *_) = read_pairs(tokenizer, data, 1, "after_prompt", None, 2048)  # type: ignore[arg-type]
    assert after.positive.token_ids == whole.token_ids[: whole.start + 1]
    assert after.positive.span[0] == whole.start - 1


def test_held_out_pairs_and_shuffled_labels() -> None:
    learned, held = held_out(10, 0.2, seed=3)
    assert sorted(learned + held) == list(range(10))
    assert len(held) == 2
    assert held_out(10, 0.2, seed=3) == (learned, held)
    assert held_out(2, 0.0, 0)[1]
    one, other = Text((1, 2), 1, (0, 2)), Text((1, 3), 1, (0, 2))
    shuffled = with_shuffled_labels([Pair(one, other)] * 200, seed=0)
    assert 70 < sum(pair == Pair(other, one) for pair in shuffled) < 130
    plus, minus = both_signs([Pair(one, other)])
    assert (plus.sign, plus.wanted, minus.sign, minus.wanted) == (1, one, -1, other)


# --- the toy: behind the layer nothing happens but the last norm, and only two tokens have logits


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """The model's folder, and the direction in which A gains on B most."""
    folder = tmp_path_factory.mktemp("toy")
    tiny_llama.make(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 2}))
    weights = load_file(folder / "model.safetensors")
    weights = {name: of for name, of in weights.items() if not re.search(r"layers\.[2-5]", name)}
    for name, values in weights.items():
        if name.endswith(("o_proj.weight", "down_proj.weight", "lm_head.weight")):
            values[:] = 0
    weights["model.norm.weight"][:] = 1
    vocabulary = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
    rows = np.random.default_rng(5).standard_normal((2, 128)) * 0.02
    for token, row in zip("AB", rows, strict=True):
        weights["lm_head.weight"][vocabulary[token]] = row
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder, rows[0] - rows[1]


def command(model: str | Path, *arguments: str | Path) -> Result:
    return CliRunner().invoke(vectors, ["train", *map(str, (model, *arguments))], **AS_IN_MAIN)


@pytest.mark.parametrize("method", ["ntp", "reps"])
def test_the_best_direction_of_a_toy_is_found(toy: tuple[Path, Any], tmp_path: Path, method: str) -> None:
    folder, best = toy
    out = tmp_path / "v.safetensors"
    data = write_data(tmp_path, "A", "B", sorts=len(SORTS))
    plot = ("--plot", tmp_path / "v.svg") if method == "ntp" else ()
    # with the defaults, which are the paper's
    done = command(folder, data, "--layer", "1", "--method", method, "-o", out, *plot)
    assert done.exit_code == 0, done.output
    vector = load(out)
    found = vector.directions[1]
    assert float(found @ best) / (length(found) * np.linalg.norm(best)) >= 0.95
    # as long as the mean difference of all pairs is, which Hugging Face gives too
    engine = ReferenceEngine(str(folder))
    recipe = make_recipe(str(data))
    with recipe.read(
        engine, engine.tokenizer, model_origin(str(folder), models.resolve(str(folder)))
    ) as all_:
        assert length(found) == pytest.approx(length(all_.vector().directions[1]), rel=1e-5)
    assert (vector.origin.method, vector.origin.pairs, vector.origin.norm) == (method, 60, "raw")
    assert "48 pairs" in vector.origin.derived[0]
    assert not plot or plot[1].read_text().startswith("<svg")
    rows = pq.read_table(out.with_suffix(".training.parquet")).to_pylist()
    learned = [row for row in rows if row["vector"] == "learned"]
    assert [row["epoch"] for row in learned] == list(range(1, 11))
    (chosen,) = [row for row in rows if row["chosen"]]
    assert chosen["loss"] == min(row["loss"] for row in learned)
    controls = {row["vector"]: row["loss"] for row in rows if row["epoch"] is None}
    assert set(controls) == {"unsteered", "mean difference", *(f"random {n}" for n in range(5))}
    # without a vector both letters are as likely but for chance, and no random one is better
    assert chosen["loss"] < min(controls["unsteered"], *(controls[f"random {n}"] for n in range(5)))
    assert not out.with_suffix(".checkpoint").exists()


def test_an_interrupted_learning_ends_in_the_same_numbers(
    toy: tuple[Path, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _ = toy
    data, whole, broken = (
        write_data(tmp_path, "A", "B"),
        tmp_path / "w.safetensors",
        tmp_path / "b.safetensors",
    )
    options = ("--layer", "1", "--layer", "0", "--epochs", "2", "--name", "v")
    assert command(folder, data, *options, "-o", whole).exit_code == 0
    monkeypatch.setattr(learning, "OFTEN", 0.0)
    advance, taken = Learner.advance, []

    def cut(*arguments: Any) -> Any:
        for progress in advance(*arguments):
            taken.append(progress.step)
            yield progress
            if len(taken) == 5:
                raise KeyboardInterrupt

    monkeypatch.setattr(Learner, "advance", cut)
    assert command(folder, data, *options, "-o", broken).exit_code != 0
    assert broken.with_suffix(".checkpoint").exists()
    other = command(folder, data, *options, "-o", broken, "--seed", "1")
    assert "other settings" in str(other.exception)
    assert command(folder, data, *options, "-o", broken).exit_code == 0
    # three steps an epoch and two epochs, of two layers
    assert taken == [1, 2, 3, 4, 5, 6, 1, 2, 3, 4, 5, 6]
    assert whole.read_bytes() == broken.read_bytes()
    tables = [path.with_suffix(".training.parquet") for path in (whole, broken)]
    assert pq.read_table(tables[0]).equals(pq.read_table(tables[1]))


@pytest.mark.parametrize(
    ("data", "arguments", "message"),
    [
        ("refusal/instructions", (), "two unpaired sets"),
        ("{data}", ("--layer", "6"), "no layer 6"),
        ("{data}", ("-o", "v.gguf"), "does not end in .safetensors"),
        ("{data}", ("-o", "there.safetensors"), "exists"),
        ("{data}", ("--positions", "generated", "--tokens", "1"), "no token that acts"),
        ("{data}", ("--device", "abacus"), "can't be used"),
        ("{alike}", ("--tokens", "1"), "alike in their first 1 tokens"),
        ("{data}", ("--plot", "v.pdf"), "neither .png nor .svg"),
        ("{data}", ("--mean-difference", "no.safetensors"), "could not read"),
    ],
)
def test_what_is_wrong_is_one_message(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    data: str,
    arguments: tuple[str, ...],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("there.safetensors").touch()
    Path("alike.jsonl").write_text(
        '{"prompt": "Is it?", "positive": "good sir", "negative": "good bye"}\n' * 3
    )
    named = data.format(data=write_data(tmp_path), alike="alike.jsonl")
    done = command("tiny-llama", named, "--layer", "1", *arguments)
    assert message in str(done.exception)
    assert len(str(done.exception)) < 600
