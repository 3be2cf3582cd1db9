"""Timing: several functions side by side in one run, interleaved, with the ratio of every round."""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

Clock = Callable[[], float]


class Ratio(NamedTuple):
    """Median, smallest and largest over rounds of one function's time over another's."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.2f} [{self.low:.2f}, {self.high:.2f}]"


@dataclass(frozen=True)
class Times:
    """Seconds of every function in every round."""

    seconds: Mapping[str, list[float]]

    def best(self, name: str) -> float:
        return min(self.seconds[name])

    def median(self, name: str) -> float:
        return statistics.median(self.seconds[name])

    def ratio(self, slow: str, fast: str) -> Ratio:
        """Time of `slow` over that of `fast`, round by round."""
        ratios = [a / b for a, b in zip(self.seconds[slow], self.seconds[fast])]
        return Ratio(statistics.median(ratios), min(ratios), max(ratios))


def timed(work: Callable[[], Any], clock: Clock = time.perf_counter) -> tuple[float, Any]:
    """Seconds of one call, and its result. The call itself must wait for asynchronous results."""
    began = clock()
    result = work()
    return clock() - began, result


def paired(
    sides: Mapping[str, Callable[[], Any]], rounds: int = 5, warm: int = 1, clock: Clock = time.perf_counter
) -> Times:
    """Time all functions in every round. The order is reversed in every second round, so that drift cancels.

    Args:
        sides: function by name.
        rounds: timed rounds.
        warm: rounds before them that are not counted (imports, compilation).
        clock: seconds; a test passes its own.
    """
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(-warm, rounds):
        for name in list(sides)[:: -1 if number % 2 else 1]:
            took, _ = timed(sides[name], clock)
            if number >= 0:
                seconds[name].append(took)
    return Times(seconds)


def best(work: Callable[[], Any], rounds: int = 3, enough: float = float("inf")) -> float:
    """Seconds of the fastest of `rounds` calls, after one that warms up and compiles; that first one's seconds if
    they exceed `enough`. Other processes only ever add to a time, so the fastest call is the least disturbed."""
    first, _ = timed(work)
    return first if first > enough else paired({"": work}, rounds, warm=0).best("")


def best_and_result(work: Callable[[], Any], rounds: int = 2) -> tuple[float, Any]:
    """As `best` without the warm-up, with the last result."""
    calls = [timed(work) for _ in range(rounds)]
    return min(seconds for seconds, _ in calls), calls[-1][1]


def product_rate(size: int = 1024, libraries: tuple[str, ...] = ("torch", "jax")) -> float:
    """Operations per second of one product of two square float32 matrices, by the faster of these libraries."""
    import jax
    import jax.numpy as jnp
    import torch

    a, x, multiply = torch.ones(size, size), jnp.ones((size, size)), jax.jit(jnp.matmul)
    products = {"torch": lambda: torch.mm(a, a), "jax": lambda: jax.block_until_ready(multiply(x, x))}
    return 2 * size**3 / min(best(products[library], 5) for library in libraries)
