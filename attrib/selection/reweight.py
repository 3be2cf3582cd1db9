"""Dynamic loss-based reweighting: every batch weighs its examples by their losses of the moment (Sow et al. 2025, arXiv
2502.06733). Nothing is left out, so it stands beside selection at equal tokens."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from whence.cache.errors import UsageError, did_you_mean

# of losses brought to [-delta, delta] within the batch: what is exponentiated
STRATEGIES: dict[str, Callable[[Tensor, float], Tensor]] = {
    "linupper": lambda h, delta: torch.clamp(h + delta, max=delta),  # small losses count less, large ones equally
    "quadratic": lambda h, delta: 1 - h.square() / delta**2,  # small and large losses count less
    "extremes": lambda h, delta: h.abs(),  # they count more
}


def loss_weights(
    losses: Float[Tensor, " b"], strategy: str = "linupper", *, r: float = 1.0, delta: float = 1.0
) -> Float[Tensor, " b"]:
    """Weights of a batch's examples with mean 1: exp(s / r), normalised, s the strategy's value of each loss.

    Args:
        losses: of the examples, per token.
        strategy: linupper, quadratic or extremes.
        r: the smaller, the more weights differ.
        delta: half the range that losses are brought to.

    Raises UsageError for an unknown strategy, or an r or delta that is not above 0.
    """
    if strategy not in STRATEGIES:
        raise UsageError(f"{strategy!r} is no strategy.", did_you_mean(strategy, STRATEGIES, "Use one of"))
    if not (r > 0 and delta > 0):
        raise UsageError(f"r = {r} and delta = {delta} cannot be.", "Use numbers above 0.")
    losses = losses.detach()
    low, high = losses.min(), losses.max()
    h = delta * (2 * losses - low - high) / (high - low).clamp(min=1e-6)
    return len(losses) * torch.softmax(STRATEGIES[strategy](h, delta) / r, 0)
