"""Random numbers that depend on what they are for, not on when they are sampled.

A sample is a hash of (seed, example id, position): the same example gets the same labels under any batch size,
order, resume or number of workers, so curvature factors do too. The hash is SplitMix64 (Steele, Lea and
Flood 2014, "Fast splittable pseudorandom number generators"), applied once per key component.
"""

import numpy as np
import torch
from jaxtyping import Float64, Int

GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def _mix(state: np.ndarray) -> np.ndarray:
    """SplitMix64's output function on uint64, elementwise."""
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))


def uniforms(
    seed: int, example: Int[np.ndarray, " b"], positions: Int[np.ndarray, "b s"]
) -> Float64[np.ndarray, "b s"]:
    """Uniform numbers in [0, 1), one per (seed, example, position), with 53 random bits."""
    with np.errstate(over="ignore"):
        state = _mix(np.array([seed], np.int64).view(np.uint64) + GOLDEN)
        state = _mix((state ^ example.astype(np.int64).view(np.uint64)) + GOLDEN)
        state = _mix((state[:, None] ^ positions.astype(np.int64).view(np.uint64)) + GOLDEN)
    return (state >> np.uint64(11)).astype(np.float64) * 2.0**-53


def normals(seed: int, example: Int[np.ndarray, " b"], positions: Int[np.ndarray, "b s"]) -> Float64[np.ndarray, "b s"]:
    """Standard normal numbers, one per (seed, example, position) (Box and Muller 1958)."""
    radius = np.sqrt(-2.0 * np.log1p(-uniforms(seed, example, 2 * positions)))
    return radius * np.cos(2.0 * np.pi * uniforms(seed, example, 2 * positions + 1))


def categorical(
    logits: Float64[torch.Tensor, "b s c"] | torch.Tensor, u: Float64[np.ndarray, "b s"]
) -> Int[torch.Tensor, "b s"]:
    """The class whose interval of the cumulative distribution holds `u`, at every position."""
    cumulative = torch.softmax(logits.double(), dim=-1).cumsum(dim=-1)
    wanted = torch.as_tensor(u, device=logits.device).unsqueeze(-1) * cumulative[..., -1:]
    return torch.searchsorted(cumulative, wanted, right=True).squeeze(-1).clamp_(max=logits.shape[-1] - 1)
