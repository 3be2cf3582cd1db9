from dataclasses import replace

import numpy as np
import pytest

from whence import decomp
from whence.cache.errors import CorruptEntry, DataError, UsageError
from whence.decomp import ITDA, Activations, Calibrated, KMeans, Partition, Random
from whence.decomp.activations import ActivationBatch
from whence.decomp.builders import growth
from whence.decomp.builders.seeding import seed_rows


def stream(seed: int = 0, t: int = 3000, d: int = 24, scale: float = 1.0) -> Activations:
    """Sums of few of 60 directions, 30 rows a document."""
    rng = np.random.default_rng(seed)
    parts = np.random.default_rng(99).standard_normal((60, d))
    chosen = rng.integers(0, 60, (t, 3))
    x = (np.abs(rng.standard_normal((t, 3)))[:, :, None] * parts[chosen]).sum(1)
    x = scale * (x + 0.1 * rng.standard_normal((t, d)))
    return Activations.of(x.astype(np.float32), np.arange(t) // 30, np.arange(t) % 30, rng.integers(0, 50, t))


@pytest.fixture(scope="module")
def acts():
    return stream()


@pytest.fixture(scope="module")
def built(acts):
    return ITDA(k=4, unexplained=0.2, batch=128).build(acts)


def test_every_activation_read_is_explained_or_an_atom(acts, built):
    """What the construction promises, up to atoms that came later and changed the greedy path."""
    share = np.asarray(built.encode(acts.whole().x).unexplained)
    assert np.mean(share > 0.2) < 0.1
    assert len(built) < len(acts) / 4


def test_atoms_are_activations_of_the_places_they_name(acts, built):
    whole = acts.whole()
    row = {place: n for n, place in enumerate(zip(whole.document, whole.position))}
    x = whole.x[[row[place] for place in built.provenance.places]]
    norm = np.linalg.norm(x, axis=1)
    np.testing.assert_allclose(built.atoms, x / norm[:, None], atol=1e-6)
    np.testing.assert_allclose(built.provenance.norm, norm, rtol=1e-6)
    assert (built.provenance.error[~built.provenance.seed] > 0.2).all()
    assert len(set(built.provenance.places)) == len(built)


def test_the_same_stream_gives_the_same_dictionary_however_it_is_cut(acts, built):
    cut = [ActivationBatch(*(c[i : i + 77] for c in acts.whole())) for i in range(0, len(acts), 77)]
    again = ITDA(k=4, unexplained=0.2, batch=128).build(iter(cut))
    assert again.fingerprint == built.fingerprint


def test_the_threshold_has_no_scale(built):
    scaled = ITDA(k=4, unexplained=0.2, batch=128).build(stream(scale=1000.0))
    assert scaled.provenance.places == built.provenance.places


def test_a_batch_is_deduplicated():
    """One activation sixty times over, scaled, in one batch: one atom."""
    rng = np.random.default_rng(0)
    x = np.concatenate([np.outer(np.linspace(1, 2, 60), rng.standard_normal(8)), rng.standard_normal((20, 8))])
    built = ITDA(k=2, unexplained=0.05, seeding="none").build(x.astype(np.float32))
    assert np.sum(built.provenance.document < 60) == 1


def test_growth_through_capacities_keeps_every_atom(monkeypatch):
    monkeypatch.setattr(growth, "FIRST_CAPACITY", 64)
    acts = Activations.of(np.random.default_rng(0).standard_normal((300, 40)).astype(np.float32))
    built = ITDA(k=2, unexplained=0.01, seeding="none", batch=64).build(acts)
    assert len(built) > 256
    np.testing.assert_allclose(built.atoms @ built.atoms.T, built.basis.gram[: len(built), : len(built)], atol=1e-5)


def test_size_crops_in_order_of_arrival(acts, built):
    small = ITDA(k=4, unexplained=0.2, batch=128, size=50, seeds=24).build(acts)
    assert len(small) == 50
    assert small.provenance.places == built.provenance.places[:50]
    assert small.settings["rows_read"] < len(acts)


def test_capacity_stops_at_the_size():
    """A dictionary near its size is searched at that size, not at the next power of two."""
    grown = growth.empty(4, gram=True)
    assert growth.with_capacity(grown.basis, 1100, most=1536).atoms.shape[0] == 1536
    assert growth.with_capacity(grown.basis, 1600, most=1536).atoms.shape[0] == 2048
    assert growth.with_capacity(grown.basis, 1100).gram.shape == (2048, 2048)


def test_an_interrupted_build_resumes(acts, built, tmp_path):
    class Stop(Exception):
        pass

    def cut_off():
        for n, batch in enumerate(acts.batches(100)):
            if n == 17:
                raise Stop
            yield batch

    builder, file = ITDA(k=4, unexplained=0.2, batch=128), tmp_path / "build.safetensors"
    with pytest.raises(Stop):
        builder.build(cut_off(), checkpoint=file, every=3)
    assert file.exists()
    with pytest.raises(UsageError, match="other settings"):
        replace(builder, k=5).build(acts.batches(100), checkpoint=file)
    resumed = builder.build(acts.batches(100), checkpoint=file)
    assert resumed.fingerprint == built.fingerprint
    assert not file.exists()
    file.write_bytes(b"half a file")
    with pytest.raises(CorruptEntry):
        builder.build(acts.batches(100), checkpoint=file)


def test_seeds_by_name():
    x = np.random.default_rng(0).standard_normal((40, 3)).astype(np.float32)
    x[7] = x[2]
    batch = Activations.of(x).whole()
    assert seed_rows("stream", batch, 9).tolist() == [0, 1, 2, 3, 4, 5, 6, 8, 9]
    lexicographic = seed_rows("lexicographic", batch, 5)
    assert lexicographic[0] == 2  # twice there, so most frequent
    assert (np.diff(x[lexicographic[1:], 0]) >= 0).all()
    with pytest.raises(DataError, match="distinct"):
        seed_rows("stream", batch, 40)


def test_seeds_are_marked(acts, built):
    assert built.provenance.seed.sum() == 24
    assert built.provenance.places[:24] == list(zip(np.zeros(24, int).tolist(), range(24)))
    assert not ITDA(k=4, unexplained=0.2, seeding="none").build(acts).provenance.seed.any()


@pytest.mark.parametrize("threshold", [1.0, 1.5, 0.0, -0.1])
def test_inert_thresholds_are_refused(threshold):
    with pytest.raises(UsageError):
        ITDA(unexplained=threshold)


def test_a_published_threshold_is_converted_or_refused():
    with pytest.raises(UsageError, match="adds nothing"):
        ITDA.published(0.01, 5120)
    cosine = 1 - 0.0004 * 768 / 2
    assert ITDA.published(0.0004, 768).unexplained == pytest.approx(1 - cosine**2)


def test_a_threshold_that_added_nothing_is_reported():
    x = np.random.default_rng(0).standard_normal((200, 1)) * np.ones((1, 4)) + np.eye(4)[np.arange(200) % 4] * 1e-3
    with pytest.raises(UsageError, match="Nothing but its"):
        ITDA(k=2, unexplained=0.5, seeds=3).build(x.astype(np.float32))


def test_bad_rows_are_left_out_and_counted(acts, built):
    whole = acts.whole()
    bad = np.concatenate([whole.x[:10], np.full((3, 24), np.nan), np.zeros((2, 24)), whole.x[10:]])
    columns = [np.concatenate([c[:10], np.full(5, -7), c[10:]]) for c in whole[1:]]
    again = ITDA(k=4, unexplained=0.2, batch=128).build(Activations.of(bad.astype(np.float32), *columns))
    assert again.fingerprint == built.fingerprint
    assert (again.settings["rows_not_finite"], again.settings["rows_zero"]) == (3, 2)
    with pytest.raises(DataError, match="5 not finite"):
        ITDA().build(np.full((5, 4), np.nan, np.float32))


@pytest.mark.parametrize(
    "builder", [Random(40, k=4), KMeans(40, k=4, rounds=3), Partition(cosine=0.8, size=40), ITDA(size=40, k=4)]
)
def test_every_builder_is_deterministic_and_makes_unit_atoms_with_places(builder, acts):
    first, second = builder.build(acts), builder.build(acts)
    assert first.fingerprint == second.fingerprint
    assert 20 <= len(first) <= 40
    assert (first.provenance.document >= 0).all()
    assert first.settings["builder"] == type(builder).__name__
    share = np.asarray(first.encode(acts.whole().x).unexplained)
    assert np.mean(share) < 0.9


def test_random_draws_from_the_whole_stream(acts):
    built = Random(300, seed=1).build(acts.batches(64))
    assert 40 < np.median(built.provenance.document) < 60
    assert Random(300, seed=2).build(acts).fingerprint != built.fingerprint


def test_a_partition_leaves_no_activation_far_from_all_exemplars(acts):
    built = Partition(cosine=0.7).build(acts)
    x = acts.whole().x - built.centre
    near = (x / np.linalg.norm(x, axis=1, keepdims=True)) @ built.atoms.T
    assert near.max(axis=1).min() > 0.7 - 1e-5
    apart = built.atoms @ built.atoms.T - np.eye(len(built))
    assert apart.max() <= 0.7 + 1e-5


def test_centroids_without_snapping_have_no_place(acts):
    built = KMeans(30, k=4, rounds=3, snap=False).build(acts)
    assert len(built) == 30
    assert (built.provenance.document == -1).all()


@pytest.mark.parametrize(("what", "goal"), [("size", 200), ("error", 0.25), ("sparsity", 2.5)])
def test_calibration_reaches_what_is_asked(acts, what, goal):
    pilot = acts.select(np.arange(600))
    found = decomp.calibrate(ITDA(k=4, batch=128), pilot, **{what: goal}, rounds=6)
    assert found.reached == pytest.approx(goal, rel=0.12)
    assert 0 < found.builder.unexplained < 1
    again = dict(found.trials)
    assert again[found.builder.unexplained] == found.reached


def test_a_calibrated_build_has_about_its_size(acts):
    built = Calibrated(ITDA(size=200, k=4, batch=128), rows=1500, rounds=5).build(acts)
    assert 120 < len(built) <= 200
    with pytest.raises(UsageError, match="without a size"):
        Calibrated(ITDA(k=4)).build(acts)


def test_calibration_says_what_it_cannot_reach(acts):
    with pytest.raises(UsageError, match="No threshold reaches error"):
        decomp.calibrate(ITDA(k=1), acts.select(np.arange(200)), error=1e-6)
    with pytest.raises(UsageError, match="one thing"):
        decomp.calibrate(ITDA(), acts, size=3, error=0.1)
