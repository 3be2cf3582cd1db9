"""How objects show themselves: HTML for a notebook, the same as plain text, and whole pages for a file.

    heat(["a ", "yield"], [0.1, -0.4], unit="nats")      # tokens shaded by a number
    table(["name", "nats"], rows, "Passages")            # a click on a column's head sorts by it

Every text is escaped. Nothing is loaded from anywhere. Colours are washes over whatever lies behind and all writing is
in the reader's own colour, so it reads in light and in dark themes alike.
"""

import base64
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..errors import DataError, ResourceError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ABOVE, BELOW = "20 168 144", "226 110 60"  # washes: helps and hinders, above and below zero
DEEPEST = 0.62  # opacity of the strongest
LINE = "1px solid color-mix(in srgb, currentColor 22%, transparent)"
SORT = (
    "const h=this,b=h.closest('table').tBodies[0],i=h.cellIndex,s=h.dataset.s=h.dataset.s==='1'?'-1':'1',"
    "k=r=>r.cells[i].dataset.k,n=x=>x===undefined?NaN:+x;"
    "[...b.rows].sort((p,q)=>{const x=k(p),y=k(q);"
    "return s*(isNaN(n(x))||isNaN(n(y))?p.cells[i].textContent.localeCompare(q.cells[i].textContent):x-y)})"
    ".forEach(r=>b.append(r))"
)
PAGE = """:root{color-scheme:light dark}
body{font:16px/1.55 system-ui,sans-serif;max-width:70rem;margin:2rem auto;padding:0 1rem;overflow-wrap:anywhere}
h1{font-size:1.6rem}h2{font-size:1.15rem;margin-top:2rem}img{max-width:100%;background:#fff;border-radius:6px}"""


@dataclass(frozen=True)
class Shown:
    """Something to look at: `html` in a notebook, `text` where it is printed."""

    html: str
    text: str

    def __add__(self, other: "Shown") -> "Shown":
        return Shown(self.html + other.html, f"{self.text}\n\n{other.text}")

    def __repr__(self) -> str:
        return self.text

    def _repr_html_(self) -> str:
        return self.html

    def save(self, path: str | Path, title: str = "Whence") -> Path:
        """As a page of its own. Raises ResourceError where that cannot be written."""
        return write_page(page(title, self.html), path)


class Cell(NamedTuple):
    """A table's cell whose writing is not its number: `text` is shown, `key` sorts."""

    text: str
    key: float


def number(value: Any, digits: int = 4) -> str:
    """A number for people: thousands apart, `digits` significant ones, nothing for NaN."""
    if isinstance(value, Cell):
        return value.text
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, float, np.number)):
        return str(value)
    if isinstance(value, (int, np.integer)):
        return f"{int(value):,}"
    return "" if math.isnan(value) else f"{float(value):.{digits}g}"


def table(head: Sequence[str], rows: Sequence[Sequence[Any]], caption: str = "") -> Shown:
    """Rows under a head that sorts them when clicked; numbers stand to the right and sort as numbers.

    >>> print(table(["atom", "nats"], [[3, 0.5]]))
    atom  nats
    3     0.5
    """
    cells = "".join(f"<tr>{''.join(_cell(value) for value in row)}</tr>" for row in rows)
    heads = "".join(
        f'<th tabindex="0" role="button" title="sort" style="text-align:left;cursor:pointer;padding:3px 14px 3px 0;'
        f'border-bottom:{LINE}" onclick="{escape(SORT)}" onkeydown="if(event.key===\'Enter\')this.click()">'
        f"{escape(str(name))}</th>"
        for name in head
    )
    title = f'<caption style="text-align:left;padding:4px 0">{escape(caption)}</caption>' if caption else ""
    html = (
        f'<div style="overflow-x:auto"><table style="border-collapse:collapse;font-variant-numeric:tabular-nums">'
        f"{title}<thead><tr>{heads}</tr></thead><tbody>{cells}</tbody></table></div>"
    )
    lines = [[str(name) for name in head], *([number(value) for value in row] for row in rows)]
    return Shown(html, (f"{caption}\n" if caption else "") + columns(lines))


def _cell(value: Any) -> str:
    style = f"padding:3px 14px 3px 0;vertical-align:top;border-bottom:{LINE};"
    plain = value.key if isinstance(value, Cell) else value
    if isinstance(plain, (bool, np.bool_)) or not isinstance(plain, (int, float, np.number)):
        return f'<td style="{style}text-align:left">{escape(str(value))}</td>'
    key = "" if math.isnan(plain) else f' data-k="{float(plain)!r}"'
    return f'<td style="{style}text-align:right;white-space:nowrap"{key}>{escape(number(value))}</td>'


