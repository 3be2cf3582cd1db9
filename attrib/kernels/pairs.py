"""Inner products of gradients with queries: <P_q, G_b> in whole or low-rank form, by position and by atom."""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from .rotations import formed, wide

TILE_BYTES = 2 << 20  # of formed gradients: stays in a core's cache
GROUP = 16  # examples whose gradients are formed together; more on a GPU, which needs large products
GROUP_BYTES = 64 << 20


@partial(jax.jit, static_argnames="group")
def pair_products(
    queries: Float[Array, "q o i"], a: Float[Array, "b s i"], g: Float[Array, "b s o"], group: int | None = None
) -> Float[Array, "q b"]:
    """<P_q, G_b> for every query and example. `group` examples' gradients (by default as `group_size` says) are formed
    at a time, each by one product of its own (2 to 3 times as fast on a CPU as tiles of all examples together), and
    multiplied with all queries."""
    group = group or group_size(a, g, len(queries))
    q = queries.shape[0]

    def step(_: None, block: tuple[jax.Array, jax.Array]) -> tuple[None, jax.Array]:
        return None, inner_products(queries, formed(*block).astype(a.dtype))

    found = jax.lax.scan(step, None, (_tiles(a, 0, group), _tiles(g, 0, group)))[1]
    return found.transpose(1, 0, 2).reshape(q, -1)[:, : a.shape[0]]


def inner_products(queries: Float[Array, "q o i"], each: Float[Array, "b o i"]) -> Float[Array, "q b"]:
    """<P_q, G_b>: one product over (o, i) on a CPU; elsewhere one per output row, summed, because a single product of
    few rows and a very long inner axis leaves most of a GPU without work."""
    if jax.default_backend() != "cpu":
        rows = jnp.einsum("qoi,boi->oqb", queries, each, preferred_element_type=wide(each))
        return rows.sum(0)
    flat, others = queries.reshape(queries.shape[0], -1), each.reshape(each.shape[0], -1)
    return jax.lax.dot_general(flat, others, (((1,), (1,)), ((), ())), preferred_element_type=wide(each))


@partial(jax.jit, static_argnames="tile")
def rebuilt_products(
    left: Float[Array, "q o r"],
    right: Float[Array, "q i r"],
    a: Float[Array, "b s i"],
    g: Float[Array, "b s o"],
    tile: int | None = None,
) -> Float[Array, "q b"]:
    """<left_q right_q^T, G_b>. The queries are rebuilt for `tile` output rows at a time (by default as `tile_rows`
    says); none is ever whole."""
    tile = tile or tile_rows(a, g)
    q = left.shape[0]

    def rebuild(rows: Float[Array, "q t r"]) -> Float[Array, "q t i"]:
        return jnp.einsum("qtr,qir->qti", rows, right, preferred_element_type=wide(a)).astype(a.dtype)

    def step(total: jax.Array, block: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        rows, g_rows = block
        return total + inner_products(rebuild(rows), formed(a, g_rows).astype(a.dtype)), None

    start = jnp.zeros((q, a.shape[0]), wide(a))
    return jax.lax.scan(step, start, (_tiles(left, 1, tile), _tiles(g, 2, tile)))[0]


def _tiles(x: jax.Array, axis: int, tile: int) -> jax.Array:
    """`axis` cut into tiles, padded with zeros, with the tiles as the first axis."""
    count = -(-x.shape[axis] // tile)
    pad = [(0, 0)] * x.ndim
    pad[axis] = (0, count * tile - x.shape[axis])
    shape = (*x.shape[:axis], count, tile, *x.shape[axis + 1 :])
    return jnp.moveaxis(jnp.pad(x, pad).reshape(shape), axis, 0)


@jax.jit
def rank_products(
    left: Float[Array, "q o r"], right: Float[Array, "q i r"], a: Float[Array, "b s i"], g: Float[Array, "b s o"]
) -> Float[Array, "q b"]:
    """<left_q right_q^T, G_b> = sum over s and r of (g[s] left_q)(a[s] right_q): position by position, without
    a formed gradient."""

    def one(query: tuple[jax.Array, jax.Array]) -> jax.Array:
        low_g = jnp.matmul(g, query[0], preferred_element_type=wide(a))
        low_a = jnp.matmul(a, query[1], preferred_element_type=wide(a))
        return jnp.sum(low_g * low_a, (1, 2))

    return jax.lax.map(one, (left, right))


@jax.jit
def position_products(
    queries: Float[Array, "q o i"], a: Float[Array, "b s i"], g: Float[Array, "b s o"]
) -> Float[Array, "q b s"]:
    """g[b s]^T P_q a[b s] for every position: the parts of <P_q, G_b> (Grosse et al. 2023, Section 5.3)."""
    return jax.lax.map(lambda p: jnp.einsum("bso,bso->bs", g, a @ p.T), queries)


@jax.jit
def atom_products(
    queries: Float[Array, "q o i"],
    g: Float[Array, "b s o"],
    indices: Int[Array, "b s k"],
    values: Float[Array, "b s k"],
    atoms: Float[Array, "a i"],
) -> Float[Array, "q b a"]:
    """<P_q, G_b> by atom, for inputs that are sums of atoms: the sum over the steps (s, k) that chose atom a of
    values[s k] g[s]^T P_q atoms[a]. One step of all positions is alive at a time."""
    rows = jnp.arange(g.shape[0])[:, None]

    def one(query: Float[Array, "o i"]) -> Float[Array, "b a"]:
        pulled = g @ query

        def step(total: jax.Array, taken: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
            atom, value = taken
            part = value * jnp.sum(pulled * atoms[atom], axis=-1)
            return total.at[rows, atom].add(part), None

        start = jnp.zeros((g.shape[0], atoms.shape[0]), g.dtype)
        return jax.lax.scan(step, start, (jnp.moveaxis(indices, 2, 0), jnp.moveaxis(values, 2, 0)))[0]

    return jax.lax.map(one, queries)


def group_size(a: jax.Array, g: jax.Array, queries: int) -> int:
    """Examples whose gradients are formed together: as many as GROUP_BYTES allow, but at least 4. More of them if there
    are many queries, because the queries are read once per group."""
    most = GROUP * (1 if queries <= 128 else 2) * (1 if jax.default_backend() == "cpu" else 8)
    fits = (most // GROUP) * GROUP_BYTES // (4 * a.shape[2] * g.shape[2])
    return int(min(a.shape[0], most, max(4, fits)))


def tile_rows(a: jax.Array, g: jax.Array) -> int:
    """Output rows of the gradient that are formed at a time."""
    rows = TILE_BYTES // (a.dtype.itemsize * a.shape[0] * a.shape[2])
    return int(min(g.shape[2], max(16, rows)))
