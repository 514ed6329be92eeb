"""Options that several verbs have in common."""

from __future__ import annotations

import click

from vsteer.models.hugging_face import DTYPES
from vsteer.protocol import POSITION_WORDS

COUNT = click.IntRange(min=1)
DEVICE = click.option("--device", default="cpu", show_default=True, help="Such as cpu or cuda:0.")
# of a model in Hugging Face
DTYPE = click.option("--dtype", type=click.Choice(DTYPES), default="float32", show_default=True)
POSITIONS = click.option(
    "--positions",
    type=click.Choice(POSITION_WORDS),
    default="all",
    show_default=True,
    help="Where the vector acts.",
)
