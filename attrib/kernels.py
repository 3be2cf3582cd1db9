"""The hot loops of attribution: JAX functions of arrays, no I/O, no torch.

Axes: b example, s position, i layer input (bias appended), o layer output, q query. The gradient of example b at
a site is G_b = sum over s of g[b s] a[b s]^T, [o i]; it is never formed for more than a tile at a time. All
functions keep the dtype of their inputs, but that products of bfloat16 arrays are summed, and returned, in float32;
sums over many batches are carried as two numbers (`Sum`).
"""

from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

Order = Literal["positions", "gradients"]
# below this width the whole of x^T x is faster than its upper blocks, whose products are narrow
SYMMETRIC_WIDTH = 2048


class Sum(NamedTuple):
    """A running sum as an unevaluated pair high + low: float32 storage with close to float64 accuracy, with no
    copy to the host in the loop (Knuth's TwoSum; Dekker 1971)."""

    high: Float[Array, "..."]
    low: Float[Array, "..."]


def zero_sum(shape: tuple[int, ...], dtype: Any) -> Sum:
    return Sum(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype))


def add(total: Sum, term: Float[Array, "..."]) -> Sum:
    """total + term, with the rounding error of the addition kept in `low`."""
    high = total.high + term
    part = high - total.high
    error = (total.high - (high - part)) + (term - part)
    return Sum(high, total.low + error)


def symmetric_product(x: Float[Array, "p i"], blocks: int = 4) -> Float[Array, "i i"]:
    """x^T x, where it is wide from the blocks on and above the diagonal only: (blocks + 1) / (2 blocks) of the
    operations."""
    width = x.shape[1]
    if width < SYMMETRIC_WIDTH:
        return x.T @ x
    edges = [round(width * k / blocks) for k in range(blocks + 1)]
    rows = []
    for k in range(blocks):
        right = x[:, edges[k] : edges[k + 1]].T @ x[:, edges[k] :]
        rows.append(jnp.pad(right, ((0, 0), (edges[k], 0))))
    upper = jnp.concatenate(rows)
    return jnp.triu(upper) + jnp.triu(upper, 1).T


@partial(jax.jit, donate_argnums=0)
def add_moment(total: Sum, x: Float[Array, "b s i"], weight: Float[Array, "b s"]) -> Sum:
    """Add sum over counted positions of x x^T: an input moment A or an output-gradient moment S
    (Grosse et al. 2023, Eq. 12; Martens and Grosse 2015). `weight` is 1 where a position counts, else 0."""
    rows = (x * weight[..., None]).reshape(-1, x.shape[-1])
    return add(total, symmetric_product(rows))


def rotation_order(s: int, o: int, i: int) -> Order:
    """The cheaper way to rotate an example's gradient: rotating its s positions costs s (i^2 + o^2) products,
    rotating the formed gradient o i (i + o)."""
    return "positions" if s * (i * i + o * o) < o * i * (i + o) else "gradients"


@partial(jax.jit, donate_argnums=0, static_argnames="order")
def add_rotated_squares(
    total: Sum,
    a: Float[Array, "b s i"],
    g: Float[Array, "b s o"],
    qa: Float[Array, "i i"],
    qs: Float[Array, "o o"],
    order: Order,
) -> Sum:
    """Add sum over b of (Q_S^T G_b Q_A)^2, elementwise: EK-FAC's eigenvalues (George et al. 2018; Grosse et al.
    2023, Eq. 20, with column eigenvectors). One example's gradient is alive at a time."""
    if order == "positions":
        a, g = a @ qa, g @ qs

        def rotated(a: jax.Array, g: jax.Array) -> jax.Array:
            return g.T @ a
    else:

        def rotated(a: jax.Array, g: jax.Array) -> jax.Array:
            return qs.T @ (g.T @ a) @ qa

    if a.shape[1] == 1:  # one position: the square of an outer product is the outer product of squares
        return add(
            total, jnp.square(g[:, 0]).T @ jnp.square(a[:, 0]) if order == "positions" else _squares(rotated, a, g)
        )
    return add(total, _squares(rotated, a, g))


