"""Tasks of lm-evaluation-harness, loaded by their names or from files.

Loading fetches nothing and runs no code but the harness's own: a task file's Python (`!function`) needs a
word in the grid, data sets with code and metrics from the hub are refused, and templates run in a sandbox.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any

import yaml

from vsteer.datasets.builtin import find_file
from vsteer.errors import DataError, UsageError, VsteerError
from vsteer.evaluations.harness import PACKAGES, Tasks, quiet, replaced, unscored
from vsteer.files import read_regular
from vsteer.packages import installed
from vsteer.validation import did_you_mean, shortened, shown

MOST_BYTES, MOST_ALIASES = 2**20, 20
KINDS = ("multiple_choice", "generate_until", "loglikelihood_rolling")


def load(name: str, beside: Path, limit: int | None, num_fewshot: int | None, task_code: bool) -> Tasks:
    """The tasks behind a name of the harness's, or of a YAML file."""
    if len(versions := installed(PACKAGES)) < len(PACKAGES):
        missing = next(package for package in PACKAGES if package not in versions)
        hint = "install it: pip install 'vsteer[lm-eval]'"
        raise UsageError(f"kind: lm_eval needs the package {missing}, which is not installed", hint)
    file = _task_file(name, beside)
    settings = None if file is None else _read(file, task_code)
    with _guarded():
        try:
            # the harness would take any other name for that of a file, and run what it says
            if settings is None and name not in _manager(True).task_index:
                raise _no_task(name, beside)
            made = _manager(settings is None)._load_spec(name if settings is None else settings)
        except VsteerError:
            raise
        except Exception as error:  # a task can be wrong in any way, and the harness checks few of them
            raise _cannot_load(name, error) from None
    tasks = tuple(made if isinstance(made, list) else made.get_all_tasks() if _is_group(made) else [made])
    for task in tasks:
        _check(task)
        own = task.config.num_fewshot
        # A task that sets 0 means it, as in the harness.
        task.config.num_fewshot = (own if own == 0 or num_fewshot is None else num_fewshot) or 0
    kinds = {task.OUTPUT_TYPE: task.config.task for task in tasks}
    if len(kinds) != 1:
        message = f"{shown(name)} mixes kinds of requests: {shortened(', '.join(kinds))}"
        raise DataError(message, "name its tasks one by one")
    return Tasks(name, tasks, limit)


def _is_group(made: Any) -> bool:
    from lm_eval.api.group import Group

    return isinstance(made, Group)


@cache
def _manager(with_defaults: bool) -> Any:
    """The harness's list of tasks. It reads thousands of files for its own, and none for a file."""
    from lm_eval.tasks import TaskManager

    return TaskManager(include_defaults=with_defaults)


def _no_task(name: str, beside: Path) -> DataError:
    hint = f"a file's name ends in .yaml, and its path is relative to {beside.absolute()}"
    return DataError(
        f"the harness has no task {shown(name)}", did_you_mean(name, _manager(True).all_tasks, hint)
    )


def _cannot_load(name: str, error: Exception) -> DataError:
    first = str(error).strip().partition("\n")[0]
    message = f"the task {shown(name)} can't be loaded: {type(error).__name__}: {shortened(first, 200)}"
    return DataError(message, "the harness's guide to tasks says what a task needs")


def _task_file(name: str, beside: Path) -> Path | None:
    """The file, where the name is that of one."""
    if not name.endswith((".yaml", ".yml")):
        return None
    path = find_file(name, beside)
    if path is None:
        raise DataError(
            f"no task file {shown(name)}", f"paths are relative to {shortened(str(beside.absolute()), 200)}"
        )
    return path.absolute()


def _read(file: Path, task_code: bool) -> dict[str, Any]:
    """A task file's settings, once it is known that reading them runs nothing, or that it may."""
    from lm_eval.tasks._yaml_loader import load_yaml

    try:
        code = next(_functions(file), None)
        if code is not None and not task_code:
            where, line, function = code
            message = f"{where.name}, line {line}: the task runs Python of its own, {shown(function)}"
            raise DataError(message, "read that file; if it may run, set task_code: true for this evaluation")
        settings: dict[str, Any] = load_yaml(file, resolve_func=task_code)
    except (OSError, ValueError, yaml.YAMLError, RecursionError, ImportError, AttributeError) as error:
        why = shortened(" ".join(str(error).split()), 200)
        raise DataError(
            f"the task file {shown(file.name)} can't be read: {why}",
            "the harness's guide to tasks says what a file may hold",
        ) from None
    if "group" in settings or not isinstance(settings.get("task"), str):
        message = f"{shown(file.name)} is no file of one task"
        raise DataError(message, "a task file has `task: NAME`; a group's tasks are named one by one")
    # The harness looks for data files in the current folder. Here they lie beside the task, like a grid's.
    options = settings.get("dataset_kwargs")
    if isinstance(options, dict) and "data_files" in options:
        settings["dataset_kwargs"] = {**options, "data_files": _beside(file.parent, options["data_files"])}
    return settings


