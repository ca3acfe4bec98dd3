# SPDX-License-Identifier: Apache-2.0
"""Tables in Markdown."""

from collections.abc import Sequence


def table(
    head: Sequence[str], rows: Sequence[Sequence[str]], *, words: int | None = None
) -> list[str]:
    """Return the lines of a table.

    Args:
        head: names of the columns.
        rows: cells of each row, which may be any text.
        words: number of columns, from the first, that are words; the others are
            numbers, which are aligned on the right. None: all are words.
    """
    number = len(head) if words is None else words
    marks = ["---"] * number + ["---:"] * (len(head) - number)
    return [_line(head), _line(marks), *map(row, rows)]


def row(cells: Sequence[str]) -> str:
    """Return the line of one row, whose cells may be any text."""
    return _line([" ".join(cell.replace("|", r"\|").split()) for cell in cells])


def _line(cells):
    return f"| {' | '.join(cells)} |"
