"""Plans: configurations, rows and records, counted by hand; and what they cost."""

from collections import Counter
from collections.abc import Callable, Iterator
from itertools import groupby
from pathlib import Path

import numpy as np
import pytest

from tests.plan.sample import filled, planner, refused
from vsteer.errors import UsageError
from vsteer.plan.budget import budget
from vsteer.plan.plan import Plan
from vsteer.plan.rows import row_of
from vsteer.protocol import OPEN_END, Result, Term
from vsteer.store.planned import Planned


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return filled(tmp_path)


@pytest.fixture
def plan(folder: Path) -> Callable[..., Plan]:
    return planner(folder)


def test_rows_are_configurations_times_questions_times_samples(plan: Callable[..., Plan]) -> None:
    one = plan()
    # 2 norms x 2 layers x 2 signs x 2 positions, and the baseline that multiplier 0 is too
    assert [len(block.configs) for block in one.blocks] == [17, 17]
    # 4 items and 3 of them in the other order; "Why?" stands twice
    assert [len(block.prompts) for block in one.blocks] == [7, 2]
    assert one.row_count == 17 * 7 + 17 * 2
    rows = list(one.rows())
    assert len(rows) == len({row.row_id for row in rows}) == one.row_count
    # an open question and a choice are asked differently: two configurations each
    assert len(one.configs) == 34
    swapped = "which have swapped letters, and their wording refers to the order"
    assert one.notes == (
        f"choice:items: not asked: 1 of 8 questions, {swapped}",
        "open_ended:open: not asked: 1 of 3 questions, which stand in the data again and are asked once",
    )


def test_the_rows_of_a_plan_are_in_the_order_of_their_places(plan: Callable[..., Plan]) -> None:
    one = plan("max_tokens: 7", "temperature: 0.5, samples: 3, limit: 1")
    rows = list(one.rows())
    planned = Planned(one.parts())
    assert len(planned) == one.row_count == len(rows)
    assert [planned.row_id(place) for place in range(len(rows))] == [row.row_id for row in rows]
    assert sum(prompt.count for prompt in one.prompts()) == len(rows)


def test_samples_and_system_prompts_multiply(plan: Callable[..., Plan]) -> None:
    one = plan("max_tokens: 7", "temperature: 0.5, samples: 3, system: [null, Be brief.], limit: 1")
    written = [block for block in one.blocks if block.spec.evaluation.row_kind == "open_ended"]
    assert [(block.system, len(block.configs), block.rows) for block in written] == [
        ("", 17, 17 * 3),
        ("Be brief.", 17, 17 * 3),
    ]


def test_the_controls_stand_beside_choices_alone(plan: Callable[..., Plan]) -> None:
    controls = (
        "controls: {random_vectors: 3, shuffled_labels: 2, system_prompts: {positive: Yes., negative: No.}}"
    )
    one = plan("evaluations:", controls + "\nevaluations:")
    sizes = Counter({(b.evaluation, b.system): len(b.configs) for b in one.blocks})
    # 16 steered, 3 + 2 controls beside each, one baseline; a system prompt as a control is one configuration
    assert sizes == {
        ("choice:items", ""): 16 * 6 + 1,
        ("choice:items", "positive"): 1,
        ("choice:items", "negative"): 1,
        ("open_ended:open", ""): 17,
        ("open_ended:open", "positive"): 1,
        ("open_ended:open", "negative"): 1,
    }
    kinds = Counter(config.control for config in one.blocks[0].configs)
    assert kinds == {"": 17, "random": 48, "shuffled": 32}
    # one vector for each norm, and of each norm 3 + 2 controls
    assert len(one.vectors) == 2 * (1 + 3 + 2)
    seeds = {use.key: use.seed for use in one.vectors.values() if use.control == "random"}
    assert seeds["v:raw:random:0"] == seeds["v:unit:random:0"] != seeds["v:raw:random:1"]


def test_exclusions_leave_out_what_agrees_with_all_they_say(plan: Callable[..., Plan], folder: Path) -> None:
    # of 16 steered: those of norm unit at layer 4 are 4; open-ended ones after the prompt are 8
    exclude = "exclude:\n  - {norm: unit, layers: 4}\n  - {kind: open_ended, positions: after_prompt}\n"
    one = plan("evaluations:", exclude + "evaluations:")
    assert [len(block.configs) for block in one.blocks] == [17 - 4, 17 - 8 - 2]
    assert one.excluded == (8, 6)
    message = refused(folder, "evaluations:", "exclude:\n  - {multipliers: 3}\nevaluations:")
    assert "grid.yaml, line 13: this exclusion matches no configuration" in message


