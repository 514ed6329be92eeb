"""What SQL answered, as the table of one's choice."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow as pa


class Answer:
    """The rows of an answer, all of them in memory."""

    def __init__(self, table: pa.Table) -> None:
        self._table = table

    def df(self) -> Any:
        """A pandas DataFrame; where pandas isn't installed, the pyarrow Table."""
        return self._table.to_pandas() if find_spec("pandas") else self._table

    def arrow(self) -> pa.Table:
        return self._table

    def fetchall(self) -> list[tuple[Any, ...]]:
        return list(zip(*(column.to_pylist() for column in self._table.columns), strict=True))

    def __len__(self) -> int:
        return int(self._table.num_rows)

    def __repr__(self) -> str:
        """A small table in plain text, wide ones and long ones cut."""
        from vsteer.store.database import in_memory

        with in_memory() as database:
            return str(database.from_arrow(self._table))
