"""How <P_q, G_b> is computed: three forms of one sum, chosen by operations within a limit of bytes.

positions: queries at rank r meet every position, sum over s and r of (g[s] L_q)(a[s] R_q). Nothing is formed: best for
few queries. tiles: the gradient is formed a tile at a time and multiplied with all queries, held whole: best for many.
rank: the same with the queries' tiles rebuilt from their rank-r factors: a little more work, least memory.
"""

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import jax
from jaxtyping import Array, Float

from whence.cache import Site

from .. import kernels
from .lowrank import LowRank, worth_it

Form = Literal["positions", "rank", "tiles"]
Held = LowRank | Float[Array, "q o i"]

TILE_BYTES = 2 << 20  # of formed gradients: stays in a core's cache
GROUP = 16  # examples whose gradients are formed together; more on a GPU, which wants large products
GROUP_BYTES = 64 << 20


class Work(NamedTuple):
    """What a form costs at one site: operations an example (multiplications and additions), bytes the queries take."""

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
    """The form of every site: cheapest in operations, all together within `limit` bytes where that is possible.

    Every site begins with its smallest form; then the changes that save the most operations a byte are made for as
    long as they fit. Whether even the smallest fits is for the caller to see (the sum of nbytes).
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


def hold(value: LowRank, form: Form) -> Held:
    """Queries as the form wants them."""
    return value.dense() if form == "tiles" else value


def products(held: Held, a: Float[Array, "b s i"], g: Float[Array, "b s o"], form: Form) -> Float[Array, "q b"]:
    """<P_q, G_b> of every query and example in this form."""
    if isinstance(held, LowRank):
        if form == "positions":
            return kernels.rank_products(held.left, held.right, a, g)
        return kernels.rebuilt_products(held.left, held.right, a, g, tile=tile_rows(a, g))
    return kernels.pair_products(held, a, g, group=group_size(a, g, held.shape[0]))


def group_size(a: jax.Array, g: jax.Array, queries: int) -> int:
    """Examples whose gradients are formed together, more for more queries, which are read again for every group:
    as many as stay within GROUP_BYTES, but 4."""
    most = GROUP * (1 if queries <= 128 else 2) * (1 if jax.default_backend() == "cpu" else 8)
    fits = (most // GROUP) * GROUP_BYTES // (4 * a.shape[2] * g.shape[2])
    return int(min(a.shape[0], most, max(4, fits)))


def tile_rows(a: jax.Array, g: jax.Array) -> int:
    """Output rows of the gradient to form at a time."""
    rows = TILE_BYTES // (a.dtype.itemsize * a.shape[0] * a.shape[2])
    return int(min(g.shape[2], max(16, rows)))


def total_bytes(chosen: Mapping[str, Work]) -> int:
    return sum(work.nbytes for work in chosen.values())
