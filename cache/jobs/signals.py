"""Signals: SIGINT, SIGTERM and SIGUSR1 raise an `Interrupted` that says how to resume.

Schedulers send SIGTERM, or SIGUSR1 some time before the limit. A computation under way is dropped; a commit under
way is finished first. A library may swallow the exception, so the watch remembers the signal, and long loops look at
it before every step with `stop_if_signalled`.
"""

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

from ..errors import Interrupted

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name))


class SignalWatch:
    """Which signal came, if any. `deferred()` delays the interruption to the end of its block."""

    def __init__(self) -> None:
        self.came: int | None = None
        self._deferrals = 0

    def __call__(self, number: int, frame: FrameType | None = None) -> None:
        self.came = number
        self.check()

    def check(self) -> None:
        """Raise Interrupted if a signal came, now or earlier, unless that is deferred."""
        if self.came is not None and not self._deferrals:
            raise Interrupted(
                f"Stopped by {signal.Signals(self.came).name}.",
                "Run the same command again: it resumes after what was committed.",
            )

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """Inside, a signal does not interrupt; afterwards it does."""
        self._deferrals += 1
        try:
            yield
        finally:
            self._deferrals -= 1
        self.check()


def stop_if_signalled() -> None:
    """Raise Interrupted if a signal came inside the `watch_signals` block that is open. Call it before every step of a
    long loop: a library that the step called may have swallowed the exception of the signal itself."""
    handlers = {signal.getsignal(number) for number in SIGNALS}
    for watch in handlers:
        if isinstance(watch, SignalWatch):
            watch.check()


@contextlib.contextmanager
def watch_signals() -> Iterator[SignalWatch]:
    """Listen for the signals inside the block and restore the former handlers afterwards. Signals reach the main
    thread only; on any other thread this is a no-op.

    Raises Interrupted at the end of the block if a signal came and nothing has been raised for it. A block around this
    one sees the signal too.
    """
    watch = SignalWatch()
    former = {}
    if threading.current_thread() is threading.main_thread():
        former = {number: signal.signal(number, watch) for number in SIGNALS}
    try:
        yield watch
        watch.check()
    finally:
        for number, handler in former.items():
            if isinstance(handler, SignalWatch) and watch.came is not None:
                handler.came = watch.came
            signal.signal(number, handler)
