import jax.numpy as jnp
import numpy as np
import pytest
import torch

from tests import cases
from tests.decomp.test_builders import stream
from whence.cache.display.interval import Interval
from whence.cache.errors import DataError, ModelError, UsageError
from whence.decomp import Activations, Dictionary, Origin, Provenance, Random, splice
from whence.decomp.curves import sparsity_curve, training_curve
from whence.decomp.evaluate import evaluate, loss_recovered, losses
from whence.decomp.observe import observe
from whence.decomp.probing import probe
from whence.decomp.sae import SAE, SparseAutoencoder, _reached_by
from whence.decomp.splice import spliced


@pytest.fixture(scope="module")
def case() -> cases.Case:
    return cases.build("attention")


@pytest.fixture(scope="module")
def whole(case) -> Dictionary:
    """As many atoms as the width: matching pursuit with many steps explains everything."""
    acts = observe(case.model, case.examples, ["down"])["down"]
    d = acts.width
    eye = Dictionary(np.eye(d, dtype=np.float32), Provenance.unknown(d), k=d, origin=acts.origin)
    assert np.asarray(eye.encode(acts.whole().x).unexplained).max() < 1e-6
    return eye


def test_observed_activations_are_the_models_own(case):
    acts = observe(case.model, case.examples, ["up", "down"])
    whole = acts["up"].whole()
    seen = []
    handle = case.model.up.register_forward_hook(lambda m, a, out: seen.append(out))
    for row in range(len(case.examples)):
        case.task.logits(case.model, case.examples.batch([row]))
    handle.remove()
    np.testing.assert_allclose(whole.x, np.concatenate([s[0].detach() for s in seen]), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(whole.token, np.concatenate(case.examples.columns["input_ids"]))
    np.testing.assert_array_equal(whole.document, np.repeat(case.examples.ids, case.examples.lengths))
    assert acts["down"].origin.site == "down"
    assert acts["down"].origin.model == acts["up"].origin.model != ""


# -- on activations


def test_the_figures_are_their_definitions():
    acts = stream()
    built = Random(50, k=3).build(acts)
    whole = acts.whole()
    x = whole.x
    found = evaluate(built, acts)
    made = built.reconstruct(x)
    fvu = np.sum((x - made) ** 2) / np.sum((x - x.mean(0)) ** 2)
    cosine = 1 - np.sum(x * made, 1) / np.linalg.norm(x, axis=1) / np.linalg.norm(made, axis=1)
    code = built.encode(x)
    used = [set(i[v != 0]) for i, v in zip(np.asarray(code.indices), np.asarray(code.values))]
    value = found.value.to_series()
    assert value["fvu"] == pytest.approx(fvu, rel=1e-4)
    assert value["cosine_error"] == pytest.approx(cosine.mean(), rel=1e-4)
    assert value["l0"] == pytest.approx(np.mean([len(u) for u in used]))
    assert value["dead"] == pytest.approx(1 - len(set().union(*used)) / 50)
    assert (found.low[:3] < found.value[:3]).all()
    assert (found.value[:3] < found.high[:3]).all()


def test_bad_rows_are_counted_and_others_models_refused():
    acts = stream(t=300)
    x = acts.whole().x.copy()
    x[3], x[7], x[8] = np.nan, 0, 0
    built = Random(50, k=3).build(acts)
    found = evaluate(built, x)
    assert (found.attrs["rows"], found.attrs["rows_not_finite"], found.attrs["rows_zero"]) == (297, 1, 2)
    named = Dictionary(built.atoms, built.provenance, 3, Origin("here", "m1"))
    with pytest.raises(ModelError, match=r"m1.*m2"):
        evaluate(named, Activations.of(x, origin=Origin("here", "m2")))
    with pytest.raises(DataError, match="No usable"):
        evaluate(built, np.full((4, 24), np.nan, np.float32))


def test_intervals_cover_the_mean():
    """Of 200 intervals about 95 % hold the true value; documents, not rows, are the units."""
    generator = np.random.default_rng(0)
    inside = 0
    for n in range(200):
        effect = generator.standard_normal(40)
        estimate = Interval.bootstrap(effect, rng=n)
        inside += estimate.low <= 0 <= estimate.high
    assert 0.88 <= inside / 200 <= 0.99


# -- in the model


def test_splicing_the_activations_themselves_changes_nothing(case, whole):
    before = losses(case.model, case.task, case.examples, "down", None, ())
    same = losses(case.model, case.task, case.examples, "down", splice.through(whole), ())
    np.testing.assert_allclose(before, same, rtol=1e-4)
    found = loss_recovered(whole, case.model, case.task, case.examples, "down", mean=np.zeros(whole.width))
    assert found.value.sel(metric="recovered_zero") == pytest.approx(1, abs=1e-2)
    np.testing.assert_allclose(found.value.sel(metric="loss_mean"), found.value.sel(metric="loss_zero"))


def test_splicing_zeros_recovers_nothing(case):
    class Nothing:
        origin = Origin()

        def reconstruct(self, x, k=None):
            return np.zeros_like(x)

    found = loss_recovered(Nothing(), case.model, case.task, case.examples, "down")
    assert found.value.sel(metric="recovered_zero") == pytest.approx(0, abs=1e-9)


def test_the_model_comes_back_also_after_an_exception(case):
    batch = case.examples.batch([0, 1])
    before = case.task.logits(case.model, batch)
    hooks = len(case.model.down._forward_hooks)

    def fail():
        with spliced(case.model, "down", splice.zeros):
            assert not torch.equal(case.task.logits(case.model, batch), before)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert len(case.model.down._forward_hooks) == hooks
    assert torch.equal(case.task.logits(case.model, batch), before)


def test_skipped_positions_keep_the_models_activation(case):
    seen = []
    with spliced(case.model, "down", splice.zeros, skip=[0]):
        handle = case.model.down.register_forward_hook(lambda m, a, out: seen.append(out))
        case.task.logits(case.model, case.examples.batch([0]))
        handle.remove()
    assert seen[0][0, 0].abs().sum() > 0
    assert seen[0][0, 1:].abs().sum() == 0


def test_splice_errors(case):
    with pytest.raises(ModelError, match="Near names: down"), spliced(case.model, "dwn", splice.zeros):
        pass
    with pytest.raises(ModelError, match="Keep the shape"), spliced(case.model, "down", lambda x: x[:, 1:]):
        case.task.logits(case.model, case.examples.batch([0]))


def test_steering_adds_an_atom_and_ablation_takes_it_out(whole):
    x = torch.randn(2, 3, whole.width, generator=torch.manual_seed(0))
    moved = splice.steered(whole, 2, 5.0, keep_norm=False)(x)
    np.testing.assert_allclose((moved - x)[..., 2], 5.0, atol=1e-5)
    torch.testing.assert_close(splice.steered(whole, 2, 5.0)(x).norm(dim=-1), x.norm(dim=-1))
    without = splice.without_atoms(whole, [1, 3])(x)
    assert without[..., [1, 3]].abs().max() < 1e-5
    torch.testing.assert_close(without[..., [0, 2]], x[..., [0, 2]])


# -- sparse autoencoders


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


def test_curves_fall_with_steps_and_tokens():
    acts = stream(t=1500)
    by_k = sparsity_curve(Random(50, k=3).build(acts), acts, [1, 2, 4])
    assert by_k.k.values.tolist() == [1, 2, 4]
    assert (by_k.value.sel(metric="fvu").diff("k") < 0).all()
    by_time = training_curve(SAE(40, k=3, batch=128, rate=3e-3), acts, acts, at_tokens=[1024, 30_000])
    assert (by_time.value.sel(metric="fvu").diff("mark") < 0).all()
    assert (by_time.tokens.values >= [1024, 30_000]).all()


def test_bad_training_requests():
    with pytest.raises(UsageError, match="no autoencoder"):
        SAE(8, kind="relu")
    with pytest.raises(UsageError, match="of 8 latents"):
        SAE(8, k=9)
    with pytest.raises(UsageError, match="No mark"):
        next(iter(SAE(8, k=2).train(stream(t=60))))
    with pytest.raises(DataError, match="60 activations"):
        SAE(8, k=2).build(stream(t=60), 10)


def test_the_reached_by_lets_so_many_through():
    values = jnp.asarray(np.random.default_rng(0).random((50, 20)).astype(np.float32))
    assert int(jnp.sum(values >= _reached_by(values, 123, None))) == 123
    assert (jnp.sum(values >= _reached_by(values, 7, 1), axis=1) == 7).all()


# -- probing


def test_one_atom_tells_classes_apart_when_one_atom_does():
    rng = np.random.default_rng(0)
    label = rng.integers(0, 2, 400)
    x = 0.3 * rng.standard_normal((400, 8)).astype(np.float32)
    x[:, 5] += 3 * label
    eye = Dictionary(np.eye(8, dtype=np.float32), Provenance.unknown(8), k=3)
    found = probe(eye, x, label, np.arange(400) < 200)
    assert found.attrs["chosen"][0] == 5
    assert found.value.sel(metric="atoms_1") > 0.95
    assert found.value.sel(metric="majority") < 0.6
    with pytest.raises(DataError, match="two classes"):
        probe(eye, x, np.zeros(400), np.arange(400) < 200)
