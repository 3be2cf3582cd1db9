"""Datamodels from curvature: no retraining at all.

Leaving out F moves a trained model's parameters by about Δθ = (G + λ)⁻¹ g / N, with g the summed gradient of the
forgotten losses and G the mean curvature of an example; outputs follow by a Jacobian-vector product,
Δlogits(x) = J(x) Δθ. The inverse comes from EK-FAC factors, from exact curvature of a small model, or from a random
projection (TRAK, Park et al. 2023, where G is the second moment of margin gradients).

The first order ignores that the curvature goes with the examples: G of what is kept is G - G_F/N. For a coherent
forget set, `group` terms of the series (1 + G⁻¹ G_F/N + ...) put that back: each is one product with the forget set's
own curvature and one with the inverse. On models far from convergence the opposite error is the larger: directions
that training never settled are moved too far, and the damping or scale must be calibrated on other deletions.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import jvp, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from whence.cache import DataError, Examples, NumericalError, Task
from whence.cache.model.sites import matrices_of, parameters_of
from whence.cache.model.stateless import named_parameters, stateless
from whence.cache.model.task import margin
from whence.cache.retrain.retrained import member_rows

from .base import Cost

EXAMPLES_AT_ONCE = 32


@dataclass(frozen=True, eq=False)
class InverseProduct:
    """(G + λ)⁻¹ times a gradient. names: the parameters it covers. passes: example passes that making it took."""

    apply: Callable[[dict[str, Tensor]], dict[str, Tensor]]
    names: tuple[str, ...]
    passes: float = 0.0

    def __call__(self, gradient: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return self.apply({name: gradient[name] for name in self.names})


@dataclass(frozen=True, eq=False)
class Influence:
    """predict_delta by one inverse product and a Jacobian-vector product per batch of points.

    scale: of the predicted change. group: correction terms for the forget set's own curvature.
    """

    model: nn.Module
    task: Task
    train: Examples
    inverse: InverseProduct
    scale: float = 1.0
    group: int = 0
    _found: dict[bytes, dict[str, Tensor]] = field(default_factory=dict, repr=False)

    @property
    def cost(self) -> Cost:
        return Cost(passes=self.inverse.passes)

    def prediction_passes(self, forget: int, points: int) -> float:
        """Example passes of one prediction: the forget set's gradient (and curvature products), and a forward
        with its tangent (two thirds of a pass) at every point."""
        return forget * (1.0 + self.group) + 2 / 3 * points

    def with_scale(self, scale: float) -> "Influence":
        """The same, predicting a larger or smaller change."""
        return replace(self, scale=scale)

    def step(self, forget: np.ndarray) -> dict[str, Tensor]:
        """Predicted change of the parameters when the forget set is left out (before `scale`)."""
        key = np.sort(np.asarray(forget, np.int64)).tobytes()
        if key not in self._found:
            examples = self.train.select(member_rows(self.train.ids, forget))
            gradient = forget_gradient(self.model, self.task, examples, self.inverse.names)
            right = {name: g / len(self.train) for name, g in gradient.items()}
            step = self.inverse(right)
            for _ in range(self.group):
                own = curvature_product(self.model, self.task, examples, step)
                step = self.inverse({n: right[n] + own[n] / len(self.train) for n in right})
            _check_finite(step)
            self._found[key] = step
        return self._found[key]

    def predict_delta(self, forget: np.ndarray, points: Examples) -> Float[np.ndarray, "p ..."]:
        """J(x) Δθ at every point: [p c], or [p s c] for language."""
        return self.scale * jacobian_product(self.model, self.task, points, self.step(forget))


def _check_finite(step: Mapping[str, Tensor]) -> None:
    if not all(bool(torch.isfinite(v).all()) for v in step.values()):
        raise NumericalError(
            "The inverse curvature of the forget set's gradient is not finite.",
            "Raise the damping, or use fewer group terms.",
        )


# --- gradients and products ---------------------------------------------------------------------------------


def forget_gradient(model: nn.Module, task: Task, examples: Examples, names: Sequence[str]) -> dict[str, Tensor]:
    """Summed gradient of the examples' losses, by parameter name."""
    parameters = {name: named_parameters(model)[name] for name in names}
    total = {name: torch.zeros_like(p) for name, p in parameters.items()}
    with _evaluating(model):
        for rows in _blocks(len(examples)):
            loss = task.loss(model, _batch(examples, rows)).sum()
            found = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
            for name, g in zip(parameters, found):
                total[name] += 0 if g is None else g
    return total


