"""Solving (G + damping) x = b for many right-hand sides at once, G known by its products only.

Vectors are dicts of site -> [q o i]; each of the q systems has its own step sizes and stops on its own.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from whence.cache import NumericalError
from whence.cache.model.bridge import to_numpy

Vectors = Mapping[str, Tensor]
Apply = Callable[[Vectors], dict[str, Tensor]]
POWER_STEPS = 12


class Solution(NamedTuple):
    """x: site -> [q o i]. residual: |b - (G + damping) x| / |b| of each system [q]. steps: products with G taken."""

    x: dict[str, Tensor]
    residual: Float[np.ndarray, " q"]
    steps: int


def dot(x: Vectors, y: Vectors) -> Float[Tensor, " q"]:
    """<x_q, y_q> over all sites, in float64."""
    parts = [(x[name].double() * y[name].double()).sum((1, 2)) for name in x]
    return torch.stack(parts).sum(0)


def combine(x: Vectors, scale: Tensor | float, y: Vectors) -> dict[str, Tensor]:
    """x + scale y, scale a number or [q]."""
    if isinstance(scale, Tensor):
        return {name: x[name] + scale.to(x[name].dtype)[:, None, None] * y[name] for name in x}
    return {name: x[name] + scale * y[name] for name in x}


def conjugate_gradient(system: Apply, b: Vectors, precondition: Apply, tolerance: float, most: int) -> Solution:
    """Preconditioned conjugate gradients (Hestenes and Stiefel 1952), started at precondition(b).

    This differs from the textbook in that systems that reached `tolerance` take steps of zero while the others
    continue, and that the start is the preconditioner's own solution, so that `most` = 0 returns it.
    """
    size = dot(b, b).sqrt().clamp(min=torch.finfo(torch.float64).tiny)
    x = precondition(b)
    steps = 0
    if most == 0:
        return Solution(x, np.full(len(size), np.nan), 0)
    r = combine(b, -1.0, system(x))
    steps += 1
    z = precondition(r)
    p, rz = dict(z), dot(r, z)
    while steps <= most:
        live = dot(r, r).sqrt() > tolerance * size
        if not bool(live.any()):
            break
        ap = system(p)
        steps += 1
        curvature = dot(p, ap)
        step = torch.where(live & (curvature > 0), rz / curvature.clamp(min=1e-300), 0.0)
        x, r = combine(x, step, p), combine(r, -step, ap)
        z = precondition(r)
        after = dot(r, z)
        p = combine(z, torch.where(live, after / rz.clamp(min=1e-300), 0.0), p)
        rz = after
    return Solution(x, to_numpy(dot(r, r).sqrt() / size), steps)


def largest_eigenvalue(apply: Apply, like: Vectors, seed: int = 0) -> float:
    """Largest eigenvalue of `apply` by power iteration on one random vector shaped like one of `like`."""
    generator = torch.Generator().manual_seed(seed)
    v = {n: torch.randn(1, *t.shape[1:], generator=generator, dtype=torch.float64).to(t) for n, t in like.items()}
    value = 0.0
    for _ in range(POWER_STEPS):
        norm = float(dot(v, v).sqrt())
        v = apply({name: t / norm for name, t in v.items()})
        value = float(dot(v, v).sqrt())
    return value


def stochastic_neumann(
    system: Callable[[Vectors, np.ndarray | None], dict[str, Tensor]],
    b: Vectors,
    precondition: Apply,
    rate: float,
    batches: list[np.ndarray | None],
    start: Vectors,
    averaged: int,
) -> Solution:
    """x <- x - rate P ((G_B + damping) x - b) over batches B of examples; returns the mean of the last `averaged`
    iterates (1: the last). With P = I and start = rate b it is LiSSA's recursion (Agarwal et al. 2017); with P an
    approximate inverse it is ASTRA's.

    Raises NumericalError if it diverges.
    """
    x = dict(start)
    total: dict[str, Tensor] | None = None
    first = float(dot(b, b).max().sqrt())
    for number, rows in enumerate(batches):
        x = combine(x, -rate, precondition(combine(system(x, rows), -1.0, b)))
        largest = float(dot(x, x).max())
        if not np.isfinite(largest) or largest > (1e8 * max(first, 1.0)) ** 2 * max(1.0, rate**2):
            raise NumericalError(
                f"The iteration diverged at step {number + 1} with a step size of {rate:.3g}.",
                "Give a smaller step, larger batches, or more damping.",
            )
        if number >= len(batches) - averaged:
            total = dict(x) if total is None else combine(total, 1.0, x)
    x = x if total is None else {name: value / averaged for name, value in total.items()}
    return Solution(x, np.full(len(dot(b, b)), np.nan), len(batches))
