"""iti: probes, the choice of heads, and the vector, against a model whose every step is a line of numpy.

The model has uniform attention and no MLP. One of its heads reads the dimension in which the answers differ.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result
from numpy.typing import NDArray
from safetensors.numpy import save_file

from tests.alone import AS_IN_MAIN
from vsteer.cli.extract import extract
from vsteer.datasets.readers import read_contrast
from vsteer.engine.proof.reference import ReferenceEngine
from vsteer.errors import UsageError
from vsteer.grid.problems import GridError
from vsteer.grid.spec import EngineSpec, read_grid
from vsteer.models.hugging_face import load_tokenizer
from vsteer.models.tiny_llama import CONFIG, write_json, write_tokenizer
from vsteer.plan.plan import Plan, make_plans
from vsteer.run.start import run_grid
from vsteer.vectors.activations import Activations
from vsteer.vectors.files import load
from vsteer.vectors.members import members
from vsteer.vectors.methods.iti import best_heads, fit_probe, head_directions, probed_heads
from vsteer.vectors.recipe import make_recipe

torch = pytest.importorskip("torch")

LAYERS, HEADS, WIDTH, HIDDEN = 3, 4, 8, 32
PLANTED = (2, 1)
Floats = NDArray[Any]


def weights_of(vocab: int, good: int, bad: int) -> dict[str, Floats]:
    rng = np.random.default_rng(0)

    def normal(*shape: int, std: float) -> Floats:
        return (std * rng.standard_normal(shape)).astype(np.float32)

    embedding = normal(vocab, HIDDEN, std=1.0)
    embedding[:, 0] = 0
    embedding[bad] = embedding[good]
    embedding[good, 0], embedding[bad, 0] = 3, -3
    made = {
        "model.embed_tokens.weight": embedding,
        "model.norm.weight": np.ones(HIDDEN, np.float32),
        "lm_head.weight": normal(vocab, HIDDEN, std=0.2),
    }
    for layer in range(LAYERS):
        block = f"model.layers.{layer}"
        values, output = normal(HIDDEN, HIDDEN, std=0.3), normal(HIDDEN, HIDDEN, std=0.3)
        if layer < PLANTED[0]:
            output[0] = 0  # or the stream would be longer for one of the two answers, which all heads read
        values[:, 0] = 0  # no head reads the first dimension,
        if layer == PLANTED[0]:  # apart from one
            planted = slice(PLANTED[1] * WIDTH, (PLANTED[1] + 1) * WIDTH)
            values[planted] *= 0.05
            values[planted, 0] = normal(WIDTH, std=1.0)
        made |= {
            f"{block}.input_layernorm.weight": np.ones(HIDDEN, np.float32),
            f"{block}.post_attention_layernorm.weight": np.ones(HIDDEN, np.float32),
            f"{block}.self_attn.q_proj.weight": np.zeros((HIDDEN, HIDDEN), np.float32),
            f"{block}.self_attn.k_proj.weight": np.zeros((HIDDEN, HIDDEN), np.float32),
            f"{block}.self_attn.v_proj.weight": values,
            f"{block}.self_attn.o_proj.weight": output,
            f"{block}.mlp.gate_proj.weight": normal(HIDDEN, HIDDEN, std=0.1),
            f"{block}.mlp.up_proj.weight": normal(HIDDEN, HIDDEN, std=0.1),
            f"{block}.mlp.down_proj.weight": np.zeros((HIDDEN, HIDDEN), np.float32),
        }
    return made


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model, `pairs.jsonl` and a grid."""
    folder = tmp_path_factory.mktemp("iti")
    model = folder / "model"
    model.mkdir()
    vocab = write_tokenizer(model)
    sizes = {"hidden_size": HIDDEN, "intermediate_size": HIDDEN, "num_hidden_layers": LAYERS}
    heads = {"num_attention_heads": HEADS, "num_key_value_heads": HEADS, "head_dim": WIDTH}
    write_json(model / "config.json", CONFIG | sizes | heads | {"vocab_size": vocab})
    write_json(model / "generation_config.json", {"bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 0})
    tokenizer = load_tokenizer(model)
    good, bad = (tokenizer.encode(letter)[-1] for letter in "GB")
    save_file(weights_of(vocab, good, bad), model / "model.safetensors", metadata={"format": "pt"})
    words = np.random.default_rng(1).choice(list("tabelinosu"), (40, 12))
    lines = [{"prompt": "".join(one), "positive": "G", "negative": "B"} for one in words]
    (folder / "pairs.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return folder


def head_outputs(folder: Path) -> Floats:
    """[layer, member, head, width] at each text's last token, worked out without torch."""
    weights = load_weights(folder)
    found = []
    tokenizer = load_tokenizer(folder / "model")
    for member in members(tokenizer, read_contrast(folder / "pairs.jsonl"), "last"):
        stream = weights["model.embed_tokens.weight"][list(member.prompt.token_ids)]
        of_layers = []
        for layer in range(LAYERS):
            of = f"model.layers.{layer}.self_attn"
            normed = stream / np.sqrt((stream**2).mean(axis=1, keepdims=True) + 1e-5)
            values = normed @ weights[f"{of}.v_proj.weight"].T
            # every token looks at itself and at those before it alike
            heads = np.cumsum(values, axis=0) / np.arange(1, len(values) + 1)[:, None]
            of_layers.append(heads[-1].reshape(HEADS, WIDTH))
            stream = stream + heads @ weights[f"{of}.o_proj.weight"].T
        found.append(of_layers)
    return np.array(found).swapaxes(0, 1)


def load_weights(folder: Path) -> dict[str, Floats]:
    from safetensors.numpy import load_file

    return {
        name: one.astype(np.float64) for name, one in load_file(folder / "model/model.safetensors").items()
    }


def by_hand(folder: Path, chosen: list[tuple[int, int]]) -> dict[int, Floats]:
    weights, outputs = load_weights(folder), head_outputs(folder)
    expected: dict[int, Floats] = {}
    for layer, head in chosen:
        of_head = outputs[layer, :, head]
        difference = of_head[0::2].mean(axis=0) - of_head[1::2].mean(axis=0)
        unit = difference / np.sqrt((difference**2).sum())
        sigma = np.sqrt(((of_head @ unit - (of_head @ unit).mean()) ** 2).mean())
        columns = weights[f"model.layers.{layer}.self_attn.o_proj.weight"][
            :, head * WIDTH : (head + 1) * WIDTH
        ]
        expected[layer] = expected.get(layer, 0) + sigma * (columns @ unit)
    return expected


def command(folder: Path, *arguments: object) -> Result:
    given = [folder / "model", folder / "pairs.jsonl", "--method", "iti", "--dtype", "float32", *arguments]
    return CliRunner().invoke(extract, list(map(str, given)), **AS_IN_MAIN)


def test_the_planted_head_is_found_and_written(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "v.safetensors"
    done = command(folder, "--heads", 1, "-o", out)
    assert done.exit_code == 0, done.output
    vector = load(out)
    expected = by_hand(folder, [PLANTED])
    assert vector.layers == (PLANTED[0],)
    assert vector.directions[PLANTED[0]] == pytest.approx(expected[PLANTED[0]], rel=1e-4, abs=1e-6)
    assert (vector.origin.where, vector.origin.method, vector.origin.pairs) == ("attention", "iti", 40)
    rows = pq.read_table(out.with_suffix(".heads.parquet")).to_pylist()
    assert [(row["layer"], row["head"]) for row in rows] == [
        (a, b) for a in range(LAYERS) for b in range(HEADS)
    ]
    assert [(row["layer"], row["head"]) for row in rows if row["chosen"]] == [PLANTED]
    # both members of a held-out pair look the same to every other head, so one of them is wrong
    for row in rows:
        planted = (row["layer"], row["head"]) == PLANTED
        assert row["held_out_accuracy"] == (1 if planted else 0.5)
    of_head = head_outputs(folder)[PLANTED[0], :, PLANTED[1]]
    along = of_head @ (unit := np.mean(of_head[0::2] - of_head[1::2], axis=0)) / np.linalg.norm(unit)
    (row,) = (row for row in rows if row["chosen"])
    assert row["deviation"] == pytest.approx(along.std(), rel=1e-4)
    assert row["separation"] == pytest.approx(np.linalg.norm(unit) / along.std(), rel=1e-4)


def test_heads_of_one_layer_are_summed_and_mapped_each_by_its_columns() -> None:
    rng = np.random.default_rng(3)
    positive = np.tile([True, False], 30)
    values, output = rng.standard_normal((60, 4, 5)), rng.standard_normal((7, 20))
    with activations(values.reshape(60, 20)) as outputs:
        values = outputs.chunks(0).__next__()[1].reshape(60, 4, 5)
        found = head_directions(outputs, positive, 4, [(0, 1), (0, 3)], lambda _, heads: output @ heads)
    expected = np.zeros(7)
    for head in (1, 3):
        difference = values[0::2, head].mean(axis=0) - values[1::2, head].mean(axis=0)
        unit = difference / np.linalg.norm(difference)
        expected += output[:, 5 * head : 5 * head + 5] @ unit * (values[:, head] @ unit).std()
    assert list(found) == [0]
    assert found[0] == pytest.approx(expected, rel=1e-9)


def test_the_same_data_makes_the_same_vector(folder: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        assert (
            command(folder, "--heads", 1, "--name", "v", "-o", tmp_path / f"{name}.safetensors").exit_code
            == 0
        )
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def activations(values: Floats) -> Activations:
    """Of one layer: [member, heads x width]."""
    made = Activations(1, *values.shape)
    for place, one in enumerate(values):
        made.put(place, one[None].astype(np.float32))
    return made


def test_a_pair_is_on_one_side_of_the_split() -> None:
    """Where a pair's members look the same, a probe that had learned from one would know the other."""
    rng = np.random.default_rng(0)
    pairs = 60
    values = np.repeat(rng.standard_normal((pairs, 400)) * 3, 2, axis=0)
    positive = np.tile([True, False], pairs)
    with activations(values) as outputs:
        (head,) = probed_heads(outputs, positive, 1)
    assert head.held_out_accuracy == 0.5


def test_labels_without_a_meaning_are_learned_and_not_held_out() -> None:
    rng = np.random.default_rng(0)
    values, positive = 3 * rng.standard_normal((200, 4 * 120)), np.tile([True, False], 100)
    with activations(values) as outputs:
        heads = probed_heads(outputs, positive, 4)
    assert all(head.learned_accuracy > 0.95 for head in heads)
    assert 0.3 < np.mean([head.held_out_accuracy for head in heads]) < 0.7


def test_a_probe_is_the_least_of_its_loss() -> None:
    """Against Newton's method, step by step."""
    rng = np.random.default_rng(0)
    values, positive = rng.standard_normal((50, 6)), rng.random(50) < 0.4
    wide, point = np.column_stack([values, np.ones(50)]), np.zeros(7)
    penalty = np.diag([1.0] * 6 + [0.0])
    for _ in range(30):
        p = 1 / (1 + np.exp(-wide @ point))
        gradient = wide.T @ (p - positive) + penalty @ point
        point -= np.linalg.solve(wide.T @ (wide * (p * (1 - p))[:, None]) + penalty, gradient)
    weights, bias = fit_probe(values, positive)
    assert [*weights, bias] == pytest.approx(point, abs=1e-4)


def test_the_best_heads_are_those_that_hold_out(folder: Path) -> None:
    rng = np.random.default_rng(2)
    positive = np.tile([True, False], 50)
    strength = np.array([0.0, 3.0, 0.3, 1.0])
    values = rng.standard_normal((100, 4, 5))
    values[:, :, 0] += np.where(positive, 1, -1)[:, None] * strength
    with activations(values.reshape(100, 20)) as outputs:
        heads = probed_heads(outputs, positive, 4)
    assert best_heads(heads, 1) == [(0, 1)]
    assert best_heads(heads, 2) == [(0, 1), (0, 3)]


GRID = """\
version: 1
name: try
model: {id: ./model, dtype: float32}
vectors: {v: {data: pairs.jsonl, method: iti, heads: 1}}
grid: [{vector: v, layers: {together: all}, where: attention, multipliers: [4]}]
controls: {random_vectors: 1}
evaluations: [{kind: choice, name: asked, data: pairs.jsonl, limit: 2}]
"""


def written(folder: Path, *pairs: str) -> Path:
    text = GRID
    for old, new in zip(pairs[::2], pairs[1::2], strict=True):
        assert old in text
        text = text.replace(old, new, 1)
    (folder / "grid.yaml").write_text(text)
    return folder / "grid.yaml"


def test_a_run_moves_the_heads_output(folder: Path) -> None:
    """A row's log-probabilities are those of Hugging Face with the head itself moved by 4 deviations."""

    def loaded(plan: Plan, spec: EngineSpec, extracts: bool) -> ReferenceEngine:
        assert not extracts or plan.vectors
        return ReferenceEngine(str(plan.facts.folder), dtype="float32")

    run = run_grid(written(folder), load=loaded).folder
    (extracted,) = (run / "vectors").glob("v-extracted-*.heads.parquet")
    assert sum(row["chosen"] for row in pq.read_table(extracted).to_pylist()) == 1
    rows = f"read_parquet('{run}/rows/*.parquet') r join read_parquet('{run}/configs.parquet') c"
    columns = "item_id, prompt_id, choices, choice_logprobs"
    where = "c.vector = 'v' and c.control = ''"
    found = duckdb.sql(f"select {columns} from {rows} using (config_id) where {where}").fetchall()
    assert len(found) == 2
    prompts = {row["prompt_id"]: row for row in pq.read_table(run / "prompts.parquet").to_pylist()}
    outputs = head_outputs(folder)[PLANTED[0], :, PLANTED[1]]
    unit = np.mean(outputs[0::2] - outputs[1::2], axis=0)
    unit /= np.linalg.norm(unit)
    moved = np.zeros(HIDDEN)
    moved[PLANTED[1] * WIDTH : (PLANTED[1] + 1) * WIDTH] = 4 * (outputs @ unit).std() * unit
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32)
    tokenizer = load_tokenizer(folder / "model")
    added = torch.from_numpy(moved).float()
    logits = {}
    for hooked in (False, True):
        projection = model.model.layers[PLANTED[0]].self_attn.o_proj
        if hooked:
            projection.register_forward_pre_hook(lambda _, inputs: (inputs[0] + added,))
        for _, prompt_id, choices, _ in found:
            ids = prompts[prompt_id]["token_ids"]
            with torch.no_grad():
                after = torch.log_softmax(model(torch.tensor([ids])).logits[0, -1], -1)
            logits[hooked, prompt_id] = [
                float(after[tokenizer.encode(choice.strip(), add_special_tokens=False)[0]])
                for choice in choices
            ]
    for _, prompt_id, _, logprobs in found:
        assert logprobs == pytest.approx(logits[True, prompt_id], abs=1e-4)
        assert logprobs != pytest.approx(logits[False, prompt_id], abs=1e-2)


@pytest.mark.parametrize(
    ("pairs", "line", "words"),
    [
        (("{together: all}", "all"), 5, "acts at all layers that have one of its heads, together"),
        (
            ("{together: all}", "{together: {from: 0, to: 1}}"),
            5,
            "acts at all layers that have one of its heads",
        ),
        ((", where: attention", ""), 5, "where add does not act"),
        (("where: attention", "operation: clamp"), 5, "where clamp does not act"),
        (("heads: 1", "heads: 13"), 4, "the model has 12 heads, and 13 are wanted"),
        (("dtype: float32", "quantization: fp8"), 4, "and vLLM alone quantises the model"),
        (("heads: 1", "heads: 0"), 4, "heads should be greater than or equal to 1"),
        (("method: iti", "method: pca"), 4, "pca chooses no heads"),
        (("heads: 1", "norm: [raw, unit]"), 4, "has no norm unit"),
        (("{random_vectors: 1}", "{shuffled_labels: 1}"), 6, "they would choose other heads"),
        (("{random_vectors: 1}", "{unrelated: 1}"), 6, "would have other heads than 'v'"),
        (
            ("data: pairs.jsonl, method", "data: refusal/instructions, method"),
            4,
            "from which iti makes no vector",
        ),
    ],
)
def test_what_is_wrong_is_one_message_with_its_line(
    folder: Path, pairs: tuple[str, ...], line: int, words: str
) -> None:
    with pytest.raises(GridError) as raised:
        make_plans(read_grid(written(folder, *pairs)))
    assert f"grid.yaml, line {line}: " in raised.value.message
    assert words in raised.value.message
    assert raised.value.hint


@pytest.mark.parametrize("family", ["Gemma2", "Gemma3", "Glm4", "Granite"])
def test_some_families_norm_or_scale_what_their_heads_give(family: str, tmp_path: Path) -> None:
    from vsteer.errors import UnsupportedError
    from vsteer.vectors.heads import check_heads

    write_json(tmp_path / "config.json", CONFIG | {"architectures": [f"{family}ForCausalLM"]})
    with pytest.raises(UnsupportedError, match=f"{family} norms or scales"):
        check_heads(make_recipe("sentiment", method="iti"), tmp_path)


def test_the_number_of_heads_is_part_of_the_identity() -> None:
    few, many, other = (
        make_recipe("sentiment", method=m, heads=n) for m, n in (("iti", 2), ("iti", 3), ("pca", None))
    )
    assert few.identity() != many.identity()
    assert "heads" not in other.identity()
    assert make_recipe("sentiment", method="iti").heads == 48
    with pytest.raises(UsageError, match="not through this engine"):
        few.read(None, None, None)  # type: ignore[arg-type]
