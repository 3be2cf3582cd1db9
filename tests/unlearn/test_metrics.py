"""The metric nobody can fool: floors, extremes, direction, the closed last bin, and its companions (protocol A)."""

import numpy as np
import pytest

from tests.unlearn.reference import energy_of_point, klom_of_point
from whence.cache import DataError, UsageError
from whence.unlearn.audit import attack_by_logistic, membership, u_lira
from whence.unlearn.diverged import DivergedWarning
from whence.unlearn.metrics import KLoM, accuracy, bins_for, checked, noise_floor, warn_if_hidden
from whence.unlearn.two_sample import energy_distance, two_sample_test

SEEDS = range(5)


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(
    ("models", "bins", "floor"), [(200, 20, 0.27), (100, 20, 0.68), (64, 20, 1.29), (64, 10, 0.62), (32, 10, 1.65)]
)
def test_the_noise_floor_is_where_it_was_measured(seed, models, bins, floor):
    assert noise_floor(models, bins, seed=seed) == pytest.approx(floor, rel=0.25)


@pytest.mark.parametrize("seed", SEEDS)
def test_it_rises_with_the_shift(seed):
    q, p = normal(seed, 2, 100, 300)
    none, one, three = (KLoM(bins=20)(p + s, q).mean() for s in (0, 1, 3))
    assert none < one < three


@pytest.mark.parametrize("direction", ["unlearned||oracle", "oracle||unlearned"])
def test_disjoint_supports_score_the_most_there_is(direction):
    zero, one = np.zeros((50, 3), np.float32), np.ones((50, 3), np.float32)
    np.testing.assert_allclose(KLoM(direction, bins=20)(zero, one), np.log(1e5), atol=1e-3)


def test_directions_differ_and_swap():
    p, q = normal(0, 64, 5), 2 * normal(1, 64, 5)
    there, back = KLoM("unlearned||oracle", 10), KLoM("oracle||unlearned", 10)
    assert not np.allclose(there(p, q), back(p, q), rtol=0.1)
    np.testing.assert_allclose(there(p, q), back(q, p))


def test_the_largest_sample_counts():
    p = np.zeros((10, 1), np.float32)
    q = np.zeros((10, 1), np.float32)
    p[:5], q[:5] = 1.0, 1.0
    np.testing.assert_allclose(KLoM(bins=4)(p, q), 0.0, atol=1e-4)
    q[:5] = 0.0  # all mass of p's maximum is now where q has none
    np.testing.assert_allclose(KLoM(bins=4)(p, q), 0.5 * np.log(0.5e5) + 0.5 * np.log(0.5), rtol=1e-3)


@pytest.mark.parametrize("bins", [5, 19, 20])
def test_it_is_the_plain_loop(bins):
    p, q = 3 * normal(0, 40, 6), 3 * normal(1, 50, 6) + 1
    p[0, 0] = 1e6
    slow = [klom_of_point(p[:, i], q[:, i], bins) for i in range(6)]
    np.testing.assert_allclose(KLoM(bins=bins)(p, q), slow, rtol=1e-4)


def test_the_original_auditor_clips_one_sample_only():
    p, q = 30 * normal(0, 30, 1), 30 * normal(1, 30, 1) + 40
    q[0] = 1000.0  # unclipped, it stretches the bins over everything else
    assert KLoM(bins=19, clip_oracles=False)(p, q)[0] < 0.5 * KLoM(bins=19)(p, q)[0]


def test_the_interval_covers_repetitions():
    values = [KLoM(bins=10).summary(*normal(s, 2, 64, 200)).p95 for s in range(20)]
    summary = KLoM(bins=10).summary(*normal(99, 2, 64, 200), resamples=30)
    assert summary.interval.low <= np.median(values) <= summary.interval.high
    assert summary.interval.low < summary.p95 < summary.interval.high


def test_bins_and_advice_follow_the_number_of_models():
    assert [bins_for(n) for n in (8, 32, 64, 100, 500)] == [3, 6, 12, 20, 20]
    one, two = KLoM().advise(1.0), KLoM().advise(2.0)
    assert one.models > two.models
    assert one.effect >= 2 * one.floor
    with pytest.raises(UsageError, match="not seen"):
        KLoM().advise(0.1)
    with pytest.warns(UserWarning, match="within noise"):
        warn_if_hidden(0.6, 0.7, 64)


@pytest.mark.parametrize(
    ("p", "q", "words"),
    [
        (normal(0, 20, 4), normal(0, 20, 5), "at 4 points"),
        (normal(0, 7, 4), normal(0, 20, 4), "7 models are too few"),
        (
            normal(0, 20, 4) * np.nan,
            normal(0, 20, 4),
            "Margins of 20 of 20 unlearned models are NaN or infinite: models 0, 1, 2, 3, 4 and 15 more",
        ),
    ],
)
def test_what_cannot_be_compared_is_named(p, q, words):
    with pytest.raises(DataError, match=words):
        KLoM()(p, q)
    with pytest.raises(UsageError, match="direction"):
        KLoM("backwards")


