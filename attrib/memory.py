"""The memory that a fit needs beside its batches, and the groups of sites that fit it."""

from collections.abc import Mapping, Sequence

from whence.cache import ResourceError, Sites, Store, TrainedModel
from whence.cache.jobs.cluster import INLINE
from whence.cache.model.sites import Site
from whence.cache.store.store import human

PAIR, WHOLE, BASIS = 8, 8, 4  # bytes of a number in a running sum, a finished sum, an eigenvector


def moment_bytes(sites: Sequence[Site]) -> int:
    """A and S of every site while they are summed and totalled."""
    return sum((o * o + i * i) * (PAIR + 2 * WHOLE) for o, i in (s.shape for s in sites))


def eigenvalue_bytes(sites: Sequence[Site]) -> int:
    """Eigenvectors and the sums of squares in them."""
    return sum(2 * (o * o + i * i) * BASIS + o * i * (PAIR + 2 * WHOLE) for o, i in (s.shape for s in sites))


def fit_bytes(sites: Sequence[Site]) -> int:
    """The most that a fit needs beside the model, its batches and the batches that it keeps."""
    return max(moment_bytes(sites), eigenvalue_bytes(sites))


def factor_limit(trained: TrainedModel) -> int:
    """Bytes that the sums and bases of a fit may take: three quarters of the memory limit; a quarter is the batch's."""
    return trained.memory_limit() * 3 // 4


def kept_limit(trained: TrainedModel, sites: Sites) -> int:
    """Bytes of batches that a fit keeps in memory between its passes: what its sums and bases leave."""
    return max(0, factor_limit(trained) - fit_bytes(sites))


def store_for_batches(trained: TrainedModel) -> Store | None:
    """The store, where a fit may keep up to `trained.spill` bytes of batches that memory does not take."""
    return trained.store if trained.spill > 0 and trained.cluster in ("inline", INLINE) else None


def fit_groups(sites: Sites, limit: int) -> list[Sites]:
    """The sites in groups, each of which can be fitted at once within `limit` bytes.

    Raises ResourceError, with what would fit, if a site alone cannot.
    """
    largest = max(sites, key=lambda s: fit_bytes([s]))
    if (needed := fit_bytes([largest])) > limit:
        fitting = sum(fit_bytes([site]) <= limit for site in sites)
        fewer = f"leave out such sites ({fitting} of the {len(sites)} fit), or " if fitting else ""
        raise ResourceError(
            f"The factors of {largest.name} ({largest.shape[0]} x {largest.shape[1]}) alone take {human(needed)} "
            f"while they are fitted, over the {human(limit)} that the memory limit leaves to factors.",
            f"To fit, {fewer}raise the memory limit to {human(needed * 4 // 3)}.",
        )
    return groups_of(sites, {site.name: fit_bytes([site]) for site in sites}, limit)


def check_fit_fits(sites: Sites, limit: int) -> None:
    """Raise ResourceError, with what would fit, if the sites cannot be fitted at once within `limit` bytes."""
    if (groups := len(fit_groups(sites, limit))) > 1:
        needed = fit_bytes(sites)
        raise ResourceError(
            f"The factors of {len(sites)} sites take {human(needed)} while they are fitted, over the {human(limit)} "
            "that the memory limit leaves to factors.",
            f"Use EKFAC, which fits them in {groups} groups of sites; or choose fewer sites, or raise the memory limit "
            f"to {human(needed * 4 // 3)}.",
        )


def check_factors_fit(sites: Sites, limit: int) -> None:
    """Raise ResourceError if the finished factors, which no store would hold, need more bytes than the limit."""
    needed = sum((o * o + i * i) * BASIS + o * i * WHOLE for o, i in (s.shape for s in sites))
    if needed > limit:
        raise ResourceError(
            f"The factors of {len(sites)} sites take {human(needed)}, over the memory limit of {human(limit)}.",
            "Give store=Store(), from which they are read when they are used, or choose fewer sites.",
        )


def groups_of(sites: Sites, sizes: Mapping[str, int], limit: int) -> list[Sites]:
    """The sites in order, in groups of at most `limit` bytes as far as `sizes` (of every site) allow.

    >>> [group.names for group in groups_of(trained.find(), {"0": 5, "2": 6}, 10)]
    [('0',), ('2',)]
    """
    names: list[list[str]] = [[]]
    used = 0
    for site in sites:
        if names[-1] and used + sizes[site.name] > limit:
            names, used = [*names, []], 0
        names[-1].append(site.name)
        used += sizes[site.name]
    return [sites] if len(names) == 1 else [sites.only(group) for group in names]
