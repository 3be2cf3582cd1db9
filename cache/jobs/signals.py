"""Signals: SIGINT, SIGTERM and SIGUSR1 raise an `Interrupted` that says how to resume.

Schedulers send SIGTERM, or SIGUSR1 some time before the limit. A computation under way is dropped; a commit under
way is finished first.
"""

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

from ..errors import Interrupted

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name))


class SignalWatch:
    """Whether a signal came. `deferred()` delays the interruption to the end of its block."""

    def __init__(self) -> None:
        self._pending: int | None = None
        self._deferrals = 0

    def __call__(self, number: int, frame: FrameType | None = None) -> None:
        self._pending = number
        if not self._deferrals:
            self._stop()

    def _stop(self) -> None:
        number, self._pending = self._pending, None
        if number is not None:
            raise Interrupted(
                f"Stopped by {signal.Signals(number).name}.",
                "Run the same command again: it resumes after what was committed.",
            )

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        self._deferrals += 1
        try:
            yield
        finally:
            self._deferrals -= 1
        if not self._deferrals:
            self._stop()


@contextlib.contextmanager
def watch_signals() -> Iterator[SignalWatch]:
    """Listen for the signals inside the block and restore the former handlers afterwards. Signals reach the main
    thread only; on any other thread this is a no-op."""
    watch = SignalWatch()
    former = {}
    if threading.current_thread() is threading.main_thread():
        former = {number: signal.signal(number, watch) for number in SIGNALS}
    try:
        yield watch
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
