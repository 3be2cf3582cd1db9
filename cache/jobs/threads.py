"""Work on several arrays in threads, where it is worth starting them."""

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

THREADED = 1 << 20  # bytes, from which starting threads costs nothing beside the work

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_threads(
    work: Callable[[Item], Result], items: Iterable[Item], nbytes: int, threads: int | None = None
) -> list[Result]:
    """work(item) of every item, in order, in threads if the items have at least THREADED bytes together."""
    if nbytes < THREADED:
        return [work(item) for item in items]
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(work, items))
