"""One progress bar for every long loop: rate and time left on a terminal, a line now and then in a log."""

import os
import sys
from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

T = TypeVar("T")
LOG_SECONDS = 15.0


def progress(
    iterable: Iterable[T], *, total: int | None = None, desc: str = "", unit: str = "it", quiet: bool = False
) -> Iterator[T]:
    """Yield from `iterable` under a bar named `desc` that counts `unit`s.

    On a terminal or in a notebook the bar redraws ten times a second; where standard error is a file, a line
    every 15 seconds. `quiet=True`, or WHENCE_QUIET=1 in the environment, shows nothing.
    """
    interactive = sys.stderr.isatty() or "ipykernel" in sys.modules
    yield from tqdm(
        iterable,
        total=total,
        desc=desc,
        unit=unit,
        disable=quiet or os.environ.get("WHENCE_QUIET") == "1",
        mininterval=0.1 if interactive else LOG_SECONDS,
        dynamic_ncols=interactive,
        leave=interactive,
    )


def say(message: str) -> None:
    """One line for the person at the terminal, on standard error; WHENCE_QUIET=1 silences it."""
    if os.environ.get("WHENCE_QUIET") != "1":
        tqdm.write(message, file=sys.stderr)
