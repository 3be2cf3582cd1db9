"""How alike two dictionaries are by the places that their atoms came from.

An atom's place, (document, position), means the same in every model that read the text, so dictionaries of
different widths, layers and checkpoints compare as sets. Three numbers go with the Jaccard index, as it can be
large for reasons that say nothing about the models:

- without seeds: the first atoms of the stream are in every dictionary by construction;
- size: two random sets of equal sizes overlap more the nearer their sizes are; min/max of the sizes alone often
  tells layers apart;
- corrected: (J − E) / (1 − E), with E what random sets of these sizes out of the tokens read would give.
"""

from collections.abc import Iterable, Sequence

import numpy as np
import xarray as xr

from whence.cache.display.interval import Interval
from whence.cache.errors import DataError

from . import intervals
from .dictionary import Dictionary
from .evaluate import table

Place = tuple[int, int]


def places(dictionaries: Dictionary | Iterable[Dictionary], seeds: bool = True) -> set[Place]:
    """Places of the atoms of one dictionary or of several together (a model's layers). Atoms that come from no
    place do not count. Raises DataError when none is left."""
    parts = [dictionaries] if isinstance(dictionaries, Dictionary) else list(dictionaries)
    found: set[Place] = set()
    for part in parts:
        keep = (part.provenance.position >= 0) & (seeds | ~part.provenance.seed)
        found |= set(part.provenance.rows(keep).places)
    if not found:
        raise DataError("No atom with a place to compare.", "Compare dictionaries whose atoms are activations.")
    return found


def jaccard(one: set[Place], other: set[Place]) -> float:
    """|A ∩ B| / |A ∪ B|."""
    return len(one & other) / len(one | other)


def by_chance(one: int, other: int, tokens: int) -> float:
    """The Jaccard index expected of random sets of these sizes out of so many tokens: e / (a + b − e) with
    e = ab / tokens."""
    both = one * other / tokens
    return both / (one + other - both)


def corrected(one: set[Place], other: set[Place], tokens: int) -> float:
    """Jaccard index, 0 at chance and 1 at identity."""
    chance = by_chance(len(one), len(other), tokens)
    return (jaccard(one, other) - chance) / max(1 - chance, 1e-12)


def size_only(one: set[Place], other: set[Place]) -> float:
    """min/max of the sizes: what is known without looking at a single atom."""
    return min(len(one), len(other)) / max(len(one), len(other))


def jaccard_interval(one: set[Place], other: set[Place]) -> Interval:
    """The index with its interval, by resampling documents: a document contributes its shared and its joint
    atoms."""
    joint = np.array(sorted(one | other))
    shared = np.array([tuple(place) in one and tuple(place) in other for place in joint.tolist()], float)
    return intervals.ratio(
        intervals.per_document(shared, joint[:, 0]),
        intervals.per_document(np.ones(len(joint)), joint[:, 0]),
    )


def compare(
    one: Dictionary | Sequence[Dictionary], other: Dictionary | Sequence[Dictionary], tokens: int | None = None
) -> xr.Dataset:
    """Every overlap number for two dictionaries, or for the layers of two models taken together.

    tokens: read by both builders (by default what the first one's settings say); for the chance correction.

    >>> same = compare(dictionary, dictionary)
    >>> float(same["value"].sel(metric="jaccard"))
    1.0
    """
    first = one if isinstance(one, Dictionary) else one[0]
    read = int(first.settings.get("rows_read", 0)) if tokens is None else tokens
    a, b = places(one), places(other)
    rows = {"jaccard": jaccard_interval(a, b), "size_only": Interval(size_only(a, b))}
    try:
        a_late, b_late = places(one, seeds=False), places(other, seeds=False)
    except DataError:
        a_late = b_late = set()
    if a_late and b_late:
        rows["jaccard_without_seeds"] = jaccard_interval(a_late, b_late)
    if read:
        rows["by_chance"] = Interval(by_chance(len(a), len(b), read))
        rows["corrected"] = Interval(corrected(a, b, read))
        if a_late and b_late:
            rows["corrected_without_seeds"] = Interval(corrected(a_late, b_late, read))
    return table(rows, atoms=[len(a), len(b)], shared=len(a & b), tokens=read)
