from dataclasses import replace

import numpy as np
import pytest

from tests.decomp.test_builders import stream
from whence.cache.errors import DataError, ModelError
from whence.decomp import ITDA, Dictionary, Provenance, diff, layers, overlap, similarity
from whence.decomp.activations import Origin
from whence.decomp.provenance import Text


def made_of(places: list[tuple[int, int]], seeds: int = 0, width: int = 8, seed: int = 0) -> Dictionary:
    """A dictionary with atoms from these places."""
    atoms = np.random.default_rng(seed).standard_normal((len(places), width)).astype(np.float32)
    atoms /= np.linalg.norm(atoms, axis=1, keepdims=True)
    document, position = np.array(places).T
    provenance = Provenance.of(document, position, position, np.ones(len(places)), seed=np.arange(len(places)) < seeds)
    return Dictionary(atoms, provenance, k=2, settings={"rows_read": 100})


# -- activations


def test_measures_see_through_what_they_should():
    """A rotation changes nothing that CKA, SVCCA, relative, neighbours and regression look at."""
    x = stream(t=800).whole().x
    rotation = np.linalg.qr(np.random.default_rng(0).standard_normal((24, 24)))[0]
    for name, measure in similarity.MEASURES.items():
        if name != "SVCCA as published":
            assert measure(x, x) == pytest.approx(1, abs=1e-6), name
            assert measure(x, x @ rotation) == pytest.approx(1, abs=1e-4), name
        other = stream(seed=5, t=800).whole().x
        assert measure(x, other) < 0.8, name


def test_cka_is_its_gram_form():
    x, y = np.random.default_rng(0).standard_normal((2, 50, 6))
    centre = np.eye(50) - 1 / 50
    k, m = centre @ x @ x.T @ centre, centre @ y @ y.T @ centre
    expected = np.sum(k * m) / (np.linalg.norm(k) * np.linalg.norm(m))
    assert similarity.cka(x, y) == pytest.approx(expected)


def test_svcca_is_scikit_learns_cca():
    from sklearn.cross_decomposition import CCA

    rng = np.random.default_rng(1)
    x = rng.standard_normal((300, 5))
    y = x[:, :3] @ rng.standard_normal((3, 4)) + 0.5 * rng.standard_normal((300, 4))
    u, v = CCA(4, max_iter=5000, tol=1e-10).fit_transform(x, y)
    expected = np.mean([np.corrcoef(u[:, i], v[:, i])[0, 1] for i in range(4)])
    assert similarity.svcca(x, y) == pytest.approx(expected, abs=1e-3)
    assert similarity.svcca_as_published(x, y) != pytest.approx(expected, abs=1e-2)


def test_regression_predicts_held_out_rows():
    rng = np.random.default_rng(2)
    x = rng.standard_normal((400, 6))
    y = x @ rng.standard_normal((6, 3)) + rng.standard_normal((400, 3)) * 1e-3
    assert similarity.regression(x, y) > 0.999
    assert similarity.regression(y, rng.standard_normal((400, 6))) < 0.1


def test_intervals_of_a_measure_hold_it():
    acts = stream(t=600).whole()
    noisy = acts.x + 2 * np.random.default_rng(0).standard_normal(acts.x.shape)
    found = similarity.bootstrap(similarity.cka, acts.x, noisy, acts.document, draws=30)
    assert found.low < found.value < found.high
    assert found.high - found.low < 0.3


# -- places


def test_jaccard_by_hand():
    one = made_of([(0, 0), (0, 1), (1, 0), (1, 1)], seeds=2)
    other = made_of([(0, 0), (0, 1), (1, 1), (2, 0), (2, 1)], seeds=2)
    found = overlap.compare(one, other).value.to_series()
    assert found["jaccard"] == pytest.approx(3 / 6)
    assert found["jaccard_without_seeds"] == pytest.approx(1 / 4)
    assert found["size_only"] == pytest.approx(4 / 5)
    chance = (4 * 5 / 100) / (9 - 4 * 5 / 100)
    assert found["by_chance"] == pytest.approx(chance)
    assert found["corrected"] == pytest.approx((0.5 - chance) / (1 - chance))


def test_random_sets_are_at_chance():
    rng = np.random.default_rng(0)
    values = []
    for _ in range(200):
        a, b = (set(zip(np.zeros(n, int).tolist(), rng.permutation(500)[:n].tolist())) for n in (60, 90))
        values.append(overlap.corrected(a, b, 500))
    assert abs(np.mean(values)) < 0.01


