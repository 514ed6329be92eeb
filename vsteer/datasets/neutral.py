"""Neutral text, on which it is measured how far a steering moves a model: built-in sentences, or a file's.

The built-in ones were written for vsteer (CC0-1.0). They are about no behaviour.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from vsteer.datasets.builtin import find_file
from vsteer.datasets.readers import read_prompts
from vsteer.errors import DataError
from vsteer.validation import shown

BUILTIN = Path(__file__).with_name("neutral.txt")
# Each steering that is tried reads all of them.
MOST_TEXTS, MOST_CHARACTERS = 256, 1_000


@dataclass(frozen=True)
class NeutralText:
    name: str  # as the grid has it; empty: the built-in one
    texts: tuple[str, ...]
    sha256: str  # the file's


def read_neutral(name: str, beside: Path) -> NeutralText:
    """The built-in sentences where there is no name, or a file's texts: one a line, or JSON strings."""
    path = find_file(name, beside) if name else BUILTIN
    if path is None:
        raise DataError(f"no text file {shown(name)}", "paths are relative to the grid")
    found = read_prompts(path)
    if len(found.prompts) > MOST_TEXTS:
        raise DataError(
            f"{path.name}: {len(found.prompts):,} texts, and at most {MOST_TEXTS} are read",
            hint="each steering that is tried reads all of them: a few hundred words are enough",
        )
    for prompt in found.prompts:
        if len(prompt.text) > MOST_CHARACTERS:
            raise DataError(
                f"{path.name}, line {prompt.line}: a text of {len(prompt.text):,} characters, and at most "
                f"{MOST_CHARACTERS:,} are read",
                hint="a text is a line: break it into sentences",
            )
    return NeutralText(name, tuple(prompt.text for prompt in found.prompts), found.source.sha256)
