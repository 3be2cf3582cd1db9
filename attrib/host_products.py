"""The products of a fit on a CPU by the library that is fastest there: moments by BLAS, which computes x^T x as a
symmetric product, and everything in bfloat16 by torch, whose products of that type are several times as fast as
XLA's on a CPU that has them. A sum over batches stays in JAX (`kernels.Sum`)."""

import jax
import jax.numpy as jnp
import numpy as np
import torch
from jaxtyping import Array, Float
from torch import Tensor

from whence.cache.model.bridge import to_jax, to_torch

from . import kernels

HALF = torch.bfloat16


def add_moment(total: kernels.Sum, x: Float[Array, "b s i"], weight: Float[Array, "b s"], half: bool) -> kernels.Sum:
    """`kernels.add_moment` of arrays on the host, of the rows that count; half: with inputs rounded to bfloat16."""
    rows, counted = np.asarray(x).reshape(-1, x.shape[-1]), np.asarray(weight).ravel() != 0
    rows = rows if counted.all() else rows[counted]
    if not half:
        return kernels.add_term(total, jnp.asarray(rows.T @ rows))
    rounded = narrow(rows)
    return kernels.add_term(total, to_jax((rounded.T @ rounded).float()))


def add_rotated_squares(
    total: kernels.Sum,
    a: Float[Array, "b s i"],
    g: Float[Array, "b s o"],
    qa: Tensor,
    qs: Tensor,
    order: kernels.Order,
) -> kernels.Sum:
    """`kernels.add_rotated_squares` of arrays on the host, with all products in bfloat16; qa and qs are narrow."""
    left, right = narrow(g), narrow(a)
    if order == "positions":
        left, right = left @ qs, right @ qa
    squares = torch.zeros(total.high.shape)
    for each_g, each_a in zip(left, right):  # one example's gradient stays in a core's cache
        formed = each_g.T @ each_a
        wide = (formed if order == "positions" else qs.T @ formed @ qa).float()
        squares.addcmul_(wide, wide)
    return kernels.add_term(total, to_jax(squares))


def narrow(array: jax.Array | np.ndarray) -> Tensor:
    """The array in bfloat16, in torch."""
    return to_torch(jnp.asarray(array), copy=False).to(HALF)