def _functions(file: Path, seen: frozenset[Path] = frozenset()) -> Iterator[tuple[Path, int, str]]:
    """Every `!function` of a task file and of the files that it includes, but for the harness's own."""
    import lm_eval

    file = file.resolve()
    if file in seen or file.is_relative_to(Path(lm_eval.__file__).resolve().parent):
        return
    text = read_regular(file, MOST_BYTES)
    # Each can double what is read: settings of a few lines would fill the memory.
    if sum(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, yaml.SafeLoader)) > MOST_ALIASES:
        raise ValueError(f"{file.name} has more than {MOST_ALIASES} aliases")
    root = yaml.compose(text, yaml.SafeLoader)
    todo, known = [root], set()
    while todo:
        node = todo.pop()
        if node is None or id(node) in known:
            continue
        known.add(id(node))
        if not node.tag.startswith("tag:yaml.org,2002:") or "python/" in node.tag:
            yield file, node.start_mark.line + 1, str(node.value)
        if isinstance(node, yaml.SequenceNode):
            todo += node.value
        elif isinstance(node, yaml.MappingNode):
            todo += [part for pair in node.value for part in pair]
    if isinstance(root, yaml.MappingNode):
        for key, value in root.value:
            if key.value == "include":
                for one in value.value if isinstance(value, yaml.SequenceNode) else [value]:
                    yield from _functions(file.parent / str(one.value), seen | {file})


def _beside(folder: Path, files: Any) -> Any:
    if isinstance(files, dict):
        return {name: _beside(folder, one) for name, one in files.items()}
    if isinstance(files, list):
        return [_beside(folder, one) for one in files]
    if isinstance(files, str) and "://" not in files:
        return str(folder / Path(files).expanduser())
    return files


def _check(task: Any) -> None:
    """Refuse what can't be asked here, by the task's name."""
    name, kind = task.config.task, task.OUTPUT_TYPE
    if kind not in KINDS:
        raise DataError(
            f"the task {shown(name)} asks for {kind}", f"what is asked for here: {', '.join(KINDS)}"
        )
    for refused, why in (
        (
            getattr(task, "multiple_input", 0),
            "its choices stand in the prompt, so that each has a prompt of its own",
        ),
        (getattr(task, "multiple_target", 0) and kind == "multiple_choice", "it has several right answers"),
        (
            "acc_mutual_info" in task.aggregation(),
            "acc_mutual_info asks each choice without the question too",
        ),
        (task.config.repeats != 1, "it asks each question several times"),
        (getattr(task, "UNSAFE_CODE", False), "it runs the code that a model writes"),
        (getattr(task, "MULTIMODAL", False), "it shows pictures or sounds"),
        (
            all(unscored(task, metric) for metric in task.aggregation()),
            "none of its metrics is a mean over documents",
        ),
    ):
        if refused:
            raise DataError(f"the task {shown(name)} can't be asked: {why}", "leave it out")


@contextmanager
def _guarded() -> Iterator[None]:
    """While it lasts nothing is fetched, no metric comes from the hub, and no template runs Python."""
    import datasets
    import lm_eval.api.task
    from datasets.utils.logging import disable_progress_bar, set_verbosity_error
    from huggingface_hub import constants
    from lm_eval import utils

    disable_progress_bar()
    set_verbosity_error()
    _sandbox(utils)
    with (
        quiet(),
        replaced(datasets.config, "HF_HUB_OFFLINE", True),
        replaced(constants, "HF_HUB_OFFLINE", True),
        replaced(datasets, "load_dataset", partial(_load_dataset, datasets.load_dataset)),
        replaced(lm_eval.api.task, "get_metric", partial(_get_metric, lm_eval.api.task.get_metric)),
    ):
        yield


def _sandbox(utils: Any) -> None:
    """Templates of tasks in Jinja's sandbox: outside of it a template is a program."""
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    plain = utils.env
    if not isinstance(plain, ImmutableSandboxedEnvironment):
        utils.env = ImmutableSandboxedEnvironment(
            loader=plain.loader, undefined=plain.undefined, keep_trailing_newline=plain.keep_trailing_newline
        )
        utils.env.filters.update(plain.filters)


def _load_dataset(load: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """The data as it lies on this machine; data that brings code along is never loaded."""
    path, name, *_ = [*args, options.get("path"), options.get("name"), None]
    options.pop("trust_remote_code", None)
    try:
        return load(*args, **options)
    except Exception as error:  # by hub, cache, file and format there are a dozen kinds
        first = str(error).strip().partition("\n")[0]
        if options.get("data_files"):
            message = f"the data {shown(options['data_files'])} can't be read: {shortened(first, 200)}"
            raise DataError(message, "data files are looked for beside the task's file") from None
        named = ", ".join(repr(one) for one in (path, name) if one)
        message = f"the data set {shortened(named)} is not at hand: {shortened(first, 150)}"
        load_it = f"import datasets; datasets.load_dataset({shortened(named)})"
        raise DataError(message, f'fetch it where there is a network: python -c "{load_it}"') from None


def _get_metric(get: Callable[..., Any], name: str, from_hub: bool = False) -> Any:
    """A metric of the harness's own: those of the hub are programs."""
    import lm_eval.api.metrics
    from lm_eval.api.registry import metric_registry

    assert lm_eval.api.metrics
    if from_hub or name not in metric_registry:
        raise DataError(
            f"the metric {shown(name)} is a program from the hub", "use a metric of the harness's own"
        )
    return get(name)
