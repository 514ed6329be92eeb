"""Tasks of lm-evaluation-harness (PyPI lm_eval), asked as it asks them and scored by it.

The harness makes documents, prompts with few-shot examples and requests, and scores what comes back. Its
log-likelihoods, of choices or of whole documents, are given answers here, so that they are computed as forks;
its generations are texts. Prompts are plain text, without the model's chat template, as is its default.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, PrivateAttr, model_validator

from vsteer.datasets import items
from vsteer.errors import DataError
from vsteer.evaluations import harness
from vsteer.evaluations.evaluation import (
    BEYOND_LIMIT,
    CHARACTERS_A_TOKEN,
    CannotAsk,
    Evaluation,
    Numbers,
    Question,
    Questions,
    RowKind,
    Sampling,
)
from vsteer.evaluations.given_answers import Floats, GivenAnswersEvaluation, Scores, scores_of_answers
from vsteer.evaluations.harness_tasks import load
from vsteer.evaluations.open_ended import text_columns, text_request
from vsteer.evaluations.rendered_prompt import AnyItem, RenderedPrompt, Rendering
from vsteer.prompts.answers import Tokens
from vsteer.protocol import Prompt, Request, Result, Steering
from vsteer.validation import Texts, wrong

DOCUMENT = "the document"


class TaskEvaluation(Evaluation):
    """What is the same for every kind of request."""

    builtin_part: ClassVar[str] = ""
    data_setting: ClassVar[str] = "tasks"
    in_template: ClassVar[bool] = False

    kind: Literal["lm_eval"]
    tasks: Texts
    """Tasks or groups by the harness's names, or YAML files of tasks; their data must be on this machine."""
    num_fewshot: Annotated[int, Field(ge=0, le=1000)] | None = None
    """How many solved examples stand before each question; by default as many as the task says."""
    task_code: bool = False
    """Run the Python that a task's file of your own names with `!function`. Read it before."""

    # By the name of a task in `tasks`, so that several models read it once.
    _read: dict[str, harness.Tasks] = PrivateAttr(default_factory=dict)
    _tasks: harness.Tasks | None = PrivateAttr(default=None)
    _documents: dict[str, harness.Document] = PrivateAttr(default_factory=dict)
    _in_systems: dict[str, dict[str, harness.Document]] = PrivateAttr(default_factory=dict)

    @model_validator(mode="after")
    def _ends_as_the_task_says(self) -> TaskEvaluation:
        if self.answer_prefix is not None:
            hint = "take it out, or set gen_prefix in a task's file of your own"
            raise wrong("a task says itself how an answer begins", hint, "answer_prefix")
        return self

    @property
    def loaded(self) -> harness.Tasks:
        assert self._tasks is not None, "a grid's entry asks nothing before its tasks are loaded"
        return self._tasks

    def ask(self, data: str, beside: Path) -> tuple[Evaluation, Questions]:
        if data not in self._read:
            self._read[data] = load(data, beside, self.limit, self.num_fewshot, self.task_code)
        tasks = self._read[data]
        made = (TextTask if tasks.kind == "generate_until" else LmEvalEvaluation).model_construct(
            **dict(self)
        )
        made._tasks = tasks
        assert made.sampling
        return made, made.questions(beside)

    def questions(self, path: Path) -> Questions:
        tasks = self.loaded
        self._documents.update((_item_id(one), one) for one in tasks.documents(None))
        asked: list[Question] = [(self.item(name, one), "original") for name, one in self._documents.items()]
        every = sum(len(task.eval_docs) for task in tasks.tasks)
        beyond = {BEYOND_LIMIT: every - len(asked)} if every > len(asked) else {}
        return Questions(tuple(asked), tasks.data_sha256, beyond, tuple(tasks.notes()))

    def identity(self, seed: int) -> dict[str, Any]:
        return self.loaded.identity

    @property
    def own_scores(self) -> dict[str, Any]:
        return {"scorer": self.kind, **self.loaded.identity}

    def item(self, item_id: str, document: harness.Document) -> AnyItem:
        raise NotImplementedError

    def category(self, document: harness.Document) -> str:
        """The task's name, where a group has several."""
        return document.task.config.task if len(self.loaded.tasks) > 1 else ""

    def arguments(self, item: AnyItem, system: str | None) -> list[tuple[Any, ...]]:
        """What the harness asks about a document: of each of its requests the context and what follows."""
        documents = self._documents
        if system is not None:
            if system not in self._in_systems:
                both = zip(documents, self.loaded.documents(system), strict=True)
                self._in_systems[system] = dict(both)
            documents = self._in_systems[system]
        return [instance.args for instance in documents[item.item_id].instances]


