"""A stream of activations with the place in the data that every one of them came from.

Rows come from arrays in memory, from a store's entry, or from any iterable of `ActivationBatch` (a model that is
running elsewhere). Builders see nothing else.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int

from whence.cache.errors import DataError, ModelError, NotCached, UsageError
from whence.cache.model.bridge import to_numpy

SMALLEST, LARGEST = 1e-30, 1e37  # squared norms that float32 arithmetic carries


class ActivationBatch(NamedTuple):
    """x: [b d]; document: [b] id of the example; position: [b] within it; token: [b] id there."""

    x: np.ndarray
    document: np.ndarray
    position: np.ndarray
    token: np.ndarray


@dataclass(frozen=True)
class Origin:
    """What activations were computed from: hook point, and fingerprints of the model and of the data."""

    site: str = ""
    model: str = ""
    data: str = ""

    def check_same(self, other: "Origin") -> None:
        """Raises ModelError, with the beginnings of both fingerprints, if model or hook point are known and differ."""
        for name in ("model", "site"):
            mine, theirs = getattr(self, name), getattr(other, name)
            if mine and theirs and mine != theirs:
                mine, theirs = (value[:12] if name == "model" else value for value in (mine, theirs))
                raise ModelError(
                    f"This dictionary was built from {name} {mine}, these activations are from {name} {theirs}.",
                    f"Use activations of {mine}, or build a dictionary from these.",
                )


@dataclass(frozen=True, eq=False)
class Activations:
    """Rows [t d] in stream order with the place of each.

    x: anything that slices like an array (memory maps and store arrays are read as they are needed). rows: [t] which
    rows of x these are, all by default. document, position, token: [t] integers; token -1 where there is none. target:
    what a transcoder gives for each row of x, read as x is; to: its hook point (`paired`).

    >>> of_two_texts = Activations.of(np.eye(4, 8), document=[0, 0, 1, 1], position=[0, 1, 0, 1])
    >>> len(of_two_texts.without(positions=[0])), of_two_texts.width
    (2, 8)
    """

    x: Any
    document: Int[np.ndarray, " _"]
    position: Int[np.ndarray, " _"]
    token: Int[np.ndarray, " _"]
    origin: Origin = field(default_factory=Origin)
    rows: Int[np.ndarray, " _"] | None = None
    target: Any = None
    to: str = ""

    def __post_init__(self) -> None:
        read = self.x if self.rows is None else self.rows
        lengths = {len(column) for column in (read, self.document, self.position, self.token)}
        if len(lengths) != 1:
            raise DataError(
                f"Activations, documents, positions and tokens have different lengths: {sorted(lengths)}.",
                "Give one document id, position and token for every row.",
            )
        if self.width == 0:
            raise DataError("These activations have no width.", "Give rows [t d] with d > 0.")

    @staticmethod
    def of(
        x: Any,
        document: Sequence[int] | np.ndarray | None = None,
        position: Sequence[int] | np.ndarray | None = None,
        token: Sequence[int] | np.ndarray | None = None,
        origin: Origin | None = None,
    ) -> "Activations":
        """From arrays or tensors. Without documents each row is its own; [n s d] arrays are read example by example.

        Raises DataError for another shape, for values that are no numbers, and for ids that are no whole numbers.
        """
        if isinstance(x, Activations):
            return x
        x = numbers(x)
        if len(np.shape(x)) == 3:
            n, s, d = np.shape(x)
            x = x.reshape(n * s, d)
            ids = np.arange(n) if document is None else np.asarray(document)
            document = np.repeat(ids, s) if len(ids) == n else ids
            position = np.tile(np.arange(s), n) if position is None else position
            token = None if token is None else np.asarray(token).reshape(-1)
        if len(np.shape(x)) != 2:
            raise DataError(f"Activations have shape {np.shape(x)}.", "Give [rows, width] or [n, s, width].")
        t = np.shape(x)[0]

        return Activations(
            x,
            _whole("document", np.arange(t) if document is None else document),
            _whole("position", np.zeros(t, np.int64) if position is None else position),
            _whole("token", np.full(t, -1) if token is None else token),
            origin or Origin(),
        )

    def __repr__(self) -> str:
        where = f" at {self.origin.site}" if self.origin.site else ""
        return f"Activations({len(self)} rows of width {self.width}{where}, {len(np.unique(self.document))} documents)"

    @property
    def width(self) -> int:
        return int(np.shape(self.x)[1])

    def __len__(self) -> int:
        return len(self.document)

    def __iter__(self) -> Iterator[ActivationBatch]:
        return self.batches(4096)

    def batches(self, size: int) -> Iterator[ActivationBatch]:
        """In stream order, `size` rows at a time."""
        for start in range(0, len(self), size):
            yield self.take(slice(start, min(start + size, len(self))))

    def take(self, part: slice | Int[np.ndarray, " b"]) -> ActivationBatch:
        """Some of the rows, in memory."""
        x = np.asarray(self.x[self._read(part)], np.float32)
        return ActivationBatch(x, self.document[part], self.position[part], self.token[part])

    def _read(self, part: Any) -> Any:
        """These rows, as rows of x."""
        return part if self.rows is None else self.rows[part]

    def whole(self) -> ActivationBatch:
        """All rows at once, in memory."""
        return self.take(slice(0, len(self)))

    def paired(self, outputs: "Activations") -> "Activations":
        """These activations with those of another hook point that a transcoder gives for them, row by row.

        Raises DataError for outputs of other documents or positions, ModelError for those of another model.
        """
        if self.rows is not None or outputs.rows is not None:
            raise DataError(
                "Some rows were left out already.", "Pair all activations, then leave out rows of the pair."
            )
        for name in ("document", "position"):
            if not np.array_equal(getattr(self, name), getattr(outputs, name)):
                raise DataError(
                    f"Inputs and outputs differ in their {name}s.", "Observe both hook points on the same examples."
                )
        replace(self.origin, site="").check_same(replace(outputs.origin, site=""))
        return replace(self, target=outputs.x, to=outputs.origin.site)

    @property
    def inputs(self) -> "Activations":
        """The same without targets."""
        return self if self.target is None else replace(self, target=None, to="")

    def targets(self, part: slice | Int[np.ndarray, " b"]) -> Float[np.ndarray, "b e"]:
        """What a codec is to give for some of the rows: the targets of a pair, or the activations themselves."""
        wanted = self.x if self.target is None else self.target
        return np.asarray(wanted[self._read(part)], np.float32)

    def usable(self) -> tuple["Activations", int, int]:
        """The rows that can be decomposed, and how many were left out as not finite and as zero. Reads them once."""
        flaws = [_flaws(batch.x) for batch in self] or [(np.zeros(0, bool), np.zeros(0, bool))]
        bad, zero = map(np.concatenate, zip(*flaws))
        keep = ~bad & ~zero
        return self if keep.all() else self.select(keep), int(bad.sum()), int(zero.sum())

    def mean(self) -> Float[np.ndarray, " d"]:
        """Of the rows, in float64. Raises DataError if there are none."""
        if not len(self):
            raise DataError("No activation to take the mean of.", "Check the hook point, and what was excluded.")
        return sum(batch.x.sum(axis=0, dtype=np.float64) for batch in self) / len(self)

    def select(self, keep: Bool[np.ndarray, " t"] | Int[np.ndarray, " t"]) -> "Activations":
        """Some of the rows, by mask or number, in the order given."""
        keep = np.asarray(keep)
        columns = {name: getattr(self, name)[keep] for name in ("document", "position", "token")}
        return replace(self, rows=self._read(np.arange(len(self))[keep]), **columns)

    def without(self, positions: Sequence[int] = (), tokens: Sequence[int] = ()) -> "Activations":
        """Leaves out positions (0 for a beginning-of-sequence token) and token ids (padding)."""
        return self.select(~(np.isin(self.position, list(positions)) | np.isin(self.token, list(tokens))))

    def shuffled(self, seed: int = 0) -> "Activations":
        """Documents in random order, the tokens of each still in theirs. A dictionary of limited size is filled by
        what is read first: of a corpus in alphabetical order it would know the first letters only."""
        documents, place = np.unique(self.document, return_inverse=True)
        rank = np.random.default_rng(seed).permutation(len(documents))[place]
        return self.select(np.argsort(rank, kind="stable"))

    def spread(self, rows: int) -> "Activations":
        """About so many rows: whole documents, evenly apart in the stream; all of it where it is no longer."""
        _, first = np.unique(self.document, return_index=True)
        documents = self.document[np.sort(first)]
        count = max(1, round(len(documents) * min(1.0, rows / max(len(self), 1))))
        chosen = documents[np.linspace(0, len(documents) - 1, count).astype(int)]
        return self.select(np.isin(self.document, chosen))

    def split(self, held_out: float = 0.1, seed: int = 0) -> tuple["Activations", "Activations"]:
        """(the rest, held out), cut by document so that no document is on both sides."""
        documents = np.unique(self.document)
        if len(documents) < 2:
            raise DataError("One document cannot be split.", "Give activations of at least two documents.")
        count = min(max(1, round(held_out * len(documents))), len(documents) - 1)
        chosen = np.random.default_rng(seed).permutation(documents)[:count]
        inside = np.isin(self.document, chosen)
        return self.select(~inside), self.select(inside)


def numbers(x: Any) -> Any:
    """Activations as an array of numbers: tensors of any device and type, and lists, as numpy; arrays as they are.

    Raises DataError for values that are no numbers.
    """
    if isinstance(x, torch.Tensor):
        return to_numpy(x)
    x = x if hasattr(x, "dtype") and hasattr(x, "shape") else np.asarray(x)
    if getattr(x.dtype, "kind", "f") in "OSUMmc":
        raise DataError(f"Activations of type {x.dtype}.", "Give real numbers, every row of one length.")
    return x


def _whole(name: str, values: Any) -> np.ndarray:
    """A column of int64, exactly. Raises DataError for what would change."""
    values = np.asarray(to_numpy(values) if isinstance(values, torch.Tensor) else values)
    if values.dtype.kind in "iub" and not (values.dtype.kind == "u" and (values > np.iinfo(np.int64).max).any()):
        return values.astype(np.int64)
    if not values.size:
        return np.zeros(0, np.int64)
    raise DataError(
        f"The {name} column has the type {values.dtype}, for instance {values.ravel()[0]!r}.",
        "Number the rows with whole numbers below 2^63, and keep other names beside them.",
    )


def finite(batch: ActivationBatch) -> tuple[ActivationBatch, int, int]:
    """The rows that can be decomposed, and how many were left out as not finite and as zero.

    Squares are summed in float32, so a row with a squared norm above 1e37 counts as not finite, below 1e-30 as zero.
    """
    bad, zero = _flaws(batch.x)
    if not bad.any() and not zero.any():
        return batch, 0, 0
    keep = ~bad & ~zero
    return ActivationBatch(*(column[keep] for column in batch)), int(bad.sum()), int(zero.sum())


def _flaws(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which rows are not finite, and which are zero."""
    energy = np.einsum("bd,bd->b", x, x, dtype=np.float64)
    zero = energy < SMALLEST
    return ~zero & ~(energy <= LARGEST), zero


