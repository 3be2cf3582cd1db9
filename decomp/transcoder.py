"""Transcoders: the activations of one hook point as codes from which those of another are computed.

    pairs = inputs.paired(outputs)                  # such as what an MLP reads, and what it writes
    transcoder = decomp.ITDA(size=2048).build(pairs)

The code is that of a dictionary, or another codec, of the inputs, built by any builder. Each of its atoms gets a
direction of the outputs, by least squares over all codes. (Dunefsky et al. 2024, arXiv 2406.11944, train encoder and
decoder together.)
"""

import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float
from scipy.sparse import csr_matrix, vstack

from whence.cache.errors import DataError

from .activations import Activations, Origin
from .codec import Codec
from .kernels import Code
from .kernels import decode as decode_steps

ROWS = 4096
RIDGE = 1e-4  # added to the squares of every coefficient, as a share of their mean
ROUNDS = 500  # of conjugate gradients, at most
ENOUGH = 1e-5  # of the right-hand side's norm that may be left


@dataclass(frozen=True, eq=False)
class Transcoder(Codec):
    """encode: the code of `codec`; decode: the sum of the atoms' output directions, with the code's coefficients.

    Args:
        codec: of the inputs; `atoms`, `k` and `origin` are its own, and so is `residual`, what the code leaves of the
            input.
        outputs: [a e] the output direction of each atom.
        centre: [e], added.
        to: hook point of the outputs.
    """

    codec: Codec
    outputs: Float[np.ndarray, "a e"]
    centre: Float[np.ndarray, " e"]
    to: str = ""

    def __repr__(self) -> str:
        return f"Transcoder({self.codec!r} to width {self.outputs.shape[1]}{f' at {self.to}' if self.to else ''})"

    @property
    def atoms(self) -> Float[np.ndarray, "a d"]:  # type: ignore[override]
        return self.codec.atoms

    @property
    def k(self) -> int:  # type: ignore[override]
        return self.codec.k

    @property
    def origin(self) -> Origin:  # type: ignore[override]
        return self.codec.origin

    @cached_property
    def fingerprint(self) -> str:
        """sha256 over the codec's, the output directions and the centre."""
        digest = hashlib.sha256(self.codec.fingerprint.encode())
        for array in (self.outputs, self.centre):
            digest.update(np.ascontiguousarray(array, np.float32).tobytes())
        return digest.hexdigest()

    def encode_array(self, x: Float[Array, "b d"], k: int | None = None, **how: Any) -> Code:
        return self.codec.encode_array(x, k, **how)

    def decode_array(self, code: Code) -> Float[Array, "b e"]:
        return decode_steps(code, jnp.asarray(self.outputs)) + jnp.asarray(self.centre)


def transcoder_of(codec: Codec, pairs: Activations) -> Transcoder:
    """The transcoder of a codec of the inputs: output directions W [a e] and centre c that minimise
    Σ‖y − c − Wᵀ z‖² + r‖W‖² over codes z of the inputs, y the outputs. The codes are kept, nothing as wide as x.

    Raises DataError for activations that are no pairs.
    """
    if pairs.target is None:
        raise DataError("These activations have no outputs.", "Pair them: inputs.paired(outputs).")
    usable, parts = pairs.usable()[0], []
    mean, total = np.zeros(usable.targets(slice(0, 1)).shape[1]), max(len(usable), 1)
    for n, batch in enumerate(usable.batches(ROWS)):
        code = codec.encode(batch.x)
        row = np.repeat(np.arange(len(batch.x)), code.values.shape[1])
        entries = (np.asarray(code.values, np.float64).ravel(), (row, np.asarray(code.indices).ravel()))
        parts.append(csr_matrix(entries, (len(batch.x), len(codec))))
        mean += usable.targets(slice(n * ROWS, (n + 1) * ROWS)).sum(axis=0, dtype=np.float64) / total
    codes = vstack(parts).tocsr()
    wanted = np.zeros((len(codec), len(mean)))
    for n, part in enumerate(parts):
        wanted += part.T @ (usable.targets(slice(n * ROWS, (n + 1) * ROWS)) - mean)
    outputs = _least_squares(codes, wanted)
    centre = mean - np.asarray(codes.mean(axis=0)).ravel() @ outputs
    return Transcoder(codec, outputs.astype(np.float32), centre.astype(np.float32), pairs.to)


def _least_squares(codes: Any, wanted: Float[np.ndarray, "a e"]) -> Float[np.ndarray, "a e"]:
    """W of (Cᵀ C + r) W = wanted, C the codes [t a] less their mean, by conjugate gradients on all columns at once,
    scaled by the diagonal."""
    mean, squares = np.asarray(codes.mean(axis=0)).ravel(), np.asarray(codes.multiply(codes).sum(axis=0)).ravel()
    ridge = RIDGE * max(float(squares.mean()), 1e-30)
    transposed, scale = codes.T.tocsr(), 1 / (squares + ridge)[:, None]

    def product(w: np.ndarray) -> np.ndarray:
        return transposed @ (codes @ w) - codes.shape[0] * np.outer(mean, mean @ w) + ridge * w

    w, left = np.zeros_like(wanted), wanted.copy()
    step = scale * left
    size = np.sum(left * step, axis=0)
    goal = ENOUGH**2 * np.maximum(size, 1e-300)
    for _ in range(ROUNDS):
        if (size <= goal).all():
            break
        moved = product(step)
        length = size / np.maximum(np.sum(step * moved, axis=0), 1e-300)
        w, left = w + length * step, left - length * moved
        scaled = scale * left
        size, before = np.sum(left * scaled, axis=0), size
        step = scaled + size / np.maximum(before, 1e-300) * step
    return w
