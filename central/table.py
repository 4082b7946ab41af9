"""Print tables on a terminal: as many columns as it is wide, and no markup or control character of any cell."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from firmware_py.protocol.printable import printable

if TYPE_CHECKING:
    from rich.table import Table


def print_table(
    columns: Sequence[str],
    rows: Sequence[Sequence[object]],
    least: int = 3,
    styles: Sequence[str] = (),
    styled: int = 0,
) -> None:
    """Print a table; leave out columns from the right, and name them, until it fits the terminal.

    Args:
        columns: Headings, the most important first.
        rows: Cells of each row.
        least: Number of columns that are always printed.
        styles: Style of each row's cell in column ``styled``.
    """
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    # Not wrapped where even the least columns are too wide: a cut cell cannot be copied.
    console = Console(soft_wrap=True)

    def table_of(n_columns: int) -> Table:
        table = Table(box=SIMPLE_HEAD)
        for column in columns[:n_columns]:
            table.add_column(column, no_wrap=True)
        for index, row in enumerate(rows):
            cells = [Text(printable(str(cell))) for cell in row[:n_columns]]
            if styles:
                cells[styled].stylize(styles[index])
            table.add_row(*cells)
        return table

    n_columns = len(columns)
    unbounded = console.options.update(width=1000)
    while (
        n_columns > least and table_of(n_columns).__rich_measure__(console, unbounded).maximum > console.width
    ):
        n_columns -= 1
    console.print(table_of(n_columns))
    if left_out := columns[n_columns:]:
        console.print(f"omitted for lack of width: {', '.join(left_out)}; --json has all", markup=False)


def print_lines(lines: Sequence[str]) -> None:
    """Print lines without wrapping, markup or control characters."""
    from rich.console import Console
    from rich.text import Text

    console = Console(soft_wrap=True)
    for line in lines:
        console.print(Text(printable(line)))
