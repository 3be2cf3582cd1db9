"""Which form <P_q, G_b> is computed in: three forms of one sum, chosen by operations within a limit of bytes.

positions: queries at rank r are multiplied with every position, sum over s and r of (g[s] L_q)(a[s] R_q). No gradient
    is formed: best for few queries.
tiles: a few examples' gradients are formed at a time and multiplied with all queries, stored whole: best for many.
rank: as tiles, but the queries are rebuilt from their rank-r factors: a little more work, least memory.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

from whence.cache.model.sites import Site

from .lowrank import worth_it

Form = Literal["positions", "rank", "tiles"]


class Work(NamedTuple):
    """What a form costs at one site: operations per example (multiplications, additions), bytes of the queries."""

    form: Form
    operations: float
    nbytes: int


def options(
    queries: int, positions: int, batch: int, o: int, i: int, rank: int | None, itemsize: int = 4
) -> list[Work]:
    """Every form that is possible at a site, with its cost; `rank` None means that queries are exact."""
    form_and_multiply = 2.0 * positions * o * i + 2.0 * queries * o * i
    dense = Work("tiles", form_and_multiply, queries * o * i * itemsize)
    if rank is None or not worth_it(rank, o, i):
        return [dense]
    small = queries * rank * (o + i) * itemsize
    return [
        dense,
        Work("positions", 2.0 * queries * positions * rank * (o + i + 1), small),
        Work("rank", form_and_multiply + 2.0 * queries * rank * o * i / batch, small),
    ]


def choose(
    sites: Sequence[Site], queries: int, positions: int, batch: int, rank: int | None, limit: int, itemsize: int = 4
) -> dict[str, Work]:
    """The form of every site: fewest operations, all sites together within `limit` bytes if that is possible.

    Every site starts with its smallest form. Then the changes that save the most operations per byte are taken, as long
    as they fit. The caller checks whether even the smallest forms fit (the sum of nbytes).

    Args:
        queries: how many. positions: the longest example's. batch: examples in a batch. rank: None for exact queries.
        limit: bytes. itemsize: bytes of a number.
    """
    every = {s.name: options(queries, positions, batch, *s.shape, rank, itemsize) for s in sites}
    chosen = {name: min(works, key=lambda w: (w.nbytes, w.operations)) for name, works in every.items()}
    used = sum(work.nbytes for work in chosen.values())

    def gain(name: str) -> tuple[float, Work]:
        now, best = chosen[name], min(every[name], key=lambda w: w.operations)
        return (now.operations - best.operations) / max(best.nbytes - now.nbytes, 1), best

    for name in sorted(chosen, key=lambda name: -gain(name)[0]):
        saved, best = gain(name)
        if saved > 0 and used + best.nbytes - chosen[name].nbytes <= limit:
            used += best.nbytes - chosen[name].nbytes
            chosen[name] = best
    return chosen
