"""Trajectory matching, linear gradient matching, teachers, difficulty and DD-Ranking's scores."""

import math
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.unlearn.condense.cases import image_pool, vector_pool
from whence.cache import Store, UsageError
from whence.unlearn.condense import MLP, Condensed, ConvNet, Pool, Settings, Training, condense, evaluate, select
from whence.unlearn.condense.condensing import estimate
from whence.unlearn.condense.difficulty import difficulty
from whence.unlearn.condense.methods.linear import _slope
from whence.unlearn.condense.methods.trajectory import AST, MTT
from whence.unlearn.condense.plan import plan
from whence.unlearn.condense.pretrained import logits_of, pretrained, train_on, with_teacher
from whence.unlearn.condense.robust import normalised, robust_scores
from whence.unlearn.condense.selection import facility_rows

NET = MLP((6,))
SHORT = {"experts": 2, "epochs": 3, "latest": 1, "steps": 4, "batch": 16, "rate": 0.1, "student_rate": 0.1}


@pytest.fixture(scope="module")
def pool() -> Pool:
    return vector_pool()


@pytest.fixture(scope="module")
def test(pool) -> Pool:
    other = vector_pool(1)
    return Pool.of((other.scaling.undo(other.x), other.y), pool.classes, pool.scaling)


def test_the_trajectory_loss_is_the_students_distance_over_the_experts_way(pool):
    method = MTT(**{**SHORT, "experts": 1, "latest": 0})
    prepared = method.prepare(pool, NET, 0)
    assert all(a.shape[:2] == (1, 4) for a in prepared.values())
    x, labels = jnp.asarray(pool.x[::10]), jnp.asarray(pool.labels[::10])
    synthetic = {"x": x, **method.begins()}
    loss = method.loss_of_set(NET, synthetic, labels, prepared, (), jax.random.key(0))
    begin, target = ({n: np.asarray(a[0, t]) for n, a in prepared.items()} for t in (0, 2))
    student = begin
    for _ in range(4):  # plain gradient descent on the whole set

        def mean(params):
            return -jnp.mean(jnp.sum(labels * jax.nn.log_softmax(NET(params, x)), 1))

        slope = jax.grad(mean)({n: jnp.asarray(a) for n, a in student.items()})
        student = {n: student[n] - 0.1 * np.asarray(slope[n]) for n in student}
    apart = [sum(np.sum((a[n] - target[n]) ** 2) for n in a) for a in (student, begin)]
    assert float(loss) == pytest.approx(apart[0] / apart[1], rel=1e-4)


def test_a_smooth_expert_moves_less_and_its_student_starts_beside_it(pool):
    plain = MTT(**SHORT, momentum=0.9)
    smooth = AST(**SHORT, clip=(0.1,) * 3, penalty=0.0)
    a, c = (method.prepare(pool, NET, 0) for method in (plain, smooth))

    def way(params):
        return sum(float(jnp.sum(jnp.square(w[:, -1] - w[:, 0]))) for w in params.values())

    assert way(c) < 0.5 * way(a)
    key = jax.random.key(1)
    begin = {n: w[0, 0] for n, w in a.items()}
    moved = smooth.start_of(key, begin)
    weight = np.asarray(begin["head.weight"])
    assert 0 < np.abs(np.asarray(moved["head.weight"]) - weight).max() <= 0.5 * np.abs(weight).max()
    assert smooth.balance(jnp.asarray(0)) < 1 < smooth.balance(jnp.asarray(1))


def test_the_penalty_is_of_the_slope_of_each_examples_outputs(pool):
    params, x, labels = NET.init(jax.random.key(0), (5,), 3), jnp.asarray(pool.x[:4]), jnp.asarray(pool.labels[:4])
    smooth = AST(**SHORT, clip=(0.5,), penalty=0.3)
    slopes = np.stack([jax.grad(lambda one: NET(params, one[None]).sum())(one) for one in x])
    norms = np.linalg.norm(slopes, axis=1)
    plain = MTT.expert_loss(smooth, NET, params, x, labels, jnp.asarray(0))
    found = [float(smooth.expert_loss(NET, params, x, labels, jnp.asarray(epoch))) for epoch in (0, 1)]
    penalty = 0.3 * np.mean((norms - 1) ** 2)
    assert found == pytest.approx([0.5 * float(plain) + penalty, float(plain) + penalty], rel=1e-4)


