"""The whole run: order of warm-up, seeds side by side, resuming, divergence, evaluation, files, bad input."""

import signal
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from whence.cache import Store
from whence.cache.errors import CorruptEntry, DataError, Interrupted, UsageError
from whence.unlearn.condense import (
    MLP,
    Condensed,
    ConvNet,
    Pool,
    Settings,
    Training,
    condense,
    condensing,
    evaluate,
)
from whence.unlearn.condense.augment import OPERATIONS, augment
from whence.unlearn.condense.condensing import Diverged
from whence.unlearn.condense.evaluate import Accuracies
from whence.unlearn.condense.methods import METHODS
from whence.unlearn.condense.outer import Rates, outer_step, start

from .cases import image_pool, images, vector_pool

NET = MLP((8,))
SMALL = Settings(network=NET, per_class=2, outer=4, inner=2, epochs=1, real_batch=8, warm_outer=2, warm_inner=9)

ALWAYS = replace(SMALL, warm_outer=0)


@pytest.fixture(scope="module")
def two_seeds():
    return condense(vector_pool(), SMALL, (0, 3), quiet=True)


def test_seeds_side_by_side_are_seeds_one_by_one(two_seeds):
    for seed, made in zip((0, 3), two_seeds):
        (alone,) = condense(vector_pool(), SMALL, (seed,), quiet=True)
        np.testing.assert_allclose(made.x, alone.x, atol=1e-5)
        assert made.about["seed"] == seed
    assert np.abs(two_seeds[0].x - two_seeds[1].x).max() > 0.1


def test_the_set_begins_at_real_examples_and_moves(two_seeds):
    pool = vector_pool()
    for made in two_seeds:
        begun = pool.x[made.init_ids]
        assert (pool.y[made.init_ids] == made.y).all()
        assert 0 < np.abs(made.x - begun).max() < 3
        assert made.losses.shape == (4,)


def test_warm_up_is_class_by_class_until_either_count_is_reached():
    assert (Settings(outer=1000).warm_outer, Settings(outer=10).warm_outer) == (250, 2)
    pool = vector_pool()
    reals, key = pool.reals(), jax.random.key(1)
    state = start(SMALL, pool, 0)[0]

    def program(settings):
        parts = jnp.asarray(settings.rule.parts(pool, settings.groups))
        step = jax.jit(lambda rates, outer: outer_step(settings, rates, parts, reals, state, key, outer)[0])
        return lambda outer, **changed: step(Rates.of(replace(settings, **changed)), outer).synthetic["x"]

    # inner steps 0 and 1 of outer step 1 are by class; from outer step 2 all are contrasted
    warming, by_class, contrast = program(SMALL), program(replace(SMALL, method="dc"))(1), program(ALWAYS)
    np.testing.assert_allclose(warming(1), by_class, atol=1e-5)
    np.testing.assert_allclose(warming(2), contrast(2), atol=1e-5)
    assert np.abs(warming(1) - contrast(1)).max() > 1e-3
    # with warm_inner = 1 the first step is by class, the second contrasted
    inner = warming(1, warm_inner=1)
    assert min(np.abs(inner - by_class).max(), np.abs(inner - contrast(1)).max()) > 1e-4


def test_a_run_that_was_stopped_goes_on_as_if_it_had_not_been(tmp_path, two_seeds):
    store = Store(tmp_path)
    condense(vector_pool(), replace(SMALL, outer=3), (0, 3), store, checkpoint=2, quiet=True)
    longer = condense(vector_pool(), SMALL, (0, 3), store, checkpoint=2, quiet=True)
    for a, b in zip(longer, two_seeds):
        np.testing.assert_array_equal(a.x, b.x)
        np.testing.assert_array_equal(a.losses, b.losses)
    before = len([e for e in store.events if e.what == "built"])
    again = condense(vector_pool(), SMALL, (0, 3), store, checkpoint=2, quiet=True)
    np.testing.assert_array_equal(again[0].x, longer[0].x)
    assert len([e for e in store.events if e.what == "built"]) == before
    other = condense(vector_pool(seed=1), SMALL, (0, 3), store, checkpoint=2, quiet=True)
    assert np.abs(other[0].x - longer[0].x).max() > 0


