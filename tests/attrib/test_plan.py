"""The plan against counts by hand, and what it says of jobs that do not fit."""

import numpy as np
import pytest
import torch
from torch import nn

from tests import cases
from whence.attrib.memory import fit_bytes
from whence.attrib.methods.ekfac import batches_twice
from whence.attrib.plan import Plan, make_plan, model_operations, padded_positions, refuse, rotated_operations
from whence.cache import Examples, LanguageModelling, ResourceError, Store, TrainedModel, find_sites
from whence.cache.jobs.progress import duration
from whence.cache.model.gradients import StoredBatches


class Big(nn.Module):
    """Wide enough that limits matter; cheap because only the probe runs it."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 8)
        self.up, self.down, self.head = nn.Linear(8, 400), nn.Linear(400, 8), nn.Linear(8, 11)

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.down(torch.tanh(self.up(self.embed(input_ids)))))


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    return Big()


@pytest.fixture(scope="module")
def train() -> Examples:
    return cases.sequences(50)


def trained(model: nn.Module, train: Examples, **more) -> TrainedModel:
    return TrainedModel(model, train, LanguageModelling(), sites=["up", "down"], quiet=True, **more)


def plan_of(model: nn.Module, train: Examples, memory: int | None, **more) -> Plan:
    return make_plan(trained(model, train, memory=memory), measure=False, **more)


def test_counts(model, train) -> None:
    plan = plan_of(model, train, 10**9, queries=3)
    stages = {stage.name: stage for stage in plan.stages}
    weights = 9 * 400 + 401 * 8
    assert plan.covered == weights
    assert model_operations(model) == 4 * (weights + 9 * 11)
    positions = sum(8 if n <= 8 else 9 for n in train.lengths)
    assert plan.positions == padded_positions(train) == positions
    squares = 400**2 + 9**2 + 8**2 + 401**2
    assert stages["moments"].operations == model_operations(model) * positions + 2 * squares * positions
    assert stages["moments"].disk == squares * 8
    contraction = 50 * (2 * 9 * weights + 2 * 3 * weights)
    assert stages["score"].operations == model_operations(model) * positions + contraction
    assert sum(stage.passes for stage in plan.stages) == 3
    assert plan.rank is None
    assert plan.forms == {"tiles": 2}
    up = 2 * 9 * 9 * 400 + 2 * 9 * 400 * (400 + 9)  # rotating the formed gradient is cheaper than nine positions
    assert rotated_operations(find_sites(model, ["up"], quiet=True), 1, 9) == min(
        up, 2 * 9 * (9 * 9 + 400 * 400) + 2 * 9 * 9 * 400
    )
    assert plan.fits
    refuse(plan)
    assert plan.to_json()["coverage"] == weights / sum(p.numel() for p in model.parameters())


def test_a_fit_that_does_not_fit(model, train) -> None:
    plan = plan_of(model, train, 4_000_000)
    assert fit_bytes(find_sites(model, ["up", "down"], quiet=True)) > 4_000_000
    assert not plan.fits  # not even one site alone
    assert "Leave out the largest sites" in str(plan)
    with pytest.raises(ResourceError, match="Leave out the largest sites"):
        refuse(plan)


def test_sites_that_do_not_fit_together_are_planned_in_groups(model, train) -> None:
    whole, plan = plan_of(model, train, 400_000_000), plan_of(model, train, 5_500_000)
    assert plan.fits
    assert (whole.groups, plan.groups) == (1, 2)
    assert "2 groups of sites, each with its own passes" in str(plan)
    passes = {stage.name: stage.passes for stage in plan.stages}
    assert passes == {"moments": 2, "eigenvectors": 0, "eigenvalues": 2}
    assert plan.memory <= plan.limit < whole.memory


def test_a_plan_says_where_batches_are_between_the_passes(model, train, tmp_path) -> None:
    needed = 4 * padded_positions(train) * (9 + 400 + 401 + 8)
    sums = fit_bytes(find_sites(model, ["up", "down"], quiet=True))
    little, much = (4 * (sums + kept) // 3 + 8 for kept in (needed // 2, needed))
    for memory, store, said in (
        (much, None, "kept in memory"),
        (little, Store(tmp_path), "kept in the store"),
        (little, None, "computed again"),
    ):
        bound = trained(model, train, memory=memory, store=store)
        plan = make_plan(bound, measure=False)
        assert (plan.groups, plan.kept) == (1, needed)
        assert said in str(plan)
        source = batches_twice(bound.run("loss", bound.find()))
        assert isinstance(source, StoredBatches) == (said == "kept in the store")


def test_queries_that_do_not_fit(model, train) -> None:
    plan = plan_of(model, train, 40_000_000, queries=3000, rank=None)
    assert not plan.fits
    assert any("--rank 32" in line for line in plan.advice)
    assert any("queries at a time" in line for line in plan.advice)
    # the sites are 8 and 9 wide: no factors of rank 32 are smaller, a lower rank is
    low = plan_of(model, train, 40_000_000, queries=3000, rank=1)
    assert max(s.memory for s in low.stages if s.name == "score") < max(
        s.memory for s in plan.stages if s.name == "score"
    )


def test_time_is_measured_and_disk_is_looked_at(model, train, tmp_path) -> None:
    plan = make_plan(trained(model, train, store=Store(tmp_path)), queries=2, index_width=64)
    assert all(stage.seconds > 0 for stage in plan.stages)
    assert plan.seconds == pytest.approx(sum(stage.seconds for stage in plan.stages))
    assert plan.free is not None
    assert plan.disk >= 64 * 50 * 2
    assert "It fits." in str(plan)
    full = type(plan)(**{**plan.__dict__, "free": 10})
    assert not full.fits
    assert [duration(s) for s in (0, 3, 600, 7200)] == ["-", "3.0 s", "10 min", "2.0 h"]
    assert np.isfinite(plan.seconds)
