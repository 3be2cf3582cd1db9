"""The loop over data: few shapes, every example once, batches from a memory limit."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from tests import cases
from whence.cache import Classification, DataError, Examples, ModelError, ResourceError
from whence.cache.model.batches import plan_batches, widths
from whence.cache.model.trained import KeptBatches, ModelPass


def make(case: cases.Case, **more) -> ModelPass:
    return case.trained(**more).run("loss", case.sites)


def test_widths_grow_by_a_quarter_and_end_at_the_longest() -> None:
    found = widths(300)
    assert found[-1] == 300
    assert found == sorted(set(found))
    assert all(b <= max(a + 8, 1.25 * a) for a, b in pairwise(found))
    assert widths(5) == [5]


@pytest.mark.parametrize("positions", [1, 64, 10_000])
def test_every_example_is_in_one_batch_that_fits_it(positions: int) -> None:
    lengths = np.random.default_rng(0).integers(1, 200, 500)
    rows = np.arange(0, 500, 2)
    plan = plan_batches(lengths, rows, positions)
    np.testing.assert_array_equal(np.sort(np.concatenate([batch.rows for batch in plan])), rows)
    for batch in plan:
        assert lengths[batch.rows].max() <= batch.width
        assert len(batch.rows) <= batch.full
        assert batch.full == 1 or batch.full * batch.width <= positions
    assert len({(batch.full, batch.width) for batch in plan}) <= len(widths(int(lengths.max())))
    assert all(2 * batch.full * batch.width >= positions for batch in plan if batch.width < lengths[rows].max())


def test_short_examples_are_not_padded_to_a_long_one_beyond_a_batch() -> None:
    lengths = np.array([8] * 100 + [4096])
    plan = plan_batches(lengths, np.arange(101), 8192)
    assert [(len(batch.rows), batch.width) for batch in plan] == [(100, 8), (1, 4096)]
    assert len(plan_batches(np.array([8, 2048, 4096]), np.arange(3), 16384)) == 1


def test_a_last_batch_is_filled_with_zeros() -> None:
    run = make(cases.build("mlp"), positions=5)
    batches = list(run.batches())
    assert [len(batch.rows) for batch in batches] == [5, 5, 2]
    for batch in batches:
        for site in run.sites:
            assert batch.inputs[site.name].shape[0] == 5
            assert not np.asarray(batch.grads[site.name])[len(batch.rows) :].any()
            assert not np.asarray(batch.weights[site.name])[len(batch.rows) :].any()


class TwoHeads(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (torch.nn.Linear(4, 3) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.a(x) + self.b(x) + self.c(x + 1)


def test_layers_that_read_one_input_share_it() -> None:
    case = cases.Case("two", TwoHeads().double(), cases.vectors(), Classification())
    run = make(case)
    batch = next(iter(run.batches()))
    assert batch.inputs["a"] is batch.inputs["b"]
    assert batch.inputs["a"] is not batch.inputs["c"]


def test_batch_size_follows_the_memory_limit() -> None:
    case = cases.build("attention")
    small, large = make(case, memory=200_000), make(case, memory=2_000_000)
    assert small.positions is not None
    assert large.positions is not None
    assert small.positions < large.positions
    with pytest.raises(ResourceError, match="Raise the memory limit"):
        make(case, memory=1000)


def test_kept_batches_run_the_model_once_if_memory_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    case = cases.build("mlp")
    run, calls = make(case, positions=4), []
    forward = case.model.forward
    monkeypatch.setattr(case.model, "forward", lambda x: (calls.append(1), forward(x))[1])
    for limit, wanted in ((1 << 30, 3), (0, 6)):
        calls.clear()
        kept = KeptBatches(run, limit)
        values = [[f.value for f in kept.batches()] for _ in range(2)]
        assert len(calls) == wanted
        np.testing.assert_array_equal(np.concatenate(values[0]), np.concatenate(values[1]))


def test_nothing_to_run_over() -> None:
    case = cases.build("attention")
    with pytest.raises(DataError, match="is empty"):
        make(case, train=case.examples.select([]))
    blank = Examples.of({"input_ids": [np.array([1, 2]), np.array([], np.int64)]}, ids=[4, 9])
    with pytest.raises(DataError, match=r"without a single token, ids \[9\]"):
        make(case, train=blank)
    with pytest.raises(ModelError, match="No site matches"):
        case.trained().find("nothing.*")
