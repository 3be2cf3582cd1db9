"""What dictionaries and sparse autoencoders have in common: activations in, sparse codes out, and back.

    code = codec.encode(x)                # numpy in, numpy out
    codec.decode(code)
    codec.encode_array(codec_input)       # the same on the device, for a model that is running

A new kind implements `encode_array` and `decode_array`.
"""

from abc import ABC, abstractmethod
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

from whence.cache.errors import DataError

from .activations import LARGEST, SMALLEST, Origin, numbers
from .kernels import Code

ENCODE_ROWS = 1024  # signals in one compiled call from the host
FEW_ROWS = 64


class Codec(ABC):
    """Unit directions and the encoder that writes activations as sparse sums of them.

    atoms: [a d]; k: the steps or latents that `encode` takes by default; origin: what it was built from.
    """

    atoms: Float[np.ndarray, "a d"]
    k: int
    origin: Origin

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """sha256 over all that its codes depend on."""

    @abstractmethod
    def encode_array(self, x: Float[Array, "b d"], k: int | None = None) -> Code:
        """The sparse code of signals as JAX arrays on their device. Raises UsageError for a k that cannot be."""

    @abstractmethod
    def decode_array(self, code: Code) -> Float[Array, "b d"]:
        """What a code stands for, as a JAX array on its device."""

    def __len__(self) -> int:
        return len(self.atoms)

    @property
    def width(self) -> int:
        return int(self.atoms.shape[1])

    @property
    def W_dec(self) -> Float[np.ndarray, "a d"]:
        return self.atoms

    def encode(self, x: Any, k: int | None = None, **how: Any) -> Code:
        """The sparse code of signals [b d], as numpy arrays [b k].

        Raises DataError for another width, for values that are not finite and for signals of a size that float32
        cannot square, UsageError for a k that cannot be.
        """
        x = np.asarray(numbers(x), np.float32)
        if x.ndim != 2 or x.shape[1] != self.width:
            raise DataError(f"Signals of shape {x.shape}.", f"Give signals of shape [b, {self.width}].")
        bad = int((~np.isfinite(x).all(axis=1)).sum())
        if bad:
            raise DataError(f"{bad} of {len(x)} signals are not finite.", "Leave them out before encoding.")
        energy = np.einsum("bd,bd->b", x, x, dtype=np.float64)
        bad = int(((energy > 0) & (energy < SMALLEST) | (energy > LARGEST)).sum())
        if bad:
            raise DataError(
                f"{bad} of {len(x)} signals have a squared norm outside {SMALLEST:g} to {LARGEST:g}, where float32 "
                "loses it.",
                "Multiply them by a constant first; coefficients scale with them.",
            )
        return joined([self._encoded(x[i : i + ENCODE_ROWS], k, how) for i in range(0, max(len(x), 1), ENCODE_ROWS)])

    def _encoded(self, x: np.ndarray, k: int | None, how: dict[str, Any]) -> Code:
        """At most ENCODE_ROWS signals, padded on the host so that two shapes are compiled."""
        padded = np.zeros((ENCODE_ROWS if len(x) > FEW_ROWS else FEW_ROWS, x.shape[1]), np.float32)
        padded[: len(x)] = x
        padded[len(x) :] = x[-1:] if len(x) else 0
        code = self.encode_array(jnp.asarray(padded), k, **how)
        return jax.tree.map(lambda leaf: np.asarray(leaf)[: len(x)], code)

    def decode(self, code: Code) -> Float[np.ndarray, "b d"]:
        """What the code stands for, the centre added, as numpy."""
        return np.asarray(self.decode_array(jax.tree.map(jnp.asarray, code)))

    def reconstruct(self, x: Any, k: int | None = None, **how: Any) -> Float[np.ndarray, "b e"]:
        """decode(encode(x))."""
        return self.decode(self.encode(x, k, **how))

    def reconstruct_array(self, x: Float[Array, "b d"], k: int | None = None) -> Float[Array, "b e"]:
        """decode(encode(x)) on the device of x."""
        return self.decode_array(self.encode_array(x, k))


def joined(parts: list[Code]) -> Code:
    """One code of all signals; parts with fewer steps are filled up with steps that are not needed."""
    steps = max(part.indices.shape[1] for part in parts)

    def widened(leaf: Any) -> np.ndarray:
        return np.pad(leaf, ((0, 0), (0, steps - leaf.shape[1]))) if leaf.ndim == 2 else leaf

    return jax.tree.map(lambda *leaves: np.concatenate([widened(leaf) for leaf in leaves]), *parts)


def bucketed(x: Float[Array, "b d"]) -> Float[Array, "c d"]:
    """Signals with copies of the last one added up to a power of two, so that few shapes are compiled."""
    rows = max(FEW_ROWS, 1 << max(len(x) - 1, 0).bit_length())
    return jnp.pad(x, ((0, rows - len(x)), (0, 0)), mode="edge" if len(x) else "constant") if rows > len(x) else x
