"""Factors whose inverse is solved for instead of inverted: the exact Gauss-Newton matrix of the same data with the
same damping, started and preconditioned by the fitted factors. `score` and everything else that asks factors for
`inverse_product` works with them as they are."""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

import jax
import numpy as np
from jaxtyping import Array, Float
from torch import Tensor

from whence.cache import DataError, UsageError
from whence.cache.model.batches import ModelPass
from whence.cache.model.bridge import to_jax, to_torch

from . import kernels
from .factors import Damping, Factors
from .gauss_newton import GaussNewton
from .solvers import Solution


@dataclass(frozen=True, kw_only=True, repr=False)
class Solved(Factors):
    """base: the fitted factors, whose damping counts. run: the model and the data that G is of.
    A kind of solver is a subclass with `solve`."""

    base: Factors
    run: ModelPass

    def __reduce__(self) -> Any:
        return _rebuilt, (type(self), {field.name: getattr(self, field.name) for field in fields(self)})

    def solve(self, b: dict[str, Tensor]) -> Solution:
        """(G + damping) x = b, for vectors site -> [q o i]."""
        raise UsageError(f"{self.method} has no solver.", "Fit with CG, ASTRA, LiSSA or DataInf.")

    def system(self, x: Mapping[str, Tensor], rows: np.ndarray | None = None) -> dict[str, Tensor]:
        """(G + damping) x, G over all examples or these rows of them."""
        curved = GaussNewton(self.run).product(x, rows)
        return {name: curved[name] + self.damping_at(name) * value for name, value in x.items()}

    def damping_at(self, site: str) -> float:
        return self.base.damping.at(site, self.base.per_site[site].eigenvalues)

    def precondition(self, x: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The fitted factors' (approximate) inverse."""
        solved = self.base.inverse_product({name: to_jax(value) for name, value in x.items()})
        return {name: to_torch(value).to(x[name]) for name, value in solved.items()}

    def inverse_product(self, gradients: Mapping[str, Float[Array, "q o i"]]) -> dict[str, Float[Array, "q o i"]]:
        """(G + damping)^-1 applied to gradients of all sites together. Raises DataError where a site is missing:
        the exact matrix couples them."""
        if set(gradients) != set(self.sites.names):
            raise DataError(
                f"{self.method} solves for all {len(self.sites)} sites together; {len(gradients)} were given.",
                "Give gradients at every site of the factors, or fit with these sites only.",
            )
        dtype = next(iter(self.run.model.parameters())).dtype
        b = {name: to_torch(value).to(self.run.device, dtype) for name, value in gradients.items()}
        found = self.solve(b)
        return {name: _like(value, gradients[name]) for name, value in found.x.items()}

    def inverse_gradients(
        self, inputs: Mapping[str, Float[Array, "b _s _i"]], grads: Mapping[str, Float[Array, "b _s _o"]]
    ) -> dict[str, Float[Array, "b _o _i"]]:
        """`inverse_product` of every example's gradient."""
        return self.inverse_product({name: kernels.gradients(a, grads[name]) for name, a in inputs.items()})

    def product(self, gradients: Mapping[str, Float[Array, "q o i"]]) -> dict[str, Float[Array, "q o i"]]:
        """(G + damping) applied to gradients, exactly."""
        dtype = next(iter(self.run.model.parameters())).dtype
        b = {name: to_torch(value).to(self.run.device, dtype) for name, value in gradients.items()}
        return {name: _like(value, gradients[name]) for name, value in self.system(b).items()}

    def inverse(self, site: str) -> np.ndarray:
        """There is no elementwise inverse of a matrix that is only known by its products."""
        raise UsageError(
            f"{self.method} has no closed form at {site}, which self-influence needs.",
            f"Use {self.base.method} for self-influence, or score the training examples as queries.",
        )

    def with_damping(self, value: float, rule: Literal["relative", "absolute"] = "relative") -> "Solved":
        base = self.base.with_damping(value, rule)
        return replace(self, base=base, damping=Damping(value, rule))

    def __repr__(self) -> str:
        return f"Solved({self.method}, {len(self.sites)} sites, {self.count} examples, on {self.base!r})"


def _rebuilt(kind: type[Solved], values: dict[str, Any]) -> Solved:
    return kind(**values)


def _like(value: Tensor, given: jax.Array) -> jax.Array:
    return to_jax(value.detach().cpu().contiguous(), copy=True).astype(given.dtype)


def inputs_with(base: Factors, solver: Mapping[str, Any]) -> dict[str, Any]:
    """What a solved result is computed from: the factors' inputs and the solver's settings."""
    return {**base.inputs, "solver": dict(solver)}
