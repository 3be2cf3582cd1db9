"""How far apart values may be that only rounding separates, by the type that a model computes in: rounding of sound
models stays well below, and what belongs to other examples, weights or code is well above."""

from typing import NamedTuple

import torch


class Tolerance(NamedTuple):
    """relative: of an objective or a gradient. absolute: of an objective, in nats. output: of activations and outputs,
    as a share of the largest."""

    relative: float
    absolute: float
    output: float = 1e-3


TOLERANCES = {
    torch.float64: Tolerance(1e-6, 1e-8, 1e-7),
    torch.float32: Tolerance(2e-3, 1e-3, 1e-3),
    torch.float16: Tolerance(5e-2, 5e-2, 2e-2),
    torch.bfloat16: Tolerance(1e-1, 2e-1, 1e-1),
}


def tolerance_of(*types: torch.dtype | None) -> Tolerance:
    """The tolerance of the coarsest of these types; that of float32 if none of them is in the table.

    >>> tolerance_of(torch.float64, torch.float32).output
    0.001
    """
    return max((TOLERANCES[t] for t in types if t in TOLERANCES), default=TOLERANCES[torch.float32])