def test_a_signal_keeps_what_is_done_between_two_checkpoints(tmp_path, two_seeds, monkeypatch):
    real, calls = condensing._advance, []

    def advance(*arguments):
        calls.append(arguments)
        if len(calls) == 3:
            signal.raise_signal(signal.SIGTERM)
        return real(*arguments)

    monkeypatch.setattr(condensing, "_advance", advance)
    monkeypatch.setattr(condensing, "CHUNK_SECONDS", 0.0)  # one outer step a call
    store = Store(tmp_path)
    with pytest.raises(Interrupted, match="SIGTERM"):
        condense(vector_pool(), SMALL, (0, 3), store, quiet=True)
    calls[:] = [None] * 3
    on = condense(vector_pool(), SMALL, (0, 3), store, quiet=True)
    assert len(calls) == 3 + 2  # of four steps two were kept
    for a, b in zip(on, two_seeds):
        np.testing.assert_array_equal(a.x, b.x)
        np.testing.assert_array_equal(a.losses, b.losses)


def test_a_step_that_diverges_is_rolled_back_and_names_its_rate():
    wild = replace(SMALL, lr=300.0, outer=6)
    with pytest.raises(Diverged, match=r"lr=300 .*\n.*Lower lr, to 30 say") as caught:
        condense(vector_pool(), wild, (0,), quiet=True)
    (last,) = caught.value.last_good
    done = last.about["outer_done"]
    assert np.isfinite(last.x).all()
    assert np.abs(last.x).max() < 400
    assert len(last.losses) == done
    if done:
        (upto,) = condense(vector_pool(), replace(wild, outer=done), (0,), quiet=True)
        np.testing.assert_array_equal(upto.x, last.x)


def test_noise_means_and_soft_labels():
    pool = vector_pool()
    soft = replace(SMALL, method="dcc", init="noise", soft_labels=True, outer=2, lr_labels=0.5)
    (made,) = condense(pool, soft, quiet=True)
    assert (made.init_ids == -1).all()
    np.testing.assert_allclose(made.labels.sum(1), 1, rtol=1e-5)
    assert 0.5 < made.labels.max() < 0.9999
    assert made.labels.std() > 0
    assert set(made.examples.columns) == {"x", "y", "labels"}
    begun, _ = start(replace(SMALL, init="means", per_class=1), pool, 0)
    np.testing.assert_allclose(begun.synthetic["x"][1, 0], pool.x[pool.y == 1].mean(0), atol=1e-5)


def test_distribution_matching_brings_feature_means_together():
    pool = vector_pool()
    (made,) = condense(
        pool, Settings("dm", NET, per_class=4, outer=60, real_batch=30, lr=1.0, init="noise"), quiet=True
    )
    for c in range(3):
        gap = made.x[made.y == c].mean(0) - pool.x[pool.y == c].mean(0)
        assert np.abs(gap).max() < 0.35
    assert made.losses[-5:].mean() < 0.5 * made.losses[:5].mean()


def test_a_condensed_set_beats_as_many_real_examples():
    pool, test = vector_pool(), vector_pool(seed=5)
    test = Pool.of((pool.scaling.undo(test.x), test.y), scaling=pool.scaling)
    sets = condense(pool, replace(SMALL, per_class=1, outer=40, inner=5, warm_outer=0, epochs=3), (0, 1, 2), quiet=True)
    few = [pool.select(made.init_ids) for made in sets]
    training = Training(epochs=60)
    ours, theirs = (evaluate(s, test, NET, training, networks=3) for s in (sets, few))
    assert ours.mean > theirs.mean + 2


