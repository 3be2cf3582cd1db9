"""Choosing a threshold by what one wants: so many atoms, such an error, or such a sparsity.

Each is monotone in the threshold, so it is found by bisection on its logarithm, building on a pilot every time.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from whence.cache.errors import UsageError
from whence.cache.jobs.progress import progress

from ..activations import Activations
from ..dictionary import Dictionary
from .builder import Builder, Source
from .itda import ITDA

LOWEST, HIGHEST = 1e-3, 0.95


@dataclass(frozen=True)
class Calibration:
    """builder: as given, with its threshold; trials: (threshold, what it gave) of every build; reached: what the chosen
    one gave on the pilot."""

    builder: ITDA
    trials: tuple[tuple[float, float], ...]
    reached: float


@dataclass(frozen=True)
class Calibrated(Builder[Dictionary]):
    """ITDA with the threshold at which about its `size` atoms come from a whole stream, chosen at every build.

    Args:
        builder: the settings of ITDA, with a size.
        rows: activations that the threshold is chosen on, from all of the stream.
        rounds: of bisection.

    Raises UsageError for a builder without a size.
    """

    name: ClassVar[str] = "calibrated"
    resumes: ClassVar[bool] = True

    builder: ITDA
    rows: int = 16384
    rounds: int = 8

    def __post_init__(self) -> None:
        if self.builder.size is None:
            raise UsageError("A builder without a size.", "Give the size that is wanted.")

    def construct(self, source: Source) -> Dictionary:
        acts = source.whole("Calibrated")
        size, rows, pilot = self.builder.size, int(0.9 * len(acts)), acts.spread(self.rows)
        found = calibrate(self.builder, pilot, size=size, rows=rows, rounds=self.rounds, quiet=source.quiet)
        return found.builder.construct(source)


def calibrate(
    builder: ITDA,
    pilot: Activations,
    *,
    size: int | None = None,
    error: float | None = None,
    sparsity: float | None = None,
    rows: int | None = None,
    rounds: int = 8,
    quiet: bool = True,
) -> Calibration:
    """Sets `unexplained` so that a build gives what is wanted; exactly one of the three is given.

    size: atoms when a stream of `rows` activations (default: the pilot's own number) has been read; beyond the
        pilot the growth is extrapolated as a power of the rows read, fitted to its second half.
    error: fraction of variance unexplained on a tenth of the pilot's documents, held out.
    sparsity: mean number of steps until a held-out activation is explained up to the threshold.
    Raises UsageError when no threshold on this pilot gives it, with the range that was reached.
    """
    wanted = {"size": size, "error": error, "sparsity": sparsity}
    given = [(name, value) for name, value in wanted.items() if value is not None]
    if len(given) != 1:
        raise UsageError("Calibrate to one thing.", "Give size=, error= or sparsity=.")
    name, goal = given[0][0], float(given[0][1])
    train, held_out = (pilot, pilot) if name == "size" else pilot.split(0.1)
    measure: dict[str, Callable[[ITDA], float]] = {
        "size": lambda b: _size(b, train, goal, rows or len(pilot)),
        "error": lambda b: -_error(b.build(train), held_out),
        "sparsity": lambda b: _steps(b.build(train), b.unexplained, held_out),
    }
    goal = -goal if name == "error" else goal  # all three now fall as the threshold rises
    uncapped = replace(builder, size=None if name != "size" else builder.size)
    trials: list[tuple[float, float]] = []

    def reach(threshold: float) -> float:
        trials.append((threshold, _or_least(measure[name], replace(uncapped, unexplained=threshold), name)))
        return trials[-1][1]

    low, high = LOWEST, HIGHEST
    if name != "size" and reach(low) < goal:
        raise UsageError(
            f"No threshold reaches {name} {abs(goal):g} on this pilot: at {low} it is {abs(trials[-1][1]):.4g}.",
            "Choose less, take more steps (k), or give a larger pilot.",
        )
    for _ in progress(range(rounds), desc="choosing the threshold", unit="build", quiet=quiet):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if reach(middle) >= goal else (low, middle)
    reached = [(abs(value - goal), threshold, value) for threshold, value in trials if math.isfinite(value)]
    _, chosen, value = min(reached)
    shown = tuple((threshold, abs(v)) for threshold, v in trials)
    return Calibration(replace(builder, unexplained=chosen), shown, abs(value))


def _or_least(measure: Callable[[ITDA], float], builder: ITDA, name: str) -> float:
    """A threshold that adds nothing on the pilot counts as the least of everything."""
    try:
        return measure(builder)
    except UsageError:
        return 0.0 if name != "error" else -1.0


def _size(builder: ITDA, pilot: Activations, goal: float, rows: int) -> float:
    """Atoms after `rows` activations. A build far past the goal is stopped: it is too large in any case."""
    dictionary = replace(builder, size=int(4 * goal) + builder.k).build(pilot)
    curve = np.asarray(dictionary.settings["curve"], float)
    read, atoms = curve[-1]
    if rows <= len(pilot) and read >= len(pilot):
        return float(atoms)
    late = curve[curve[:, 0] >= read / 2]
    power = np.polyfit(np.log(late[:, 0]), np.log(late[:, 1]), 1)[0] if len(np.unique(late[:, 0])) > 1 else 1.0
    return float(atoms * (rows / read) ** np.clip(power, 0, 1))


def _error(dictionary: Dictionary, held_out: Activations) -> float:
    x = held_out.whole().x
    left = np.sum((x - dictionary.reconstruct(x)) ** 2, dtype=np.float64)
    return float(left / np.sum((x - x.mean(axis=0)) ** 2, dtype=np.float64))


def _steps(dictionary: Dictionary, threshold: float, held_out: Activations) -> float:
    code: Any = dictionary.encode(held_out.whole().x, target=threshold)
    return float(np.count_nonzero(code.values, axis=1).mean())
