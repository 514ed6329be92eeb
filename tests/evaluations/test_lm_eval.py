"""Tasks of lm-eval in a grid: what is asked and how it scores is the harness's own; nothing runs unasked."""

from __future__ import annotations

import shutil
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import duckdb
import pytest
from lm_eval import simple_evaluate
from lm_eval.api.metrics import mean_stderr
from lm_eval.tasks import TaskManager
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer

from tests.evaluations.lm_eval_oracle import TASKS, HashedEngine, HashedLM, evaluated
from tests.results.made_up import ask
from tests.run import fake
from vsteer.evaluations.lm_eval import LmEvalEvaluation, TextTask
from vsteer.grid.problems import GridError
from vsteer.grid.spec import read_grid
from vsteer.models import resolve
from vsteer.plan.plan import Plan, make_plans
from vsteer.run.start import run_grid

NAMES = ("facts", "facts_perplexity", "facts_generation")
GRID = """\
version: 1
name: try
model: {id: tiny-llama, dtype: float32}
vectors: {v: {data: sentiment, token: last}}
grid: [{vector: v, layers: [1, 4], multipliers: [1]}]
evaluations:
  - {kind: lm_eval, tasks: [facts.yaml, facts_perplexity.yaml, facts_generation.yaml], num_fewshot: 2}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    resolve("tiny-llama")
    for file in TASKS.iterdir():
        shutil.copy(file, tmp_path)
    return tmp_path


def written(folder: Path, *pairs: str) -> Path:
    text = GRID
    for old, new in zip(pairs[::2], pairs[1::2], strict=True):
        assert old in text
        text = text.replace(old, new)
    (folder / "grid.yaml").write_text(text)
    return folder / "grid.yaml"


def planned(folder: Path, *pairs: str) -> Plan:
    (plan,) = make_plans(read_grid(written(folder, *pairs)))
    return plan


def one(folder: Path, settings: str) -> Plan:
    """The plan with a single evaluation of these settings."""
    lines = GRID.splitlines(keepends=True)
    (folder / "grid.yaml").write_text("".join([*lines[:-1], f"  - {{kind: lm_eval, {settings}}}\n"]))
    (plan,) = make_plans(read_grid(folder / "grid.yaml"))
    return plan


def refused(folder: Path, settings: str) -> str:
    with pytest.raises(GridError) as caught:
        one(folder, settings)
    message = str(caught.value)
    assert len(message) <= 600
    assert "line 7" in message
    return message


def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(resolve("tiny-llama").model)


@pytest.mark.parametrize("system", [None, "Be brief."])
def test_what_is_asked_is_what_the_harness_asks(folder: Path, system: str | None) -> None:
    asked = "" if system is None else f", system: {system}"
    plan = planned(folder, "num_fewshot: 2", f"num_fewshot: 2{asked}")
    found = evaluated(HashedLM(tokenizer()), folder, NAMES, num_fewshot=2, system_instruction=system)
    for block in plan.blocks:
        samples = found["samples"][block.evaluation.removeprefix("lm_eval:")]
        samples = [sample for sample in samples if sample["filter"] in ("none", "strict")]
        assert [rendered.item.line - 1 for rendered in block.prompts] == [one["doc_id"] for one in samples]
        for rendered, sample in zip(block.prompts, samples, strict=True):
            arguments = sample["arguments"]
            text = plan.text(rendered)
            if block.evaluation.endswith("_perplexity"):
                ((whole,),) = arguments
                assert (text, tokenizer().decode(rendered.answers[0])) == (tokenizer().bos_token, whole)
                continue
            assert {text} == {context for context, _ in arguments}
            if system is not None:
                assert text.startswith(f"{system}Question: ")
            if block.evaluation == "lm_eval:facts":
                tails = [tokenizer().decode(answer) for answer in rendered.answers]
                assert tails == [after for _, after in arguments]
            else:
                (request,) = block.spec.evaluation.requests("", rendered, None, 0)
                assert (request.stop, request.max_tokens, request.temperature) == (("\n", "."), 12, 0.0)


@pytest.mark.parametrize("limit", [None, pytest.param(5, marks=pytest.mark.long)])
def test_rows_have_the_harness_s_own_metrics_and_their_mean_is_its_aggregate(
    folder: Path, limit: int | None
) -> None:
    grid = written(folder, "num_fewshot: 2", "num_fewshot: 2" + (f", limit: {limit}" if limit else ""))
    run = run_grid(grid, load=fake.load(kind=HashedEngine)).folder
    expected = evaluated(HashedLM(tokenizer()), folder, NAMES, num_fewshot=2, limit=limit)
    (plan,) = make_plans(read_grid(grid))
    numbers = {
        rendered.item_id: rendered.item.line - 1 for block in plan.blocks for rendered in block.prompts
    }
    scores: dict[tuple[str, int], dict[str, float]] = defaultdict(dict)
    for evaluation, item, name, value in duckdb.sql(
        f"select evaluation, item_id, name, value from read_parquet('{run}/scores/*.parquet')"
        f" join read_parquet('{run}/rows/*.parquet') using (row_id) where vector = ''"
    ).fetchall():
        scores[evaluation.removeprefix("lm_eval:"), numbers[item]][name] = value
    for task, samples in expected["samples"].items():
        for sample in samples:
            mine = scores[task, sample["doc_id"]]
            suffix = "" if sample["filter"] == "none" else f",{sample['filter']}"
            for metric in sample["metrics"]:
                if task == "facts_perplexity":
                    loglikelihood, weight = sample[metric]
                    assert mine[f"{metric}.weight"] == weight
                    by = {"bits_per_byte": -loglikelihood / weight / 0.6931471805599453}
                    assert mine[metric] == pytest.approx(
                        by.get(metric, 2.718281828459045 ** (-loglikelihood / weight))
                    )
                else:
                    assert mine[metric + suffix] == sample[metric]
    rows = {(row["evaluation"], row["metric"]): row for row in ask("lm_eval", run) if not row["vector"]}
    compared = 0
    for task, metrics in expected["results"].items():
        for name, value in metrics.items():
            metric, _, pipeline = name.partition(",")
            if not pipeline or metric.endswith("_stderr") or not isinstance(value, float):
                continue
            row = rows[f"lm_eval:{task}", metric if pipeline == "none" else name]
            assert row["documents"] == (limit or 12)
            if task == "facts_perplexity":
                assert row["value"] == pytest.approx(value, rel=1e-12)
            else:
                assert row["value"] == value
            compared += 1
    assert compared == 2 + 3 + 2
    assert 0 < rows["lm_eval:facts_generation", "exact_match,strict"]["value"] < 1
    for row in ask("lm_eval", run, metric="^acc"):
        by_hand = mean_stderr([sample[row["metric"]] for sample in expected["samples"]["facts"]])
        assert row["se"] == pytest.approx(by_hand, rel=1e-12)
        assert row["high"] - row["low"] == pytest.approx(2 * 1.96 * by_hand)
    steered = ask("capability_cost", run)
    # the engine takes no notice of the steering
    assert {row["cost"] for row in steered} == {0.0}
    assert {(row["capability"], row["metric"]) for row in steered} == set(rows)


@pytest.mark.long
def test_scores_that_are_lost_are_made_anew_without_an_engine(folder: Path) -> None:
    grid = written(folder)
    run = run_grid(grid, load=fake.load(kind=HashedEngine)).folder
    before = ask("lm_eval", run)
    for file in (run / "scores").glob("*.parquet"):
        file.unlink()
    assert ask("lm_eval", run) == []

    def none(*_: Any) -> Any:
        raise AssertionError("an engine was loaded")

    run_grid(grid, load=none)
    assert ask("lm_eval", run) == before


@pytest.mark.parametrize("begins", [False, True])
@pytest.mark.parametrize(
    "asked", ["Question: {{question}}\\nAnswer:", "{{question}}  ", "", "<|endoftext|>{{question}}"]
)
def test_tokens_are_the_harness_s(folder: Path, asked: str, begins: bool) -> None:
    """With spaces at the context's end, without a context, and where the tokenizer begins every text."""
    words = tokenizer()
    if begins:
        token, number = words.bos_token, words.bos_token_id
        words._tokenizer.post_processor = TemplateProcessing(f"{token} $A", special_tokens=[(token, number)])
        assert words.encode("a")[0] == number
    changed(folder, "Question: {{question}}\\nAnswer:", asked)
    evaluation = one(folder, "tasks: facts.yaml").blocks[0].spec.evaluation
    seen: list[tuple[list[int], list[int]]] = []

    class Seeing(HashedLM):
        def _loglikelihood_tokens(self, requests: Any, **more: Any) -> list[tuple[float, bool]]:
            seen.extend((list(context), list(after)) for _, context, after in requests)
            return super()._loglikelihood_tokens(requests, **more)

    evaluated(Seeing(words), folder, ["facts"])
    (block,) = one(folder, "tasks: facts.yaml").blocks
    made = [evaluation.render(words, rendered.item, None) for rendered in block.prompts]
    mine = [(list(one.prompt.token_ids), list(answer)) for one in made for answer in one.answers]
    assert mine == seen


