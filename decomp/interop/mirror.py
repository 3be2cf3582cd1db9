"""Signed codes for tools that know only non-negative ones.

Matching pursuit over [D; −D] with positive coefficients chooses d_j for c_j > 0 and −d_j for c_j < 0: the same
steps as signed matching pursuit over D, with |c_j|. So mirrored atoms make an exact export, at twice the rows; a
mirrored row that never fires on calibration data can be left out.
"""

from typing import Any, NamedTuple

import numpy as np

from ..dictionary import Dictionary
from ..provenance import Provenance


class Mirrored(NamedTuple):
    """atoms: [2a or fewer, d]; parent: the atom that each row is, or mirrors; provenance: with sign −1 on mirrors."""

    atoms: np.ndarray
    parent: np.ndarray
    provenance: Provenance


def mirrored(dictionary: Dictionary, calibration: Any = None, k: int | None = None) -> Mirrored:
    """All atoms, then the mirrors; with `calibration` [t d] only the mirrors that its codes use.

    A non-negative dictionary needs no mirrors and gets none.
    """
    size = len(dictionary)
    mirrors = np.arange(size)
    if dictionary.pursuit == "nonnegative":
        mirrors = mirrors[:0]
    elif calibration is not None:
        code = dictionary.encode(calibration, k=k)
        mirrors = np.unique(np.asarray(code.indices)[np.asarray(code.values) < 0])
    parent = np.concatenate([np.arange(size), mirrors])
    sign = np.concatenate([np.ones(size, np.int8), -np.ones(len(mirrors), np.int8)])
    provenance = dictionary.provenance.rows(parent)
    return Mirrored(
        dictionary.atoms[parent] * sign[:, None].astype(np.float32),
        parent,
        provenance._replace(sign=provenance.sign * sign),
    )
