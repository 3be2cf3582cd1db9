"""Activations are the model's own outputs, in the order of the examples, with where each row came from."""

import numpy as np
import pytest
import torch

from tests import cases
from whence.cache import ModelError, NumericalError, Store, activations
from whence.cache.errors import WhenceError


def plain(case: cases.Case, name: str) -> np.ndarray:
    rows = []
    for row in range(len(case.examples)):
        seen = []
        handle = case.model.get_submodule(name).register_forward_hook(lambda m, a, out, seen=seen: seen.append(out))
        case.task.logits(case.model, case.examples.batch([row]))
        handle.remove()
        rows.append(seen[0][0].detach().numpy())
    return np.concatenate(rows)


def test_rows_and_where_they_came_from(tmp_path) -> None:
    case = cases.build("attention")
    entry = activations(case.trained(), ["up", "out"], store=Store(tmp_path))
    for name in ("up", "out"):
        np.testing.assert_allclose(entry.read(name), plain(case, name), rtol=1e-6, atol=1e-7)
    np.testing.assert_array_equal(entry.read("token"), np.concatenate(case.examples.columns["input_ids"]))
    np.testing.assert_array_equal(entry.read("example"), np.repeat(case.examples.ids, case.examples.lengths))
    assert entry.read("position")[: case.examples.lengths[0]].tolist() == list(range(case.examples.lengths[0]))


def test_shards_resume_and_are_the_same(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("whence.cache.model.activations.SHARD_BYTES", 7 * 16 * 4)  # seven rows of `up`
    case = cases.build("attention")
    one = activations(case.trained(), "up", store=Store(tmp_path / "a"))

    class Killed(Exception):
        pass

    calls = 0
    forward = type(case.model).forward

    def dying(self, *args, **kwargs):
        nonlocal calls
        calls += 1
        if calls > 3:
            raise Killed
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(type(case.model), "forward", dying)
    with pytest.raises(WhenceError, match=r"Partition \d .*Killed"):
        activations(case.trained(), "up", store=Store(tmp_path / "b"))
    monkeypatch.setattr(type(case.model), "forward", forward)
    other = activations(case.trained(), "up", store=Store(tmp_path / "b"))
    np.testing.assert_array_equal(one.read("up"), other.read("up"))


def test_bfloat16(tmp_path) -> None:
    case = cases.build("attention")
    entry = activations(case.trained(), "up", store=Store(tmp_path), dtype="bfloat16")
    np.testing.assert_allclose(entry.read("up").astype(np.float32), plain(case, "up"), rtol=1e-2, atol=1e-3)


def test_vectors(tmp_path) -> None:
    case = cases.build("mlp")
    entry = activations(case.trained(), "1", store=Store(tmp_path))
    np.testing.assert_allclose(entry.read("1").reshape(12, -1), plain(case, "1").reshape(12, -1), rtol=1e-6)


def test_errors(tmp_path) -> None:
    case = cases.build("attention")
    with pytest.raises(ModelError, match="Near names: up"):
        activations(case.trained(), "upp", store=Store(tmp_path))
    with torch.no_grad():
        case.model.up.weight[0, 0] = float("nan")
    with pytest.raises(NumericalError, match="not finite"):
        activations(case.trained(), "up", store=Store(tmp_path))
