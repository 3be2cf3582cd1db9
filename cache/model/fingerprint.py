"""Fingerprints of models: one sha256 per tensor, one over all of them, so the tensors in which two models
differ can be named. Parameters and buffers count, and so does the module tree (classes and their settings): the same
weights under another activation function are another model.
"""

import hashlib
import re
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import torch
from torch import nn

ARCHITECTURE = "(architecture)"
# an address in memory in a printed module says nothing about the model
ADDRESS = re.compile(r"\b0x[0-9a-fA-F]+")


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

    Hooks, training mode, requires_grad, device and gradients do not count. Names of tied tensors count each.

    >>> before = model_fingerprint(model)
    >>> model[0].weight.data += 1
    >>> [name for name, leaf in model_fingerprint(model).leaves.items() if leaf != before.leaves[name]]
    ['0.weight']
    """
    if isinstance(model, nn.Module):
        tensors: dict[str, torch.Tensor] = {}
        tensors |= dict(model.named_parameters(remove_duplicate=False))
        tensors |= dict(model.named_buffers(remove_duplicate=False))
    else:
        tensors = dict(model)
    names = sorted(tensors)
    hashed: dict[int, str] = {}
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        distinct = {id(tensors[name]): tensors[name] for name in names}
        for at, digest in zip(distinct, pool.map(tensor_digest, distinct.values())):
            hashed[at] = digest
    leaves = {name: hashed[id(tensors[name])] for name in names}
    if isinstance(model, nn.Module):
        leaves[ARCHITECTURE] = hashlib.sha256(_architecture(model).encode()).hexdigest()
    return Fingerprint(merkle(leaves), leaves)


def merkle(leaves: Mapping[str, str]) -> str:
    """sha256 over sorted (name, leaf) pairs."""
    digest = hashlib.sha256(b"model/1")
    for name in sorted(leaves):
        digest.update(f"|{len(name)}:{name}={leaves[name]}".encode())
    return digest.hexdigest()


def tensor_digest(tensor: torch.Tensor) -> str:
    """sha256 over dtype, shape and row-major bytes of one tensor."""
    value = tensor.detach().to("cpu").contiguous()
    digest = hashlib.sha256(f"{value.dtype}{tuple(value.shape)}".encode())
    if value.numel():
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _architecture(model: nn.Module) -> str:
    lines = []
    for name, module in model.named_modules():
        lines.append(f"{name}:{type(module).__name__}({ADDRESS.sub('', module.extra_repr())})")
    return "\n".join(lines)
