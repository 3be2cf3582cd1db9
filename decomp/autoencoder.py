"""Sparse autoencoders, trained here or imported, as codecs."""

import hashlib
from dataclasses import dataclass, field
from functools import cached_property

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

from whence.cache.errors import UsageError

from .activations import Origin
from .codec import Codec, bucketed
from .kernels import Code
from .kernels import decode as decode_steps
from .kernels.autoencoder import largest, most_active


@dataclass(frozen=True, eq=False)
class SparseAutoencoder(Codec):
    """Trained or imported. encode: z = keep((x − centre) W + bias) ≥ 0; decode: z D + centre.

    keep is the k largest for "topk"; all that reach `threshold`, one number or one per latent [a], for "batchtopk" and
    "jumprelu" (Rajamanoharan et al. 2024, arXiv 2407.14435; a plain ReLU is one with threshold 0). By default as many
    latents are encoded as reach their threshold.
    """

    encoder: Float[np.ndarray, "d a"]
    bias: Float[np.ndarray, " a"]
    atoms: Float[np.ndarray, "a d"]
    centre: Float[np.ndarray, " d"]
    k: int
    kind: str = "topk"
    threshold: float | Float[np.ndarray, " a"] = 0.0
    origin: Origin = field(default_factory=Origin)

    def __repr__(self) -> str:
        where = f" at {self.origin.site}" if self.origin.site else ""
        return f"SparseAutoencoder({len(self)} latents of width {self.width}{where}, {self.kind} k={self.k})"

    @cached_property
    def fingerprint(self) -> str:
        """sha256 over weights, threshold and kind."""
        digest = hashlib.sha256(f"{self.kind} {self.k}".encode())
        for array in (self.encoder, self.bias, self.atoms, self.centre, self.threshold):
            digest.update(np.ascontiguousarray(array, np.float32).tobytes())
        return digest.hexdigest()

    def encode_array(self, x: Float[Array, "b d"], k: int | None = None) -> Code:
        if k is not None and not 1 <= k <= len(self):
            raise UsageError(f"{k} of {len(self)} latents.", f"Choose k from 1 to {len(self)}.")
        weights = jnp.asarray(self.encoder), jnp.asarray(self.bias), jnp.asarray(self.threshold, jnp.float32)
        centred = bucketed(x - jnp.asarray(self.centre))
        if k is None and self.kind != "topk":
            most = int(most_active(centred, *weights))
            k = 1 << max(most - 1, 0).bit_length()  # a power of two, so that few numbers are compiled
        indices, values = largest(centred, *weights, min(self.k if k is None else k, len(self)))
        code = Code(indices, values, jnp.zeros(len(centred)), jnp.sum(centred**2, axis=1))
        left = centred - decode_steps(code, jnp.asarray(self.atoms))
        code = code._replace(residual=jnp.sum(left**2, axis=1))
        return code if len(centred) == len(x) else jax.tree.map(lambda leaf: leaf[: len(x)], code)

    def decode_array(self, code: Code) -> Float[Array, "b d"]:
        return decode_steps(code, jnp.asarray(self.atoms)) + jnp.asarray(self.centre)
