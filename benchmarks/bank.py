"""Many small models retrained as one program, against the same training one by one in eager torch.

    python -m benchmarks.bank [--models 64 256] [--threads N]

Both sides train every model on its own half of the data, in the same batches, with the same optimiser, and the
largest difference of their logits is printed. The one-by-one side is timed on `--alone` models and scaled. GFLOP/s
are the bank's, of the products and convolutions that training needs, to be held against the rate of one large product
in the last line: what is missing goes into small products and into passes over memory.
"""

import argparse
import time
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from whence.cache import Classification, Examples
from whence.cache.retrain.bank import Bank
from whence.cache.retrain.recipe import SGD, Recipe, steps_of
from whence.cache.retrain.retrained import subset_masks


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


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))


MODELS: dict[str, Callable[[], nn.Module]] = {
    "MLP 64-32-10": mlp,
    "convolutional, 8 and 16 channels": Convolutional,
    "transformer, width 16, 2 layers": Transformer,
}


def one_by_one(bank: Bank, masks: np.ndarray) -> tuple[float, np.ndarray]:
    """Seconds and logits of the same training as anyone would write it."""
    x, y = (torch.as_tensor(bank.train.columns[name]) for name in "xy")
    out, o = [], bank.recipe.optimiser
    walks = [list(steps_of(masks[e : e + 1], np.array([e]), bank.recipe)[0]) for e in range(len(masks))]
    started = time.perf_counter()
    for e, walk in enumerate(walks):
        model = bank.build(e)
        optimiser = torch.optim.SGD(model.parameters(), o.lr, o.momentum)
        for step in walk:
            rows = torch.as_tensor(step.rows[0][step.weights[0] > 0])
            optimiser.zero_grad()
            F.cross_entropy(model(x[rows]), y[rows]).backward()
            optimiser.step()
        with torch.no_grad():
            out.append(model(x).numpy())
    return time.perf_counter() - started, np.stack(out)


def compare(name: str, build: Callable[[], nn.Module], counts: list[int], alone: int) -> None:
    generator = np.random.default_rng(0)
    y = np.arange(400) % 10
    x = generator.normal(size=(400, 64)) + 2 * np.eye(10, 64)[y]
    train = Examples.of((x.astype(np.float32), y))
    bank = Bank(lambda seed: build(), Classification(), train, train, Recipe(40, 32, SGD(0.01)))
    bank.run(subset_masks(400, 2, 0.5), quiet=True)
    for count in counts:
        masks = subset_masks(400, count, 0.5)
        seconds, expected = one_by_one(bank, masks[:alone])
        started = time.perf_counter()
        found = bank.run(masks, quiet=True)
        took = time.perf_counter() - started
        again, _ = one_by_one(bank, masks[:alone])
        slow = min(seconds, again) / alone * count
        off = np.abs(found["logits"][:alone] - expected).max()
        rate = operations(build()) * bank.recipe.passes(int(masks.sum())) / took / 1e9
        print(
            f"| {name} | {count} | {slow:.1f} | {took:.1f} | {slow / took:.1f} | {rate:.1f} | {off:.0e} |", flush=True
        )


def operations(model: nn.Module) -> float:
    """Multiplications and additions of an example's forward and backward pass."""
    with FlopCounterMode(display=False) as counter:
        F.cross_entropy(model(torch.zeros(32, 64)), torch.zeros(32, dtype=torch.long)).backward()
    return counter.get_total_flops() / 32


def product_rate(size: int = 1024, times: int = 8) -> float:
    """GFLOP/s of a product of two large matrices."""
    a, b = torch.randn(size, size), torch.randn(size, size)
    torch.mm(a, b)
    started = time.perf_counter()
    for _ in range(times):
        torch.mm(a, b)
    return times * 2 * size**3 / (time.perf_counter() - started) / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=int, nargs="+", default=[64, 256])
    parser.add_argument("--alone", type=int, default=8, help="models that the one-by-one side trains")
    parser.add_argument("--threads", type=int, default=None)
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    print("| model | copies | one by one, s | bank, s | ratio | GFLOP/s | largest difference of logits |")
    print("|---|---|---|---|---|---|---|")
    for name, build in MODELS.items():
        compare(name, build, options.models, options.alone)
    print(f"\n{torch.get_num_threads()} threads; one product of 1024 x 1024 matrices: {product_rate():.0f} GFLOP/s")


if __name__ == "__main__":
    main()
