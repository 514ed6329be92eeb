"""Which way a block's rows are computed: as forks of an unsteered pass, or as requests, and why."""

from __future__ import annotations

from collections.abc import Sequence

from vsteer.engine.options import why_no_forks
from vsteer.plan.model_facts import has_gpu
from vsteer.plan.plan import Block, Plan


def why_not(plan: Plan) -> str | None:
    """Why no block of the plan is computed as forks."""
    spec = plan.grid.engine_for(plan.grid.model[plan.model])
    return why_no_forks(spec, plan.facts.kv_cache_dtype, has_gpu())


def way(plan: Plan, block: Block, lengths: Sequence[int]) -> str:
    """`lengths` are the tokens of each prompt with its longest answer."""
    spec = plan.grid.engine_for(plan.grid.model[plan.model])
    if not block.prompts[0].answers:
        return "requests, since it generates texts"
    if refused := why_not(plan):
        return f"requests, since {refused}"
    room = spec.max_num_batched_tokens
    long = sum(length > room for length in lengths) if room else 0
    if not long:
        return "forks of one unsteered pass a prompt"
    return (
        f"forks, and {long:,} of {len(lengths):,} prompts as requests, since they are longer than "
        f"max_num_batched_tokens ({room:,})"
    )
