"""Where programs run, and doing the same for every class, network or seed inside one of them.

On an accelerator that is `vmap`. On a CPU it is a compiled loop: XLA turns products and convolutions that have a
batch of weights into ones that use neither the vector units nor the cores well (measured by
`python -m benchmarks.condensation primitives`: class-wise gradients of a convolution of 16 channels are about eight
times slower vectorised than looped), while small dense networks are equally fast either way.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import jax

from whence.cache.errors import UsageError


def on(device: str | None) -> AbstractContextManager:
    """Inside, programs run on this device: "cpu", "cuda", "cuda:1" (torch's names), or JAX's default if None.

    Raises UsageError if JAX has no such device.
    """
    if device is None:
        return nullcontext()
    kind, _, number = str(device).partition(":")
    try:
        return jax.default_device(jax.devices(kind)[int(number or 0)])
    except (RuntimeError, IndexError, ValueError) as error:
        raise UsageError(
            f"JAX has no device {device!r}; its default is {jax.devices()[0]}.",
            'Use device="cpu", or install JAX for that device: pip install "whence[cuda]".',
        ) from error


def accelerated() -> bool:
    """Whether programs run elsewhere than on a CPU."""
    device = getattr(jax.config, "jax_default_device", None)
    return (jax.default_backend() if device is None else device.platform) != "cpu"


def each(f: Callable[..., Any], vectorised: bool | None = None) -> Callable[..., Any]:
    """`f` over the leading axis of every argument, results stacked.

    vectorised: `vmap` or loop; by the device when not given. The results are the same.
    """
    if accelerated() if vectorised is None else vectorised:
        return jax.vmap(f)

    def looped(*arguments: Any) -> Any:
        if len(jax.tree.leaves(arguments)[0]) == 1:
            row = jax.tree.map(lambda a: a[0], arguments)
            return jax.tree.map(lambda a: a[None], f(*row))
        return jax.lax.map(lambda row: f(*row), arguments)

    return looped
