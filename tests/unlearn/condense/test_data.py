"""What is given: layouts are said or asked, labels and pixels are checked, small and repeated data are used rightly."""

import contextlib
import os
import signal
import subprocess
import sys
from dataclasses import dataclass, replace

import numpy as np
import pytest

from whence.cache.errors import DataError, Interrupted, ModelError, UsageError
from whence.unlearn.condense import MLP, Condensed, Pool, Settings, Training, condense, condensing, evaluate, select

from .cases import vector_pool

NET = MLP((8,))
FAST = Settings("dcc", NET, per_class=1, outer=2, inner=2, epochs=1, real_batch=8, warm_outer=0)
LABELS = np.arange(12) % 3


def pictures(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(12, *shape)).astype(np.float32)


@pytest.mark.parametrize("shape", [(4, 8, 8), (2, 8, 8), (8, 8, 2), (3, 3, 3), (1, 8, 3), (1, 28, 1)])
def test_a_layout_that_is_unclear_must_be_given(shape):
    x = pictures(*shape)
    with pytest.raises(DataError, match='layout="nchw"'):
        Pool.of((x, LABELS))
    first, last = (Pool.of((x, LABELS), layout=layout) for layout in ("nchw", "nhwc"))
    assert first.shape == (shape[1], shape[2], shape[0])
    assert last.shape == shape
    for pool in (first, last):
        np.testing.assert_allclose(pool.scaling.undo(pool.x), x, atol=1e-5)


@pytest.mark.parametrize(("shape", "layout"), [((1, 8, 8), "nchw"), ((8, 8, 3), "nhwc"), ((8, 6), "grey")])
def test_a_layout_that_is_clear_is_printed(shape, layout, capsys, monkeypatch):
    monkeypatch.delenv("WHENCE_QUIET", raising=False)
    x = pictures(*shape)
    pool = Pool.of((x, LABELS))
    assert f"are taken as {layout}" in capsys.readouterr().err
    Pool.of((x, LABELS), 3, pool.scaling)
    assert not capsys.readouterr().err
    np.testing.assert_allclose(pool.scaling.undo(pool.x), x, atol=1e-5)


def test_other_data_must_have_the_layout_of_the_scaling():
    pool = Pool.of((pictures(3, 8, 8), LABELS))
    for x in (pictures(8, 8, 3), pictures(8, 8), pictures(1, 8, 8)):
        with pytest.raises(DataError, match="nchw of 3 channels"):
            Pool.of((x, LABELS), 3, pool.scaling)
    with pytest.raises(DataError, match="scaling for nchw"):
        Pool.of((pictures(3, 8, 8), LABELS), 3, pool.scaling, layout="nhwc")
    with pytest.raises(UsageError, match="no layout"):
        Pool.of((pictures(3, 8, 8), LABELS), layout="chw")
    with pytest.raises(DataError, match="in layout nhwc"):
        Pool.of((pictures(8, 8), LABELS), layout="nhwc")


@pytest.mark.parametrize(
    ("y", "message"),
    [
        (LABELS + 1, "Class 0 has no example"),
        (LABELS * 10**12, "Class 1 has no example"),
        (np.where(LABELS == 0, 2**64 - 1, LABELS).astype(np.uint64), "beyond 63 bits"),
        (LABELS - 1, r"below 0, for instance \[-1, -1, -1\] of the examples with ids \[0, 3, 6\]"),
        (LABELS.astype(np.float32), "astype"),
        (np.eye(3)[LABELS], "argmax"),
        (LABELS[:, None], r"y\[:, 0\]"),
    ],
)
def test_labels_that_are_no_classes_are_an_error(y, message):
    with pytest.raises(DataError, match=message):
        Pool.of((pictures(5), y))


def test_unsigned_and_boolean_labels_and_pixels_are_used_as_they_are():
    pool = Pool.of((pictures(5) > 0, (LABELS == 1)))
    assert (pool.classes, pool.y.dtype) == (2, np.int64)
    assert Pool.of((pictures(5), LABELS.astype(np.uint64))).y.tolist() == LABELS.tolist()
    for empty in (np.zeros((0, 5)), np.zeros((12, 0))):
        with pytest.raises(DataError, match="no examples"):
            Pool.of((empty, LABELS[: len(empty)]))


def test_pixels_that_are_not_finite_are_named_by_id():
    x = pictures(8, 8)
    x[4, 2, 2], x[7, 0, 0] = np.nan, np.inf
    with pytest.raises(DataError, match=r"2 of 12 .* ids \[4, 7\]"):
        Pool.of((x, LABELS))


def test_bytes_give_what_their_floats_give():
    x = np.random.default_rng(0).integers(0, 256, (12, 6, 6, 3), dtype=np.uint8)
    np.testing.assert_array_equal(Pool.of((x, LABELS)).x, Pool.of((x.astype(np.float64), LABELS)).x)


@pytest.mark.parametrize("rule", ["random", "herding", "k-centre"])
def test_no_example_is_taken_twice(rule):
    x, y = pictures(5), np.repeat([0, 1], 6)
    x[1:6] = x[1]  # five of six are equal
    for count in (3, 6):
        chosen = select(Pool.of((x, y)), rule, count)
        assert len(set(chosen.ids.tolist())) == 2 * count
    x[:6] = x[0]
    assert len(set(select(Pool.of((x, y)), rule, 4).ids.tolist())) == 8


def test_selection_needs_finite_features_and_scores_for_influence_alone():
    pool = vector_pool()
    for features in (pool.x[:5], np.full_like(pool.x, np.nan)):
        with pytest.raises(DataError, match="one finite row"):
            select(pool, "herding", 2, features=features)
    with pytest.raises(UsageError, match="need scores"):
        select(pool, "influence", 2)


