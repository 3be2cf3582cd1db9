"""The stochastic solvers: LiSSA (Agarwal et al. 2017; Koh and Liang 2017) and ASTRA (2025, arXiv 2507.14740), one
recursion with and without EK-FAC as its preconditioner."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor, nn

from whence.cache import Examples, Sites, Store, Task

from ..factors import Damping, Factors
from ..iterative import Solved, inputs_with
from ..method import FitOptions, make_run
from ..solvers import Solution, Vectors, combine, largest_eigenvalue, stochastic_neumann
from .ekfac import EKFAC

PROBED_BATCHES = 3
MARGIN = 1.3  # of the largest curvature seen on the probed batches


@dataclass(frozen=True, kw_only=True, repr=False)
class SolvedByNeumann(Solved):
    """iterations, batch: steps and examples in each. rate: the step size, or None to set it from the largest
    (preconditioned) curvature of a few batches. preconditioned: with the base's inverse, from its answer, and averaged
    over the last half of the steps; else from rate times b, the last step counting. repeats: runs averaged."""

    iterations: int
    batch: int
    rate: float | None
    repeats: int
    seed: int
    preconditioned: bool

    def solve(self, b: dict[str, Tensor]) -> Solution:
        apply = self.precondition if self.preconditioned else dict
        rng = np.random.default_rng(self.seed)
        rate = self.rate or 1.0 / (MARGIN * max(self._curvature(b, rng) for _ in range(PROBED_BATCHES)))
        total: dict[str, Tensor] | None = None
        for _ in range(self.repeats):
            batches = [self._rows(rng) for _ in range(self.iterations)]
            start = self.precondition(b) if self.preconditioned else {name: rate * value for name, value in b.items()}
            averaged = max(1, self.iterations // 2) if self.preconditioned else 1
            x = stochastic_neumann(self.system, b, apply, rate, batches, start, averaged).x
            total = x if total is None else combine(total, 1.0, x)
        assert total is not None  # repeats is at least one
        x = {name: value / self.repeats for name, value in total.items()}
        return Solution(x, np.full(len(next(iter(b.values()))), np.nan), self.iterations * self.repeats)

    def _rows(self, rng: np.random.Generator) -> np.ndarray | None:
        n = len(self.run.examples)
        return None if self.batch >= n else np.sort(rng.choice(n, self.batch, replace=False))

    def _curvature(self, b: Vectors, rng: np.random.Generator) -> float:
        rows = self._rows(rng)

        def apply(v: Vectors) -> dict[str, Tensor]:
            seen = self.system(v, rows)
            return self.precondition(seen) if self.preconditioned else seen

        return largest_eigenvalue(apply, b, seed=self.seed)


@dataclass(frozen=True)
class LiSSA:
    """x <- b + (I - (G_B + damping) / scale) x over random batches B, divided by scale at the end: a truncated Neumann
    series of the inverse. `depth` steps of `batch` examples, `repeats` runs averaged; scale is set from the largest
    curvature of a few batches unless given. Damping is relative to the mean of the sampled Fisher's diagonal."""

    damping: Damping = Damping()
    depth: int = 100
    batch: int = 32
    repeats: int = 1
    scale: float | None = None
    seed: int = 0
    name = "lissa"

    def fit(
        self,
        model: nn.Module,
        task: Task,
        examples: Examples,
        *,
        sites: Sites | None = None,
        store: Store | None = None,
        options: FitOptions = FitOptions(),
    ) -> SolvedByNeumann:
        """Raises as EKFAC.fit."""
        from .diagonal import Diagonal

        base = Diagonal(damping=self.damping).fit(model, task, examples, sites=sites, store=store, options=options)
        rate = None if self.scale is None else 1.0 / self.scale
        return _solved(self, base, model, task, examples, options, self.depth, rate, self.repeats, False)


@dataclass(frozen=True)
class ASTRA:
    """x <- x - rate P ((G_B + damping) x - grad f) over random batches B, P being EK-FAC's inverse and its answer the
    start; the mean of the last half of the iterates is taken, which averages the batches' noise out."""

    ekfac: Any = EKFAC()
    iterations: int = 40
    batch: int = 64
    rate: float | None = None
    seed: int = 0
    name = "astra"

    def fit(
        self,
        model: nn.Module,
        task: Task,
        examples: Examples,
        *,
        sites: Sites | None = None,
        store: Store | None = None,
        options: FitOptions = FitOptions(),
    ) -> SolvedByNeumann:
        """Raises as EKFAC.fit."""
        base = self.ekfac.fit(model, task, examples, sites=sites, store=store, options=options)
        return _solved(self, base, model, task, examples, options, self.iterations, self.rate, 1, True)


def _solved(
    method: LiSSA | ASTRA,
    base: Factors,
    model: nn.Module,
    task: Task,
    examples: Examples,
    options: FitOptions,
    iterations: int,
    rate: float | None,
    repeats: int,
    preconditioned: bool,
) -> SolvedByNeumann:
    run = make_run(model, task, examples, base.sites, "loss", 0, options)
    solver = {
        "name": method.name, "iterations": iterations, "batch": method.batch, "rate": rate, "repeats": repeats,
        "seed": method.seed,
    }  # fmt: skip
    return SolvedByNeumann(
        method.name, base.sites, base.per_site, base.count, base.damping, inputs_with(base, solver),
        base=base, run=run, iterations=iterations, batch=method.batch, rate=rate, repeats=repeats, seed=method.seed,
        preconditioned=preconditioned,
    )  # fmt: skip
