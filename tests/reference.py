"""Slow, dense, obvious oracles: what the fast paths are held against. Plain autograd and numpy, no cleverness."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from whence.cache import Examples, Sites
from whence.cache.model.sites import matrices_of
from whence.cache.model.stateless import named_parameters


def gradients(model: nn.Module, examples: Examples, objective: Callable[[nn.Module, dict], Tensor]) -> list[dict]:
    """Gradient of the objective with respect to every parameter, example by example, each alone in its batch."""
    out = []
    for row in range(len(examples)):
        value = objective(model, examples.batch([row])).sum()
        names, parameters = zip(*named_parameters(model).items())
        grads = torch.autograd.grad(value, parameters, allow_unused=True)
        out.append({n: torch.zeros_like(p) if g is None else g for n, p, g in zip(names, parameters, grads)})
    return out


def site_gradients(
    model: nn.Module, sites: Sites, examples: Examples, objective: Callable[[nn.Module, dict], Tensor]
) -> dict[str, np.ndarray]:
    """The same gradients as one [n o i] array a site."""
    rows = [matrices_of(model, sites, g) for g in gradients(model, examples, objective)]
    return {site.name: np.stack([row[site.name].numpy() for row in rows]) for site in sites}


def flat(per_site: dict[str, np.ndarray], sites: Sites) -> np.ndarray:
    """[n parameters], site after site."""
    return np.concatenate([per_site[s.name].reshape(len(per_site[s.name]), -1) for s in sites], axis=1)
