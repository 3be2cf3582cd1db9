"""Running a model with something else in the place of its activations at one hook point.

    with spliced(model, "blocks.2.hook_out", through(dictionary)):
        loss = task.loss(model, batch)

The hook leaves with the context, after an exception too; the model is as it was.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from whence.cache import hook_points
from whence.cache.errors import ModelError, near_names
from whence.cache.model.bridge import to_numpy

Change = Callable[[Tensor], Tensor]


@contextmanager
def spliced(model: nn.Module, site: str, change: Change, skip: Sequence[int] = ()) -> Iterator[nn.Module]:
    """The model with `change` applied to the output [b s d] of the module `site`.

    skip: positions that keep the model's own activation, 0 where texts begin with a beginning-of-sequence token
    that no dictionary was built for. A module that returns a tuple has its first element changed.
    Raises ModelError for an unknown module, or a change that returns another shape.
    """
    points = hook_points(model)
    names = {name for name, _ in model.named_modules()}
    full = site if site in names else points.get(site)
    if full is None:
        raise ModelError(f"The model has no module or hook point {site!r}.", near_names(site, points))

    def hook(_module: nn.Module, _args: Any, out: Any) -> Any:
        x = out[0] if isinstance(out, tuple) else out
        new = change(x).to(x.dtype)
        if new.shape != x.shape:
            raise ModelError(f"The change made {tuple(new.shape)} of {tuple(x.shape)} at {site}.", "Keep the shape.")
        if skip:
            keep = torch.zeros(x.shape[1], dtype=torch.bool, device=x.device)
            keep[[s for s in skip if s < x.shape[1]]] = True
            new = torch.where(keep[None, :, None], x, new)
        return (new, *out[1:]) if isinstance(out, tuple) else new

    handle = model.get_submodule(full).register_forward_hook(hook)
    try:
        yield model
    finally:
        handle.remove()


def through(codec: Any, k: int | None = None) -> Change:
    """x -> decode(encode(x)), with any dictionary or autoencoder. No gradient passes."""

    def change(x: Tensor) -> Tensor:
        flat = to_numpy(x.detach().reshape(-1, x.shape[-1]).float())
        return torch.from_numpy(codec.reconstruct(flat, k=k).copy()).to(x.device).reshape(x.shape)

    return change


def zeros(x: Tensor) -> Tensor:
    """Zero ablation."""
    return torch.zeros_like(x)


def constant(value: np.ndarray) -> Change:
    """Mean ablation: every position becomes `value` [d]."""
    fixed = torch.from_numpy(np.asarray(value, np.float32).copy())
    return lambda x: fixed.to(x.device, x.dtype).expand_as(x)


def steered(dictionary: Any, atom: int, strength: float, keep_norm: bool = True) -> Change:
    """x + strength · atom, the activation's norm kept unless told otherwise."""
    direction = torch.from_numpy(np.asarray(dictionary.atoms[atom], np.float32).copy())

    def change(x: Tensor) -> Tensor:
        new = x + strength * direction.to(x.device, x.dtype)
        return new * (x.norm(dim=-1, keepdim=True) / new.norm(dim=-1, keepdim=True)) if keep_norm else new

    return change


def without_atoms(dictionary: Any, atoms: Sequence[int], k: int | None = None) -> Change:
    """x less what its code says these atoms contribute; the part that no atom explains stays as it is."""
    listed = np.asarray(list(atoms))

    def change(x: Tensor) -> Tensor:
        flat = to_numpy(x.detach().reshape(-1, x.shape[-1]).float())
        code = dictionary.encode(flat, k=k)
        part = np.where(np.isin(code.indices, listed), code.values, 0.0)
        share = np.einsum("bk,bkd->bd", part, dictionary.atoms[code.indices])
        return x - torch.from_numpy(share.astype(np.float32)).to(x.device, x.dtype).reshape(x.shape)

    return change
