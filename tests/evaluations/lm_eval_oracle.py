"""The harness's own evaluation of a task's file, and a model made of hashes for it and for an engine."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from lm_eval import simple_evaluate
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import has_bos_prefix, postprocess_generated_text
from lm_eval.tasks import TaskManager

from tests.fake_engine import FakeEngine, number
from vsteer.protocol import Request, Result

TASKS = Path(__file__).with_name("tasks")
RIGHT = {
    fact["question"]: fact["words"]
    for fact in map(json.loads, (TASKS / "facts.jsonl").read_text().splitlines())
}


def logprob(before: Sequence[int], token: int) -> float:
    return -5 * number("logprob", tuple(before), token)


def text(tokenizer: Any, prompt: Sequence[int]) -> str:
    """The right answer to the prompt's last question, in several ways, or none."""
    question = tokenizer.decode(list(prompt)).rpartition("Question: ")[2].partition("\n")[0]
    right = RIGHT[question]
    ways = (right, f" {right}\nQuestion: none", f" {right.upper()}. It is so", " none of these", "")
    return ways[int(len(ways) * number("text", tuple(prompt)))]


class HashedEngine(FakeEngine):
    """It answers by the tokens alone, steered or not."""

    def _answer(self, request: Request) -> Result:
        result = super()._answer(replace(request, capture=request.capture or (0,)))
        if request.capture:
            return result
        prompt = request.prompt.token_ids
        generates = "" if request.logprob_token_ids else text(self.tokenizer, prompt)
        asked = {token: logprob(prompt, token) for token in request.logprob_token_ids}
        return replace(result, text=generates, logprobs=(asked,) * len(result.logprobs), captured=None)


class HashedLM(TemplateLM):  # type: ignore[misc]
    """The same model, as the harness asks one; the harness makes the tokens of context and continuation."""

    backend = "causal"

    def __init__(self, tokenizer: Any) -> None:
        super().__init__()
        self.tokenizer = tokenizer

    @property
    def eot_token_id(self) -> int:
        return int(self.tokenizer.eos_token_id)

    @property
    def prefix_token_id(self) -> int:
        return int(self.tokenizer.bos_token_id)

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        # as the harness's own Hugging Face models do
        if add_special_tokens is None and has_bos_prefix(string, self.tokenizer.bos_token):
            add_special_tokens = False
        special = {} if add_special_tokens is None else {"add_special_tokens": add_special_tokens}
        return list(self.tokenizer.encode(string, **special))

    def _loglikelihood_tokens(self, requests: Any, **_: Any) -> list[tuple[float, bool]]:
        return [(self._sum(context, after), False) for _, context, after in requests]

    def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> list[float]:
        return [self._sum([self.prefix_token_id], self.tok_encode(one.args[0])) for one in requests]

    def generate_until(self, requests: Any, disable_tqdm: bool = False) -> list[str]:
        asked = (one.args for one in requests)
        return [
            postprocess_generated_text(text(self.tokenizer, self.tok_encode(context)), how["until"], None)
            for context, how in asked
        ]

    def _sum(self, context: Sequence[int], after: Sequence[int]) -> float:
        return sum(logprob([*context, *after[:n]], token) for n, token in enumerate(after))


def evaluated(model: Any, folder: Path, tasks: Sequence[str], **how: Any) -> dict[str, Any]:
    """What the harness's own evaluation of files in the folder comes to, its samples included."""
    # it looks for a task's data in the current folder
    with _inside(folder):
        found: dict[str, Any] = simple_evaluate(
            model,
            tasks=[f"{task}.yaml" for task in tasks],
            task_manager=TaskManager(include_defaults=False),
            bootstrap_iters=0,
            **how,
        )
    return found


@contextmanager
def _inside(folder: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)
