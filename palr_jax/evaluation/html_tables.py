"""HTML tables that a screen reader can read: a caption, and titles of columns and rows."""

import html
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from palr_jax.evaluation.numbers import short


@dataclass(frozen=True)
class Cell:
    """A cell of a table.

    Attributes:
        text: what it shows.
        value: what the table is sorted by, if that is not the text.
        is_hit: whether it is the test item.
    """

    text: str
    value: float | None = None
    is_hit: bool = False


def escaped(value: Any) -> str:
    """Any value as text of an element or of a quoted attribute."""
    return html.escape(str(value))


def number(value: float) -> Cell:
    """A cell that shows a rounded metric and is sorted by the metric."""
    return Cell(short(value), value)


def table(
    caption: str,
    titles: Sequence[str],
    rows: Sequence[Sequence[Cell | str]],
    kind: str = "",
) -> str:
    """A table in a region that scrolls sideways, by keyboard too, where the page is narrower.

    Args:
        caption: what the table shows.
        titles: a title for each column.
        rows: the first cell of each is its title.
        kind: "sortable", or "words" for a table of text; "" for one of numbers.
    """
    head = "".join(f"<th scope='col'>{escaped(title)}</th>" for title in titles)
    body = "".join(
        f"<tr><th scope='row'>{escaped(_cell(first).text)}</th>{''.join(map(_data, rest))}</tr>"
        for first, *rest in rows
    )
    return (
        f"<div class='scroll wide' role='region' tabindex='0' aria-label='{escaped(caption)}'>"
        f"<table class='{kind}'>{caption_of(caption)}"
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def caption_of(text: str) -> str:
    """The caption of a table; as wide as the page at most, where the table is wider."""
    return f"<caption><span>{escaped(text)}</span></caption>"


def _cell(cell: Cell | str) -> Cell:
    return Cell(cell) if isinstance(cell, str) else cell


def _data(given: Cell | str) -> str:
    cell = _cell(given)
    if cell.is_hit:
        words = "<span class='hidden'> (test item)</span>"
        return f"<td class='hit'><span aria-hidden='true'>✓ </span>{escaped(cell.text)}{words}</td>"
    value = "" if cell.value is None else f" data-value='{cell.value}'"
    return f"<td{value}>{escaped(cell.text)}</td>"
