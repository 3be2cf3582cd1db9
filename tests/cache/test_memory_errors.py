"""An allocation that fails in a pass over data is a ResourceError that says what would fit; what is stored is kept."""

import pytest
import torch
from torch import Tensor, nn

from whence import attrib
from whence.attrib import kernels
from whence.cache import Classification, Examples, ResourceError, Store, TrainedModel, activations
from whence.cache.errors import enough_memory

ROWS = 1200  # three partitions of scores
X, Y = torch.randn(ROWS, 4, generator=torch.Generator().manual_seed(0)), torch.arange(ROWS) % 2
DATA = Examples.of((X, Y))
FAILURES = {
    "torch on a GPU": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB."),
    "torch on a CPU": RuntimeError(
        "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9"
    ),
    "XLA": RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 2147483648 bytes."),
    "numpy": MemoryError("Unable to allocate 30.0 GiB for an array"),
}


class Small(nn.Module):
    """A model on a device that `most` examples at a time fit."""

    def __init__(self, error: Exception, most: int = 1 << 30):
        super().__init__()
        self.layer, self.error, self.most = nn.Linear(4, 2), error, most

    def forward(self, x: Tensor) -> Tensor:
        if len(x) > self.most:
            raise self.error
        return self.layer(x)


@pytest.mark.parametrize("error", FAILURES.values(), ids=FAILURES)
def test_a_pass_that_memory_cannot_hold_says_what_it_was_and_what_would_fit(error: Exception) -> None:
    trained = TrainedModel(Small(error, 100), DATA, Classification(), quiet=True)
    with pytest.raises(
        ResourceError, match=r"too little memory for a pass of the model over 1200 examples.*cpu"
    ) as said:
        attrib.Identity().fit(trained).score(DATA.select(range(3)))
    assert "--positions 600" in said.value.cure
    fitting = trained.replace(positions=100)
    assert attrib.Identity().fit(fitting).score(DATA.select(range(3))).shape == (3, ROWS)


def test_activations_say_so_too_and_do_not_blame_the_data(tmp_path) -> None:
    trained = TrainedModel(Small(FAILURES["torch on a CPU"], 100), DATA, Classification(), quiet=True)
    with pytest.raises(ResourceError, match="too little memory"):
        activations(trained, "layer", store=Store(tmp_path))


def test_partitions_that_were_finished_are_kept(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained = TrainedModel(Small(MemoryError()), DATA, Classification(), quiet=True, store=Store(tmp_path))
    queries, sound, calls = DATA.select(range(3)), kernels.pair_products, []

    def full(*arrays: object) -> object:
        calls.append(1)
        if len(calls) > 1:
            raise FAILURES["XLA"]
        return sound(*arrays)

    factors = attrib.Identity().fit(trained)
    with monkeypatch.context() as patch:
        patch.setattr(kernels, "pair_products", full)
        with pytest.raises(ResourceError, match=r"^Partition 1 .*too little memory"):
            factors.score(queries)
    scores = factors.score(queries)
    event = trained.store.events[-1]
    assert (event.what, event.rows) == ("resumed", ROWS - 512)
    unstored = attrib.Identity().fit(trained.replace(store=None)).score(queries)
    torch.testing.assert_close(torch.tensor(scores.values), torch.tensor(unstored.values))


def test_other_errors_pass_unchanged() -> None:
    with pytest.raises(RuntimeError, match=r"^shapes differ$"), enough_memory("this"):
        raise RuntimeError("shapes differ")
