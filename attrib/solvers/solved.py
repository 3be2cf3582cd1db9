"""Factors whose inverse is solved for instead of inverted: the exact Gauss-Newton matrix of the same data with the
same damping, started and preconditioned by the fitted factors. They answer what other factors answer, as far as it
needs `inverse_product` only."""

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import jax
import numpy as np
import torch
from jaxtyping import Array, Float
from torch import Tensor

from whence.cache import DataError, UsageError
from whence.cache.model.bridge import to_jax, to_torch
from whence.cache.model.trained import ModelPass

from .. import kernels
from ..curvature import Curvature, Damping, Rule
from ..factors import Factors
from .gauss_newton import GaussNewton
from .krylov import Apply, Solution, Vectors

S = TypeVar("S", bound="Solved")


@dataclass(frozen=True, kw_only=True, repr=False)
class Solved(Factors):
    """base: the fitted factors, whose damping counts. run: the pass over the data that G is of.
    A kind of solver is a subclass with `inverse_product`."""

    base: Factors
    run: ModelPass

    @classmethod
    def of(cls: type[S], base: Factors, method: str, solver: Mapping[str, Any], **settings: Any) -> S:
        """What the named method solves on top of the base. solver: its part of the key."""
        inputs = {**base.inputs, "solver": {"name": method, **solver}}
        return cls(
            base.trained, method, inputs, base.sites, base.per_site, base.count, base.damping,
            base=base, run=base.trained.run("loss", base.sites), **settings,
        )  # fmt: skip

    @abstractmethod
    def inverse_product(self, gradients: Mapping[str, Float[Array, "q o i"]]) -> dict[str, Float[Array, "q o i"]]:
        """(G + damping)^-1 applied to gradients of all sites together."""

    def inverse_gradients(
        self, inputs: Mapping[str, Float[Array, "b _s _i"]], grads: Mapping[str, Float[Array, "b _s _o"]]
    ) -> dict[str, Float[Array, "b _o _i"]]:
        """`inverse_product` of every example's gradient."""
        return self.inverse_product({name: kernels.gradients(a, grads[name]) for name, a in inputs.items()})

    def system(self, x: Vectors, rows: np.ndarray | None = None) -> dict[str, Tensor]:
        """(G + damping) x, G over all examples or these rows of them."""
        curved = GaussNewton(self.run).product(x, rows)
        return {name: curved[name] + self.damping_at(name) * value for name, value in x.items()}

    def damping_at(self, site: str) -> float:
        return self.base.damping.at(site, self.base.per_site[site].eigenvalues)

    def in_torch(self, gradients: Mapping[str, jax.Array]) -> dict[str, Tensor]:
        """Gradients beside the model, in its type."""
        trained = self.run.trained
        return {name: to_torch(value).to(trained.device, trained.dtype) for name, value in gradients.items()}

    def inverse(self, site: str) -> np.ndarray:
        """There is no elementwise inverse of a matrix that is only known by its products."""
        raise UsageError(
            f"{self.method} has no closed form at {site}, which self-influence needs.",
            f"Use {self.base.method} for self-influence, or score the training examples as queries.",
        )

    def with_damping(self: S, value: float | Damping, rule: Rule = "relative") -> S:
        base = self.base.with_damping(value, rule)
        return replace(self, base=base, damping=base.damping)

    def check_sites(self, gradients: Mapping[str, Any]) -> None:
        """Raise DataError if a site is missing: the exact matrix couples them."""
        if set(gradients) != set(self.sites.names):
            raise DataError(
                f"{self.method} solves for all {len(self.sites)} sites together; {len(gradients)} were given.",
                "Give gradients at every site of the factors, or fit with these sites only.",
            )

    def __repr__(self) -> str:
        return f"Solved({self.method}, {len(self.sites)} sites, {self.count} examples, on {self.base!r})"


@dataclass(frozen=True, kw_only=True, repr=False)
class Iterative(Solved):
    """Solved in torch, from the right-hand sides to the solution."""

    @abstractmethod
    def solve(self, b: dict[str, Tensor]) -> Solution:
        """(G + damping) x = b, for vectors site -> [q o i]."""

    def inverse_product(self, gradients: Mapping[str, Float[Array, "q o i"]]) -> dict[str, Float[Array, "q o i"]]:
        self.check_sites(gradients)
        found = self.solve(self.in_torch(gradients))
        return {name: in_jax(value, gradients[name]) for name, value in found.x.items()}

    def preconditioner(self, like: Vectors) -> Apply:
        """The base's (approximate) inverse, on the device and in the type of these vectors."""
        return inverse_in_torch(self.base, like)


def inverse_in_torch(factors: Curvature, like: Vectors) -> Apply:
    """`factors.inverse_product` as a function of torch vectors, its bases moved beside `like` once."""
    scales = {name: torch.as_tensor(factors.inverse(name)).to(value) for name, value in like.items()}
    bases = {}
    for name, value in like.items():
        qa, qs = factors.per_site[name].qa, factors.per_site[name].qs
        if qa is not None and qs is not None:
            bases[name] = tuple(torch.as_tensor(np.asarray(q)).to(value) for q in (qa, qs))

    def apply(x: Vectors) -> dict[str, Tensor]:
        found = {}
        for name, value in x.items():
            if name not in bases:
                found[name] = value * scales[name]
                continue
            qa, qs = bases[name]
            found[name] = qs @ ((qs.T @ value @ qa) * scales[name]) @ qa.T
        return found

    return apply


def in_jax(value: Tensor, like: jax.Array) -> jax.Array:
    return to_jax(value, copy=True).astype(like.dtype)
