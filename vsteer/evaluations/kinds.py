"""The kinds of evaluation that there are. A new one is a file beside this one and an entry here."""

from __future__ import annotations

from functools import reduce
from operator import or_
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from vsteer.evaluations.choice import ChoiceEvaluation
from vsteer.evaluations.evaluation import Evaluation
from vsteer.evaluations.lm_eval import LmEvalEvaluation
from vsteer.evaluations.open_ended import OpenEndedEvaluation
from vsteer.evaluations.refusal_tokens import RefusalTokensEvaluation

KINDS: dict[str, type[Evaluation]] = {
    "choice": ChoiceEvaluation,
    "lm_eval": LmEvalEvaluation,
    "open_ended": OpenEndedEvaluation,
    "refusal_tokens": RefusalTokensEvaluation,
}

if TYPE_CHECKING:
    AnyKind = Evaluation
    KindName = str
else:
    # An entry of a grid, known by its `kind`.
    AnyKind = Annotated[reduce(or_, KINDS.values()), Field(discriminator="kind")]
    KindName = Literal[tuple(KINDS)]
