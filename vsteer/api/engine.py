"""A model in vLLM that generates and scores under any steering, as a notebook uses it.

Prompts are rendered, sampled and scored by the classes that do so for a grid.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from datetime import date
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress

from vsteer import models
from vsteer.api.steerings import LoadedSteerings, Steer, check_operation
from vsteer.datasets.choices import answer_label, listed_choices
from vsteer.datasets.items import Choice, Item, Prompt, content_hash, name_item
from vsteer.engine.options import EngineOptions
from vsteer.engine.table import Capacity
from vsteer.errors import EngineError, UsageError
from vsteer.evaluations.choice import ChoiceEvaluation
from vsteer.evaluations.evaluation import CannotAsk, CannotScore, Evaluation
from vsteer.evaluations.given_answers import answer_logprobs
from vsteer.evaluations.open_ended import OpenEndedEvaluation
from vsteer.evaluations.rendered_prompt import AnyItem, RenderedPrompt
from vsteer.grid.problems import Source
from vsteer.identity import sampling_seed
from vsteer.models.adapters import adapted_name
from vsteer.models.hugging_face import load_tokenizer
from vsteer.operations import graph_modules
from vsteer.prompts.template import dated
from vsteer.protocol import Positions, Request, Result, Steering, expected_steered_tokens
from vsteer.run.loading import fetched, load_named
from vsteer.terminal import echo, harmless
from vsteer.validation import Strict
from vsteer.vectors.recipe import CAPTURES

Settings = TypeVar("Settings", bound=Strict)


class Engine:
    """A loaded model.

        with vsteer.Engine("smollm2-135m-instruct") as engine:
            engine.generate(["How was the film?"], steer=vector.at(layer=20, multiplier=1.5))

    `adapter` is the folder of a LoRA that is merged into the model. `options` are those of a grid's engine
    section, such as `enforce_eager` or `max_model_len`. The graph has
    room for `terms` vectors at one layer; beside adding it can do the `operations` that are named.
    """

    def __init__(
        self,
        model: str,
        *,
        revision: str | None = None,
        adapter: str | Path | None = None,
        dtype: str = "auto",
        quantization: str | None = None,
        terms: int = 4,
        operations: Sequence[str] = (),
        progress: bool = False,
        **options: Any,
    ) -> None:
        settings = _checked(EngineOptions, options)
        folder = fetched(model, revision, Path(adapter) if adapter else None)
        self.model, self._progress = adapted_name(model, adapter), progress
        self.source = models.Source(str(folder), None) if adapter else models.resolve(model, revision)
        self.tokenizer = dated(load_tokenizer(str(folder)), date.today())
        modules = graph_modules(check_operation(name).name for name in operations)
        capacity = Capacity(terms=terms, captures=CAPTURES, modules=modules)
        if progress:
            echo(f"... {model}: loading it into vLLM", err=True)
        self.engine = load_named(folder, dtype, settings, capacity, quantization)
        self._steerings = LoadedSteerings(self.engine, capacity)
        self._open = True

    def generate(
        self,
        prompts: str | Sequence[str],
        *,
        steer: Steer = None,
        positions: Positions = "all",
        system: str | None = None,
        answer_prefix: str | None = None,
        max_tokens: int = 100,
        temperature: float = 0.0,
        top_p: float = 1.0,
        stop: Sequence[str] = (),
        seed: int = 0,
    ) -> list[str]:
        """A text for each prompt, greedy or sampled; one seed draws alike under every steering."""
        settings = {
            "kind": "open_ended",
            "data": "prompts",
            "answer_prefix": answer_prefix,
            "max_tokens": max_tokens,
            "temperature": temperature,
            "top_p": top_p,
            **({"stop": list(stop)} if stop else {}),
        }
        evaluation = _checked(OpenEndedEvaluation, settings)
        items = [Prompt(content_hash([text.strip()]), text, n) for n, text in enumerate(_texts(prompts), 1)]
        rows = self._rows(evaluation, items, steer, positions, system, seed)
        return [results[0].text for _, results in rows]

    def score(
        self,
        prompts: str | Sequence[str],
        answers: Sequence[str] | Sequence[Sequence[str]],
        *,
        steer: Steer = None,
        positions: Positions = "all",
        system: str | None = None,
        answer_prefix: str | None = None,
    ) -> NDArray[np.float64]:
        """The log-probability of each answer behind each prompt, [prompt, answer]: the sum over its tokens.

        `answers` are the same for every prompt, or a list for each. Where a prompt lists lettered choices, an
        answer such as "(A)" is scored by its letter, as in a grid.
        """
        texts = _texts(prompts)
        evaluation = _checked(
            ChoiceEvaluation, {"kind": "choice", "data": "prompts", "answer_prefix": answer_prefix}
        )
        items = [
            _item(text, given, n)
            for n, (text, given) in enumerate(zip(texts, _answers(texts, answers), strict=True), 1)
        ]
        rows = self._rows(evaluation, items, steer, positions, system, seed=0)
        try:
            return np.array([answer_logprobs(rendered, results) for rendered, results in rows])
        except CannotScore as error:
            raise EngineError(str(error), "try dtype='float32', or less steering") from None

    @contextmanager
    def counting(self, what: str, total: int) -> Iterator[Callable[[], None]]:
        """Yields what to call once for each of `total` steps; a bar shows them if progress is wanted."""
        with Progress(console=Console(stderr=True), disable=not self._progress) as bar:
            task = bar.add_task(escape(harmless(what)), total=total)
            yield lambda: bar.advance(task)

    def close(self) -> None:
        """Give the memory back; a `with` statement does so at its end."""
        if self._open:
            self._open = False
            self.engine.close()

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<engine {self.model}: {self.engine.info.layers} layers{'' if self._open else ', closed'}>"

    def _rows(
        self,
        evaluation: Evaluation,
        items: Sequence[AnyItem],
        steer: Steer,
        positions: Positions,
        system: str | None,
        seed: int,
    ) -> list[tuple[RenderedPrompt, list[Result]]]:
        """Each prompt in the model's tokens, with the results of its requests."""
        if not self._open:
            raise UsageError("the engine is closed", "make another Engine, and stay within its `with` block")
        terms = self._steerings.load(steer)
        rows: list[tuple[RenderedPrompt, tuple[Request, ...]]] = []
        for n, item in enumerate(items):
            rendered = self._rendered(evaluation, item, system)
            steering = Steering(terms, rendered.prompt.span(positions)) if terms else None
            drawn = sampling_seed(seed, item.item_id, "original", 0)
            requests = evaluation.requests(str(n), rendered, steering, drawn)
            if steering and steering.acting_terms and not any(map(_acts, requests)):
                raise UsageError(
                    f"positions {positions!r} cannot act on prompt {item.line}: no token that is processed "
                    "lies in them",
                    "take positions within the prompt, or more tokens",
                )
            rows.append((rendered, requests))
        results = self._results([request for _, requests in rows for request in requests])
        return [(rendered, [results[one.id] for one in requests]) for rendered, requests in rows]

    def _rendered(self, evaluation: Evaluation, item: AnyItem, system: str | None) -> RenderedPrompt:
        try:
            made = evaluation.render(self.tokenizer, item, system)
            ignored = system and made.prompt == evaluation.render(self.tokenizer, item, None).prompt
        except CannotAsk as error:
            raise UsageError(f"prompt {item.line} can't be asked: {error}", error.hint) from None
        if ignored:
            raise UsageError(
                "the model's chat template leaves the system prompt out, so it would change nothing",
                "take the system prompt out, or put it into the prompts",
            )
        return RenderedPrompt("", item, "original", made.prompt, "", made.scored, made.answers)

    def _results(self, requests: Sequence[Request]) -> dict[str, Result]:
        found: dict[str, Result] = {}
        # Closing the generator aborts what is under way, when a prompt failed or a cell was interrupted.
        running = cast("Generator[Result]", self.engine.run(iter(requests)))
        with closing(running), self.counting(self.model, len(requests)) as step:
            for result in running:
                if result.status != "ok":
                    number = int(result.id.partition(".")[0]) + 1
                    raise EngineError(f"prompt {number} failed: {result.error}", "change it, or leave it out")
                found[result.id] = result
                step()
        return found


