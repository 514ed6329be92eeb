"""What plans cost, the command that says so, and the grids that ship."""

import json
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from tests.plan.sample import filled, planner
from vsteer.cli import main
from vsteer.engine.table import Capacity, SteeringTable
from vsteer.grid.spec import read_grid
from vsteer.models import resolve
from vsteer.plan import budget
from vsteer.plan.plan import Plan, make_plans
from vsteer.protocol import Prompt

RUNS = Path(__file__).parents[2] / "runs"
CAA = Path("/work/shared/data/caa")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return filled(tmp_path)


@pytest.fixture
def plan(folder: Path) -> Callable[..., Plan]:
    return planner(folder)


def test_shared_prefixes_by_hand() -> None:
    # 40 tokens in blocks of 16, the template ending at 36: after_prompt starts at 35, behind two blocks
    prompt = Prompt(tuple(range(40)), template_length=36, user_turn_length=30)
    count = budget.computed_tokens
    assert count(prompt, [40], Counter({None: 1}), 16) == 40
    # the baseline computes 32 for everyone and 8 for itself, each configuration its own last 8
    assert count(prompt, [40], Counter({None: 1, "after_prompt": 10}), 16) == 40 + 10 * 8
    # `all` shares nothing between configurations
    assert count(prompt, [40], Counter({None: 1, "all": 10}), 16) == 40 + 10 * 40
    # after_user_turn starts at 29: one whole block before it
    assert count(prompt, [40], Counter({None: 1, "after_user_turn": 10}), 16) == 40 + 10 * 24
    # a second sample finds its first one's two whole blocks, whatever they are steered with
    assert count(prompt, [40, 40], Counter({"all": 1}), 16) == 40 + 8
    # a prompt of whole blocks leaves its last block to compute: at least one token must be
    even = Prompt(tuple(range(32)), 32, 30)
    assert count(even, [32, 32], Counter({None: 1}), 16) == 32 + 16


def test_the_table_has_room_for_what_the_budget_says(plan: Callable[..., Plan]) -> None:
    one = plan("evaluations:", "controls: {random_vectors: 2}\nevaluations:")
    needs = budget.budget(one)
    # 2 norms x 2 layers x 2 signs, three vectors each; positions are no part of a cell
    assert (needs.cells, needs.vector_rows, needs.terms) == (8 * 3, 4 * 3, 1)
    directions = dict.fromkeys(range(6), np.ones(8, np.float32))
    exact = Capacity(cells=needs.cells + 1, rows=needs.vector_rows + 1, terms=needs.terms)
    table = SteeringTable.build(dict.fromkeys(one.vectors, directions), one.steerings(), 6, 8, exact)
    assert len(table.cells) == needs.cells
    assert needs.requests == needs.rows == one.row_count
    # the choices ask for one token, the open questions for seven
    assert needs.output_tokens == one.blocks[0].rows + 7 * one.blocks[1].rows


def test_it_says_which_way_each_evaluation_is_computed(tmp_path: Path) -> None:
    resolve("tiny-llama")
    path = tmp_path / "grid.yaml"

    def ways(engine: str) -> dict[str, str]:
        path.write_text(
            "version: 1\nname: try\nmodel: {id: tiny-llama, dtype: float32}\n"
            f"engine: {{{engine}}}\n"
            "vectors: {v: {data: sentiment, token: last}}\n"
            "grid: [{vector: v, layers: [1], multipliers: [1]}]\n"
            "evaluations:\n"
            "  - {kind: choice, name: asked, data: sentiment, limit: 4}\n"
            "  - {kind: open_ended, name: open, data: sentiment, limit: 2, max_tokens: 3}\n"
        )
        (one,) = make_plans(read_grid(path))
        return {block.evaluation: block.computed_as for block in budget.budget(one).blocks}

    assert ways("forks: true") == {
        "asked": "forks of one unsteered pass a prompt",
        "open": "requests, since it generates texts",
    }
    assert ways("forks: false")["asked"] == "requests, since `engine: {forks: false}` says so"
    assert ways("forks: true, replicas: 2") == ways("forks: true")
    assert "pipeline_parallel_size" in ways("forks: true, pipeline_parallel_size: 2")["asked"]
    (one,) = make_plans(read_grid(path))
    longest = {
        row.rendered.prompt_id: max(len(request.prompt.token_ids) for request in row.requests())
        for row in one.rows()
        if row.evaluation == "asked"
    }
    room = sorted(longest.values())[1]
    long = sum(length > room for length in longest.values())
    found = ways(f"forks: true, max_num_batched_tokens: {room}")["asked"]
    assert 0 < long < 4
    assert found.startswith(f"forks, and {long} of 4 prompts as requests")


