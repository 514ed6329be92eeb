"""The kinds of evaluation that there are. A new one is a file beside this one and an entry here."""

from __future__ import annotations

from functools import reduce
from operator import or_
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from vsteer.evaluations.choice import ChoiceSpec
from vsteer.evaluations.evaluation import Evaluation
from vsteer.evaluations.open_ended import OpenEndedSpec
from vsteer.evaluations.refusal_tokens import RefusalTokensSpec

KINDS: dict[str, type[Evaluation]] = {
    "choice": ChoiceSpec,
    "open_ended": OpenEndedSpec,
    "refusal_tokens": RefusalTokensSpec,
}

if TYPE_CHECKING:
    AnyKind = Evaluation
else:
    # An entry of a grid, told from the others by its `kind`.
    AnyKind = Annotated[reduce(or_, KINDS.values()), Field(discriminator="kind")]
