"""A grid and a model as a plan: configurations and prompts, deduplicated, identified and put in order.

Pure but for the files it reads. A plan holds its configurations and its prompts; rows, of which there may be
millions, are made one by one. Without the model at hand lengths are estimated and ids are pending.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import date
from typing import Any

from vsteer.datasets import items
from vsteer.errors import UsageError
from vsteer.evaluations.open_ended import OpenEndedSpec
from vsteer.evaluations.prompt_spec import PromptSpec, RenderedPrompt
from vsteer.grid.problems import Loc
from vsteer.grid.spec import Grid
from vsteer.identity import canonical, identify, row_id, sampling_seed
from vsteer.plan.configurations import Config, ConfigExpander, VectorUse, with_id
from vsteer.plan.model_facts import ModelFacts, find_model
from vsteer.plan.questions import PromptRenderer, read_questions, ways_to_ask
from vsteer.plan.rows import Row
from vsteer.plan.vector_sources import VectorSource, check_file, vector_sources
from vsteer.prompts.answers import decoded
from vsteer.prompts.template import dated
from vsteer.protocol import Positions, Steering, expected_steered_tokens

MOST_CONFIGS = 200_000


@dataclass(frozen=True)
class Block:
    """One evaluation under one system prompt: its questions, and the configurations that each meets."""

    evaluation: str
    place: int  # in the grid's list
    ask: PromptSpec
    samples: int
    configs: tuple[Config, ...]
    prompts: tuple[RenderedPrompt, ...]
    system: str = ""  # the system prompt's name
    data: str = ""  # as the grid names it
    data_sha256: str = ""
    template: str = ""  # chat or plain, and the hash of how it renders a question; empty while pending

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
    sources: Mapping[str, VectorSource] = field(default_factory=dict)
    today: date = field(default_factory=date.today)  # as chat templates are told

    @property
    def pending(self) -> bool:
        """Whether ids and lengths are not known, because the model isn't here."""
        return self.tokenizer is None

    @property
    def row_count(self) -> int:
        return sum(block.rows for block in self.blocks)

    @property
    def configs(self) -> dict[str, Config]:
        """Every configuration once, by its id."""
        return {config.config_id: config for block in self.blocks for config in block.configs}

    @property
    def vectors(self) -> dict[str, VectorUse]:
        """Every vector that a configuration uses, by the name that its terms have for it."""
        uses = (config.vector for config in self.configs.values())
        return {use.key: use for use in uses if use is not None}

    def steerings(self) -> Iterator[Steering]:
        """What the engine's table must hold."""
        return (config.steering for config in self.configs.values() if config.steering is not None)

    def rows(self) -> Iterator[Row]:
        """Every row in the order of submission: prompt by prompt, all its configurations together."""
        if self.pending:
            raise UsageError(
                f"{self.facts.name} is not at hand, so the rows have no ids yet", "fetch the model first"
            )
        for block in self.blocks:
            for asked in block.prompts:
                seeds = [
                    sampling_seed(self.grid.seed, asked.item_id, asked.order, n) for n in range(block.samples)
                ]
                for config in block.configs:
                    for n, seed in enumerate(seeds):
                        name = row_id(config.config_id, asked.item_id, asked.order, n)
                        yield Row(name, config, asked, n, seed)

    def config_records(self) -> Iterator[dict[str, Any]]:
        """Every configuration of every evaluation in plain values; the vector's hash is the run's."""
        weights = self.facts.weights or {}
        for block in self.blocks:
            for config in block.configs:
                yield {
                    "config_id": config.config_id,
                    "evaluation": block.evaluation,
                    "kind": block.ask.kind,
                    **config.axes(),
                    "model_commit": weights.get("commit") or weights.get("sha256", ""),
                    "dtype": self.facts.dtype,
                    "quantization": self.facts.quantization or "",
                    "kv_cache_dtype": self.facts.kv_cache_dtype,
                    "template": block.template,
                    "system_prompt": block.ask.system or "",
                    "forced_prefix": block.ask.answer_prefix or "",
                    "vector_recipe": canonical(config.vector.recipe) if config.vector else "",
                    "max_tokens": block.ask.max_tokens,
                    "temperature": block.ask.temperature,
                    "top_p": block.ask.top_p,
                    "seed": self.grid.seed,
                    "rows": len(block.prompts) * block.samples,
                }

    def prompt_records(self) -> Iterator[dict[str, Any]]:
        """Every prompt in plain values."""
        for block in self.blocks:
            for asked in block.prompts:
                item = asked.item
                yield {
                    "prompt_id": asked.prompt_id,
                    "item_id": asked.item_id,
                    "evaluation": block.evaluation,
                    "kind": block.ask.kind,
                    "data": block.data,
                    "data_sha256": block.data_sha256,
                    "category": item.category,
                    "letter_order": asked.order,
                    "swapped_from": item.swapped_from if isinstance(item, items.Item) else "",
                    "system": block.system,
                    "question": asked.question,
                    "prompt": self.text(asked),
                    "token_ids": list(asked.prompt.token_ids),
                    "prompt_tokens": len(asked.prompt.token_ids),
                    "choices": list(asked.labels) or None,
                    "matching": asked.matching,
                }

    def text(self, asked: RenderedPrompt) -> str:
        """A prompt as the model sees it; the bare question while the model isn't here."""
        if self.pending:
            return asked.question
        return decoded(self.tokenizer, asked.prompt.token_ids)


