"""Dense and naive twins of the compared methods: explicit matrices, explicit loops."""

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, hessian, jacrev

from tests import cases, reference
from whence.attrib.solvers.gauss_newton import Answered
from whence.cache import Examples, Sites, Task
from whence.cache.model.sites import matrices_of
from whence.cache.model.stateless import named_parameters


def jacobian(model: nn.Module, task: Task, sites: Sites, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Outputs of one example, flattened [c], and their Jacobian with respect to the sites [c P]."""
    names = [n for s in sites for _, n in s.parameters]
    theta = {n: p.detach() for n, p in named_parameters(model).items() if n in names}

    class Outputs(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self):
            return task.logits(self.model, batch)

    def outputs(theta):
        return functional_call(Outputs(), {f"model.{n}": v for n, v in theta.items()}, ()).flatten()

    rows = jacrev(outputs)(theta)
    z = outputs(theta).detach()
    per_row = [matrices_of(model, sites, {n: rows[n][c] for n in rows}) for c in range(len(z))]
    return z, torch.stack([torch.cat([row[s.name].flatten() for s in sites]) for row in per_row])


def dense_gauss_newton(case: cases.Case) -> np.ndarray:
    """(1/N) sum of J^T H J, H the Hessian of the loss in the outputs, example by example."""
    total = 0.0
    for row in range(len(case.examples)):
        batch = case.examples.batch([row])
        shape = case.task.logits(case.model, batch).shape
        z, j = jacobian(case.model, case.task, case.sites, batch)
        curve = hessian(lambda z: case.task.loss(Answered(z.reshape(shape)), batch).sum())(z)  # noqa: B023
        total = total + (j.T @ curve @ j).detach().numpy()
    return total / len(case.examples)


def flat_gradients(case: cases.Case, examples: Examples, objective) -> np.ndarray:
    return reference.flat(reference.site_gradients(case.model, case.sites, examples, objective), case.sites)


def site_slices(sites: Sites) -> dict[str, slice]:
    ends = np.cumsum([s.shape[0] * s.shape[1] for s in sites])
    return {s.name: slice(end - s.shape[0] * s.shape[1], end) for s, end in zip(sites, ends)}
