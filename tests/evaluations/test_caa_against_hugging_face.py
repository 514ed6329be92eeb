"""The public CAA questions through vLLM, against plain transformers on the embedded model in float32.

The oracle knows nothing of plans: it writes the chat template and the answer out, and finds the scored tokens
by the characters that they cover.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from vsteer.datasets.choices import stem
from vsteer.datasets.readers import read_questions
from vsteer.engine.driver import VllmEngine
from vsteer.engine.options import EngineOptions
from vsteer.grid.spec import read_grid
from vsteer.models import resolve
from vsteer.plan.plan import make_plans
from vsteer.plan.rows import Row, row_of
from vsteer.protocol import Result

CAA = Path(__file__).parents[3] / "shared" / "data" / "caa" / "test"
BEHAVIOURS = ("hallucination", "refusal", "survival-instinct", "sycophancy")
LAYER, MULTIPLIER = 12, 1.0
# of the items in words, and of those that the oracle steers too
WORDS, STEERED_EACH = 5, 5
TOLERANCE = 1e-4
GRID = """\
version: 1
name: caa
model: {{id: smollm2-135m-instruct, dtype: float32}}
vectors: {{v: {{data: words.jsonl}}}}
grid: [{{vector: v, layers: {layer}, multipliers: {multiplier}, positions: after_prompt}}]
evaluations:
  - {{kind: choice, data: {files}, letter_orders: original}}
  - {{kind: choice, data: words.jsonl}}
"""


class Oracle:
    """transformers, with the direction added behind one block from the last header token on."""

    def __init__(self, folder: str, direction: np.ndarray) -> None:
        self.tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        self.model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        self._added = MULTIPLIER * torch.from_numpy(direction)

    def header(self, question: str) -> str:
        said: str = self.tokenizer.apply_chat_template(
            [{"role": "user", "content": question}], tokenize=False, add_generation_prompt=True
        )
        return said

    def logprobs(self, header: str, answer: str, steered: bool, first: int) -> float:
        """The sum over the tokens that cover a character from `first` on."""
        encoded = self.tokenizer(header + answer, add_special_tokens=False, return_offsets_mapping=True)
        ids, ends = encoded["input_ids"], [end for _, end in encoded["offset_mapping"]]
        scored = [n for n, end in enumerate(ends) if end > first]
        rows = self._rows(tuple(ids[:-1]), len(ids) - scored[0], self._header_tokens(header), steered)
        return float(sum(row[ids[n]] for row, n in zip(rows, scored, strict=True)))

    def _header_tokens(self, header: str) -> int:
        return len(self.tokenizer(header, add_special_tokens=False)["input_ids"])

    @lru_cache(maxsize=8)  # noqa: B019 -- an item's letters have everything before them in common
    def _rows(self, ids: tuple[int, ...], last: int, header: int, steered: bool) -> torch.Tensor:
        """The distributions behind the last so many tokens."""

        def add(_module: object, _inputs: object, output: Any) -> Any:
            hidden = output[0] if isinstance(output, tuple) else output
            hidden = hidden.clone()
            hidden[:, header - 1 :] += self._added
            return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

        hooks = [self.model.model.layers[LAYER].register_forward_hook(add)] if steered else []
        with torch.no_grad():
            rows: torch.Tensor = (
                self.model(torch.tensor([ids]), logits_to_keep=last).logits[0].log_softmax(-1)
            )
        for hook in hooks:
            hook.remove()
        return rows

    def letter(self, question: str, letter: str, steered: bool) -> float:
        """The token that holds the letter of `(A`."""
        header = self.header(question)
        return self.logprobs(header, f"({letter}", steered, len(header) + 1)

    def words(self, question: str, answer: str, steered: bool) -> float:
        header = self.header(question)
        return self.logprobs(header, answer, steered, len(header))


def records(engine: VllmEngine, rows: list[Row]) -> Iterator[tuple[Row, dict[str, Any]]]:
    found: dict[str, dict[int, Result]] = {}
    for result in engine.run(request for row in rows for request in row.requests()):
        name, place = row_of(result.id)
        found.setdefault(name, {})[place] = result
    for row in rows:
        yield row, row.record([found[row.row_id][n] for n in range(len(found[row.row_id]))])


@pytest.mark.engine
@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.skipif(not CAA.is_dir(), reason="the public data is not part of the repository")
def test_choice_probabilities_of_the_public_items_equal_transformers(tmp_path: Path) -> None:
    files = [CAA / behaviour / "test_dataset_ab.json" for behaviour in BEHAVIOURS]
    pairs = []
    for file in files:
        for item in read_questions(file).items[:WORDS]:
            texts = [item.choices[n].text for n in (item.matching, item.not_matching or 0)]
            if len(set(texts)) == 2:
                pairs.append({"prompt": stem(item.question), "positive": texts[0], "negative": texts[1]})
    (tmp_path / "words.jsonl").write_text("\n".join(map(json.dumps, pairs)))
    listed = f"[{', '.join(map(str, files))}]"
    (tmp_path / "grid.yaml").write_text(GRID.format(layer=LAYER, multiplier=MULTIPLIER, files=listed))
    (plan,) = make_plans(read_grid(tmp_path / "grid.yaml"))
    rows = list(plan.rows())

    folder = resolve("smollm2-135m-instruct").model
    engine = VllmEngine(
        folder,
        dtype="float32",
        options=EngineOptions(max_model_len=1024, kv_cache_gib=0.5, enforce_eager=True),
    )
    try:
        rng = np.random.default_rng(0)
        direction = rng.standard_normal(engine.info.hidden_size).astype(np.float32)
        (key,) = plan.vectors
        engine.load({key: {LAYER: direction}}, plan.steerings())
        found = list(records(engine, rows))
    finally:
        engine.close()

    oracle = Oracle(folder, direction)
    worst: dict[str, list[float]] = {}
    choices: set[int] = set()
    tokens: set[int] = set()
    for n, (row, record) in enumerate(found):
        steered = row.config.positions is not None
        if steered and n // 2 % STEERED_EACH:
            continue
        assert record["status"] == "ok", record["error"]
        question, lettered = row.rendered.question, "words" not in row.evaluation
        if lettered:
            expected = [oracle.letter(question, letter, steered) for letter in record["choices"]]
        else:
            expected = [oracle.words(question, text, steered) for text in record["choices"]]
        p, wanted = np.exp(record["choice_logprobs"]), np.exp(expected)
        kind = f"{row.evaluation}{' steered' if steered else ''}"
        worst.setdefault(kind, []).append(
            max(
                float(np.abs(p - wanted).max()),
                abs(record["p_match"] - wanted[record["matching"]] / wanted.sum()),
                abs(record["total_mass"] - wanted.sum()),
            )
        )
        choices.add(len(expected) if lettered else 0)
        tokens.add(max(record["choice_tokens"]))
    for kind, errors in worst.items():
        print(f"{kind}: {len(errors)} rows, largest error of a probability {max(errors):.1e}")
    print(f"choices an item {sorted(choices)}, tokens an answer {sorted(tokens)}")
    assert len(worst) == 2 * (len(BEHAVIOURS) + 1)
    assert sum(len(errors) for kind, errors in worst.items() if "steered" not in kind) == 200 + len(pairs)
    assert choices == {0, 2, 3, 5}
    assert min(tokens) == 1 < 5 < max(tokens)
    assert max(map(max, worst.values())) < TOLERANCE
