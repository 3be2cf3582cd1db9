"""The feature page of a dictionary: one HTML file that needs nothing else, searchable, fast at ten thousand atoms.

The data are blocks of JSON, one for every BLOCK atoms, which a browser does not parse before they are looked at: on
opening it parses the columns that atoms are ordered by (a few numbers an atom) and the first block. A search looks
through the blocks' text as it stands, and parses those that match. All text is shown through textContent, so nothing in
the data can become markup.
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from whence.cache.display import render

from .dictionary import Dictionary, Text
from .features import Features

BLOCK = 200  # atoms


def page(
    dictionary: Dictionary,
    found: Features,
    contexts: list[list[Text]] | None = None,
    title: str = "Dictionary",
    *,
    names: Mapping[int, str] | None = None,
) -> str:
    """The page's HTML.

    Args:
        dictionary, found: the atoms, and where they are used.
        contexts: from `Features.contexts`; without them only places are shown.
        title: heading of the page.
        names: of documents, by id, where the data have others (of pieces of a text, the text's).
    """
    blocks = [_json(block) for block in _blocks(dictionary, found, contexts)]
    values = {"title": title, "scripts": True, "facts": _facts(dictionary, found), "blocks": blocks}
    return render("features.html", ["whence.decomp"], **values, data=_json(_columns(dictionary, found, names or {})))


def _json(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    for mark in "&<>\u2028":  # no sequence inside can end the script element
        text = text.replace(mark, f"\\u{ord(mark):04x}")
    return text


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


def _columns(dictionary: Dictionary, found: Features, names: Mapping[int, str]) -> dict[str, Any]:
    """What is parsed on opening: what atoms are ordered and found by."""
    places = dictionary.provenance
    there = np.unique(places.document).tolist()
    return {
        "size": len(dictionary),
        "block": BLOCK,
        "document": places.document.tolist(),
        "names": {str(document): names[document] for document in there if document in names},
        "norm": _short(places.norm),
        "error": [e if e == e else None for e in _short(places.error)],
        "density": [float(f"{d:.3g}") for d in found.density],
        "edges": _short(found.edges[[0, -1]]),
    }


def _blocks(dictionary: Dictionary, found: Features, contexts: list[list[Text]] | None) -> Iterator[dict[str, Any]]:
    """The rest, BLOCK atoms at a time. Each text is in a block once, by number."""
    places = dictionary.provenance
    text = dictionary.text or (Text("", "", ""),) * len(dictionary)
    for start in range(0, len(dictionary), BLOCK):
        part = slice(start, start + BLOCK)
        numbers: dict[Text, int] = {}
        shown = [[] for _ in text[part]] if contexts is None else contexts[part]
        source, *tops = ([numbers.setdefault(item, len(numbers)) for item in row] for row in (text[part], *shown))
        yield {
            "text": [_whole(item) for item in numbers],
            "source": source,
            "top": tops,
            "value": [_short(row[row != 0]) for row in found.value[part]],
            "rows": [
                [[int(found.document[n]), int(found.position[n])] for n in row if n >= 0] if contexts is None else []
                for row in found.top[part]
            ],
            "position": places.position[part].tolist(),
            "seed": places.seed[part].astype(int).tolist(),
            "histogram": found.histogram[part].tolist(),
            "near": found.near[part].tolist(),
            "cosine": [_short(row, 2) for row in found.cosine[part]],
        }


def _whole(text: Text) -> list[Any]:
    """A text in one, so that the block's own text can be searched, and where its token begins and ends in UTF-16."""
    ends = np.cumsum([len(part.encode("utf-16-le", "surrogatepass")) // 2 for part in text[:2]])
    return ["".join(text), *ends.tolist()]


def _short(values: np.ndarray, digits: int = 3) -> list[float]:
    return [round(float(v), digits) for v in values]
