"""Running sums over batches: moments, gradients and Gram matrices, each an unevaluated pair of numbers."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

# below this width the whole of x^T x is faster than its upper blocks, whose products are narrow
SYMMETRIC_WIDTH, BLOCKS = 2048, 4


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


@partial(jax.jit, donate_argnums=0)
def add_term(total: Sum, term: Float[Array, "..."]) -> Sum:
    """total + term."""
    return add(total, term)


def symmetric_product(x: Float[Array, "p i"]) -> Float[Array, "i i"]:
    """x^T x. If it is wide, only the blocks on and above the diagonal are computed: five eighths of the operations."""
    width = x.shape[1]
    if width < SYMMETRIC_WIDTH:
        return x.T @ x
    edges = [round(width * k / BLOCKS) for k in range(BLOCKS + 1)]
    rows = []
    for k in range(BLOCKS):
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


@partial(jax.jit, donate_argnums=0)
def add_gradient(total: Sum, a: Float[Array, "b s i"], g: Float[Array, "b s o"]) -> Sum:
    """Add sum over b of G_b: one product over all positions of all examples."""
    return add(total, g.reshape(-1, g.shape[-1]).T @ a.reshape(-1, a.shape[-1]))


@partial(jax.jit, donate_argnums=0, static_argnames="side")
def add_gram(total: Sum, a: Float[Array, "b s i"], g: Float[Array, "b s o"], side: str) -> Sum:
    """Add sum over b of G_b G_b^T (side "L") or G_b^T G_b (side "R"): Shampoo's factors (Gupta et al. 2018). One
    example's gradient is alive at a time."""

    def step(partial_sum: jax.Array, example: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        formed = example[1].T @ example[0]
        return partial_sum + (formed @ formed.T if side == "L" else formed.T @ formed), None

    return add(total, jax.lax.scan(step, jnp.zeros_like(total.high), (a, g))[0])