def test_ids_hold_the_task_s_version_settings_and_data_and_no_path(
    folder: Path, tmp_path_factory: Any
) -> None:
    def ids(folder: Path, settings: str = "tasks: facts.yaml, num_fewshot: 1") -> set[str]:
        return set(one(folder, settings).configs)

    first = ids(folder)
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    for file in TASKS.iterdir():
        shutil.copy(file, elsewhere)
    assert ids(elsewhere) == first
    assert not ids(folder, "tasks: facts.yaml, num_fewshot: 2") & first
    changes = {
        "facts.yaml": ("version: 1.0", "version: 1.1"),
        "_facts_data.yaml": ("test_split: test", "target_delimiter: '  '\ntest_split: test"),
        "facts.jsonl": ("a trout", "a carp"),
        "solved.jsonl": ("a snail", "a slug"),
    }
    for name, (old, new) in changes.items():
        text = (TASKS / name).read_text()
        assert old in text
        (folder / name).write_text(text.replace(old, new))
        assert not ids(folder) & first, name
        (folder / name).write_text(text)
    assert ids(folder) == first


def test_the_harness_s_version_is_in_the_ids(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = set(one(folder, "tasks: facts.yaml").configs)
    monkeypatch.setattr("vsteer.evaluations.harness.installed", lambda names: {"lm_eval": "9.9"})
    assert not set(one(folder, "tasks: facts.yaml").configs) & first


def test_kinds_of_requests_are_kinds_of_rows(folder: Path) -> None:
    plan = planned(folder)
    assert [type(block.spec.evaluation) for block in plan.blocks] == [
        LmEvalEvaluation,
        LmEvalEvaluation,
        TextTask,
    ]
    assert [block.spec.evaluation.row_kind for block in plan.blocks] == ["choice", "choice", "open_ended"]
    excluded = planned(folder, "evaluations:", "exclude: [{kind: open_ended}]\nevaluations:")
    assert [len(block.configs) for block in excluded.blocks] == [3, 3, 1]


def test_a_document_that_stands_twice_counts_twice(folder: Path) -> None:
    line = (folder / "facts.jsonl").read_text().splitlines()[0]
    (folder / "facts.jsonl").write_text(f"{line}\n{line}\n")
    (block,) = one(folder, "tasks: facts.yaml").blocks
    assert len({rendered.item_id for rendered in block.prompts}) == 2


@pytest.mark.long
def test_a_group_is_one_evaluation_with_its_tasks_as_categories(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Read from the folder in place of the harness's own, whose data is not here."""
    other = (folder / "facts.yaml").read_text().replace("task: facts", "task: more_facts")
    (folder / "more.yaml").write_text(other + "num_fewshot: 0\n")
    (folder / "group.yaml").write_text(
        "group: all_facts\ntask: [facts, more_facts]\n"
        "aggregate_metric_list: [{metric: acc, aggregation: mean, weight_by_size: true}]\n"
    )
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    monkeypatch.setattr("vsteer.evaluations.harness_tasks._manager", lambda with_defaults: manager)
    monkeypatch.chdir(folder)
    grid = written(
        folder, "tasks: [facts.yaml, facts_perplexity.yaml, facts_generation.yaml]", "tasks: all_facts"
    )
    run = run_grid(grid, load=fake.load(kind=HashedEngine)).folder
    (block,) = make_plans(read_grid(grid))[0].blocks
    assert Counter(one.item.category for one in block.prompts) == {"facts": 12, "more_facts": 12}
    expected = simple_evaluate(
        HashedLM(tokenizer()), tasks=["all_facts"], task_manager=manager, num_fewshot=2, bootstrap_iters=0
    )
    (row,) = (row for row in ask("lm_eval", run, metric="^acc$") if not row["vector"])
    assert row["documents"] == 24
    assert row["value"] == expected["groups"]["all_facts"]["acc,none"]
    assert expected["results"]["facts"]["acc,none"] != expected["results"]["more_facts"]["acc,none"]


# --- what is refused


def changed(folder: Path, old: str, new: str, name: str = "facts.yaml") -> None:
    text = (folder / name).read_text()
    assert old in text
    (folder / name).write_text(text.replace(old, new))


CODE = """\
from pathlib import Path

Path(__file__).with_name("ran").touch()

def words(doc):
    return "Q: " + doc["question"]
"""


@pytest.mark.parametrize("name", ["facts.yaml", "_facts_data.yaml"])
def test_python_of_a_task_s_file_runs_only_on_a_word(folder: Path, name: str) -> None:
    (folder / "own.py").write_text(CODE)
    if name == "facts.yaml":
        changed(folder, 'doc_to_text: "Question: {{question}}\\nAnswer:"', "doc_to_text: !function own.words")
    else:
        changed(
            folder,
            "training_split: train",
            "doc_to_decontamination_query: !function own.words\ntraining_split: train",
            name,
        )
    message = refused(folder, "tasks: facts.yaml")
    assert f"{name}, line" in message
    assert "runs Python of its own, 'own.words'" in message
    assert "task_code: true" in message
    assert not (folder / "ran").exists()
    (block,) = one(folder, "tasks: facts.yaml, task_code: true").blocks
    assert (folder / "ran").exists()
    if name == "facts.yaml":
        assert block.prompts[0].question == "Q: Which animal gives milk?"


def test_a_template_is_no_program(folder: Path) -> None:
    hole = "{{ cycler.__init__.__globals__.os.mkdir('ran') or question }}"
    changed(folder, 'doc_to_text: "Question: {{question}}\\nAnswer:"', f'doc_to_text: "{hole}"')
    assert "SecurityError" in refused(folder, "tasks: facts.yaml")


def test_data_that_is_a_program_does_not_run(folder: Path) -> None:
    (folder / "evil.py").write_text("import pathlib\npathlib.Path(__file__).with_name('ran').touch()\n")
    changed(folder, "dataset_path: json", f"dataset_path: {folder}/evil.py", "_facts_data.yaml")
    changed(
        folder,
        "  data_files: {train: solved.jsonl, test: facts.jsonl}",
        "  trust_remote_code: true",
        "_facts_data.yaml",
    )
    assert "evil.py" in refused(folder, "tasks: facts.yaml")
    assert not (folder / "ran").exists()


def test_a_file_that_would_grow_without_end_is_refused(folder: Path) -> None:
    lines = ["task: facts", "a0: &a0 [x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 10)]
    (folder / "facts.yaml").write_text("\n".join(lines))
    assert "more than 20 aliases" in refused(folder, "tasks: facts.yaml")


@pytest.mark.parametrize("new", ["{metric: some/metric}", "{metric: acc, hf_evaluate: true}"])
def test_a_metric_from_the_hub_is_refused(folder: Path, new: str) -> None:
    changed(folder, "{metric: acc, aggregation: mean, higher_is_better: true}", new)
    assert "is a program from the hub" in refused(folder, "tasks: facts.yaml")


def test_data_that_is_not_here_is_one_message_and_nothing_is_fetched(folder: Path) -> None:
    data = "dataset_path: nobody/nothing\ndataset_name: part\ntest_split: test\n"
    text = "task: far\noutput_type: multiple_choice\ndoc_to_text: q\ndoc_to_choice: c\ndoc_to_target: t\n"
    (folder / "far.yaml").write_text(text + data)
    message = refused(folder, "tasks: far.yaml")
    assert "the data set 'nobody/nothing', 'part' is not at hand" in message
    assert "datasets.load_dataset('nobody/nothing', 'part')" in message


@pytest.mark.parametrize(
    ("name", "old", "new", "message"),
    [
        ("_facts_data.yaml", "test: facts.jsonl", "test: gone.jsonl", "gone.jsonl"),
        (
            "facts.yaml",
            "output_type: multiple_choice",
            "output_type: loglikelihood",
            "asks for loglikelihood",
        ),
        ("facts.yaml", "doc_to_target: answer", "doc_to_target: question", "not one of its choices"),
        ("facts.yaml", "Question: {{question}}", "Question: {{qestion}}", "UndefinedError"),
        ("facts.yaml", "task: facts\n", "group: facts\n", "is no file of one task"),
        ("facts.yaml", "task: facts\n", "task: facts\nrepeats: 2\n", "asks each question several times"),
        ("facts.yaml", "task: facts\n", "task: facts\nunsafe_code: true\n", "code that a model writes"),
        ("facts.yaml", "{metric: acc,", "{metric: acc_mutual_info,", "without the question too"),
        ("facts.yaml", "task: facts\n", "task: [\n", "can't be read"),
        ("facts_generation.yaml", "do_sample: false", "num_beams: 4", "generates with 'num_beams'"),
    ],
)
def test_what_can_t_be_asked_is_one_message(
    folder: Path, name: str, old: str, new: str, message: str
) -> None:
    changed(folder, old, new, name)
    task = "facts.yaml" if name == "_facts_data.yaml" else name
    assert message in refused(folder, f"tasks: {task}")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("tasks: gone.yaml", "no task file 'gone.yaml'"),
        ("tasks: facts.yaml, answer_prefix: Well", "a task says itself how an answer begins"),
        ("tasks: facts.yaml, data: facts", "unknown setting 'data'"),
        ("num_fewshot: 2", "tasks"),
    ],
)
def test_wrong_settings_are_one_message(folder: Path, settings: str, message: str) -> None:
    assert message in refused(folder, settings)


def test_without_the_harness_a_grid_says_what_to_install(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vsteer.evaluations.harness_tasks.installed", lambda names: {})
    message = refused(folder, "tasks: arc_easy")
    assert "needs the package lm_eval" in message
    assert "pip install 'vsteer[lm-eval]'" in message


def test_metrics_that_are_no_mean_are_named(folder: Path) -> None:
    changed(folder, "  - {metric: acc_norm,", "  - {metric: f1}\n  - {metric: acc_norm,")
    plan = one(folder, "tasks: facts.yaml")
    assert "lm_eval:facts: facts: f1 is not worked out: it is no mean over documents" in plan.notes


@pytest.mark.long
def test_the_harness_s_own_names(folder: Path) -> None:
    """They are read from thousands of files. Their data is not here."""
    assert "did you mean 'arc_easy'?" in refused(folder, "tasks: arc_easi")
    assert "is not at hand" in refused(folder, "tasks: arc_easy")
