"""Several hook points in one pass, and activations that are read from the store as they are needed."""

import numpy as np
import pytest

from tests import cases
from whence.cache import Store, TrainedModel
from whence.cache.errors import UsageError
from whence.decomp import ITDA, SAE, Activations, KMeans, Random, evaluate, features, observe
from whence.decomp.activations import Kept
from whence.decomp.streaming import build_each, stream


@pytest.fixture(scope="module")
def trained() -> TrainedModel:
    case = cases.build("attention")
    return TrainedModel(case.model.float(), cases.sequences(40, seed=1), case.task, quiet=True)


def test_a_stream_gives_what_observe_gives(trained) -> None:
    seen = observe(trained, ["up", "qkv"])
    parts = list(stream(trained, ["up", "qkv"]))
    for name, acts in seen.items():
        for column, expected in zip(zip(*(part[name] for part in parts)), acts.whole()):
            np.testing.assert_allclose(np.concatenate(column), expected, rtol=1e-5, atol=1e-6)


def test_one_pass_builds_what_a_pass_each_builds(trained) -> None:
    builders = {"up": ITDA(size=20, k=3), "qkv": Random(12, k=2)}
    together = build_each(builders, trained, skip_positions=[0])
    for name, builder in builders.items():
        alone = builder.build(observe(trained, name).without([0]))
        assert together[name].fingerprint == alone.fingerprint
        assert together[name].origin == alone.origin


def test_the_pass_ends_when_every_builder_has_its_size_and_errors_reach_the_caller(trained, monkeypatch) -> None:
    monkeypatch.setattr("whence.cache.model.activations.BATCH_POSITIONS", 16)
    read = []
    monkeypatch.setattr("whence.decomp.streaming.stream", lambda *a: (read.append(1) or part for part in stream(*a)))
    build_each({"up": KMeans(4, k=2, rows=16, rounds=1)}, trained)
    assert 0 < len(read) < 15
    with pytest.raises(UsageError, match="more than once"):
        build_each({"up": SAE(8, k=2)}, trained)


def test_activations_of_the_store_are_never_read_whole(trained, tmp_path, monkeypatch) -> None:
    held = observe(trained, "up")
    assert isinstance(held.x, np.ndarray)
    kept = observe(trained.replace(store=Store(tmp_path)), "up")
    assert isinstance(kept.x, Kept)
    assert (kept.width, len(kept)) == (held.width, len(held))
    for one, other in zip(kept.select(np.arange(7, 40)[::-1]).whole(), held.select(np.arange(7, 40)[::-1]).whole()):
        np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(np.asarray(kept.x), held.x)
    monkeypatch.setattr(Activations, "whole", lambda self: pytest.fail("read whole"))
    monkeypatch.setattr(type(kept.x.entry), "read", lambda *a: pytest.fail("read whole"))
    dictionary = ITDA(size=20, k=2).build(kept)
    assert dictionary.fingerprint == ITDA(size=20, k=2).build(held).fingerprint
    one, other = (evaluate(dictionary, acts).value for acts in (kept, held))
    np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(features(dictionary, kept).top, features(dictionary, held).top)
    assert SAE(8, k=2, batch=16).build(kept).fingerprint == SAE(8, k=2, batch=16).build(held).fingerprint


def test_unusable_rows_are_counted_and_left_out() -> None:
    x = np.ones((9000, 3), np.float32)
    x[[4, 5000]], x[8000] = np.nan, 0
    left, bad, zero = Activations.of(x).usable()
    assert (len(left), bad, zero) == (8997, 2, 1)
    np.testing.assert_allclose(left.mean(), 1)
