"""A table as plain text: columns side by side, numbers to the right, and never wider than a terminal."""

from collections.abc import Sequence

from vsteer.terminal import on_one_line

WIDTH = 80
_GAP = "  "


def plain_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The table; the columns that don't fit follow below it, each such block led by the first column."""
    columns = [list(map(on_one_line, column)) for column in zip(header, *rows, strict=True)]
    lead, *others = [_aligned(column) for column in columns]
    blocks, block = [], [lead]
    for column in others:
        if len(block) > 1 and sum(len(c[0]) + len(_GAP) for c in block) + len(column[0]) > WIDTH:
            blocks.append(block)
            block = [lead]
        block.append(column)
    blocks.append(block)
    return "\n\n".join(
        "\n".join(_GAP.join(cells).rstrip() for cells in zip(*block, strict=True)) for block in blocks
    )


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
