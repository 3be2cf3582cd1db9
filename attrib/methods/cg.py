"""CG: conjugate gradients on the exact Gauss-Newton matrix, preconditioned by EK-FAC."""

from dataclasses import dataclass

from torch import Tensor

from whence.cache import Sites, TrainedModel
from whence.cache.jobs.progress import say

from ..method import CurvatureMethod, Method, in_key, not_in_key
from ..solvers.krylov import Solution, conjugate_gradient
from ..solvers.solved import Iterative
from .ekfac import EKFAC


@dataclass(frozen=True, kw_only=True, repr=False)
class SolvedByCG(Iterative):
    """tolerance, iterations: as for CG."""

    tolerance: float
    iterations: int

    def solve(self, b: dict[str, Tensor]) -> Solution:
        found = conjugate_gradient(self.system, b, self.preconditioner(b), self.tolerance, self.iterations)
        left = found.residual[found.residual > self.tolerance]
        if len(left) and not self.trained.quiet:
            say(f"CG took {found.steps} products; {len(left)} queries have residuals up to {left.max():.1e}")
        return found


@dataclass(frozen=True)
class CG(Method):
    """(G + damping) x = grad f solved for each query on all examples, from EK-FAC's solution as the start. Costs
    about four passes of forward and backward over the data per step and query, all queries in one pass (Hestenes and
    Stiefel 1952; Martens 2010).

    Args:
        ekfac: the method whose factors precondition; its damping is the system's.
        tolerance: relative residual at which a query's system is solved.
        iterations: most steps.
    """

    ekfac: CurvatureMethod = not_in_key(EKFAC(), "enters as the inputs of its factors")
    tolerance: float = in_key(1e-2)
    iterations: int = in_key(20)
    name = "cg"

    def fit_at(self, trained: TrainedModel, sites: Sites) -> SolvedByCG:
        base = self.ekfac.fit_at(trained, sites)
        return SolvedByCG.of(base, self.name, self.settings(), **self.settings())
