"""Stopping a job well: SIGINT, SIGTERM and SIGUSR1 become an `Interrupted` that says how to go on.

Schedulers send SIGTERM, or SIGUSR1 some time before the limit. What is being computed is dropped; what is being
committed is finished first.
"""

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

from ..errors import Interrupted

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name))


class Stopping:
    """Whether a signal came. `held()` puts the interruption off until its block is done."""

    def __init__(self) -> None:
        self._pending: int | None = None
        self._held = 0

    def __call__(self, number: int, frame: FrameType | None = None) -> None:
        self._pending = number
        if not self._held:
            self._stop()

    def _stop(self) -> None:
        number, self._pending = self._pending, None
        if number is not None:
            raise Interrupted(
                f"Stopped by {signal.Signals(number).name}.",
                "Everything committed is kept: run the same command again and it goes on from there.",
            )

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        self._held += 1
        try:
            yield
        finally:
            self._held -= 1
        if not self._held:
            self._stop()


@contextlib.contextmanager
def stopping() -> Iterator[Stopping]:
    """Listen for the signals inside the block; the former handlers are back afterwards. Signals reach the main
    thread only: anywhere else this changes nothing."""
    stop = Stopping()
    former = {}
    if threading.current_thread() is threading.main_thread():
        former = {number: signal.signal(number, stop) for number in SIGNALS}
    try:
        yield stop
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
