import numpy as np
import pytest
import torch

from tests import cases
from tests.decomp.test_builders import stream
from whence.cache import TrainedModel
from whence.cache.display.interval import Interval
from whence.cache.errors import DataError, ModelError, NumericalError
from whence.decomp import Activations, Dictionary, Provenance, Random, splice
from whence.decomp.activations import Origin
from whence.decomp.codec import Codec
from whence.decomp.evaluate import evaluate, loss_recovered, losses
from whence.decomp.kernels import Code
from whence.decomp.observe import observe
from whence.decomp.probing import probe, probe_documents
from whence.decomp.splice import spliced


@pytest.fixture(scope="module")
def case() -> cases.Case:
    return cases.build("attention")


@pytest.fixture(scope="module")
def trained(case) -> TrainedModel:
    return TrainedModel(case.model, case.examples, case.task, quiet=True)


@pytest.fixture(scope="module")
def whole(trained) -> Dictionary:
    """As many atoms as the width: matching pursuit with many steps explains everything."""
    acts = observe(trained, "down")
    d = acts.width
    eye = Dictionary(np.eye(d, dtype=np.float32), Provenance.unknown(d), k=d, origin=acts.origin)
    assert np.asarray(eye.encode(acts.whole().x).unexplained).max() < 1e-6
    return eye


def test_observed_activations_are_the_models_own(case, trained):
    acts = observe(trained, ["up", "down"])
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


def test_the_error_falls_with_steps():
    acts = stream(t=1500)
    found = evaluate(Random(50, k=3).build(acts), acts, [1, 2, 4])
    assert found.k.values.tolist() == [1, 2, 4]
    assert (found.value.sel(metric="fvu").diff("k") < 0).all()


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


def test_losses_are_those_of_each_example_alone(case, trained):
    """In the order of the examples, whatever batches they ran in."""
    with torch.no_grad():
        alone = [float(case.task.loss(case.model, case.examples.batch([n]))[0]) for n in range(len(case.examples))]
    np.testing.assert_allclose(losses(trained), alone, rtol=1e-5)


def test_splicing_the_activations_themselves_changes_nothing(trained, whole):
    same = losses(trained, at="down", change=splice.through(whole))
    np.testing.assert_allclose(losses(trained), same, rtol=1e-4)
    found = loss_recovered(trained, whole, mean=np.zeros(whole.width))
    assert found.value.sel(metric="recovered_zero") == pytest.approx(1, abs=1e-2)
    np.testing.assert_allclose(found.value.sel(metric="loss_mean"), found.value.sel(metric="loss_zero"))


def test_splicing_zeros_recovers_nothing(trained):
    class Nothing(Codec):
        origin, atoms, fingerprint = Origin(), np.zeros((0, 8), np.float32), "nothing"

        def encode_array(self, x, k=None):
            return Code(x[:, :0], x[:, :0], x[:, 0], x[:, 0])

        def decode_array(self, code):
            return np.zeros((len(code.energy), 8), np.float32) * code.energy[:, None]

    found = loss_recovered(trained, Nothing(), at="down")
    assert found.value.sel(metric="recovered_zero") == pytest.approx(0, abs=1e-9)


def test_another_models_dictionary_is_refused(trained, whole):
    other = trained.at(cases.build("attention").model.__class__())
    with pytest.raises(ModelError, match="was built from model"):
        loss_recovered(other, whole)


def test_an_activation_that_is_not_finite_is_not_encoded(whole):
    with pytest.raises(NumericalError):
        splice.through(whole)(torch.full((1, 2, whole.width), float("nan")))


def test_the_model_comes_back_also_after_an_exception(case, trained):
    batch = case.examples.batch([0, 1])
    before = case.task.logits(case.model, batch)
    hooks = len(case.model.down._forward_hooks)

    def fail():
        with spliced(trained, "down", splice.zeros):
            assert not torch.equal(case.task.logits(case.model, batch), before)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert len(case.model.down._forward_hooks) == hooks
    assert torch.equal(case.task.logits(case.model, batch), before)


def test_skipped_positions_keep_the_models_activation(case, trained):
    seen = []
    with spliced(trained, "down", splice.zeros, skip=[0]):
        handle = case.model.down.register_forward_hook(lambda m, a, out: seen.append(out))
        case.task.logits(case.model, case.examples.batch([0]))
        handle.remove()
    assert seen[0][0, 0].abs().sum() > 0
    assert seen[0][0, 1:].abs().sum() == 0


def test_splice_errors(case, trained):
    with pytest.raises(ModelError, match="Near names: down"), spliced(trained, "dwn", splice.zeros):
        pass
    with pytest.raises(ModelError, match="Keep the shape"), spliced(trained, "down", lambda x: x[:, 1:]):
        case.task.logits(case.model, case.examples.batch([0]))


def test_steering_adds_an_atom_and_ablation_takes_it_out(whole):
    x = torch.randn(2, 3, whole.width, generator=torch.manual_seed(0))
    moved = splice.steered(whole, 2, 5.0, keep_norm=False)(x)
    np.testing.assert_allclose((moved - x)[..., 2], 5.0, atol=1e-5)
    torch.testing.assert_close(splice.steered(whole, 2, 5.0)(x).norm(dim=-1), x.norm(dim=-1))
    without = splice.without_atoms(whole, [1, 3])(x)
    assert without[..., [1, 3]].abs().max() < 1e-5
    torch.testing.assert_close(without[..., [0, 2]], x[..., [0, 2]])


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


def test_documents_of_two_classes_are_probed_by_document():
    acts = stream(t=900)
    x = acts.whole().x.copy()
    label = {n: n % 2 for n in range(30)}
    x[np.array([label[d] for d in acts.document]) == 1] += 3
    marked = Activations.of(x, acts.document, acts.position)
    built = Random(60, k=4).build(marked)
    found = probe_documents(built, marked, label)
    assert found.value.sel(metric="activation") > 0.9
    assert found.attrs["held_out_documents"] == 15
    with pytest.raises(DataError, match="Fewer than two documents"):
        probe_documents(built, marked, {0: 1})