def test_controls_can_be_left_out_alone(plan: Callable[..., Plan], folder: Path) -> None:
    controls = "controls: {random_vectors: 3, shuffled_labels: 2}\n"

    def kinds(exclude: str) -> dict[str, int]:
        one = plan("evaluations:", f"{controls}exclude:\n{exclude}evaluations:")
        return dict(Counter(config.control for config in one.blocks[0].configs))

    # of 16 steered configurations with 3 + 2 controls each, half are at layer 4
    assert kinds("  - {control: random, layers: 4}\n") == {"": 17, "random": 24, "shuffled": 32}
    assert kinds("  - {control: [random, shuffled], norm: unit}\n") == {"": 17, "random": 24, "shuffled": 16}
    # a vector takes its controls with it
    assert kinds("  - {layers: 4}\n") == {"": 9, "random": 24, "shuffled": 16}
    message = refused(folder, "evaluations:", "exclude:\n  - {control: random}\nevaluations:")
    assert "this exclusion matches no configuration" in message
    message = refused(folder, "evaluations:", "exclude:\n  - {control: system}\nevaluations:")
    assert "expected random, shuffled or unrelated, found 'system'" in message


def test_layers_together_are_one_configuration_beside_single_ones(plan: Callable[..., Plan]) -> None:
    """Each layer has its own direction, and a list of the same layers is the same configuration."""
    one = plan("layers: [1, 4]", "layers: [1, {together: {from: 1, to: 5, step: 2}}]")
    steered = [config for config in one.blocks[0].configs if config.terms]
    assert Counter(config.layers for config in steered) == {(1,): 8, (1, 3, 5): 8}
    (raw,) = {
        config.terms
        for config in steered
        if config.vector and (len(config.layers), config.vector.norm, config.multiplier) == (3, "raw", -1.0)
    }
    assert raw == tuple(Term("v:raw", layer, -1.0) for layer in (1, 3, 5))
    listed = plan("layers: [1, 4]", "layers: [1, [1, 3, 5]]")
    assert {*one.configs} == {*listed.configs}


def test_where_a_vector_is_added_and_what_a_clamp_does_make_other_configurations(
    plan: Callable[..., Plan],
) -> None:
    plain, behind, clamped = (
        plan("multipliers: [-1, 0, 1]", f"multipliers: [-1, 1]{more}")
        for more in ("", "\n    where: attention", "\n    operation: clamp")
    )
    for one, operation in ((plain, "add"), (behind, "add_attention"), (clamped, "clamp")):
        steered = {config.operation for config in one.configs.values() if config.terms}
        assert steered == {operation}
        # choices and texts have a baseline each
        assert len(one.configs) == 2 * 17
    assert len({*plain.configs, *behind.configs, *clamped.configs}) == 3 * 32 + 2


def test_unrelated_vectors_are_made_from_all_but_the_vectors_own_data(plan: Callable[..., Plan]) -> None:
    """Each is one configuration beside each steered one, and what they are made from is in its id."""
    listed = "controls: {unrelated: [items.json, words.jsonl, language]}\nevaluations:"
    one = plan("evaluations:", listed, "norm: [raw, unit]}", "norm: [raw, unit]}\n  w: {data: words.jsonl}")
    (block, _) = one.blocks
    assert Counter(config.control for config in block.configs) == {"": 17, "unrelated": 32}
    uses = [use for use in one.vectors.values() if use.control]
    assert {(use.norm, use.index, use.other.source) for use in uses if use.other} == {
        (norm, index, data)
        for norm in ("raw", "unit")
        for index, data in ((1, "words.jsonl"), (2, "language"))
    }
    before = {config.config_id for config in block.configs if config.control}
    assert len(before) == 32
    other = plan("evaluations:", listed.replace("language", "sentiment"))
    after = {config.config_id for config in other.blocks[0].configs if config.control}
    assert len(before & after) == 16
    # the steered ones and the baseline are what they are without controls
    own = {config.config_id for config in block.configs if not config.control}
    assert own == {config.config_id for config in plan().blocks[0].configs}


def test_unrelated_vectors_are_those_of_other_behaviours(plan: Callable[..., Plan]) -> None:
    controls = "controls: {unrelated: [refusal, sentiment]}\nevaluations:"
    one = plan("{data: items.json,", "{data: refusal/instructions,", "evaluations:", controls)
    (made,) = {use.other for use in one.vectors.values() if use.other}
    assert (made.source, made.method, made.identity()["form"]) == ("sentiment", "dim", "answers")


