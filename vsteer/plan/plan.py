"""A grid and a model as a plan: configurations and prompts, deduplicated, identified and put in order.

Pure but for the files it reads. A plan holds its configurations and its prompts; rows, of which there may be
millions, are made one by one. Without the model at hand lengths are estimated and ids are pending.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date
from functools import cached_property
from typing import Any

from vsteer.datasets import items
from vsteer.errors import UsageError
from vsteer.evaluations.prompt_spec import PromptSpec
from vsteer.evaluations.rendered_prompt import RenderedPrompt
from vsteer.grid.axes import Group
from vsteer.grid.problems import Loc
from vsteer.grid.spec import Grid
from vsteer.identity import canonical, identify
from vsteer.plan.answer_starts import notes_on_starts
from vsteer.plan.configurations import Condition, Config, ConfigExpander, VectorUse, with_id
from vsteer.plan.left_out import BESIDE_TEXTS, SAME_SYSTEM, SHARED, TWICE, LeftOut, counted, notes_on_grid
from vsteer.plan.model_facts import ModelFacts, find_model
from vsteer.plan.positions import check_positions
from vsteer.plan.questions import PromptRenderer, merged_controls, prompt_specs, read_questions
from vsteer.plan.rows import PromptRows, Row
from vsteer.plan.vector_sources import VectorSource, check_file, located, vector_sources
from vsteer.prompts.answers import decoded
from vsteer.prompts.template import dated
from vsteer.protocol import Positions, Steering
from vsteer.store.planned import PlannedPart
from vsteer.validation import shortened
from vsteer.vectors.heads import check_heads
from vsteer.vectors.recipe import Recipe

MOST_ROWS = 1_000_000_000


@dataclass(frozen=True)
class Block:
    """One evaluation under one system prompt: its questions, and the configurations that each meets."""

    evaluation: str
    place: int  # in the grid's list
    spec: PromptSpec
    configs: tuple[Config, ...]
    prompts: tuple[RenderedPrompt, ...]
    system: str = ""  # the system prompt's name
    data: str = ""  # as the grid names it
    data_sha256: str = ""
    template: str = ""  # chat or plain, and the hash of how it renders a question; empty while pending

    @property
    def samples(self) -> int:
        return self.spec.evaluation.sampling.samples

    @property
    def rows(self) -> int:
        return len(self.configs) * len(self.prompts) * self.samples


@dataclass(frozen=True)
class Plan:
    """What one model of a grid is to compute."""

    grid: Grid
    model: int  # its place in the grid's list
    facts: ModelFacts
    tokenizer: Any
    blocks: tuple[Block, ...]
    notes: tuple[str, ...]
    excluded: tuple[int, ...]  # how many configurations each of the grid's exclusions left out
    left_out: tuple[LeftOut, ...]  # what the grid's product has beside `configs`
    sources: Mapping[str, VectorSource] = field(default_factory=dict)
    today: date = field(default_factory=date.today)  # the day that chat templates write

    @property
    def pending(self) -> bool:
        """Whether ids and lengths are not known, because the model isn't here."""
        return self.tokenizer is None

    @cached_property
    def row_count(self) -> int:
        return sum(block.rows for block in self.blocks)

    @cached_property
    def configs(self) -> dict[str, Config]:
        """Every configuration once, by its id."""
        return {config.config_id: config for block in self.blocks for config in block.configs}

    @cached_property
    def vectors(self) -> dict[str, VectorUse]:
        """Every vector that a configuration uses, by the name that its terms have for it."""
        uses = [config.vector for config in self.configs.values()]
        uses += [condition.vector for condition in self.conditions]
        return {use.key: use for use in uses if use is not None}

    @cached_property
    def conditions(self) -> tuple[Condition, ...]:
        """Every condition under which a configuration steers, once."""
        found = (config.when for config in self.configs.values())
        return tuple(dict.fromkeys(condition for condition in found if condition is not None))

    def steerings(self) -> Iterator[Steering]:
        """What the engine's table must hold."""
        configs = (config for config in self.configs.values() if not config.unreachable)
        return (config.steering for config in configs if config.steering is not None)

    def parts(self) -> Iterator[PlannedPart]:
        """What the store knows of the rows, in the order of `rows`."""
        for block in self.known_blocks():
            yield PlannedPart(
                # Each begins with the configuration that is unsteered, which is how its questions are asked.
                block.configs[0].config_id,
                [config.config_id for config in block.configs],
                [(rendered.item_id, rendered.order) for rendered in block.prompts],
                block.samples,
            )

    def prompts(self) -> Iterator[PromptRows]:
        """The prompts in the order of submission, each with all its configurations."""
        for block in self.known_blocks():
            for rendered in block.prompts:
                yield PromptRows(block.configs, rendered, block.samples, self.grid.seed)

    def rows(self) -> Iterator[Row]:
        """Every row, in the order of submission."""
        return (row for prompt in self.prompts() for row in prompt.rows(range(prompt.count)))

    def known_blocks(self) -> tuple[Block, ...]:
        if self.pending:
            raise UsageError(
                f"{self.facts.name} is not at hand, so the rows have no ids yet", "fetch the model first"
            )
        return self.blocks

    def config_records(self) -> Iterator[dict[str, Any]]:
        """Every configuration of every evaluation in plain values; the vector's hash is the run's."""
        weights = self.facts.weights or {}
        for block in self.blocks:
            evaluation = block.spec.evaluation
            for config in block.configs:
                yield {
                    "config_id": config.config_id,
                    "evaluation": block.evaluation,
                    "kind": evaluation.row_kind,
                    **config.axes(),
                    "model_commit": weights.get("commit") or weights.get("sha256", ""),
                    "dtype": self.facts.dtype,
                    "quantization": self.facts.quantization or "",
                    "kv_cache_dtype": self.facts.kv_cache_dtype,
                    "template": block.template,
                    "system_prompt": block.spec.system or "",
                    "forced_prefix": evaluation.answer_prefix or "",
                    "vector_recipe": canonical(config.vector.recipe) if config.vector else "",
                    "when_vector": config.when and config.when.name,
                    "when_layer": config.when and config.when.layer,
                    "when_token": config.when and config.when.token,
                    "when_side": config.when and config.when.side,
                    "when_threshold": config.when and config.when.threshold,
                    "max_tokens": evaluation.sampling.max_tokens,
                    "temperature": evaluation.sampling.temperature,
                    "top_p": evaluation.sampling.top_p,
                    "seed": self.grid.seed,
                    "rows": len(block.prompts) * block.samples,
                }

    def prompt_records(self) -> Iterator[dict[str, Any]]:
        """Every prompt in plain values."""
        for block in self.blocks:
            evaluation = block.spec.evaluation
            for rendered in block.prompts:
                item = rendered.item
                yield {
                    "prompt_id": rendered.prompt_id,
                    "item_id": rendered.item_id,
                    "evaluation": block.evaluation,
                    "kind": evaluation.row_kind,
                    "data": block.data,
                    "data_sha256": block.data_sha256,
                    "category": item.category,
                    "letter_order": rendered.order,
                    "swapped_from": item.swapped_from if isinstance(item, items.Item) else "",
                    "system": block.system,
                    "question": rendered.question,
                    "prompt": self.text(rendered),
                    "token_ids": list(rendered.prompt.token_ids),
                    "prompt_tokens": len(rendered.prompt.token_ids),
                    "choices": list(evaluation.labels(rendered)) or None,
                    "matching": evaluation.matching(rendered),
                }

    def text(self, rendered: RenderedPrompt) -> str:
        """A prompt as the model sees it; the bare question while the model isn't here."""
        if self.pending:
            return rendered.question
        return decoded(self.tokenizer, rendered.prompt.token_ids)


