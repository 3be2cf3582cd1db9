"""Every error that Whence raises on purpose: one tree, each saying what went wrong and what to do about it.

The command line prints the two sentences without a traceback and exits with `exit_code`.
"""

import contextlib
import difflib
from collections.abc import Iterable, Iterator


class _Explained(BaseException):
    """What an error of this project says: `cause` is what is wrong, `cure` what to change."""

    exit_code = 1

    def __init__(self, cause: str, cure: str):
        super().__init__(cause, cure)
        self.cause, self.cure = cause, cure

    def __str__(self) -> str:
        return f"{self.cause}\n  {self.cure}"


class WhenceError(_Explained, Exception):
    """Something the caller can do something about: `cause` says what is wrong, `cure` what to change.

    >>> print(WhenceError("The disk is full.", "Run `whence cache gc`."))
    The disk is full.
      Run `whence cache gc`.
    """


class UsageError(WhenceError):
    """The request itself cannot be right, whatever the data: an unknown name, a setting out of range."""

    exit_code = 2


class ModelError(WhenceError):
    """The model cannot do what is asked of it: no matching site, an unsupported layer, other shapes."""


class DataError(WhenceError):
    """The data cannot be read by the task: nothing in it, no label left, an unknown id, NaN."""


class NumericalError(WhenceError):
    """A value became non-finite (loss, gradient), or a matrix is singular."""


class ResourceError(WhenceError):
    """The job does not fit: memory, disk, time."""


class StoreError(WhenceError):
    """The store cannot be read or written as asked."""


class NotCached(StoreError):
    """The artefact is not stored, or not complete."""


class CorruptEntry(StoreError):
    """Bytes on disk are not the bytes that were committed."""


class NewerFormat(StoreError):
    """Written by a later version of Whence."""


class Interrupted(_Explained):
    """Stopped by the user or the scheduler; everything committed is kept and the job resumes.

    Like KeyboardInterrupt it is no `Exception`, so that no library's `except Exception` lets the job run on.
    """

    exit_code = 130


NO_MEMORY = ("can't allocate memory", "DefaultCPUAllocator", "RESOURCE_EXHAUSTED", "out of memory")


@contextlib.contextmanager
def enough_memory(doing: str, fitting: str = "") -> Iterator[None]:
    """An allocation that fails inside, of Python, numpy, torch or XLA, is a ResourceError.

    Args:
        doing: what needed the memory: "the model on 8 examples of 512 positions".
        fitting: what would fit, in the cure, if it is known.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:  # torch's and XLA's are RuntimeErrors
        said = (str(error).strip().splitlines() or [type(error).__name__])[0]
        if not isinstance(error, MemoryError) and not any(text in str(error) for text in NO_MEMORY):
            raise
        raise ResourceError(
            f"There is too little memory for {doing} ({said}).",
            f"Give smaller batches (positions=, --positions{fitting}) or the memory limit that they are planned for "
            "(memory=, --memory), fewer sites, or shorter sequences. What is stored is kept: the same call resumes.",
        ) from error


def did_you_mean(given: str, known: Iterable[str], otherwise: str) -> str:
    """A cure for a misspelt name: the nearest known one, or `otherwise` and all of them."""
    names = list(known)
    near = difflib.get_close_matches(given, names, n=1)
    return f"Did you mean {near[0]!r}?" if near else f"{otherwise} {', '.join(names)}."


def near_names(given: str, known: Iterable[str]) -> str:
    """A cure where names are many: the five nearest, or the first five where nothing is near."""
    names = list(known)
    near = difflib.get_close_matches(given, names, n=5, cutoff=0.2) or names[:5]
    return f"Near names: {', '.join(near)}."


def check_known(what: str, given: str, known: Iterable[str]) -> None:
    """Raise UsageError, with the nearest name or all of them, for a name that is not known."""
    names = list(known)
    if given not in names:
        raise UsageError(f"There is no {what} {given!r}.", did_you_mean(given, names, "Choose one of"))
