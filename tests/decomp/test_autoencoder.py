"""Sparse autoencoders: what they learn, and that their codes are their formula."""

import jax.numpy as jnp
import numpy as np
import pytest

from tests.decomp.test_builders import stream
from whence import decomp
from whence.cache import Store
from whence.cache.errors import DataError, UsageError
from whence.decomp import SAE, SparseAutoencoder, files
from whence.decomp.evaluate import evaluate
from whence.decomp.kernels.autoencoder import reached_by


@pytest.mark.parametrize("kind", ["topk", "batchtopk"])
def test_an_autoencoder_learns_and_keeps_to_its_sparsity(kind):
    acts = stream(t=4000)
    marks = list(SAE(60, k=4, kind=kind, batch=256, rate=3e-3).train(acts, at_tokens=[2048, 120_000]))
    fvu = [float(evaluate(m.autoencoder, acts).value.sel(metric="fvu")) for m in marks]
    assert fvu[1] < 0.5 * fvu[0]
    found = evaluate(marks[1].autoencoder, acts).value
    assert found.sel(metric="l0") == pytest.approx(4, abs=0.8 if kind == "batchtopk" else 0.3)
    assert marks[1].tokens >= 120_000
    assert marks[1].seconds > marks[0].seconds > 0
    np.testing.assert_allclose(np.linalg.norm(marks[1].autoencoder.W_dec, axis=1), 1, atol=1e-5)


def test_an_autoencoders_code_is_its_formula():
    rng = np.random.default_rng(0)
    encoder, bias, centre = rng.standard_normal((6, 9)), rng.standard_normal(9), rng.standard_normal(6)
    atoms = rng.standard_normal((9, 6))
    parts = [a.astype(np.float32) for a in (encoder, bias, atoms / np.linalg.norm(atoms, axis=1)[:, None], centre)]
    sae = SparseAutoencoder(*parts, k=3)
    x = rng.standard_normal((20, 6)).astype(np.float32)
    z = np.maximum((x - parts[3]) @ parts[0] + parts[1], 0)
    z[z < np.sort(z, axis=1)[:, -3:-2]] = 0
    np.testing.assert_allclose(sae.reconstruct(x), z @ parts[2] + parts[3], atol=1e-4)
    code = sae.encode(x)
    np.testing.assert_allclose(code.residual, np.sum((x - sae.reconstruct(x)) ** 2, 1), rtol=1e-3)


def test_bad_training_requests():
    with pytest.raises(UsageError, match="no autoencoder"):
        SAE(8, kind="relu")
    with pytest.raises(UsageError, match="of 8 latents"):
        SAE(8, k=9)
    with pytest.raises(UsageError, match="No mark"):
        next(iter(SAE(8, k=2).train(stream(t=60))))
    with pytest.raises(DataError, match="60 activations"):
        SAE(8, k=2).build(stream(t=60))


def test_thereached_by_lets_so_many_through():
    values = jnp.asarray(np.random.default_rng(0).random((50, 20)).astype(np.float32))
    assert int(jnp.sum(values >= reached_by(values, 123, None))) == 123
    assert (jnp.sum(values >= reached_by(values, 7, 1), axis=1) == 7).all()


def test_an_autoencoder_is_stored_and_saved_whole(tmp_path):
    acts, store = stream(t=300), Store(tmp_path / "store")
    for kind in ("topk", "batchtopk"):
        builder = SAE(12, k=2, kind=kind, batch=64, tokens=2000)
        built = builder.build(acts, store=store)
        again = builder.build(acts, store=store)
        assert isinstance(again, SparseAutoencoder)
        assert again.fingerprint == built.fingerprint
        assert again.threshold == pytest.approx(built.threshold, rel=1e-6)
        assert decomp.load(decomp.save(built, tmp_path / kind)).fingerprint == built.fingerprint
        each = SparseAutoencoder(built.encoder, built.bias, built.atoms, built.centre, 2, "jumprelu", np.ones(12))
        back = files.from_entry(files.put(each, store))
        np.testing.assert_array_equal(back.threshold, each.threshold)