def jacobian_product(
    model: nn.Module, task: Task, points: Examples, step: Mapping[str, Tensor]
) -> Float[np.ndarray, "p ..."]:
    """J(x) step at every point, by forward-mode differentiation (with plain attention: the fused kernel of a CPU
    has no forward derivative)."""
    out = []
    width = int(points.lengths.max())
    base = {name: named_parameters(model)[name].detach() for name in step}
    with _evaluating(model), torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        for rows in _blocks(len(points)):
            batch = points.batch(rows, pad_to=width)
            logits = _logits_of(model, task, batch)
            change = jvp(logits, (base,), (dict(step),))[1]
            out.append(change.numpy())
    return np.concatenate(out)


def curvature_product(
    model: nn.Module, task: Task, examples: Examples, step: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Σ over examples of the Gauss-Newton matrix times `step`: Jᵀ H J, H the loss's second derivative in logits."""
    parameters = {name: named_parameters(model)[name] for name in step}
    total = {name: torch.zeros_like(p) for name, p in parameters.items()}
    with _evaluating(model), sdpa_kernel(SDPBackend.MATH):
        for rows in _blocks(len(examples)):
            batch = _batch(examples, rows)
            logits = _logits_of(model, task, batch)
            with torch.no_grad():
                base = {n: p.detach() for n, p in parameters.items()}
                tangent = jvp(logits, (base,), (dict(step),))[1]
            z = logits(dict(parameters))
            (curved,) = _second_derivative(task, batch, z.detach(), tangent)
            found = torch.autograd.grad(z, list(parameters.values()), curved, allow_unused=True)
            for name, g in zip(parameters, found):
                total[name] += 0 if g is None else g
    return total


def _second_derivative(task: Task, batch: dict[str, Tensor], z: Tensor, tangent: Tensor) -> tuple[Tensor]:
    """H tangent, by differentiating the loss of given logits twice."""
    z = z.clone().requires_grad_()
    loss = task.loss(_Given(z), batch).sum()
    (first,) = torch.autograd.grad(loss, z, create_graph=True)
    (second,) = torch.autograd.grad(first, z, tangent)
    return (second,)


class _Given(nn.Module):
    """A model whose logits are given."""

    def __init__(self, logits: Tensor):
        super().__init__()
        self.logits = logits

    def forward(self, inputs: Tensor) -> Tensor:
        return self.logits


def _logits_of(model: nn.Module, task: Task, batch: dict[str, Tensor]) -> Callable[[dict[str, Tensor]], Tensor]:
    logits = stateless(task.logits, model)
    return lambda parameters: logits(parameters, batch)


def _blocks(count: int) -> list[np.ndarray]:
    return [np.arange(s, min(s + EXAMPLES_AT_ONCE, count)) for s in range(0, count, EXAMPLES_AT_ONCE)]


def _batch(examples: Examples, rows: np.ndarray) -> dict[str, Tensor]:
    return examples.batch(rows)


class _evaluating:
    """The model in evaluation mode for a while."""

    def __init__(self, model: nn.Module):
        self.model = model

    def __enter__(self) -> None:
        self.before = {m: m.training for m in self.model.modules()}
        self.model.eval()

    def __exit__(self, *_: object) -> None:
        for module, was in self.before.items():
            module.training = was


# --- inverses -----------------------------------------------------------------------------------------------


def ekfac(model: nn.Module, factors: Any) -> InverseProduct:
    """The inverse of attrib's factors (any method of the Kronecker family), over the parameters of their sites."""
    from whence.cache.model.bridge import to_jax, to_torch

    sites = factors.sites
    names = tuple(dict.fromkeys(name for site in sites for _, name in site.parameters))

    def apply(gradient: dict[str, Tensor]) -> dict[str, Tensor]:
        matrices = matrices_of(model, sites, gradient)
        found = factors.inverse_product({site: to_jax(v[None]) for site, v in matrices.items()})
        return parameters_of(model, sites, {site: to_torch(v)[0] for site, v in found.items()})

    return InverseProduct(apply, names, passes=2.0 * factors.count)


def _flatten(values: Mapping[str, Tensor], names: Sequence[str]) -> Tensor:
    return torch.cat([values[name].reshape(-1) for name in names])


def _unflatten(flat: Tensor, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    sizes = [p.numel() for p in like.values()]
    return {name: part.view(p.shape) for (name, p), part in zip(like.items(), flat.split(sizes))}


def exact(model: nn.Module, task: Task, examples: Examples, damping: float = 0.0, l2: float = 0.0) -> InverseProduct:
    """Exact Gauss-Newton curvature of a small model on these examples (the retained ones make the step of a
    deletion exact for ridge), plus the objective's l2 (its second derivative) and damping times the mean diagonal.

    Raises DataError above 20,000 parameters: the matrix would not fit.
    """
    parameters = {n: p.detach() for n, p in named_parameters(model).items() if p.requires_grad}
    size = sum(p.numel() for p in parameters.values())
    if size > 20_000:
        raise DataError(
            f"Exact curvature of {size} parameters is a matrix of {8 * size**2 / 1e9:.0f} GB.",
            "Use EK-FAC factors, or a projection.",
        )
    total = torch.zeros(size, size, dtype=torch.float64)
    with _evaluating(model):
        for rows in _blocks(len(examples)):
            total += _gauss_newton(model, task, _batch(examples, rows), parameters)
    total /= len(examples)
    total += torch.eye(size, dtype=torch.float64) * (l2 + damping * float(total.diagonal().mean()))
    factor = torch.linalg.cholesky(total)

    def apply(gradient: dict[str, Tensor]) -> dict[str, Tensor]:
        flat = _flatten(gradient, list(parameters)).double()[:, None]
        solved = torch.cholesky_solve(flat, factor)[:, 0]
        return {n: v.to(parameters[n].dtype) for n, v in _unflatten(solved, parameters).items()}

    return InverseProduct(apply, tuple(parameters), passes=float(len(examples)))


def _gauss_newton(
    model: nn.Module, task: Task, batch: dict[str, Tensor], parameters: dict[str, Tensor]
) -> Float[Tensor, "w w"]:
    logits = _logits_of(model, task, batch)
    z = logits(parameters).detach()
    jacobian = torch.func.jacrev(logits)(parameters)
    flat = torch.cat([j.flatten(z.ndim) for j in jacobian.values()], -1).flatten(0, -2).double()
    basis = torch.eye(z[0].numel(), dtype=z.dtype).view(-1, *z.shape[1:])
    columns = [
        _second_derivative(task, batch, z, b.expand_as(z))[0].flatten(1) for b in basis
    ]  # H of every example is block diagonal: one product a basis vector gives a column of each
    blocks = torch.stack(columns, 2).double()
    curved = torch.einsum("bkl,blw->bkw", blocks, flat.view(len(z), -1, flat.shape[1]))
    return flat.T @ curved.flatten(0, 1)


def projected(
    models: Sequence[nn.Module],
    task: Task,
    examples: Examples,
    *,
    width: int = 256,
    damping: float = 1e-3,
    seed: int = 0,
) -> list[InverseProduct]:
    """TRAK's inverse for each checkpoint: P (PᵀΦᵀΦP/N + λ)⁻¹ Pᵀ with Φ the gradients of every example's margin and
    P a random projection to `width`; the damping is a factor of the mean eigenvalue. Average the checkpoints'
    predictions with `Averaged`."""
    return [_projected(model, task, examples, width, damping, seed + k) for k, model in enumerate(models)]


def _projected(
    model: nn.Module, task: Task, examples: Examples, width: int, damping: float, seed: int
) -> InverseProduct:
    parameters = {n: p.detach() for n, p in named_parameters(model).items() if p.requires_grad}
    size = sum(p.numel() for p in parameters.values())
    generator = torch.Generator().manual_seed(seed)
    projection = torch.randn(size, min(width, size), generator=generator) / min(width, size) ** 0.5
    logits = stateless(task.logits, model)

    def one(own: dict[str, Tensor], batch: dict[str, Tensor]) -> Tensor:
        single = {name: value[None] for name, value in batch.items()}
        return margin(logits(own, single), single["y"].long())[0]

    rows = []
    with _evaluating(model), torch.no_grad():
        for block in _blocks(len(examples)):
            batch = _batch(examples, block)
            found = vmap(torch.func.grad(one), in_dims=(None, 0))(parameters, batch)
            rows.append(torch.cat([g.flatten(1) for g in found.values()], 1) @ projection)
    features = torch.cat(rows).double()
    moment = features.T @ features / len(features)
    moment += torch.eye(len(moment), dtype=torch.float64) * damping * float(moment.diagonal().mean())
    factor = torch.linalg.cholesky(moment)

    def apply(gradient: dict[str, Tensor]) -> dict[str, Tensor]:
        flat = _flatten(gradient, list(parameters)) @ projection
        solved = torch.cholesky_solve(flat.double()[:, None], factor)[:, 0].to(projection.dtype)
        return _unflatten(projection @ solved, parameters)

    return InverseProduct(apply, tuple(parameters), passes=float(len(examples)))


@dataclass(frozen=True, eq=False)
class Averaged:
    """The mean prediction of several datamodels: checkpoints, projections, seeds."""

    datamodels: Sequence[Influence]

    @property
    def cost(self) -> Cost:
        each = [d.cost for d in self.datamodels]
        return Cost(sum(c.trainings for c in each) + len(each) - 1, sum(c.passes for c in each))

    def prediction_passes(self, forget: int, points: int) -> float:
        return sum(d.prediction_passes(forget, points) for d in self.datamodels)

    def predict_delta(self, forget: np.ndarray, points: Examples) -> Float[np.ndarray, "p ..."]:
        return np.mean([d.predict_delta(forget, points) for d in self.datamodels], axis=0)
