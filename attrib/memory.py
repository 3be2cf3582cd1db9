"""The memory that a fit needs beside its batches, and the check that it fits."""

from collections.abc import Sequence

from whence.cache import ResourceError
from whence.cache.model.sites import Site

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


def check_fit_fits(sites: Sequence[Site], limit: int) -> None:
    """Raise ResourceError, with what would fit, if the factors alone need more bytes than the limit."""
    needed = fit_bytes(sites)
    if needed <= limit:
        return
    kept, used = 0, 0
    for site in sorted(sites, key=lambda s: fit_bytes([s])):
        used += fit_bytes([site])
        kept += used <= limit
    largest = max(sites, key=lambda s: fit_bytes([s]))
    fewer = f"the {kept} smallest of the {len(sites)} sites fit, " if kept else ""
    raise ResourceError(
        f"The factors of {len(sites)} sites take {needed / 1e9:.2f} GB while they are fitted, over the limit of "
        f"{limit / 1e9:.2f} GB; {largest.name} ({largest.shape[0]} x {largest.shape[1]}) alone takes "
        f"{fit_bytes([largest]) / 1e9:.2f} GB.",
        f"Choose fewer sites ({fewer}see `whence attrib plan`), or raise the memory limit to {needed / 1e9:.2f} GB.",
    )
