"""Running a model with something else in the place of its activations at one hook point.

    with spliced(trained, "blocks.2.hook_out", through(dictionary)) as model:
        loss = task.loss(model, batch)

The hook is removed on the way out, after an exception too; the model is as it was.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import jax.numpy as jnp
import numpy as np
import torch
from jax import Array
from jaxtyping import Float
from torch import Tensor, nn

from whence.cache import TrainedModel
from whence.cache.errors import ModelError, NumericalError, near_names
from whence.cache.model.bridge import to_jax, to_torch
from whence.cache.model.capture import hook_points

from . import kernels
from .codec import Codec
from .dictionary import Dictionary

Change = Callable[[Tensor], Tensor]


@contextmanager
def spliced(trained: TrainedModel, at: str, change: Change, skip: Sequence[int] = ()) -> Iterator[nn.Module]:
    """The model with `change` applied to the output [b s d] of the module or hook point `at`.

    Args:
        trained: the model.
        at: the hook point. A module that returns a tuple has its first element changed.
        change: activations to activations of the same shape.
        skip: positions that keep the model's own activation, 0 if texts begin with a beginning-of-sequence token that
            no dictionary was built for.

    Raises ModelError for an unknown module, or a change that returns another shape.
    """
    points = hook_points(trained.model)
    names = {name for name, _ in trained.model.named_modules()}
    full = at if at in names else points.get(at)
    if full is None:
        raise ModelError(f"The model has no module or hook point {at!r}.", near_names(at, points))

    def hook(_module: nn.Module, _args: Any, out: Any) -> Any:
        x = out[0] if isinstance(out, tuple) else out
        new = change(x).to(x.dtype)
        if new.shape != x.shape:
            raise ModelError(f"The change gave {tuple(new.shape)} for {tuple(x.shape)} at {at}.", "Keep the shape.")
        if skip:
            keep = torch.zeros(x.shape[1], dtype=torch.bool, device=x.device)
            keep[[s for s in skip if s < x.shape[1]]] = True
            new = torch.where(keep[None, :, None], x, new)
        return (new, *out[1:]) if isinstance(out, tuple) else new

    handle = trained.model.get_submodule(full).register_forward_hook(hook)
    try:
        yield trained.model
    finally:
        handle.remove()


def signals(x: Tensor) -> Float[Array, "b d"]:
    """A tensor [... d] as rows for a codec, on its device. Raises NumericalError for values that are not finite."""
    flat = x.detach().reshape(-1, x.shape[-1]).float()
    if not torch.isfinite(flat).all():
        raise NumericalError("An activation that is to be encoded is not finite.", "Run the model in float32.")
    return to_jax(flat)


def through(codec: Codec, k: int | None = None) -> Change:
    """x -> decode(encode(x)), with any dictionary or autoencoder, on the device of x. No gradient passes."""

    def change(x: Tensor) -> Tensor:
        return to_torch(codec.reconstruct_array(signals(x), k)).reshape(x.shape)

    return change


def zeros(x: Tensor) -> Tensor:
    """Zero ablation."""
    return torch.zeros_like(x)


def constant(value: np.ndarray) -> Change:
    """Mean ablation: every position becomes `value` [d]."""
    fixed = torch.from_numpy(np.asarray(value, np.float32).copy())
    return lambda x: fixed.to(x.device, x.dtype).expand_as(x)


def steered(dictionary: Codec, atom: int, strength: float, keep_norm: bool = True) -> Change:
    """x + strength · atom, at the activation's own norm unless `keep_norm` is False."""
    direction = torch.from_numpy(np.asarray(dictionary.atoms[atom], np.float32).copy())

    def change(x: Tensor) -> Tensor:
        new = x + strength * direction.to(x.device, x.dtype)
        return new * (x.norm(dim=-1, keepdim=True) / new.norm(dim=-1, keepdim=True)) if keep_norm else new

    return change


def without_atoms(dictionary: Dictionary, atoms: Sequence[int], k: int | None = None) -> Change:
    """x less what its code says these atoms contribute; the part that no atom explains stays as it is."""
    listed = np.asarray(list(atoms))

    def change(x: Tensor) -> Tensor:
        code = dictionary.encode_array(signals(x), k)
        part = code._replace(values=jnp.where(jnp.isin(code.indices, listed), code.values, 0.0))
        return x - to_torch(kernels.decode(part, dictionary.basis.atoms)).to(x.dtype).reshape(x.shape)

    return change
