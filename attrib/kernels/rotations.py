"""Per-example gradients G_b = sum over s of g[b s] a[b s]^T, formed, rotated into an eigenbasis, and squared."""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .sums import Sum, add

Order = Literal["positions", "gradients"]
Basis: TypeAlias = Float[Array, "_w _w"] | None  # columns are eigenvectors; None: the weights' own basis, on both sides


def rotation_order(s: int, o: int, i: int) -> Order:
    """The cheaper way to rotate an example's gradient: rotating its s positions costs s (i^2 + o^2) products,
    rotating the formed gradient o i (i + o)."""
    return "positions" if s * (i * i + o * o) < o * i * (i + o) else "gradients"


def wide(x: jax.Array) -> Any:
    """The type that products of this array are summed in: at least float32."""
    return jnp.promote_types(x.dtype, jnp.float32)


def formed(a: Float[Array, "b s i"], g: Float[Array, "b s o"]) -> Float[Array, "b o i"]:
    """G_b of every example: one product per example on a CPU, one batched product elsewhere."""
    if jax.default_backend() != "cpu":
        return jnp.einsum("bso,bsi->boi", g, a, preferred_element_type=wide(a))
    return jax.lax.map(lambda pair: jnp.matmul(pair[1].T, pair[0], preferred_element_type=wide(a)), (a, g))


@jax.jit
def gradients(a: Float[Array, "b s i"], g: Float[Array, "b s o"]) -> Float[Array, "b o i"]:
    """Per-example gradients G_b, formed."""
    return formed(a, g)


@partial(jax.jit, static_argnames="order")
def rotated(
    a: Float[Array, "b s i"], g: Float[Array, "b s o"], qa: Basis, qs: Basis, order: Order
) -> Float[Array, "b o i"]:
    """Q_S^T G_b Q_A of every example."""
    if qa is not None and qs is not None and order == "positions":
        return formed(a @ qa, g @ qs)
    return rotate(formed(a, g), qa, qs)


@jax.jit
def rotate(matrix: Float[Array, "q o i"], qa: Basis, qs: Basis) -> Float[Array, "q o i"]:
    """Q_S^T G Q_A: into the eigenbasis."""
    if qa is None or qs is None:
        return matrix
    return jnp.einsum("op,qoi,ij->qpj", qs, matrix, qa)


@jax.jit
def rotate_back(matrix: Float[Array, "q o i"], qa: Basis, qs: Basis) -> Float[Array, "q o i"]:
    """Q_S G Q_A^T: out of the eigenbasis."""
    if qa is None or qs is None:
        return matrix
    return jnp.einsum("po,qoi,ji->qpj", qs, matrix, qa)


@partial(jax.jit, static_argnames="order")
def preconditioned(
    a: Float[Array, "b s i"],
    g: Float[Array, "b s o"],
    qa: Basis,
    qs: Basis,
    scale: Float[Array, "o i"],
    order: Order,
) -> Float[Array, "b o i"]:
    """Q_S (scale * (Q_S^T G_b Q_A)) Q_A^T of every example."""
    return rotate_back(scale * rotated(a, g, qa, qs, order), qa, qs)


@partial(jax.jit, donate_argnums=0)
def add_squares(total: Sum, a: Float[Array, "b s i"], g: Float[Array, "b s o"]) -> Sum:
    """Add sum over b of G_b^2, elementwise: the diagonal of the Fisher matrix."""
    return add(total, _squares(*_in_order(a, g, None, None, "gradients")))


@partial(jax.jit, donate_argnums=0, static_argnames="order")
def add_rotated_squares(
    total: Sum, a: Float[Array, "b s i"], g: Float[Array, "b s o"], qa: Basis, qs: Basis, order: Order
) -> Sum:
    """Add sum over b of (Q_S^T G_b Q_A)^2, elementwise: EK-FAC's eigenvalues (George et al. 2018; Grosse et al.
    2023, Eq. 20, with column eigenvectors). One example's gradient is alive at a time."""
    a, g, form = _in_order(a, g, qa, qs, order)
    if a.shape[1] == 1 and order == "positions":  # the square of an outer product is the outer product of squares
        return add(total, jnp.square(g[:, 0]).T @ jnp.square(a[:, 0]))
    return add(total, _squares(a, g, form))


Form: TypeAlias = Callable[[jax.Array, jax.Array], jax.Array]


def _in_order(
    a: Float[Array, "b s i"], g: Float[Array, "b s o"], qa: Basis, qs: Basis, order: Order
) -> tuple[Float[Array, "b s i"], Float[Array, "b s o"], Form]:
    """Positions, and what forms the rotated gradient of one example's: they are rotated now, or the gradient then."""
    if qa is None or qs is None:
        return a, g, lambda a, g: g.T @ a
    if order == "positions":
        return a @ qa, g @ qs, lambda a, g: g.T @ a
    return a, g, lambda a, g: qs.T @ (g.T @ a) @ qa


def _squares(a: Float[Array, "b s i"], g: Float[Array, "b s o"], form: Form) -> Float[Array, "o i"]:
    """Sum over b of form(a_b, g_b)^2, one example at a time, which keeps one example's gradient in a core's cache and
    costs a GPU nothing: its products are large."""

    def step(partial_sum: jax.Array, example: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        return partial_sum + jnp.square(form(*example)), None

    start = jnp.zeros((g.shape[-1], a.shape[-1]), a.dtype)
    return jax.lax.scan(step, start, (a, g))[0]


@partial(jax.jit, static_argnames="order")
def weighted_squares(
    a: Float[Array, "b s i"],
    g: Float[Array, "b s o"],
    qa: Basis,
    qs: Basis,
    weight: Float[Array, "o i"],
    order: Order = "gradients",
) -> Float[Array, " b"]:
    """sum over (o, i) of weight * (Q_S^T G_b Q_A)^2: self-influence, rotated once and never back."""
    a, g, form = _in_order(a, g, qa, qs, order)
    return jax.lax.map(lambda pair: jnp.sum(weight * jnp.square(form(*pair))), (a, g))


@jax.jit
def absolute_sums(value: Float[Array, "b o i"]) -> Float[Array, " b"]:
    """Sum over (o, i) of |value|: zero exactly if a gradient is zero, not finite if a part of it is not."""
    return jnp.abs(value).sum((1, 2))