def columns(lines: Sequence[Sequence[str]]) -> str:
    """Cells as plain text, one line a row, columns of equal width."""
    clean = [[" ".join(cell.split()) for cell in line] for line in lines]
    widths = [max(map(len, column)) for column in zip(*clean)]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(line, widths)).rstrip() for line in clean)


def facts(title: str, pairs: Sequence[tuple[str, Any]]) -> Shown:
    """What is known of one thing: a title, and a value for every name."""
    style = "text-align:left;vertical-align:top;padding:1px 18px 1px 0"
    rows = "".join(
        f'<tr><td style="{style};opacity:.72">{escape(str(name))}</td>'
        f'<td style="{style};overflow-wrap:anywhere">{escape(number(value))}</td></tr>'
        for name, value in pairs
    )
    html = f'<div><b>{escape(title)}</b><table style="border-collapse:collapse">{rows}</table></div>'
    lines = columns([[str(name), number(value)] for name, value in pairs])
    return Shown(html, f"{title}\n" + "\n".join(f"  {line}" for line in lines.splitlines()))


def heat(tokens: Sequence[str], values: Sequence[float] | np.ndarray, unit: str, caption: str = "") -> Shown:
    """Tokens shaded by a number each: one colour above zero, another below, depth by the square root of its share of
    the strongest; NaN stays plain. As text: the tokens, and the five strongest.

    Raises DataError where there are not as many values as tokens.
    """
    values = np.asarray(values, np.float64)
    if values.shape != (len(tokens),):
        raise DataError(f"{len(tokens)} tokens and values of shape {values.shape}.", "Give one value a token.")
    known = np.nan_to_num(values)
    most = float(np.abs(known).max(initial=0.0))
    spans = "".join(_span(token, value, most, unit) for token, value in zip(tokens, values))
    title = f'<div style="opacity:.72">{escape(caption)}</div>' if caption else ""
    scale = f'<div style="opacity:.72;font-size:.85em">strongest {number(most, 3)} {escape(unit)}</div>'
    text = f'<div style="white-space:pre-wrap;overflow-wrap:anywhere;line-height:1.75;max-width:60em">{spans}</div>'
    order = [i for i in np.argsort(-np.abs(known), kind="stable")[:5] if known[i] != 0]
    best = "\n".join(f"  {values[i]:+.3g} {unit}  {tokens[i]!r}" for i in order)
    plain = "\n".join(part for part in (caption, "".join(tokens), best) if part)
    return Shown(f"<div>{title}{text}{scale}</div>", plain)


def _span(token: str, value: float, most: float, unit: str) -> str:
    if not np.isfinite(value) or most == 0:
        return escape(token)
    depth = DEEPEST * math.sqrt(abs(value) / most)
    wash = f"background:rgb({ABOVE if value > 0 else BELOW} / {depth:.3f});" if depth >= 0.05 else ""
    return f'<span style="{wash}border-radius:3px" title="{value:+.3g} {escape(unit)}">{escape(token)}</span>'


def written(text: str) -> Shown:
    """A report written as Markdown of paragraphs and tables, shown as such."""
    parts = []
    for block in text.strip().split("\n\n"):
        lines = block.splitlines()
        cells = [[c.strip() for c in line.strip().strip("|").split("|")] for line in lines if line.startswith("|")]
        said = " ".join(line for line in lines if not line.startswith("|"))
        parts += [f"<p>{escape(said)}</p>"] if said else []
        parts += [table(cells[0], cells[2:]).html] if len(cells) > 1 else []
    return Shown("".join(parts), text)


def page(title: str, *parts: str) -> str:
    """A whole HTML document of these parts (HTML already), which follows the reader's light or dark theme."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{PAGE}</style></head>\n<body><h1>{escape(title)}</h1>\n"
        + "\n".join(parts)
        + "\n</body></html>\n"
    )


def write_page(html: str, path: str | Path) -> Path:
    """Write a page; returns where it is. Raises ResourceError where that cannot be done."""
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(html, "utf-8")
    except OSError as error:
        raise ResourceError(f"{path} cannot be written ({error.strerror}).", "Give another path.") from error
    return path


def axes_or_new(ax: "Axes | None", width: float = 5.0, height: float = 3.2) -> "Axes":
    """The axes to draw on: those given, or those of a new figure of this size in inches."""
    if ax is not None:
        return ax
    import matplotlib.pyplot as plt

    return plt.subplots(figsize=(width, height), layout="constrained")[1]


def picture(figure: "Figure", alt: str) -> str:
    """A figure as an HTML image with its bytes in it."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    data = base64.b64encode(buffer.getvalue()).decode()
    return f'<img alt="{escape(alt)}" src="data:image/png;base64,{data}">'
