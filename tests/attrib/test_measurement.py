"""An activation as a measurement: its gradient against a central difference, and the scores that it gives."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from tests import cases
from whence.attrib import EKFAC, ActivationMeasurement, Direction
from whence.cache import DataError, TrainedModel
from whence.cache.model.capture import capture


def test_its_gradient_is_that_of_the_mean_activation() -> None:
    """Directional derivative of the mean projection over real positions, against a central difference."""
    case = cases.build("attention")
    vector = np.random.default_rng(1).normal(size=8)
    who = ActivationMeasurement(case.task, at="rms", readout=Direction(vector, np.full(8, 0.1)))
    sites = cases.Case("", case.model, case.examples, case.task, {"pattern": ["qkv", "out", "up"]}).sites
    batch = case.examples.batch([0, 1, 2])
    seen = capture(case.model, sites, batch, who.measurement)
    gradients = {s.name: torch.einsum("bso,bsi->oi", seen.grads[s.name], seen.inputs[s.name]) for s in sites}
    assert not gradients["up"].any()  # behind the hook point
    for name in ("qkv", "out"):
        weight = case.model.get_submodule(name).weight
        step = torch.randn_like(weight) * 1e-5
        values = []
        for sign in (1, -1):
            with torch.no_grad():
                weight += sign * step
                values.append(float(who.measurement(case.model, batch).sum()))
                weight -= sign * step
        assert (values[0] - values[1]) / 2 == pytest.approx(float((gradients[name][:, :8] * step).sum()), rel=1e-5)
    for row in range(3):  # padding counts nothing
        alone = who.measurement(case.model, case.examples.batch([row]))
        torch.testing.assert_close(alone[0], who.measurement(case.model, batch)[row])


def test_scores_are_in_the_activation_s_units() -> None:
    case, sites = cases.build("attention"), ["qkv", "up", "down", "head"]
    trained = TrainedModel(case.model.float(), cases.sequences(7, seed=3), case.task, sites=sites, quiet=True)
    factors, queries = EKFAC().fit(trained), cases.sequences(2, seed=9)
    first, second = (
        ActivationMeasurement(case.task, at="rms", readout=Direction(np.eye(8, dtype=np.float32)[n])) for n in (0, 1)
    )
    found = factors.measuring(first).score(queries)
    assert found.attrs["units"] == "activation"
    assert factors.measuring(first).top(queries, 2).attrs["units"] == "activation"
    assert np.isfinite(found.values).all()
    assert found.values.any()
    assert first.settings != second.settings
    both = replace(first, readout=dict(zip(queries.ids.tolist(), (first.readout, second.readout))))
    together = factors.measuring(both).score(queries).values
    alone = factors.measuring(second).score(queries).values
    np.testing.assert_allclose(together, np.stack([found.values[0], alone[1]]), rtol=1e-5, atol=1e-7)
    with pytest.raises(DataError, match="has no readout"):
        replace(both, readout={}).measurement(trained.model, queries.batch([0]))
