"""Doing the same for every class, network or seed inside one compiled program.

On an accelerator that is `vmap`. On a CPU it is a compiled loop: XLA turns products and convolutions that have a
batch of weights into ones that use neither the vector units nor the cores well (measured by
`python -m benchmarks.condensation primitives`: class-wise gradients of a convolution of 16 channels are about eight
times slower vectorised than looped), while small dense networks are equally fast either way.
"""

from collections.abc import Callable
from typing import Any

import jax


def each(f: Callable[..., Any], vectorised: bool | None = None) -> Callable[..., Any]:
    """`f` over the leading axis of every argument, results stacked.

    vectorised: `vmap` or loop; by the backend when not given. The results are the same.
    """
    if vectorised is None:
        vectorised = jax.default_backend() != "cpu"
    if vectorised:
        return jax.vmap(f)

    def looped(*arguments: Any) -> Any:
        if len(jax.tree.leaves(arguments)[0]) == 1:
            row = jax.tree.map(lambda a: a[0], arguments)
            return jax.tree.map(lambda a: a[None], f(*row))
        return jax.lax.map(lambda row: f(*row), arguments)

    return looped
