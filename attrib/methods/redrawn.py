"""EK-FAC whose eigenvalues are measured on labels that its eigenbasis has not seen."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from cache import Store
from cache.build import FrameSource, Replay

from ..factors import SiteFactors
from ..fit import first_frame, fold_sites, moments
from ..kernels import rotation_order
from ..method import FitOptions
from .ekfac import EKFAC, Bases, RotatedSquares

FRESH = 1 << 20  # how far the eigenvalues' seeds lie from the bases'


@dataclass(frozen=True)
class RedrawnEKFAC(EKFAC):
    """As EKFAC, with labels drawn anew for lambda.

    An eigenbasis turns towards the noise of the labels it was fitted on; lambda measured on those same labels is then
    too large along the first directions and too small along the others, as variances along principal components are
    in the sample that chose them. With few examples and a confident model, whose drawn labels are rarely surprising,
    that costs much; with many predicted tokens nothing. The price is that no frame of pass one serves pass two: one
    more forward and backward over the data."""

    @property
    def _basis(self) -> dict[str, Any]:
        return {**super()._basis, "eigenvalues_of": "labels drawn anew"}

    def _per_site(
        self, source: FrameSource, store: Store | None, inputs: Mapping[str, Any], options: FitOptions
    ) -> dict[str, SiteFactors]:
        found, _ = moments(source, store, inputs, options, self.basis_examples)
        frame = first_frame(source)
        bases = Bases.of(found, self.eigen, store, {**inputs, **self._basis})
        order = {s.name: rotation_order(frame.inputs[s.name].shape[1], *s.shape) for s in source.sites}
        add = RotatedSquares(bases, order, str(next(iter(frame.inputs.values())).dtype))
        run = source.run  # type: ignore[attr-defined]
        anew = Replay(replace(run, seed=run.seed + FRESH), 0)
        stage = {**inputs, **self._basis, "stage": "eigenvalues"}
        values, _ = fold_sites(anew, store, stage, add, "eigenvalues", options)
        return {name: SiteFactors(*bases.at(name), value) for name, value in values.items()}
