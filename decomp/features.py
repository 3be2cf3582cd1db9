"""What each atom does on data: how often it fires, how strongly, where most, and which atoms lie near it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from whence.cache.jobs.progress import progress

from .activations import Activations
from .dictionary import Dictionary
from .evaluate import ROWS
from .provenance import Text, places_in

BINS = 16
COSINES = 1 << 23  # between atoms, in memory at once


@dataclass(frozen=True, eq=False)
class Features:
    """density: [a] share of activations an atom is used on; top: [a t] rows with the largest |coefficient|, −1 where
    there are fewer, and value: [a t] the coefficients; histogram: [a bins] of coefficients between edges [bins+1];
    near: [a s] the atoms most alike and cosine: [a s] how much; document, position, token: of the rows."""

    density: Float[np.ndarray, " a"]
    top: Int[np.ndarray, "a t"]
    value: Float[np.ndarray, "a t"]
    histogram: Int[np.ndarray, "a bins"]
    edges: Float[np.ndarray, " edges"]
    near: Int[np.ndarray, "a s"]
    cosine: Float[np.ndarray, "a s"]
    document: np.ndarray
    position: np.ndarray
    token: np.ndarray

    def contexts(
        self, examples: Any, decode: Callable[[Sequence[int]], str] | None, window: int = 8, column: str = "input_ids"
    ) -> list[list[Text]]:
        """The text around the rows in `top`, for each atom.

        Args:
            examples: with token ids; those that the activations came from.
            decode: token ids -> text (a tokenizer's); None for examples without tokens, such as images.
            window: tokens on either side.
            column: of the token ids.

        Raises DataError for documents not among the examples.
        """
        place = places_in(examples, decode, window, column)

        @cache
        def look(number: int) -> Text:
            return place(int(self.document[number]), int(self.position[number]))

        return [[look(int(n)) for n in rows if n >= 0] for rows in self.top]


def features(dictionary: Dictionary, activations: Any, top: int = 8, near: int = 6, *, quiet: bool = True) -> Features:
    """Encodes the activations once. Raises ModelError for those of another model or hook point."""
    acts = Activations.of(activations)
    dictionary.origin.check_same(acts.origin)
    usable = acts.usable()[0]
    count = max(len(usable), 1)
    size, signals, atoms, values = len(dictionary), [], [], []
    for n, batch in enumerate(progress(usable.batches(ROWS), desc="encoding", unit="batch", quiet=quiet)):
        code = dictionary.encode(batch.x)
        signal, step = np.nonzero(np.asarray(code.values))
        signals.append(signal + n * ROWS)
        atoms.append(np.asarray(code.indices)[signal, step].astype(np.int64))
        values.append(np.asarray(code.values)[signal, step])
    signal, atom, value = (np.concatenate(p) if p else np.zeros(0, int) for p in (signals, atoms, values))
    pairs, inverse = np.unique(atom * count + signal, return_inverse=True)  # repeats added up
    summed = np.bincount(inverse, weights=value, minlength=len(pairs)).astype(np.float32)
    atom, signal = np.divmod(pairs, count)
    counts = np.bincount(atom, minlength=size)
    rows, strengths = _strongest(atom, signal, summed, counts, top)
    limit = float(np.percentile(np.abs(summed), 99.5)) if len(summed) else 1.0
    edges = np.linspace(-limit, limit, BINS + 1)
    place = np.clip(np.digitize(summed, edges) - 1, 0, BINS - 1)
    histogram = np.bincount(atom * BINS + place, minlength=size * BINS).reshape(size, BINS)
    neighbours, cosine = _nearest(dictionary.atoms, min(near, size - 1))
    return Features(
        counts / count,
        rows,
        strengths,
        histogram,
        edges,
        neighbours,
        cosine,
        usable.document,
        usable.position,
        usable.token,
    )


def _strongest(
    atom: np.ndarray, signal: np.ndarray, value: np.ndarray, counts: np.ndarray, top: int
) -> tuple[np.ndarray, np.ndarray]:
    """For every atom the rows with the largest |value|, strongest first; at most one of each is kept as it is."""
    order = np.lexsort((signal, -np.abs(value), atom))
    start = np.cumsum(counts) - counts
    rank = np.arange(len(order)) - start[atom[order]]
    kept = order[rank < top]
    rows = np.full((len(counts), top), -1)
    strengths = np.zeros((len(counts), top), np.float32)
    rows[atom[kept], rank[rank < top]] = signal[kept]
    strengths[atom[kept], rank[rank < top]] = value[kept]
    return rows, strengths


def _nearest(atoms: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The `count` atoms with the largest |cosine| to each, nearest first, a block of them at a time."""
    found, cosines = [], []
    block = max(1, COSINES // max(len(atoms), 1))
    for start in range(0, len(atoms), block):
        near = atoms[start : start + block] @ atoms.T
        near[np.arange(len(near)), np.arange(start, start + len(near))] = 0
        best = np.argpartition(-np.abs(near), count, axis=1)[:, :count] if count else np.zeros((len(near), 0), int)
        values = np.take_along_axis(near, best, axis=1)
        order = np.argsort(-np.abs(values), axis=1, kind="stable")
        found.append(np.take_along_axis(best, order, axis=1))
        cosines.append(np.take_along_axis(values, order, axis=1))
    return np.concatenate(found), np.concatenate(cosines)
