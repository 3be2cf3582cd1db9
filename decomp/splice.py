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
from whence.cache.errors import ModelError, NumericalError
from whence.cache.model.bridge import to_jax, to_torch
from whence.cache.model.names import full_name
from whence.cache.model.row_layout import channels_last

from . import kernels
from .codec import Codec
from .dictionary import Dictionary
from .transcoder import Transcoder

Change = Callable[[Tensor], Tensor]


@contextmanager
def spliced(trained: TrainedModel, at: str, change: Change, skip: Sequence[int] = ()) -> Iterator[nn.Module]:
    """The model with `change` applied to the output [b s d] of the module or hook point `at`; one that a layer such as
    nn.Conv1d returns as [b c l] is changed as [b l c].

    Args:
        trained: the model.
        at: the hook point. A module that returns a tuple has its first element changed.
        change: activations to activations of the same shape.
        skip: positions that keep the model's own activation, 0 if texts begin with a beginning-of-sequence token that
            no dictionary was built for.

    Raises ModelError for an unknown module, or a change that returns another shape.
    """
    full = full_name(trained.model, at)

    def hook(module: nn.Module, _args: Any, out: Any) -> Any:
        x = channels_last(module, out[0] if isinstance(out, tuple) else out)
        new = change(x).to(x.dtype)
        if new.shape != x.shape:
            raise ModelError(f"The change gave {tuple(new.shape)} for {tuple(x.shape)} at {at}.", "Keep the shape.")
        if skip:
            if x.ndim < 3:
                raise ModelError(
                    f"{at} has shape {list(x.shape)}: no positions to skip.", "Leave out skip, or choose another point."
                )
            keep = torch.zeros(x.shape[1], dtype=torch.bool, device=x.device)
            keep[[s for s in skip if s < x.shape[1]]] = True
            new = torch.where(keep.reshape(1, -1, *(1 for _ in x.shape[2:])), x, new)
        new = channels_last(module, new)
        return (new, *out[1:]) if isinstance(out, tuple) else new

    handle = trained.model.get_submodule(full).register_forward_hook(hook)
    try:
        yield trained.model
    finally:
        handle.remove()


def signals(x: Tensor, width: int) -> Float[Array, "b d"]:
    """A tensor [... d] or [... h d] as rows of `width` for a codec, on its device.

    Raises ModelError if the last axes do not make up the width, NumericalError for values that are not finite or of a
    size that float32 cannot square.
    """
    flat = _rows(x.detach(), width).float()
    if not torch.isfinite(flat.square().sum(1)).all():
        raise NumericalError(
            "An activation that is to be encoded is not finite, or its square is not.", "Run the model in float32."
        )
    return to_jax(flat)


def _rows(x: Tensor, width: int) -> Tensor:
    """[... d] as [rows width], the last axes taken together until they make up the width."""
    sizes = np.cumprod(x.shape[::-1])
    if width not in sizes.tolist():
        raise ModelError(
            f"An activation of shape {list(x.shape)} does not end in rows of width {width}.",
            "Use a dictionary of this hook point.",
        )
    return x.reshape(-1, width)


def through(codec: Codec, k: int | None = None) -> Change:
    """x -> decode(encode(x)), with any dictionary or autoencoder, on the device of x. No gradient passes."""

    def change(x: Tensor) -> Tensor:
        return to_torch(codec.reconstruct_array(signals(x, codec.width), k)).to(x.device).reshape(x.shape)

    return change


@contextmanager
def replaced(
    trained: TrainedModel, codec: Codec, at: str, k: int | None = None, skip: Sequence[int] = ()
) -> Iterator[nn.Module]:
    """The model with what a codec decodes in the place of the activation: at `at`, or for a transcoder, which encodes
    the activation there, at its output. skip: as for `spliced`."""
    if not isinstance(codec, Transcoder):
        with spliced(trained, at, through(codec, k), skip) as model:
            yield model
        return
    seen: list[Tensor] = []

    def remember(x: Tensor) -> Tensor:
        seen[:] = [x]
        return x

    def decoded(y: Tensor) -> Tensor:
        if not seen:
            raise ModelError(f"{codec.to} is reached before {at}.", "Give the hook points in the order of the model.")
        return to_torch(codec.reconstruct_array(signals(seen.pop(), codec.width), k)).to(y.device).reshape(y.shape)

    with spliced(trained, at, remember), spliced(trained, codec.to, decoded, skip) as model:
        yield model


def zeros(x: Tensor) -> Tensor:
    """Zero ablation."""
    return torch.zeros_like(x)


def constant(value: np.ndarray) -> Change:
    """Mean ablation: every position becomes `value` [d]."""
    fixed = torch.from_numpy(np.asarray(value, np.float32).copy())
    return lambda x: fixed.to(x.device, x.dtype).expand_as(_rows(x, len(fixed))).reshape(x.shape)


def steered(dictionary: Codec, atom: int, strength: float, keep_norm: bool = True) -> Change:
    """x + strength · atom, at the activation's own norm unless `keep_norm` is False."""
    direction = torch.from_numpy(np.asarray(dictionary.atoms[atom], np.float32).copy())

    def change(x: Tensor) -> Tensor:
        rows = _rows(x, len(direction))
        new = rows + strength * direction.to(x.device, x.dtype)
        if keep_norm:
            new = new * (rows.norm(dim=1, keepdim=True) / new.norm(dim=1, keepdim=True).clamp(min=1e-30))
        return new.reshape(x.shape)

    return change


def without_atoms(dictionary: Dictionary, atoms: Sequence[int], k: int | None = None) -> Change:
    """x less what its code says these atoms contribute; the part that no atom explains stays as it is."""
    listed = np.asarray(list(atoms))

    def change(x: Tensor) -> Tensor:
        code = dictionary.encode_array(signals(x, dictionary.width), k)
        part = code._replace(values=jnp.where(jnp.isin(code.indices, listed), code.values, 0.0))
        return x - to_torch(kernels.decode(part, dictionary.basis.atoms)).to(x).reshape(x.shape)

    return change
