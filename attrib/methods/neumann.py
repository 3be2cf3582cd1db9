"""The stochastic solvers: LiSSA (Agarwal et al. 2017; Koh and Liang 2017) and ASTRA (2025, arXiv 2507.14740), one
recursion with and without EK-FAC as its preconditioner."""

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from whence.cache import Sites, TrainedModel

from ..curvature import Damping
from ..method import CurvatureMethod, Method, in_key, not_in_key
from ..solvers.krylov import Apply, Solution, Vectors, combine, largest_eigenvalue, stochastic_neumann
from ..solvers.solved import Iterative
from .diagonal import Diagonal
from .ekfac import EKFAC

PROBED_BATCHES = 3
MARGIN = 1.3  # of the largest curvature seen on the probed batches


@dataclass(frozen=True, kw_only=True, repr=False)
class SolvedByNeumann(Iterative):
    """iterations, batch: steps and examples in each. rate: the step size, or None to set it from the largest
    (preconditioned) curvature of a few batches. preconditioned: with the base's inverse, from its solution, and
    averaged over the last half of the steps; else from rate times b, the last step counting. repeats: runs averaged."""

    iterations: int
    batch: int
    rate: float | None
    repeats: int
    seed: int
    preconditioned: bool

    def solve(self, b: dict[str, Tensor]) -> Solution:
        rng, inverse = np.random.default_rng(self.seed), self.preconditioner(b)
        apply: Apply = inverse if self.preconditioned else dict
        rate = self.rate or 1.0 / (MARGIN * max(self._curvature(b, apply, rng) for _ in range(PROBED_BATCHES)))
        total: dict[str, Tensor] | None = None
        for _ in range(self.repeats):
            batches = [self._rows(rng) for _ in range(self.iterations)]
            start = inverse(b) if self.preconditioned else {name: rate * value for name, value in b.items()}
            averaged = max(1, self.iterations // 2) if self.preconditioned else 1
            x = stochastic_neumann(self.system, b, apply, rate, batches, start, averaged).x
            total = x if total is None else combine(total, 1.0, x)
        assert total is not None  # repeats is at least one
        x = {name: value / self.repeats for name, value in total.items()}
        return Solution(x, np.full(len(next(iter(b.values()))), np.nan), self.iterations * self.repeats)

    def _rows(self, rng: np.random.Generator) -> np.ndarray | None:
        n = len(self.run.examples)
        return None if self.batch >= n else np.sort(rng.choice(n, self.batch, replace=False))

    def _curvature(self, b: Vectors, apply: Apply, rng: np.random.Generator) -> float:
        rows = self._rows(rng)
        return largest_eigenvalue(lambda v: apply(self.system(v, rows)), b, seed=self.seed)


@dataclass(frozen=True)
class LiSSA(Method):
    """x <- b + (I - (G_B + damping) / scale) x over random batches B, divided by scale at the end: a truncated Neumann
    series of the inverse.

    Args:
        damping: relative to the mean of the sampled Fisher matrix's diagonal.
        depth: steps. batch: examples in each. repeats: runs that are averaged.
        scale: by default set from the largest curvature of a few batches.
        seed: of the batches.
    """

    damping: Damping | None = not_in_key(None, "enters the key of the scores")
    depth: int = in_key(100, name="iterations")
    batch: int = in_key(32)
    repeats: int = in_key(1)
    scale: float | None = not_in_key(None, "enters as the step size")
    seed: int = in_key(0)
    name = "lissa"

    def fit_at(self, trained: TrainedModel, sites: Sites) -> SolvedByNeumann:
        base = Diagonal(damping=self.damping).fit_at(trained, sites)
        solver = {**self.settings(), "rate": None if self.scale is None else 1.0 / self.scale}
        return SolvedByNeumann.of(base, self.name, solver, preconditioned=False, **solver)


@dataclass(frozen=True)
class ASTRA(Method):
    """x <- x - rate P ((G_B + damping) x - grad f) over random batches B, P being EK-FAC's inverse and its solution
    the start; the mean of the last half of the iterates is taken, which averages the batches' noise out.

    Args:
        ekfac: the method whose factors precondition; its damping is the system's.
        iterations: steps. batch: examples in each.
        rate: step size; by default set from the largest preconditioned curvature of a few batches.
        seed: of the batches.
    """

    ekfac: CurvatureMethod = not_in_key(EKFAC(), "enters as the inputs of its factors")
    iterations: int = in_key(40)
    batch: int = in_key(64)
    rate: float | None = in_key(None)
    seed: int = in_key(0)
    name = "astra"

    def fit_at(self, trained: TrainedModel, sites: Sites) -> SolvedByNeumann:
        solver = {**self.settings(), "repeats": 1}
        return SolvedByNeumann.of(self.ekfac.fit_at(trained, sites), self.name, solver, preconditioned=True, **solver)
