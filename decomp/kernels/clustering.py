"""The steps of spherical k-means: rows to their nearest centre, centres to their nearest row."""

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from .forms import product

ASSIGN_ROWS = 1024


@jax.jit
def nearest_centre(x: Float[Array, "t d"], centres: Float[Array, "a d"]) -> tuple[Array, Array]:
    """Nearest centre of every row by cosine, and that cosine; 1024 rows at a time."""

    def one(part: Array) -> tuple[Array, Array]:
        near = product(part, centres)
        return near.argmax(axis=1).astype(jnp.int32), near.max(axis=1)

    label, cosine = jax.lax.map(one, x.reshape(-1, ASSIGN_ROWS, x.shape[1]))
    return label.reshape(-1), cosine.reshape(-1)


@jax.jit
def nearest_row(centres: Float[Array, "a d"], x: Float[Array, "t d"]) -> Array:
    """The row nearest to every centre, 64 centres at a time."""
    padded = -(-centres.shape[0] // 64) * 64
    all_centres = jnp.zeros((padded, centres.shape[1])).at[: centres.shape[0]].set(centres)
    found = jax.lax.map(lambda part: product(part, x).argmax(axis=1), all_centres.reshape(-1, 64, x.shape[1]))
    return found.reshape(-1)[: centres.shape[0]]
