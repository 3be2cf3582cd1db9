"""Sparse autoencoders: what they learn, and that their codes are their formula."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.decomp.reference import problem
from tests.decomp.test_builders import stream
from whence import decomp
from whence.cache import Store
from whence.cache.errors import DataError, UsageError
from whence.decomp import ITDA, SAE, Activations, SparseAutoencoder, files
from whence.decomp.builders import MPSAE
from whence.decomp.dictionary import PURSUITS
from whence.decomp.evaluate import evaluate
from whence.decomp.kernels.autoencoder import pursuit_loss, reached_by


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


class _Cut(Activations):
    """Activations whose training is interrupted at the fourth scan."""

    def take(self, part):
        calls = vars(self).setdefault("calls", [])
        calls += [1] if isinstance(part, np.ndarray) else []
        if len(calls) == 4:
            raise KeyboardInterrupt
        return super().take(part)


@pytest.mark.parametrize(
    "builder", [SAE(12, k=2, batch=32, tokens=2000), MPSAE(ITDA(size=12, k=2), batch=32, tokens=2000)]
)
def test_an_interrupted_training_resumes(builder, tmp_path):
    acts, file = stream(t=300), tmp_path / "unfinished"
    with pytest.raises(KeyboardInterrupt):
        builder.build(_Cut(**vars(acts)), checkpoint=file, every=2)
    with pytest.raises(UsageError, match="other settings"):
        replace(builder, seed=5).build(acts, checkpoint=file)
    resumed = builder.build(acts, checkpoint=file)
    assert resumed.fingerprint == builder.build(acts).fingerprint
    assert not file.exists()


@pytest.mark.parametrize("pursuit", ["matching", "nonnegative", "refit", "orthogonal"])
def test_the_gradient_through_a_pursuit_is_that_of_its_error(pursuit):
    """By finite differences along a random direction, where no choice changes."""
    x, atoms = (jnp.asarray(part) for part in problem(0, b=40, a=30))
    chosen = PURSUITS[pursuit](3)
    along = jax.random.normal(jax.random.key(0), atoms.shape)
    along = along - jnp.sum(along * atoms, axis=1, keepdims=True) * atoms  # unit rows stay unit rows

    def error(step: float) -> float:
        moved = atoms + step * along
        return float(pursuit_loss(chosen, moved / jnp.linalg.norm(moved, axis=1, keepdims=True), x))

    slope = jnp.sum(jax.grad(lambda a: pursuit_loss(chosen, a, x))(atoms) * along)
    assert float(slope) == pytest.approx((error(2e-4) - error(-2e-4)) / 4e-4, rel=0.03)


def test_training_the_atoms_of_a_dictionary_explains_more_at_the_same_sparsity():
    known, held_out = stream(t=4000).split(0.2)
    start = ITDA(size=80, k=3, unexplained=0.2)
    trained = MPSAE(start, batch=256, tokens=20_000, rate=3e-3).build(known)
    before, after = (evaluate(codec, held_out).value for codec in (start.build(known), trained))
    assert float(after.sel(metric="fvu")) < 0.5 * float(before.sel(metric="fvu"))
    assert float(after.sel(metric="l0")) <= 3
    assert (trained.provenance.position == -1).all()
    with pytest.raises(UsageError, match="not differentiated"):
        MPSAE(ITDA(size=8, k=2, pursuit="gradient"))
