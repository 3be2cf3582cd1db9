"""Least squares on a growing support, one atom at a time.

Let S hold the atoms chosen so far and G_S = D_S D_Sᵀ = L Lᵀ. We carry R = L⁻¹, lower triangular, whose rows
give orthonormal directions q_t = Σ_s R_ts d_s. A new atom j with g = D_S d_j extends R by

    w = R g,   h² = 1 − ‖w‖²,   R_t = (e_t − wᵀR) / h,

and the projection of x on the span grows by y_t q_t with y_t = ⟨q_t, x⟩. The coefficients in terms of the
atoms grow by y_t R_t. An atom that lies in the span already (h² ≈ 0; a repeated atom) is left out.
"""

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int

from .code import Code
from .forms import Basis

DEPENDENT = 1e-5  # h² below this is rounding, in float32 products of unit atoms


def extend(
    inverse: Float[Array, "b k k"], cross: Float[Array, "b k"], step: Int[Array, ""]
) -> tuple[Float[Array, "b k k"], Float[Array, " b"]]:
    """R with row `step` for a unit atom whose products with the support are `cross` (zero from `step` on).

    Also returns 1/h [b], 0 where the atom depends on the support (its row is then 0).
    """
    high = jax.lax.Precision.HIGHEST
    w = jnp.einsum("bts,bs->bt", inverse, cross, precision=high)
    square = 1.0 - jnp.sum(w * w, axis=1)
    scale = jnp.where(square > DEPENDENT, jax.lax.rsqrt(jnp.maximum(square, DEPENDENT)), 0.0)
    row = -jnp.einsum("bt,bts->bs", w, inverse, precision=high).at[:, step].add(-1.0)
    return inverse.at[:, step].set(row * scale[:, None]), scale


def least_squares(code: Code, x: Float[Array, "b d"], basis: Basis) -> Code:
    """The same support with the coefficients that leave the least residual.

    Repeats keep their slot with coefficient 0. ‖r‖² = ‖x‖² − ‖y‖² is exact for a projection.
    """
    high = jax.lax.Precision.HIGHEST
    b, k = code.indices.shape
    chosen = basis.atoms[code.indices] * (code.values != 0)[:, :, None]
    gram = jnp.einsum("bsd,btd->bst", chosen, chosen, precision=high)
    seen = jnp.einsum("bsd,bd->bs", chosen, x, precision=high)
    steps = jnp.arange(k)

    def add(step: Array, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        inverse, values, removed = carry
        cross = jnp.where(steps < step, gram[:, step], 0.0)
        inverse, scale = extend(inverse, cross, step)
        present = (code.values[:, step] != 0) & (scale > 0)
        row = jnp.where(present[:, None], inverse[:, step], 0.0)
        y = jnp.sum(row * seen, axis=1)
        return inverse.at[:, step].set(row), values + y[:, None] * row, removed + y * y

    start = (jnp.zeros((b, k, k)), jnp.zeros((b, k)), jnp.zeros(b))
    _, values, removed = jax.lax.fori_loop(0, k, add, start)
    return code._replace(values=values, residual=jnp.maximum(code.energy - removed, 0.0))