def make_plans(grid: Grid, today: date | None = None) -> tuple[Plan, ...]:
    """One plan a model, in the grid's order; a chat template that writes the date is told `today`."""
    today = today or date.today()
    plans = [make_plan(grid, n, *find_model(grid, n), today) for n in range(len(grid.model))]
    seen: dict[str, int] = {}
    for n, plan in enumerate(plans):
        same = seen.setdefault(identify(plan.facts.identity()), n)
        if same != n:
            first = grid.at(("model", same))
            message = f"{plan.facts.name} is the same model as {plans[same].facts.name} {first}"
            raise grid.error(("model", n), message, "take one out")
    for n, counts in enumerate(zip(*(plan.excluded for plan in plans), strict=True)):
        if not sum(counts):
            raise grid.error(
                ("exclude", n), "this exclusion matches no configuration", "mend it, or take it out"
            )
    return tuple(plans)


def make_plan(grid: Grid, model: int, facts: ModelFacts, tokenizer: Any, today: date | None = None) -> Plan:
    """The plan of one of the grid's models; no tokenizer: an estimate."""
    today = today or date.today()
    tokenizer = dated(tokenizer, today)
    sources = vector_sources(grid)
    steered = ConfigExpander(grid, model, facts.layers, sources)
    blocks: list[Block] = []
    notes: list[str] = []
    for name, data, place in grid.named_evaluations():
        spec = grid.evaluations[place]
        found = read_questions(grid, name, data, place)
        notes += found.notes
        for ask, system, control in ways_to_ask(grid, place):
            asking = PromptRenderer(grid, place, name, ask, tokenizer)
            places: dict[Positions | None, Loc] = {}
            rendering = asking.rendering()
            configs = _configs(
                asking, steered, steered.baseline(ask, control, system), facts.identity() | rendering, places
            )
            block = Block(
                evaluation=name,
                place=place,
                ask=ask,
                samples=spec.samples if isinstance(spec, OpenEndedSpec) else 1,
                configs=configs,
                prompts=tuple(asking.asked(item, order) for item, order in found.questions),
                system=system,
                data=data,
                data_sha256=found.data_sha256,
                template=" ".join(rendering.values()),
            )
            _check_positions(grid, block, places, estimated=tokenizer is None)
            blocks.append(block)
    _check_questions_differ(grid, blocks)
    _check_files(grid, facts, blocks)
    notes += _too_long(grid, model, facts, blocks)
    excluded = tuple(steered.excluded)
    return Plan(grid, model, facts, tokenizer, tuple(blocks), tuple(notes), excluded, sources, today)