def test_energy_distance_is_all_pairs():
    p, q = normal(0, 12, 4), normal(1, 9, 4) + 0.5
    slow = [energy_of_point(p[:, i], q[:, i]) for i in range(4)]
    np.testing.assert_allclose(energy_distance(p, q), slow, rtol=1e-5)
    assert abs(energy_distance(*normal(2, 2, 60, 400)).mean()) < 0.01


def test_two_samples_are_told_apart_only_when_they_differ():
    p, q = normal(0, 2, 40, 200)
    same, other = two_sample_test(p, q), two_sample_test(p, q + 0.3)
    assert same.p_value > 0.05
    assert other.p_value <= 0.02
    assert other.accuracy > 0.9


@pytest.mark.parametrize("seed", SEEDS)
def test_u_lira_is_half_for_oracles_and_more_for_traces(seed):
    oracle, other = normal(seed, 2, 40, 200)
    assert abs(u_lira(other, oracle).accuracy - 0.5) < 0.05
    assert u_lira(other + 2, oracle).accuracy > 0.75
    with pytest.raises(DataError, match="too few to compare"):
        u_lira(other[:3], oracle)


def test_u_lira_takes_the_margins_of_a_diverged_model():
    one, other = np.random.default_rng(0).normal(size=(2, 12, 3)).astype(np.float32)
    one[0] = 1e30
    assert 0 <= u_lira(one, other).accuracy <= 1


def test_membership_is_chance_without_memory():
    generator = np.random.default_rng(0)
    unseen, y = generator.normal(size=(4, 200, 3)), generator.integers(0, 3, 200)
    fresh = membership(generator.normal(size=(4, 200, 3)), unseen, y, y)
    assert abs(fresh.auc - 0.5) < 0.06
    known = generator.normal(size=(4, 200, 3)) + 4 * np.eye(3)[y]
    assert membership(known, unseen, y, y).each["loss"] > 0.9
    assert attack_by_logistic(np.zeros(50) + generator.normal(size=50) * 0.1, np.ones(50)) > 0.9


@pytest.mark.parametrize("compare", [KLoM(bins=4), KLoM(bins=4).summary, energy_distance, two_sample_test, u_lira])
def test_what_no_distance_can_compare_is_refused(compare):
    one, other = normal(0, 2, 10, 3)
    compare(one, other[:9])  # ensembles of unequal size
    broken = one.copy()
    broken[2, 1] = np.inf
    for first, second, message in (
        (broken, other, "of 1 of 10 unlearned models are NaN or infinite: model 2"),
        (other, broken, "of 1 of 10 oracle models are NaN or infinite: model 2"),
        (one[:1], other, "1 models are too few"),
        (one[:, :0], other[:, :0], r"not \[models, points\]"),
    ):
        with pytest.raises(DataError, match=message):
            compare(first, second)


@pytest.mark.parametrize("models", [8, 24, 100])
def test_a_diverged_model_makes_klom_small_and_is_named(models):
    unlearned, oracles = 2.0 + normal(0, models, 60), normal(1, models, 60)
    sound = KLoM().summary(unlearned, oracles)
    unlearned[5] -= 1000.0
    with pytest.warns(DivergedWarning, match="unlearned: model 5"):
        found = KLoM().summary(unlearned, oracles)
    assert found.p95 < sound.p95
    assert (sound.doubt, found.diverged) == ("", 1)
    assert "models that diverged: 1" in found.doubt


def test_margins_beyond_the_clipping_make_klom_zero_and_are_doubted():
    one, other = 200.0 + normal(0, 30, 20), 900.0 + normal(1, 30, 20)
    with pytest.warns(DivergedWarning, match="at 100% of the points one bin has nearly all margins"):
        found = KLoM().summary(one, other)
    assert found.p95 < 1e-3
    assert found.hidden == 1.0


@pytest.mark.parametrize("models", [8, 16, 40])
@pytest.mark.parametrize("kind", ["normal", "exponential", "lognormal", "equal"])
def test_sound_ensembles_are_not_doubted(kind, models):
    generator = np.random.default_rng(0)
    if kind == "equal":
        one = other = np.ones((models, 50))
    else:
        one, other = getattr(generator, kind)(size=(2, models, 500))
    assert KLoM().summary(one, other).doubt == ""
    assert KLoM().summary(one + 30.0, other).doubt == ""  # far apart, as a no-op may be


def test_other_shapes_and_points_cannot_be_compared():
    one, other = normal(0, 2, 10, 3)
    with pytest.raises(DataError, match="Outputs at 3 points"):
        checked(one, other[:, :2], 2)
    with pytest.raises(DataError, match=r"not \[models, points\]"):
        checked(one[0], other[0], 2)


@pytest.mark.parametrize("y", [[0, 1, 3], [0, -1, 2], [0.0, 1.0, 2.0], [0, 1]])
def test_labels_that_are_no_class_are_refused(y):
    logits = np.zeros((2, 3, 3), np.float32)
    with pytest.raises(DataError, match=r"labels|Labels"):
        membership(logits, logits, np.array(y), np.arange(3))
    with pytest.raises(DataError, match=r"labels|Labels"):
        accuracy(logits, np.array(y))
    with pytest.raises(DataError, match="2 models cannot be compared with those of 1"):
        membership(logits, logits[:1], np.arange(3), np.arange(3))