def test_augmentation_is_siamese_and_differentiable():
    x = jnp.asarray(images()[0][:3])
    twice = jnp.concatenate([x, x])

    def changed(x):
        return {name: augment(jax.random.key(4), x, (name,)) for name in OPERATIONS}

    def gradients(x):
        return {
            name: jax.grad(lambda x, n=name: jnp.sum(augment(jax.random.key(4), x, (n,)) ** 2))(x)
            for name in OPERATIONS
        }

    out, gradient = jax.jit(lambda x: (changed(x), gradients(x)))(twice)
    for name in OPERATIONS:
        np.testing.assert_allclose(out[name][:3], out[name][3:], atol=1e-6)
        assert np.isfinite(gradient[name]).all()
        assert np.abs(gradient[name]).max() > 0
    assert augment(jax.random.key(0), x, ()) is x
    flipped = [OPERATIONS["flip"](jax.random.key(k), x[0]) for k in range(8)]
    assert any(np.array_equal(f, x[0]) for f in flipped)
    assert any(np.array_equal(f, x[0, :, ::-1]) for f in flipped)
    from whence.unlearn.condense.augment import _sample

    np.testing.assert_allclose(_sample(x[0], jnp.eye(2)), x[0], atol=1e-5)
    np.testing.assert_allclose(_sample(x[0], jnp.diag(jnp.array([1.0, -1.0]))), x[0, :, ::-1], atol=1e-5)
    own = jax.jit(lambda k, x: augment(k, x, ("crop",), siamese=False))(jax.random.key(4), jnp.repeat(x[:1], 9, 0))
    assert len({np.asarray(a).tobytes() for a in own}) > 1
    with pytest.raises(UsageError, match="no augmentation"):
        Settings(augment=("mirror",))


def test_siamese_methods_are_theirs_without_and_run_on_images():
    for plain, siamese in (("dc", "dsa"), ("dcc", "dsac")):
        assert isinstance(METHODS[siamese], type(METHODS[plain]))
        assert (METHODS[plain].augmented, METHODS[siamese].augmented) == (False, True)
    settings = Settings("dsac", MLP((4,)), 1, 2, 1, 0, real_batch=4, augment=("scale", "crop"), warm_outer=0)
    (made,) = condense(image_pool(), settings, quiet=True)
    assert np.isfinite(made.x).all()
    assert (made.x != image_pool().x[made.init_ids]).any()


def test_accuracy_counts_what_is_right_and_blocks_do_not_matter():
    from whence.unlearn.condense.training import accuracy

    params = jax.jit(lambda k: NET.init(k, (5,), 3))(jax.random.key(0))
    pool = vector_pool()
    expected = (np.asarray(NET(params, jnp.asarray(pool.x))).argmax(1) == pool.y).mean()
    for block in (7, 90, 1000):
        np.testing.assert_allclose(accuracy(NET, params, jnp.asarray(pool.x), pool.y, block), expected, rtol=1e-6)


def test_accuracies_have_an_interval_and_tables_cross_architectures(two_seeds):
    values = Accuracies(np.array([[50.0, 52.0], [60.0, 58.0]]))
    low, high = values.interval()
    assert 50 <= low < values.mean == 55 < high <= 60
    pool = vector_pool()
    table = evaluate(
        {"dcc": two_seeds, "all": [pool]}, pool, {"a": NET, "b": MLP((4,))}, Training(epochs=20, batch=16), 2
    )
    assert table.dims == ("set", "network")
    assert float(table.sel(set="all", network="a")) > 75
    assert np.shape(table.attrs["std"]) == (2, 2)


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_files_hold_the_set_and_its_card(tmp_path, two_seeds, suffix):
    made = two_seeds[0].measured(accuracy=81.5)
    path = made.save(tmp_path / f"set{suffix}")
    back = Condensed.load(path)
    for name in ("x", "labels", "losses", "init_ids"):
        np.testing.assert_array_equal(getattr(back, name), getattr(made, name))
    assert back.about["measured"] == {"accuracy": 81.5}
    assert back.about["data"] == vector_pool().fingerprint
    np.testing.assert_allclose(back.examples.columns["x"], made.examples.columns["x"])
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(CorruptEntry):
        Condensed.load(path)
    with pytest.raises(DataError, match="There is no"):
        Condensed.load(tmp_path / f"other{suffix}")
    with pytest.raises(UsageError, match="no ending"):
        made.save(tmp_path / "set.pt")