def test_the_union_of_layers_is_a_model():
    a = [made_of([(0, 0), (0, 1)]), made_of([(0, 1), (0, 2)])]
    b = [made_of([(0, 0), (0, 1)]), made_of([(0, 2), (0, 3)])]
    assert float(overlap.compare(a, b).value.sel(metric="jaccard")) == pytest.approx(3 / 4)
    found = layers.model_similarity({"a": a, "b": b})
    assert found.jaccard.sel(model="a", other="b") == pytest.approx(3 / 4)
    with pytest.raises(DataError, match="No atom with a place"):
        overlap.places(Dictionary(a[0].atoms, Provenance.unknown(2), k=1))


# -- layers


def models(count: int = 3, depth: int = 3) -> list[list[layers.Layer]]:
    """Layers that differ in what they hold; models that are rotations of one another with a little noise."""
    found = []
    for model in range(count):
        rng = np.random.default_rng(model)
        rotation = np.linalg.qr(rng.standard_normal((24, 24)))[0]
        one = []
        for layer in range(depth):
            acts = stream(seed=layer, t=600)
            x = acts.whole().x @ rotation + 0.05 * rng.standard_normal((600, 24))
            acts = replace(acts, x=x.astype(np.float32))
            one.append(layers.Layer(acts, ITDA(k=3, unexplained=0.3, seeds=10, batch=64).build(acts)))
        found.append(one)
    return found


@pytest.fixture(scope="module")
def three() -> list[list[layers.Layer]]:
    return models()


def test_layers_of_rotated_models_are_matched(three):
    found = layers.match_layers(three)
    for name in ("linear CKA", "SVCCA", "relative representations", "mutual neighbours", "ITDA Jaccard"):
        assert found.accuracy.sel(measure=name) == 1, name
        assert found.self_pairs.sel(measure=name) == 1, name
    assert found.attrs["trials"] == 3 * 2 * 3
    assert found.attrs["chance"] == pytest.approx(1 / 3)
    assert "dictionary size alone" in found.measure


def test_self_pairs_are_not_among_the_trials():
    """A measure that only knows a model's own layers is right on self pairs and at chance elsewhere."""
    values = np.zeros((3, 3, 4, 4))
    for m in range(3):
        values[m, m] = np.eye(4)
    import xarray as xr

    found = layers.matching(xr.DataArray(values, dims=("model", "other", "layer", "other_layer")))
    assert found.self_pairs == 1
    assert found.accuracy.value == pytest.approx(1 / 4)  # ties fall to layer 0
    assert found.trials == 24


def test_models_of_different_depth_are_refused(three):
    with pytest.raises(DataError, match="same number"):
        layers.match_layers([three[0], three[1][:2]])


def test_convergence_ends_at_itself(three):
    by_step = {10 * n: {"l0": three[n][0].dictionary} for n in range(3)}
    found = layers.convergence(by_step)
    assert found.step.values.tolist() == [0, 10, 20]
    assert float(found.jaccard.sel(step=20, layer="l0")) == 1
    assert float(found.jaccard_without_seeds.sel(step=0, layer="l0")) < 1
    with pytest.raises(DataError, match="two checkpoints"):
        layers.convergence({1: {"l0": three[0][0].dictionary}})


# -- before and after


def test_differences_have_a_status_and_their_text():
    before = made_of([(0, 0), (0, 1), (1, 0)])
    before = replace(before, text=tuple(Text("a", str(n), "b") for n in range(3)))
    after = made_of([(0, 0), (0, 1), (2, 5)])
    after = replace(after, atoms=np.concatenate([before.atoms[:1], -before.atoms[1:2], before.atoms[2:]]))
    found = diff.difference(before, after)
    assert found.status.values.tolist() == ["kept", "moved", "removed", "added"]
    assert found.token.values.tolist() == ["0", "1", "2", ""]
    assert found.cosine.values[:2].tolist() == pytest.approx([1, -1])
    assert found.nearest.values[2] == pytest.approx(1)  # the direction is there, from another place
    counts = diff.summary(found, {"forget": [1], "retain": [0, 2]})
    assert counts["count"].sel(group="forget", status="removed") == 1
    assert counts["share"].sel(group="retain", status="moved") == pytest.approx(0.5)


def test_different_hook_points_have_no_difference():
    one, other = made_of([(0, 0)]), made_of([(0, 0)])
    with pytest.raises(ModelError, match="same hook point"):
        diff.difference(replace(one, origin=Origin("a")), replace(other, origin=Origin("b")))
    with pytest.raises(DataError, match="Widths"):
        diff.difference(one, made_of([(0, 0)], width=9))
