"""Inverse products of curvature, from formed gradients and from positions."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch

from tests import cases
from whence.attrib import Damping, Factors, kernels
from whence.attrib.curvature import SiteFactors
from whence.cache import Classification, TrainedModel


@pytest.mark.parametrize("positions", [2, 60])
def test_inverse_of_gradients_is_the_same_from_positions(positions: int) -> None:
    """Whichever is rotated, and without a basis too."""
    rng = np.random.default_rng(0)
    o, i = 12, 15
    trained = TrainedModel(torch.nn.Linear(i, o, bias=False), cases.vectors(width=i), Classification(), quiet=True)
    site = trained.find()
    qa, qs = (np.linalg.qr(rng.normal(size=(w, w)))[0] for w in (i, o))
    a, g = (jnp.asarray(rng.normal(size=(3, positions, w)), jnp.float32) for w in (i, o))
    for bases in ((qa, qs), (None, None)):
        own = SiteFactors(*bases, rng.random((o, i)))
        factors = Factors(trained, "ekfac", {}, site, {site[0].name: own}, 1, Damping())
        found = factors.inverse_gradients({site[0].name: a}, {site[0].name: g})[site[0].name]
        wanted = factors.inverse_product({site[0].name: kernels.gradients(a, g)})[site[0].name]
        np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-4 * np.abs(wanted).max())