def test_test_data_may_lack_a_class_and_training_data_may_not():
    pool = vector_pool()
    few = Pool.of((pool.scaling.undo(pool.x[:60]), pool.y[:60]), pool.classes, pool.scaling)
    assert few.counts.tolist() == [30, 30, 0]
    found = evaluate(pool, few, NET, Training(epochs=5), networks=2)
    assert np.isfinite(found.values).all()
    for use in (lambda: condense(few, FAST, quiet=True), lambda: select(few, "random", 1)):
        with pytest.raises(DataError, match="class 2 has 0"):
            use()
    with pytest.raises(DataError, match="No example is left"):
        pool.without(pool.ids)
    for sets, networks in (([], 2), ([pool], 0)):
        with pytest.raises(UsageError, match="no accuracy"):
            evaluate(sets, few, NET, networks=networks)


def test_repeated_and_constant_examples_are_condensed():
    x, y = pictures(5), np.repeat([0, 1, 2], 4)
    x[8:], x[:, 2] = x[8], 7.0
    for method, init in (("dcc", "real"), ("dm", "means")):
        (small,) = condense(Pool.of((x, y)), replace(FAST, method=method, init=init, per_class=3), quiet=True)
        assert np.isfinite(small.x).all()
    with pytest.raises(DataError, match="5 examples per class are wanted, and class 0 has 4"):
        condense(Pool.of((x, y)), replace(FAST, per_class=5), quiet=True)


@dataclass(frozen=True)
class OverTheBatch(MLP):
    """Normalises with the statistics of the batch."""

    def features(self, params, x):
        h = super().features(params, x)
        return (h - h.mean(0)) / (h.std(0) + 1e-5)


@dataclass(frozen=True)
class OverFeatures(MLP):
    """Normalises each example."""

    def features(self, params, x):
        h = super().features(params, x)
        return (h - h.mean(1, keepdims=True)) / (h.std(1, keepdims=True) + 1e-5)


def test_a_network_that_mixes_the_examples_of_a_batch_is_refused():
    pool = vector_pool(each=4)
    for use in (
        lambda net: condense(pool, replace(FAST, network=net), quiet=True),
        lambda net: evaluate([pool], pool, net, Training(epochs=1), networks=1),
    ):
        with pytest.raises(ModelError, match="depend on the other examples of its batch"):
            use(OverTheBatch((4,)))
        use(OverFeatures((4,)))


def test_a_signal_that_a_handler_swallowed_stops_the_next_step(monkeypatch):
    real, calls = condensing._advance, []

    def advance(*arguments):
        calls.append(1)
        with contextlib.suppress(Exception):  # as a library's own handler may do
            signal.raise_signal(signal.SIGTERM)
        return real(*arguments)

    monkeypatch.setattr(condensing, "_advance", advance)
    monkeypatch.setattr(condensing, "CHUNK_SECONDS", 0.0)
    with pytest.raises(Interrupted, match="SIGTERM"):
        condense(vector_pool(), replace(FAST, outer=5), quiet=True)
    assert len(calls) == 1


def test_ids_are_exact_in_the_set_its_contributions_its_page_and_its_files(tmp_path):
    large = vector_pool(each=4)
    large = replace(large, ids=2**62 + 1 + np.arange(len(large)))
    (small,) = condense(large, FAST, quiet=True)
    assert np.isin(small.init_ids, large.ids).all()
    found = small.contributions(large, NET, networks=1)
    assert found["real"].values.tolist() == large.ids.tolist()
    assert found["synthetic"].values.tolist() == small.examples.ids.tolist() == [-1, -2, -3]
    assert found["real_class"].values.tolist() == large.y.tolist()
    page = small.report(tmp_path / "page.html").read_text()
    assert all(str(i) in page for i in small.init_ids.tolist())
    names = replace(small, init_ids=np.array(["a", "b17", "c"]))
    for one in (small, names):
        for suffix in (".npz", ".safetensors"):
            back = Condensed.load(one.save(tmp_path / f"set{suffix}"))
            assert back.init_ids.tolist() == one.init_ids.tolist()
            assert set(back.about) == set(one.about)


def test_sets_of_earlier_versions_name_their_layout_in_words(tmp_path):
    (small,) = condense(Pool.of((pictures(3, 4, 4), LABELS)), FAST, quiet=True)
    path = small.save(tmp_path / "set.npz")
    card = path.with_suffix(".json")
    card.write_text(card.read_text().replace('"nchw"', '"channels first"'))
    assert Condensed.load(path).scaling.layout == "nchw"


def test_a_device_that_is_not_there_is_an_error():
    with pytest.raises(UsageError, match="no device 'cuda:7'"):
        condense(vector_pool(), FAST, device="cuda:7")


OTHER_DEVICE = """
import jax, numpy as np
from whence.unlearn.condense import MLP, Pool, Settings, Training, condense, condensing, evaluate
pool = Pool.of((np.random.default_rng(0).normal(size=(30, 5)), np.arange(30) % 3))
settings = Settings("dcc", MLP((8,)), per_class=1, outer=1, inner=2, epochs=1, warm_outer=0)
used, real = [], condensing._advance
def advance(*arguments):
    after = real(*arguments)
    used.extend(after.states.synthetic["x"].devices())
    return after
condensing._advance = advance
sets = [condense(pool, settings, device=d, quiet=True)[0].x for d in (None, "cpu:1")]
np.testing.assert_array_equal(*sets)
assert [d.id for d in used] == [0, 1], used
accuracy = [evaluate(pool, pool, MLP((8,)), Training(3), 1, device=d).values for d in (None, "cpu:1")]
np.testing.assert_array_equal(*accuracy)
"""


def test_another_device_gives_the_same_set():
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=2", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", OTHER_DEVICE], env={**os.environ, **flags}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