def test_trajectory_matching_learns_a_set_and_its_rate(pool, test, tmp_path, monkeypatch):
    method = AST(**SHORT)
    store, settings = Store(tmp_path), Settings(method, NET, 1, outer=40, lr=1.0, augment=())
    (made,) = condense(pool, settings, (0,), store, quiet=True)
    assert made.losses[-5:].mean() < made.losses[:5].mean()
    assert made.about["student_rate"] != pytest.approx(0.1, rel=1e-3)
    assert made.about["settings"]["method"]["experts"] == 2
    judge = Training(60)
    random = evaluate([select(pool, "random", 1, n) for n in range(4)], test, NET, judge, 2).mean
    assert evaluate([made], test, NET, judge, 4).mean > random
    monkeypatch.setattr(type(method), "prepare", None)  # experts come from the store
    assert len(condense(pool, replace(settings, outer=41), (0,), store, quiet=True)[0].losses) == 41
    other = replace(settings, method=replace(method, span=1))
    assert settings.to_json() != other.to_json()


def test_experts_must_be_trained_as_long_as_students_follow_them():
    with pytest.raises(UsageError, match="experts have 20"):
        MTT(latest=19)
    with pytest.raises(UsageError, match="below 1"):
        MTT(experts=0)


def test_linear_gradient_matching_is_of_the_classifiers_gradient_and_helps_probes(pool, test):
    frozen = pretrained(NET, pool, Training(10, 0.1))
    params = frozen.init(jax.random.key(0), (5,), 3)
    assert set(params) == {"head.weight", "head.bias"}
    x, labels, weight = jnp.asarray(pool.x[:6]), jnp.asarray(pool.labels[:6]), jnp.full(6, 1 / 6)

    def mean(head):
        return -jnp.sum(weight[:, None] * labels * jax.nn.log_softmax(frozen({**params, "head.weight": head}, x)))

    by_hand = jax.grad(mean)(params["head.weight"])
    found = _slope(frozen, params, x[None], labels, weight)
    np.testing.assert_allclose(found, by_hand, rtol=1e-4, atol=1e-6)
    (made,) = condense(pool, Settings("lgm", frozen, 1, outer=60, lr=1.0, augment=()), (0,), quiet=True)
    assert made.losses[-5:].mean() < 0.5 * made.losses[:5].mean()
    judge = Training(60)
    random = evaluate([select(pool, "random", 1, n) for n in range(4)], test, frozen, judge, 2).mean
    assert evaluate([made], test, frozen, judge, 4).mean > random
    again = pretrained(NET, pool, Training(10, 0.1))
    assert again == frozen
    assert hash(again) == hash(frozen)
    assert frozen != pretrained(NET, pool, Training(9, 0.1))


def test_students_train_on_augmented_images():
    settings = Settings(MTT(1, 1, latest=0, span=1, steps=1, batch=8), ConvNet(1, 4), 1, outer=1, augment=("flip",))
    (made,) = condense(image_pool(), settings, (0,), quiet=True)
    assert np.isfinite(made.losses).all()


def test_a_teacher_labels_real_examples(pool):
    teacher, few = train_on(pool, NET, Training(10, 0.1)), select(pool, "random", 2)
    logits = logits_of(NET, teacher, few.x) / 2
    soft = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    made = with_teacher(few, NET, teacher, share=0.25, temperature=2.0)
    np.testing.assert_allclose(made.labels, 0.75 * few.labels + 0.25 * soft, rtol=1e-4)
    assert made.init_ids.tolist() == few.ids.tolist()
    np.testing.assert_array_equal(with_teacher(few, NET, teacher, share=0.0).labels, few.labels)
    with pytest.raises(UsageError, match="share"):
        with_teacher(few, NET, teacher, share=2.0)