def make_plans(grid: Grid, today: date | None = None) -> tuple[Plan, ...]:
    """One plan for each model, in the grid's order; chat templates that write the date write `today`."""
    today = today or date.today()
    plans = [make_plan(grid, n, *find_model(grid, n), today) for n in range(len(grid.model))]
    seen: dict[str, int] = {}
    for n, plan in enumerate(plans):
        same = seen.setdefault(identify(plan.facts.identity()), n)
        if same != n:
            first = grid.at(("model", same))
            names = (shortened(one.facts.name) for one in (plan, plans[same]))
            message = f"{' is the same model as '.join(names)} {first}"
            raise grid.error(("model", n), message, "take one out")
    for n, counts in enumerate(zip(*(plan.excluded for plan in plans), strict=True)):
        if not sum(counts):
            raise grid.error(
                ("exclude", n), "this exclusion matches no configuration", "fix it, or take it out"
            )
    return tuple(plans)


def make_plan(grid: Grid, model: int, facts: ModelFacts, tokenizer: Any, today: date | None = None) -> Plan:
    """The plan of one of the grid's models; without a tokenizer, an estimate."""
    today = today or date.today()
    tokenizer = dated(tokenizer, today)
    sources = vector_sources(grid)
    expander = ConfigExpander(grid, model, facts.layers, sources)
    specs = {place: prompt_specs(grid, place) for place in range(len(grid.evaluations))}
    # a system prompt that is a control has its baseline alone
    steered = {place: sum(not control for *_, control in ways) for place, ways in specs.items()}
    expander.check_count([place for *_, place in grid.named_evaluations() for _ in range(steered[place])])
    blocks: list[Block] = []
    notes = list(notes_on_grid(grid))
    for name, data, place in grid.named_evaluations():
        evaluation, found = read_questions(grid, data, place)
        every = len(found.questions) + sum(found.left_out.values())
        for why, count in found.left_out.items():
            notes.append(f"{name}: not asked: {count:,} of {every:,} questions, which {why}")
        notes += [f"{name}: {note}" for note in found.notes]
        expander.left_out[name, SAME_SYSTEM] += merged_controls(grid, place)
        for way, system, control in specs[place]:
            spec = replace(way, evaluation=evaluation)
            renderer = PromptRenderer(grid, place, name, spec, tokenizer)
            places: dict[Positions, Loc] = {}
            template = renderer.template()
            baseline = expander.baseline(spec, control, system)
            configs = _configs(renderer, expander, baseline, facts.output_identity() | template, places)
            block = Block(
                evaluation=name,
                place=place,
                spec=spec,
                configs=configs,
                prompts=tuple(renderer.rendered(item, order) for item, order in found.questions),
                system=system,
                data=data,
                data_sha256=found.data_sha256,
                template=" ".join(template.values()),
            )
            notes += check_positions(grid, block.evaluation, place, block.prompts, spec.evaluation, places)
            used = {config.vector.source.name: config.vector.source for config in configs if config.vector}
            notes += notes_on_starts(tokenizer, name, block.prompts, used.values())
            blocks.append(block)
    _check_rows(grid, blocks)
    _check_questions_differ(grid, blocks)
    _check_files(grid, facts, blocks)
    _check_heads(grid, facts, sources)
    notes += _too_long(grid, model, facts, blocks)
    distinct = len({config.config_id for block in blocks for config in block.configs})
    expander.left_out["", SHARED] = sum(len(block.configs) for block in blocks) - distinct
    return Plan(
        grid,
        model,
        facts,
        tokenizer,
        tuple(blocks),
        tuple(dict.fromkeys(notes)),
        tuple(expander.excluded),
        counted(expander.left_out),
        sources,
        today,
    )


