"""Growing a dictionary from a stream: keep the activations that the dictionary so far cannot explain.

One batch at a time: encode, find the rows whose unexplained share is above the threshold, drop those that
another accepted row of the same batch would explain, append the rest. The dictionary lives in arrays of doubling
capacity, so JAX compiles once for each size and not for every number of atoms.
"""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from whence.cache.errors import DataError

from .. import kernels
from ..activations import SMALLEST, ActivationBatch, finite
from ..kernels import Basis, Pursuit
from ..kernels.forms import whole_blocks
from ..kernels.growth import judge, put_rows, with_capacity
from ..provenance import Provenance

FIRST_CAPACITY = 1024
ROUNDING = 1e-12  # share of a row's squared norm that is left of it by subtracting the same row
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
            kept, not_finite, zero = finite(ActivationBatch(np.asarray(batch.x, np.float32), *batch[1:]))
            self.not_finite, self.zero = self.not_finite + not_finite, self.zero + zero
            if self._centre is not None:
                kept = self._centred(kept, self._centre)
            if len(kept.x):
                self._kept.append(kept)
        return self._kept.pop(0)

    def _centred(self, batch: ActivationBatch, centre: np.ndarray) -> ActivationBatch:
        """Less the centre; a row that equals it up to rounding counts as zero."""
        x = batch.x - centre
        energy = [np.einsum("bd,bd->b", rows, rows, dtype=np.float64) for rows in (x, batch.x)]
        keep = energy[0] > np.maximum(ROUNDING * energy[1], SMALLEST)
        self.zero += int((~keep).sum())
        return ActivationBatch(x[keep], *(column[keep] for column in batch[1:]))

    def check(self, found: ActivationBatch | None, wanted: int = 1, distinct: bool = False) -> ActivationBatch:
        """The rows that a builder took. Raises DataError if there are fewer than it needs, or, where it needs them
        `distinct`, fewer different ones."""
        count = 0 if found is None else len(found.x)
        left_out = f"{self.not_finite} not finite or too large for float32, {self.zero} zero or too small were left out"
        if found is None or count < wanted:
            raise DataError(
                f"{count} usable activations, at least {wanted} are needed ({left_out}).",
                "Give more data or a smaller size; check the hook point, and what was excluded.",
            )
        if distinct and (different := different_rows(found.x, wanted)) < wanted:
            raise DataError(
                f"{count} activations hold {different} different ones, at least {wanted} are needed.",
                "Choose a smaller size, or leave out the tokens that repeat (padding, beginning of sequence).",
            )
        return found

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
    so far; curve: (rows read, atoms) after every batch; worst: the largest share that the atoms left unexplained.
    """

    basis: Basis
    filled: int
    provenance: Provenance
    taken: int
    curve: tuple[tuple[int, int], ...]
    worst: float = 0.0

    @property
    def atoms(self) -> np.ndarray:
        return np.asarray(self.basis.atoms[: self.filled])


def different_rows(x: np.ndarray, enough: int) -> int:
    """How many different rows there are; counting stops at `enough`."""
    seen: set[bytes] = set()
    for row in np.ascontiguousarray(x):
        seen.add(row.tobytes())
        if len(seen) >= enough:
            break
    return len(seen)


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
    most = None if size is None else whole_blocks(size + max(padded, 512))
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
        chosen, worst = np.flatnonzero(np.asarray(accepted)), float(np.asarray(share)[: len(part.x)].max())
        if size is not None:
            chosen = chosen[: size - grown.filled]
        grown = extended(grown, part.x[chosen], places(part, chosen, np.asarray(share)[chosen]), size)
        curve = (*grown.curve, (rows.taken, grown.filled))
        grown = grown._replace(taken=rows.taken, curve=curve, worst=max(grown.worst, worst))
        yield grown