class LmEvalEvaluation(TaskEvaluation, GivenAnswersEvaluation):
    """An entry of a grid; and, once its task is loaded, one that asks for log-likelihoods."""

    @property
    def whole_documents(self) -> bool:
        return self.loaded.kind == "loglikelihood_rolling"

    def item(self, item_id: str, document: harness.Document) -> AnyItem:
        question, choices, right = (
            _question(document),
            [instance.args[-1] for instance in document.instances],
            0,
        )
        if not self.whole_documents:
            try:
                right = harness.gold(document)
            except ValueError as error:
                message = f"document {document.number} of {document.task.config.task} can't be asked: {error}"
                raise DataError(message, "leave the task out, or fix its file") from None
        return items.Item(
            item_id,
            question,
            tuple(items.Choice(choice, choice) for choice in choices),
            right,
            None,
            document.number + 1,
            self.category(document),
        )

    def render(self, tokenizer: Any, item: AnyItem, system: str | None) -> Rendering:
        """The context's tokens, and each continuation's as they stand behind it."""
        asked = self.arguments(item, system)
        start: Tokens = (_prefix_token(tokenizer),)
        if self.whole_documents:
            context, answers = start, [_encoded(tokenizer, text) for (text,) in asked]
        else:
            (text,) = {context for context, _ in asked}
            # As in the harness, spaces between the two belong to the continuation.
            ended = text.rstrip()
            context = _encoded(tokenizer, ended) if ended else start
            answers = [
                _encoded(tokenizer, text + after)[len(context) :]
                if ended
                else _alone(tokenizer, text + after)
                for _, after in asked
            ]
        if not all(answers):
            raise CannotAsk("in this model's tokens one of its answers is empty")
        return Rendering(Prompt.plain(context), tuple(range(len(answers))), tuple(answers))

    def estimate(self, item: AnyItem, system: str | None) -> Rendering:
        asked = self.arguments(item, system)
        answers = tuple((n,) * max(1, len(one[-1]) // CHARACTERS_A_TOKEN) for n, one in enumerate(asked))
        context = "" if self.whole_documents else asked[0][0]
        tokens = [0] * (1 + len(context) // CHARACTERS_A_TOKEN)
        return Rendering(Prompt.plain(tokens), tuple(range(len(answers))), answers)

    def sure_without_tokenizer(self, item: AnyItem) -> bool:
        return False

    def labels(self, rendered: RenderedPrompt) -> tuple[str, ...]:
        assert isinstance(rendered.item, items.Item)
        if self.whole_documents:
            return (DOCUMENT,)
        return tuple(choice.answer.strip() for choice in rendered.item.choices)

    def matching(self, rendered: RenderedPrompt) -> int:
        assert isinstance(rendered.item, items.Item)
        return rendered.item.matching

    def scores(self, rendered: RenderedPrompt, sums: Floats) -> Scores:
        return scores_of_answers(self.labels(rendered), rendered, self.matching(rendered), None, sums)

    def score(self, item_id: str, text: str, choice_logprobs: Sequence[float]) -> Numbers:
        # Whether an answer is the likeliest text isn't known, and the metrics that need it aren't worked out.
        answers = choice_logprobs if self.whole_documents else [(value, False) for value in choice_logprobs]
        return harness.metrics(self._documents[item_id], answers)


class TextTask(TaskEvaluation):
    """One that generates."""

    row_kind: ClassVar[RowKind] = "open_ended"
    has_controls: ClassVar[bool] = False

    @cached_property
    def generation(self) -> Mapping[str, Any]:
        return harness.generation(self.loaded)

    @property
    def sampling(self) -> Sampling:
        given = self.generation
        temperature = float(given.get("temperature", 0.0))
        top_p = float(given.get("top_p", 1.0)) if temperature > 0 else 1.0
        return Sampling(given["max_gen_toks"], temperature, top_p)

    @property
    def stop(self) -> tuple[str, ...]:
        return tuple(text for text in self.generation["until"] if text)

    def identity(self, seed: int) -> dict[str, Any]:
        return super().identity(seed) | ({"seed": seed} if self.sampling.temperature > 0 else {})

    def item(self, item_id: str, document: harness.Document) -> AnyItem:
        return items.Prompt(item_id, _question(document), document.number + 1, self.category(document))

    def render(self, tokenizer: Any, item: AnyItem, system: str | None) -> Rendering:
        ((context, _),) = self.arguments(item, system)
        return Rendering(Prompt.plain(_encoded(tokenizer, context) or (_prefix_token(tokenizer),)))

    def estimate(self, item: AnyItem, system: str | None) -> Rendering:
        ((context, _),) = self.arguments(item, system)
        return Rendering(Prompt.plain([0] * (1 + len(context) // CHARACTERS_A_TOKEN)))

    def requests(
        self, row_id: str, rendered: RenderedPrompt, steering: Steering | None, seed: int
    ) -> tuple[Request, ...]:
        return (text_request(row_id, rendered, steering, self.sampling, self.stop, seed),)

    def columns(self, rendered: RenderedPrompt, results: Sequence[Result]) -> dict[str, Any]:
        return text_columns(results)

    def score(self, item_id: str, text: str, choice_logprobs: Sequence[float]) -> Numbers:
        for end in self.stop:
            text = text.split(end)[0]
        return harness.metrics(self._documents[item_id], [text])


def _item_id(document: harness.Document) -> str:
    """With the document's number, since one that stands twice counts twice in the harness's means."""
    asked = [[str(part) for part in instance.args] for instance in document.instances]
    return items.content_hash([document.task.config.task, document.number, asked])


def _question(document: harness.Document) -> str:
    """The document as the task words it, without what stands before it."""
    text = document.task.doc_to_text(document.doc)
    return text if isinstance(text, str) and text else str(document.instances[0].args[0])


def _prefix_token(tokenizer: Any) -> int:
    """What the harness puts where nothing stands before an answer."""
    token = tokenizer.bos_token_id
    return int(tokenizer.eos_token_id if token is None else token)


def _alone(tokenizer: Any, text: str) -> Tokens:
    """An answer behind nothing but that token, which it doesn't repeat."""
    tokens = tuple(tokenizer.encode(text, add_special_tokens=False))
    return tokens[1:] if tokens[:1] == (_prefix_token(tokenizer),) else tokens


def _encoded(tokenizer: Any, text: str) -> Tokens:
    """As the harness's own Hugging Face models have it: without a second token at the beginning."""
    begun = text.startswith(tokenizer.decode([_prefix_token(tokenizer)]))
    return tuple(tokenizer.encode(text, **({"add_special_tokens": False} if begun else {})))
