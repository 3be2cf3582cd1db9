"""The feature page of a dictionary: one HTML file that needs nothing else, searchable, fast at 10,000 atoms.

All text goes in as JSON and is shown through textContent, so nothing in the data can become markup; the page builds
only the atoms that are looked at.
"""

import json
from typing import Any

import numpy as np

from whence.cache.display import render

from .dictionary import Dictionary, Text
from .features import Features


def page(
    dictionary: Dictionary, found: Features, contexts: list[list[Text]] | None = None, title: str = "Dictionary"
) -> str:
    """The page's HTML. contexts: from `Features.contexts`; without them only places are shown."""
    text = json.dumps(_data(dictionary, found, contexts), ensure_ascii=False, separators=(",", ":"))
    for mark in "&<>\u2028":  # no sequence inside can end the script element
        text = text.replace(mark, f"\\u{ord(mark):04x}")
    facts = _facts(dictionary, found)
    return render("features.html", ["whence.decomp"], title=title, scripts=True, facts=facts, data=text)


def _facts(dictionary: Dictionary, found: Features) -> list[tuple[str, str]]:
    settings, threshold = dictionary.settings, []
    if "unexplained" in settings:
        threshold = [("threshold", f"{settings['unexplained']:.3g} of the squared norm unexplained")]
    return [
        ("atoms", f"{len(dictionary):,}"),
        ("width", str(dictionary.width)),
        ("hook point", dictionary.origin.site or "unknown"),
        ("encoder", f"{dictionary.pursuit} pursuit, k = {dictionary.k}"),
        ("built by", str(settings.get("builder", settings.get("imported", "unknown")))),
        *threshold,
        ("shown on", f"{len(found.document):,} activations"),
        ("never used on them", f"{float(np.mean(found.density == 0)):.1%}"),
        ("model", dictionary.origin.model[:12] or "unknown"),
        ("fingerprint", dictionary.fingerprint[:12]),
    ]


def _data(dictionary: Dictionary, found: Features, contexts: list[list[Text]] | None) -> dict[str, Any]:
    """Columns, not objects: half the size, and a browser reads it faster. Each text is there once, by number."""
    places = dictionary.provenance
    text = dictionary.text or (Text("", "", ""),) * len(dictionary)
    numbers: dict[Text, int] = {}
    source, *tops = (
        [numbers.setdefault(item, len(numbers)) for item in row] for row in (text, *(contexts or [[] for _ in text]))
    )
    return {
        "text": [list(item) for item in numbers],
        "source": source,
        "top": tops,
        "value": [_short(row[row != 0]) for row in found.value],
        "rows": [
            [[int(found.document[n]), int(found.position[n])] for n in row if n >= 0] if contexts is None else []
            for row in found.top
        ],
        "document": places.document.tolist(),
        "position": places.position.tolist(),
        "norm": _short(places.norm),
        "error": [e if e == e else None for e in _short(places.error)],
        "seed": places.seed.astype(int).tolist(),
        "density": [float(f"{d:.3g}") for d in found.density],
        "histogram": found.histogram.tolist(),
        "edges": _short(found.edges[[0, -1]]),
        "near": found.near.tolist(),
        "cosine": [_short(row, 2) for row in found.cosine],
    }


def _short(values: np.ndarray, digits: int = 3) -> list[float]:
    return [round(float(v), digits) for v in values]