def _configs(
    asking: PromptRenderer,
    steered: ConfigExpander,
    baseline: Config,
    model: Mapping[str, Any],
    places: dict[Positions | None, Loc],
) -> tuple[Config, ...]:
    """The baseline, what the axes list, and the controls. The same one reached twice is there once.

    `places` is filled with where the grid says each of the positions.
    """
    found: dict[str, Config] = {}

    def add(config: Config) -> None:
        config = with_id(config, model)
        found.setdefault(config.config_id, config)
        if len(found) > MOST_CONFIGS:
            message = f"more than {MOST_CONFIGS} configurations of {asking.name}"
            raise asking.grid.error(("grid",), message, "take fewer layers, norms or controls")

    add(baseline)
    if baseline.control:
        return tuple(found.values())  # a system prompt as a control is not steered besides
    own = []
    for config, place in steered.configs(asking.place, asking.name, baseline):
        places.setdefault(config.positions, place)
        own.append(config)
        add(config)
    if baseline.ask.kind == "choice":
        for config in own:
            for beside in steered.controls(config):
                add(beside)
    return tuple(found.values())


def _check_positions(grid: Grid, block: Block, places: Mapping[Any, Loc], estimated: bool) -> None:
    """Refuse positions that can't act on what is scored: no token of theirs is processed before it."""
    for positions, place in places.items():
        for asked in block.prompts:
            if estimated and not _sure_without_tokens(asked, positions):
                continue
            # an answer's tokens but its last are forced in one request or another
            longest = len(asked.prompt.token_ids) + asked.forced_tokens
            if expected_steered_tokens(asked.prompt.span(positions), longest, block.ask.max_tokens):
                continue
            message = (
                f"positions {positions} ({grid.place(place)}) cannot act on what {block.evaluation} "
                f"scores: of the item on line {asked.item.line} no token that is processed lies in them"
            )
            hint = "exclude them for this evaluation, or take positions within the prompt"
            raise grid.error(("evaluations", block.place), message, hint)


def _sure_without_tokens(asked: RenderedPrompt, positions: Any) -> bool:
    """Whether it can be told from words alone that positions can't act: a letter is one token."""
    return positions == "generated" and not (isinstance(asked.item, items.Item) and not asked.item.lettered)


def _check_questions_differ(grid: Grid, blocks: Iterable[Block]) -> None:
    """Two evaluations that ask the same question in the same way would share its rows, and one lack them."""
    seen: dict[tuple[PromptSpec, str, str], Block] = {}
    for block in blocks:
        for asked in block.prompts:
            first = seen.setdefault((block.ask, asked.item_id, asked.order), block)
            if first is not block:
                place = grid.place(("evaluations", first.place))
                message = (
                    f"{block.evaluation} asks what {first.evaluation} ({place}) asks in the same way: "
                    f"its item on line {asked.item.line}"
                )
                hint = "join the two, or take the item out of one of them"
                raise grid.error(("evaluations", block.place), message, hint)


def _check_files(grid: Grid, facts: ModelFacts, blocks: Iterable[Block]) -> None:
    """Vectors that are files must fit before the model is loaded."""
    used: dict[VectorSource, set[int]] = {}
    for block in blocks:
        for config in block.configs:
            if config.vector is not None and config.vector.source.is_file:
                used.setdefault(config.vector.source, set()).update(term.layer for term in config.terms)
    for source, layers in used.items():
        check_file(grid, source, layers, facts.layers, facts.hidden_size)


def _too_long(grid: Grid, model: int, facts: ModelFacts, blocks: Iterable[Block]) -> list[str]:
    room = grid.engine_for(grid.model[model]).max_model_len or facts.max_model_len
    if room is None:
        return []
    notes = []
    for block in blocks:
        needed = (len(p.prompt.token_ids) + p.forced_tokens + block.ask.max_tokens for p in block.prompts)
        over = sum(tokens > room for tokens in needed)
        if over:
            fate = f"{over} prompts don't fit into {room} tokens; their rows will fail"
            notes.append(f"{block.evaluation}: {fate}")
    return notes
