"""A table as plain text: columns side by side, numbers to the right, and never wider than a terminal.

COLUMNS in the environment says how wide that is, as for other programs.
"""

from collections.abc import Sequence
from shutil import get_terminal_size

from vsteer.terminal import on_one_line

WIDTH = 80
_GAP = "  "


def plain_table(header: Sequence[str], rows: Sequence[Sequence[str]], keys: int = 1) -> str:
    """The table; the columns that don't fit follow below it, and its first `keys` columns lead each block.

    Fewer lead where these leave no room for another.
    """
    width = get_terminal_size((WIDTH, 24)).columns
    columns = [_aligned(list(map(on_one_line, column))) for column in zip(header, *rows, strict=True)]
    while keys > 1 and any(_width([*columns[:keys], column]) > width for column in columns[keys:]):
        keys -= 1
    lead = columns[:keys]
    block, blocks = list(lead), []
    for column in columns[keys:]:
        if len(block) > keys and _width([*block, column]) > width:
            blocks.append(block)
            block = list(lead)
        block.append(column)
    blocks.append(block)
    return "\n\n".join(
        "\n".join(_GAP.join(cells).rstrip() for cells in zip(*block, strict=True)) for block in blocks
    )


def _width(columns: Sequence[Sequence[str]]) -> int:
    return sum(len(column[0]) for column in columns) + len(_GAP) * (len(columns) - 1)


def number(value: object, places: int = 4) -> str:
    """A number of a table: `-` where there is none, plain words as they are."""
    match value:
        case None:
            return "-"
        case float():
            return f"{value:.{places}f}" if value == 0 or 1e-3 <= abs(value) < 1e5 else f"{value:.3e}"
        case _:
            return str(value)


def _aligned(column: Sequence[str]) -> list[str]:
    width = max(map(len, column))
    return [cell.rjust(width) for cell in column]
