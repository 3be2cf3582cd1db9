"""Models at other points of their training: saved weights put into a copy of the model, shapes checked first."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from ..errors import ModelError, UsageError
from .names import clean_name, own_parameters, parts_of
from .stateless import copied

Checkpoint = nn.Module | Mapping[str, Tensor]


def models_at(model: nn.Module, checkpoints: Sequence[Checkpoint]) -> list[nn.Module]:
    """The model at each checkpoint: a module as it is, saved weights (a state_dict) in a copy of `model`. Weights have
    the model's own names, or those of its library if the model is a bridge around it.

    Raises ModelError for weights of other names or shapes than the model's, before anything is run; UsageError
    if there is no checkpoint.
    """
    if not checkpoints:
        raise UsageError("There is no checkpoint.", "Give at least one: a model or its state_dict().")
    checkpoints = [c if isinstance(c, nn.Module) else own_names(model, c) for c in checkpoints]
    wanted = shapes_of(model)
    for number, checkpoint in enumerate(checkpoints):
        found = shapes_of(checkpoint)
        # buffers that the model does not save are no part of a state_dict
        differing = [name for name in wanted if name in found and found[name] != wanted[name]]
        missing = [name for name in dict(nn.Module.named_parameters(model)) if name not in found]
        if differing or missing:
            name = (differing or missing)[0]
            how = f"shape {found[name]} for {wanted[name]}" if differing else "no such weight"
            raise ModelError(
                f"Checkpoint {number} does not fit the model: {clean_name(name)} has {how}.",
                "Give checkpoints of this very architecture, under the parameter names of the model or of its library.",
            )
    return [c if isinstance(c, nn.Module) else with_weights(model, c) for c in checkpoints]


def own_names(model: nn.Module, weights: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Weights, or as many averages of an optimiser, by the names of this model's tree, those of parts of a matrix cut
    from it. They may have the names of the library that a bridge is around."""
    own = dict(nn.Module.named_parameters(model))
    if not own.keys() - weights.keys():
        return weights
    found = dict(weights)
    for full, other in own_parameters(model).items():
        known = next((name for name in (full, other, clean_name(full)) if name in weights), None)
        if known is not None:
            found[full] = weights[known]
    for part, whole in parts_of(model).items():
        if part not in found and whole in found and found[whole].shape == own[whole].shape:
            place = own[part].storage_offset() - own[whole].storage_offset()
            found[part] = found[whole].contiguous().as_strided(own[part].shape, own[part].stride(), place)
    return found


def shapes_of(checkpoint: Checkpoint) -> dict[str, tuple[int, ...]]:
    if isinstance(checkpoint, nn.Module):
        tensors: dict[str, Tensor] = dict(nn.Module.named_parameters(checkpoint, remove_duplicate=False))
        tensors |= dict(nn.Module.named_buffers(checkpoint))
    else:
        tensors = dict(checkpoint)
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def with_weights(model: nn.Module, weights: Mapping[str, Tensor]) -> nn.Module:
    """A copy of the model with these parameters and buffers."""
    out = copied(model)
    own: dict[str, Tensor] = dict(nn.Module.named_parameters(out)) | dict(nn.Module.named_buffers(out))
    with torch.no_grad():
        for name, tensor in own.items():
            if name in weights:
                tensor.copy_(weights[name])
    return out
