"""Editing a dictionary: insert atoms, merge two, delete what came from a document.

Every edit returns a new dictionary whose log records it, and whose Gram matrix is the old one with rows
and columns added or taken away, never one computed anew.
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import jax.numpy as jnp
import numpy as np

from whence.cache.errors import DataError, UsageError

from . import kernels
from .dictionary import Dictionary
from .kernels import Basis
from .kernels.forms import BLOCK
from .provenance import Provenance, Text


def insert(dictionary: Dictionary, x: Any, provenance: Provenance, unexplained: float = 0.0) -> Dictionary:
    """Adds activations [m d] as atoms, those whose unexplained share exceeds the threshold.

    0 inserts everything that is not already an atom (up to rounding). The rows are judged together against the
    dictionary as it is. Raises DataError for rows that are zero or not finite, UsageError for a threshold
    outside 0 to 1.
    """
    if not 0 <= unexplained < 1:
        raise UsageError(f"An unexplained share of {unexplained}.", "Give a number from 0 to below 1.")
    x = np.asarray(x, np.float32)
    energy = np.sum(np.asarray(x, np.float64) ** 2, axis=1)
    if not (np.isfinite(energy) & (energy > 0)).all():
        raise DataError("Some rows are zero or not finite.", "Leave them out before inserting.")
    centred = x if dictionary.centre is None else x - dictionary.centre
    k = min(dictionary.k, len(dictionary))
    share = np.asarray(dictionary.encode(x, k=k).unexplained) if k else np.ones(len(x))
    keep = share > max(unexplained, 1e-6)
    norm = np.linalg.norm(centred, axis=1)
    atoms = (centred / norm[:, None])[keep]
    added = provenance._replace(norm=norm.astype(np.float32), error=share.astype(np.float32)).rows(keep)
    note = {"edit": "insert", "offered": len(x), "inserted": int(keep.sum()), "unexplained": unexplained}
    return _joined(dictionary, atoms, added, None, note)


def merge(first: Dictionary, second: Dictionary, same: float = 0.999) -> Dictionary:
    """The atoms of both; one of the second that has |cosine| above `same` with one of the first is left out,
    as is one from the same place.

    Raises ModelError when they come from different models or hook points, DataError when centred differently.

    >>> len(merge(dictionary, dictionary)) == len(dictionary)  # an atom that is there already is not added
    True
    """
    first.origin.check_same(second.origin)
    if not np.array_equal(_centre(first), _centre(second)):
        raise DataError("The dictionaries are centred differently.", "Build both with one centre.")
    near = np.asarray(kernels.forms.product(jnp.asarray(second.atoms), jnp.asarray(first.atoms)))
    known = set(first.provenance.places) - {(-1, -1)}
    keep = (np.abs(near).max(axis=1, initial=0.0) <= same) & np.array(
        [place not in known for place in second.provenance.places], bool
    )
    note = {"edit": "merge", "with": second.fingerprint, "inserted": int(keep.sum()), "same": same}
    text = None if second.text is None else tuple(second.text[n] for n in np.flatnonzero(keep))
    return _joined(first, second.atoms[keep], second.provenance.rows(keep), text, note)


def delete_documents(dictionary: Dictionary, documents: Iterable[int]) -> Dictionary:
    """Without any atom that came from these documents.

    Other atoms are activations of other documents and stay as they are, bit for bit. Raises DataError when
    nothing would be left.

    >>> smaller = delete_documents(dictionary, [0])
    >>> 0 in smaller.provenance.document
    False
    """
    listed = sorted({int(d) for d in documents})
    gone = np.isin(dictionary.provenance.document, listed)
    if gone.all():
        raise DataError("Every atom comes from these documents.", "Build a dictionary without them.")
    note = {"edit": "delete documents", "documents": listed, "deleted": int(gone.sum())}
    kept = dictionary.rows(~gone, note)
    if "basis" in dictionary.__dict__:
        _carry(kept, _taken(dictionary.basis, np.flatnonzero(~gone)))
    return kept


def _centre(dictionary: Dictionary) -> np.ndarray:
    return np.zeros(dictionary.width, np.float32) if dictionary.centre is None else dictionary.centre


def _joined(
    dictionary: Dictionary,
    atoms: np.ndarray,
    provenance: Provenance,
    text: tuple[Text, ...] | None,
    note: Mapping[str, Any],
) -> Dictionary:
    """Atoms whose text is not known get an empty one."""
    new = (Text("", "", ""),) * len(atoms) if text is None else text
    joined = replace(
        dictionary,
        atoms=np.concatenate([dictionary.atoms, atoms]),
        provenance=dictionary.provenance.joined(provenance),
        text=None if dictionary.text is None else (*dictionary.text, *new),
        log=(*dictionary.log, note),
    )
    if "basis" in dictionary.__dict__ and len(atoms):
        roomy = _sized(dictionary.basis, len(joined) + BLOCK)
        grown = kernels.append(roomy, jnp.asarray(atoms), jnp.int32(len(dictionary)))
        _carry(joined, _sized(grown, len(joined)))
    return joined


def _carry(dictionary: Dictionary, basis: Basis) -> None:
    dictionary.__dict__["basis"] = basis  # the cached_property's own slot


def _sized(basis: Basis, size: int) -> Basis:
    """The basis with zero rows added or taken off at the end, to whole blocks."""
    rows = -(-size // BLOCK) * BLOCK
    keep = min(rows, basis.atoms.shape[0])
    atoms = jnp.zeros((rows, basis.atoms.shape[1])).at[:keep].set(basis.atoms[:keep])
    if basis.gram is None:
        return Basis(atoms, None)
    gram = jnp.zeros((rows, rows), basis.gram.dtype).at[:keep, :keep].set(basis.gram[:keep, :keep])
    return Basis(atoms, gram)


def _taken(basis: Basis, rows: np.ndarray) -> Basis:
    gram = None if basis.gram is None else basis.gram[rows][:, rows]
    return _sized(Basis(basis.atoms[rows], gram), len(rows))
