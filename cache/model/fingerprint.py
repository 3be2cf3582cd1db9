"""Fingerprints of models: one sha256 per tensor, one over all of them, so the tensors in which two models
differ can be named. Parameters and buffers count, and so does what the forward pass does (`forward.py`): the same
weights under another activation function, number of heads or temperature are another model.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import nn

from ..jobs.threads import in_threads
from .forward import forward_of, tensor_digest
from .stateless import unwrapped

ARCHITECTURE = "(architecture)"


@dataclass(frozen=True)
class Fingerprint:
    """hex: sha256 over the leaves. leaves: tensor name -> sha256 of its dtype, shape and bytes."""

    hex: str
    leaves: Mapping[str, str] = field(repr=False, compare=False)

    def differs(self, other: "Fingerprint") -> tuple[str, ...]:
        """Names of the tensors that differ between two models, or that only one of them has."""
        names = sorted({*self.leaves, *other.leaves})
        return tuple(name for name in names if self.leaves.get(name) != other.leaves.get(name))

    def __str__(self) -> str:
        return self.hex

    def __key__(self) -> str:
        """What stands for the model in a key."""
        return self.hex


def model_fingerprint(model: nn.Module | Mapping[str, torch.Tensor]) -> Fingerprint:
    """The fingerprint of a model (or of a mapping of tensors), about half a second per gigabyte and thread.

    What counts beside the tensors: the code of the model's own classes and functions and of a replaced `forward`, names
    and versions of library classes, plain attributes and the configuration. What does not: hooks, training mode,
    requires_grad, device, gradients, wrappers (`torch.compile`, `DataParallel`), and attributes that the forward pass
    itself changes (counters, caches). Names of tied tensors count each.

    >>> before = model_fingerprint(model)
    >>> model[0].weight.data += 1
    >>> [name for name, leaf in model_fingerprint(model).leaves.items() if leaf != before.leaves[name]]
    ['0.weight']
    """
    if isinstance(model, nn.Module):
        model = unwrapped(model)
        tensors: dict[str, torch.Tensor] = {}
        tensors |= dict(model.named_parameters(remove_duplicate=False))
        tensors |= dict(model.named_buffers(remove_duplicate=False))
    else:
        tensors = dict(model)
    names = sorted(tensors)
    distinct = {id(tensors[name]): tensors[name] for name in names}
    sizes = sum(tensor.nbytes for tensor in distinct.values())
    hashed = dict(zip(distinct, in_threads(tensor_digest, distinct.values(), sizes, torch.get_num_threads())))
    leaves = {name: hashed[id(tensors[name])] for name in names}
    if isinstance(model, nn.Module):
        leaves[ARCHITECTURE] = hashlib.sha256(forward_of(model).encode()).hexdigest()
    return Fingerprint(merkle(leaves), leaves)


def merkle(leaves: Mapping[str, str]) -> str:
    """sha256 over sorted (name, leaf) pairs."""
    digest = hashlib.sha256(b"model/1")
    for name in sorted(leaves):
        digest.update(f"|{len(name)}:{name}={leaves[name]}".encode())
    return digest.hexdigest()
