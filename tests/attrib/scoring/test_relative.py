"""Relative influence against norms of formed gradients."""

import jax.numpy as jnp
import numpy as np
import pytest

from tests import reference
from whence.cache import DataError


def test_relative_divides_by_the_norm_of_the_step(fitted) -> None:
    trained, factors = fitted.trained, fitted.factors
    own = reference.site_gradients(trained.model, factors.sites, trained.train, trained.task.loss)
    step = factors.inverse_product({n: jnp.asarray(g, jnp.float32) for n, g in own.items()})
    loss = np.sqrt(sum((np.asarray(step[n]) * own[n]).sum((1, 2)) for n in own))
    parameters = np.sqrt(sum(np.square(np.asarray(step[n])).sum((1, 2)) for n in own))
    scores = factors.score(fitted.queries)
    for per, norm in (("loss", loss), ("parameters", parameters)):
        found = factors.relative(scores, per=per)
        np.testing.assert_allclose(found.values, fitted.exact / norm, rtol=1e-3, atol=1e-7)
        assert found.attrs["relative"] == per
    with pytest.raises(DataError, match="not of these"):
        factors.relative(scores, trained.train.select(range(4)))