def _configs(
    renderer: PromptRenderer,
    expander: ConfigExpander,
    baseline: Config,
    model: Mapping[str, Any],
    places: dict[Positions, Loc],
) -> tuple[Config, ...]:
    """The baseline, what the axes list, and the controls; a configuration that is reached twice, once.

    `places` is filled with the place of each of the positions in the grid.
    """
    found: dict[str, Config] = {}

    def add(config: Config) -> None:
        config = with_id(config, model)
        if found.setdefault(config.config_id, config) is not config:
            expander.left_out[renderer.name, TWICE] += 1

    add(baseline)
    if baseline.control:
        return tuple(found.values())  # a system prompt as a control is not steered too
    own = []
    for config, place in expander.configs(renderer.place, renderer.name, baseline):
        if config.positions is not None:
            places.setdefault(config.positions, place)
        own.append(config)
        add(config)
    if baseline.spec.evaluation.has_controls:
        for config in own:
            for beside in expander.controls(config, renderer.name):
                add(beside)
    else:
        names = [config.vector.name for config in own if config.vector is not None]
        expander.left_out[renderer.name, BESIDE_TEXTS] += sum(map(expander.beside, names))
    return tuple(found.values())


def _check_rows(grid: Grid, blocks: Sequence[Block]) -> None:
    total = sum(block.rows for block in blocks)
    if total > MOST_ROWS:
        largest = max(blocks, key=lambda block: block.rows)
        message = (
            f"{total:,} rows, and at most {MOST_ROWS:,} are planned; "
            f"{shortened(largest.evaluation)} has {len(largest.configs):,} configurations, "
            f"{len(largest.prompts):,} prompts and {largest.samples:,} samples"
        )
        raise grid.error(
            ("evaluations", largest.place), message, "take fewer samples, items or configurations"
        )


