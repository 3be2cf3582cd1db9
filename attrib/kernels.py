"""The hot loops of attribution: JAX functions of arrays, no I/O, no torch.

Axes: b example, s position, i layer input (bias appended), o layer output, q query. The gradient of example b at
a site is G_b = sum over s of g[b s] a[b s]^T, [o i]; it is never formed for more than a tile at a time. All
functions keep the dtype of their inputs; sums over many batches are carried as two numbers (`Sum`).
"""

from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Order = Literal["positions", "gradients"]


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
    """x^T x, computing the blocks on and above the diagonal only: (blocks + 1) / (2 blocks) of the operations."""
    width = x.shape[1]
    if width < 64 * blocks:
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


@jax.jit
def gradients(a: Float[Array, "b s i"], g: Float[Array, "b s o"]) -> Float[Array, "b o i"]:
    """Per-example gradients G_b, formed."""
    return jax.lax.map(lambda pair: pair[1].T @ pair[0], (a, g))


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


@partial(jax.jit, static_argnames="tile")
def pair_products(
    queries: Float[Array, "q o i"], a: Float[Array, "b s i"], g: Float[Array, "b s o"], tile: int
) -> Float[Array, "q b"]:
    """<P_q, G_b> for every query and example. Gradients are formed for `tile` output rows at a time, contracted with
    the queries while they are in the processor's cache, and forgotten."""
    q, o, i = queries.shape
    b, s = a.shape[:2]
    count = -(-o // tile)
    short = count * tile - o
    queries = jnp.pad(queries, ((0, 0), (0, short), (0, 0))).reshape(q, count, tile * i).transpose(1, 0, 2)
    g = jnp.pad(g, ((0, 0), (0, 0), (0, short))).reshape(b, s, count, tile).transpose(2, 0, 1, 3)

    def step(total, block):
        rows, g_rows = block
        formed = jnp.einsum("bso,bsi->boi", g_rows, a).reshape(b, -1)
        return total + jax.lax.dot_general(rows, formed, (((1,), (1,)), ((), ()))), None

    return jax.lax.scan(step, jnp.zeros((q, b), a.dtype), (queries, g))[0]


@jax.jit
def position_products(
    queries: Float[Array, "q o i"], a: Float[Array, "b s i"], g: Float[Array, "b s o"]
) -> Float[Array, "q b s"]:
    """g[b s]^T P_q a[b s] for every position: the parts of <P_q, G_b> (Grosse et al. 2023, Section 5.3)."""
    return jax.lax.map(lambda p: jnp.einsum("bso,bso->bs", g, a @ p.T), queries)


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
