"""Text shaded by numbers: one colour above zero, another below; the colours lie over light and dark themes alike.

heat(["a ", "yield"], [0.1, -0.4], unit="nats")
"""

import math
from collections.abc import Sequence
from html import escape

import numpy as np

from ..errors import DataError
from .pages import Shown
from .tables import number

ABOVE, BELOW = "20 168 144", "226 110 60"
DEEPEST = 0.62  # opacity of the strongest
FAINTEST = 0.05  # below this opacity nothing is drawn

Values = Sequence[float | None] | np.ndarray


def heat(tokens: Sequence[str], values: Values, unit: str, caption: str = "") -> Shown:
    """Tokens, each shaded by its number; as text, the tokens and the five strongest.

    Args:
        tokens: pieces of the text.
        values: one number per token; a token whose number is NaN stays plain.
        unit: of the numbers, shown with them.
        caption: one line above the text.

    Raises:
        DataError: there are not as many values as tokens.
    """
    values = np.asarray(values, np.float64)
    if values.shape != (len(tokens),):
        raise DataError(f"{len(tokens)} tokens and values of shape {values.shape}.", "Give one value per token.")
    known = np.nan_to_num(values)
    title = f'<div style="opacity:.72">{escape(caption)}</div>' if caption else ""
    most = number(float(np.abs(known).max(initial=0.0)), 3)
    scale = f'<div style="opacity:.72;font-size:.85em">strongest {most} {escape(unit)}</div>'
    style = "white-space:pre-wrap;overflow-wrap:anywhere;line-height:1.75;max-width:60em"
    text = f'<div style="{style}">{shaded(tokens, values, unit)}</div>'
    order = [i for i in np.argsort(-np.abs(known), kind="stable")[:5] if known[i] != 0]
    best = "\n".join(f"  {values[i]:+.3g} {unit}  {tokens[i]!r}" for i in order)
    plain = "\n".join(part for part in (caption, "".join(tokens), best) if part)
    return Shown(f"<div>{title}{text}{scale}</div>", plain)


def shaded(tokens: Sequence[str], values: Values, unit: str = "", most: float | None = None) -> str:
    """The HTML of the tokens: opacity is the square root of the value's share of `most` (by default the largest)."""
    known = np.array([np.nan if value is None else value for value in values], np.float64)
    most = float(np.abs(np.nan_to_num(known)).max(initial=0.0)) if most is None else most
    parts = []
    for token, value in zip(tokens, known.tolist()):
        if most <= 0 or not math.isfinite(value):
            parts.append(escape(token))
            continue
        depth = DEEPEST * math.sqrt(min(abs(value) / most, 1.0))
        wash = f' style="background:rgb({ABOVE if value > 0 else BELOW} / {depth:.3f})"' if depth >= FAINTEST else ""
        label = escape(f"{value:+.3g} {unit}".strip())
        parts.append(f'<span{wash} title="{label}">{escape(token)}</span>')
    return "".join(parts)
