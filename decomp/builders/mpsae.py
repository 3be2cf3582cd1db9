"""Matching-pursuit autoencoders (Costa et al. 2025, arXiv 2506.03093): a pursuit encodes, and its atoms are trained.

The encoder is the project's pursuit, so it needs no weights of its own. Training starts from the atoms of another
builder, by default ITDA's, which are good directions already.
"""

from dataclasses import asdict, dataclass, field
from functools import partial
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from whence.cache.errors import UsageError
from whence.cache.retrain.scan import Run

from ..activations import Activations
from ..dictionary import PURSUITS, Dictionary
from ..kernels import Pursuit
from ..kernels.autoencoder import pursuit_loss, unit_rows
from ..provenance import Provenance
from .builder import Builder
from .itda import ITDA
from .training import Plan, TrainedBuilder


@dataclass(frozen=True)
class MPSAE(TrainedBuilder[Dictionary]):
    """Train the atoms of a dictionary through its pursuit. The result is a dictionary whose atoms come from no place.

    Args:
        start: the builder of the first atoms; its size, steps and pursuit are those of the result.
        batch: signals per step.
        rate: Adam's.
        seed: of the order of signals.
        tokens: activations that `build` trains on, shuffled and repeated; by default as many as there are.

    Raises UsageError for a pursuit that is not differentiable here (gradient).

    >>> trained = MPSAE(ITDA(size=16, k=2), batch=8).build(read)
    >>> len(trained), trained.settings["start"]["builder"]
    (16, 'ITDA')
    """

    name: ClassVar[str] = "mpsae"
    resumes: ClassVar[bool] = True

    start: Builder[Dictionary] = field(default_factory=lambda: ITDA(size=2048))
    batch: int = 1024
    rate: float = 1e-3
    seed: int = 0
    tokens: int | None = None

    def __post_init__(self) -> None:
        if getattr(self.start, "pursuit", "") == "gradient":
            raise UsageError("Coefficients of gradient pursuit are not differentiated.", "Choose another pursuit.")

    def plan(self, acts: Activations, usable: Activations, quiet: bool) -> Plan[Dictionary]:
        first = self.start.build(acts, quiet=quiet)
        atoms = jnp.asarray(first.atoms)
        optimiser = optax.adam(self.rate)
        start = Run(atoms, optimiser.init(atoms))
        centre = 0.0 if first.centre is None else first.centre
        gradient = partial(_gradient, PURSUITS[first.pursuit](first.k))
        return Plan(start, optimiser, gradient, unit_rows, partial(self._finished, first, acts), centre)

    def _finished(self, first: Dictionary, acts: Activations, run: Run, steps: int) -> Dictionary:
        settings = {
            "builder": type(self).__name__,
            **asdict(self),
            "start": {name: value for name, value in first.settings.items() if name != "curve"},
            **{name: first.settings[name] for name in ("rows_not_finite", "rows_zero")},
            "rows_read": steps * self.batch,
        }
        return Dictionary(
            np.array(run.parameters), Provenance.unknown(len(first)), first.k, acts.origin, first.centre,
            first.pursuit, settings,
        )  # fmt: skip


def _gradient(pursuit: Pursuit, atoms: Array, carried: None, x: Array) -> tuple[Array, None]:
    return jax.grad(lambda given: pursuit_loss(pursuit, given, x))(atoms), carried
