"""What a method decides: the loss of a part of the classes, and which classes make a part."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from jaxtyping import Array, Float, Int

from ..layers import Params
from ..matching import Part
from ..networks import Network
from ..pool import Pool

Loss: TypeAlias = Callable[[Network, Params, Part], Float[Array, ""]]
# pool, number of groups -> class numbers of every part, -1 where a part has fewer
Parts: TypeAlias = Callable[[Pool, int], Int[np.ndarray, "g m"]]


@dataclass(frozen=True)
class Method:
    """name; loss of a part; parts once warmed up (class by class before that); whether steps are augmented;
    whether the network is trained on the synthetic set between steps (else every step has a fresh network)."""

    name: str
    loss: Loss
    parts: Parts
    augmented: bool = False
    trains: bool = True


def by_class(pool: Pool, groups: int = 1) -> Int[np.ndarray, "g m"]:
    """Every class is its own part."""
    return np.arange(pool.classes)[:, None]


def together(pool: Pool, groups: int = 1) -> Int[np.ndarray, "g m"]:
    """All classes are one part."""
    return np.arange(pool.classes)[None]