def test_a_vector_may_be_asked_about_its_own_data_alone(plan: Callable[..., Plan]) -> None:
    two = "  w: {file: made.safetensors}\ngrid:\n  - vector: w\n    layers: 2\n    multipliers: 1\n"
    one = plan("grid:\n", two, "choice, data", "choice, vectors: v, data")
    assert [len(block.configs) for block in one.blocks] == [17, 18]
    stored = next(use for use in one.vectors.values() if use.name == "w")
    assert (stored.norm, stored.source.is_file) == ("stored", True)


def test_several_layers_at_once_are_one_configuration(plan: Callable[..., Plan]) -> None:
    one = plan("layers: [1, 4]", "layers: [1, [2, 4]]", "norm: [raw, unit]", "norm: raw")
    both = [config for config in one.blocks[0].configs if config.layers == (2, 4)]
    assert len(both) == 4
    assert [(term.vector, term.layer, term.multiplier) for term in both[0].terms] == [
        ("v:raw", 2, -1.0),
        ("v:raw", 4, -1.0),
    ]
    assert both[0].axes()["layer"] is None
    assert next(c for c in one.blocks[0].configs if c.layers == (1,)).axes()["depth"] == pytest.approx(2 / 6)


def test_the_same_configuration_reached_twice_is_there_once(plan: Callable[..., Plan]) -> None:
    once = plan()
    again = "  - {vector: v, layers: {from: 1, to: 4}, multipliers: 1.0, positions: all}\n"
    twice = plan("evaluations:", again + "evaluations:")
    # layers 1 and 4 were there, 2 and 3 are new: of both norms
    assert len(twice.blocks[0].configs) == 17 + 4
    assert set(once.configs) < set(twice.configs)


def test_requests_steer_an_absolute_span(plan: Callable[..., Plan]) -> None:
    for row in plan().rows():
        (request,) = row.requests()
        assert row_of(request.id) == (row.row_id, 0)
        prompt = row.rendered.prompt
        if row.config.positions is None:
            assert request.steering is None
        else:
            assert request.steering is not None
            start = {"all": 0, "after_prompt": prompt.template_length - 1}[str(row.config.positions)]
            assert request.steering.positions == (start, OPEN_END)
            assert request.steering.terms == row.config.terms
        choice = row.config.spec.evaluation.row_kind == "choice"
        assert request.max_tokens == (1 if choice else 7)
        assert len(request.logprob_token_ids) == (len(row.rendered.answers) if choice else 0)


def test_rows_come_prompt_by_prompt_with_the_baseline_first(plan: Callable[..., Plan]) -> None:
    one = plan()
    groups = [list(rows) for _, rows in groupby(one.rows(), key=lambda row: row.rendered.prompt_id)]
    assert len(groups) == 9
    for rows in groups:
        assert rows[0].config.positions is None
        assert len({row.config.config_id for row in rows}) == len(rows) == 17


def test_rows_are_made_when_they_are_wanted(plan: Callable[..., Plan]) -> None:
    rows = plan("max_tokens: 7", "temperature: 1, samples: 1000000").rows()
    assert isinstance(rows, Iterator)
    assert next(rows).sample == 0


def test_an_answer_of_several_tokens_is_one_row(plan: Callable[..., Plan]) -> None:
    one = plan("choice, data: items.json", "choice, data: words.jsonl")
    block = one.blocks[0]
    assert block.rows == 2 * 17
    row = next(row for row in one.rows() if row.config.positions == "after_prompt")
    requests = row.requests()
    length = len(row.rendered.prompt.token_ids)
    assert len(requests) > 1
    assert {request.steering for request in requests} == {requests[0].steering}
    assert all(request.prompt.token_ids[:length] == row.rendered.prompt.token_ids for request in requests)
    results = [
        Result(
            request.id,
            "ok",
            token_ids=(1,),
            logprobs=(dict.fromkeys(request.logprob_token_ids, -1.0),),
            prompt_tokens=9,
            cached_tokens=2,
            steered_tokens=3,
        )
        for request in requests
    ]
    record = row.record(results)
    assert record["choice_logprobs"] == [-float(len(tokens)) for tokens in row.rendered.answers]
    assert record["prompt_tokens"] == 9 * len(requests)
    assert record["steered_tokens"] == 3 * len(requests)
    assert record["completion_tokens"] == len(requests)