def _check_questions_differ(grid: Grid, blocks: Iterable[Block]) -> None:
    """Two evaluations that ask the same question in the same way would share its rows, and one lack them."""
    seen: dict[tuple[str, str, str], Block] = {}
    for block in blocks:
        way = canonical(block.spec.identity())
        for rendered in block.prompts:
            first = seen.setdefault((way, rendered.item_id, rendered.order), block)
            if first is not block:
                place = grid.place(("evaluations", first.place))
                message = (
                    f"{shortened(block.evaluation)} asks what {shortened(first.evaluation)} ({place}) asks "
                    f"in the same way: its item on line {rendered.item.line}"
                )
                hint = "join the two, or take the item out of one of them"
                raise grid.error(("evaluations", block.place), message, hint)


def _check_files(grid: Grid, facts: ModelFacts, blocks: Iterable[Block]) -> None:
    """Vectors that are files must fit before the model is loaded."""
    used: dict[VectorSource, set[Group]] = {}
    for block in blocks:
        for config in block.configs:
            if config.vector is not None and config.vector.source.is_file:
                used.setdefault(config.vector.source, set()).add(config.layers)
            # a direction of length 0 has no cosine, as it steers nothing
            if config.when is not None and config.when.vector.source.is_file:
                used.setdefault(config.when.vector.source, set()).add((config.when.layer,))
    for source, groups in used.items():
        check_file(grid, source, groups, facts.layers, facts.hidden_size)


def _check_heads(grid: Grid, facts: ModelFacts, sources: Mapping[str, VectorSource]) -> None:
    """Vectors of heads are read in Hugging Face, which must have the run's model."""
    for name, source in sources.items():
        if not isinstance(source.made_from, Recipe) or source.made_from.heads is None:
            continue
        if facts.quantization is not None:
            message = f"the heads of {name!r} are read in Hugging Face, and vLLM alone quantises the model"
            hint = "make it of the plain model with vsteer vectors extract, and name its file"
            raise grid.error(("vectors", name, "method"), message, hint)
        if facts.like is not None:
            with located(grid, ("vectors", name, "heads")):
                check_heads(source.made_from, facts.like)


def _too_long(grid: Grid, model: int, facts: ModelFacts, blocks: Iterable[Block]) -> list[str]:
    room = grid.engine_for(grid.model[model]).max_model_len or facts.max_model_len
    if room is None:
        return []
    notes = []
    for block in blocks:
        over = sum(
            any(
                len(request.prompt.token_ids) + request.max_tokens > room
                for request in block.spec.evaluation.requests("", rendered, None, 0)
            )
            for rendered in block.prompts
        )
        if over:
            fate = f"{over} prompts don't fit into {room} tokens; their rows will fail"
            notes.append(f"{block.evaluation}: {fate}")
    return notes
