"""lm-evaluation-harness as a library: the documents of its tasks as requests, and their own scoring.

It is imported when a grid asks for a task, since it takes seconds; harness_tasks.py loads these.
"""

from __future__ import annotations

import copy
import hashlib
import inspect
import json
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

from vsteer.errors import DataError
from vsteer.evaluations.evaluation import Numbers
from vsteer.identity import identify
from vsteer.packages import installed
from vsteer.validation import shortened, shown

PACKAGES = ("lm_eval", "datasets")
# As lm_eval's command line has it; few-shot examples are drawn from it.
FEWSHOT_SEED = 1234
# Behind a metric's name: what its value is weighted with in the mean over documents.
WEIGHT = ".weight"
# Metrics whose values need what isn't asked of the model here.
UNKNOWN_HERE = {"multiple_choice": {"exact_match": "it needs the likeliest text of all"}}


class Document(NamedTuple):
    """One document of a task, with the requests that the harness made of it."""

    task: Any
    number: int
    instances: tuple[Any, ...]

    @property
    def doc(self) -> Any:
        return self.instances[0].doc


@dataclass(frozen=True)
class Tasks:
    """A task, or the tasks of a group, ready to be asked. All of one kind of request."""

    name: str
    tasks: tuple[Any, ...]
    limit: int | None

    @property
    def kind(self) -> str:
        kind: str = self.tasks[0].OUTPUT_TYPE
        return kind

    @cached_property
    def identity(self) -> dict[str, Any]:
        """What changes an answer or a metric: the harness, and each task's version, settings and data."""
        return {
            "lm_eval": installed(PACKAGES)["lm_eval"],
            "fewshot_seed": FEWSHOT_SEED,
            "tasks": {
                task.config.task: {
                    "version": str(task.VERSION),
                    "settings": _settings(task),
                    "data": _data_sha256(task),
                }
                for task in self.tasks
            },
        }

    @cached_property
    def data_sha256(self) -> str:
        """The hash of the task's data, or of its tasks' hashes."""
        hashes = [about["data"] for about in self.identity["tasks"].values()]
        return hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()

    def documents(self, system: str | None) -> list[Document]:
        """Every document that is asked, in the harness's order, in which it draws few-shot examples."""
        made = []
        for task in self.tasks:
            task.set_fewshot_seed(seed=FEWSHOT_SEED)
            with quiet():
                task.build_all_requests(limit=self.limit, system_instruction=system)
            found: dict[int, list[Any]] = {}
            for instance in task.instances:
                found.setdefault(instance.doc_id, []).append(instance)
            made += [Document(task, n, tuple(instances)) for n, instances in found.items()]
        return made

    def notes(self) -> Iterator[str]:
        """Why a metric of a task isn't there, a line for each."""
        for task in self.tasks:
            for metric in task.aggregation():
                if why := unscored(task, metric):
                    yield f"{task.config.task}: {metric} is not worked out: {why}"


def gold(document: Document) -> int:
    """Which of a document's choices is right. Raises ValueError."""
    task, doc = document.task, document.doc
    target, choices = task.doc_to_target(doc), task.doc_to_choice(doc)
    if isinstance(target, str) and target in choices:
        target = choices.index(target)
    if not isinstance(target, int) or not 0 <= target < len(choices):
        raise ValueError(f"its right answer is {shown(target)}, which is not one of its choices")
    return target


def metrics(document: Document, answers: Sequence[Any]) -> Numbers:
    """The harness's own metrics of a document: its filters, its scoring, and its aggregate of this one alone.

    `answers` has the log-likelihood of each request, or the text. A metric that is a weighted mean over
    documents has its weight beside it, so that the mean of many can be made of these.
    """
    task, made = document.task, []
    for instance, answer in zip(document.instances, answers, strict=True):
        one = copy.copy(instance)
        one.resps, one.filtered_resps = [answer], {}
        made.append(one)
    found: Numbers = {}
    for pipeline in task._filters:
        pipeline.apply(made)
        values = task.process_results(document.doc, [one.filtered_resps[pipeline.name] for one in made])
        for metric, value in values.items():
            if unscored(task, metric):
                continue
            name = metric if pipeline.name == "none" else f"{metric},{pipeline.name}"
            found[name] = _number(task.aggregation()[metric], value)
            if isinstance(value, tuple):
                found[name + WEIGHT] = (float(value[1]), None)
    return found


def _number(aggregate: Callable[[Sequence[Any]], float], value: Any) -> tuple[float | None, str | None]:
    try:
        number = float(aggregate([value]))
    except (ArithmeticError, TypeError, ValueError) as error:
        return None, f"no number: {shortened(str(error))}"
    return (None, "it is not a number") if math.isnan(number) else (number, None)


def unscored(task: Any, metric: str) -> str | None:
    from lm_eval.api import metrics as known

    means = (known.mean, known.nanmean, known.perplexity, known.weighted_perplexity, known.bits_per_byte)
    if task.aggregation().get(metric) not in means:
        return "it is no mean over documents"
    return UNKNOWN_HERE.get(task.OUTPUT_TYPE, {}).get(metric)


@contextmanager
def replaced(of: Any, name: str, value: Any) -> Iterator[None]:
    before = getattr(of, name)
    setattr(of, name, value)
    try:
        yield
    finally:
        setattr(of, name, before)


@contextmanager
def quiet() -> Iterator[None]:
    """No warnings and no progress bars, which would stand among a plan's lines."""
    import lm_eval.api.task

    logger = logging.getLogger("lm_eval")
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with replaced(lm_eval.api.task, "tqdm", lambda values, **_: values):
            yield
    finally:
        logger.setLevel(before)


def _settings(task: Any) -> str:
    """A hash of the task's settings, without where its files lie. The data has a hash of its own."""
    settings = {
        key: value
        for key, value in vars(task.config).items()
        if key not in ("dataset_kwargs", "custom_dataset", "metadata") and value is not None
    }
    return identify(json.loads(json.dumps(settings, default=_plain, sort_keys=True)))


def _plain(value: Any) -> Any:
    if callable(value):
        try:
            return inspect.getsource(value)
        except (OSError, TypeError):
            return getattr(value, "__qualname__", type(value).__qualname__)
    return vars(value) if hasattr(value, "__dict__") else str(value)


def _data_sha256(task: Any) -> str:
    """A hash of every document of the task, and of those that few-shot examples are drawn from."""
    digest = hashlib.sha256()
    parts = [task.eval_docs, (task.fewshot_docs() or ()) if task.config.num_fewshot else ()]
    for docs in parts:
        for doc in docs:
            digest.update(json.dumps(doc, ensure_ascii=False, sort_keys=True, default=str).encode() + b"\n")
        digest.update(b"\0")
    return digest.hexdigest()


def generation(tasks: Tasks) -> Mapping[str, Any]:
    """How the texts of a task are generated: `until`, `max_gen_toks`, `temperature`. Raises DataError."""
    from lm_eval.models.utils import normalize_gen_kwargs

    found = [normalize_gen_kwargs(task.config.generation_kwargs or {}) for task in tasks.tasks]
    first = dict(found[0])
    if any(dict(one) != first for one in found):
        raise DataError(
            f"the tasks of {shown(tasks.name)} generate in different ways", "name them one by one"
        )
    known = {"until", "max_gen_toks", "temperature", "top_p", "do_sample"}
    if unknown := sorted(set(first) - known):
        message = f"the task {shown(tasks.name)} generates with {shown(unknown[0])}, which is not known here"
        raise DataError(message, f"known: {', '.join(sorted(known))}")
    return first