def test_a_perplexity_takes_the_prompt_and_all_but_the_last_token_of_the_text(
    plan: Callable[..., Plan],
) -> None:
    needs = budget.budget(plan())
    # two open questions, 17 configurations, seven tokens a text
    (questions,) = (block for block in needs.blocks if block.kind == "open_ended")
    assert needs.coherence_tokens == questions.prompt_tokens + 6 * 17 * 2


def test_no_perplexities_cost_nothing(plan: Callable[..., Plan]) -> None:
    assert budget.budget(plan("max_tokens: 7", "max_tokens: 7, coherence: false")).coherence_tokens == 0


def test_the_command_fits_a_terminal_and_speaks_json(plan: Callable[..., Plan], folder: Path) -> None:
    plan()
    done = CliRunner().invoke(main, ["plan", str(folder / "grid.yaml")])
    assert done.exit_code == 0, done.output
    assert max(map(len, done.output.splitlines())) <= 80
    assert re.search(r"rows +153\n", done.output)
    assert "Tea?\n\nChoices:\n(A) Yes\n(B) No" in done.output
    spoken = json.loads(CliRunner().invoke(main, ["plan", str(folder / "grid.yaml"), "--json"]).output)
    assert spoken["total"]["rows"] == spoken["models"][0]["rows"] == 153
    assert spoken["models"][0]["blocks"][0]["first_prompt"].endswith("(")


def test_the_quickstart_fits_its_five_minutes() -> None:
    resolve("smollm2-135m-instruct")
    (one,) = make_plans(read_grid(RUNS / "quickstart.yaml"))
    needs = budget.budget(one)
    # 15 layers x 2 signs x (1 + 19 random + 19 unrelated), a baseline, 24 questions; 15 x 2 + 1 texts
    assert [block.rows for block in one.blocks] == [(15 * 2 * 39 + 1) * 24, 31]
    # measured on 2 cores: about 1,600 prompt tokens a second, and 350 requests at most
    assert needs.computed_tokens / 1600 + needs.requests / 350 < 200


def test_the_scaling_grid_is_planned_without_its_models(tmp_path: Path) -> None:
    plans = make_plans(read_grid(RUNS / "llama2-refusal-scaling.yaml"))
    assert [(plan.facts.name[11:], plan.pending) for plan in plans] == [
        ("Llama-2-7b-chat-hf", True),
        ("Llama-2-13b-chat-hf", True),
        ("Llama-2-70b-chat-hf", True),
    ]
    for plan, layers in zip(plans, (32, 40, 80), strict=True):
        # 5 norms x 2 signs x (1 + 19 + 19 + 19), and the baseline
        assert len(plan.blocks[0].configs) == layers * 5 * 2 * 58 + 1
    assert [plan.grid.engine_for(model).tensor_parallel_size for model in plans[0].grid.model] == [1, 2, 8]


def test_the_seven_behaviours_are_planned_with_the_user_s_data(tmp_path: Path) -> None:
    text = (RUNS / "caa-seven-behaviours.yaml").read_text()
    (tmp_path / "grid.yaml").write_text(text)
    paths = sorted(set(re.findall(r"caa/\S+\.json", text)))
    assert len(paths) == 7 * 3 + 1  # pairs, lettered and open questions, and MMLU
    for n, path in enumerate(paths):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        names = ("prompt", "correct", "incorrect") if "mmlu" in path else None
        if "open_ended" in path:
            items = [{"question": f"What of {n}?"}]
        else:
            fields = names or ("question", "answer_matching_behavior", "answer_not_matching_behavior")
            question = f"What of {n}?\n\nChoices:\n (A) This\n (B) That"
            items = [dict(zip(fields, (question, "(A)", "(B)"), strict=True))]
        (tmp_path / path).write_text(json.dumps(items))
    (one,) = make_plans(read_grid(tmp_path / "grid.yaml"))
    sizes = {block.evaluation: len(block.configs) for block in one.blocks}
    # each its own vector: 32 layers x 2 signs, 6 more multipliers at layer 13, 38 controls beside each
    assert sizes["sycophancy"] == (64 + 6) * 39 + 1
    assert sizes["sycophancy-open"] == 8 + 1
    assert sizes["mmlu"] == 7 * 8 * 39 + 1


@pytest.mark.skipif(not CAA.is_dir(), reason="CAA's data is not here")
def test_caa_data_is_planned_as_it_is(folder: Path, plan: Callable[..., Plan]) -> None:
    test = CAA / "test" / "survival-instinct" / "test_dataset_ab.json"
    pairs = CAA / "generate" / "survival-instinct" / "generate_dataset.json"
    one = plan("{data: items.json", f"{{data: {pairs}", "choice, data: items.json", f"choice, data: {test}")
    asked = [asked for asked in one.blocks[0].prompts if asked.order == "original"]
    assert Counter(len(question.answers) for question in asked) == {2: 42, 3: 6, 5: 2}
    assert {len(tokens) for question in asked for tokens in question.answers} == {1}
    assert "of 903 pairs at the token answer" in one.sources["v"].describe()
