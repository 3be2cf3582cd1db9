"""The steps of a growing dictionary: which rows of a batch become atoms, and arrays that grow with them."""

from functools import partial

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float

from .code import decode
from .forms import Basis, append, gram_pays, product, resized
from .pursuit import Pursuit, encode


@partial(jax.jit, static_argnames=("pursuit",))
def judge(
    pursuit: Pursuit, x: Float[Array, "b d"], basis: Basis, threshold: Float[Array, ""]
) -> tuple[Bool[Array, " b"], Float[Array, " b"]]:
    """Which rows become atoms, and the share of every row that the atoms so far leave unexplained.

    Within the batch, in order, a row that fails is still left out when an accepted row j explains it within the
    same k steps: alone, or in the place of the last one. With r₋ the residual before the last step, that is
    min(‖x‖² − ⟨x, x̂_j⟩², ‖r₋‖² − ⟨r₋, x̂_j⟩²) ≤ threshold · ‖x‖². Only positive products count for a
    non-negative pursuit. Zero rows (padding) never fail.
    """
    code = encode(pursuit, x, basis)
    failing = code.unexplained > threshold
    unit = x * jax.lax.rsqrt(jnp.maximum(code.energy, 1e-30))[:, None]
    shorter = code._replace(values=code.values.at[:, -1].set(0.0))
    before = x - decode(shorter, basis.atoms)
    signed = pursuit.rule.score(jnp.float32(-1)) > 0
    floor = jnp.where(signed, -jnp.inf, 0.0)
    alone = jnp.maximum(product(x, unit), floor) ** 2
    instead = jnp.maximum(product(before, unit), floor) ** 2
    left = jnp.minimum(code.energy[:, None] - alone, jnp.sum(before**2, axis=1)[:, None] - instead)
    explains = left <= threshold * code.energy[:, None]

    def visit(i: Array, accepted: Array) -> Array:
        return accepted.at[i].set(failing[i] & ~jnp.any(accepted & explains[i]))

    return jax.lax.fori_loop(0, x.shape[0], visit, jnp.zeros(x.shape[0], bool)), code.unexplained


@partial(jax.jit, donate_argnames=("basis",))
def put_rows(basis: Basis, new: Float[Array, "m d"], count: Array) -> Basis:
    """`append` in place."""
    return append(basis, new, count)


def with_capacity(basis: Basis, needed: int, most: int | None = None) -> Basis:
    """The same atoms in arrays of doubled capacity, until `needed` rows fit; of `most` rows if those are enough."""
    capacity = basis.atoms.shape[0]
    if needed <= capacity:
        return basis
    while capacity < needed:
        capacity *= 2
    if most is not None and needed <= most:
        capacity = min(capacity, most)
    return resized(basis, capacity, gram_pays(capacity))
