"""What a condensation method is: the loss of a part of the classes and which classes make a part, or the loss of the
whole set."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Array, Float, Int

from ..layers import Params
from ..matching import Part
from ..networks import Network
from ..pool import Pool


@dataclass(frozen=True)
class CondensationMethod(ABC):
    """A condensation method. `condense` runs it; the loop differs in the loss and the parts only.

    A new method is one file here with a subclass, and one line in the registry `METHODS`.

    name: in settings. augmented: steps are augmented. trains: the network is trained on the synthetic set between steps
    (else every step has a fresh network).
    """

    name: ClassVar[str]
    augmented: ClassVar[bool] = False
    trains: ClassVar[bool] = True

    def begins(self) -> dict[str, Array]:
        """What is learned beside examples and labels, by name."""
        return {}

    def prepare(self, pool: Pool, network: Network, seed: int) -> Params | None:
        """What every step is given beside the examples: arrays by name, or None."""
        return None

    @abstractmethod
    def loss(self, network: Network, params: Params, part: Part) -> Float[Array, ""]:
        """What is compared on the real and the synthetic examples of a part of the classes."""

    @abstractmethod
    def parts(self, pool: Pool, groups: int = 1) -> Int[np.ndarray, "g m"]:
        """The classes of every part once warmed up (class by class before that), -1 if a part has fewer."""


@dataclass(frozen=True)
class SetMethod(CondensationMethod):
    """A method whose loss is of the whole synthetic set at once; its network is not trained between steps."""

    trains: ClassVar[bool] = False

    @abstractmethod
    def loss_of_set(
        self, network: Network, synthetic: dict[str, Array], labels: Array, prepared: Any, names: Any, key: Array
    ) -> Float[Array, ""]:
        """The loss.

        Args:
            synthetic: "x" [n ...], and what `begins` gave.
            labels: [n c], distributions.
            prepared: what `prepare` gave.
            names: of the operations that augment.
            key: of everything random.
        """

    def parts(self, pool: Pool, groups: int = 1) -> Int[np.ndarray, "g m"]:
        return np.arange(pool.classes)[:, None]

    def loss(self, network: Network, params: Params, part: Part) -> Float[Array, ""]:
        raise NotImplementedError(f"{self.name} compares whole sets")
