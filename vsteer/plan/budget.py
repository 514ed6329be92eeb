"""What a plan will cost: rows, tokens with and without shared prefixes, room in the table and on the disk.

A prompt's blocks that end before a steering's first token are the same for every configuration, so they are
computed once; `all` starts at token 0 and shares nothing between configurations.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

from vsteer.operations import graph_modules
from vsteer.plan.configurations import Config
from vsteer.plan.left_out import LeftOut
from vsteer.plan.plan import Block, Plan
from vsteer.plan.ways import way, why_not
from vsteer.protocol import OPEN_END, Positions, Prompt, Term

# Compressed bytes of a row, and of a token's id and text: somewhat more than tests/bench/store.py measures on
# made-up rows, which are 68 bytes for a choice and 328 for a text of 100 tokens.
BYTES_A_ROW, BYTES_A_TOKEN = 120, 6
_TOTALS = (
    "rows",
    "prompts",
    "requests",
    "prompt_tokens",
    "computed_tokens",
    "output_tokens",
    "coherence_tokens",
    "disk_bytes",
)


@dataclass(frozen=True)
class BlockBudget:
    """One evaluation under one system prompt."""

    evaluation: str
    kind: str
    system: str  # the system prompt's name
    configurations: int
    prompts: int
    swapped: int  # of the prompts, those with the choices in the other order
    samples: int
    rows: int
    requests: int
    prompt_tokens: int  # as if nothing was shared
    computed_tokens: int  # with every shared prefix computed once
    output_tokens: int  # at most
    coherence_tokens: int  # at most; computed afterwards, for the perplexity of each text
    computed_as: str  # forks or requests, and why
    first_prompt: str


@dataclass(frozen=True)
class Budget:
    model: str
    pending: bool
    configurations: int
    product: int  # with all that is left out or merged
    left_out: tuple[LeftOut, ...]
    baselines: int
    controls: int
    blocks: tuple[BlockBudget, ...]
    vectors: int
    doses: int  # multipliers that the run finds on neutral text
    made: tuple[str, ...]  # how each vector of the grid comes about, defaults filled in
    conditions: tuple[str, ...]  # what is compared, and with which thresholds
    cells: int  # for Capacity.for_grid: distinct steerings, distinct directions, most terms a layer
    vector_rows: int
    terms: int
    modules: tuple[str, ...]  # see operations.graph_modules
    block_size: int
    notes: tuple[str, ...]

    @property
    def rows(self) -> int:
        return sum(block.rows for block in self.blocks)

    @property
    def prompts(self) -> int:
        return sum(block.prompts for block in self.blocks)

    @property
    def requests(self) -> int:
        return sum(block.requests for block in self.blocks)

    @property
    def prompt_tokens(self) -> int:
        return sum(block.prompt_tokens for block in self.blocks)

    @property
    def computed_tokens(self) -> int:
        return sum(block.computed_tokens for block in self.blocks)

    @property
    def output_tokens(self) -> int:
        return sum(block.output_tokens for block in self.blocks)

    @property
    def coherence_tokens(self) -> int:
        return sum(block.coherence_tokens for block in self.blocks)

    @property
    def disk_bytes(self) -> int:
        return self.rows * BYTES_A_ROW + self.output_tokens * BYTES_A_TOKEN


def budget(plan: Plan) -> Budget:
    configs = plan.configs
    cells = {(config.dose, _terms(config)) for config in configs.values() if config.vector}
    terms = {one for _, one in cells}
    why = why_not(plan)
    slots = (max(Counter(term.layer for term in one if term.is_added).values(), default=1) for one in terms)
    return Budget(
        model=plan.facts.name,
        pending=plan.pending,
        configurations=len(configs),
        product=len(configs) + sum(one.configurations for one in plan.left_out),
        left_out=plan.left_out,
        baselines=sum(config.vector is None and not config.control for config in configs.values()),
        controls=sum(bool(config.control) for config in configs.values()),
        blocks=tuple(_block(plan, block) for block in plan.blocks),
        vectors=len(plan.vectors),
        doses=(doses := sum(dose is not None for dose, _ in cells)),
        made=tuple(source.describe() for source in plan.sources.values()),
        conditions=tuple(_conditions(plan)),
        cells=len(cells),
        vector_rows=len({(term.vector, term.layer, term.is_added) for one in terms for term in one}),
        terms=max(slots, default=1),
        modules=graph_modules({term.operation for one in terms for term in one}),
        block_size=plan.facts.block_size,
        notes=(*plan.notes, *([f"doses are found through forks, and {why}"] if doses and why else ())),
    )


def _conditions(plan: Plan) -> Iterator[str]:
    """A line for each stream and side: `harm at layer 8, mean above 0.02, 0.05`."""
    found: dict[str, list[str]] = {}
    for one in plan.conditions:
        found.setdefault(f"{one.stream} {one.side}", []).append(repr(one.threshold))
    for what, thresholds in found.items():
        yield f"{what} {', '.join(thresholds)}"


def _terms(config: Config) -> tuple[Term, ...]:
    """A dose takes one cell, whatever its multiplier will be: here it stands for it."""
    if config.dose is None:
        return config.terms
    return config.terms_at(config.dose.asked.sign * config.dose.asked.kl)


def _block(plan: Plan, block: Block) -> BlockBudget:
    evaluation, configs = block.spec.evaluation, len(block.configs)
    places = Counter(config.positions for config in block.configs)
    # the prompt lengths of one configuration's requests for each question, of one sample
    lengths = [
        [len(request.prompt.token_ids) for request in evaluation.requests("", rendered, None, 0)]
        for rendered in block.prompts
    ]
    cached = plan.grid.engine_for(plan.grid.model[plan.model]).prefix_caching
    size = plan.facts.block_size if cached else OPEN_END
    each = configs * block.samples
    requests = sum(map(len, lengths)) * each
    most = evaluation.sampling.max_tokens
    # each prompt with its text, all but the last token: no cached block is read for it
    texts = sum(len(rendered.prompt.token_ids) + most - 1 for rendered in block.prompts)
    return BlockBudget(
        evaluation=block.evaluation,
        kind=evaluation.row_kind,
        system=block.system,
        configurations=configs,
        prompts=len(block.prompts),
        swapped=sum(rendered.order == "swapped" for rendered in block.prompts),
        samples=block.samples,
        rows=block.rows,
        requests=requests,
        prompt_tokens=sum(map(sum, lengths)) * each,
        computed_tokens=sum(
            computed_tokens(rendered.prompt, of_one, places, size, block.samples)
            for rendered, of_one in zip(block.prompts, lengths, strict=True)
        ),
        output_tokens=requests * most,
        coherence_tokens=texts * each if evaluation.wants_perplexity else 0,
        computed_as=way(plan, block, list(map(max, lengths))),
        first_prompt=plan.text(block.prompts[0]),
    )


def computed_tokens(
    prompt: Prompt,
    lengths: list[int],
    places: Counter[Positions | None],
    block_size: int,
    samples: int = 1,
) -> int:
    """The prompt tokens of all configurations of one question that no earlier request has computed.

    `lengths`: of one configuration's requests for one sample, the prompt alone first. A cached prefix is
    made of whole blocks and leaves at least one token to compute.
    """
    first = lengths[0]

    def whole_blocks(tokens: int) -> int:
        return tokens // block_size * block_size

    # the configuration's other requests find its first one's blocks too, the steered ones included
    again = [length - whole_blocks(min(first, length - 1)) for length in lengths]
    others = samples * sum(again) - again[0]
    total = shared_once = 0
    for positions, configs in places.items():
        start = first if positions is None else prompt.span(positions)[0]
        shared = whole_blocks(min(start, first - 1))
        shared_once = max(shared_once, shared)
        total += configs * (first - shared + others)
    return total + shared_once


def summed(budgets: Iterable[Budget]) -> dict[str, int]:
    """What several models' budgets come to together."""
    held = list(budgets)
    return {name: sum(getattr(one, name) for one in held) for name in ("configurations", *_TOTALS)}


def as_json(one: Budget) -> dict[str, Any]:
    """The budget in plain values, sums included."""
    return asdict(one) | {name: getattr(one, name) for name in _TOTALS}