def _checked(kind: type[Settings], values: dict[str, Any]) -> Settings:
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise Source(values, Path()).explained(error) from None


def _acts(request: Request) -> bool:
    """Whether a token that the request processes lies in its span."""
    assert request.steering is not None
    assert isinstance(request.steering.positions, tuple)
    tokens = len(request.prompt.token_ids)
    return expected_steered_tokens(request.steering.positions, tokens, request.max_tokens) > 0


def _texts(prompts: str | Sequence[str]) -> list[str]:
    texts = [prompts] if isinstance(prompts, str) else list(prompts)
    for n, text in enumerate(texts, 1):
        if not isinstance(text, str) or not text.strip():
            raise UsageError(f"prompt {n} is no text: {text!r:.60}", "give a list of texts")
    return texts


def _answers(texts: Sequence[str], answers: Sequence[str] | Sequence[Sequence[str]]) -> list[list[str]]:
    """The answers of each prompt, as many for one as for another."""
    shared = all(isinstance(one, str) for one in answers)
    each = [list(answers)] * len(texts) if shared else [list(one) for one in answers]
    if len(each) != len(texts) or len({len(given) for given in each}) > 1:
        raise UsageError(
            f"{len(texts)} prompts and {len(each)} lists of answers don't match",
            "give one list of answers for all prompts, or one of the same length for each prompt",
        )
    if any(not isinstance(one, str) or not one.strip() for given in each for one in given) or not answers:
        raise UsageError("expected answers that are texts", "such as answers=['Yes', 'No']")
    return each  # type: ignore[return-value]


def _item(text: str, answers: Sequence[str], line: int) -> Item:
    """The prompt with its answers, which are letters where the prompt lists choices by these letters."""
    listed = {choice.label: choice.text for choice in listed_choices(text)}
    labels = [answer_label(answer) for answer in answers]
    if all(label in listed for label in labels):
        choices = tuple(Choice(f"({label})", listed[str(label)], str(label)) for label in labels)
    else:
        choices = tuple(Choice(answer, answer.strip()) for answer in answers)
    return Item(name_item(text, choices, 0, None), text, choices, matching=0, not_matching=None, line=line)