def test_difficulty_is_the_norm_of_the_error_or_of_the_gradient(pool):
    how = {"training": Training(5, 0.1), "networks": 1, "seed": 3}
    params = train_on(pool, NET, Training(5, 0.1), 3)
    p = np.asarray(jax.nn.softmax(NET(params, jnp.asarray(pool.x))))
    errors = difficulty(pool, NET, "el2n", **how)
    np.testing.assert_allclose(errors, np.linalg.norm(p - pool.labels, axis=1), rtol=1e-4)

    def loss(params):
        return -(jax.nn.log_softmax(NET(params, jnp.asarray(pool.x[7:8]))) * pool.labels[7:8]).sum()

    norm = math.sqrt(sum(float(jnp.sum(g**2)) for g in jax.grad(loss)(params).values()))
    assert float(difficulty(pool, NET, "grand", **how)[7]) == pytest.approx(norm, rel=1e-4)
    hardest = select(pool, "el2n", 1, scores=errors)
    mine = errors.values[pool.y == 0]
    assert errors.sel(train=hardest.ids[0]).item() == mine.max()
    with pytest.raises(UsageError, match="need scores"):
        select(pool, "grand", 1)


def test_facility_location_is_greedy_in_the_sum_of_largest_similarities():
    rows = np.random.default_rng(0).normal(size=(12, 3))
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    similarity = unit @ unit.T + 1
    chosen: list[int] = []
    for _ in range(3):
        worth = {i: similarity[:, [*chosen, i]].max(1).sum() for i in range(12) if i not in chosen}
        chosen.append(max(worth, key=lambda i: worth[i]))
    assert facility_rows(rows, 3, np.random.default_rng(0)).tolist() == chosen


def test_robust_scores_follow_their_definition(pool, test):
    assert (normalised(-1.0), normalised(1.0)) == pytest.approx((0, 100))
    (made,) = condense(pool, Settings("dcc", NET, 1, outer=3, augment=()), (0,), quiet=True)
    found = robust_scores(made, pool, test, NET, Training(10, 0.1), networks=2, w=0.25)
    acc = found.accuracies
    assert found.hlr == pytest.approx(acc["all real"] - acc["set, hard labels"])
    assert found.ior == pytest.approx(acc["set, augmented"] - acc["random, augmented"])
    alpha = (0.25 * found.ior - 0.75 * found.hlr) / 100
    assert found.lrs == pytest.approx(100 * (math.exp(alpha) - math.exp(-1)) / (math.e - math.exp(-1)))
    soft = replace(made, labels=0.9 * made.labels + 0.1 / 3)
    assert isinstance(soft, Condensed)
    with pytest.raises(UsageError, match="validation"):
        robust_scores(made, pool, test, NET, rates=(0.1,))


def test_a_run_says_how_long_it_will_take(pool, capfd, monkeypatch):
    monkeypatch.delenv("WHENCE_QUIET", raising=False)
    condense(pool, Settings("dc", NET, 1, outer=4, inner=1, augment=()), (0,))
    assert "outer steps are left" in capfd.readouterr().err
    assert estimate(100, 6.0) == "100 outer steps are left, 6 s each: about 10 min."


def test_a_plan_counts_the_steps_that_are_left_and_stores_none(pool, tmp_path):
    store, settings = Store(tmp_path), Settings("dcc", NET, 1, outer=8, inner=1, warm_outer=3, warm_inner=1, augment=())
    found = plan(pool, settings, (0,), store)
    assert (found.outer, found.done, found.warm) == (8, 0, 3)
    assert found.seconds == pytest.approx(found.compiling + 3 * found.warm_step + 5 * found.step)
    assert min(found.compiling, found.step, found.warm_step) > 0
    assert "8 outer steps: about" in str(found)
    assert not list(store.listing())
    condense(pool, replace(settings, outer=4), (0,), store, quiet=True)
    resumed = plan(pool, settings, (0,), store)
    assert (resumed.done, resumed.warm, resumed.warm_step) == (4, 0, 0.0)
    assert "4 of 8 are in the store" in str(resumed)
    condense(pool, settings, (0,), store, quiet=True)
    assert plan(pool, settings, (0,), store).seconds == 0.0
