"""Inverse curvature of a trained model over its parameters: (G + λ)⁻¹ times a gradient.

From fitted factors of attrib, from the exact Gauss-Newton matrix of a small model, or from a random projection (TRAK,
Park et al. 2023, where G is the second moment of margin gradients).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.func import grad
from torch.nn.attention import SDPBackend, sdpa_kernel

from whence.attrib import Factors
from whence.attrib.methods.features import margin_task, random_projection
from whence.attrib.methods.trak import projected_margins
from whence.attrib.solvers.gauss_newton import gauss_newton_product
from whence.cache import DataError, Examples, TrainedModel
from whence.cache.jobs.signals import stop_if_signalled
from whence.cache.model.borrowing import borrowed
from whence.cache.model.bridge import to_jax, to_numpy, to_torch
from whence.cache.model.sites import matrices_of, parameters_of
from whence.cache.model.stateless import named_parameters, stateless

EXAMPLES_AT_ONCE, VECTORS_AT_ONCE = 32, 64
LARGEST_EXACT = 20_000  # parameters


@dataclass(frozen=True, eq=False)
class InverseProduct:
    """(G + λ)⁻¹ times a gradient.

    trained: whose curvature it is. apply: gradient -> product, by parameter name. names: the parameters it covers.
    passes: example passes that computing it took.
    """

    trained: TrainedModel
    apply: Callable[[dict[str, Tensor]], dict[str, Tensor]]
    names: tuple[str, ...]
    passes: float = 0.0

    def __call__(self, gradient: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return self.apply({name: gradient[name] for name in self.names})


def inverse_product(curvature: InverseProduct | Factors) -> InverseProduct:
    """The inverse of fitted factors, over the parameters of their sites; another inverse as it is."""
    if isinstance(curvature, InverseProduct):
        return curvature
    factors, model, sites = curvature, curvature.trained.model, curvature.sites

    def apply(gradient: dict[str, Tensor]) -> dict[str, Tensor]:
        matrices = matrices_of(model, sites, gradient)
        found = factors.inverse_product({site: to_jax(v[None]) for site, v in matrices.items()})
        back = {site: to_torch(v)[0].to(matrices[site]) for site, v in found.items()}
        return parameters_of(model, sites, back)

    names = tuple(dict.fromkeys(name for site in sites for _, name in site.parameters))
    return InverseProduct(curvature.trained, apply, names, passes=2.0 * factors.count)


def exact(
    trained: TrainedModel, examples: Examples | None = None, *, damping: float = 0.0, l2: float = 0.0
) -> InverseProduct:
    """Exact Gauss-Newton curvature of a small model.

    Args:
        trained: the model.
        examples: whose mean curvature is taken, by default the training data; the retained ones make the step of a
            removal exact for ridge regression.
        damping: times the mean diagonal.
        l2: the objective's own penalty (its second derivative).

    Raises DataError above 20,000 parameters: the matrix would not fit.
    """
    parameters = {n: p.detach() for n, p in named_parameters(trained.model).items() if p.requires_grad}
    size = sum(p.numel() for p in parameters.values())
    if size > LARGEST_EXACT:
        raise DataError(
            f"Exact curvature of {size} parameters is a matrix of {8 * size**2 / 1e9:.0f} GB.",
            "Use EK-FAC factors, or a projection.",
        )
    examples = trained.train if examples is None else examples
    some = next(iter(parameters.values()))
    basis = _unflatten(torch.eye(size, dtype=some.dtype, device=some.device), parameters)
    total = torch.zeros(size, size, dtype=torch.float64, device=some.device)
    with borrowed(trained.model), sdpa_kernel(SDPBackend.MATH):
        for batch in batches(trained, examples):
            columns = gauss_newton_product(trained.model, trained.task, batch, basis, VECTORS_AT_ONCE)
            total += _flatten(columns, parameters).double()
    total = (total + total.T) / (2 * len(examples))
    total.diagonal().add_(l2 + damping * float(total.diagonal().mean()))
    factor = torch.linalg.cholesky(total)

    def apply(gradient: dict[str, Tensor]) -> dict[str, Tensor]:
        flat = _flatten({n: g[None] for n, g in gradient.items()}, parameters).double()
        solved = torch.cholesky_solve(flat.T, factor).T
        return {n: v[0].to(parameters[n].dtype) for n, v in _unflatten(solved, parameters).items()}

    return InverseProduct(trained, apply, tuple(parameters), passes=float(len(examples)))


def projected(trained: TrainedModel, *, width: int = 256, damping: float = 1e-3, seed: int = 0) -> InverseProduct:
    """TRAK's inverse: P (PᵀΦᵀΦP/N + λ)⁻¹ Pᵀ with Φ the gradients of every training example's margin at the model's
    sites.

    Args:
        trained: the model; average the predictions of several checkpoints with `Averaged`.
        width: of the random projection P.
        damping: times the mean eigenvalue.
        seed: of the projection.

    Raises UsageError for a task without margins.
    """
    model, sites = trained.model, trained.find()
    measured = trained.replace(task=margin_task(trained.task))
    features = projected_margins(measured, sites, trained.train, width, seed).astype(np.float64)
    moment = features.T @ features / len(features)
    moment += np.eye(width) * damping * np.trace(moment) / width
    directions = {s.name: to_torch(random_projection(s, place, width, seed)) for place, s in enumerate(sites)}

    def apply(gradient: dict[str, Tensor]) -> dict[str, Tensor]:
        matrices = matrices_of(model, sites, gradient)
        own = {name: directions[name].to(m) for name, m in matrices.items()}
        sketch = sum(torch.einsum("koi,oi->k", own[name], m) for name, m in matrices.items())
        assert isinstance(sketch, Tensor)
        solved = torch.as_tensor(np.linalg.solve(moment, to_numpy(sketch.double()))).to(sketch)
        return parameters_of(model, sites, {n: torch.einsum("koi,k->oi", p, solved) for n, p in own.items()})

    names = tuple(dict.fromkeys(name for site in sites for _, name in site.parameters))
    return InverseProduct(trained, apply, names, passes=float(len(trained.train)))


def forget_gradient(trained: TrainedModel, examples: Examples, names: Sequence[str]) -> dict[str, Tensor]:
    """Summed gradient of the examples' losses, by parameter name."""
    loss, own = stateless(trained.task.loss, trained.model), named_parameters(trained.model)
    theta = {name: own[name].detach() for name in names}
    total = {name: torch.zeros_like(p) for name, p in theta.items()}
    with borrowed(trained.model):
        for batch in batches(trained, examples):
            found = grad(lambda values, batch=batch: loss(values, batch).sum())(theta)
            total = {name: total[name] + g for name, g in found.items()}
    return total


def batches(trained: TrainedModel, examples: Examples) -> Iterator[dict[str, Tensor]]:
    """All of some examples in blocks of one width, on the model's device."""
    width = int(examples.lengths.max())
    for start in range(0, len(examples), EXAMPLES_AT_ONCE):
        stop_if_signalled()
        rows = np.arange(start, min(start + EXAMPLES_AT_ONCE, len(examples)))
        yield trained.batch(examples, rows, pad_to=width)


def _flatten(values: Mapping[str, Float[Tensor, "q ..."]], like: Mapping[str, Tensor]) -> Float[Tensor, "q p"]:
    return torch.cat([values[name].flatten(1) for name in like], 1)


def _unflatten(flat: Float[Tensor, "q p"], like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    parts = flat.split([p.numel() for p in like.values()], 1)
    return {name: part.reshape(len(flat), *p.shape) for (name, p), part in zip(like.items(), parts)}
