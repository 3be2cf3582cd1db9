"""Replicas run as their modules do, also those whose model cannot be stacked; the guard keeps the last good state."""

import numpy as np
import torch
from torch import nn

from tests.cache.retrain.test_bank import Convolutional, data
from whence.cache import Classification
from whence.cache.retrain.loop import LastGood, descend, weighted_loss
from whence.cache.retrain.recipe import SGD
from whence.cache.retrain.replicas import Replicas, mode


def test_several_models_with_running_statistics_run_one_after_the_other() -> None:
    torch.manual_seed(0)
    modules, task, batch = [Convolutional(nn.BatchNorm2d) for _ in range(2)], Classification(), data().batch(range(8))
    replicas = Replicas.of(modules)
    assert not replicas.stackable
    extra = {"weights": torch.ones(2, 8)}
    with mode(replicas, training=True):
        values, gradient = replicas.gradient(weighted_loss(task), batch, extra, shared=True)
    for e, module in enumerate(modules):
        loss = task.loss(module.train(), batch).mean()
        loss.backward()
        torch.testing.assert_close(values[e], loss.detach())
        found = torch.cat([p.grad.reshape(-1) for p in module.parameters()])
        torch.testing.assert_close(gradient[e], found)
        torch.testing.assert_close(replicas.buffers["norm.running_mean"][e], module.norm.running_mean)
    logits = replicas.outputs(task, data(), ("logits",))["logits"]
    expected = task.logits(modules[1].eval(), data().batch(range(48))).detach().numpy()
    np.testing.assert_allclose(logits[1], expected, atol=1e-5)


def test_a_replica_that_becomes_non_finite_stays_at_its_last_good_parameters() -> None:
    start = torch.tensor([[1.0], [1.0]])

    def gradient_of(flat: torch.Tensor, at: int) -> tuple[torch.Tensor, torch.Tensor]:
        loss = flat[:, 0].clone()
        if at == 2:
            loss[1] = torch.nan
        return loss, torch.ones_like(flat)

    guard, rate = LastGood(start, torch.ones(2, 1)), torch.full((2, 1), 0.1)
    points = list(descend(start, gradient_of, ((rate, at) for at in range(4)), SGD(0.1, 0.0), guard=guard))
    torch.testing.assert_close(guard.end(points[-1].parameters), torch.tensor([[0.6], [0.9]]))
    assert guard.stopped == [(1, 2, "its loss or gradient is not finite")]
