"""A model on a GPU: everything comes back as numpy, and is what the CPU gives."""

import numpy as np
import pytest
import torch
from torch import nn

from whence.cache import Classification, Examples, TrainedModel
from whence.decomp import ITDA, Coefficient, evaluate, loss_recovered, observe, spliced
from whence.decomp.evaluate import losses
from whence.decomp.interop import adapter
from whence.decomp.splice import steered, through, without_atoms

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")


def on(device: str) -> TrainedModel:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 24), nn.Tanh(), nn.Linear(24, 24), nn.Tanh(), nn.Linear(24, 3))
    rng = np.random.default_rng(0)
    columns = {"x": rng.standard_normal((400, 6)).astype(np.float32), "y": rng.integers(0, 3, 400)}
    return TrainedModel(model, Examples(columns, np.arange(400)), Classification(), device=device, quiet=True)


def test_a_model_on_a_gpu_gives_what_the_cpu_gives() -> None:
    host, device = on("cpu"), on("cuda")
    seen, wanted = observe(device, "2"), observe(host, "2")
    assert isinstance(seen.whole().x, np.ndarray)
    np.testing.assert_allclose(seen.whole().x, wanted.whole().x, atol=1e-4)
    built = ITDA(size=40, k=4, unexplained=0.05).build(seen)
    assert isinstance(built.atoms, np.ndarray)
    assert 0 < float(evaluate(built, seen).value.sel(metric="fvu")) < 1
    for change in (through(built), steered(built, 3, 2.0), without_atoms(built, [1, 2])):
        found = losses(device, at="2", change=change)
        assert isinstance(found, np.ndarray)
        np.testing.assert_allclose(found, losses(host, at="2", change=change), rtol=1e-3, atol=1e-3)
    value = loss_recovered(device, built, mean=seen.whole().x.mean(0)).value
    assert np.isfinite(value).all()
    with spliced(device, "2", through(built)) as model:
        assert model(device.batch(device.train, [0])["x"]).is_cuda


def test_an_atom_is_measured_on_a_gpu() -> None:
    device = on("cuda")
    acts = observe(device, "2")
    built = ITDA(size=40, k=4, unexplained=0.05).build(acts)
    x = torch.tensor(acts.whole().x[:50])
    for atom in range(5):
        there = Coefficient(built, atom)(x.cuda().requires_grad_())
        assert there.is_cuda
        np.testing.assert_allclose(there.detach().cpu(), Coefficient(built, atom)(x.detach()), atol=1e-3)
    made = adapter(built, "m", 0).cuda()
    np.testing.assert_allclose(made(x.cuda()).cpu(), built.reconstruct(x.numpy()), atol=1e-3)
