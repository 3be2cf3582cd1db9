"""Growing a dictionary from a stream: keep the activations that the dictionary so far cannot explain.

One batch at a time: encode, find the rows whose unexplained share is above the threshold, drop those that
another accepted row of the same batch would explain, append the rest. The dictionary lives in arrays of doubling
capacity, so JAX compiles once for each size and not for every number of atoms.
"""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from .. import kernels
from ..activations import ActivationBatch, finite
from ..kernels import Basis, Pursuit
from ..kernels.forms import BLOCK
from ..kernels.growth import judge, put_rows, with_capacity
from ..provenance import Provenance

FIRST_CAPACITY = 1024
SMALL_BATCH = 64  # rows judged together while the dictionary is small, where most of a batch is news


class Rows:
    """Re-cuts a stream into batches of any size, leaving out rows that are zero or not finite."""

    def __init__(self, stream: Iterable[ActivationBatch], centre: np.ndarray | None = None):
        self._stream, self._centre = iter(stream), centre
        self._kept: list[ActivationBatch] = []
        self.taken = self.not_finite = self.zero = 0

    def take(self, size: int) -> ActivationBatch | None:
        """The next `size` rows; fewer at the end of the stream, None after it."""
        parts: list[ActivationBatch] = []
        wanted = size
        while wanted and (part := self._next()) is not None:
            parts.append(ActivationBatch(*(column[:wanted] for column in part)))
            if len(part.x) > wanted:
                self._kept.insert(0, ActivationBatch(*(column[wanted:] for column in part)))
            wanted -= len(parts[-1].x)
        self.taken += size - wanted
        return ActivationBatch(*map(np.concatenate, zip(*parts))) if parts else None

    def _next(self) -> ActivationBatch | None:
        """Some rows: what was kept, else what the stream gives."""
        while not self._kept:
            batch = next(self._stream, None)
            if batch is None:
                return None
            x = np.asarray(batch.x, np.float32)
            kept, not_finite, zero = finite(
                ActivationBatch(x if self._centre is None else x - self._centre, *batch[1:])
            )
            self.not_finite, self.zero = self.not_finite + not_finite, self.zero + zero
            if len(kept.x):
                self._kept.append(kept)
        return self._kept.pop(0)

    def put_back(self, batch: ActivationBatch) -> None:
        """Returns rows that were taken to look at them."""
        self._kept.insert(0, batch)
        self.taken -= len(batch.x)

    def skip(self, count: int) -> None:
        """Reads past rows that an earlier run has taken."""
        while self.taken < count and self.take(min(4096, count - self.taken)) is not None:
            pass


class Grown(NamedTuple):
    """The builder's state.

    basis: atoms with free rows at the end; filled: how many of its rows are atoms; provenance: theirs; taken: rows read
    so far; curve: (rows read, atoms) after every batch.
    """

    basis: Basis
    filled: int
    provenance: Provenance
    taken: int
    curve: tuple[tuple[int, int], ...]

    @property
    def atoms(self) -> np.ndarray:
        return np.asarray(self.basis.atoms[: self.filled])


def empty(width: int, gram: bool) -> Grown:
    """No atom yet, with space for the first ones."""
    basis = kernels.basis_of(jnp.zeros((0, width)), gram, capacity=FIRST_CAPACITY)
    return Grown(basis, 0, Provenance.unknown(0), 0, ())


def extended(grown: Grown, x: np.ndarray, provenance: Provenance, size: int | None = None) -> Grown:
    """With rows [m d] appended, scaled to unit norm. m is padded to 64, 512 or a power of two above, so that few
    shapes are compiled. size: more atoms will never be there, so space for the last batch beyond them is enough."""
    count = len(x)
    if not count:
        return grown
    padded = 64 if count <= 64 else max(512, 1 << (count - 1).bit_length())
    unit = np.zeros((padded, x.shape[1]), np.float32)
    unit[:count] = x / np.linalg.norm(x, axis=1, keepdims=True)
    most = None if size is None else -(-(size + max(padded, 512)) // BLOCK) * BLOCK
    basis = with_capacity(grown.basis, grown.filled + padded, most)
    basis = put_rows(basis, jnp.asarray(unit), jnp.int32(grown.filled))
    return grown._replace(basis=basis, filled=grown.filled + count, provenance=grown.provenance.joined(provenance))


def places(batch: ActivationBatch, rows: np.ndarray, error: np.ndarray | float, seed: bool = False) -> Provenance:
    """The provenance of some rows of a batch."""
    x = batch.x[rows]
    return Provenance.of(
        batch.document[rows], batch.position[rows], batch.token[rows], np.linalg.norm(x, axis=1), error, seed
    )


def grow(grown: Grown, rows: Rows, pursuit: Pursuit, threshold: float, size: int | None, batch: int) -> Iterator[Grown]:
    """Yields the state after every batch, until the stream ends or `size` atoms are there.

    The atoms past `size` are cropped in order of arrival, so a stream always gives the same dictionary.
    """
    while size is None or grown.filled < size:
        step = min(batch, SMALL_BATCH) if grown.filled < 8 * SMALL_BATCH else batch
        part = rows.take(step)
        if part is None:
            return
        x = np.zeros((step, part.x.shape[1]), np.float32)
        x[: len(part.x)] = part.x
        accepted, share = judge(pursuit, jnp.asarray(x), grown.basis, jnp.float32(threshold))
        chosen = np.flatnonzero(np.asarray(accepted))
        if size is not None:
            chosen = chosen[: size - grown.filled]
        grown = extended(grown, part.x[chosen], places(part, chosen, np.asarray(share)[chosen]), size)
        grown = grown._replace(taken=rows.taken, curve=(*grown.curve, (rows.taken, grown.filled)))
        yield grown
