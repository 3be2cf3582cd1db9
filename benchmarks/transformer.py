"""The decoder and the sequences with structure that attribution is timed on, and one side of such a comparison."""

import json
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from whence.problems.small_transformer import SmallTransformer

from .harness import Benchmark
from .peers import KRONFLUENCE, Kronfluence, peak_bytes
from .timing import timed

SITES = ("up", "down")  # of every block
BATCH = 32  # of kronfluence's passes


@dataclass(frozen=True)
class Size:
    d: int = 256
    layers: int = 4
    heads: int = 8
    length: int = 128
    vocabulary: int = 1024
    train: int = 512
    queries: int = 64

    def model(self) -> SmallTransformer:
        return SmallTransformer(self.vocabulary, self.d, self.length, self.layers, self.heads)


def sequences(count: int, size: Size, seed: int) -> np.ndarray:
    """[count length] tokens of a sparse random Markov chain, the same chain for every seed."""
    chain = np.random.default_rng(7).integers(0, size.vocabulary, (size.vocabulary, 4))
    rng = np.random.default_rng(seed)
    tokens = np.empty((count, size.length), np.int64)
    tokens[:, 0] = rng.integers(0, size.vocabulary, count)
    for t in range(1, size.length):
        step = chain[tokens[:, t - 1], rng.integers(0, 4, count)]
        tokens[:, t] = np.where(rng.random(count) < 0.1, rng.integers(0, size.vocabulary, count), step)
    return tokens


def briefly_trained(size: Size, steps: int = 60) -> SmallTransformer:
    """A model after a few steps: its gradients are not those of random weights."""
    torch.manual_seed(0)
    model = size.model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for step in range(steps):
        batch = torch.as_tensor(sequences(16, size, 1000 + step))
        optimizer.zero_grad()
        F.cross_entropy(model(batch)[:, :-1].flatten(0, 1), batch[:, 1:].flatten()).backward()
        optimizer.step()
    return model.eval()


def peak_on(device: str) -> int:
    """Bytes at most: of this process, or on the GPU (torch's and JAX's)."""
    if device == "cpu":
        return peak_bytes()
    devices = sys.modules["jax"].devices() if "jax" in sys.modules else []
    used = (d.memory_stats()["peak_bytes_in_use"] for d in devices if d.platform == "gpu")
    return torch.cuda.max_memory_allocated() + sum(used)


class Side:
    """A process of its own: the saved model, seconds by name, and the arrays to compare. Training sequences have seed
    0, queries seed 1."""

    def __init__(self, folder: Path) -> None:
        saved = json.loads((folder / "problem.json").read_text())
        self.folder, self.size, self.options = folder, Size(**saved["size"]), saved["options"]
        self.device: str = self.options.get("device", "cpu")
        self.model = self.size.model()
        self.model.load_state_dict(torch.load(folder / "model.pt", weights_only=True))
        self.model.eval()
        self.seconds: dict[str, float] = {}

    def time(self, name: str, work: Callable[[], Any]) -> Any:
        def finished() -> Any:
            result = work()
            if self.device != "cpu":
                torch.cuda.synchronize()
            return result

        self.seconds[name], result = timed(finished)
        return result

    def finish(self, name: str, **arrays: np.ndarray) -> None:
        devices = sys.modules["jax"].devices() if "jax" in sys.modules else []
        peak = peak_on(self.device)
        np.savez(self.folder / f"{name}.npz", **arrays)  # type: ignore[arg-type]
        record = {"seconds": self.seconds, "peak": peak, "jax": ", ".join(map(str, devices))}
        (self.folder / f"{name}.json").write_text(json.dumps(record))

    def kronfluence(self) -> tuple[Kronfluence, torch.Tensor, torch.Tensor]:
        """kronfluence on the model, with training sequences and queries."""

        def outputs(model: Any, batch: Any) -> tuple[Any, Any]:
            return model(batch)[:, :-1].flatten(0, 1), batch[:, 1:].flatten()

        modules = [f"blocks.{i}.{name}" for i in range(self.size.layers) for name in SITES]
        peer = Kronfluence(self.model, outputs, modules, self.folder, BATCH, cpu=self.device == "cpu")
        train, queries = (sequences(n, self.size, s) for s, n in enumerate((self.size.train, self.size.queries)))
        return peer, torch.as_tensor(train), torch.as_tensor(queries)


def bound(model: SmallTransformer, size: Size, **options: Any) -> tuple[Any, Any]:
    """The model, bound to its training sequences, and queries."""
    from whence.cache import Examples, LanguageModelling, TrainedModel

    train, queries = (
        Examples.of({"input_ids": sequences(n, size, s)}) for s, n in enumerate((size.train, size.queries))
    )
    sites = [f"*.{name}" for name in SITES]
    return TrainedModel(model, train, LanguageModelling(), sites=sites, quiet=True, **options), queries


@dataclass(frozen=True)
class Outcome:
    """What a side wrote. peak: bytes, of its process or on the GPU (torch's and JAX's). jax: the devices of JAX."""

    seconds: Mapping[str, float]
    peak: float
    jax: str
    arrays: Mapping[str, np.ndarray]


def outcomes(
    bench: Benchmark, size: Size, model: SmallTransformer, names: Iterable[str], **options: Any
) -> dict[str, Outcome]:
    """Run these sides, one after the other, on one saved model."""
    found = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "problem.json").write_text(json.dumps({"size": asdict(size), "options": options}))
        torch.save(model.state_dict(), folder / "model.pt")
        for side in names:
            bench.run_side(side, folder, KRONFLUENCE)
            record = json.loads((folder / f"{side}.json").read_text())
            found[side] = Outcome(**record, arrays=dict(np.load(folder / f"{side}.npz")))
    return found


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.corrcoef(a.ravel(), b.ravel())[0, 1])
