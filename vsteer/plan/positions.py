"""What a grid's positions mean on the prompts of an evaluation: whether they can act, and which are alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from vsteer.evaluations.evaluation import Evaluation
from vsteer.evaluations.rendered_prompt import RenderedPrompt
from vsteer.grid.problems import Loc
from vsteer.grid.spec import Grid
from vsteer.protocol import Positions
from vsteer.validation import shortened


def check_positions(
    grid: Grid,
    name: str,
    at: int,
    prompts: Sequence[RenderedPrompt],
    evaluation: Evaluation,
    places: Mapping[Positions, Loc],
) -> list[str]:
    """Refuse positions that can't act on what is scored: none of their tokens is processed before it.

    Returns which of the others steer the same tokens of every prompt. `places` are those of the positions in
    the grid, and `at` is the evaluation's.
    """
    alike = [list(places)]
    for rendered in prompts:
        ends = [
            len(request.prompt.token_ids) + request.max_tokens - 1
            for request in evaluation.requests("", rendered, None, 0)
        ]
        acting = {positions: _processed(rendered.prompt.span(positions), ends) for positions in places}
        for positions, tokens in acting.items():
            # Without tokens it is only known that positions behind the prompt can't act.
            sure = rendered.prompt_id or (
                positions == "generated" and evaluation.sure_without_tokenizer(rendered.item)
            )
            if sure and not any(start < end for start, end in tokens):
                where, line = grid.place(places[positions]), rendered.item.line
                message = (
                    f"positions {positions} ({where}) cannot act on what {shortened(name)} scores: "
                    f"for the item on line {line} no token that is processed lies in them"
                )
                hint = "exclude them for this evaluation, or take positions within the prompt"
                raise grid.error(("evaluations", at), message, hint)
        alike = [same for group in alike for same in _split(group, acting)] if rendered.prompt_id else []
    return [
        f"{name}: positions {first} and {other} steer the same tokens of every prompt, so that "
        "configurations which differ in nothing else give the same answers"
        for first, *others in alike
        for other in others
    ]


Tokens = tuple[tuple[int, int], ...]


def _processed(span: tuple[int, int], ends: Sequence[int]) -> Tokens:
    """The span in each request, as far as tokens are processed: the last generated one is never fed back."""
    start, end = span
    return tuple((start, min(end, last)) for last in ends)


def _split(group: Sequence[Positions], acting: Mapping[Positions, Tokens]) -> list[list[Positions]]:
    """Those of a group that act on the same tokens of this prompt too, together."""
    found: dict[Tokens, list[Positions]] = {}
    for positions in group:
        found.setdefault(acting[positions], []).append(positions)
    return [same for same in found.values() if len(same) > 1]
