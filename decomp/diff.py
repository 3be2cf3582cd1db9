"""What changed in a model, seen through its dictionaries before and after: atoms removed, added, moved.

Both dictionaries are built from the same text with the same settings. An atom of the first whose place is not in
the second was removed: the changed model no longer finds that token new, or never represents it so. `nearest`
tells whether its direction is still there under another name.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import xarray as xr

from whence.cache.errors import DataError, ModelError

from .dictionary import Dictionary, largest_cosine
from .provenance import Text

MOVED = 0.9  # an atom whose direction at the same place has a cosine below this has moved


def difference(before: Dictionary, after: Dictionary, moved: float = MOVED) -> xr.Dataset:
    """One row for every place that either dictionary has an atom of, in order of document and position.

    status: "removed", "added", "moved" or "kept"; cosine: of the two atoms at the place (NaN where there is one
    only); nearest: largest |cosine| of the atom with any of the other dictionary; norm: of the activation;
    before, token, after: the text around it, where either dictionary knows it.
    Raises ModelError for different hook points, DataError for different widths.
    """
    if before.origin.site and after.origin.site and before.origin.site != after.origin.site:
        raise ModelError(
            f"One dictionary is of {before.origin.site}, the other of {after.origin.site}.",
            "Compare the same hook point before and after; use decomp.compare for different ones.",
        )
    if before.width != after.width:
        raise DataError(f"Widths {before.width} and {after.width}.", "Compare dictionaries of one model.")
    rows_before = {p: n for n, p in enumerate(before.provenance.places) if p[1] >= 0}
    rows_after = {p: n for n, p in enumerate(after.provenance.places) if p[1] >= 0}
    everywhere = sorted({*rows_before, *rows_after})
    near_before = largest_cosine(before.atoms, after.atoms)
    near_after = largest_cosine(after.atoms, before.atoms)
    status, cosine, nearest, norm, texts = [], [], [], [], []
    for place in everywhere:
        b, a = rows_before.get(place), rows_after.get(place)
        both = float(before.atoms[b] @ after.atoms[a]) if a is not None and b is not None else float("nan")
        status.append("added" if b is None else "removed" if a is None else "kept" if both >= moved else "moved")
        cosine.append(both)
        nearest.append(float(near_before[b] if b is not None else near_after[a]))
        norm.append(float(before.provenance.norm[b] if b is not None else after.provenance.norm[a]))
        texts.append(_text(before, b) or _text(after, a) or Text("", "", ""))
    columns = {
        "document": [p[0] for p in everywhere],
        "position": [p[1] for p in everywhere],
        "status": status,
        "cosine": cosine,
        "nearest": nearest,
        "norm": norm,
        "before": [t.before for t in texts],
        "token": [t.token for t in texts],
        "after": [t.after for t in texts],
    }
    return xr.Dataset(
        {name: ("atom", np.array(values)) for name, values in columns.items()},
        attrs={"before": before.fingerprint, "after": after.fingerprint, "moved_below": moved},
    )


def summary(difference: xr.Dataset, groups: Mapping[str, Sequence[int]]) -> xr.Dataset:
    """Counts of every status by group of documents ("forget", "retain", ...), and as a share of the group's atoms
    before: an unlearning that reached its goal removes or moves more of the forget set's atoms than of others."""
    names = ["removed", "added", "moved", "kept"]
    document, status = difference.document.values, difference.status.values
    counts = np.array(
        [[np.sum((status == name) & np.isin(document, list(ids))) for name in names] for ids in groups.values()]
    )
    had = counts[:, [0, 2, 3]].sum(axis=1, keepdims=True)
    return xr.Dataset(
        {
            "count": (("group", "status"), counts),
            "share": (("group", "status"), counts / np.maximum(had, 1)),
        },
        coords={"group": list(groups), "status": names},
    )


def _text(dictionary: Dictionary, row: int | None) -> Text | None:
    return None if row is None or dictionary.text is None else dictionary.text[row]