def _squares(rotated, a: Float[Array, "b s i"], g: Float[Array, "b s o"]) -> Float[Array, "o i"]:
    def step(partial_sum, example):
        return partial_sum + jnp.square(rotated(*example)), None

    start = jnp.zeros((g.shape[-1], a.shape[-1]), a.dtype)
    return jax.lax.scan(step, start, (a, g))[0]


@partial(jax.jit, donate_argnums=0)
def add_squares(total: Sum, a: Float[Array, "b s i"], g: Float[Array, "b s o"]) -> Sum:
    """Add sum over b of G_b^2, elementwise: the diagonal of the Fisher matrix."""
    return add(total, _squares(lambda a, g: g.T @ a, a, g))


@partial(jax.jit, donate_argnums=0)
def add_gradient(total: Sum, a: Float[Array, "b s i"], g: Float[Array, "b s o"]) -> Sum:
    """Add sum over b of G_b: one product over all positions of all examples."""
    return add(total, g.reshape(-1, g.shape[-1]).T @ a.reshape(-1, a.shape[-1]))


@jax.jit
def gradients(a: Float[Array, "b s i"], g: Float[Array, "b s o"]) -> Float[Array, "b o i"]:
    """Per-example gradients G_b, formed."""
    return _formed(a, g)


@partial(jax.jit, static_argnames="order")
def rotated(
    a: Float[Array, "b s i"],
    g: Float[Array, "b s o"],
    qa: Float[Array, "i i"],
    qs: Float[Array, "o o"],
    order: Order,
) -> Float[Array, "b o i"]:
    """Q_S^T G_b Q_A of every example."""
    return _formed(a @ qa, g @ qs) if order == "positions" else rotate(_formed(a, g), qa, qs)


@jax.jit
def rotate(matrix: Float[Array, "q o i"], qa: Float[Array, "i i"], qs: Float[Array, "o o"]) -> Float[Array, "q o i"]:
    """Q_S^T G Q_A: into the eigenbasis."""
    return jnp.einsum("op,qoi,ij->qpj", qs, matrix, qa)


@jax.jit
def rotate_back(
    matrix: Float[Array, "q o i"], qa: Float[Array, "i i"], qs: Float[Array, "o o"]
) -> Float[Array, "q o i"]:
    """Q_S G Q_A^T: out of the eigenbasis."""
    return jnp.einsum("po,qoi,ji->qpj", qs, matrix, qa)


@partial(jax.jit, static_argnames="order")
def preconditioned(
    a: Float[Array, "b s i"],
    g: Float[Array, "b s o"],
    qa: Float[Array, "i i"],
    qs: Float[Array, "o o"],
    scale: Float[Array, "o i"],
    order: Order,
) -> Float[Array, "b o i"]:
    """Q_S (scale * (Q_S^T G_b Q_A)) Q_A^T of every example."""
    return rotate_back(scale * rotated(a, g, qa, qs, order), qa, qs)


@partial(jax.jit, static_argnames="group")
def pair_products(
    queries: Float[Array, "q o i"], a: Float[Array, "b s i"], g: Float[Array, "b s o"], group: int
) -> Float[Array, "q b"]:
    """<P_q, G_b> for every query and example. `group` examples' gradients are formed at a time, each by one product of
    its own (2 to 3 times as fast on a CPU as tiles of all examples together), met with the queries, and forgotten."""
    q = queries.shape[0]
    flat = queries.reshape(q, -1)

    def step(_, block):
        formed = _formed(*block).reshape(-1, flat.shape[1]).astype(a.dtype)
        return None, jax.lax.dot_general(flat, formed, (((1,), (1,)), ((), ())), preferred_element_type=wide(a))

    found = jax.lax.scan(step, None, (_tiles(a, 0, group), _tiles(g, 0, group)))[1]
    return found.transpose(1, 0, 2).reshape(q, -1)[:, : a.shape[0]]


