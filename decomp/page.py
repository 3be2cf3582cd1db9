"""The feature page of a dictionary: one HTML file that needs nothing else, searchable, quick at 10,000 atoms.

All text goes in as JSON and is shown through textContent, so nothing in the data can be taken for markup; the page
builds only the atoms that are looked at.
"""

import json
from typing import Any

import numpy as np

from .dictionary import Dictionary, Text
from .features import Features


def page(
    dictionary: Dictionary, found: Features, contexts: list[list[Text]] | None = None, title: str = "Dictionary"
) -> str:
    """The page's HTML. contexts: from `top_contexts`; without them only places are shown."""
    from jinja2 import Environment, PackageLoader

    environment = Environment(loader=PackageLoader("whence.decomp", "templates"), autoescape=True)
    return environment.get_template("features.html").render(
        title=title,
        facts=_facts(dictionary, found),
        data=_script_safe(_data(dictionary, found, contexts)),
    )


def _facts(dictionary: Dictionary, found: Features) -> list[tuple[str, str]]:
    settings = dictionary.settings
    facts = [
        ("atoms", f"{len(dictionary):,}"),
        ("width", str(dictionary.width)),
        ("hook point", dictionary.origin.site or "unknown"),
        ("encoder", f"{dictionary.pursuit} pursuit, k = {dictionary.k}"),
        ("built by", str(settings.get("builder", settings.get("imported", "unknown")))),
        ("shown on", f"{len(found.document):,} activations"),
        ("never used on them", f"{float(np.mean(found.density == 0)):.1%}"),
        ("model", dictionary.origin.model[:12] or "unknown"),
        ("fingerprint", dictionary.fingerprint[:12]),
    ]
    if "unexplained" in settings:
        facts.insert(5, ("threshold", f"{settings['unexplained']:.3g} of the squared norm unexplained"))
    return facts


def _data(dictionary: Dictionary, found: Features, contexts: list[list[Text]] | None) -> dict[str, Any]:
    """Columns, not objects: half the size, and a browser reads it faster."""
    places = dictionary.provenance
    text = dictionary.text or (Text("", "", ""),) * len(dictionary)
    strings: dict[Text, int] = {}
    shown = contexts or [[] for _ in text]

    def number(item: Text) -> int:
        return strings.setdefault(item, len(strings))

    source = [number(item) for item in text]
    tops = [[number(item) for item in row] for row in shown]
    return {
        "text": [list(item) for item in strings],
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


def _script_safe(data: Any) -> str:
    """JSON that no sequence inside can end the script element of."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e").replace("\u2028", "\\u2028")
