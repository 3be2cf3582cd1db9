"""An atom's coefficient in torch is the code's own, and its gradient is a difference quotient."""

import numpy as np
import pytest
import torch

from whence.cache import UsageError
from whence.decomp import Coefficient, Dictionary, Provenance
from whence.decomp.kernels import densify


def dictionary(pursuit: str = "matching", centre: bool = False) -> Dictionary:
    rng = np.random.default_rng(0)
    atoms = rng.normal(size=(24, 10)).astype(np.float32)
    atoms /= np.linalg.norm(atoms, axis=1, keepdims=True)
    middle = rng.normal(size=10).astype(np.float32) if centre else None
    return Dictionary(atoms, Provenance.unknown(24), k=6, centre=middle, pursuit=pursuit)


@pytest.mark.parametrize("centre", [False, True])
@pytest.mark.parametrize("pursuit", ["matching", "nonnegative", "orthogonal", "refit"])
def test_it_is_the_code_s_and_its_gradient_is_right(pursuit: str, centre: bool) -> None:
    own = dictionary(pursuit, centre)
    rng = np.random.default_rng(1)
    x = rng.normal(size=(40, 10)).astype(np.float32)
    whole = np.asarray(densify(own.encode(x), len(own)))
    atom = int(np.abs(whole).sum(0).argmax())
    read = Coefficient(own, atom)
    signal = torch.tensor(x, dtype=torch.float64, requires_grad=True)
    found = read(signal)
    np.testing.assert_allclose(found.detach().numpy(), whole[:, atom], atol=2e-5)
    (gradient,) = torch.autograd.grad(found.sum(), signal)
    step = torch.tensor(rng.normal(size=x.shape) * 1e-4)
    with torch.no_grad():
        change = (read(signal + step) - read(signal - step)) / 2
    wanted = (gradient * step).sum(1)
    same = (np.abs(whole[:, atom]) > 1e-3) | (np.abs(change.numpy()) < 1e-3)  # the choice did not flip in between
    torch.testing.assert_close(change[same], wanted[same], rtol=1e-4, atol=1e-9)
    assert same.mean() > 0.9


def test_an_atom_that_is_not_chosen_reads_zero() -> None:
    own = dictionary()
    x = torch.tensor(own.atoms[:1], requires_grad=True)
    found = Coefficient(own, 5, k=1)(x)
    assert found.tolist() == [0.0]
    (gradient,) = torch.autograd.grad(found.sum(), x)
    assert not gradient.any()


def test_what_cannot_be_read_is_refused() -> None:
    with pytest.raises(UsageError, match="no atom 24"):
        Coefficient(dictionary(), 24)
    with pytest.raises(UsageError, match="not linear"):
        Coefficient(dictionary("gradient"), 0)
    assert Coefficient(dictionary("gradient"), 0, pursuit="matching").settings["k"] == 6