def _formed(a: Float[Array, "b s i"], g: Float[Array, "b s o"]) -> Float[Array, "b o i"]:
    """G_b: one product an example on a CPU, one batched product elsewhere."""
    if jax.default_backend() != "cpu":
        return jnp.einsum("bso,bsi->boi", g, a, preferred_element_type=wide(a))
    return jax.lax.map(lambda pair: jnp.matmul(pair[1].T, pair[0], preferred_element_type=wide(a)), (a, g))


@partial(jax.jit, static_argnames="tile")
def rebuilt_products(
    left: Float[Array, "q o r"],
    right: Float[Array, "q i r"],
    a: Float[Array, "b s i"],
    g: Float[Array, "b s o"],
    tile: int,
) -> Float[Array, "q b"]:
    """<left_q right_q^T, G_b>, the queries rebuilt for `tile` output rows at a time: no query is ever whole."""
    q = left.shape[0]

    def rebuild(rows: Float[Array, "q t r"]) -> Float[Array, "q ti"]:
        return jnp.einsum("qtr,qir->qti", rows, right, preferred_element_type=wide(a)).reshape(q, -1).astype(a.dtype)

    def step(total, block):
        rows, g_rows = block
        formed = _formed(a, g_rows).reshape(a.shape[0], -1).astype(a.dtype)
        found = jax.lax.dot_general(rebuild(rows), formed, (((1,), (1,)), ((), ())), preferred_element_type=total.dtype)
        return total + found, None

    start = jnp.zeros((q, a.shape[0]), wide(a))
    return jax.lax.scan(step, start, (_tiles(left, 1, tile), _tiles(g, 2, tile)))[0]


def _tiles(x: jax.Array, axis: int, tile: int) -> jax.Array:
    """`axis` cut into tiles, padded with zeros, the tiles in front."""
    count = -(-x.shape[axis] // tile)
    pad = [(0, 0)] * x.ndim
    pad[axis] = (0, count * tile - x.shape[axis])
    shape = (*x.shape[:axis], count, tile, *x.shape[axis + 1 :])
    return jnp.moveaxis(jnp.pad(x, pad).reshape(shape), axis, 0)


def wide(x: jax.Array) -> Any:
    """What products of this array are summed in."""
    return jnp.promote_types(x.dtype, jnp.float32)


@jax.jit
def rank_products(
    left: Float[Array, "q o r"], right: Float[Array, "q i r"], a: Float[Array, "b s i"], g: Float[Array, "b s o"]
) -> Float[Array, "q b"]:
    """<left_q right_q^T, G_b> = sum over s and r of (g[s] left_q)(a[s] right_q): position by position, nothing
    formed."""

    def one(query):
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
    """<P_q, G_b> by atom, where the inputs are sums of atoms: sum over the steps (s, k) that took atom a of
    values[s k] g[s]^T P_q atoms[a]. One step of all positions is alive at a time; a row an atom is only summed into."""
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


@partial(jax.jit, static_argnames="order")
def weighted_squares(
    a: Float[Array, "b s i"],
    g: Float[Array, "b s o"],
    qa: Float[Array, "i i"],
    qs: Float[Array, "o o"],
    weight: Float[Array, "o i"],
    order: Order,
) -> Float[Array, " b"]:
    """sum over (o, i) of weight * (Q_S^T G_b Q_A)^2: self-influence, rotated once and never back."""
    if order == "positions":
        a, g = a @ qa, g @ qs
        return jax.lax.map(lambda pair: jnp.sum(weight * jnp.square(pair[1].T @ pair[0])), (a, g))
    return jax.lax.map(lambda pair: jnp.sum(weight * jnp.square(qs.T @ (pair[1].T @ pair[0]) @ qa)), (a, g))


@jax.jit
def weighted_squares_unrotated(
    a: Float[Array, "b s i"], g: Float[Array, "b s o"], weight: Float[Array, "o i"]
) -> Float[Array, " b"]:
    """sum over (o, i) of weight * G_b^2, in the weights' own basis."""
    return jax.lax.map(lambda pair: jnp.sum(weight * jnp.square(pair[1].T @ pair[0])), (a, g))