def test_a_deleted_example_leaves_no_trace(two_seeds):
    pool = vector_pool()
    gone = int(two_seeds[0].init_ids[0])
    (new,) = condense(pool.without([gone]), SMALL, quiet=True)
    assert gone not in new.init_ids
    assert new.about["without"] == [gone]
    changed = Pool(pool.x.copy(), pool.y, pool.classes, pool.ids, pool.scaling, pool.fingerprint)
    changed.x[gone] = 1e3  # whatever the deleted example was, the result is the same
    (again,) = condense(changed.without([gone]), SMALL, quiet=True)
    np.testing.assert_array_equal(new.x, again.x)
    with pytest.raises(DataError, match="12345"):
        pool.without([12345])


@pytest.mark.parametrize("layout", ["grey", "first", "last", "vectors", "bytes"])
def test_scaling_is_undone_in_the_datas_own_layout(layout):
    x, y = images(channels=1 if layout == "grey" else 3, size=5)
    x = {"grey": x[..., 0], "first": np.moveaxis(x, -1, 1), "vectors": x.reshape(len(x), -1)}.get(layout, x)
    if layout == "bytes":
        x = np.clip(x * 40 + 120, 0, 255).astype(np.uint8)
    pool = Pool.of((x, y), layout={"first": "nchw", "last": "nhwc"}.get(layout))
    np.testing.assert_allclose(pool.scaling.undo(pool.x), x, atol=1e-3)
    np.testing.assert_allclose(pool.x.reshape(-1, pool.shape[-1]).std(0), 1, atol=1e-3)


def test_activations_from_the_store_can_be_condensed(tmp_path):
    pool = vector_pool()
    entry = Store(tmp_path).put("activations", {"of": "test"}, {"x": pool.x, "offsets": np.arange(len(pool))})
    again = Pool.of_activations(entry, pool.y)
    assert again.shape == pool.shape
    assert len(again) == len(pool)


def test_bad_input_is_named():
    x, y = images()
    cases = {
        "NaN": (np.where(np.arange(len(x))[:, None, None, None] == 3, np.nan, x), y),
        "below 0": (x, y - 1),
        "has no example": (x[y != 1], y[y != 1]),
        "where numbers are needed": (np.full(x.shape, "a"), y),
        "no classes": (x, y.astype(np.float32)),
        "no images or vectors": (x[:, 0, 0, 0], y),
    }
    for message, data in cases.items():
        with pytest.raises(DataError, match=message):
            Pool.of(data, layout="nhwc")
    with pytest.raises(DataError, match="outside 0 to 1"):
        Pool.of((x, y), 2, layout="nhwc")
    with pytest.raises(DataError, match="8 examples per class are wanted, and class 0 has 7"):
        condense(image_pool(), Settings(network=NET, per_class=8))
    from whence.cache.errors import ModelError

    with pytest.raises(ModelError, match="does not fit"):
        condense(image_pool(), Settings(network=ConvNet(3, 4), per_class=1))
    with pytest.raises(UsageError, match="no condensation method"):
        Settings(method="mtd")
    with pytest.raises(UsageError, match="learning rate"):
        Settings(lr=0.0)
    with pytest.raises(UsageError, match="per_class"):
        Settings(per_class=0)
    other = Pool.of((x[:, :2], y), layout="nhwc")
    with pytest.raises(DataError, match="cannot be judged"):
        evaluate([other], image_pool(), NET)
    with pytest.raises(DataError, match="scaled differently"):
        evaluate([Pool.of((2 * x, y), layout="nhwc")], image_pool(), NET)
