"""Leaving examples out and training again: brittleness to the top-k (Ilyas et al. 2022), and QLD, the rise of a query's
loss when the top share by influence is left out, above that of a random removal."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from whence.cache import DataError, Store, UsageError
from whence.cache.display.interval import Interval
from whence.cache.retrain.bank import Bank
from whence.cache.retrain.retrained import subset_masks

from .agreement import aligned

if TYPE_CHECKING:
    import xarray


class Removals(NamedTuple):
    """removed [k]: how many examples were left out. top, random [k q]: mean fall of the query's output if that many of
    its top examples, or random ones, are left out, compared with models trained on everything. excess: for every k the
    mean over queries of top - random, with its bootstrap interval over queries. queries: their ids."""

    removed: np.ndarray
    top: Float[np.ndarray, "k q"]
    random: Float[np.ndarray, "k q"]
    excess: tuple[Interval, ...]
    queries: np.ndarray

    def __str__(self) -> str:
        return "\n".join(
            f"{k} left out: falls by {top:.4f}, random {random:.4f}, more by {excess:+.4f}"
            for k, top, random, excess in zip(self.removed, self.top.mean(1), self.random.mean(1), self.excess)
        )


def brittleness(
    scores: "xarray.DataArray", bank: Bank, removed: Sequence[int], *, output: str = "measurements", **options: Any
) -> Removals:
    """`brittleness_of_all` for the scores of one method."""
    return brittleness_of_all({"": scores}, bank, removed, output=output, **options)[""]


def brittleness_of_all(
    scored: Mapping[str, "xarray.DataArray"],
    bank: Bank,
    removed: Sequence[int],
    *,
    output: str = "measurements",
    seeds: int = 3,
    random: int = 5,
    level: float = 0.95,
    store: Store | None = None,
    quiet: bool = False,
) -> dict[str, Removals]:
    """Retrain without each query's top-k examples, and without random sets of that size. Methods that would leave out
    the same examples share their models, and all share the random ones and those trained on everything.

    Args:
        scored: method -> scores [query, train] of the same queries.
        bank: how a model is trained; it keeps `output` at the queries.
        removed: every k.
        output: "measurements", "margins" or "losses".
        seeds: trainings per set.
        random: random sets per k.
        level: of the interval.

    Raises DataError if scores and training examples differ or if the bank does not keep the output, UsageError for a k
    that leaves no example.
    """
    n, k = len(bank.train), len(removed)
    if not k or min(removed) < 1 or max(removed) >= n:
        raise UsageError(f"Cannot leave {list(removed)} of {n} examples out.", f"Leave out 1 to {n - 1}.")
    if output not in bank.keep:
        raise DataError(f"The bank keeps no {output!r}.", f"Build it with keep=({output!r},).")
    drawn = np.stack([subset_masks(n, random, 1 - count / n, seed=place) for place, count in enumerate(removed)])
    top = {name: _without_top(aligned(scores, bank.train.ids), removed) for name, scores in scored.items()}
    wanted = [np.ones((1, n), bool), drawn.reshape(-1, n), *(masks.reshape(-1, n) for masks in top.values())]
    masks, where = np.unique(np.concatenate(wanted), axis=0, return_inverse=True)
    retrained = bank.run(np.repeat(masks, seeds, 0), np.tile(np.arange(seeds), len(masks)), store=store, quiet=quiet)
    values = retrained[output].astype(np.float64)
    values = (1.0 if output == "losses" else -1.0) * values.reshape(len(masks), seeds, -1).mean(1)[where.reshape(-1)]
    falls, found, first = values - values[0], {}, 1 + k * random
    for name, scores in scored.items():
        columns, q = retrained.at_points(scores["query"].values), len(scores["query"])
        by_chance = falls[1 : 1 + k * random][:, columns].reshape(k, random, q).mean(1)
        own = falls[first : first + k * q][:, columns].reshape(k, q, q)[:, np.arange(q), np.arange(q)]
        first += k * q
        excess = tuple(Interval.bootstrap(each, resamples=2000, level=level) for each in own - by_chance)
        found[name] = Removals(np.asarray(removed), own, by_chance, excess, scores["query"].values)
    return found


def _without_top(values: Float[np.ndarray, "q n"], removed: Sequence[int]) -> Bool[np.ndarray, "k q n"]:
    order = np.argsort(-values, axis=1, kind="stable")
    top = np.ones((len(removed), *values.shape), bool)
    for place, count in enumerate(removed):
        np.put_along_axis(top[place], order[:, :count], False, axis=1)
    return top


def qld(scores: "xarray.DataArray", bank: Bank, share: float = 0.01, **options: Any) -> Removals:
    """The rise of each query's loss when its top `share` of examples is left out, minus that of random removal:
    `brittleness` at one k, for a bank that keeps losses. Further options and errors are those of `brittleness`."""
    count = max(1, round(share * len(bank.train)))
    return brittleness(scores, bank, [count], output="losses", **options)
