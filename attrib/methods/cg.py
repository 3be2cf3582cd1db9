"""CG: conjugate gradients on the exact Gauss-Newton matrix, preconditioned by EK-FAC."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from whence.cache import Examples, Sites, Store, Task, say

from ..iterative import Solved, inputs_with
from ..method import FitOptions, make_run
from ..solvers import Solution, conjugate_gradient
from .ekfac import EKFAC


@dataclass(frozen=True, kw_only=True, repr=False)
class SolvedByCG(Solved):
    tolerance: float
    iterations: int
    quiet: bool

    def solve(self, b: dict[str, Tensor]) -> Solution:
        found = conjugate_gradient(self.system, b, self.precondition, self.tolerance, self.iterations)
        left = found.residual[found.residual > self.tolerance]
        if len(left) and not self.quiet:
            say(f"CG took {found.steps} products; {len(left)} queries are left with residuals to {left.max():.1e}")
        return found


@dataclass(frozen=True)
class CG:
    """(G + damping) x = grad f solved for each query on all examples, to a relative residual of `tolerance` or
    `iterations` steps from EK-FAC's answer; damping is the preconditioner's own. Costs about four passes of forward
    and backward over the data a step and query, all queries in one pass (Hestenes and Stiefel 1952; Martens 2010)."""

    ekfac: Any = EKFAC()
    tolerance: float = 1e-2
    iterations: int = 20
    name = "cg"

    def fit(
        self,
        model: nn.Module,
        task: Task,
        examples: Examples,
        *,
        sites: Sites | None = None,
        store: Store | None = None,
        options: FitOptions = FitOptions(),
    ) -> SolvedByCG:
        """Raises as EKFAC.fit."""
        base = self.ekfac.fit(model, task, examples, sites=sites, store=store, options=options)
        run = make_run(model, task, examples, base.sites, "loss", 0, options)
        inputs = inputs_with(base, {"name": self.name, "tolerance": self.tolerance, "iterations": self.iterations})
        return SolvedByCG(
            self.name, base.sites, base.per_site, base.count, base.damping, inputs,
            base=base, run=run, tolerance=self.tolerance, iterations=self.iterations, quiet=options.quiet,
        )  # fmt: skip
