"""Leaving examples out and training again: brittleness to the top-k (Ilyas et al. 2022), and QLD, the rise of a query's
loss when the top share by influence is left out, above that of a random removal."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

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
    """removed [k]: how many examples were left out. top, random [k q]: mean fall of the query's output when that many
    of its top examples, or random ones, are left out, against the models trained on everything. excess: for every k the
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


def leave_out_masks(n: int, count: int, share: float, seed: int = 0) -> Bool[np.ndarray, "e n"]:
    """Masks that each leave out a random `share` of n examples: the leave-p-out form of LDS."""
    return subset_masks(n, count, 1.0 - share, seed)


def brittleness(
    scores: "xarray.DataArray",
    bank: Bank,
    removed: Sequence[int],
    *,
    output: str = "measurements",
    seeds: int = 3,
    random: int = 5,
    level: float = 0.95,
    store: Store | None = None,
    quiet: bool = False,
) -> Removals:
    """Retrain without each query's top-k examples, for every k in `removed`, `seeds` times; and without `random` random
    sets of that size. `bank` says how a model is trained and keeps `output` at the queries.

    Raises DataError where scores and training examples differ, UsageError for a k that leaves nothing.
    """
    values = aligned(scores, bank.train.ids)
    q, n = values.shape
    if not removed or min(removed) < 1 or max(removed) >= n:
        raise UsageError(f"Cannot leave {list(removed)} of {n} examples out.", f"Leave out 1 to {n - 1}.")
    if output not in bank.keep:
        raise DataError(f"The bank keeps no {output!r}.", f"ModelPass it with keep=({output!r},).")
    order = np.argsort(-values, axis=1, kind="stable")
    top = np.ones((len(removed), q, n), bool)
    for place, k in enumerate(removed):
        np.put_along_axis(top[place], order[:, :k], False, axis=1)
    drawn = np.stack([subset_masks(n, random, 1 - k / n, seed=place) for place, k in enumerate(removed)])
    masks = np.concatenate([np.ones((1, n), bool), drawn.reshape(-1, n), top.reshape(-1, n)])
    retrained = bank.run(np.repeat(masks, seeds, 0), np.tile(np.arange(seeds), len(masks)), store=store, quiet=quiet)
    sign = 1.0 if output == "losses" else -1.0  # a fall is what is bad for the query
    columns = retrained.at_points(scores["query"].values)
    outputs = sign * retrained[output][:, columns].astype(np.float64).reshape(len(masks), seeds, q).mean(1)
    falls = outputs - outputs[0]
    by_chance = falls[1 : 1 + len(removed) * random].reshape(len(removed), random, q).mean(1)
    own = falls[1 + len(removed) * random :].reshape(len(removed), q, q)[:, np.arange(q), np.arange(q)]
    excess = tuple(Interval.bootstrap(each, resamples=2000, level=level) for each in own - by_chance)
    return Removals(np.asarray(removed), own, by_chance, excess, scores["query"].values)


def qld(scores: "xarray.DataArray", bank: Bank, share: float = 0.01, **options: object) -> Removals:
    """The rise of each query's loss when its top `share` of examples is left out, above random removal: brittleness
    at one k, of a bank that keeps losses. Further options and errors as there."""
    count = max(1, round(share * len(bank.train)))
    return brittleness(scores, bank, [count], output="losses", **options)  # type: ignore[arg-type]