def test_a_record_s_values(plan: Callable[..., Plan]) -> None:
    rows = list(plan().rows())
    swapped = next(row for row in rows if row.rendered.order == "swapped" and row.config.multiplier == 1)
    (request,) = swapped.requests()
    a, b = request.logprob_token_ids
    result = Result(request.id, "ok", None, (a,), "A", "length", ({a: -1.0, b: -3.0},), (), 30, 16, 5)
    record = swapped.record([result])
    assert record["status"] == "ok"
    assert record["letter_order"] == "swapped"
    # the first item's match is (A), so with its choices in the other order it is (B)
    assert (record["choices"], record["matching"]) == (["A", "B"], 1)
    assert record["logit_diff"] == -2.0
    assert record["total_mass"] == pytest.approx(np.exp(-1) + np.exp(-3))
    assert record["p_match"] == pytest.approx(np.exp(-3) / (np.exp(-1) + np.exp(-3)))
    assert (record["layers"], record["layer"], record["multiplier"]) == ([1], 1, 1.0)
    failed = swapped.record([Result(request.id, "error", error="too long")])
    assert (failed["status"], failed["error"], failed["p_match"]) == ("error", "too long", None)
    written = next(row for row in rows if row.config.spec.evaluation.row_kind == "open_ended")
    record = written.record([Result("x", "ok", None, (5, 6), "hi", "stop", (), (), 30, 16, 0)])
    assert (record["text"], record["token_ids"], record["finish_reason"]) == ("hi", [5, 6], "stop")
    assert record["choices"] is None


def test_records_are_what_the_store_takes(plan: Callable[..., Plan]) -> None:
    schema = pytest.importorskip("vsteer.store.schema")
    one = plan(
        "evaluations:", "controls: {random_vectors: 1, system_prompts: {positive: Yes.}}\nevaluations:"
    )
    by_the_run = {"vector_sha256", "started_at", "finished_at", "attempt", "engine", "vllm_version"}
    by_the_run |= {"vector_file_sha256", "run_session"}
    columns = [
        {c.name for c in table} - by_the_run for table in (schema.ROWS, schema.CONFIGS, schema.PROMPTS)
    ]
    row = next(one.rows())
    record = row.record([Result("x", "error", error="no")])
    assert set(record) == columns[0]
    assert all(set(record) == columns[1] for record in one.config_records())
    assert all(set(record) == columns[2] for record in one.prompt_records())
    assert {record["control"] for record in one.config_records()} <= set(schema.CONTROLS)
    prompts = list(one.prompt_records())
    assert (
        len({record["prompt_id"] for record in prompts})
        == len(prompts)
        == sum(len(b.prompts) for b in one.blocks)
    )


def test_without_the_model_a_plan_is_an_estimate(plan: Callable[..., Plan], folder: Path) -> None:
    one = plan("id: tiny-llama", "id: org/model, layers: 6", "layers: [1, 4]", "layers: {depth: [0.5, 1]}")
    assert one.pending
    # layers 2 to 5, two norms, two signs, two positions
    assert [len(block.configs) for block in one.blocks] == [33, 33]
    assert one.row_count == 33 * 9
    with pytest.raises(UsageError, match="no ids yet"):
        next(one.rows())
    unknown = refused(folder, "id: tiny-llama", "id: org/model", "layers: [1, 4]", "layers: all")
    assert (
        "grid.yaml, line 9: the number of layers is not known\nhint: the model is not at hand: add" in unknown
    )


ABLATIONS = """\
  - {vector: v, layers: [1, [2, 3]], operation: ablate}
  - {vector: v, layers: [1, 4], operation: ablate_everywhere, positions: all}
evaluations:"""


def test_an_ablation_is_one_configuration_of_any_norm_and_no_multiplier(plan: Callable[..., Plan]) -> None:
    one = plan("evaluations:", ABLATIONS)
    assert [len(block.configs) for block in one.blocks] == [17 + 4, 17 + 4]
    found = [config for config in one.blocks[0].configs if config.operation != "add"]
    assert [(c.operation, c.layers, c.multiplier) for c in found] == [
        ("ablate", (1,), None),
        ("ablate", (2, 3), None),
        ("ablate_everywhere", (1,), None),
        ("ablate_everywhere", (4,), None),
    ]
    assert {c.vector.norm for c in found if c.vector} == {"unit"}
    assert len({c.config_id for c in found}) == 4
    records = {r["config_id"]: r for r in one.config_records()}
    assert [records[c.config_id]["multiplier"] for c in found] == [None] * 4
    size = budget(one)
    # the unit vector of layers 1 and 4 is added and ablated, those of 2 and 3 ablated alone
    assert (size.modules, size.terms, size.vector_rows) == (
        ("vsteer.engine.worker.modules:SetComponent",),
        1,
        4 + 4,
    )
    assert not budget(plan()).modules
