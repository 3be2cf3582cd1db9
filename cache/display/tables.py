"""Tables, as HTML that sorts and as plain text of the same cells.

table(["name", "nats"], rows, "Passages")            # a click on a column's head sorts by it
"""

import math
from collections.abc import Sequence
from html import escape
from typing import Any, NamedTuple

import numpy as np

from .pages import Shown

LINE = "1px solid color-mix(in srgb, currentColor 22%, transparent)"
SORT = (
    "const h=this,b=h.closest('table').tBodies[0],i=h.cellIndex,s=h.dataset.s=h.dataset.s==='1'?'-1':'1',"
    "k=r=>r.cells[i].dataset.k,n=x=>x===undefined?NaN:+x;"
    "[...b.rows].sort((p,q)=>{const x=k(p),y=k(q);"
    "return s*(isNaN(n(x))||isNaN(n(y))?p.cells[i].textContent.localeCompare(q.cells[i].textContent):x-y)})"
    ".forEach(r=>b.append(r))"
)


class Cell(NamedTuple):
    """A cell whose text is not its number: `text` is shown, `key` sorts."""

    text: str
    key: float


def number(value: Any, digits: int = 4) -> str:
    """A cell's text: thousands separated, `digits` significant ones, nothing for NaN."""
    if isinstance(value, Cell):
        return value.text
    if not _is_number(value):
        return str(value)
    if isinstance(value, (int, np.integer)):
        return f"{int(value):,}"
    return "" if math.isnan(value) else f"{float(value):.{digits}g}"


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float, np.number)) and not isinstance(value, bool)


def table(head: Sequence[str], rows: Sequence[Sequence[Any]], caption: str = "", *, sortable: bool = True) -> Shown:
    """Rows of cells under a head; numbers are aligned to the right and sort as numbers.

    Args:
        head: names of the columns; empty for a table without a head.
        rows: cells: texts, numbers, or a `Cell` for a number with a text of its own.
        caption: one line above the table.
        sortable: whether a click on a head sorts. Give False on a page whose policy forbids scripts.

    >>> print(table(["atom", "nats"], [[3, 0.5]]))
    atom  nats
    3     0.5
    """
    click = (
        f' tabindex="0" role="button" title="sort" onclick="{escape(SORT)}"'
        " onkeydown=\"if(event.key==='Enter')this.click()\""
    )
    style = f"text-align:left;padding:3px 14px 3px 0;border-bottom:{LINE}"
    style, click = (f"{style};cursor:pointer", click) if sortable else (style, "")
    heads = "".join(f'<th style="{style}"{click}>{escape(str(name))}</th>' for name in head)
    title = f'<caption style="text-align:left;padding:4px 0">{escape(caption)}</caption>' if caption else ""
    heads = f"<thead><tr>{heads}</tr></thead>" if head else ""
    html = (
        '<div style="overflow-x:auto"><table style="border-collapse:collapse;font-variant-numeric:tabular-nums">'
        f"{title}{heads}<tbody>{_body(rows)}</tbody></table></div>"
    )
    lines = [list(head)] if head else []
    return Shown(html, (f"{caption}\n" if caption else "") + _columns([*lines, *rows]))


def facts(title: str, pairs: Sequence[tuple[str, Any]]) -> Shown:
    """A title, and a value for every name."""
    return table((), [(str(name), number(value)) for name, value in pairs], title, sortable=False)


def written(text: str) -> Shown:
    """A report written as Markdown of paragraphs and tables."""
    parts = []
    for block in text.strip().split("\n\n"):
        lines = block.splitlines()
        cells = [[c.strip() for c in line.strip().strip("|").split("|")] for line in lines if line.startswith("|")]
        paragraph = " ".join(line for line in lines if not line.startswith("|"))
        parts += [f"<p>{escape(paragraph)}</p>"] if paragraph else []
        parts += [table(cells[0], cells[2:]).html] if len(cells) > 1 else []
    return Shown("".join(parts), text)


def markdown(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """The same cells as a Markdown table."""
    cells = [list(head), *([number(value) for value in row] for row in rows)]
    lines = [f"| {' | '.join(line)} |" for line in cells]
    return "\n".join([lines[0], "|---" * len(head) + "|", *lines[1:]])


def _body(rows: Sequence[Sequence[Any]]) -> str:
    style = f"padding:3px 14px 3px 0;vertical-align:top;border-bottom:{LINE};text-align:"
    cells = []
    for row in rows:
        cells.append("<tr>")
        for value in row:
            key = value.key if isinstance(value, Cell) else value
            if _is_number(key):
                sorts = "" if math.isnan(key) else f' data-k="{float(key)!r}"'
                cells.append(f'<td style="{style}right;white-space:nowrap"{sorts}>{escape(number(value))}</td>')
            else:
                cells.append(f'<td style="{style}left">{escape(number(value))}</td>')
        cells.append("</tr>")
    return "".join(cells)


def _columns(lines: Sequence[Sequence[Any]]) -> str:
    """Cells as plain text, one line per row, columns of equal width."""
    clean = [[" ".join(number(cell).split()) for cell in line] for line in lines]
    widths = [max(map(len, column)) for column in zip(*clean)]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(line, widths)).rstrip() for line in clean)
