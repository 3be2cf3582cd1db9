"""Many small models retrained as one program, against the same training one by one in eager torch.

Both sides train every model on its own half of the data, in the same batches, with the same optimiser, and the
largest difference of their logits is given. The one-by-one side is timed on `--alone` models and scaled. GFLOP/s are
the bank's, of the products and convolutions that training needs; beside the rate of one large product in the last line
they say what small products and passes over memory cost.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from whence.cache import Classification, Examples
from whence.cache.retrain.bank import Bank
from whence.cache.retrain.recipe import SGD, Recipe, steps_of
from whence.cache.retrain.retrained import subset_masks

from .harness import Benchmark, Run
from .timing import Ratio, paired, product_rate

bench = Benchmark(__file__, __doc__, example="--only 'MLP*' --models 64")


class Convolutional(nn.Module):
    """8x8 images, two 3x3 convolutions of 8 and 16 channels."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 16, 3, padding=1)
        self.head = nn.Linear(64, 10)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.first(x.view(-1, 1, 8, 8))), 2)
        return self.head(F.max_pool2d(F.relu(self.second(x)), 2).flatten(1))


class Transformer(nn.Module):
    """Eight patches of eight numbers, width 16, two heads, two layers."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(8, 16)
        self.place = nn.Parameter(torch.zeros(8, 16))
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(16, 2, 32, 0.0, batch_first=True, norm_first=True) for _ in range(2)
        )
        self.head = nn.Linear(16, 10)

    def forward(self, x):
        x = self.embed(x.view(-1, 8, 8)) + self.place
        for layer in self.layers:
            x = layer(x)
        return self.head(x.mean(1))


MODELS: dict[str, Callable[[], nn.Module]] = {
    "MLP 64-32-10": lambda: nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10)),
    "convolutional, 8 and 16 channels": Convolutional,
    "transformer, width 16, 2 layers": Transformer,
}


def bank_of(build: Callable[[], nn.Module]) -> Bank:
    """Four hundred Gaussian examples around ten class means, a fixed recipe."""
    rng, y = np.random.default_rng(0), np.arange(400) % 10
    x = rng.normal(size=(400, 64)) + 2 * np.eye(10, 64)[y]
    train = Examples.of((x.astype(np.float32), y))
    return Bank(lambda seed: build(), Classification(), train, train, Recipe(40, 32, SGD(0.01)))


def one_by_one(bank: Bank, masks: np.ndarray) -> np.ndarray:
    """Logits of the same training as anyone would write it."""
    x, y = (torch.as_tensor(bank.train.columns[name], device=bank.device) for name in "xy")
    out, o = [], bank.recipe.optimiser
    for e in range(len(masks)):
        model = bank.build(e).to(bank.device)
        optimiser = torch.optim.SGD(model.parameters(), o.lr, o.momentum)
        for step in steps_of(masks[e : e + 1], np.array([e]), bank.recipe)[0]:
            rows = torch.as_tensor(step.rows[0][step.weights[0] > 0])
            optimiser.zero_grad()
            F.cross_entropy(model(x[rows]), y[rows]).backward()
            optimiser.step()
        with torch.no_grad():
            out.append(model(x).cpu().numpy())
    return np.stack(out)


def operations(model: nn.Module) -> float:
    """Multiplications and additions of an example's forward and backward pass."""
    with FlopCounterMode(display=False) as counter:
        F.cross_entropy(model(torch.zeros(32, 64)), torch.zeros(32, dtype=torch.long)).backward()
    return counter.get_total_flops() / 32


class Measured(NamedTuple):
    """Seconds of the one-by-one side (scaled to all copies) and of the bank, their ratio, the bank's GFLOP/s, and the
    largest difference of logits."""

    alone: float
    bank: float
    ratio: Ratio
    gflops: float
    off: float


def compare(build: Callable[[], nn.Module], bank: Bank, count: int, alone: int, rounds: int) -> Measured:
    masks, found = subset_masks(400, count, 0.5), {}

    def by_hand() -> None:
        found["alone"] = one_by_one(bank, masks[:alone])

    def at_once() -> None:
        found["bank"] = bank.run(masks, quiet=True)["logits"][:alone]

    times, scale = paired({"alone": by_hand, "bank": at_once}, rounds, warm=0), count / alone
    work = operations(build()) * bank.recipe.passes(int(masks.sum()))
    ratio = Ratio(*(r * scale for r in times.ratio("alone", "bank")))
    seconds, off = times.median("bank"), float(np.abs(found["bank"] - found["alone"]).max())
    return Measured(times.median("alone") * scale, seconds, ratio, work / seconds / 1e9, off)


@bench.case(quick={"models": (8,), "alone": 2, "rounds": 1})
def copies(
    run: Run, models: tuple[int, ...] = (64, 256), alone: int = 8, threads: int | None = None, rounds: int = 2
) -> None:
    """Seconds of both sides, for several numbers of copies.

    Args:
        models: numbers of copies.
        alone: models that the one-by-one side trains.
        threads: torch's threads.
        rounds: timed rounds of both sides, interleaved.
    """
    if threads:
        torch.set_num_threads(threads)
    table = run.table("model", "copies", "one by one, s|.1f", "bank, s|.1f", "ratio", "GFLOP/s|.1f",
                      "largest difference of logits|.0e")  # fmt: skip
    for name in run.selected(MODELS):
        bank = bank_of(MODELS[name])
        bank.run(subset_masks(400, 2, 0.5), quiet=True)
        for count in models:
            table.row(name, count, *compare(MODELS[name], bank, count, alone, rounds))
    rate = product_rate(1024, ("torch",)) / 1e9
    run.say(f"\n{torch.get_num_threads()} threads; one product of 1024 x 1024 matrices: {rate:.0f} GFLOP/s")


if __name__ == "__main__":
    bench.main()