@dataclass(frozen=True)
class Kept:
    """Rows [t d] of an array of the store, read as they are needed."""

    entry: Any
    name: str

    @property
    def shape(self) -> tuple[int, int]:
        rows, *width = self.entry.arrays[self.name].shape
        return rows, int(np.prod(width))

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(self.entry.arrays[self.name].dtype)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, at: Any) -> np.ndarray:
        if isinstance(at, slice):
            start, stop, step = at.indices(len(self))
            found = self.entry.slice(self.name, start, stop)[::step]
        else:
            found = self.entry.rows(self.name, at)
        return found.reshape(len(found), self.shape[1])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self.entry.read(self.name).reshape(self.shape), dtype)


def from_entry(entry: Any, site: str | None = None) -> Activations:
    """Activations of the store, one hook point of them, with the documents and positions of the rows.

    Raises NotCached while the entry is still being built, UsageError when `site` is not in it.
    """
    if not entry.sealed:
        raise NotCached(
            f"The activations {entry.key[:12]} are still being built.",
            "Wait for the job that builds them, or run it again: it resumes.",
        )
    names = [name for name in entry.arrays if name not in ("example", "position", "token")]
    name = site if site is not None else names[0]
    if name not in names:
        raise UsageError(f"{name} is not in these activations.", f"Choose one of {', '.join(names)}.")
    example, position, token = (entry.read(key) for key in ("example", "position", "token"))
    origin = Origin(name, str(entry.inputs.get("model", "")), str(entry.inputs.get("data", "")))
    return Activations(Kept(entry, name), example, position, token, origin)


def as_stream(source: "Activations | Iterable[ActivationBatch] | Any") -> tuple[Iterable[ActivationBatch], Origin]:
    """What a builder reads, with the origin where it is known. Store entries are opened here."""
    if isinstance(source, Activations):
        return source, source.origin
    if hasattr(source, "sealed"):
        acts = from_entry(source)
        return acts, acts.origin
    if isinstance(source, (np.ndarray, list)) or hasattr(source, "__array__"):
        return Activations.of(source), Origin()
    return source, Origin()
