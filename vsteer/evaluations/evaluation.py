"""What every kind of evaluation has in common: the settings of one entry of `evaluations:` in a grid."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from vsteer.validation import Count, Names, Strict, Systems, Text, Texts


class Evaluation(Strict):
    """One entry of `evaluations:`; a kind of evaluation is a class of its own, listed in `kinds.py`."""

    kind: str
    name: Text | None = None
    data: Texts
    limit: Count | None = None  # only the first items, this many
    system: Systems = (None,)
    answer_prefix: Annotated[str, Field(min_length=1)] | None = None  # forced, as it is written
    vectors: Names | None = None  # only these; by default all of the grid

    def named(self, data: str) -> str:
        """What results call it: its kind and its data, or its own name."""
        own = self.name or self.kind
        return own if self.name and len(self.data) == 1 else f"{own}:{data}"
