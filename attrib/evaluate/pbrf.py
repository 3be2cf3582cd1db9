"""The proximal Bregman response: what influence functions approximate, computed by optimisation (Bae et al. 2022).

theta*_m = argmin (1/N) sum_i D_i(h(theta, x_i), h(theta_s, x_i)) + (1/N) L(z_m, theta)
                  + (damping / 2) |theta - theta_s|^2
with D_i the Bregman divergence of the loss in the outputs; the response of a query is f(theta*_m) - f(theta_s), in the
units of influence. Perturbations are replicas that are optimised together.
"""

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from whence.cache import DataError, Examples, ModelError, NumericalError, Task, TrainedModel
from whence.cache.jobs.progress import progress
from whence.cache.model.bridge import to_numpy
from whence.cache.retrain.replicas import Replicas, mode

from ..solvers.gauss_newton import Answered

if TYPE_CHECKING:
    import xarray

REPLICAS = 64  # perturbations solved at once


class Response(NamedTuple):
    """change [q m]: f(theta*_m) - f(theta_s), nats. residual [m]: the final gradient norm over the first."""

    change: Float[np.ndarray, "q m"]
    residual: Float[np.ndarray, " m"]
    train_ids: np.ndarray
    query_ids: np.ndarray


def pbrf(
    trained: TrainedModel,
    queries: Examples,
    rows: np.ndarray,
    damping: float,
    *,
    sites: Any = None,
    steps: int = 500,
    tolerance: float = 1e-3,
) -> Response:
    """The response of every query to each training example in `rows`, over the sites' parameters.

    Gradient descent with a Barzilai-Borwein step for each perturbation, full batch.

    Args:
        rows: row numbers of training examples.
        damping: absolute.
        sites: as for Method.fit.
        steps, tolerance: it stops after this many steps, or at a gradient of this share of the first one's norm.

    Raises DataError for sequences (it needs one row of outputs per example), ModelError for a damping that is not
    positive, NumericalError if a response becomes non-finite.
    """
    model, task, train = trained.model, trained.task, trained.train
    if "input_ids" in train.columns:
        raise DataError("The PBRF is computed for classification and regression.", "Use LDS for language models.")
    if damping <= 0:
        raise ModelError(f"A damping of {damping} leaves the response undefined.", "Give a positive absolute damping.")
    rows = np.asarray(rows, np.int64)
    points = trained.batch(queries, range(len(queries)))
    names = trained.find(sites).parameters
    parts = [rows[start : start + REPLICAS] for start in range(0, len(rows), REPLICAS)]
    changes, residuals = [], []
    for part in progress(parts, desc="proximal responses", unit="block", quiet=trained.quiet):
        replicas = Replicas.of([model] * len(part), trainable=lambda name: name in names)
        with mode(replicas, training=False):
            moved, residual = _minimise(replicas, trained, part, damping, steps, tolerance)
            after = moved.apply(_measure(task), points, shared=True)
            before = replicas.select([0]).apply(_measure(task), points, shared=True)
        changes.append(to_numpy((after - before).double()).T)
        residuals.append(residual)
    change = np.concatenate(changes, 1)
    if not np.isfinite(change).all():
        raise NumericalError("A proximal response is not finite.", "Raise the damping.")
    return Response(change, np.concatenate(residuals), train.ids[rows], queries.ids)


def _measure(task: Task):
    return lambda model, batch, extra: task.measurement(model, batch)


def _minimise(
    replicas: Replicas, trained: TrainedModel, rows: np.ndarray, damping: float, steps: int, tolerance: float
) -> tuple[Replicas, np.ndarray]:
    task, train = trained.task, trained.train
    batch = trained.batch(train, range(len(train)))
    start = replicas.flat.clone()
    with torch.no_grad():
        outputs = replicas.select([0]).apply(lambda m, b, e: task.logits(m, b), batch, shared=True)[0].detach()
    z = outputs.clone().requires_grad_()
    value = task.loss(Answered(z), batch)
    slope = torch.autograd.grad(value.sum(), z)[0]
    value = value.detach()

    def objective(model: nn.Module, batch: dict[str, Tensor], extra: dict[str, Tensor]) -> Tensor:
        out = task.logits(model, batch)
        losses = task.loss(Answered(out), batch)
        divergence = losses - value - (slope * (out - outputs)).flatten(1).sum(1)
        return (divergence.sum() + (extra["chosen"] * losses).sum()) / len(losses)

    chosen = torch.zeros(len(rows), len(train), dtype=replicas.flat.dtype, device=replicas.flat.device)
    chosen[torch.arange(len(rows)), torch.as_tensor(rows)] = 1.0

    def gradient(flat: Tensor) -> Tensor:
        return replicas.with_flat(flat).gradient(objective, batch, {"chosen": chosen}, shared=True)[1] + damping * (
            flat - start
        )

    x, g = start, gradient(start)
    first = g.norm(dim=1, keepdim=True).clamp(min=1e-300)
    rate = torch.full_like(first, 1e-2)
    best, best_norm = x, g.norm(dim=1, keepdim=True)
    for _ in range(steps):
        moved = x - rate * g
        after = gradient(moved)
        s, y = moved - x, after - g
        curvature = (s * y).sum(1, keepdim=True)
        fitted = (s * s).sum(1, keepdim=True) / curvature.clamp(min=1e-300)
        rate = torch.where(curvature > 0, fitted, rate).clamp(max=1.0 / damping)
        x, g = moved, after
        norm = g.norm(dim=1, keepdim=True)
        better = norm < best_norm
        best, best_norm = torch.where(better, x, best), torch.where(better, norm, best_norm)
        if bool((best_norm <= tolerance * first).all()):
            break
    return replicas.with_flat(best), to_numpy((best_norm / first)[:, 0].double())


def agreement_with_pbrf(scores: "xarray.DataArray", response: Response) -> tuple[Float[np.ndarray, " q"], float]:
    """Pearson correlation of each query's influence with the response [q], and the slope of influence on response
    (1 where the units agree too)."""
    chosen = scores.sel(query=response.query_ids, train=response.train_ids).values.astype(np.float64)
    each = np.array([np.corrcoef(a, b)[0, 1] for a, b in zip(chosen, response.change)])
    return each, float((chosen * response.change).sum() / np.square(response.change).sum())
