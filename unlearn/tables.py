"""What the results here have in common: they are one table, as Markdown and for a notebook, with rows by name."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, TypeVar

from whence.cache import UsageError
from whence.cache.display import Cell, Interval, Shown, markdown
from whence.cache.display import table as display_table

Row = TypeVar("Row")


class ResultTable(ABC):
    """A result that is shown as a table, with notes below."""

    head: ClassVar[tuple[str, ...]]

    @abstractmethod
    def cells(self) -> list[list[Any]]:
        """The rows: texts, and numbers as `Cell`."""

    def notes(self) -> list[str]:
        """Lines below the table."""
        return []

    def caption(self) -> str:
        """Of the table in a notebook or on a page."""
        return " ".join(self.notes())

    def __str__(self) -> str:
        """The table as Markdown, then the notes."""
        notes = self.notes()
        return "\n".join([markdown(self.head, self.cells()), *(["", *notes] if notes else [])])

    def shown(self) -> Shown:
        """The table for a notebook or a page; it sorts."""
        return display_table(self.head, self.cells(), self.caption())

    def _repr_html_(self) -> str:
        return self.shown().html


def between(interval: Interval, digits: int) -> Cell:
    """The ends of an interval, nothing if it is not known."""
    return Cell(f"{interval.low:.{digits}f}-{interval.high:.{digits}f}" if interval.known else "", interval.low)


def row_of(rows: Mapping[Any, Row], name: Any, cure: str = "") -> Row:
    """The row of a name. Raises UsageError, with the names that there are unless a cure is given."""
    if name not in rows:
        raise UsageError(f"No row is called {name!r}.", cure or f"There are {', '.join(map(str, rows))}.")
    return rows[name]
